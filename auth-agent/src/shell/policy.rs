//! From policies to what stands in the kernel's policy map: what is wanted, what is there, and the difference.
//!
//! Entries are made for each endpoint and each identity that it can meet, so that a packet costs one or two
//! lookups whatever the number of rules; a new identity costs only its own entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use handfast_bpf::{Auth, Direction, IdentityNumber, PolicyKey, PolicyValue, Ports, Verdict};
use handfast_policies::{
    self as policies, Authentication, Closed, Encryption, Entry, Matrix, PolicySet, Remote, Update,
    Workload, ports_to_prefixes,
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

/// Entries that are looked at together: what stands there and is not wanted goes.
#[derive(Clone, Copy)]
enum Scope {
    /// All of an endpoint.
    Endpoint(EndpointId),
    /// Those of an endpoint about one identity.
    Identity(EndpointId, u32),
}

/// Everything that decides the content of the policy map.
#[derive(Debug)]
pub(super) struct PolicyTable {
    matrix: Matrix<EndpointId, u32>,
    default: DefaultAuthentication,
    /// Endpoints without an identity yet.
    strangers: BTreeSet<EndpointId>,
    cidrs: BTreeMap<IpNet, u32>,
    next_cidr: u32,
    installed: BTreeMap<Key, PolicyValue>,
}

impl PolicyTable {
    pub(super) fn new(default: DefaultAuthentication) -> Self {
        let mut matrix = Matrix::default();
        matrix.set_remote(IdentityNumber::HOST.0, Remote::Host);
        matrix.set_remote(IdentityNumber::WORLD.0, Remote::World);
        matrix.set_remote(IdentityNumber::UNKNOWN.0, Remote::Unknown);
        Self {
            matrix,
            default,
            strangers: BTreeSet::new(),
            cidrs: BTreeMap::new(),
            next_cidr: IdentityNumber::FIRST_CIDR.0,
            installed: BTreeMap::new(),
        }
    }

    /// The policies in force.
    pub(super) fn set(&self) -> &Arc<PolicySet> {
        self.matrix.set()
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
    ///
    /// Of the next version of the policies in force only what is different is computed and looked at.
    pub(super) fn replace_set(&mut self, set: Arc<PolicySet>) -> Vec<Change> {
        let wanted: BTreeSet<IpNet> = set.cidrs().into_iter().collect();
        let known: Vec<EndpointId> = self.endpoints().collect();
        let mut scopes = Vec::new();
        let gone: Vec<(IpNet, u32)> = self
            .cidrs()
            .filter(|(prefix, _)| !wanted.contains(prefix))
            .collect();
        for (prefix, number) in gone {
            self.cidrs.remove(&prefix);
            self.matrix.remove_remote(number);
            scopes.extend(
                known
                    .iter()
                    .map(|endpoint| Scope::Identity(*endpoint, number)),
            );
        }
        let mut updates = vec![self.matrix.replace(set)];
        for prefix in wanted {
            let number = match self.cidrs.get(&prefix) {
                Some(number) => *number,
                None => {
                    let number = self.next_cidr;
                    self.next_cidr = self.next_cidr.saturating_add(1);
                    self.cidrs.insert(prefix, number);
                    number
                }
            };
            // Those that an earlier run of the agent left are not in the matrix yet either.
            if self.matrix.remote(number).is_none() {
                updates.push(self.matrix.set_remote(number, Remote::Cidr(prefix)));
                scopes.extend(self.strangers.iter().map(|e| Scope::Identity(*e, number)));
            }
        }
        self.apply(updates, scopes)
    }

    /// What must change in the map for the endpoints that are known, computed from nothing.
    ///
    /// Entries of endpoints that are not known here yet are left alone: an earlier run's stay in force.
    pub(super) fn refresh(&mut self) -> Vec<Change> {
        let known: Vec<EndpointId> = self.endpoints().collect();
        let updates = known.iter().map(|endpoint| self.matrix.whole(*endpoint));
        let updates = updates.collect();
        self.apply(updates, known.into_iter().map(Scope::Endpoint).collect())
    }

    /// An endpoint that came, or whose identity or labels changed.
    pub(super) fn set_endpoint(
        &mut self,
        endpoint: EndpointId,
        workload: Option<Workload>,
    ) -> Vec<Change> {
        let update = match workload {
            Some(workload) => {
                self.strangers.remove(&endpoint);
                self.matrix.set_local(endpoint, workload)
            }
            None => {
                self.strangers.insert(endpoint);
                self.matrix.remove_local(endpoint);
                Update::default()
            }
        };
        self.apply(vec![update], vec![Scope::Endpoint(endpoint)])
    }

    /// An endpoint that went.
    pub(super) fn remove_endpoint(&mut self, endpoint: EndpointId) -> Vec<Change> {
        self.strangers.remove(&endpoint);
        self.matrix.remove_local(endpoint);
        self.difference(BTreeMap::new(), &[Scope::Endpoint(endpoint)])
    }

    /// An identity that this node has met.
    pub(super) fn set_identity(&mut self, number: u32, workload: Workload) -> Vec<Change> {
        let update = self.matrix.set_remote(number, Remote::Workload(workload));
        let strangers = self.strangers.iter();
        let scopes = strangers.map(|endpoint| Scope::Identity(*endpoint, number));
        let scopes = scopes.collect();
        self.apply(vec![update], scopes)
    }

    /// A number that stands for nobody any more.
    pub(super) fn remove_identity(&mut self, number: u32) -> Vec<Change> {
        self.matrix.remove_remote(number);
        let standing: BTreeSet<EndpointId> =
            self.installed.keys().map(|key| key.endpoint).collect();
        let scopes = standing
            .into_iter()
            .map(|endpoint| Scope::Identity(endpoint, number));
        let scopes: Vec<Scope> = scopes.collect();
        self.difference(BTreeMap::new(), &scopes)
    }

    /// The identity behind a number.
    pub(super) fn identity(&self, number: u32) -> Option<&Workload> {
        match self.matrix.remote(number) {
            Some(Remote::Workload(workload)) => Some(workload),
            _ => None,
        }
    }

    /// The identity of an endpoint.
    pub(super) fn workload(&self, endpoint: EndpointId) -> Option<&Workload> {
        self.matrix.local(endpoint)
    }

    /// Every endpoint that is known.
    fn endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.matrix.locals().chain(self.strangers.iter().copied())
    }

    /// What updates make of the map, beside what is looked at anyhow.
    fn apply(
        &mut self,
        updates: Vec<Update<EndpointId, u32>>,
        mut scopes: Vec<Scope>,
    ) -> Vec<Change> {
        let mut wanted = BTreeMap::new();
        for Update { closed, pairs } in updates {
            for (endpoint, closed) in closed {
                let any = IdentityNumber::ANY.0;
                scopes.push(Scope::Identity(endpoint, any));
                self.open(endpoint, any, closed, &mut wanted);
            }
            for (endpoint, identity, entries) in pairs {
                scopes.push(Scope::Identity(endpoint, identity));
                self.open(
                    endpoint,
                    identity,
                    self.matrix.closed(endpoint),
                    &mut wanted,
                );
                self.remote_entries(endpoint, identity, entries, &mut wanted);
            }
        }
        let outside = [
            IdentityNumber::ANY,
            IdentityNumber::HOST,
            IdentityNumber::WORLD,
        ];
        for endpoint in &self.strangers {
            let all = outside
                .iter()
                .map(|number| number.0)
                .chain(self.cidrs.values().copied());
            for identity in all {
                self.open(*endpoint, identity, Closed::default(), &mut wanted);
            }
        }
        self.difference(wanted, &scopes)
    }

    /// What is allowed where no policy closes a direction: everything, and between managed addresses as the default
    /// says. What lies outside the mesh has no identity and no tunnel: neither can be asked of it.
    fn open(
        &self,
        endpoint: EndpointId,
        identity: u32,
        closed: Closed,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        let (auth, encryption) = match IdentityNumber(identity) {
            IdentityNumber::ANY => (self.default_authentication(), true),
            IdentityNumber::HOST | IdentityNumber::WORLD => (Auth::Disabled, false),
            IdentityNumber(number) if number >= IdentityNumber::FIRST_CIDR.0 => {
                (Auth::Disabled, false)
            }
            _ => return,
        };
        for direction in [policies::Direction::Ingress, policies::Direction::Egress] {
            if closed.is(direction) {
                continue;
            }
            let packets = PolicyKey {
                direction: gate_direction(direction),
                identity: IdentityNumber(identity),
                ports: Ports::Any,
            };
            let value = PolicyValue {
                verdict: Verdict::Allow,
                auth,
                encryption,
                rule: 0,
            };
            wanted.insert(Key { endpoint, packets }, value);
        }
    }

    fn remote_entries(
        &self,
        endpoint: EndpointId,
        identity: u32,
        entries: Vec<Entry>,
        wanted: &mut BTreeMap<Key, PolicyValue>,
    ) {
        let remote = self.matrix.remote(identity);
        let outside = matches!(remote, Some(Remote::Host | Remote::World | Remote::Cidr(_)));
        for entry in entries {
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

    /// What must change among the keys in the scopes, and remembers it as done.
    fn difference(&mut self, wanted: BTreeMap<Key, PolicyValue>, scopes: &[Scope]) -> Vec<Change> {
        let mut gone: BTreeSet<Key> = BTreeSet::new();
        for scope in scopes {
            gone.extend(
                self.standing(*scope)
                    .filter(|key| !wanted.contains_key(key)),
            );
        }
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

    /// The keys that stand in a scope: they lie together, so that a change does not walk the whole map.
    fn standing(&self, scope: Scope) -> impl Iterator<Item = Key> + '_ {
        let (endpoint, identity) = match scope {
            Scope::Endpoint(endpoint) => (endpoint, None),
            Scope::Identity(endpoint, identity) => (endpoint, Some(IdentityNumber(identity))),
        };
        let first = move |direction| Key {
            endpoint,
            packets: PolicyKey {
                direction,
                identity: identity.unwrap_or(IdentityNumber(0)),
                ports: Ports::Any,
            },
        };
        [Direction::Ingress, Direction::Egress]
            .into_iter()
            .flat_map(move |direction| {
                let keys = self
                    .installed
                    .range(first(direction)..)
                    .map(|(key, _)| *key);
                keys.take_while(move |key| {
                    key.endpoint == endpoint
                        && key.packets.direction == direction
                        && identity.is_none_or(|identity| key.packets.identity == identity)
                })
            })
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
    fn a_version_that_is_looked_at_in_part_leaves_nothing_for_a_whole_look() {
        let source = |name: &str, text: &str| handfast_policies::Source {
            name: name.into(),
            text: text.into(),
        };
        let deny = "{apiVersion: handfast.io/v1alpha1, kind: HandfastPolicy, metadata: {name: deny}, spec: \
                    {endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingressDeny: [{toPorts: [{ports: \
                    [{port: 23}]}]}], egress: [{toCIDR: [192.0.2.0/24]}]}}";
        let versions = [
            vec![source("nginx", NGINX)],
            vec![source("nginx", NGINX), source("deny", deny)],
            vec![source("deny", deny)],
            vec![],
        ];
        let mut table = PolicyTable::new(DefaultAuthentication::Background);
        table.set_endpoint(1, Some(workload("web", "run=nginx")));
        table.set_endpoint(2, Some(workload("other", "run=other")));
        table.set_endpoint(3, None);
        table.set_identity(256, workload("good", "client=good"));
        for version in versions {
            let next = Arc::new(table.set().updated(version).unwrap());
            assert!(!table.replace_set(next).is_empty());
            assert_eq!(table.refresh(), vec![]);
        }
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
