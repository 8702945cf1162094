//! The deny list: signed by the CA, numbered, dated, and relayed from node to node.
//!
//! A list is believed for its signature, not for who hands it over, so that a
//! node that cannot reach the CA still hears of a revocation.

use std::collections::HashSet;
use std::time::Duration;

use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::TrustBundle;
use crate::certificate::Signer;
use crate::model::{Denial, Serial, Subject};
use crate::verify::{Rejection, Verifier};
use crate::{Error, NodeName, proto};

/// A signed list with more bytes is not read.
pub const MAX_DENY_LIST: usize = 4 << 20;

const CONTEXT: &[u8] = b"handfast deny list v1\0";

/// A verified deny list.
#[derive(Debug, Clone, Default)]
pub struct DenyList {
    number: u64,
    issued_at_ms: u64,
    denials: Vec<Denial>,
    index: HashSet<Subject>,
    bytes: Vec<u8>,
}

impl DenyList {
    /// The list before any was heard: number 0, nobody denied.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads a signed list and verifies it against the bundle. The signer's
    /// certificate must have been valid when the list was issued. Whether the
    /// number is new is for the caller to compare: see [`DenyList::number`].
    pub fn from_bytes(bytes: &[u8], bundle: &TrustBundle) -> Result<Self, Error> {
        if bytes.len() > MAX_DENY_LIST {
            return Err(Error::Protocol(format!(
                "a deny list of {} bytes",
                bytes.len()
            )));
        }
        let signed = proto::SignedDenyList::decode(bytes)
            .map_err(|error| Error::Protocol(format!("deny list: {error}")))?;
        // Of what nobody has signed only so much is read as tells who should have.
        let body = Head::decode(signed.body.as_slice())
            .map_err(|error| Error::Protocol(format!("deny list: {error}")))?;
        if body.trust_domain != bundle.trust_domain().as_str() {
            return Err(Error::Rejected(Rejection::TrustDomain(body.trust_domain)));
        }
        let issued = UnixTime::since_unix_epoch(Duration::from_millis(body.issued_at_ms));
        let chain: Vec<CertificateDer<'_>> = signed
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let message = [CONTEXT, &signed.body].concat();
        Verifier::new(bundle.clone(), Self::empty()).deny_list_signature(
            &chain,
            issued,
            &message,
            &signed.signature,
        )?;
        let body = proto::DenyListBody::decode(signed.body.as_slice())
            .map_err(|error| Error::Protocol(format!("deny list: {error}")))?;
        let denials: Vec<Denial> = body
            .denials
            .into_iter()
            .map(Denial::try_from)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            number: body.number,
            issued_at_ms: body.issued_at_ms,
            index: denials
                .iter()
                .map(|denial| denial.subject.clone())
                .collect(),
            denials,
            bytes: bytes.to_vec(),
        })
    }

    /// What a CA that cannot sign judges by itself; it is handed to nobody.
    pub(crate) fn unsigned(number: u64, denials: Vec<Denial>) -> Self {
        let index = denials
            .iter()
            .map(|denial| denial.subject.clone())
            .collect();
        Self {
            number,
            issued_at_ms: crate::now_ms(),
            denials,
            index,
            bytes: Vec::new(),
        }
    }

    /// Higher is newer; a lower one than that which is stored must be refused.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the CA signed it (unix milliseconds by the CA's clock).
    pub fn issued_at_ms(&self) -> u64 {
        self.issued_at_ms
    }

    /// Who is denied, and why.
    pub fn denials(&self) -> &[Denial] {
        &self.denials
    }

    /// The signed list as it came, to be stored and relayed; empty if nobody has signed it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Is this subject on the list?
    pub fn denies(&self, subject: &Subject) -> bool {
        self.index.contains(subject)
    }

    /// Is this identity on the list?
    pub fn denies_id(&self, id: &spiffe::SpiffeId) -> bool {
        self.denies(&Subject::SpiffeId(id.clone()))
    }

    /// Is this node on the list?
    pub fn denies_node(&self, node: &NodeName) -> bool {
        self.denies(&Subject::Node(node.clone()))
    }

    /// The nodes on the list.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.denials
            .iter()
            .filter_map(|denial| match &denial.subject {
                Subject::Node(name) => Some(name),
                _ => None,
            })
    }

    /// Is this certificate on the list?
    pub fn denies_serial(&self, serial: &Serial) -> bool {
        self.denies(&Subject::Serial(serial.clone()))
    }
}

/// The beginning of a body: its lines are skipped.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    trust_domain: String,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint64, tag = "3")]
    issued_at_ms: u64,
}

/// Signs a list; [`DenyList::from_bytes`] reads it.
pub(crate) fn sign(
    trust_domain: &spiffe::TrustDomain,
    number: u64,
    issued_at_ms: u64,
    denials: &[Denial],
    signer: &dyn Signer,
    chain: &[CertificateDer<'static>],
) -> Result<Vec<u8>, Error> {
    let body = proto::DenyListBody {
        trust_domain: trust_domain.as_str().to_owned(),
        number,
        issued_at_ms,
        denials: denials.iter().map(proto::Denial::from).collect(),
    }
    .encode_to_vec();
    let signature = signer.sign(&[CONTEXT, &body].concat())?;
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    Ok(proto::SignedDenyList {
        body,
        signature,
        chain,
    }
    .encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{self, Authority, Setup};

    async fn authority() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        let trust_domain = authority::trust_domain("example.org").unwrap();
        authority::init(&Setup::new(dir.clone(), trust_domain, vec![]))
            .await
            .unwrap();
        let authority = Authority::open(&dir).await.unwrap();
        (folder, authority)
    }

    fn denials() -> Vec<Denial> {
        let subject = Subject::Node("web1".parse().unwrap());
        vec![Denial {
            subject,
            reason: "lost".to_owned(),
            since_ms: 5,
        }]
    }

    #[tokio::test]
    async fn a_list_is_believed_for_its_signature_alone() {
        let (_folder, ours) = authority().await;
        let (_folder, theirs) = authority().await;
        let bytes = ours.sign_deny_list(7, &denials()).unwrap();
        let list = DenyList::from_bytes(&bytes, &ours.bundle(1).unwrap()).unwrap();
        assert_eq!(
            (list.number(), list.denials(), list.bytes()),
            (7, &*denials(), &*bytes)
        );
        assert!(DenyList::from_bytes(&bytes, &theirs.bundle(1).unwrap()).is_err());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let read = DenyList::from_bytes(&damaged, &ours.bundle(1).unwrap());
            // Nothing that still reads says anything else.
            assert!(
                read.is_err() || read.unwrap().denials() == denials(),
                "byte {at}"
            );
        }
    }

    #[tokio::test]
    async fn a_workload_certificate_signs_no_list() {
        let (_folder, ca) = authority().await;
        let key = crate::certificate::PrivateKey::generate().unwrap();
        let request = crate::certificate::CsrKey::read(&key.csr().unwrap()).unwrap();
        let id = spiffe::SpiffeId::new("spiffe://example.org/web").unwrap();
        let svid = ca.workload_svid(&request, id, &[], None).unwrap();
        let forged = sign(
            ca.trust_domain(),
            9,
            crate::now_ms(),
            &[],
            &key,
            &svid.chain,
        )
        .unwrap();
        let error = DenyList::from_bytes(&forged, &ca.bundle(1).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("may not sign such a thing"), "{error}");
    }
}
