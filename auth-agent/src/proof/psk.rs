//! What binds the tunnel to the session (PROTOCOL.md, Tunnel keys): its preshared key, and the proof that a node
//! holds the tunnel key that it claims.

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::{Export, ProofError};

/// Private exporter labels begin with EXPERIMENTAL (RFC 5705 section 4).
const LABEL: &[u8] = b"EXPERIMENTAL handfast wireguard psk";
const TAG_LABEL: &[u8] = b"EXPERIMENTAL handfast wireguard key";

/// One end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKey<'a> {
    /// The node's full SPIFFE ID.
    pub node_id: &'a str,
    /// Its WireGuard public key, as its Hello said.
    pub tunnel_key: &'a [u8; 32],
}

/// The same 32 bytes on both nodes, and on no other, for this pair of keys in this session.
///
/// The exporter does not cover the client's certificate, so both node IDs stand in the context: in lexical
/// order, each with its tunnel key.
///
/// # Errors
/// [`ProofError::Session`] before the end of the handshake, or if both ends carry one name.
pub fn tunnel_psk(
    session: &(impl Export + ?Sized),
    one: NodeKey<'_>,
    other: NodeKey<'_>,
) -> Result<Zeroizing<[u8; 32]>, ProofError> {
    export(session, LABEL, one.min(other), one.max(other))
}

/// Shows that `maker` holds the private half of its tunnel key, to `other`, in this session and no other.
///
/// `agreed` is what X25519 gives of the one's private and the other's public tunnel key: nobody else can reckon it,
/// so that whoever claims a key that is not its own cannot make the tag. The maker comes first in the exporter's
/// context, so that a tag cannot be sent back.
///
/// # Errors
/// [`ProofError::Session`] before the end of the handshake, or if both ends carry one name.
pub fn tunnel_tag(
    session: &(impl Export + ?Sized),
    agreed: &[u8; 32],
    maker: NodeKey<'_>,
    other: NodeKey<'_>,
) -> Result<[u8; 32], ProofError> {
    let bound = export(session, TAG_LABEL, maker, other)?;
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, agreed), &*bound);
    tag.as_ref()
        .try_into()
        .map_err(|_| ProofError::Session("tag of another size"))
}

/// Whether a tag is the one that `maker` would make, in constant time.
///
/// # Errors
/// As [`tunnel_tag`].
pub fn check_tunnel_tag(
    session: &(impl Export + ?Sized),
    agreed: &[u8; 32],
    maker: NodeKey<'_>,
    other: NodeKey<'_>,
    tag: &[u8; 32],
) -> Result<bool, ProofError> {
    let bound = export(session, TAG_LABEL, maker, other)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, agreed);
    Ok(hmac::verify(&key, &*bound, tag).is_ok())
}

/// 32 bytes for this label and these ends, in this order, each part with two bytes of length before it.
fn export(
    session: &(impl Export + ?Sized),
    label: &[u8],
    first: NodeKey<'_>,
    second: NodeKey<'_>,
) -> Result<Zeroizing<[u8; 32]>, ProofError> {
    if first.node_id == second.node_id {
        return Err(ProofError::Session("a node has no tunnel to itself"));
    }
    let mut context = Vec::with_capacity(256);
    for end in [first, second] {
        for part in [end.node_id.as_bytes(), end.tunnel_key] {
            let length = u16::try_from(part.len())
                .map_err(|_| ProofError::Session("node ID is too long"))?;
            context.extend_from_slice(&length.to_be_bytes());
            context.extend_from_slice(part);
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    session.export(key.as_mut_slice(), label, &context)?;
    Ok(key)
}
