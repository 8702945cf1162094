//! The core's writes in the kernel's maps, and what of them is read back for people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use handfast_bpf as bpf;
use handfast_bpf::{Events, Kernel, PolicyValue, Reason, Tables};
use ipnet::IpNet;

use super::RunError;
use super::policy::{Change, Key};
use crate::config::AgentConfig;
use crate::core::{
    AnnouncedState, Effect, IdentityNumber, PairKey, PeerNumber, RemoteEntry, SessionEntry,
    SessionState,
};
use crate::endpoint::{Endpoint, EndpointId, Host};

/// The gates and their maps.
pub(super) struct Gates {
    kernel: Kernel,
    /// What stands in the map: the prefixes that rules name, and the node's own addresses.
    cidrs: BTreeMap<IpNet, u32>,
    rules: BTreeMap<IpNet, u32>,
    hosts: BTreeSet<IpNet>,
    wires: BTreeSet<(u32, String)>,
    flows: usize,
}

/// A pair as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordedPair {
    pub(super) local: IdentityNumber,
    pub(super) remote: IdentityNumber,
    pub(super) peer: PeerNumber,
    pub(super) epoch: u32,
    pub(super) expires: Duration,
}

impl Gates {
    /// Makes the maps, or adopts those of an earlier run.
    pub(super) fn open(config: &AgentConfig) -> Result<Self, RunError> {
        let kernel = Kernel::open(bpf::Options::new(config.bpf_dir.clone()))?;
        // What an earlier run held is lost with it; its counts must not stay.
        kernel.tables().reset_holds()?;
        let cidrs = kernel.tables().cidrs()?;
        Ok(Self {
            kernel,
            cidrs: cidrs.into_iter().map(|(net, id)| (net, id.0)).collect(),
            rules: BTreeMap::new(),
            hosts: BTreeSet::new(),
            wires: BTreeSet::new(),
            flows: 0,
        })
    }

    fn tables(&self) -> &Tables {
        self.kernel.tables()
    }

    /// What the programs tell; to be taken once.
    pub(super) fn events(&self) -> Result<Events, RunError> {
        let events = self.kernel.events()?;
        events.ok_or_else(|| RunError::Refused("the gates' events are read already".into()))
    }

    /// One write that the core wants. Other effects are none of the gates' business.
    pub(super) fn apply(&self, effect: &Effect) -> Result<(), RunError> {
        let tables = self.tables();
        match effect {
            Effect::SetPrefix { prefix, peer } => tables.set_prefix(*prefix, number(*peer))?,
            Effect::RemovePrefix { prefix } => tables.remove_prefix(*prefix)?,
            Effect::SetLocal {
                address,
                endpoint,
                identity,
            } => {
                let local = bpf::Local {
                    endpoint: bpf::EndpointId(endpoint.0),
                    identity: identity_number(*identity),
                };
                tables.set_local(*address, local)?;
            }
            Effect::RemoveLocal { address } => tables.remove_local(*address)?,
            Effect::SetSession { peer, session } => {
                let written = tables.set_session(number(*peer), &to_session(*session));
                // A cut that cannot be written is made by removing what stands.
                match (written, session.state) {
                    (Err(_), SessionState::Cut) => tables.remove_session(number(*peer))?,
                    (written, _) => written?,
                }
            }
            Effect::RemoveSession { peer } => tables.remove_session(number(*peer))?,
            Effect::SetRemote { address, remote } => {
                tables.set_remote(*address, &to_remote(*remote))?;
            }
            Effect::SetNegative {
                address,
                peer,
                until,
            } => tables.refuse_remote(*address, number(*peer), *until)?,
            Effect::RemoveRemote { address } => tables.remove_remote(*address)?,
            Effect::SetAnnounced {
                address,
                peer,
                announced,
            } => {
                let announced = bpf::Announced {
                    endpoint: bpf::EndpointId(announced.endpoint.0),
                    epoch: bpf::Epoch(announced.epoch),
                    state: match announced.state {
                        AnnouncedState::Sent => bpf::AnnouncedState::Sent,
                        AnnouncedState::Confirmed => bpf::AnnouncedState::Confirmed,
                        AnnouncedState::Withdrawing => bpf::AnnouncedState::Withdrawing,
                    },
                    generation: announced.generation,
                };
                tables.set_announced(*address, number(*peer), &announced)?;
            }
            Effect::RemoveAnnounced { address, peer } => {
                tables.remove_announced(*address, number(*peer))?;
            }
            Effect::SetIdentity {
                number,
                valid_until,
                revoked,
            } => {
                let identity = bpf::Identity {
                    valid_until: *valid_until,
                    revoked: *revoked,
                };
                tables.set_identity(identity_number(*number), &identity)?;
            }
            Effect::SetPair {
                pair,
                expires,
                epoch,
            } => {
                let value = bpf::Pair {
                    expires: *expires,
                    epoch: bpf::Epoch(*epoch),
                };
                tables.set_pair(to_pair_key(*pair), value)?;
            }
            Effect::RemovePair { pair } => tables.remove_pair(to_pair_key(*pair))?,
            Effect::SweepEpoch { peer, below } => {
                tables.sweep_epoch(number(*peer), bpf::Epoch(*below))?;
            }
            other => tracing::error!(?other, "an effect that nobody carries out"),
        }
        Ok(())
    }

