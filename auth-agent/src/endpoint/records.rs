//! What is remembered of endpoints while the machine is up: one file in the run directory.
//!
//! The run directory is emptied by a boot, as are the kernel's maps, so a number is unique for exactly as long as
//! anything in the kernel can refer to it. That is also why nothing here waits for a disk: a pod's start would.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Endpoint, EndpointId};
use crate::files;

/// Endpoints that one node may have; more than any node runs, and a bound for a damaged file.
pub const MAX_ENDPOINTS: usize = 4096;

/// The endpoints of this node and the next free number.
#[derive(Debug)]
pub struct EndpointRecords {
    path: PathBuf,
    state: State,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    next: EndpointId,
    endpoints: Vec<Endpoint>,
}

/// Why the records do not change.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Two endpoints cannot have one name.
    #[error("endpoint {0} exists already; remove it first with: handfast endpoint remove {0}")]
    NameTaken(String),
    /// Two endpoints cannot have one address.
    #[error("address {address} is in use by endpoint {by}; nothing was changed")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: String,
    },
    /// There is no such endpoint.
    #[error("no endpoint {0}; handfast endpoint list shows what there is")]
    Unknown(String),
    /// Too many.
    #[error("this node has {MAX_ENDPOINTS} endpoints already, which is the most it can have")]
    Full,
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] files::FileError),
}

impl EndpointRecords {
    /// Reads the records of this boot; none yet is an empty list.
    pub fn open(run_dir: &Path) -> Result<Self, RecordError> {
        let path = run_dir.join("endpoints.json");
        let state = files::read_json(&path)?.unwrap_or(State {
            next: 1,
            endpoints: Vec::new(),
        });
        Ok(Self { path, state })
    }

    /// All endpoints.
    pub fn all(&self) -> &[Endpoint] {
        &self.state.endpoints
    }

    /// Checks that an endpoint may come, and takes a number for it. The number is used up even if it then does not.
    pub fn reserve(&mut self, name: &str, addresses: &[IpAddr]) -> Result<EndpointId, RecordError> {
        if self.state.endpoints.iter().any(|e| e.name == name) {
            return Err(RecordError::NameTaken(name.to_owned()));
        }
        self.free(addresses)?;
        if self.state.endpoints.len() >= MAX_ENDPOINTS {
            return Err(RecordError::Full);
        }
        let id = self.state.next;
        self.change(|state| state.next += 1)?;
        Ok(id)
    }

    /// Checks that no endpoint has one of these addresses.
    pub fn free(&self, addresses: &[IpAddr]) -> Result<(), RecordError> {
        for address in addresses {
            let holder = self
                .state
                .endpoints
                .iter()
                .find(|endpoint| endpoint.addresses.contains(address));
            if let Some(holder) = holder {
                return Err(RecordError::AddressTaken {
                    address: *address,
                    by: holder.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Remembers an endpoint whose number was reserved.
    pub fn insert(&mut self, endpoint: Endpoint) -> Result<(), RecordError> {
        self.change(|state| state.endpoints.push(endpoint))
    }

    /// An endpoint, by name.
    pub fn find(&self, name: &str) -> Result<&Endpoint, RecordError> {
        let found = self.state.endpoints.iter().find(|e| e.name == name);
        found.ok_or_else(|| RecordError::Unknown(name.to_owned()))
    }

    /// Remembers something else of an endpoint that is known.
    pub fn replace(&mut self, endpoint: &Endpoint) -> Result<(), RecordError> {
        self.change(|state| {
            let known = state.endpoints.iter_mut().find(|e| e.id == endpoint.id);
            if let Some(known) = known {
                known.clone_from(endpoint);
            }
        })
    }

    /// Forgets an endpoint, by name.
    pub fn remove(&mut self, name: &str) -> Result<Endpoint, RecordError> {
        let endpoint = self.find(name)?.clone();
        self.change(|state| state.endpoints.retain(|e| e.id != endpoint.id))?;
        Ok(endpoint)
    }

    /// Changes memory only after the file has it.
    fn change(&mut self, change: impl FnOnce(&mut State)) -> Result<(), RecordError> {
        let mut next = self.state.clone();
        change(&mut next);
        files::write_volatile_json(&self.path, &next)?;
        self.state = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::NamespaceName;

    fn endpoint(id: EndpointId, name: &str, address: &str) -> Endpoint {
        Endpoint {
            id,
            name: name.into(),
            netns: Some(NamespaceName::new(name).unwrap()),
            host: None,
            netns_inode: 1,
            labels: Default::default(),
            pod: None,
            addresses: vec![address.parse().unwrap()],
            interface: format!("hfe{id}"),
            ifindex: id,
            mac: [0; 6],
            host_mac: [0; 6],
            created: true,
        }
    }

    #[test]
    fn a_number_is_never_given_twice_not_even_after_a_removal_and_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = EndpointRecords::open(dir.path()).unwrap();
        let first = records.reserve("a", &[]).unwrap();
        records.insert(endpoint(first, "a", "10.0.0.1")).unwrap();
        records.remove("a").unwrap();
        let mut again = EndpointRecords::open(dir.path()).unwrap();
        assert_ne!(again.reserve("a", &[]).unwrap(), first);
    }

    #[test]
    fn an_address_in_use_is_refused_and_its_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = EndpointRecords::open(dir.path()).unwrap();
        records.insert(endpoint(1, "a", "10.0.0.1")).unwrap();
        let error = records
            .reserve("b", &["10.0.0.1".parse().unwrap()])
            .unwrap_err();
        assert!(error.to_string().contains("in use by endpoint a"));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoints.json");
        std::fs::write(&path, "{not json").unwrap();
        assert!(EndpointRecords::open(dir.path()).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{not json");
    }
}
