//! The maps that the agent writes, typed. Every write is one system call; the order of writes is
//! the caller's, and the gates see each at once.

mod endpoints;
mod flows;
mod hosts;
pub(crate) mod policy;
mod prefixes;
mod raw;
mod remotes;
mod sessions;

use std::collections::HashSet;

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray},
};
use handfast_layout as layout;
use ipnet::IpNet;
use layout::{Addr, Reason};

pub(crate) use self::prefixes::net;
use self::raw::{Hash, Lpm};
use crate::{Error, Settings};

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

fn set_flag(config: &mut layout::Config, flag: u32, on: bool) {
    match on {
        true => config.flags |= flag,
        false => config.flags &= !flag,
    }
}