    /// One change of the policy map.
    pub(super) fn write_policy(&self, change: &Change) -> Result<(), RunError> {
        match change {
            Change::Set(key, value) => {
                let (endpoint, entry) = (bpf::EndpointId(key.endpoint), (key.packets, *value));
                self.tables().add_policy(endpoint, &[entry])?;
            }
            Change::Remove(key) => {
                let endpoint = bpf::EndpointId(key.endpoint);
                self.tables().remove_policy_entry(endpoint, &key.packets)?;
            }
        }
        Ok(())
    }

    /// Empties everything whose numbers mean nothing any more.
    pub(super) fn clear(&mut self) -> Result<(), RunError> {
        self.cidrs.clear();
        Ok(self.tables().clear()?)
    }

    /// A number that stands for nobody any more.
    pub(super) fn remove_identity(&self, number: IdentityNumber) -> Result<(), RunError> {
        Ok(self.tables().remove_identity(identity_number(number))?)
    }

    /// Nobody will give held packets back: what is undecided is dropped from now on.
    pub(super) fn stop_holding(&self) -> Result<(), RunError> {
        Ok(self.tables().reset_holds()?)
    }

    /// Flows that are open are decided anew by the next packet.
    pub(super) fn bump_policy_revision(&self) -> Result<(), RunError> {
        Ok(self.tables().policy_changed()?)
    }

    /// What stands in the policy map for these endpoints.
    pub(super) fn policy_entries(
        &self,
        endpoints: &[Endpoint],
    ) -> Result<Vec<(Key, PolicyValue)>, RunError> {
        let known: BTreeSet<u32> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        let all = self.tables().policies()?.into_iter();
        let theirs = all.filter(|(endpoint, ..)| known.contains(&endpoint.0));
        Ok(theirs
            .map(|(endpoint, packets, value)| {
                let key = Key {
                    endpoint: endpoint.0,
                    packets,
                };
                (key, value)
            })
            .collect())
    }

    /// The prefixes that rules name, as they stand.
    pub(super) fn cidrs(&self) -> impl Iterator<Item = (IpNet, u32)> {
        let rules = |number: &u32| *number >= bpf::IdentityNumber::FIRST_CIDR.0;
        self.cidrs
            .iter()
            .filter(move |(_, number)| rules(number))
            .map(|(prefix, number)| (*prefix, *number))
    }

    /// The prefixes that rules name, exactly these.
    pub(super) fn write_cidrs(
        &mut self,
        wanted: impl Iterator<Item = (IpNet, u32)>,
    ) -> Result<(), RunError> {
        self.rules = wanted.collect();
        self.write_outside()
    }

    /// The node's own addresses: to its workloads they are the host, not the world.
    pub(super) fn set_hosts(&mut self, addresses: BTreeSet<IpNet>) -> Result<(), RunError> {
        self.hosts = addresses;
        self.write_outside()
    }

    /// Writes all that can be written; what is refused is tried again the next time.
    fn write_outside(&mut self) -> Result<(), RunError> {
        let mut wanted = self.rules.clone();
        let host = bpf::IdentityNumber::HOST.0;
        wanted.extend(self.hosts.iter().map(|address| (*address, host)));
        let mut first = Ok(());
        for (prefix, identity) in &wanted {
            if self.cidrs.get(prefix) != Some(identity) {
                let number = bpf::IdentityNumber(*identity);
                match self.tables().set_cidr(*prefix, number) {
                    Ok(()) => drop(self.cidrs.insert(*prefix, *identity)),
                    Err(error) => first = first.and(Err(error.into())),
                }
            }
        }
        let known = self.cidrs.keys().copied();
        let gone: Vec<IpNet> = known.filter(|p| !wanted.contains_key(p)).collect();
        for prefix in gone {
            match self.tables().remove_cidr(prefix) {
                Ok(()) => drop(self.cidrs.remove(&prefix)),
                Err(error) => first = first.and(Err(error.into())),
            }
        }
        first
    }

