//! The workloads' SVIDs that this server has signed and that have not expired.
//!
//! The deny list names identities and nodes; a CRL knows serial numbers. Kept
//! in memory as they are signed, 40 bytes each, so that a revocation does not
//! read the audit log again; after a start it is filled from there once.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use crate::model::Serial;
use crate::now_ms;

/// Fewer are not worth being looked through for what has expired.
const FEW: usize = 4096;
const SERIAL: usize = 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Serials {
    /// Names are kept as keyed hashes: whom a chance of 2^-64 hits besides has
    /// one serial number too many on a list.
    names: RandomState,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    all: Vec<One>,
    /// With so many, those that have expired are thrown out.
    full: usize,
}

#[derive(Debug, Clone, Copy)]
struct One {
    identity: u64,
    node: u64,
    /// Unix seconds.
    not_after: u32,
    /// With the zeros in front that a [`Serial`] leaves out.
    serial: [u8; SERIAL],
}

impl Serials {
    /// One more was signed; `node` is the name of the node that it was handed to.
    pub(super) fn add(&self, serial: &Serial, identity: &str, node: &str, not_after: u64) {
        let Some(padding) = SERIAL.checked_sub(serial.as_bytes().len()) else {
            return;
        };
        let mut bytes = [0; SERIAL];
        if let Some(place) = bytes.get_mut(padding..) {
            place.copy_from_slice(serial.as_bytes());
        }
        let one = One {
            identity: self.names.hash_one(identity),
            node: self.names.hash_one(node),
            not_after: u32::try_from(not_after).unwrap_or(u32::MAX),
            serial: bytes,
        };
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.all.len() >= live.full {
            let now = now_ms() / 1000;
            live.all.retain(|one| u64::from(one.not_after) >= now);
            live.full = (2 * live.all.len()).max(FEW);
        }
        live.all.push(one);
    }

    /// Which of them were signed for these identities or handed to these
    /// nodes, each with the time that stands with the name.
    pub(super) fn of(
        &self,
        identities: &HashMap<String, u64>,
        nodes: &HashMap<String, u64>,
    ) -> Vec<(Serial, u64)> {
        if identities.is_empty() && nodes.is_empty() {
            return Vec::new();
        }
        let hashed = |names: &HashMap<String, u64>| -> HashMap<u64, u64> {
            let hashed = names.iter();
            hashed
                .map(|(name, since)| (self.names.hash_one(name.as_str()), *since))
                .collect()
        };
        let (identities, nodes) = (hashed(identities), hashed(nodes));
        let now = now_ms() / 1000;
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let living = live
            .all
            .iter()
            .filter(|one| u64::from(one.not_after) >= now);
        living
            .filter_map(|one| {
                let since = identities
                    .get(&one.identity)
                    .or_else(|| nodes.get(&one.node))?;
                Some((Serial::from_bytes(&one.serial), *since))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::certificate::profile::Serial20;

    fn since(name: &str) -> HashMap<String, u64> {
        HashMap::from([(name.to_owned(), 7)])
    }

    #[test]
    fn what_was_signed_is_found_by_identity_and_by_node_until_it_expires() {
        let serials = Serials::default();
        let now = now_ms() / 1000;
        let some: Vec<Serial> = (0..3).map(|_| Serial20::random().as_serial()).collect();
        let short = Serial::from_bytes(&[0, 5]);
        serials.add(&some[0], "spiffe://example.org/a", "n1", now + 100);
        serials.add(&some[1], "spiffe://example.org/a", "n2", now + 100);
        serials.add(&some[2], "spiffe://example.org/a", "n1", now - 1);
        serials.add(&short, "spiffe://example.org/b", "n1", now + 100);
        let (none, a) = (HashMap::new(), since("spiffe://example.org/a"));
        assert_eq!(
            serials.of(&a, &none),
            [(some[0].clone(), 7), (some[1].clone(), 7)]
        );
        assert_eq!(
            serials.of(&none, &since("n1")),
            [(some[0].clone(), 7), (short, 7)]
        );
        assert!(serials.of(&none, &none).is_empty());
        assert!(
            serials.of(&since("n1"), &a).is_empty(),
            "each by its own kind"
        );
    }

    #[test]
    fn what_has_expired_takes_no_room() {
        let serials = Serials::default();
        let now = now_ms() / 1000;
        for round in 0..50_000_u64 {
            let life = if round % 100 == 0 { 100 } else { 0 };
            let serial = Serial20::random().as_serial();
            serials.add(
                &serial,
                "spiffe://example.org/a",
                "n1",
                (now + life).saturating_sub(1),
            );
        }
        let live = serials.live.lock().unwrap();
        assert!(live.all.len() <= FEW + 500, "{}", live.all.len());
    }

    #[test]
    fn a_hundred_thousand_are_looked_through_in_milliseconds() {
        let serials = Serials::default();
        let until = now_ms() / 1000 + 3600;
        for at in 0..100_000_u32 {
            let name = format!("spiffe://example.org/w{}", at % 1000);
            serials.add(&Serial20::random().as_serial(), &name, "n1", until);
        }
        let at = Instant::now();
        let found = serials.of(&since("spiffe://example.org/w5"), &since("n9"));
        let took = at.elapsed();
        assert_eq!(found.len(), 100);
        println!("100,000 looked through in {took:?}");
        assert!(took.as_millis() < 200, "{took:?}");
    }
}
