//! The tunnel's preshared key, born from the session (PROTOCOL.md, Tunnel keys).

use zeroize::Zeroizing;

use super::{Export, ProofError};

/// Private exporter labels begin with EXPERIMENTAL (RFC 5705 section 4).
const LABEL: &[u8] = b"EXPERIMENTAL handfast wireguard psk";

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
/// order, each with its tunnel key, each with two bytes of length before it.
///
/// # Errors
/// [`ProofError::Session`] before the end of the handshake, or if both ends carry one name.
pub fn tunnel_psk(
    session: &(impl Export + ?Sized),
    one: NodeKey<'_>,
    other: NodeKey<'_>,
) -> Result<Zeroizing<[u8; 32]>, ProofError> {
    if one.node_id == other.node_id {
        return Err(ProofError::Session("a node has no tunnel to itself"));
    }
    let mut context = Vec::with_capacity(256);
    for end in [one.min(other), one.max(other)] {
        for part in [end.node_id.as_bytes(), end.tunnel_key] {
            let length = u16::try_from(part.len())
                .map_err(|_| ProofError::Session("node ID is too long"))?;
            context.extend_from_slice(&length.to_be_bytes());
            context.extend_from_slice(part);
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    session.export(key.as_mut_slice(), LABEL, &context)?;
    Ok(key)
}
