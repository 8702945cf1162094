//! From policies to what stands in the kernel's policy map: what is wanted, what is there, and the difference.
//!
//! Entries are made for each endpoint and each identity that it can meet, so that a packet costs one or two
//! lookups whatever the number of rules; a new identity costs only its own entries.

mod entries;
mod installed;
#[cfg(test)]
mod netpol;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use handfast_bpf::{IdentityNumber, PolicyValue};
use handfast_policies::{Closed, Entry, Matrix, PolicySet, Remote, Update, Workload};
use ipnet::IpNet;

use crate::config::DefaultAuthentication;
use crate::endpoint::{EndpointId, Exempt};

pub(super) use installed::{Change, Key};
use installed::{Installed, Scope};

/// Everything that decides the content of the policy map.
#[derive(Debug)]
pub(super) struct PolicyTable {
    matrix: Matrix<EndpointId, u32>,
    default: DefaultAuthentication,
    /// Endpoints without an identity yet.
    strangers: BTreeSet<EndpointId>,
    /// Ports that are open whatever policies say, for workloads of the node itself.
    exempt: BTreeMap<EndpointId, Vec<Exempt>>,
    cidrs: BTreeMap<IpNet, u32>,
    next_cidr: u32,
    installed: Installed,
    /// Endpoints that are closed, since their policies make more entries than one endpoint may have.
    overfull: BTreeSet<EndpointId>,
    newly_overfull: Vec<EndpointId>,
}

/// Entries of one endpoint in the map that all share.
const MAX_ENTRIES: usize = 16_384;

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
            exempt: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            next_cidr: IdentityNumber::FIRST_CIDR.0,
            installed: Installed::default(),
            overfull: BTreeSet::new(),
            newly_overfull: Vec::new(),
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

    /// How many entries stand in the map.
    pub(super) fn len(&self) -> usize {
        self.installed.len()
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
        self.installed.adopt(entries);
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
        self.installed.undo(change);
    }

    /// What would have to be removed for an endpoint to be closed whole.
    pub(super) fn close(&mut self, endpoint: EndpointId) -> Vec<Change> {
        self.installed
            .difference(BTreeMap::new(), &[Scope::Endpoint(endpoint)])
    }

    /// What is to be told of endpoints that were closed since this was asked last.
    pub(super) fn newly_overfull(&mut self) -> Vec<String> {
        let new = std::mem::take(&mut self.newly_overfull).into_iter();
        new.map(|endpoint| {
            let who = self.matrix.local(endpoint);
            let who = who.map_or_else(|| "?".to_owned(), |who| who.spiffe_id.to_string());
            format!(
                "nothing passes endpoint {endpoint} ({who}): policies make more than {MAX_ENTRIES} entries for it; \
                 write fewer ports, ranges or prefixes in the rules that select it"
            )
        })
        .collect()
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
        let mut new = Vec::new();
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
                new.push((number, Remote::Cidr(prefix)));
            }
        }
        updates.push(self.matrix.set_remotes(new));
        for endpoint in self.overfull.clone() {
            updates.push(self.matrix.whole(endpoint));
            scopes.push(Scope::Endpoint(endpoint));
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

    /// Ports of an endpoint that are to be open whatever policies say. To be told before the endpoint is.
    pub(super) fn set_exempt(&mut self, endpoint: EndpointId, exempt: Vec<Exempt>) {
        self.exempt.insert(endpoint, exempt);
    }

    /// An endpoint that went.
    pub(super) fn remove_endpoint(&mut self, endpoint: EndpointId) -> Vec<Change> {
        self.exempt.remove(&endpoint);
        self.strangers.remove(&endpoint);
        self.overfull.remove(&endpoint);
        self.matrix.remove_local(endpoint);
        self.close(endpoint)
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
            self.installed.iter().map(|(key, _)| key.endpoint).collect();
        let scopes = standing
            .into_iter()
            .map(|endpoint| Scope::Identity(endpoint, number));
        let scopes: Vec<Scope> = scopes.collect();
        self.installed.difference(BTreeMap::new(), &scopes)
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
        for scope in &scopes {
            if let Scope::Endpoint(endpoint) = scope {
                self.overfull.remove(endpoint);
            }
        }
        let mut wanted = BTreeMap::new();
        let mut world: HashMap<EndpointId, Vec<Entry>> = HashMap::new();
        for Update { closed, pairs } in updates {
            for (endpoint, closed) in closed {
                let any = IdentityNumber::ANY.0;
                scopes.push(Scope::Identity(endpoint, any));
                self.open(endpoint, any, closed, &mut wanted);
                self.keep_open(endpoint, any, &mut wanted);
            }
            for (endpoint, identity, entries) in pairs {
                scopes.push(Scope::Identity(endpoint, identity));
                if identity >= IdentityNumber::FIRST_CIDR.0 {
                    let world = world
                        .entry(endpoint)
                        .or_insert_with(|| self.matrix.entries(endpoint, &Remote::World));
                    // The gates ask what holds for the world where a prefix has nothing of its own.
                    if *world == entries {
                        continue;
                    }
                }
                let closed = self.matrix.closed(endpoint);
                self.open(endpoint, identity, closed, &mut wanted);
                self.remote_entries(endpoint, identity, entries, &mut wanted);
                // Last: nothing closes them.
                self.keep_open(endpoint, identity, &mut wanted);
            }
        }
        for endpoint in &self.strangers {
            for identity in [
                IdentityNumber::ANY,
                IdentityNumber::UNKNOWN,
                IdentityNumber::HOST,
                IdentityNumber::WORLD,
            ] {
                self.open(*endpoint, identity.0, Closed::default(), &mut wanted);
                self.keep_open(*endpoint, identity.0, &mut wanted);
            }
        }
        wanted.retain(|key, _| !self.overfull.contains(&key.endpoint));
        let mut changes = self.installed.difference(wanted, &scopes);
        for endpoint in self.installed.larger_than(MAX_ENTRIES) {
            changes.retain(|change| change.endpoint() != endpoint);
            changes.extend(self.close(endpoint));
            self.overfull.insert(endpoint);
            self.newly_overfull.push(endpoint);
        }
        changes
    }
}
