//! How many strangers are listened to at once: in all, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use super::TlsError;

/// Handshakes at once, of all strangers.
const MOST: usize = 128;
/// Handshakes at once from one IPv4 address or one IPv6 /64.
const MOST_FROM_ONE: usize = 8;

/// Everybody whose handshake has begun and not ended.
#[derive(Default)]
pub(super) struct Strangers(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

impl Strangers {
    /// Counts one in for as long as the returned guard lives.
    pub(super) fn enter(&self, address: IpAddr) -> Result<Stranger<'_>, TlsError> {
        let source = source(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= MOST {
            return Err(TlsError::Busy);
        }
        let from_one = counts.by_source.entry(source).or_default();
        if *from_one >= MOST_FROM_ONE {
            return Err(TlsError::BusyAddress);
        }
        *from_one += 1;
        counts.all += 1;
        Ok(Stranger {
            strangers: self,
            source,
        })
    }
}

/// One stranger being judged.
pub(super) struct Stranger<'a> {
    strangers: &'a Strangers,
    source: IpAddr,
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        let mut counts = self
            .strangers
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(from_one) = counts.by_source.get_mut(&self.source) {
            *from_one -= 1;
            if *from_one == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

/// Whoever has one address of an IPv6 network has all of its /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = v6.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_leaving_frees_them() {
        let strangers = Strangers::default();
        let network = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, n, 0, 0, n]);
        let guards: Vec<_> = (0..8)
            .map(|n| strangers.enter(network(n)).unwrap())
            .collect();
        assert_eq!(
            strangers.enter(network(9)).err(),
            Some(TlsError::BusyAddress)
        );
        assert!(strangers.enter([192, 0, 2, 1].into()).is_ok());
        drop(guards);
        assert!(strangers.enter(network(9)).is_ok());
        assert!(strangers.0.lock().unwrap().by_source.is_empty());
    }

    #[test]
    fn all_places_taken_means_busy() {
        let strangers = Strangers::default();
        let guards: Vec<_> = (0..128)
            .map(|n| strangers.enter([10, 0, 0, n].into()).unwrap())
            .collect();
        assert_eq!(
            strangers.enter([10, 0, 1, 1].into()).err(),
            Some(TlsError::Busy)
        );
        drop(guards);
        assert!(strangers.enter([10, 0, 1, 1].into()).is_ok());
    }
}
