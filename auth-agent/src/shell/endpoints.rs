//! Workloads that come and go: link, gates, policy, then the core; and the other way round when they go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::RunError;
use super::agent::Agent;
use crate::cni::Pod;
use crate::core::{self, Event};
use crate::endpoint::{self, Endpoint, LinkRequest, NamespaceName};

/// The longest name of an endpoint.
const MAX_NAME: usize = 63;

impl Agent {
    /// Attaches a namespace. On an error nothing of it is left.
    pub(super) async fn add_endpoint(
        &mut self,
        name: Option<String>,
        netns: NamespaceName,
        labels: BTreeMap<String, String>,
        addresses: Vec<IpAddr>,
    ) -> Result<Endpoint, RunError> {
        let name = name.unwrap_or_else(|| netns.to_string());
        self.attach(name, netns, labels, None, addresses).await
    }

    /// Attaches a pod by the link that a CNI made; its addresses are those that the link has.
    pub(super) async fn add_pod(
        &mut self,
        name: String,
        netns: NamespaceName,
        pod: Pod,
    ) -> Result<Endpoint, RunError> {
        self.attach(name, netns, BTreeMap::new(), Some(pod), Vec::new())
            .await
    }

    async fn attach(
        &mut self,
        name: String,
        netns: NamespaceName,
        labels: BTreeMap<String, String>,
        pod: Option<Pod>,
        addresses: Vec<IpAddr>,
    ) -> Result<Endpoint, RunError> {
        check_name(&name)?;
        self.check_addresses(&addresses)?;
        let id = self.endpoints.reserve(&name, &addresses)?;
        let request = LinkRequest {
            netns: netns.clone(),
            id,
            addresses,
            mtu: self.tunnels.current().device().mtu,
        };
        let link = endpoint::attach(&self.netlink, &request).await?;
        // Before anything can fail that would take the link away: it is another's.
        let mut others = self.endpoints.all().iter();
        if let Some(other) = others.find(|other| other.ifindex == link.ifindex) {
            return Err(RunError::Refused(format!(
                "network namespace {netns} is endpoint {} already; nothing was changed",
                other.name
            )));
        }
        let endpoint = Endpoint {
            id,
            name,
            netns: Some(netns),
            netns_inode: link.netns_inode,
            host: None,
            labels,
            pod,
            addresses: link.addresses,
            interface: link.interface,
            ifindex: link.ifindex,
            mac: link.mac,
            host_mac: link.host_mac,
            created: link.created,
        };
        match self.gate_endpoint(&endpoint).await {
            Ok(()) => Ok(endpoint),
            Err(error) => {
                let known = self.endpoints.all().iter().any(|known| known.id == id);
                match known {
                    true => self.forget_endpoint(&endpoint).await?,
                    false => self.ungate_endpoint(&endpoint).await,
                }
                Err(error)
            }
        }
    }

