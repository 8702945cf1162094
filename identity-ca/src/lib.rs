//! The authority: keys, issuing, attestation, registry, bundles; and the SVID verifier.