    /// Puts gates first again that somebody's program runs ahead of. Says which were.
    pub(super) fn put_first(&self) -> Result<Vec<String>, RunError> {
        let found = self.kernel.put_first()?.into_iter();
        let told = found.map(|(found, refused)| {
            let (gate, interface) = (&found.attachment.program, &found.interface);
            let what = match &found.by {
                Some(other) => format!(
                    "program {other:?} was put ahead of our gate {gate} on {interface}: what it lets pass or redirects never met \
                     the gate; whoever attaches it must not put it first (`bpftool net show dev {interface}`)"
                ),
                None => format!("our gate {gate} was gone from {interface}"),
            };
            match refused {
                None => format!("{what}. The gate comes first again"),
                Some(error) => format!("{what}. It cannot be put first again: {error}"),
            }
        });
        Ok(told.collect())
    }

    /// Gates on a workload's link. Again for the same endpoint changes nothing.
    pub(super) fn attach_endpoint(&self, endpoint: &Endpoint) -> Result<(), RunError> {
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
    pub(super) fn detach_endpoint(&self, endpoint: EndpointId) -> Result<(), RunError> {
        let id = bpf::EndpointId(endpoint);
        self.kernel.detach_endpoint(id)?;
        self.tables().remove_connections(id)?;
        Ok(self.tables().remove_endpoint(id)?)
    }

    /// Gates for a workload of the node itself. Again for the same endpoint changes nothing, or its control group.
    pub(super) fn attach_host(
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
    pub(super) fn detach_host(&self, endpoint: EndpointId) -> Result<(), RunError> {
        let id = bpf::EndpointId(endpoint);
        self.tables().remove_connections(id)?;
        self.tables().remove_endpoint(id)?;
        Ok(self.kernel.detach_host(id)?)
    }

    /// Takes away what an agent that died in between has left of endpoints that nobody knows.
    pub(super) fn forget_unknown(&self, known: &[Endpoint]) -> Result<(), RunError> {
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

    /// Takes away the prefixes that an earlier agent wrote and this one knows nothing of: of nodes that left while
    /// nobody looked. Packets to them would be held, and their addresses be nobody else's.
    pub(super) fn keep_prefixes(
        &self,
        known: impl Iterator<Item = (IpNet, PeerNumber)>,
    ) -> Result<(), RunError> {
        let known: BTreeSet<IpNet> = known.map(|(prefix, _)| prefix).collect();
        for (prefix, _) in self.tables().prefixes()? {
            if !known.contains(&prefix) {
                tracing::info!(%prefix, "no node's any more");
                self.tables().remove_prefix(prefix)?;
            }
        }
        Ok(())
    }

    /// Gates on the tunnel device.
    pub(super) fn attach_tunnel(&self, ifindex: u32) -> Result<(), RunError> {
        Ok(self.kernel.attach_tunnel(ifindex)?)
    }

    /// A tunnel device that is gone, or about to go, is none of the gates' any more.
    pub(super) fn detach_tunnel(&self, ifindex: u32) -> Result<(), RunError> {
        Ok(self.kernel.detach_tunnel(ifindex)?)
    }

    /// Gates on the hold device; from then on what is undecided is held.
    pub(super) fn attach_hold(&self, ifindex: u32) -> Result<(), RunError> {
        Ok(self.kernel.attach_hold(ifindex)?)
    }

    /// The tripwire on these underlay interfaces (index and name). Those that went took theirs along.
    pub(super) fn set_wires(
        &mut self,
        interfaces: BTreeSet<(u32, String)>,
    ) -> Result<(), RunError> {
        let mut outcome = Ok(());
        let mut watched = BTreeSet::new();
        for wire in interfaces {
            let known = self.wires.contains(&wire);
            match if known {
                Ok(())
            } else {
                self.kernel.attach_wire(wire.0)
            } {
                Ok(()) => {
                    if !known {
                        tracing::info!(interface = wire.1, "the tripwire watches");
                    }
                    watched.insert(wire);
                }
                // It went again meanwhile.
                Err(bpf::Error::NoInterface(_)) => {}
                // The others are watched all the same.
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        self.wires = watched;
        outcome
    }

    /// No wire any more, but a workload's link: a CNI may have given it an address before anybody knew whose it is.
    pub(super) fn unwatch(&mut self, ifindex: u32) -> Result<(), RunError> {
        self.wires.retain(|(index, _)| *index != ifindex);
        Ok(self.kernel.detach_wire(ifindex)?)
    }

    /// The interfaces that the tripwire watches.
    pub(super) fn wire_indexes(&self) -> BTreeSet<u32> {
        self.wires.iter().map(|(index, _)| *index).collect()
    }

    /// How many interfaces the tripwire watches.
    pub(super) fn wires(&self) -> usize {
        self.wires.len()
    }

    /// Packets that the tripwire has stopped.
    pub(super) fn cleartext_drops(&self) -> Result<u64, RunError> {
        let reasons = [
            Reason::WireOut,
            Reason::WireIn,
            Reason::WireOutInside,
            Reason::WireInInside,
        ];
        let mut sum = 0;
        for reason in reasons {
            sum += self.tables().counter(reason)?;
        }
        Ok(sum)
    }

    /// Events that the gates could not tell.
    pub(super) fn events_lost(&self) -> Result<u64, RunError> {
        Ok(self.tables().counter(Reason::EventLost)?)
    }

    /// Packets by reason, those that there were.
    pub(super) fn counters(&self) -> Result<BTreeMap<String, u64>, RunError> {
        let counters = self.tables().counters()?;
        Ok(counters
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (format!("packets: {}", reason.name()), count))
            .collect())
    }

    /// The pairs that the gates let pass.
    pub(super) fn pairs(&self) -> Result<Vec<RecordedPair>, RunError> {
        let pairs = self.tables().pairs()?;
        Ok(pairs
            .into_iter()
            .map(|(key, pair)| RecordedPair {
                local: IdentityNumber(key.local.0),
                remote: IdentityNumber(key.remote.0),
                peer: PeerNumber(key.peer.0),
                epoch: pair.epoch.0,
                expires: pair.expires,
            })
            .collect())
    }

    /// Forgets flows whose time is over and counts of what is no longer held.
    pub(super) fn collect(&mut self, now: Duration) -> Result<(), RunError> {
        self.flows = self.tables().collect(now)?.left;
        Ok(self.tables().tidy_holds()?)
    }

    /// The prefixes of nodes that are joining, all of them each time.
    pub(super) fn set_joining(&self, prefixes: &[IpNet]) -> Result<(), RunError> {
        Ok(self.tables().set_joining(prefixes)?)
    }

    /// How many entries each map has room for.
    pub(super) fn capacities(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.tables().capacities().into_iter()
    }

    /// The flows that were known when last looked at.
    pub(super) fn flows(&self) -> usize {
        self.flows
    }

    /// Packets that wait for a decision, and their bytes, as the gates count them.
    pub(super) fn held(&self) -> Result<(u64, u64), RunError> {
        let held = self.tables().held_total()?;
        Ok((held.packets, held.bytes))
    }

    /// Takes every program and map away, and says what. The gates are of no use afterwards.
    pub(super) fn detach_all(&mut self) -> Result<Vec<String>, RunError> {
        self.wires.clear();
        Ok(self.kernel.detach_all()?)
    }
}

fn number(peer: PeerNumber) -> bpf::PeerNumber {
    bpf::PeerNumber(peer.0)
}

fn identity_number(number: IdentityNumber) -> bpf::IdentityNumber {
    bpf::IdentityNumber(number.0)
}

fn to_pair_key(pair: PairKey) -> bpf::PairKey {
    bpf::PairKey {
        local: identity_number(pair.local),
        remote: identity_number(pair.remote),
        peer: number(pair.peer),
    }
}

fn to_session(session: SessionEntry) -> bpf::Session {
    bpf::Session {
        oldest: bpf::Epoch(session.oldest),
        current: bpf::Epoch(session.current),
        expires: session.expires,
        state: match session.state {
            SessionState::Pending => bpf::SessionState::Pending,
            SessionState::Ready => bpf::SessionState::Ready,
            SessionState::Cut => bpf::SessionState::Cut,
        },
    }
}

fn to_remote(remote: RemoteEntry) -> bpf::Remote {
    bpf::Remote {
        identity: identity_number(remote.identity),
        peer: number(remote.peer),
        epoch: bpf::Epoch(remote.epoch),
        generation: remote.generation,
        refused_until: None,
    }
}
