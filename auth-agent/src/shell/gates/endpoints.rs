//! Gates of workloads: on their links, or for those of the node itself on their control groups.

use std::collections::BTreeSet;
use std::path::Path;

use handfast_bpf as bpf;

use super::super::RunError;
use super::Gates;
use crate::endpoint::{Endpoint, EndpointId, Host};

impl Gates {
    /// Gates on a workload's link. Again for the same endpoint changes nothing.
    pub(in crate::shell) fn attach_endpoint(&self, endpoint: &Endpoint) -> Result<(), RunError> {
        let id = bpf::EndpointId(endpoint.id);
        let value = bpf::Endpoint {
            ifindex: endpoint.ifindex,
            identity: bpf::IdentityNumber::UNKNOWN,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
        };
        self.tables().set_endpoint(id, &value)?;
        Ok(self.kernel.attach_endpoint(id, endpoint.ifindex)?)
    }

    /// Takes a workload's gates and flows away. Its interface may be gone already.
    pub(in crate::shell) fn detach_endpoint(&self, endpoint: EndpointId) -> Result<(), RunError> {
        let id = bpf::EndpointId(endpoint);
        self.kernel.detach_endpoint(id)?;
        self.tables().remove_connections(id)?;
        Ok(self.tables().remove_endpoint(id)?)
    }

    /// Gates for a workload of the node itself. Again for the same endpoint changes nothing, or its control group.
    pub(in crate::shell) fn attach_host(
        &self,
        endpoint: &Endpoint,
        host: &Host,
        root: &Path,
        cgroup: bpf::CgroupId,
    ) -> Result<(), RunError> {
        let id = bpf::EndpointId(endpoint.id);
        // First: from then on nobody else uses the addresses.
        for address in &endpoint.addresses {
            let entry = bpf::Host {
                cgroup,
                endpoint: id,
            };
            self.tables().set_host(*address, entry)?;
        }
        let addresses = &endpoint.addresses;
        Ok(self.kernel.attach_host(id, root, &host.folder, addresses)?)
    }

    /// Takes away the gates and flows of a workload of the node itself.
    pub(in crate::shell) fn detach_host(&self, endpoint: EndpointId) -> Result<(), RunError> {
        let id = bpf::EndpointId(endpoint);
        self.tables().remove_connections(id)?;
        self.tables().remove_endpoint(id)?;
        Ok(self.kernel.detach_host(id)?)
    }

    /// Takes away what an agent that died in between has left of endpoints that nobody knows.
    pub(in crate::shell) fn forget_unknown(&self, known: &[Endpoint]) -> Result<(), RunError> {
        let unknown = |id: u32| id != 0 && !known.iter().any(|endpoint| endpoint.id == id);
        for (address, local) in self.tables().locals()? {
            if unknown(local.endpoint.0) {
                self.tables().remove_local(address)?;
            }
        }
        let hosts = self.tables().hosts()?;
        let gone: BTreeSet<u32> = hosts.iter().map(|(_, host)| host.endpoint.0).collect();
        for endpoint in gone.into_iter().filter(|id| unknown(*id)) {
            self.detach_host(endpoint)?;
        }
        let mut standing = BTreeSet::new();
        for attachment in self.kernel.attached()? {
            if unknown(attachment.key) {
                self.detach_endpoint(attachment.key)?;
            } else {
                standing.insert(attachment.ifindex);
            }
        }
        Ok(self.tables().keep_interfaces(&standing)?)
    }
}
