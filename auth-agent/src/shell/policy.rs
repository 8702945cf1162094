//! From policies to what stands in the kernel's policy map: what is wanted, what is there, and the difference.
//!
//! Entries are made for each endpoint and each identity that it can meet, so that a packet costs one or two
//! lookups whatever the number of rules; a new identity costs only its own entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use handfast_bpf::{Auth, Direction, IdentityNumber, PolicyKey, PolicyValue, Ports, Verdict};
use handfast_policies::{
    self as policies, Authentication, Encryption, Entry, PolicySet, Remote, Workload,
    ports_to_prefixes,
};
use ipnet::IpNet;

use crate::config::DefaultAuthentication;
use crate::endpoint::EndpointId;

/// Where an entry stands in the map: whose policy, and which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) endpoint: EndpointId,
    pub(super) packets: PolicyKey,
}

/// One change of the kernel's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Set(Key, PolicyValue),
    Remove(Key),
}

/// An entry of which only that it stands is known; none that is ever wanted is like it.
const STANDING: PolicyValue = PolicyValue {
    verdict: Verdict::Deny,
    auth: Auth::TestAlwaysFail,
    encryption: true,
    rule: u32::MAX,
};

/// Everything that decides the content of the policy map.
#[derive(Debug)]
pub(super) struct PolicyTable {
    set: Arc<PolicySet>,
    default: DefaultAuthentication,
    endpoints: BTreeMap<EndpointId, Option<Workload>>,
    identities: BTreeMap<u32, Workload>,
    cidrs: BTreeMap<IpNet, u32>,
    next_cidr: u32,
    installed: BTreeMap<Key, PolicyValue>,
}

impl PolicyTable {
    pub(super) fn new(default: DefaultAuthentication) -> Self {
        Self {
            set: Arc::default(),
            default,
            endpoints: BTreeMap::new(),
            identities: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            next_cidr: IdentityNumber::FIRST_CIDR.0,
            installed: BTreeMap::new(),
        }
    }

    /// The policies in force.
    pub(super) fn set(&self) -> &Arc<PolicySet> {
        &self.set
    }

    /// What stands in the map as far as this agent has written it.
    #[cfg(test)]
    fn installed(&self) -> impl Iterator<Item = (&Key, &PolicyValue)> {
        self.installed.iter()
    }

    /// The numbers of the prefixes that rules name.
    pub(super) fn cidrs(&self) -> impl Iterator<Item = (IpNet, u32)> {
        self.cidrs.iter().map(|(prefix, number)| (*prefix, *number))
    }

    /// Takes over what an earlier run of the agent left in the maps, so that only differences are written. To be
    /// done before anything else: what is not wanted any more is then seen and removed.
    pub(super) fn adopt(
        &mut self,
        entries: impl IntoIterator<Item = (Key, PolicyValue)>,
        cidrs: impl IntoIterator<Item = (IpNet, u32)>,
    ) {
        self.installed.extend(entries);
        for (prefix, number) in cidrs {
            self.cidrs.insert(prefix, number);
            self.next_cidr = self.next_cidr.max(number.saturating_add(1));
        }
    }

    /// The map is empty.
    pub(super) fn forget_installed(&mut self) {
        self.installed.clear();
    }

    /// A change that the kernel has refused: it counts as not done, so that the next difference has it again.
    pub(super) fn undo(&mut self, change: &Change) {
        match change {
            Change::Set(key, _) => {
                self.installed.remove(key);
            }
            Change::Remove(key) => {
                // What stands there is no longer known; any value differs from the one that will be wanted, or
                // goes when none is.
                self.installed.insert(*key, STANDING);
            }
        }
    }

    /// New policies. Prefix numbers are never given twice, since connections may remember them.
    pub(super) fn replace_set(&mut self, set: Arc<PolicySet>) -> Vec<Change> {
        let wanted = set.cidrs();
        self.cidrs.retain(|prefix, _| wanted.contains(prefix));
        for prefix in wanted {
            if !self.cidrs.contains_key(&prefix) {
                self.cidrs.insert(prefix, self.next_cidr);
                self.next_cidr = self.next_cidr.saturating_add(1);
            }
        }
        self.set = set;
        self.refresh()
    }

