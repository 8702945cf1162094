//! StreamSecrets and FetchSecrets: every response has all that is wanted.

use std::collections::BTreeSet;

use tonic::Status;

use super::super::Material;
use super::super::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use super::secret::{Rendered, SECRET_TYPE, names, secret, version};
use super::session::{Session, check_names, check_type, refused};

/// The state of one stream.
#[derive(Default)]
pub(super) struct World {
    /// What the proxy wants; empty means everything. None: it has not asked yet.
    wanted: Option<BTreeSet<String>>,
    /// It has asked for something that it was not sent.
    due: bool,
    /// What it was sent last.
    version: String,
    served: BTreeSet<String>,
    /// How often it was sent something.
    nonce: u64,
}

impl Session for World {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn request(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        check_names(request.resource_names.iter())?;
        let answered = !request.response_nonce.is_empty() && self.nonce > 0;
        if answered && request.response_nonce != self.nonce.to_string() {
            // It speaks of an older response; of the newest it will speak too.
            return Ok(());
        }
        if let Some(detail) = &request.error_detail {
            refused(&self.version, detail);
        }
        let wanted: BTreeSet<String> = request.resource_names.into_iter().collect();
        if self.wanted.as_ref() != Some(&wanted) {
            self.due = true;
            self.served.retain(|name| wanted.contains(name));
            self.wanted = Some(wanted);
        }
        Ok(())
    }

    fn response(&mut self, material: &Material) -> Result<Option<DiscoveryResponse>, Status> {
        let Some(wanted) = &self.wanted else {
            return Ok(None);
        };
        let secrets: Vec<Rendered> = if wanted.is_empty() {
            names(material)
                .iter()
                .filter_map(|name| secret(name, material))
                .collect()
        } else {
            wanted
                .iter()
                .filter_map(|name| secret(name, material))
                .collect()
        };
        let served: BTreeSet<String> = secrets.iter().map(|secret| secret.name.clone()).collect();
        if let Some(lost) = self.served.iter().find(|name| !served.contains(*name)) {
            // This kind of response cannot say that something is gone (W-9).
            return Err(Status::permission_denied(format!(
                "{lost} was withdrawn from this workload"
            )));
        }
        let versions: Vec<&[u8]> = secrets
            .iter()
            .map(|secret| secret.version.as_bytes())
            .collect();
        let version = version(&versions);
        if secrets.is_empty() || (!self.due && version == self.version) {
            return Ok(None);
        }
        self.due = false;
        self.version.clone_from(&version);
        self.served = served;
        self.nonce += 1;
        Ok(Some(DiscoveryResponse {
            version_info: version,
            resources: secrets.into_iter().map(|secret| secret.resource).collect(),
            type_url: SECRET_TYPE.to_owned(),
            nonce: self.nonce.to_string(),
        }))
    }
}
