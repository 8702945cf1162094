//! A node's first certificate for anything but a join token, and every later one after it was evicted.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use rustls::InconsistentKeys;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::TrustDomain;
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::connect::{Trust, connect};
use super::join::{Joined, joined};
use super::refused;
use crate::attest::{CHALLENGE, SCHEMES, X509POP, signed_message};
use crate::bundle::{Fingerprint, TrustBundle, sha256};
use crate::certificate::{CsrKey, PrivateKey};
use crate::deny::DenyList;
use crate::proto::attest_reply::Step;
use crate::verify::Verifier;
use crate::{Error, now_ms, proto};

/// For all of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Challenges that are answered.
const MAX_CHALLENGES: usize = 8;

/// How a node recognises the CA before it has a certificate of it.
#[derive(Debug, Clone)]
pub enum CaTrust {
    /// By the trust bundle, which an operator carried over.
    Bundle(TrustBundle),
    /// By the fingerprint of the root.
    Root(TrustDomain, Fingerprint),
}

impl CaTrust {
    fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Bundle(bundle) => bundle.trust_domain(),
            Self::Root(trust_domain, _) => trust_domain,
        }
    }
}

/// One kind of attestation, on the node's side.
pub trait Attestation: Send + Sync {
    /// Its name, as the CA knows it.
    fn kind(&self) -> &str;

    /// What the node claims to be.
    fn claim(&self) -> Result<Vec<u8>, Error>;

    /// The answer to a challenge. The certificate is asked for the key whose
    /// hash (SHA-256) is `key_hash`: the answer must be good for it alone.
    fn answer(
        &self,
        trust_domain: &TrustDomain,
        challenge: &[u8],
        key_hash: &[u8; 32],
    ) -> Result<Vec<u8>, Error>;
}

/// Attests to the CA at `HOST:PORT`: makes a key, proves who this node is, and
/// gets its certificate.
pub async fn attest(
    address: &str,
    trust: &CaTrust,
    attestation: &dyn Attestation,
) -> Result<Joined, Error> {
    let exchange = timeout(PATIENCE, exchange(address, trust, attestation));
    exchange.await.map_err(|_| Error::Unreachable {
        address: format!("the CA at {address}"),
        problem: "the attestation did not end within 30 s".to_owned(),
    })?
}

async fn exchange(
    address: &str,
    trust: &CaTrust,
    attestation: &dyn Attestation,
) -> Result<Joined, Error> {
    let trust_domain = trust.trust_domain();
    let recognised = match trust {
        CaTrust::Bundle(bundle) => {
            let verifier = Verifier::new(bundle.clone(), DenyList::empty());
            Trust::Bundle(Box::new(verifier))
        }
        CaTrust::Root(trust_domain, root) => Trust::Root(trust_domain.clone(), *root),
    };
    let mut client = connect(address, &recognised, None).await?;
    let key = PrivateKey::generate()?;
    let csr = key.csr()?;
    let key_hash = sha256(CsrKey::read(&csr)?.point());
    let (requests, outgoing) = mpsc::channel(1);
    let say = |request| async {
        let sent = requests.send(request).await;
        sent.map_err(|_| Error::Protocol("the CA ended the attestation".to_owned()))
    };
    say(proto::AttestRequest {
        kind: attestation.kind().to_owned(),
        payload: attestation.claim()?,
        csr,
        now_ms: now_ms(),
    })
    .await?;
    let replies = client.attest(ReceiverStream::new(outgoing)).await;
    let mut replies = replies.map_err(refused)?.into_inner();
    for _ in 0..=MAX_CHALLENGES {
        let reply = replies.message().await.map_err(refused)?;
        match reply.and_then(|reply| reply.step) {
            Some(Step::Challenge(challenge)) => {
                let payload = attestation.answer(trust_domain, &challenge, &key_hash)?;
                say(proto::AttestRequest {
                    payload,
                    now_ms: now_ms(),
                    ..Default::default()
                })
                .await?;
            }
            Some(Step::Joined(reply)) => return joined(reply, trust_domain, key),
            None => break,
        }
    }
    Err(Error::Protocol(
        "the CA ended the attestation without a certificate".to_owned(),
    ))
}

/// A certificate that another CA gave this machine, and its key.
#[derive(Clone)]
pub struct X509Pop {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

impl X509Pop {
    /// Reads PEM files: the chain, leaf first, and the private key.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, Error> {
        let bad =
            |path: &Path, problem: String| Error::invalid(path.display().to_string(), problem);
        let text = std::fs::read(chain).map_err(Error::io("cannot read", chain))?;
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| bad(chain, format!("not a certificate in PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(bad(chain, "no certificate in PEM is in it".to_owned()));
        }
        let text = std::fs::read(key).map_err(Error::io("cannot read", key))?;
        let text = zeroize::Zeroizing::new(text);
        let der = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|error| bad(key, format!("not a private key in PEM: {error}")))?;
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
            .map_err(|error| bad(key, error.to_string()))?;
        let pair = CertifiedKey::new(certificates, signing);
        if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) =
            pair.keys_match()
        {
            let of = chain.display();
            return Err(bad(
                key,
                format!("is not the key of the certificate in {of}"),
            ));
        }
        Ok(Self {
            chain: pair.cert,
            key: pair.key,
        })
    }
}

impl Attestation for X509Pop {
    fn kind(&self) -> &str {
        X509POP
    }

    fn claim(&self) -> Result<Vec<u8>, Error> {
        let chain = self.chain.iter().map(|der| der.to_vec()).collect();
        Ok(proto::X509PopClaim { chain }.encode_to_vec())
    }

    fn answer(
        &self,
        trust_domain: &TrustDomain,
        challenge: &[u8],
        key_hash: &[u8; 32],
    ) -> Result<Vec<u8>, Error> {
        // Nothing is signed that could be anything else.
        if challenge.len() != CHALLENGE {
            return Err(Error::Protocol(format!(
                "a challenge of {} bytes",
                challenge.len()
            )));
        }
        let signer = self.key.choose_scheme(SCHEMES).ok_or_else(|| {
            Error::Crypto("the certificate's key is of no kind that TLS 1.3 signs with".to_owned())
        })?;
        let message = signed_message(trust_domain, challenge, key_hash);
        let signature = signer
            .sign(&message)
            .map_err(|error| Error::Crypto(error.to_string()))?;
        let scheme = u16::from(signer.scheme()).into();
        Ok(proto::X509PopAnswer { scheme, signature }.encode_to_vec())
    }
}

impl fmt::Debug for X509Pop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Pop({} certificates)", self.chain.len())
    }
}