    /// What must change in the map for the endpoints that are known.
    pub(super) fn refresh(&mut self) -> Vec<Change> {
        let mut wanted = BTreeMap::new();
        for (endpoint, workload) in &self.endpoints {
            self.endpoint_entries(*endpoint, workload.as_ref(), &mut wanted);
        }
        // Entries of endpoints that are not known here yet are left alone: an earlier run's stay in force.
        let known: BTreeSet<EndpointId> = self.endpoints.keys().copied().collect();
        self.difference(wanted, |key| known.contains(&key.endpoint))
    }

    /// An endpoint that came, or whose identity or labels changed.
    pub(super) fn set_endpoint(
        &mut self,
        endpoint: EndpointId,
        workload: Option<Workload>,
    ) -> Vec<Change> {
        let mut wanted = BTreeMap::new();
        self.endpoint_entries(endpoint, workload.as_ref(), &mut wanted);
        self.endpoints.insert(endpoint, workload);
        self.difference(wanted, |key| key.endpoint == endpoint)
    }

    /// An endpoint that went.
    pub(super) fn remove_endpoint(&mut self, endpoint: EndpointId) -> Vec<Change> {
        self.endpoints.remove(&endpoint);
        self.difference(BTreeMap::new(), |key| key.endpoint == endpoint)
    }

    /// An identity that this node has met.
    pub(super) fn set_identity(&mut self, number: u32, workload: Workload) -> Vec<Change> {
        let remote = Remote::Workload(workload.clone());
        let mut wanted = BTreeMap::new();
        for (endpoint, local) in &self.endpoints {
            if let Some(local) = local {
                self.remote_entries(*endpoint, local, number, &remote, &mut wanted);
            }
        }
        self.identities.insert(number, workload);
        let known: BTreeSet<EndpointId> = self.endpoints.keys().copied().collect();
        self.difference(wanted, |key| {
            key.packets.identity.0 == number && known.contains(&key.endpoint)
        })
    }

    /// A number that stands for nobody any more.
    pub(super) fn remove_identity(&mut self, number: u32) -> Vec<Change> {
        self.identities.remove(&number);
        self.difference(BTreeMap::new(), |key| key.packets.identity.0 == number)
    }

    /// The identity behind a number.
    pub(super) fn identity(&self, number: u32) -> Option<&Workload> {
        self.identities.get(&number)
    }

    /// The identity of an endpoint.
    pub(super) fn workload(&self, endpoint: EndpointId) -> Option<&Workload> {
        self.endpoints.get(&endpoint)?.as_ref()
    }

    fn endpoint_entries(
        &self,
        endpoint: EndpointId,
        local: Option<&Workload>,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        for direction in [policies::Direction::Ingress, policies::Direction::Egress] {
            if !local.is_some_and(|local| self.set.selected(local, direction)) {
                self.unselected_entries(endpoint, gate_direction(direction), wanted);
            }
        }
        let Some(local) = local else { return };
        let fixed = [
            (IdentityNumber::HOST.0, Remote::Host),
            (IdentityNumber::WORLD.0, Remote::World),
            (IdentityNumber::UNKNOWN.0, Remote::Unknown),
        ];
        for (number, remote) in &fixed {
            self.remote_entries(endpoint, local, *number, remote, wanted);
        }
        for (prefix, number) in &self.cidrs {
            self.remote_entries(endpoint, local, *number, &Remote::Cidr(*prefix), wanted);
        }
        for (number, workload) in &self.identities {
            let remote = Remote::Workload(workload.clone());
            self.remote_entries(endpoint, local, *number, &remote, wanted);
        }
    }

    /// What is allowed where no policy selects: everything, and between managed addresses as the default says.
    fn unselected_entries(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        // What is outside the mesh has no identity and no tunnel: neither can be asked of it.
        let mut allow = |identity: u32, auth: Auth, encryption: bool| {
            let packets = PolicyKey {
                direction,
                identity: IdentityNumber(identity),
                ports: Ports::Any,
            };
            wanted.insert(
                Key { endpoint, packets },
                PolicyValue {
                    verdict: Verdict::Allow,
                    auth,
                    encryption,
                    rule: 0,
                },
            );
        };
        allow(IdentityNumber::ANY.0, self.default_authentication(), true);
        allow(IdentityNumber::HOST.0, Auth::Disabled, false);
        allow(IdentityNumber::WORLD.0, Auth::Disabled, false);
        for number in self.cidrs.values() {
            allow(*number, Auth::Disabled, false);
        }
    }

