//! Making and verifying one authenticator (RFC 9261 section 5).

use aws_lc_rs::{hmac, rand};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

use super::context::{ProofContext, Role};
use super::key::ProofKey;
use super::message::{self, Authenticator, SCHEME};
use super::{ProofError, message::signature_content};
use crate::core::planted::{Bug, planted};
use crate::wire::MAX_AUTHENTICATOR;

/// A chain whose first certificate's key is held by the session's peer. The chain itself has not been judged:
/// hand it to the SVID verifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedChain(Vec<CertificateDer<'static>>);

impl VerifiedChain {
    /// The certificates, end entity first; never empty.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// The certificates, end entity first; never empty.
    pub fn into_certificates(self) -> Vec<CertificateDer<'static>> {
        self.0
    }
}

/// Proves to the session's peer that we hold the key of `chain`'s first certificate.
///
/// A client answers `request`, one of the contexts that the server granted; a server speaks unasked and
/// passes `None`.
///
/// # Errors
/// [`ProofError::Role`] if `request` does not fit our role, [`ProofError::Key`] if the key is not the
/// certificate's, [`ProofError::TooLarge`] if the chain does not fit a frame.
pub fn make(
    session: &ProofContext,
    chain: &[CertificateDer<'_>],
    key: &ProofKey,
    request: Option<&[u8; 32]>,
) -> Result<Vec<u8>, ProofError> {
    let role = session.role();
    let asked = asked(role, request)?;
    let context = match request {
        Some(granted) => *granted,
        None => unpredictable()?,
    };
    if !chain.first().is_some_and(|leaf| key.belongs_to(leaf)) {
        return Err(ProofError::Key("not that of the first certificate"));
    }
    let certificate = message::certificate(&context, chain);
    if certificate.len() > MAX_AUTHENTICATOR {
        return Err(ProofError::TooLarge);
    }
    let transcript = session.transcript(role, &[&asked, &certificate]);
    let signature = key.sign(&signature_content(transcript.as_ref()))?;
    let certificate_verify = message::certificate_verify(&signature);
    let transcript = session.transcript(role, &[&asked, &certificate, &certificate_verify]);
    let mac = hmac::sign(&session.finished_key(role), transcript.as_ref());

    let authenticator = [
        certificate,
        certificate_verify,
        message::finished(mac.as_ref()),
    ]
    .concat();
    if authenticator.len() > MAX_AUTHENTICATOR {
        return Err(ProofError::TooLarge);
    }
    Ok(authenticator)
}

/// Checks an authenticator of the session's peer: whole, of this session, made by the peer and not by us,
/// answering `request` (a client's must answer one, a server's answers none), never seen before, and signed
/// by the key of its first certificate.
///
/// # Errors
/// [`ProofError`] names the first thing that is wrong.
pub fn verify(
    session: &ProofContext,
    bytes: &[u8],
    request: Option<&[u8; 32]>,
) -> Result<VerifiedChain, ProofError> {
    if bytes.len() > MAX_AUTHENTICATOR {
        return Err(ProofError::TooLarge);
    }
    let maker = session.role().peer();
    let asked = asked(maker, request)?;
    let parsed = Authenticator::parse(bytes)?;
    if request.is_some_and(|granted| *granted != parsed.context) {
        return Err(ProofError::WrongRequest);
    }
    if parsed.scheme != SCHEME {
        return Err(ProofError::Scheme(parsed.scheme));
    }
    // The MAC is cheap and only the two ends can make it, so it comes before the signature.
    let parts = [&asked, parsed.certificate, parsed.certificate_verify];
    let transcript = session.transcript(maker, &parts);
    let key = session.finished_key(maker);
    if !planted(Bug::ForeignSessionAccepted) {
        hmac::verify(&key, transcript.as_ref(), parsed.mac).map_err(|_| ProofError::Finished)?;
        check_signature(session, maker, &asked, &parsed)?;
    }
    session.spend(parsed.context)?;
    Ok(VerifiedChain(
        parsed
            .chain
            .into_iter()
            .map(CertificateDer::into_owned)
            .collect(),
    ))
}

fn check_signature(
    session: &ProofContext,
    maker: Role,
    asked: &[u8],
    parsed: &Authenticator<'_>,
) -> Result<(), ProofError> {
    let leaf = match planted(Bug::LastCertificateTaken) {
        false => parsed.chain.first(),
        true => parsed.chain.last(),
    };
    let leaf = leaf.ok_or(ProofError::Malformed("no certificate"))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|e| ProofError::Certificate(e.to_string()))?;
    let transcript = session.transcript(maker, &[asked, parsed.certificate]);
    let content = signature_content(transcript.as_ref());
    leaf.verify_signature(ECDSA_P256_SHA256, &content, parsed.signature)
        .map_err(|_| ProofError::Signature)
}

/// The request message that enters the transcript: a client's authenticator has one, a server's has none.
fn asked(maker: Role, request: Option<&[u8; 32]>) -> Result<Vec<u8>, ProofError> {
    match (maker, request) {
        (Role::Client, Some(context)) => Ok(message::request(context)),
        (Role::Server, None) => Ok(Vec::new()),
        (Role::Client, None) => Err(ProofError::Role("a client speaks only when asked")),
        (Role::Server, Some(_)) => Err(ProofError::Role("a server is never asked")),
    }
}

fn unpredictable() -> Result<[u8; 32], ProofError> {
    let mut context = [0; 32];
    rand::fill(&mut context).map_err(|_| ProofError::Key("no randomness"))?;
    Ok(context)
}
