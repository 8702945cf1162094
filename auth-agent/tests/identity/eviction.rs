//! A node that the CA evicts, and how it comes back.

use std::path::Path;
use std::time::Duration;

use handfast_agent::identity::{IdentityError, Method, NodeStore, join};
use handfast_ca::client::admin::TokenRequest;

use super::world::Ca;

async fn token_file(ca: &mut Ca, name: &str, folder: &Path) -> Method {
    let order = TokenRequest {
        node: name.parse().unwrap(),
        prefixes: vec![],
        underlay: vec![],
        ca_address: ca.address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    let token = ca.admin.create_token(&order).await.unwrap();
    let file = folder.join(format!("{name}.token"));
    token.write(&file).unwrap();
    Method::Token { file }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_attests_again_only_if_it_is_told_to_and_stays_who_it_is() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let _other = ca.join("web2", 2).await;
    let folder = tempfile::tempdir().unwrap();
    let before = NodeStore::open(&node.data).unwrap().identity().unwrap();

    let other = token_file(&mut ca, "web2", folder.path()).await;
    let refused = join(&other, &node.data, true).await.unwrap_err();
    assert!(
        matches!(refused, IdentityError::AnotherNode { .. }),
        "{refused}"
    );

    let method = token_file(&mut ca, "web1", folder.path()).await;
    let refused = join(&method, &node.data, false).await.unwrap_err();
    assert!(
        matches!(refused, IdentityError::AlreadyJoined(_)),
        "{refused}"
    );
    let kept = NodeStore::open(&node.data).unwrap().identity().unwrap();
    assert_eq!(before.chain, kept.chain);

    // The token was not spent by the refusal.
    let joined = join(&method, &node.data, true).await.unwrap();
    assert_eq!(joined.spiffe_id.path(), "/handfast/node/web1");
    let after = NodeStore::open(&node.data).unwrap().identity().unwrap();
    assert_ne!(before.chain, after.chain);
}
