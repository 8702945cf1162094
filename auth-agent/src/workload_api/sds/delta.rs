//! DeltaSecrets: every response has what has changed.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;

use super::super::Material;
use super::super::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use super::secret::{SECRET_TYPE, names, secret, version};
use super::session::{Session, check_names, check_type, refused};

/// Stands for everything.
const WILDCARD: &str = "*";

/// The state of one stream.
#[derive(Default)]
pub(super) struct Delta {
    begun: bool,
    wildcard: bool,
    wanted: BTreeSet<String>,
    /// What the proxy has: name and version.
    has: BTreeMap<String, String>,
    nonce: u64,
}

impl Session for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        if let Some(detail) = &request.error_detail
            && request.response_nonce == self.nonce.to_string()
        {
            refused(&request.response_nonce, detail);
        }
        if !self.begun {
            self.begun = true;
            check_names(request.initial_resource_versions.keys())?;
            self.wildcard = request.resource_names_subscribe.is_empty();
            self.has.extend(request.initial_resource_versions);
        } else {
            // Who asks again for what it has, wants to be sent it again.
            for name in &request.resource_names_subscribe {
                self.has.remove(name);
            }
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                self.wildcard = true;
            } else {
                self.wanted.insert(name);
            }
        }
        check_names(self.wanted.iter())?;
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            }
            self.wanted.remove(&name);
            self.has.remove(&name);
        }
        Ok(())
    }

    fn response(&mut self, material: &Material) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        if !self.begun {
            return Ok(None);
        }
        let mut wanted = self.wanted.clone();
        if self.wildcard {
            wanted.extend(names(material));
        }
        let mut resources = Vec::new();
        let mut there = BTreeSet::new();
        for secret in wanted.iter().filter_map(|name| secret(name, material)) {
            there.insert(secret.name.clone());
            if self.has.get(&secret.name) != Some(&secret.version) {
                self.has.insert(secret.name.clone(), secret.version.clone());
                resources.push(Resource {
                    version: secret.version,
                    resource: Some(secret.resource),
                    name: secret.name,
                });
            }
        }
        let removed: Vec<String> = self
            .has
            .keys()
            .filter(|name| !there.contains(*name))
            .cloned()
            .collect();
        self.has.retain(|name, _| there.contains(name));
        if resources.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        self.nonce += 1;
        let versions: Vec<&[u8]> = self.has.values().map(String::as_bytes).collect();
        Ok(Some(DeltaDiscoveryResponse {
            system_version_info: version(&versions),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce: self.nonce.to_string(),
            removed_resources: removed,
        }))
    }
}
