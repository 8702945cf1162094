//! From a session's secret to the keys of its security associations, each of which exists once.
//!
//! Both nodes derive the same sequence for each direction, so that nothing about keys has to be said between
//! them: key number 0 is the first of a session, and each re-keying takes the next. A number that was taken is
//! never given again, whether its installation worked or not. Otherwise a key could start a second time at
//! sequence number 0, and AES-GCM would be broken (the class of CVE-2024-28860).

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use zeroize::Zeroizing;

use crate::{Error, PresharedKey, PublicKey};

/// AES-256 and the salt of RFC 4106 section 8.1.
const KEY_BYTES: usize = 36;
/// SPIs below are reserved (RFC 4303 section 2.1).
const FIRST_SPI: u32 = 256;
const LABEL: &[u8] = b"handfast esp 1";

/// Which way packets go, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the peer to this node.
    In,
    /// From this node to the peer.
    Out,
}

/// The keys of one session with one peer.
pub(super) struct Chain {
    secret: PresharedKey,
    us: PublicKey,
    them: PublicKey,
    next: [u32; 2],
}

/// What one security association is made of. It is used up by being installed: there is no second one.
pub(super) struct Material {
    /// Security parameters index, host byte order.
    pub(super) spi: u32,
    /// Number of the key in its session and direction.
    pub(super) counter: u32,
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl Material {
    /// Key and salt, as `rfc4106(gcm(aes))` takes them.
    pub(super) fn key(&self) -> &[u8; KEY_BYTES] {
        &self.key
    }
}

/// What a derivation is for.
#[derive(Clone, Copy)]
enum Purpose {
    Spi = 1,
    Key = 2,
    Fingerprint = 3,
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Chain {
    /// The keys of a session. `secret` is its exporter's, whose context holds both node IDs and both tunnel
    /// keys; the tunnel keys stand for the nodes here.
    pub(super) fn new(secret: PresharedKey, us: PublicKey, them: PublicKey) -> Self {
        Self {
            secret,
            us,
            them,
            next: [0, 0],
        }
    }

    /// The next key of a direction, which is used up thereby.
    pub(super) fn next(&mut self, direction: Direction) -> Result<Material, Error> {
        let next = match direction {
            Direction::In => &mut self.next[0],
            Direction::Out => &mut self.next[1],
        };
        let counter = *next;
        *next = counter.checked_add(1).ok_or(Error::KeysExhausted)?;
        let mut spi = [0; 4];
        self.expand(Purpose::Spi, direction, &counter.to_be_bytes(), &mut spi)?;
        let spi = match u32::from_be_bytes(spi) {
            spi @ FIRST_SPI.. => spi,
            reserved => reserved + FIRST_SPI,
        };
        let mut context = [0; 8];
        context[..4].copy_from_slice(&spi.to_be_bytes());
        context[4..].copy_from_slice(&counter.to_be_bytes());
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        self.expand(Purpose::Key, direction, &context, key.as_mut())?;
        Ok(Material { spi, counter, key })
    }

    /// Tells sessions apart without keeping their secrets.
    pub(super) fn fingerprint(&self) -> Result<[u8; 16], Error> {
        let mut fingerprint = [0; 16];
        self.expand(Purpose::Fingerprint, Direction::Out, &[], &mut fingerprint)?;
        Ok(fingerprint)
    }

    /// HKDF-Expand (RFC 5869) over label, purpose, sender, receiver and the rest.
    fn expand(
        &self,
        purpose: Purpose,
        direction: Direction,
        context: &[u8],
        out: &mut [u8],
    ) -> Result<(), Error> {
        let (sender, receiver) = match direction {
            Direction::In => (&self.them, &self.us),
            Direction::Out => (&self.us, &self.them),
        };
        let info = [
            LABEL,
            &[purpose as u8],
            sender.as_bytes(),
            receiver.as_bytes(),
            context,
        ];
        let secret = Prk::new_less_safe(HKDF_SHA256, self.secret.secret());
        let derived = secret
            .expand(&info, Length(out.len()))
            .and_then(|derived| derived.fill(out));
        derived.map_err(|_| Error::Derivation)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ends(secret: u8) -> [Chain; 2] {
        let keys = [PublicKey::new([1; 32]), PublicKey::new([2; 32])];
        let secret = || PresharedKey::new(Zeroizing::new([secret; 32]));
        [
            Chain::new(secret(), keys[0], keys[1]),
            Chain::new(secret(), keys[1], keys[0]),
        ]
    }

    #[test]
    fn what_one_end_sends_with_the_other_receives_with() {
        let [mut a, mut b] = ends(7);
        for counter in 0..3 {
            let (sent, received) = (
                a.next(Direction::Out).unwrap(),
                b.next(Direction::In).unwrap(),
            );
            assert_eq!((sent.counter, received.counter), (counter, counter));
            assert_eq!((sent.spi, sent.key()), (received.spi, received.key()));
        }
    }

    #[test]
    fn no_key_and_no_spi_comes_twice() {
        let mut seen = BTreeSet::new();
        for secret in [7, 8] {
            let [mut a, _] = ends(secret);
            for _ in 0..50 {
                for direction in [Direction::In, Direction::Out] {
                    let made = a.next(direction).unwrap();
                    assert!(seen.insert(made.key().to_vec()));
                    assert!(seen.insert(made.spi.to_be_bytes().to_vec()));
                    assert!(made.spi >= FIRST_SPI);
                }
            }
        }
    }

    #[test]
    fn a_fingerprint_is_a_sessions_own_and_at_its_end_is_the_last_key() {
        let ([mut a, b], [other, _]) = (ends(7), ends(8));
        assert_ne!(a.fingerprint().unwrap(), other.fingerprint().unwrap());
        assert_ne!(a.fingerprint().unwrap(), b.fingerprint().unwrap());
        a.next[1] = u32::MAX;
        assert!(matches!(a.next(Direction::Out), Err(Error::KeysExhausted)));
        assert!(a.next(Direction::In).is_ok());
    }

    #[test]
    fn the_derivation_is_hkdf_expand_over_what_is_written_down() {
        let [mut a, _] = ends(7);
        let made = a.next(Direction::Out).unwrap();
        // Worked out with Python's hmac, following RFC 5869 section 2.3.
        assert_eq!(format!("{:08x}", made.spi), "eabdf45a");
        let hex: String = made
            .key()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "d16ea0ac1c30df695fc7448b2914d3c91792549fb366a4cc03fcfde3fc3fd87e568b7f25"
        );
    }
}
