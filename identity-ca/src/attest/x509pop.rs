//! x509pop: a node shows a certificate that another CA gave it (a device's, a cloud image's), and that it holds the key.
//!
//! It works as often as needed: a node that has lost everything of ours, or
//! was evicted, comes back by itself.

use std::path::PathBuf;

use prost::Message;
use rustls::SignatureScheme;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use spiffe::TrustDomain;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::rules::{Rule, Rules};
use super::{Caller, NodeAttestor, Proven};
use crate::bundle::{TrustBundle, sha256};
use crate::verify::{MAX_CERTIFICATE, MAX_CHAIN};
use crate::{Error, proto};

pub(crate) const KIND: &str = "x509pop";

/// Bytes of a challenge.
pub(crate) const CHALLENGE: usize = 32;

/// What an answer may be signed with: those of TLS 1.3.
pub(crate) const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Which certificates make which nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509PopConfig {
    /// PEM: the CAs whose certificates are taken.
    pub ca: PathBuf,
    /// The first rule that matches a certificate says which node it is.
    pub nodes: Vec<Rule>,
}

/// What is signed: for this CA, this challenge and this key alone.
pub(crate) fn signed_message(
    trust_domain: &TrustDomain,
    challenge: &[u8],
    key_hash: &[u8; 32],
) -> Vec<u8> {
    let domain = sha256(trust_domain.as_str().as_bytes());
    [
        b"handfast x509pop v1\0",
        domain.as_slice(),
        challenge,
        key_hash,
    ]
    .concat()
}

pub(super) struct X509Pop {
    trust_domain: TrustDomain,
    /// The roots of the other CA, in the form that checks them.
    roots: TrustBundle,
    rules: Rules,
}

impl X509Pop {
    pub(super) fn open(config: &X509PopConfig, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(&config.ca).map_err(Error::io("cannot read", &config.ca))?;
        let roots = TrustBundle::from_pem(trust_domain.clone(), &text)
            .map_err(|error| Error::invalid(config.ca.display().to_string(), error.to_string()))?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            roots,
            rules: Rules::check(&config.nodes)?,
        })
    }

    /// The chain ends in one of the roots and is valid now.
    fn verify_chain<'a>(
        &self,
        chain: &'a [CertificateDer<'a>],
    ) -> Result<EndEntityCert<'a>, Error> {
        let refuse = |problem: String| Error::Denied(format!("the node's certificate: {problem}"));
        let too_long =
            chain.len() > MAX_CHAIN || chain.iter().any(|der| der.len() > MAX_CERTIFICATE);
        let (first, issuers) = match chain {
            [first, issuers @ ..] if !too_long => (first, issuers),
            _ => {
                return Err(refuse(
                    "a chain of none, too many or too long ones".to_owned(),
                ));
            }
        };
        let now = crate::now();
        let anchors = self.roots.anchors(now);
        let leaf = EndEntityCert::try_from(first).map_err(|error| refuse(error.to_string()))?;
        leaf.verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            issuers,
            now,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(|error| refuse(format!("{error:?}")))?;
        Ok(leaf)
    }
}

#[tonic::async_trait]
impl NodeAttestor for X509Pop {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn attest(
        &self,
        claim: &[u8],
        key_hash: &[u8; 32],
        caller: &mut dyn Caller,
    ) -> Result<Proven, Error> {
        let malformed = |what: &str| Error::invalid("x509pop", format!("a malformed {what}"));
        let claim = proto::X509PopClaim::decode(claim).map_err(|_| malformed("claim"))?;
        let chain: Vec<CertificateDer<'_>> = claim
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        // Who is not worth a challenge gets none.
        self.verify_chain(&chain)?;
        let first = chain.first().ok_or_else(|| malformed("claim"))?;
        let order = {
            let (_, leaf) =
                X509Certificate::from_der(first).map_err(|_| malformed("certificate"))?;
            may_sign(&leaf)?;
            self.rules.node(first, &leaf)?
        };
        let challenge: [u8; CHALLENGE] = rand::random();
        let answer = caller.ask(challenge.to_vec()).await?;
        let answer =
            proto::X509PopAnswer::decode(answer.as_slice()).map_err(|_| malformed("answer"))?;
        let message = signed_message(&self.trust_domain, &challenge, key_hash);
        // The chain again: it may have run out while the answer was awaited.
        verify_answer(&self.verify_chain(&chain)?, &answer, &message)?;
        Ok(Proven::Node(order))
    }
}

/// A certificate that names its key's usages allows signing (RFC 5280 4.2.1.3).
fn may_sign(leaf: &X509Certificate<'_>) -> Result<(), Error> {
    match leaf.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.digital_signature() => Ok(()),
        _ => Err(Error::Denied(
            "the node's certificate: its key may not sign".to_owned(),
        )),
    }
}

fn verify_answer(
    leaf: &EndEntityCert<'_>,
    answer: &proto::X509PopAnswer,
    message: &[u8],
) -> Result<(), Error> {
    let scheme = u16::try_from(answer.scheme).map(SignatureScheme::from).ok();
    let scheme = scheme.filter(|scheme| SCHEMES.contains(scheme));
    let provider = crate::tls::provider();
    let known = provider.signature_verification_algorithms.mapping;
    let algorithms = known.iter().find(|(name, _)| Some(*name) == scheme);
    let algorithms = algorithms
        .map(|(_, algorithms)| *algorithms)
        .unwrap_or_default();
    let right = |algorithm: &&dyn rustls_pki_types::SignatureVerificationAlgorithm| {
        leaf.verify_signature(*algorithm, message, &answer.signature)
            .is_ok()
    };
    if algorithms.iter().any(right) {
        return Ok(());
    }
    Err(Error::Denied(
        "the answer is not signed with the key of the node's certificate".to_owned(),
    ))
}