    fn remote_entries(
        &self,
        endpoint: EndpointId,
        local: &Workload,
        identity: u32,
        remote: &Remote,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        let outside = matches!(remote, Remote::Host | Remote::World | Remote::Cidr(_));
        for entry in self.set.entries(local, remote) {
            let value = PolicyValue {
                verdict: match entry.verdict {
                    policies::Verdict::Allow => Verdict::Allow,
                    policies::Verdict::Deny => Verdict::Deny,
                },
                auth: match entry.auth {
                    Some(Authentication::Disabled) => Auth::Disabled,
                    Some(Authentication::Audit) => Auth::Audit,
                    Some(Authentication::Required) => Auth::Required,
                    Some(Authentication::TestAlwaysFail) => Auth::TestAlwaysFail,
                    None if outside => Auth::Disabled,
                    None => self.default_authentication(),
                },
                encryption: match entry.encryption {
                    Some(encryption) => encryption == Encryption::Required,
                    None => !outside,
                },
                rule: entry.rule.0,
            };
            for ports in gate_ports(&entry) {
                let packets = PolicyKey {
                    direction: gate_direction(entry.direction),
                    identity: IdentityNumber(identity),
                    ports,
                };
                wanted.insert(Key { endpoint, packets }, value);
            }
        }
    }

    fn default_authentication(&self) -> Auth {
        match self.default {
            DefaultAuthentication::Background => Auth::Disabled,
            DefaultAuthentication::Required => Auth::Required,
        }
    }

    /// What must change among the keys in `scope`, and remembers it as done.
    fn difference(
        &mut self,
        wanted: BTreeMap<Key, PolicyValue>,
        scope: impl Fn(&Key) -> bool,
    ) -> Vec<Change> {
        let gone: Vec<Key> = self
            .installed
            .keys()
            .filter(|key| scope(key) && !wanted.contains_key(key))
            .copied()
            .collect();
        let mut changes = Vec::new();
        for (key, value) in wanted {
            if self.installed.get(&key) != Some(&value) {
                self.installed.insert(key, value);
                changes.push(Change::Set(key, value));
            }
        }
        for key in gone {
            self.installed.remove(&key);
            changes.push(Change::Remove(key));
        }
        // Denials first; removals last, so that a flow that both the old and the new policies allow never falls
        // between two writes.
        changes.sort_by_key(|change| match change {
            Change::Set(_, value) if value.verdict == Verdict::Deny => 0,
            Change::Set(..) => 1,
            Change::Remove(_) => 2,
        });
        changes
    }
}

fn gate_direction(direction: policies::Direction) -> Direction {
    match direction {
        policies::Direction::Ingress => Direction::Ingress,
        policies::Direction::Egress => Direction::Egress,
    }
}

