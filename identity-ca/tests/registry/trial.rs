//! Policies on trial: they go back by themselves, over whatever happens to the CA meanwhile, unless somebody confirms them.

use std::time::Duration;

use handfast_ca::model::PolicyDocument;

use super::common::{Ca, next};

const OLD: &str = "HandfastPolicy/shop/old";
const NEW: &str = "HandfastPolicy/shop/new";
/// Far away, for trials whose end is not waited for.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(1);

fn document(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), text.to_owned())
}

fn changed() -> [(String, String); 2] {
    [document(OLD, "# closed"), document(NEW, "# closed too")]
}

async fn texts(ca: &mut Ca) -> Vec<(String, String)> {
    let policies = ca.admin.policies().await.unwrap();
    let text = |policy: PolicyDocument| (policy.name, policy.text);
    policies.into_iter().map(text).collect()
}

/// Waits until the CA has put back what was before.
async fn reverted(ca: &mut Ca) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while ca.admin.policy_trial().await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the trial's end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_confirms_goes_back_and_agents_hear_of_it() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let before = document(OLD, "# open");
    ca.admin
        .put_policies(std::slice::from_ref(&before))
        .await
        .unwrap();
    let mut updates = agent.updates().await.unwrap();
    let put = ca.admin.try_policies(&changed(), SHORT).await.unwrap();
    assert_eq!(put.len(), 2);
    assert_eq!(texts(&mut ca).await.len(), 2);
    reverted(&mut ca).await;
    assert_eq!(texts(&mut ca).await, [before]);
    // A number that was used is never used again.
    let version = ca.admin.policy(OLD).await.unwrap().version;
    assert_eq!(version, 3);
    loop {
        let update = next(&mut updates).await;
        let Some(policies) = update.policies else {
            continue;
        };
        if policies.iter().any(|policy| policy.version == 3) {
            assert_eq!(policies.len(), 1);
            break;
        }
    }
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_stays_and_there_is_nothing_left_to_confirm() {
    let mut ca = Ca::start().await;
    ca.admin.try_policies(&changed(), LONG).await.unwrap();
    let trial = ca.admin.policy_trial().await.unwrap().unwrap();
    let created: Vec<_> = trial
        .policies
        .iter()
        .map(|policy| (policy.name.as_str(), policy.created))
        .collect();
    assert_eq!(created, [(NEW, true), (OLD, true)]);
    assert_eq!(trial.deadline_ms - trial.began_at_ms, 3_600_000);
    assert_eq!(ca.admin.confirm_policies().await.unwrap(), trial);
    assert_eq!(ca.admin.policy_trial().await.unwrap(), None);
    for error in [
        ca.admin.confirm_policies().await.unwrap_err(),
        ca.admin.revert_policies("a test").await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("nothing was changed"), "{error}");
    }
    assert_eq!(texts(&mut ca).await.len(), 2);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn meanwhile_nothing_else_is_applied_and_the_refusal_says_what_to_do() {
    let mut ca = Ca::start().await;
    let kept = document(OLD, "# open");
    ca.admin
        .put_policies(std::slice::from_ref(&kept))
        .await
        .unwrap();
    let before = ca.admin.policy(OLD).await.unwrap();
    ca.admin.try_policies(&changed(), LONG).await.unwrap();
    let other = [document("HandfastPolicy/other", "# other")];
    let names = [OLD.to_owned()];
    for error in [
        ca.admin.put_policies(&other).await.map(drop).unwrap_err(),
        ca.admin
            .try_policies(&other, LONG)
            .await
            .map(drop)
            .unwrap_err(),
        ca.admin
            .delete_policies(&names, "a test")
            .await
            .map(drop)
            .unwrap_err(),
        ca.admin
            .replace_policy(&before, "# else".to_owned(), "a test")
            .await
            .unwrap_err(),
    ] {
        let error = error.to_string();
        for word in [
            "policy confirm",
            "policy revert",
            "nothing was changed",
            NEW,
        ] {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
    }
    let reverted = ca.admin.revert_policies("a test").await.unwrap();
    assert_eq!(reverted.policies.len(), 2);
    assert_eq!(texts(&mut ca).await, [kept]);
    ca.admin.put_policies(&other).await.unwrap();
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_no_ca_runs_is_kept_by_the_next_one() {
    let mut ca = Ca::start().await;
    let before = document(OLD, "# open");
    ca.admin
        .put_policies(std::slice::from_ref(&before))
        .await
        .unwrap();
    ca.admin
        .try_policies(&changed(), Duration::from_secs(2))
        .await
        .unwrap();
    let folder = ca.stop().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut ca = Ca::serve(folder, 0).await;
    reverted(&mut ca).await;
    assert_eq!(texts(&mut ca).await, [before]);
    // Whoever comes back confirms a trial that is still under way.
    ca.admin.try_policies(&changed(), LONG).await.unwrap();
    let folder = ca.stop().await;
    let mut ca = Ca::serve(folder, 0).await;
    ca.admin.confirm_policies().await.unwrap();
    assert_eq!(
        texts(&mut ca).await,
        changed().into_iter().rev().collect::<Vec<_>>()
    );
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_is_not_on_trial_and_odd_times_are_refused() {
    let mut ca = Ca::start().await;
    ca.admin.put_policies(&changed()).await.unwrap();
    ca.admin.try_policies(&changed(), LONG).await.unwrap();
    assert_eq!(ca.admin.policy_trial().await.unwrap(), None);
    // Of two, the one that changes.
    let half = [document(OLD, "# else"), changed()[1].clone()];
    ca.admin.try_policies(&half, LONG).await.unwrap();
    let trial = ca.admin.policy_trial().await.unwrap().unwrap();
    assert_eq!(trial.policies.len(), 1);
    assert!(trial.policies[0].name == OLD && !trial.policies[0].created);
    ca.admin.revert_policies("a test").await.unwrap();
    for odd in [Duration::from_millis(999), Duration::from_secs(86_401)] {
        let error = ca.admin.try_policies(&half, odd).await.unwrap_err();
        assert!(error.to_string().contains("1 s to 1 day"), "{error}");
    }
    ca.stop().await;
}
