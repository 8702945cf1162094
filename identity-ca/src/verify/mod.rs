//! Whose certificate is this? Library path validation, then SPIFFE's rules, then ours.
//!
//! Everything is asked of the end-entity certificate, which is the first of
//! the chain and the only one whose key the peer has proven.

#[cfg(test)]
mod conformance;
mod domains;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use crate::NodeName;
use crate::bundle::{TrustBundle, sha256};
use crate::certificate::{NodeBinding, ProofBinding};
use crate::deny::DenyList;
use crate::model::{Labels, Serial, Subject};
use crate::names::{audit_id, deny_list_id, is_reserved, node_id, server_id};

pub use self::domains::Domains;
use self::rules::{Leaf, Usage};
pub(crate) use self::rules::{check_intermediate, check_root};

/// Certificates of a chain that are looked at.
pub const MAX_CHAIN: usize = 8;
/// Bytes of one certificate that are looked at.
pub const MAX_CERTIFICATE: usize = 16 << 10;

/// Why a certificate was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// No certificate, or more or longer ones than are looked at.
    #[error("a chain of {0} certificates, or too long a one")]
    Chain(usize),
    /// Not a certificate.
    #[error("not a well-formed certificate")]
    Malformed,
    /// The path does not end in the bundle, or a signature is wrong.
    #[error("no valid path to the trust bundle: {0}")]
    Path(String),
    /// Not yet, or no longer, valid.
    #[error("valid from {not_before} to {not_after} (unix seconds), but it is {now}")]
    Time {
        /// From.
        not_before: u64,
        /// To.
        not_after: u64,
        /// The verifier's clock.
        now: u64,
    },
    /// One of SPIFFE's rules, by its number in SPIFFE.md.
    #[error("not an X509-SVID ({rule}): {problem}")]
    Spiffe {
        /// The rule's number.
        rule: &'static str,
        /// How it is broken.
        problem: &'static str,
    },
    /// Another trust domain than the bundle's.
    #[error("trust domain {0:?} is not ours")]
    TrustDomain(String),
    /// A certificate of another kind.
    #[error("not a {expected}: {problem}")]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// On the deny list.
    #[error("revoked: {0}")]
    Denied(String),
}

/// A verified node SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSvid {
    /// The node's full SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// Its name.
    pub name: NodeName,
    /// The addresses that its workloads may have.
    pub prefixes: Vec<ipnet::IpNet>,
    /// Higher when a prefix was given anew.
    pub assignment: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// The certificate's serial number.
    pub serial: Serial,
    /// SHA-256 of the certificate.
    pub leaf_hash: [u8; 32],
}

/// A verified proof SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofSvid {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The node whose agent holds the key: must be the session's peer.
    pub node: NodeName,
    /// The identity's labels.
    pub labels: Labels,
    /// Unix seconds.
    pub not_after: u64,
    /// The certificate's serial number.
    pub serial: Serial,
    /// SHA-256 of the certificate.
    pub leaf_hash: [u8; 32],
}

/// A verified workload SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadSvid {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Unix seconds.
    pub not_after: u64,
    /// The certificate's serial number.
    pub serial: Serial,
    /// SHA-256 of the certificate.
    pub leaf_hash: [u8; 32],
}

/// Verifies certificates of one trust domain against its bundle and deny list.
#[derive(Debug, Clone)]
pub struct Verifier {
    bundle: Arc<TrustBundle>,
    deny: Arc<DenyList>,
}

impl Verifier {
    /// A verifier for the bundle's trust domain.
    pub fn new(bundle: impl Into<Arc<TrustBundle>>, deny: impl Into<Arc<DenyList>>) -> Self {
        Self {
            bundle: bundle.into(),
            deny: deny.into(),
        }
    }

    /// The bundle it verifies against.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The deny list it verifies against.
    pub fn deny_list(&self) -> &DenyList {
        &self.deny
    }

