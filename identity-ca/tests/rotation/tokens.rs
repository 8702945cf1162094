//! Join tokens name a root: with it they become void, and everybody can see why.

use std::time::{Duration, Instant};

use handfast_ca::client::join;
use handfast_ca::client::rotation::Force;
use handfast_ca::model::Subject;
use handfast_ca::rotation::{Stage, What};

use super::common::Ca;
use super::whole::{order, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_until_its_root_leaves_the_bundle_and_void_from_then_on() {
    let mut ca = Ca::start().await;
    let token = |name: &'static str, prefix: &'static str| (name, prefix);
    let tokens = [
        token("n1", "10.1.1.0/24"),
        token("n2", "10.1.2.0/24"),
        token("n3", "10.1.3.0/24"),
    ];
    let mut made = Vec::new();
    for (name, prefix) in tokens {
        made.push(ca.token(name, prefix).await);
    }
    let [mut late, tainted, activated] = <[_; 3]>::try_from(made).ok().unwrap();
    let rotation = ca
        .admin
        .rotate(order(What::Root, Stage::Activated))
        .await
        .unwrap();
    until(&mut ca.admin, rotation.id, "activated").await;
    assert_eq!(ca.admin.status().await.unwrap().tokens_open, 3);
    let subject = |name: &str| Subject::Node(name.parse().unwrap());
    join(&activated).await.unwrap();
    // Not to be waited for.
    ca.admin.revoke(&subject("n3"), "a test").await.unwrap();
    let on = ca
        .admin
        .steer_rotation(rotation.id, Stage::Tainted, &Force::Nobody, "");
    on.await.unwrap();
    until(&mut ca.admin, rotation.id, "tainted").await;
    join(&tainted).await.unwrap();
    ca.admin.revoke(&subject("n2"), "a test").await.unwrap();
    let on = ca
        .admin
        .steer_rotation(rotation.id, Stage::Revoked, &Force::Nobody, "");
    on.await.unwrap();
    until(&mut ca.admin, rotation.id, "revoked").await;

    assert_eq!(ca.admin.status().await.unwrap().tokens_open, 0);
    let listed = ca.admin.tokens().await.unwrap();
    let one = listed
        .iter()
        .find(|token| token.node.as_str() == "n1")
        .unwrap();
    assert_eq!(one.state(one.created_at_ms), "void");
    assert!(one.void.contains("the root"), "{}", one.void);
    // Whoever knows the old root only is told so before the secret is said
    // (once the server has put its new chain in place) ...
    let since = Instant::now();
    loop {
        let error = join(&late).await.unwrap_err().to_string();
        if error.contains("its root was replaced since") {
            break;
        }
        assert!(error.contains("void"), "{error}");
        assert!(since.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // ... and the CA does not take it from anybody else.
    late.root_fingerprint = ca
        .admin
        .bundle()
        .await
        .unwrap()
        .fingerprints()
        .next()
        .unwrap();
    let error = join(&late).await.unwrap_err().to_string();
    assert!(
        error.contains("void: the root by which it knows"),
        "{error}"
    );
    let fresh = ca.token("n1", "10.1.1.0/24").await;
    join(&fresh).await.unwrap();
    ca.stop().await;
}
