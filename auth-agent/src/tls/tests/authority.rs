//! A small CA for tests: a root, node SVIDs and deny lists as `handfast_ca` reads them.

use handfast_ca::bundle::TrustBundle;
use handfast_ca::certificate::NodeBinding;
use handfast_ca::deny::DenyList;
use handfast_ca::verify::Verifier;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType, SigningKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::{SpiffeId, TrustDomain};
use time::{Duration, OffsetDateTime};

const NODE_BINDING: &[u64] = &[2, 25, 3_417_667_401_601_528_136, 1, 1];

pub(super) struct Authority {
    root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

pub(super) struct Svid {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

pub(super) fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://example.org/{path}")).unwrap()
}

pub(super) fn node_id(name: &str) -> SpiffeId {
    id(&format!("handfast/node/{name}"))
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "test");
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
    params
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = key();
        let mut params = params("spiffe://example.org");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// The SVID of a node, changed as the test wants.
    pub(super) fn node(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        let mut params = params(&node_id(name).to_string());
        let binding = NodeBinding {
            name: name.parse().unwrap(),
            prefixes: vec!["10.1.0.0/24".parse().unwrap()],
            assignment: 1,
        };
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            NODE_BINDING,
            binding.encode(),
        )];
        change(&mut params);
        self.leaf(params)
    }

    fn leaf(&self, mut params: CertificateParams) -> Svid {
        let key = key();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Svid {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    pub(super) fn verifier(&self) -> Verifier {
        Verifier::new(self.bundle(), DenyList::empty())
    }

    /// A verifier whose deny list has that node on it.
    pub(super) fn verifier_denying(&self, node: &str) -> Verifier {
        let body = Body {
            trust_domain: "example.org".into(),
            number: 1,
            issued_at_ms: OffsetDateTime::now_utc().unix_timestamp() as u64 * 1000,
            denials: vec![Denial {
                node: node.into(),
                reason: "test".into(),
            }],
        };
        let body = body.encode_to_vec();
        let signer = self.leaf(params(&id("handfast/deny-list").to_string()));
        let key = KeyPair::try_from(&signer.key).unwrap();
        let signature = key
            .sign(&[b"handfast deny list v1\0", body.as_slice()].concat())
            .unwrap();
        let chain = signer.chain.iter().map(|der| der.to_vec()).collect();
        let list = Signed {
            body,
            signature,
            chain,
        }
        .encode_to_vec();
        let list = DenyList::from_bytes(&list, &self.bundle()).unwrap();
        Verifier::new(self.bundle(), list)
    }

    fn bundle(&self) -> TrustBundle {
        let domain = TrustDomain::new("example.org").unwrap();
        TrustBundle::new(domain, 1, [self.root.clone()]).unwrap()
    }
}

#[derive(Clone, PartialEq, Message)]
struct Signed {
    #[prost(bytes = "vec", tag = "1")]
    body: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    chain: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    trust_domain: String,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint64, tag = "3")]
    issued_at_ms: u64,
    #[prost(message, repeated, tag = "4")]
    denials: Vec<Denial>,
}

#[derive(Clone, PartialEq, Message)]
struct Denial {
    #[prost(string, tag = "2")]
    node: String,
    #[prost(string, tag = "4")]
    reason: String,
}