    /// Is this a node SVID? `chain`: DER, leaf first.
    pub fn node(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<NodeSvid, Rejection> {
        let kind = |problem| Rejection::Kind {
            expected: "node SVID",
            problem,
        };
        let leaf = self.leaf(chain, now, Usage::Tls)?;
        let binding = leaf
            .node_binding
            .as_deref()
            .ok_or(kind("it has no node extension"))?;
        let NodeBinding {
            name,
            prefixes,
            assignment,
        } = NodeBinding::decode(binding).ok_or(kind("its node extension is malformed"))?;
        if leaf.proof_binding.is_some() {
            return Err(kind("it is a proof SVID as well"));
        }
        if node_id(self.bundle.trust_domain(), &name).ok().as_ref() != Some(&leaf.id) {
            return Err(kind("its SPIFFE ID is not that of the node it names"));
        }
        self.allowed(&leaf, Some(&name))?;
        Ok(NodeSvid {
            spiffe_id: leaf.id,
            name,
            prefixes,
            assignment,
            not_after: leaf.not_after,
            serial: leaf.serial,
            leaf_hash: hash(chain),
        })
    }

    /// Is this a proof SVID? The caller compares its node with the session's peer.
    pub fn proof(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ProofSvid, Rejection> {
        let kind = |problem| Rejection::Kind {
            expected: "proof SVID",
            problem,
        };
        let leaf = self.leaf(chain, now, Usage::Proof)?;
        let binding = leaf
            .proof_binding
            .as_deref()
            .ok_or(kind("it has no proof extension"))?;
        let ProofBinding { node, labels } =
            ProofBinding::decode(binding).ok_or(kind("its proof extension is malformed"))?;
        if leaf.node_binding.is_some() || is_reserved(&leaf.id) {
            return Err(kind("it belongs to a node, not to a workload"));
        }
        self.allowed(&leaf, Some(&node))?;
        Ok(ProofSvid {
            spiffe_id: leaf.id,
            node,
            labels,
            not_after: leaf.not_after,
            serial: leaf.serial,
            leaf_hash: hash(chain),
        })
    }

    /// Is this a plain workload SVID?
    pub fn workload(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<WorkloadSvid, Rejection> {
        let leaf = self.leaf(chain, now, Usage::Tls)?;
        if leaf.node_binding.is_some() || leaf.proof_binding.is_some() || is_reserved(&leaf.id) {
            return Err(Rejection::Kind {
                expected: "workload SVID",
                problem: "it belongs to handfast itself",
            });
        }
        self.allowed(&leaf, None)?;
        Ok(WorkloadSvid {
            spiffe_id: leaf.id,
            not_after: leaf.not_after,
            serial: leaf.serial,
            leaf_hash: hash(chain),
        })
    }

    /// Is this the CA's own server?
    pub(crate) fn server(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Rejection> {
        let leaf = self.leaf(chain, now, Usage::Tls)?;
        if server_id(self.bundle.trust_domain()).ok().as_ref() != Some(&leaf.id) {
            return Err(Rejection::Kind {
                expected: "CA server",
                problem: "its SPIFFE ID is not that of the CA",
            });
        }
        self.allowed(&leaf, None)
    }

    /// Did the CA's deny list key sign this?
    pub(crate) fn deny_list_signature(
        &self,
        chain: &[CertificateDer<'_>],
        issued: UnixTime,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Rejection> {
        let signer = deny_list_id(self.bundle.trust_domain());
        self.statement("deny list", signer.ok(), chain, issued, message, signature)
    }

    /// The signature of an audit log's head, made at `issued`.
    pub(crate) fn audit_head_signature(
        &self,
        chain: &[CertificateDer<'_>],
        issued: UnixTime,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Rejection> {
        let signer = audit_id(self.bundle.trust_domain());
        self.statement("audit head", signer.ok(), chain, issued, message, signature)
    }

    /// What only the CA's own `signer` may state.
    fn statement(
        &self,
        expected: &'static str,
        signer: Option<SpiffeId>,
        chain: &[CertificateDer<'_>],
        issued: UnixTime,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Rejection> {
        let kind = |problem| Rejection::Kind { expected, problem };
        let leaf = self.leaf(chain, issued, Usage::Tls)?;
        if signer.as_ref() != Some(&leaf.id) {
            return Err(kind("its signer may not sign such a thing"));
        }
        let first = chain.first().ok_or(Rejection::Chain(0))?;
        EndEntityCert::try_from(first)
            .map_err(|_| Rejection::Malformed)?
            .verify_signature(ECDSA_P256_SHA256, message, signature)
            .map_err(|_| kind("its signature is wrong"))
    }

    /// Path validation (RFC 5280, by the library) and SPIFFE's rules.
    fn leaf(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<Leaf, Rejection> {
        let too_long =
            chain.len() > MAX_CHAIN || chain.iter().any(|der| der.len() > MAX_CERTIFICATE);
        let (first, intermediates) = match chain {
            [first, intermediates @ ..] if !too_long => (first, intermediates),
            _ => return Err(Rejection::Chain(chain.len())),
        };
        let leaf = Leaf::read(first, self.bundle.trust_domain(), usage)?;
        leaf.check_time(now)?;
        let anchors = self.bundle.anchors(now);
        let end_entity = EndEntityCert::try_from(first).map_err(|_| Rejection::Malformed)?;
        // Who knows only an older root follows to a newer one.
        let shown = intermediates.iter().map(|der| der.as_ref());
        let known = self.bundle.cross_signed().map(|der| der.as_ref());
        let issuers: Vec<CertificateDer<'_>> = shown.chain(known).map(Into::into).collect();
        let path = end_entity
            .verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors,
                &issuers,
                now,
                usage,
                None,
                None,
            )
            .map_err(|error| Rejection::Path(format!("{error:?}")))?;
        for issuer in path.intermediate_certificates() {
            let serial = check_intermediate(&issuer.der(), self.bundle.trust_domain())?;
            self.allowed_subject(Subject::Serial(serial))?;
        }
        Ok(leaf)
    }

    fn allowed(&self, leaf: &Leaf, node: Option<&NodeName>) -> Result<(), Rejection> {
        self.allowed_subject(Subject::SpiffeId(leaf.id.clone()))?;
        self.allowed_subject(Subject::Serial(leaf.serial.clone()))?;
        node.map_or(Ok(()), |node| {
            self.allowed_subject(Subject::Node(node.clone()))?;
            // A node that is revoked by its SPIFFE ID vouches for nobody either.
            match node_id(self.bundle.trust_domain(), node) {
                Ok(id) => self.allowed_subject(Subject::SpiffeId(id)),
                Err(_) => Err(Rejection::Malformed),
            }
        })
    }

    fn allowed_subject(&self, subject: Subject) -> Result<(), Rejection> {
        if self.deny.denies(&subject) {
            return Err(Rejection::Denied(subject.to_string()));
        }
        Ok(())
    }
}

/// The library asks this of CA certificates too: ours carry no extended key
/// usage; one that does must allow what the leaf is used for. The leaf's own
/// usage is checked exactly by [`Leaf::read`].
impl ExtendedKeyUsageValidator for Usage {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut present = false;
        for usage in usages {
            present = true;
            if self.names(&usage?) {
                return Ok(());
            }
        }
        if present {
            Err(webpki::Error::BadDer)
        } else {
            Ok(())
        }
    }
}

fn hash(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    chain.first().map(|der| sha256(der)).unwrap_or_default()
}