    async fn gate_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), RunError> {
        // A link that was there already may have brought addresses that nobody named before.
        self.check_addresses(&endpoint.addresses)?;
        self.endpoints.free(&endpoint.addresses)?;
        self.gates.attach_endpoint(endpoint)?;
        self.gates.unwatch(endpoint.ifindex)?;
        self.endpoints.insert(endpoint.clone())?;
        self.apply_endpoint(endpoint).await?;
        // Gates and policy stand: now the workload may be reached.
        if endpoint.created {
            endpoint::open(&self.netlink, endpoint).await?;
        }
        self.renew()
    }

    /// The link goes first: its workload never talks without gates.
    async fn ungate_endpoint(&mut self, endpoint: &Endpoint) {
        if let Some(host) = &endpoint.host {
            return self.ungate_host(endpoint, host).await;
        }
        if endpoint.created
            && let Err(error) = endpoint::remove(&self.netlink, &endpoint.interface).await
        {
            tracing::warn!(%error, endpoint = endpoint.name, "the link was not taken away");
        }
        if let Err(error) = self.gates.detach_endpoint(endpoint.id) {
            tracing::warn!(%error, endpoint = endpoint.name, "gates were not taken away");
        }
    }

    /// Detaches a workload. The core withdraws its addresses first; until a peer has confirmed that, the kernel
    /// lets nobody else use them toward it.
    pub(super) async fn remove_endpoint(&mut self, name: &str) -> Result<Endpoint, RunError> {
        let endpoint = self.endpoints.find(name)?.clone();
        self.forget_endpoint(&endpoint).await?;
        Ok(endpoint)
    }

    pub(super) async fn forget_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), RunError> {
        self.feed(Event::EndpointRemoved {
            endpoint: core::EndpointId(endpoint.id),
        })
        .await;
        self.ungate_endpoint(endpoint).await;
        let changes = self.policy.remove_endpoint(endpoint.id);
        self.write_policy(&changes)?;
        // Forgotten last: an agent that dies before this does it again.
        self.endpoints.remove(&endpoint.name)?;
        self.forget_identity(endpoint.id).await
    }

    /// Takes over the endpoints of an earlier run; those whose workload is gone meanwhile are withdrawn.
    pub(super) async fn adopt_endpoints(&mut self) -> Result<(), RunError> {
        let mut gone = Vec::new();
        let interfaces = endpoint::interfaces(&self.netlink).await?;
        for endpoint in self.endpoints.all().to_vec() {
            if let Some(host) = endpoint.host.clone() {
                self.adopt_host(endpoint, host).await?;
            } else if is_there(&endpoint, &interfaces) {
                self.gates.attach_endpoint(&endpoint)?;
                self.gates.unwatch(endpoint.ifindex)?;
                self.apply_endpoint(&endpoint).await?;
                if endpoint.created {
                    endpoint::open(&self.netlink, &endpoint).await?;
                }
            } else {
                gone.push(endpoint);
            }
        }
        self.feed(Event::Settled).await;
        for endpoint in gone {
            tracing::info!(endpoint = endpoint.name, "its workload is gone");
            self.forget_endpoint(&endpoint).await?;
        }
        self.renew()
    }

    /// Notices workloads that went without a word: a namespace that was deleted took its link along.
    pub(super) async fn sweep_endpoints(&mut self) -> Result<(), RunError> {
        let interfaces = endpoint::interfaces(&self.netlink).await?;
        for endpoint in self.endpoints.all().to_vec() {
            if !is_there(&endpoint, &interfaces) {
                tracing::info!(endpoint = endpoint.name, "its workload is gone");
                self.remove_endpoint(&endpoint.name).await?;
            }
        }
        Ok(())
    }

    pub(super) fn check_addresses(&self, addresses: &[IpAddr]) -> Result<(), RunError> {
        for address in addresses {
            let within = self
                .node
                .prefixes
                .iter()
                .any(|prefix| prefix.contains(address));
            if !within {
                let prefixes: Vec<String> =
                    self.node.prefixes.iter().map(ToString::to_string).collect();
                return Err(RunError::Refused(format!(
                    "address {address} is not within this node's prefixes ({}), which the CA signed; \
                     peers would refuse it. Nothing was changed",
                    prefixes.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// True while an endpoint's link and namespace are those that it was attached with.
fn is_there(endpoint: &Endpoint, interfaces: &BTreeSet<(u32, [u8; 6])>) -> bool {
    let Some(netns) = &endpoint.netns else {
        // A workload of the node itself is there as long as the node: its control group comes and goes.
        return true;
    };
    interfaces.contains(&(endpoint.ifindex, endpoint.host_mac))
        && endpoint::namespace_exists(netns, endpoint.netns_inode)
}

pub(super) fn check_name(name: &str) -> Result<(), RunError> {
    let plain = !name.is_empty()
        && name.len() <= MAX_NAME
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if plain {
        return Ok(());
    }
    Err(RunError::Refused(format!(
        "{:?} cannot be an endpoint's name: 1 to {MAX_NAME} letters, digits, '-', '_' and '.'; give one with --name",
        name.chars().take(80).collect::<String>()
    )))
}
