//! JWT-SVIDs over the wire: for entries that apply to the node, and for nobody else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::time::Duration;

use common::Ca;
use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::{AgentClient, IssuedJwt, Refusal};
use handfast_ca::jwt::{self, JwtSvid};
use handfast_ca::model::Subject;
use rustls_pki_types::UnixTime;

async fn ask(agent: &AgentClient, entry: &str, audiences: &[&str]) -> Result<IssuedJwt, Refusal> {
    let audiences: Vec<String> = audiences.iter().map(ToString::to_string).collect();
    agent.issue_jwt(entry, &audiences).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn j5_a_token_of_an_entry_is_short_and_verified_by_the_bundle() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let short = NewEntry {
        spiffe_id: "spiffe://example.org/job".to_owned(),
        selectors: vec!["netns:job".to_owned()],
        jwt_ttl: Some(Duration::from_secs(60)),
        ..NewEntry::default()
    };
    let short = ca.admin.create_entry(&short).await.unwrap();
    let agent = ca.connect(&joined).await.unwrap();
    let issued = ask(&agent, &entry.id, &["db", "cache"]).await.unwrap();
    let bundle = ca.admin.bundle().await.unwrap();
    let verify = |token: &str, audience: &str| {
        let known = |domain: &spiffe::TrustDomain| {
            Some(&bundle).filter(|bundle| bundle.trust_domain() == domain)
        };
        jwt::verify(token, audience, known, UnixTime::now())
    };
    let svid = verify(&issued.token, "db").unwrap();
    assert_eq!(svid.spiffe_id.to_string(), "spiffe://example.org/web");
    assert_eq!(svid.audiences, ["db", "cache"]);
    let life = |svid: &JwtSvid| svid.expires_at - svid.claims["iat"].as_u64().unwrap();
    assert_eq!(life(&svid), 300);
    assert!(verify(&issued.token, "web").is_err());
    let issued = ask(&agent, &short.id, &["db"]).await.unwrap();
    assert_eq!(life(&verify(&issued.token, "db").unwrap()), 60);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_tokens_of_its_own_workloads_only() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    ca.join("db1", "10.2.0.0/24").await;
    let parent = Some("spiffe://example.org/handfast/node/db1");
    let theirs = ca.entry("spiffe://example.org/db", parent).await;
    let ours = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    for (entry, audiences) in [
        (theirs.id.as_str(), &["db"][..]),
        ("nobody", &["db"]),
        ("", &["db"]),
        (&ours.id, &[]),
        (&ours.id, &[""]),
        (&ours.id, &["x"; 17]),
    ] {
        let refused = ask(&agent, entry, audiences).await;
        assert!(refused.is_err(), "{entry} {audiences:?}");
    }
    let subject = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    ca.admin.revoke(&subject, "stolen").await.unwrap();
    let refused = ask(&agent, &ours.id, &["db"]).await.unwrap_err();
    assert!(refused.message.contains("revoked"), "{refused}");
    ca.admin.unrevoke(&subject, "found").await.unwrap();
    ask(&agent, &ours.id, &["db"]).await.unwrap();
    ca.stop().await;
}
