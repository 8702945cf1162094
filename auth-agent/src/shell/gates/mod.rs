//! The gates and their maps: what the core writes in them. In files of their own: where gates stand, what is outside of the
//! mesh, and what is read back for people.

mod devices;
mod endpoints;
mod look;
mod outside;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use handfast_bpf as bpf;
use handfast_bpf::{Events, Kernel, PolicyValue, Tables};
use ipnet::IpNet;

use super::RunError;
use super::policy::{Change, Key};
use crate::config::AgentConfig;
use crate::core::{Effect, IdentityNumber, PeerNumber, SessionState};
use crate::endpoint::Endpoint;

pub(super) use look::RecordedPair;
use values::{identity_number, number, to_announced, to_pair_key, to_remote, to_session};

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

    /// Whether an earlier agent's were found.
    pub(super) fn adopted(&self) -> bool {
        self.kernel.adopted()
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
                tables.set_announced(*address, number(*peer), &to_announced(*announced))?;
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

    /// Takes every program and map away, and says what. The gates are of no use afterwards.
    pub(super) fn detach_all(&mut self) -> Result<Vec<String>, RunError> {
        self.wires.clear();
        Ok(self.kernel.detach_all()?)
    }
}
