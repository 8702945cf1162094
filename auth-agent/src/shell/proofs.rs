//! Proofs made and judged: the authenticator's cryptography, then the certificate's rules.

use std::time::Instant;

use handfast_ca::bundle::sha256;
use handfast_ca::verify::Verifier;
use rustls_pki_types::UnixTime;

use crate::core::{Identity, RemoteProof};
use crate::identity::serial_bytes;
use crate::metrics;
use crate::proof::{self, ProofContext};
use crate::wire::LeafHash;

/// Why a peer's authenticator is not believed.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) leaf_hash: Option<LeafHash>,
    pub(super) reason: String,
    /// `authenticator` or `certificate`.
    step: &'static str,
}

/// Judges a peer's authenticator: the session's keys, the certificate's signature, chain, SPIFFE rules, deny list.
/// That the certificate names the session's peer is for the core to demand.
pub(super) fn judge(
    context: &ProofContext,
    authenticator: &[u8],
    request: Option<&[u8; 32]>,
    verifier: &Verifier,
    wall: u64,
) -> Result<RemoteProof, Invalid> {
    let start = Instant::now();
    let judged = verify(context, authenticator, request, verifier, wall);
    let failure = judged.as_ref().err().map(|invalid| invalid.step);
    metrics::proof_verified(start.elapsed(), failure);
    judged
}

fn verify(
    context: &ProofContext,
    authenticator: &[u8],
    request: Option<&[u8; 32]>,
    verifier: &Verifier,
    wall: u64,
) -> Result<RemoteProof, Invalid> {
    let chain = proof::verify(context, authenticator, request)
        .map_err(|error| Invalid {
            leaf_hash: None,
            reason: error.to_string(),
            step: "authenticator",
        })?
        .into_certificates();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(wall));
    let svid = verifier.proof(&chain, now).map_err(|error| Invalid {
        leaf_hash: chain.first().map(|leaf| LeafHash(sha256(leaf))),
        reason: error.to_string(),
        step: "certificate",
    })?;
    Ok(RemoteProof {
        identity: Identity {
            spiffe_id: svid.spiffe_id.to_string(),
            labels: svid.labels,
        },
        node: svid.node.to_string(),
        leaf_hash: LeafHash(svid.leaf_hash),
        not_after: svid.not_after,
        serial: serial_bytes(&svid.serial),
    })
}
