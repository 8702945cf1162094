//! Workloads of the node itself: attached, found again, taken away.
//!
//! Their address comes first into the map of host endpoints, and last onto the machine: at no time may a socket use it
//! that is not the workload's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use handfast_bpf::find_cgroup;

use super::RunError;
use super::agent::Agent;
use super::endpoints::check_name;
use crate::endpoint::{self, Endpoint, EndpointRecords, Exempt, Group, Host, LOOPBACK, MAX_EXEMPT};

/// What is asked for.
pub(super) struct HostWanted {
    pub(super) group: Group,
    pub(super) exempt: Vec<Exempt>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Agent {
    /// Attaches a workload of the node itself; the same again finds its control group again. On an error nothing of it
    /// is left.
    pub(super) async fn add_host(
        &mut self,
        name: Option<String>,
        wanted: HostWanted,
    ) -> Result<Endpoint, RunError> {
        let name = name.unwrap_or_else(|| default_name(&wanted.group));
        check_name(&name)?;
        let root = endpoint::hierarchy()?;
        let found = wanted.group.find(&root)?;
        if let Some(known) = self.same_host(&name, &wanted) {
            self.find_host_again(known.clone(), &root).await?;
            return Ok(self.endpoints.find(&name)?.clone());
        }
        self.check_host_addresses(&wanted.addresses)?;
        self.check_group(&found.path)?;
        if wanted.exempt.len() > MAX_EXEMPT {
            return refused(format!("more than {MAX_EXEMPT} exempt ports"));
        }
        let cgroup = find_cgroup(&found.folder)?;
        let id = self.endpoints.reserve(&name, &wanted.addresses)?;
        let mut exempt = wanted.exempt;
        exempt.sort_unstable();
        exempt.dedup();
        let host = Host {
            group: wanted.group,
            folder: found.folder,
            path: found.path,
            cgroup: cgroup.id,
            exempt,
            placed: self.to_place(&wanted.addresses).await?,
        };
        let endpoint = Endpoint {
            id,
            name,
            netns: None,
            netns_inode: 0,
            host: Some(host.clone()),
            labels: wanted.labels,
            pod: None,
            addresses: wanted.addresses,
            interface: "lo".into(),
            ifindex: LOOPBACK,
            mac: [0; 6],
            host_mac: [0; 6],
            created: false,
        };
        match self.gate_host(&endpoint, &host, &root, cgroup).await {
            Ok(()) => Ok(endpoint),
            Err(error) => {
                let known = self.endpoints.all().iter().any(|known| known.id == id);
                match known {
                    true => self.forget_endpoint(&endpoint).await?,
                    false => self.ungate_host(&endpoint, &host).await,
                }
                Err(error)
            }
        }
    }

    async fn gate_host(
        &mut self,
        endpoint: &Endpoint,
        host: &Host,
        root: &Path,
        cgroup: handfast_bpf::CgroupId,
    ) -> Result<(), RunError> {
        self.gates.attach_host(endpoint, host, root, cgroup)?;
        self.endpoints.insert(endpoint.clone())?;
        self.policy.set_exempt(endpoint.id, host.exempt.clone());
        self.apply_endpoint(endpoint).await?;
        // Gates and policy stand: now the address may be used.
        for address in &host.placed {
            endpoint::place(&self.netlink, *address).await?;
        }
        self.renew()
    }

    /// The addresses go first: nothing uses them without gates.
    pub(super) async fn ungate_host(&mut self, endpoint: &Endpoint, host: &Host) {
        for address in &host.placed {
            if let Err(error) = endpoint::displace(&self.netlink, *address).await {
                tracing::warn!(%error, endpoint = endpoint.name, "an address was not taken away");
            }
        }
        if let Err(error) = self.gates.detach_host(endpoint.id) {
            tracing::warn!(%error, endpoint = endpoint.name, "gates were not taken away");
        }
    }

    /// Takes over a workload of the node itself from an earlier run.
    pub(super) async fn adopt_host(
        &mut self,
        mut endpoint: Endpoint,
        mut host: Host,
    ) -> Result<(), RunError> {
        // A unit that does not run has no group: until it does, nobody uses its addresses.
        let root = endpoint::hierarchy().unwrap_or_default();
        if let Ok((folder, path, cgroup)) = look_up(&host.group, &root) {
            host.folder = folder;
            host.path = path;
            host.cgroup = cgroup.id;
            endpoint.host = Some(host.clone());
            self.endpoints.replace(&endpoint)?;
            self.gates.attach_host(&endpoint, &host, &root, cgroup)?;
        }
        self.policy.set_exempt(endpoint.id, host.exempt.clone());
        self.apply_endpoint(&endpoint).await?;
        for address in &host.placed {
            endpoint::place(&self.netlink, *address).await?;
        }
        Ok(())
    }

    /// Finds again the groups of workloads that were started anew.
    pub(super) async fn keep_hosts(&mut self) {
        let hosts = self.endpoints.all().iter().filter(|e| e.host.is_some());
        let hosts: Vec<Endpoint> = hosts.cloned().collect();
        if hosts.is_empty() {
            return;
        }
        let root = match endpoint::hierarchy() {
            Ok(root) => root,
            Err(error) => return self.alarm(format!("host endpoints: {error}")),
        };
        for known in hosts {
            let name = known.name.clone();
            // One whose group is gone is not running.
            let there = known
                .host
                .as_ref()
                .is_some_and(|host| host.group.find(&root).is_ok());
            if there && let Err(error) = self.find_host_again(known, &root).await {
                self.alarm(format!("host endpoint {name}: {error}"));
            }
        }
    }

    async fn find_host_again(
        &mut self,
        mut endpoint: Endpoint,
        root: &Path,
    ) -> Result<(), RunError> {
        let Some(mut host) = endpoint.host.clone() else {
            return Ok(());
        };
        let (folder, path, cgroup) = look_up(&host.group, root)?;
        if (cgroup.id, &folder) == (host.cgroup, &host.folder) {
            return Ok(());
        }
        (host.folder, host.path, host.cgroup) = (folder, path, cgroup.id);
        endpoint.host = Some(host.clone());
        self.gates.attach_host(&endpoint, &host, root, cgroup)?;
        self.endpoints.replace(&endpoint)?;
        tracing::info!(
            endpoint = endpoint.name,
            "its control group is another one now"
        );
        Ok(())
    }

    /// The endpoint that has just this name, group and addresses.
    fn same_host(&self, name: &str, wanted: &HostWanted) -> Option<&Endpoint> {
        let known = self.endpoints.find(name).ok()?;
        let host = known.host.as_ref()?;
        let same = host.group == wanted.group && known.addresses == wanted.addresses;
        same.then_some(known)
    }

    fn check_host_addresses(&self, addresses: &[IpAddr]) -> Result<(), RunError> {
        let families = |v4: bool| addresses.iter().filter(|a| a.is_ipv4() == v4).count();
        if addresses.is_empty() {
            return refused(
                "a workload of the node itself needs an address of its own, within the node's prefixes: \
                 give it with --address"
                    .into(),
            );
        }
        if families(true) > 1 || families(false) > 1 {
            return refused("one IPv4 and one IPv6 address are the most that it can have".into());
        }
        let underlay = &self.own_underlay();
        if let Some(address) = addresses.iter().find(|a| underlay.contains(a)) {
            return refused(format!(
                "{address} is this machine's underlay address: sessions, the CA, SSH and the tunnel's own packets go on in clear \
                 by it, which nothing between managed addresses does, so the CA signs no prefix that contains it. Give an \
                 address of the node's own prefixes, which the machine then has beside it"
            ));
        }
        self.check_addresses(addresses)
    }

    fn own_underlay(&self) -> Vec<IpAddr> {
        let own = self.node.spiffe_id.to_string();
        let nodes = self.knowledge.nodes.iter().filter(|n| n.spiffe_id == own);
        let addresses = nodes.flat_map(|node| node.underlay.iter().map(|a| a.ip()));
        addresses.map(|address| address.to_canonical()).collect()
    }

    /// A socket in two workloads' groups would be both.
    fn check_group(&self, path: &str) -> Result<(), RunError> {
        let within = |inner: &str, outer: &str| Path::new(inner).starts_with(outer);
        for known in self.endpoints.all() {
            let Some(host) = &known.host else { continue };
            if within(path, &host.path) || within(&host.path, path) {
                return refused(format!(
                    "control group {path} overlaps with {} of endpoint {}: a socket would be both. Remove that one first, or \
                     choose groups beside each other",
                    host.path, known.name
                ));
            }
        }
        Ok(())
    }

    /// Those of the addresses that no interface has yet.
    async fn to_place(&self, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, RunError> {
        let mut placed = Vec::new();
        for address in addresses {
            if endpoint::holder(&self.netlink, *address).await?.is_none() {
                placed.push(*address);
            }
        }
        Ok(placed)
    }
}

/// Takes the addresses away that were put on this machine for workloads; says which.
pub(super) async fn take_addresses_away(
    netlink: &rtnetlink::Handle,
    endpoints: &EndpointRecords,
) -> Result<Vec<String>, RunError> {
    let mut removed = Vec::new();
    for endpoint in endpoints.all() {
        for address in endpoint.host.iter().flat_map(|host| &host.placed) {
            endpoint::displace(netlink, *address).await?;
            removed.push(format!(
                "address {address} of host endpoint {}",
                endpoint.name
            ));
        }
    }
    Ok(removed)
}

fn look_up(
    group: &Group,
    root: &Path,
) -> Result<(PathBuf, String, handfast_bpf::CgroupId), RunError> {
    let found = group.find(root)?;
    let cgroup = find_cgroup(&found.folder)?;
    Ok((found.folder, found.path, cgroup))
}

fn default_name(group: &Group) -> String {
    match group {
        Group::Machine => "host".into(),
        Group::Unit(unit) => unit.clone(),
        Group::Path(path) => path
            .file_name()
            .map_or_else(|| "host".into(), |name| name.to_string_lossy().into_owned()),
    }
}

fn refused<T>(why: String) -> Result<T, RunError> {
    Err(RunError::Refused(format!("{why}. Nothing was changed")))
}
