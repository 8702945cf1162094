//! Keys that cannot be mistaken for one another, and secrets that are never printed and wiped when dropped.

use std::fmt;

use aws_lc_rs::agreement;
use wireguard_control::Key;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of every WireGuard key.
const KEY_BYTES: usize = 32;

/// A node's public tunnel key (X25519); what Hello carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Takes the key as it came from the wire. Every 32 bytes are a public key to WireGuard.
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key as it goes on the wire.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    /// Base64, as `wg` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Key(self.0).to_base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A node's private tunnel key: made here, given to the device, never stored.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; KEY_BYTES]>);

impl PrivateKey {
    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut key = Key::generate_private();
        let secret = Self(Zeroizing::new(key.0));
        key.0.zeroize();
        secret
    }

    pub(crate) fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        let mut key = Key(*self.0);
        let public = PublicKey(key.get_public().0);
        key.0.zeroize();
        public
    }

    /// What X25519 gives of this key and another's public one: only the two holders can reckon it. `None` for a
    /// public key that would make it the same for everybody.
    pub fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let own = agreement::PrivateKey::from_private_key(&agreement::X25519, &*self.0).ok()?;
        let other = agreement::UnparsedPublicKey::new(&agreement::X25519, other.as_bytes());
        agreement::agree(&own, other, (), |shared| {
            shared.try_into().map(Zeroizing::new).map_err(drop)
        })
        .ok()
    }

    pub(crate) fn secret(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// How a private key is written to a file that only root reads.
pub(crate) mod kept {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use zeroize::Zeroizing;

    use super::{KEY_BYTES, PrivateKey};

    pub(crate) fn serialize<S: Serializer>(key: &PrivateKey, to: S) -> Result<S::Ok, S::Error> {
        key.secret().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PrivateKey, D::Error> {
        let bytes = <[u8; KEY_BYTES]>::deserialize(from)?;
        Ok(PrivateKey::new(Zeroizing::new(bytes)))
    }
}

/// The preshared key of two tunnel keys, from the session's exporter (PROTOCOL.md, Tunnel keys).
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<[u8; KEY_BYTES]>);

impl PresharedKey {
    /// Takes the exporter's output. The caller wipes his own copy, or hands over the only one.
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    pub(crate) fn secret(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agree_on_what_a_third_cannot_know() {
        let (one, two, third) = (
            PrivateKey::generate(),
            PrivateKey::generate(),
            PrivateKey::generate(),
        );
        let agreed = one.agree(&two.public_key()).unwrap();
        assert_eq!(agreed, two.agree(&one.public_key()).unwrap());
        assert_ne!(agreed, third.agree(&one.public_key()).unwrap());
        assert_eq!(one.agree(&PublicKey::new([0; 32])), None);
    }

    #[test]
    fn a_private_key_is_fresh_and_has_the_public_half_of_wireguard() {
        let (one, two) = (PrivateKey::generate(), PrivateKey::generate());
        assert_ne!(one.public_key(), two.public_key());
        // As `wg pubkey` answers.
        let private = Key::from_base64("SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=").unwrap();
        assert_eq!(
            PrivateKey::new(Zeroizing::new(private.0))
                .public_key()
                .to_string(),
            "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8="
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let private = PrivateKey::generate();
        let preshared = PresharedKey::new(Zeroizing::new([0x5a; 32]));
        assert_eq!(
            format!("{private:?} {preshared:?}"),
            "PrivateKey(..) PresharedKey(..)"
        );
    }

    #[test]
    fn a_public_key_is_shown_as_wg_shows_it() {
        assert_eq!(
            PublicKey::new([0; 32]).to_string(),
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        );
    }
}
