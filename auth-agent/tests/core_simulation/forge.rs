//! Authenticators that no honest node makes: any chain, signed by any key that the forger holds, with a right Finished.
//!
//! Written by hand after RFC 9261 and RFC 8446, not with the agent's own encoder, so that it also shows what the
//! agent takes for right.

use aws_lc_rs::{digest, hmac};
use handfast_agent::proof::Export;
use rustls_pki_types::CertificateDer;

use super::proofs::{Exporter, Term, minted};

/// An authenticator as the term says.
pub fn authenticator(
    exporter: &Exporter,
    term: &Term,
    chain: &[CertificateDer<'static>],
) -> Vec<u8> {
    let role = if term.by_dialler { "client" } else { "server" };
    let secret = |what: &str| {
        let label = format!("EXPORTER-{role} authenticator {what}");
        let mut secret = [0; 32];
        exporter.export(&mut secret, label.as_bytes(), &[]).unwrap();
        secret
    };
    let asked = term.request.map(|context| request(&context));
    let asked = asked.unwrap_or_default();
    let certificate = certificate(&term.request.unwrap_or([9; 32]), chain);

    let context = secret("handshake context");
    let transcript = hash(&[&context, &asked, &certificate]);
    let content = [&[0x20; 64][..], b"Exported Authenticator\0", &transcript].concat();
    let signature = sign(term.signer, &content);
    let mut verify = vec![4, 3];
    verify.extend(sized(2, &signature));
    let verify = message(15, &verify);

    let transcript = hash(&[&context, &asked, &certificate, &verify]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret("finished key"));
    let finished = message(20, hmac::sign(&key, &transcript).as_ref());
    [certificate, verify, finished].concat()
}

/// CertificateRequest with signature_algorithms: ecdsa_secp256r1_sha256.
fn request(context: &[u8; 32]) -> Vec<u8> {
    let mut body = sized(1, context);
    body.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    message(13, &body)
}

fn certificate(context: &[u8; 32], chain: &[CertificateDer<'static>]) -> Vec<u8> {
    let mut entries = Vec::new();
    for certificate in chain {
        entries.extend(sized(3, certificate));
        entries.extend([0, 0]);
    }
    let mut body = sized(1, context);
    body.extend(sized(3, &entries));
    message(11, &body)
}

fn sign(signer: u64, content: &[u8]) -> Vec<u8> {
    minted(signer).sign(content)
}

fn hash(parts: &[&[u8]]) -> Vec<u8> {
    let whole = parts.concat();
    digest::digest(&digest::SHA256, &whole).as_ref().to_vec()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(sized(3, body));
    message
}

fn sized(length: usize, bytes: &[u8]) -> Vec<u8> {
    let size = bytes.len().to_be_bytes();
    [&size[size.len() - length..], bytes].concat()
}
