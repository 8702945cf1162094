//! The same relationships in PostgreSQL: none with a bundle, set, counted, forgotten.

use handfast_ca::authority;
use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::federation::NewFederation;

use super::common::postgres::Postgres;
use super::common::{Ca, options, setup};
use super::{THEIRS, words};

#[tokio::test(flavor = "multi_thread")]
async fn relationships_are_kept_in_postgresql_too() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut wanted = setup(folder.path().join("ca"));
    wanted.store = Some(postgres.url("handfast"));
    authority::init(&wanted).await.unwrap();
    let options = options(&folder, 0);
    let mut ca = Ca::serve_with(folder, options.clone()).await;
    let new = NewFederation {
        trust_domain: THEIRS.to_owned(),
        // Nobody listens on port 1.
        url: "https://localhost:1/".to_owned(),
        profile: "https_web".to_owned(),
        ..NewFederation::default()
    };
    let made = ca.admin.create_federation(new).await.unwrap();
    assert_eq!((made.sequence, made.fetched_ms), (None, 0));
    let error = ca.admin.refresh_federation(THEIRS).await.unwrap_err();
    words(error, &["localhost:1"]);
    assert!(
        !ca.admin
            .federation(THEIRS)
            .await
            .unwrap()
            .problem
            .is_empty()
    );
    let theirs = ca
        .admin
        .bundle()
        .await
        .unwrap()
        .to_spiffe_json()
        .to_string();
    let domain = spiffe::TrustDomain::new(THEIRS).unwrap();
    let theirs = handfast_ca::bundle::TrustBundle::from_spiffe_json(domain, theirs.as_bytes());
    let theirs = theirs.unwrap().bundle;
    ca.admin.set_bundle(&theirs, "carried over").await.unwrap();
    let entry = NewEntry {
        spiffe_id: "spiffe://example.org/web".to_owned(),
        selectors: vec!["netns:web".to_owned()],
        federates_with: vec![THEIRS.to_owned()],
        ..NewEntry::default()
    };
    ca.admin.create_entry(&entry).await.unwrap();
    let folder = ca.stop().await;
    let mut ca = Ca::serve_with(folder, options).await;
    let known = ca.admin.federation(THEIRS).await.unwrap();
    assert_eq!((known.bundle.unwrap(), known.entries), (theirs, 1));
    words(
        ca.admin
            .delete_federation(THEIRS, "over", false, false)
            .await
            .unwrap_err(),
        &["1 entries"],
    );
    ca.admin
        .delete_federation(THEIRS, "over", true, false)
        .await
        .unwrap();
    assert!(ca.admin.federations().await.unwrap().is_empty());
    ca.stop().await;
}
