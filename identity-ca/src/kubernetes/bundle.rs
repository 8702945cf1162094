//! The trust bundle in a ConfigMap, so that a node that is to join knows whom to believe.
//!
//! It is no secret; who may write that ConfigMap may lead new nodes to another CA, so its role allows it to the CA alone.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::timeout;

use super::chain;
use super::config::BundleConfig;
use crate::server::Registrar;

/// The key of the bundle, in SPIFFE's JSON.
const KEY: &str = "bundle.json";
const MANAGER: &str = "handfast-ca";
const RETRY: Duration = Duration::from_secs(5);
/// One request: a bundle that is newer does not wait behind it for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// Publishes it now and at each change, until it is dropped.
pub(super) async fn publish(client: &Client, config: &BundleConfig, registrar: &Registrar) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let parameters = PatchParams::apply(MANAGER).force();
    let mut snapshots = registrar.snapshots();
    let mut published = None;
    loop {
        let bundle = std::sync::Arc::clone(&snapshots.borrow_and_update().bundle);
        if published != Some(bundle.sequence()) {
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": config.name},
                "data": {KEY: bundle.to_spiffe_json().to_string()},
            });
            let patch = Patch::Apply(&map);
            let patched = timeout(PATIENCE, maps.patch(&config.name, &parameters, &patch)).await;
            let problem = match patched {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some("no answer in time".to_owned()),
            };
            match problem {
                None => published = Some(bundle.sequence()),
                Some(error) => {
                    tracing::warn!(error, "the trust bundle is not published; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}
