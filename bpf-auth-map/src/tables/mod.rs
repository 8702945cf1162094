//! The maps that the agent writes, typed. Every write is one system call; the order of writes is
//! the caller's, and the gates see each at once.

mod flows;
mod hosts;
pub(crate) mod policy;
mod raw;

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, lpm_trie::Key},
};
use handfast_layout as layout;
use ipnet::IpNet;
use layout::{Addr, Reason};

use self::raw::{Hash, Lpm};
use crate::{
    Announced, AnnouncedState, Endpoint, EndpointId, Epoch, Error, Identity, IdentityNumber, Local,
    Pair, PairKey, PeerNumber, Remote, Session, SessionState, Settings,
    clock::nanoseconds,
    types::{to_addr, to_ip},
};

/// The tables. Shared freely: every method takes `&self`.
pub struct Tables {
    config: std::sync::Mutex<Array<MapData, layout::Config>>,
    revision: std::sync::Mutex<Array<MapData, u64>>,
    endpoints: Hash<u32, layout::Endpoint>,
    interfaces: Hash<u32, u32>,
    usage: Hash<u32, layout::Usage>,
    locals: Hash<Addr, layout::Local>,
    hosts: Hash<Addr, layout::Host>,
    remotes: Hash<Addr, layout::Remote>,
    prefixes: Lpm<Addr, layout::Prefix>,
    joining: std::sync::Mutex<HashSet<IpNet>>,
    sessions: Hash<u32, layout::Session>,
    announced: Hash<layout::AnnouncedKey, layout::Announced>,
    identities: Hash<u32, layout::Identity>,
    policy: Lpm<layout::PolicyKey, layout::PolicyValue>,
    cidrs: Lpm<Addr, u32>,
    auth: Hash<layout::AuthKey, layout::Auth>,
    connections: Hash<layout::ConnectionKey, layout::Connection>,
    taken: std::sync::Mutex<Array<MapData, u64>>,
    holds: Hash<layout::HoldKey, layout::HoldValue>,
    hold_total: std::sync::Mutex<Array<MapData, layout::HoldValue>>,
    parked: Hash<u32, layout::Parked>,
    counters: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: raw::take::<Array<MapData, layout::Config>>(object, "config")?.into(),
            revision: raw::take::<Array<MapData, u64>>(object, "revision")?.into(),
            endpoints: Hash::take(object, "endpoints")?,
            interfaces: Hash::take(object, "interfaces")?,
            usage: Hash::take(object, "usage")?,
            locals: Hash::take(object, "locals")?,
            hosts: Hash::take(object, "hosts")?,
            remotes: Hash::take(object, "remotes")?,
            prefixes: Lpm::take(object, "prefixes")?,
            joining: std::sync::Mutex::default(),
            sessions: Hash::take(object, "sessions")?,
            announced: Hash::take(object, "announced")?,
            identities: Hash::take(object, "identities")?,
            policy: Lpm::take(object, "policy")?,
            cidrs: Lpm::take(object, "cidrs")?,
            auth: Hash::take(object, "auth")?,
            connections: Hash::take(object, "connections")?,
            taken: raw::take::<Array<MapData, u64>>(object, "taken")?.into(),
            holds: Hash::take(object, "holds")?,
            hold_total: raw::take::<Array<MapData, layout::HoldValue>>(object, "hold_total")?
                .into(),
            parked: Hash::take(object, "parked")?,
            counters: raw::take(object, "counters")?,
        })
    }

    /// Empties everything that numbers of this boot stand for: sessions, prefixes, remotes,
    /// announcements, pairs, identities, locals, policy, CIDRs and flows. Nothing passes then that
    /// needs any of it.
    ///
    /// # Errors
    /// A map could not be written; those before it are empty.
    pub fn clear(&self) -> Result<(), Error> {
        self.changing(|| {
            self.sessions.clear()?;
            self.auth.clear()?;
            self.announced.clear()?;
            self.remotes.clear()?;
            self.connections.clear()?;
            self.locals.clear()?;
            self.identities.clear()?;
            self.policy.clear()?;
            self.cidrs.clear()?;
            self.usage.clear()?;
            self.set_taken(0)?;
            // Last: an address outside every prefix counts as outside the mesh.
            self.prefixes.clear()
        })
    }

    /// The settings as the gates have them.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn settings(&self) -> Result<Settings, Error> {
        let config = self.config()?;
        let some = |index: u32| (index != 0).then_some(index);
        Ok(Settings {
            tunnel: some(config.tunnel),
            tunnel2: some(config.tunnel2),
            hold: some(config.hold),
            mark_shift: config.mark_shift,
            host_denied: config.flags & layout::HOST_DENIED != 0,
            hold_pair: (config.hold_pair_packets, config.hold_pair_bytes),
            hold_total: (config.hold_total_packets, config.hold_total_bytes),
            endpoint_connections: config.endpoint_connections,
            endpoint_events: config.endpoint_events,
        })
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// A mark shift above 28; the map could not be written.
    pub fn set_settings(&self, settings: &Settings) -> Result<(), Error> {
        if settings.mark_shift > 28 {
            return Err(Error::Setting(
                "our four mark bits cannot begin above bit 28",
            ));
        }
        self.change_config(|config| {
            config.tunnel = settings.tunnel.unwrap_or(0);
            config.tunnel2 = settings.tunnel2.unwrap_or(0);
            config.hold = settings.hold.unwrap_or(0);
            config.mark_shift = settings.mark_shift;
            set_flag(config, layout::HOST_DENIED, settings.host_denied);
            (config.hold_pair_packets, config.hold_pair_bytes) = settings.hold_pair;
            (config.hold_total_packets, config.hold_total_bytes) = settings.hold_total;
            config.endpoint_connections = settings.endpoint_connections;
            config.endpoint_events = settings.endpoint_events;
        })
    }

    /// Makes the gates ask policy anew for every flow that is open.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn policy_changed(&self) -> Result<(), Error> {
        self.change_config(|config| config.policy_revision = config.policy_revision.wrapping_add(1))
    }

    /// Makes a change after which the gates look up anew whose the addresses and what the identities of every open
    /// flow are: before its writer is told that it is done, no packet is judged by what was known before. If it
    /// fails, or this process dies in it, every packet is judged at length until another change has been made.
    fn changing(&self, change: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let error = |source| Error::Map {
            map: "revision",
            source,
        };
        // One at a time: the number never goes back, and is even only if nobody is at work.
        let mut map = raw::lock(&self.revision);
        let begun = map.get(&0, 0).map_err(error)? | 1;
        map.set(0, begun, 0).map_err(error)?;
        change()?;
        map.set(0, begun.wrapping_add(1), 0).map_err(error)
    }

    fn config(&self) -> Result<layout::Config, Error> {
        raw::lock(&self.config)
            .get(&0, 0)
            .map_err(|source| Error::Map {
                map: "config",
                source,
            })
    }

    fn change_config(&self, change: impl FnOnce(&mut layout::Config)) -> Result<(), Error> {
        let error = |source| Error::Map {
            map: "config",
            source,
        };
        let mut map = raw::lock(&self.config);
        let mut config = map.get(&0, 0).map_err(error)?;
        change(&mut config);
        map.set(0, config, 0).map_err(error)
    }

    /// Writes an endpoint.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_endpoint(&self, id: EndpointId, endpoint: &Endpoint) -> Result<(), Error> {
        let value = layout::Endpoint {
            ifindex: endpoint.ifindex,
            identity: endpoint.identity.0,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            flags: 0,
        };
        self.endpoints.set(&id.0, &value)
    }

    /// Forgets an endpoint and what it used up. Its addresses are removed apart.
    ///
    /// # Errors
    /// A map could not be written.
    pub fn remove_endpoint(&self, id: EndpointId) -> Result<(), Error> {
        self.endpoints.remove(&id.0)?;
        self.usage.remove(&id.0)
    }

    /// Tells the gates whose interface this is. To be done before they are attached to it: on an interface of nobody's
    /// they let nothing pass.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_interface(&self, ifindex: u32, endpoint: EndpointId) -> Result<(), Error> {
        self.interfaces.set(&ifindex, &endpoint.0)
    }

    /// Forgets the interfaces that are not among these.
    ///
    /// # Errors
    /// The map could not be read or written.
    pub fn keep_interfaces(&self, known: &BTreeSet<u32>) -> Result<(), Error> {
        self.interfaces.retain(|ifindex, _| known.contains(ifindex))
    }

    /// Forgets an interface.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_interface(&self, ifindex: u32) -> Result<(), Error> {
        self.interfaces.remove(&ifindex)
    }

    /// All endpoints.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn endpoints(&self) -> Result<Vec<(EndpointId, Endpoint)>, Error> {
        self.endpoints.all(|id, value| {
            let endpoint = Endpoint {
                ifindex: value.ifindex,
                identity: IdentityNumber(value.identity),
                mac: value.mac,
                host_mac: value.host_mac,
            };
            (EndpointId(id), endpoint)
        })
    }

    /// Gives an address to an endpoint.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_local(&self, address: IpAddr, local: Local) -> Result<(), Error> {
        let value = layout::Local {
            endpoint: local.endpoint.0,
            identity: local.identity.0,
        };
        self.changing(|| self.locals.set(&to_addr(address), &value))
    }

    /// Takes an address away.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_local(&self, address: IpAddr) -> Result<(), Error> {
        self.changing(|| self.locals.remove(&to_addr(address)))
    }

    /// All local addresses.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn locals(&self) -> Result<Vec<(IpAddr, Local)>, Error> {
        self.locals.all(|addr, value| {
            let local = Local {
                endpoint: EndpointId(value.endpoint),
                identity: IdentityNumber(value.identity),
            };
            (to_ip(addr), local)
        })
    }

    /// Writes what is known of a remote address, or a refusal.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_remote(&self, address: IpAddr, remote: &Remote) -> Result<(), Error> {
        let value = layout::Remote {
            identity: remote.identity.0,
            peer: remote.peer.0,
            epoch: remote.epoch.0,
            flags: if remote.refused_until.is_some() {
                layout::REMOTE_REFUSED
            } else {
                0
            },
            generation: remote.generation,
            expires: remote.refused_until.map_or(0, nanoseconds),
        };
        self.changing(|| self.remotes.set(&to_addr(address), &value))
    }

    /// Writes that a peer does not say who has an address: it is not asked for until then.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn refuse_remote(
        &self,
        address: IpAddr,
        peer: PeerNumber,
        until: Duration,
    ) -> Result<(), Error> {
        let refusal = Remote {
            identity: IdentityNumber::UNKNOWN,
            peer,
            epoch: Epoch(0),
            generation: 0,
            refused_until: Some(until),
        };
        self.set_remote(address, &refusal)
    }

    /// Forgets a remote address.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_remote(&self, address: IpAddr) -> Result<(), Error> {
        self.changing(|| self.remotes.remove(&to_addr(address)))
    }

    /// Makes a prefix managed: it is this node's, by [`PeerNumber::LOCAL`].
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_prefix(&self, prefix: IpNet, peer: PeerNumber) -> Result<(), Error> {
        let joining = raw::lock(&self.joining);
        let is_joining = joining.contains(&prefix.trunc());
        self.write_prefix(prefix, peer, is_joining)?;
        match peer {
            PeerNumber::LOCAL => self.set_self_joining(is_joining),
            _ => Ok(()),
        }
    }

    /// Says which prefixes' nodes are joining: all of them, each time. Cleartext from those and to them is counted
    /// under [`Reason::WireJoining`] instead of being dropped, at once; prefixes that are set later keep to it too.
    ///
    /// # Errors
    /// The map could not be read or written; what was not reached stays as it was until the next call.
    pub fn set_joining(&self, prefixes: &[IpNet]) -> Result<(), Error> {
        let mut joining = raw::lock(&self.joining);
        *joining = prefixes.iter().map(IpNet::trunc).collect();
        // What the gates have counts, not what was asked for before: that may not have been reached.
        let all = self.prefixes.all(|key, value| {
            let is_joining = value.flags & layout::PREFIX_JOINING != 0;
            net(key.prefix_len(), key.data()).map(|net| (net, PeerNumber(value.peer), is_joining))
        })?;
        let mut is_self = false;
        for (prefix, peer, is_joining) in all.into_iter().flatten() {
            let wanted = joining.contains(&prefix);
            is_self |= wanted && peer == PeerNumber::LOCAL;
            if is_joining != wanted {
                self.write_prefix(prefix, peer, wanted)?;
            }
        }
        self.set_self_joining(is_self)
    }

    /// What a gate of a workload reads instead of looking its own node's prefix up.
    fn set_self_joining(&self, joining: bool) -> Result<(), Error> {
        let is_set = self.config()?.flags & layout::SELF_JOINING != 0;
        if is_set == joining {
            return Ok(());
        }
        self.change_config(|config| set_flag(config, layout::SELF_JOINING, joining))
    }

    fn write_prefix(&self, prefix: IpNet, peer: PeerNumber, joining: bool) -> Result<(), Error> {
        let value = layout::Prefix {
            peer: peer.0,
            flags: if joining { layout::PREFIX_JOINING } else { 0 },
        };
        self.changing(|| self.prefixes.set(&net_key(prefix), &value))
    }

    /// How many entries each table that fills up with use can have.
    pub fn capacities(&self) -> [(&'static str, u32); 13] {
        [
            self.endpoints.capacity(),
            self.locals.capacity(),
            self.remotes.capacity(),
            self.prefixes.capacity(),
            self.sessions.capacity(),
            self.announced.capacity(),
            self.identities.capacity(),
            self.policy.capacity(),
            self.cidrs.capacity(),
            self.auth.capacity(),
            self.connections.capacity(),
            self.holds.capacity(),
            self.parked.capacity(),
        ]
    }

    /// Forgets a prefix.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_prefix(&self, prefix: IpNet) -> Result<(), Error> {
        self.changing(|| self.prefixes.remove(&net_key(prefix)))
    }

    /// All prefixes.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn prefixes(&self) -> Result<Vec<(IpNet, PeerNumber)>, Error> {
        self.prefixes.understood(|key, value| {
            net(key.prefix_len(), key.data()).map(|net| (net, PeerNumber(value.peer)))
        })
    }

    /// Writes a session.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_session(&self, peer: PeerNumber, session: &Session) -> Result<(), Error> {
        let value = layout::Session {
            oldest: session.oldest.0,
            current: session.current.0,
            expiry: nanoseconds(session.expires),
            state: match session.state {
                SessionState::Pending => layout::SESSION_PENDING,
                SessionState::Ready => layout::SESSION_READY,
                SessionState::Cut => layout::SESSION_CUT,
            },
            reserved: 0,
        };
        self.changing(|| self.sessions.set(&peer.0, &value))
    }

    /// Forgets a session.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_session(&self, peer: PeerNumber) -> Result<(), Error> {
        self.changing(|| self.sessions.remove(&peer.0))
    }

    /// Writes how far an announcement of ours is.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_announced(
        &self,
        address: IpAddr,
        peer: PeerNumber,
        announced: &Announced,
    ) -> Result<(), Error> {
        let value = layout::Announced {
            endpoint: announced.endpoint.0,
            epoch: announced.epoch.0,
            state: match announced.state {
                AnnouncedState::Sent => layout::ANNOUNCED_SENT,
                AnnouncedState::Confirmed => layout::ANNOUNCED_CONFIRMED,
                AnnouncedState::Withdrawing => layout::ANNOUNCED_WITHDRAWING,
            },
            reserved: 0,
            generation: announced.generation,
        };
        let key = layout::AnnouncedKey {
            local: to_addr(address),
            peer: peer.0,
        };
        self.changing(|| self.announced.set(&key, &value))
    }

    /// Forgets an announcement of ours.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_announced(&self, address: IpAddr, peer: PeerNumber) -> Result<(), Error> {
        let key = layout::AnnouncedKey {
            local: to_addr(address),
            peer: peer.0,
        };
        self.changing(|| self.announced.remove(&key))
    }

    /// All announcements of ours.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn announced(&self) -> Result<Vec<(IpAddr, PeerNumber, Announced)>, Error> {
        self.announced.all(|key, value| {
            let announced = Announced {
                endpoint: EndpointId(value.endpoint),
                epoch: Epoch(value.epoch),
                state: match value.state {
                    layout::ANNOUNCED_SENT => AnnouncedState::Sent,
                    layout::ANNOUNCED_CONFIRMED => AnnouncedState::Confirmed,
                    _ => AnnouncedState::Withdrawing,
                },
                generation: value.generation,
            };
            (to_ip(key.local), PeerNumber(key.peer), announced)
        })
    }

    /// Writes what is known of an identity.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_identity(&self, number: IdentityNumber, identity: &Identity) -> Result<(), Error> {
        let value = layout::Identity {
            valid_until: nanoseconds(identity.valid_until),
            revoked: u32::from(identity.revoked),
            reserved: 0,
        };
        self.changing(|| self.identities.set(&number.0, &value))
    }

    /// Forgets an identity.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_identity(&self, number: IdentityNumber) -> Result<(), Error> {
        self.changing(|| self.identities.remove(&number.0))
    }

    /// Gives a CIDR outside the mesh an identity, so that rules can name it.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_cidr(&self, cidr: IpNet, identity: IdentityNumber) -> Result<(), Error> {
        self.cidrs.set(&net_key(cidr), &identity.0)
    }

    /// Forgets a CIDR.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_cidr(&self, cidr: IpNet) -> Result<(), Error> {
        self.cidrs.remove(&net_key(cidr))
    }

    /// All CIDRs.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn cidrs(&self) -> Result<Vec<(IpNet, IdentityNumber)>, Error> {
        self.cidrs.understood(|key, identity| {
            net(key.prefix_len(), key.data()).map(|net| (net, IdentityNumber(*identity)))
        })
    }

    /// Records a pair.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_pair(&self, key: PairKey, pair: Pair) -> Result<(), Error> {
        let value = layout::Auth {
            expiry: nanoseconds(pair.expires),
            epoch: pair.epoch.0,
            reserved: 0,
        };
        self.auth.set(&auth_key(key), &value)
    }

    /// Forgets a pair.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_pair(&self, key: PairKey) -> Result<(), Error> {
        self.auth.remove(&auth_key(key))
    }

    /// All pairs.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn pairs(&self) -> Result<Vec<(PairKey, Pair)>, Error> {
        self.auth.all(|key, value| {
            let key = PairKey {
                local: IdentityNumber(key.local),
                remote: IdentityNumber(key.remote),
                peer: PeerNumber(key.peer),
            };
            let pair = Pair {
                expires: Duration::from_nanos(value.expiry),
                epoch: Epoch(value.epoch),
            };
            (key, pair)
        })
    }

    /// Removes what a peer's ended sessions left: pairs, remotes and announcements of an epoch
    /// below this one.
    ///
    /// # Errors
    /// A map could not be written; those before it are swept.
    pub fn sweep_epoch(&self, peer: PeerNumber, below: Epoch) -> Result<(), Error> {
        self.auth
            .retain(|key, value| key.peer != peer.0 || value.epoch >= below.0)?;
        self.changing(|| {
            self.remotes.retain(|_, value| {
                value.peer != peer.0
                    || value.epoch >= below.0
                    || value.flags & layout::REMOTE_REFUSED != 0
            })?;
            self.announced.retain(|key, value| {
                key.peer != peer.0
                    || value.epoch >= below.0
                    || value.state == layout::ANNOUNCED_WITHDRAWING
            })
        })
    }

    /// All counters, those that are 0 too.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Reason::ALL
            .iter()
            .map(|reason| Ok((*reason, self.counter(*reason)?)))
            .collect()
    }

    /// One counter.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counter(&self, reason: Reason) -> Result<u64, Error> {
        let values = self
            .counters
            .get(&u32::from(reason as u16), 0)
            .map_err(|source| Error::Map {
                map: "counters",
                source,
            })?;
        Ok(values.iter().sum())
    }
}

fn auth_key(key: PairKey) -> layout::AuthKey {
    layout::AuthKey::new(key.local.0, key.remote.0, key.peer.0)
}

fn set_flag(config: &mut layout::Config, flag: u32, on: bool) {
    match on {
        true => config.flags |= flag,
        false => config.flags &= !flag,
    }
}

/// IPv4 prefixes lie in the last 32 of the 128 bits.
fn net_key(net: IpNet) -> Key<Addr> {
    let bits = u32::from(net.prefix_len());
    let bits = if net.addr().is_ipv4() {
        96 + bits
    } else {
        bits
    };
    Key::new(bits, to_addr(net.network()))
}

/// A prefix as an agent writes it; none for any other bytes.
pub(crate) fn net(bits: u32, addr: Addr) -> Option<IpNet> {
    let ip = to_ip(addr);
    let length = if ip.is_ipv4() {
        bits.checked_sub(96)?
    } else {
        bits
    };
    let net = IpNet::new(ip, u8::try_from(length).ok()?).ok()?;
    let written = net_key(net);
    ((written.prefix_len(), written.data()) == (bits, addr)).then_some(net)
}