/// The map keys for an entry's protocol and ports: the fewest prefixes that cover a range.
fn gate_ports(entry: &Entry) -> Vec<Ports> {
    let Some(protocol) = entry.protocol.number() else {
        return vec![Ports::Any];
    };
    ports_to_prefixes(entry.ports)
        .into_iter()
        .map(|prefix| match prefix.length {
            0 => Ports::Protocol(protocol),
            bits => Ports::Prefix {
                protocol,
                port: prefix.port,
                bits,
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(path: &str, label: &str) -> Workload {
        Workload {
            spiffe_id: format!("spiffe://example.org/{path}").parse().unwrap(),
            labels: label
                .split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter()
                .collect(),
        }
    }

    const NGINX: &str = r"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nginx}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      toPorts: [{ports: [{port: '80', protocol: TCP}]}]
      authentication: {mode: required}
";

    fn nginx() -> Arc<PolicySet> {
        let source = handfast_policies::Source {
            name: "nginx".into(),
            text: NGINX.into(),
        };
        Arc::new(PolicySet::read(vec![source]).unwrap())
    }

    #[test]
    fn without_a_policy_an_endpoint_allows_everybody_both_ways() {
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        let changes = table.set_endpoint(1, Some(workload("web", "run=nginx")));
        let inside = |change: &&Change| matches!(change, Change::Set(_, value) if value.encryption);
        assert_eq!(changes.iter().filter(inside).count(), 2);
        assert!(changes.iter().filter(inside).all(|change| matches!(
            change,
            Change::Set(key, value)
                if key.packets.identity == IdentityNumber::ANY && value.auth == Auth::Disabled
        )));
    }

    #[test]
    fn what_lies_outside_the_mesh_is_asked_for_no_tunnel() {
        let mut table = PolicyTable::new(DefaultAuthentication::Required);
        table.set_endpoint(1, Some(workload("web", "run=nginx")));
        for number in [IdentityNumber::HOST, IdentityNumber::WORLD] {
            let entries: Vec<_> = table
                .installed()
                .filter(|(key, _)| key.packets.identity == number)
                .collect();
            assert_eq!(entries.len(), 2, "both directions");
            assert!(
                entries
                    .iter()
                    .all(|(_, value)| !value.encryption && value.auth == Auth::Disabled)
            );
        }
    }

    #[test]
    fn what_the_kernel_refused_is_wanted_again() {
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        let changes = table.set_endpoint(1, Some(workload("web", "run=nginx")));
        assert!(table.refresh().is_empty());
        table.undo(&changes[0]);
        assert_eq!(table.refresh(), vec![changes[0]]);
        let gone = table.replace_set(nginx());
        let removal = gone
            .iter()
            .find(|change| matches!(change, Change::Remove(_)))
            .unwrap();
        table.undo(removal);
        assert_eq!(table.refresh(), vec![*removal]);
    }

    #[test]
    fn a_policy_closes_the_selected_direction_and_opens_it_for_the_named_identity_only() {
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        table.set_endpoint(1, Some(workload("web", "run=nginx")));
        table.set_identity(256, workload("good", "client=good"));
        table.set_identity(257, workload("bad", "client=bad"));
        table.replace_set(nginx());
        let ingress: Vec<_> = table
            .installed()
            .filter(|(key, _)| key.packets.direction == Direction::Ingress)
            .collect();
        assert_eq!(ingress.len(), 1, "{ingress:?}");
        let (key, value) = ingress[0];
        assert_eq!(key.packets.identity, IdentityNumber(256));
        let http = Ports::Prefix {
            protocol: 6,
            port: 80,
            bits: 16,
        };
        assert_eq!(key.packets.ports, http);
        assert_eq!(value.auth, Auth::Required);
    }

    #[test]
    fn an_identity_met_later_gets_its_entries_alone() {
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        table.replace_set(nginx());
        table.set_endpoint(1, Some(workload("web", "run=nginx")));
        let changes = table.set_identity(300, workload("good", "client=good"));
        assert_eq!(changes.len(), 1);
        assert!(
            table
                .set_identity(300, workload("good", "client=good"))
                .is_empty()
        );
    }

    #[test]
    fn the_same_policies_again_change_nothing() {
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        table.set_endpoint(1, Some(workload("web", "run=nginx")));
        table.set_identity(300, workload("good", "client=good"));
        assert!(!table.replace_set(nginx()).is_empty());
        assert!(table.replace_set(nginx()).is_empty());
    }

    #[test]
    fn a_restarted_agent_that_knows_what_the_old_one_knew_changes_nothing() {
        let mut old = PolicyTable::new(DefaultAuthentication::Background);
        old.replace_set(nginx());
        old.set_endpoint(1, Some(workload("web", "run=nginx")));
        old.set_identity(300, workload("good", "client=good"));

        let mut new = PolicyTable::new(DefaultAuthentication::Background);
        new.adopt(
            old.installed().map(|(key, value)| (*key, *value)),
            old.cidrs(),
        );
        assert!(
            new.set_identity(300, workload("good", "client=good"))
                .is_empty()
        );
        assert!(new.replace_set(nginx()).is_empty());
        assert!(
            new.set_endpoint(1, Some(workload("web", "run=nginx")))
                .is_empty()
        );
    }

    #[test]
    fn removals_come_last_so_that_no_allowed_flow_falls_between_two_writes() {
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        table.set_endpoint(1, Some(workload("web", "run=nginx")));
        table.set_identity(300, workload("good", "client=good"));
        let changes = table.replace_set(nginx());
        assert!(matches!(changes.first(), Some(Change::Set(..))));
        assert!(matches!(changes.last(), Some(Change::Remove(_))));
    }
}
