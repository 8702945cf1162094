//! The TLS 1.3 messages of an authenticator and of its request, to bytes and back (RFC 8446 section 4).
//!
//! Strict where RFC 9261 allows more than we ever send: contexts are 32 bytes, certificates carry no
//! extensions, and what follows the last message is an error.

use rustls_pki_types::CertificateDer;

use super::ProofError;

/// ecdsa_secp256r1_sha256: all our SVIDs are P-256, so this is the one scheme that is ever offered.
pub(super) const SCHEME: u16 = 0x0403;
/// Leaf, issuing CA and a cross-signed root, and one to spare.
const MAX_CHAIN: usize = 4;

const CERTIFICATE: u8 = 11;
const CERTIFICATE_REQUEST: u8 = 13;
const CERTIFICATE_VERIFY: u8 = 15;
const FINISHED: u8 = 20;
const SIGNATURE_ALGORITHMS: u16 = 13;

/// The server's authenticator request that a granted context stands for (RFC 9261 section 4).
pub(super) fn request(context: &[u8; 32]) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    vector::<1>(&mut body, context);
    let mut extension = SIGNATURE_ALGORITHMS.to_be_bytes().to_vec();
    let mut schemes = Vec::new();
    vector::<2>(&mut schemes, &SCHEME.to_be_bytes());
    vector::<2>(&mut extension, &schemes);
    vector::<2>(&mut body, &extension);
    handshake(CERTIFICATE_REQUEST, &body)
}

/// Certificate, with its context; leaf first.
pub(super) fn certificate(context: &[u8; 32], chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut entries = Vec::new();
    for certificate in chain.iter() {
        vector::<3>(&mut entries, certificate);
        vector::<2>(&mut entries, &[]);
    }
    let mut body = Vec::with_capacity(entries.len() + 36);
    vector::<1>(&mut body, context);
    vector::<3>(&mut body, &entries);
    handshake(CERTIFICATE, &body)
}

/// CertificateVerify under [`SCHEME`].
pub(super) fn certificate_verify(signature: &[u8]) -> Vec<u8> {
    let mut body = SCHEME.to_be_bytes().to_vec();
    vector::<2>(&mut body, signature);
    handshake(CERTIFICATE_VERIFY, &body)
}

/// Finished.
pub(super) fn finished(mac: &[u8]) -> Vec<u8> {
    handshake(FINISHED, mac)
}

/// What CertificateVerify signs (RFC 9261 section 5.2.2).
pub(super) fn signature_content(transcript: &[u8]) -> Vec<u8> {
    let mut content = vec![0x20; 64];
    content.extend_from_slice(b"Exported Authenticator\0");
    content.extend_from_slice(transcript);
    content
}

/// An authenticator taken apart; nothing in it has been believed yet.
pub(super) struct Authenticator<'a> {
    /// The whole Certificate message, as it enters the transcript.
    pub certificate: &'a [u8],
    pub context: [u8; 32],
    pub chain: Vec<CertificateDer<'a>>,
    /// The whole CertificateVerify message.
    pub certificate_verify: &'a [u8],
    pub scheme: u16,
    pub signature: &'a [u8],
    pub mac: &'a [u8],
}

impl<'a> Authenticator<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ProofError> {
        let mut messages = Reader(bytes);
        let (certificate, body) = messages.handshake(CERTIFICATE)?;
        let (context, chain) = parse_certificate(body)?;
        let (certificate_verify, mut body) = messages.handshake(CERTIFICATE_VERIFY)?;
        let scheme = u16::from_be_bytes(body.array()?);
        let signature = body.vector::<2>()?;
        body.end()?;
        let (_, Reader(mac)) = messages.handshake(FINISHED)?;
        messages.end()?;
        Ok(Self {
            certificate,
            context,
            chain,
            certificate_verify,
            scheme,
            signature,
            mac,
        })
    }
}

fn parse_certificate(
    mut body: Reader<'_>,
) -> Result<([u8; 32], Vec<CertificateDer<'_>>), ProofError> {
    let context = body
        .vector::<1>()?
        .try_into()
        .map_err(|_| ProofError::Malformed("context is not 32 bytes"))?;
    let mut entries = Reader(body.vector::<3>()?);
    body.end()?;
    let mut chain = Vec::new();
    while !entries.0.is_empty() {
        if chain.len() == MAX_CHAIN {
            return Err(ProofError::TooLarge);
        }
        let certificate = entries.vector::<3>()?;
        if certificate.is_empty() {
            return Err(ProofError::Malformed("empty certificate"));
        }
        if !entries.vector::<2>()?.is_empty() {
            return Err(ProofError::Malformed(
                "certificate extension that nobody asked for",
            ));
        }
        chain.push(CertificateDer::from(certificate));
    }
    if chain.is_empty() {
        return Err(ProofError::Malformed("no certificate"));
    }
    Ok((context, chain))
}

/// Walks over foreign bytes; every step says whether there was enough.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// One handshake message of that type: the whole of it, and a reader of its body.
    fn handshake(&mut self, kind: u8) -> Result<(&'a [u8], Reader<'a>), ProofError> {
        let whole = self.0;
        let [found] = self.array()?;
        if found != kind {
            return Err(ProofError::Malformed("message of another type"));
        }
        let body = self.vector::<3>()?;
        let message = whole.get(..4 + body.len()).ok_or(SHORT)?;
        Ok((message, Reader(body)))
    }

    /// Bytes behind their length, which is `N` bytes long.
    fn vector<const N: usize>(&mut self) -> Result<&'a [u8], ProofError> {
        let length = self.array::<N>()?;
        let length = length
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProofError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn end(self) -> Result<(), ProofError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ProofError::Malformed("bytes left over"))
        }
    }
}

const SHORT: ProofError = ProofError::Malformed("cut off");

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    vector::<3>(&mut message, body);
    message
}

/// Appends `bytes` behind their length in `N` bytes. Callers stay far below what that can say:
/// an authenticator is at most 32 KiB.
fn vector<const N: usize>(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = bytes.len().to_be_bytes();
    out.extend(length.iter().skip(length.len() - N));
    out.extend_from_slice(bytes);
}
