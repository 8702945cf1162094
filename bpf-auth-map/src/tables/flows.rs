//! Flows and holds: what the programs write and the agent tidies.

use std::{collections::HashMap, time::Duration};

use handfast_layout::{self as layout, packet::TCP};

use super::{Tables, raw};
use crate::{
    Collected, Connection, Direction, EndpointId, Error, HoldCount, HoldKey, IdentityNumber,
    PeerNumber,
    clock::nanoseconds,
    types::{to_addr, to_ip},
};

const SECOND: u64 = 1_000_000_000;

impl Tables {
    /// The flows that are known.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn connections(&self) -> Result<Vec<Connection>, Error> {
        self.connections.all(|key, value| Connection {
            local: (to_ip(key.local), u16::from_be(key.local_port)),
            remote: (to_ip(key.remote), u16::from_be(key.remote_port)),
            protocol: key.proto,
            endpoint: EndpointId(value.endpoint),
            local_identity: IdentityNumber(value.local),
            remote_identity: IdentityNumber(value.remote),
            peer: PeerNumber(value.peer),
            opened: Direction::from_number(value.direction),
            rule: value.rule,
            last_seen: Duration::from_nanos(value.last_seen),
        })
    }

    /// Forgets flows whose time is over, and counts what each endpoint has left. To be called
    /// every few seconds. A flow that opens meanwhile may be counted twice until the next time.
    ///
    /// # Errors
    /// A map could not be read or written.
    pub fn collect(&self, now: Duration) -> Result<Collected, Error> {
        let now = nanoseconds(now);
        let before: HashMap<u32, layout::Usage> = self
            .usage
            .all(|endpoint, usage| (endpoint, usage))?
            .into_iter()
            .collect();
        let taken_before = self.taken()?;
        let all = self.connections.all(|key, value| {
            let lifetime = layout::lifetime(key.proto, value.flags) * SECOND;
            let stale = now.saturating_sub(value.last_seen) > lifetime;
            (key, value, stale)
        })?;
        let mut collected = Collected::default();
        let mut left: HashMap<u32, (u32, u32)> = HashMap::new();
        for (key, value, stale) in all {
            if stale {
                self.connections.remove(&key)?;
                collected.removed += 1;
            } else {
                // As the gates count: what is over takes no live one's place.
                let (live, over) = left.entry(value.endpoint).or_default();
                let ended = key.proto == TCP && layout::is_over(value.flags);
                *(if ended { over } else { live }) += 1;
                collected.left += 1;
            }
        }
        for (endpoint, mut usage) in self.usage.all(|endpoint, usage| (endpoint, usage))? {
            let (live, over) = left.get(&endpoint).copied().unwrap_or_default();
            let before = before.get(&endpoint).copied().unwrap_or_default();
            usage.connections = counted(live, before.connections, usage.connections);
            usage.over = counted(over, before.over, usage.over);
            self.usage.set(&endpoint, &usage)?;
        }
        let left = u32::try_from(collected.left).unwrap_or(u32::MAX);
        let places = counted(left, taken_before, self.taken()?);
        self.set_taken(places)?;
        Ok(collected)
    }

    /// Places of `connections` that the gates take for taken.
    fn taken(&self) -> Result<u32, Error> {
        let taken = raw::lock(&self.taken).get(&0, 0);
        let taken = taken.map_err(|source| Error::Map {
            map: "taken",
            source,
        })?;
        // There are fewer places than that; less than nothing stays recognisable.
        Ok(taken as u32)
    }

    pub(super) fn set_taken(&self, places: u32) -> Result<(), Error> {
        raw::lock(&self.taken)
            .set(0, u64::from(places), 0)
            .map_err(|source| Error::Map {
                map: "taken",
                source,
            })
    }

    /// Forgets the flows of an endpoint.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn remove_connections(&self, endpoint: EndpointId) -> Result<(), Error> {
        self.connections
            .retain(|_, value| value.endpoint != endpoint.0)
    }

    /// How much is held under a key, as the gates count it.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn held(&self, key: &HoldKey) -> Result<HoldCount, Error> {
        let wanted = layout::HoldKey {
            endpoint: key.endpoint.0,
            direction: key.direction.number(),
            quota: layout::quota::PAIR,
            reserved: 0,
            remote: to_addr(key.remote),
        };
        let all = self
            .holds
            .all(|key, value| (key == wanted).then_some(value))?;
        Ok(all
            .into_iter()
            .flatten()
            .next()
            .map_or(HoldCount::default(), to_count))
    }

    /// How much is held in all.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn held_total(&self) -> Result<HoldCount, Error> {
        raw::lock(&self.hold_total)
            .get(&0, 0)
            .map(to_count)
            .map_err(|source| Error::Map {
                map: "hold_total",
                source,
            })
    }

    /// Forgets everything that was held: for an agent that starts, since what its predecessor had
    /// is lost. Takes the hold device out of the settings first, so that no gate counts meanwhile;
    /// [`Kernel::attach_hold`](crate::Kernel::attach_hold) puts it back.
    ///
    /// # Errors
    /// A map could not be written.
    pub fn reset_holds(&self) -> Result<(), Error> {
        self.change_config(|config| config.hold = 0)?;
        // A program that read the settings before is done long before this.
        std::thread::sleep(Duration::from_millis(10));
        self.parked.clear()?;
        self.holds.clear()?;
        raw::lock(&self.hold_total)
            .set(0, layout::HoldValue::default(), 0)
            .map_err(|source| Error::Map {
                map: "hold_total",
                source,
            })
    }

    /// Removes the counts of keys that hold nothing any more. To be called every few seconds. A packet
    /// that a gate counts at the same moment may be un-counted from an entry made later, which is then
    /// less than nothing: the gates take it for nothing, and the next call removes it.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn tidy_holds(&self) -> Result<(), Error> {
        self.holds
            .retain(|_, value| value.packets.cast_signed() > 0)
    }
}

/// What an endpoint has: what was found, and what the gates have added while all were looked at. To list a full map
/// takes long enough for a flood to fill another.
fn counted(found: u32, before: u32, now: u32) -> u32 {
    let added = now.wrapping_sub(before).cast_signed().max(0);
    found.saturating_add_signed(added)
}

/// Less than nothing is nothing.
fn count(value: u64) -> u64 {
    u64::try_from(value.cast_signed()).unwrap_or(0)
}

fn to_count(value: layout::HoldValue) -> HoldCount {
    HoldCount {
        packets: count(value.packets),
        bytes: count(value.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gates_add_while_flows_are_listed_is_kept() {
        assert_eq!(counted(10, 50, 50), 10, "what stood there was wrong");
        assert_eq!(counted(10, 50, 80), 40);
        assert_eq!(counted(10, 50, 20), 10, "what went is not taken off twice");
        // Less than nothing before, as where two CPUs finished one flow.
        assert_eq!(counted(0, 1u32.wrapping_neg(), 3), 4);
        assert_eq!(counted(u32::MAX, 0, 9), u32::MAX);
    }
}
