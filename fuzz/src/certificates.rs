//! Certificates, requests, tokens, bundles and deny lists: what the CA and nodes read from strangers.
//!
//! A changed certificate never passes: every byte of it is under the signature, so a leaf that the verifier
//! takes must be one of the examples.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use handfast_ca::NodeName;
use handfast_ca::authority::{self, Authority, Setup};
use handfast_ca::bundle::TrustBundle;
use handfast_ca::certificate::{CsrKey, NodeBinding, PrivateKey, ProofBinding};
use handfast_ca::deny::DenyList;
use handfast_ca::token::JoinToken;
use handfast_ca::verify::Verifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;

struct Examples {
    verifier: Verifier,
    issuing: CertificateDer<'static>,
    leaves: Vec<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

static EXAMPLES: LazyLock<Examples> = LazyLock::new(examples);

pub fn run(data: &[u8]) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let now = UnixTime::since_unix_epoch(now);
    let chain = [CertificateDer::from(data), EXAMPLES.issuing.clone()];
    for chain in [&chain[..1], &chain[..]] {
        let accepted = [
            EXAMPLES.verifier.node(chain, now).is_ok(),
            EXAMPLES.verifier.proof(chain, now).is_ok(),
            EXAMPLES.verifier.workload(chain, now).is_ok(),
        ];
        let ours = EXAMPLES.leaves.iter().any(|leaf| leaf == data);
        assert!(
            ours || accepted == [false; 3],
            "a forged certificate passed"
        );
        assert!(
            accepted.iter().filter(|accepted| **accepted).count() <= 1,
            "one certificate passed as two kinds"
        );
    }
    if let Some(binding) = NodeBinding::decode(data) {
        assert_eq!(NodeBinding::decode(&binding.encode()), Some(binding));
    }
    if let Some(binding) = ProofBinding::decode(data) {
        assert_eq!(ProofBinding::decode(&binding.encode()), Some(binding));
    }
    let _ = CsrKey::read(data);
    if let Ok(bundle) = TrustBundle::from_bytes(data) {
        let again = TrustBundle::from_bytes(&bundle.to_bytes()).expect("what was read can be read");
        assert_eq!(again.to_bytes(), bundle.to_bytes());
    }
    if let Ok(list) = DenyList::from_bytes(data, EXAMPLES.verifier.bundle()) {
        assert_eq!(
            list.bytes(),
            data,
            "a deny list is relayed as it was signed"
        );
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = JoinToken::parse(text);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [EXAMPLES.leaves.clone(), EXAMPLES.others.clone()].concat()
}

fn examples() -> Examples {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("ca");
    let domain = "example.org".try_into().expect("a trust domain");
    let ranges = vec!["10.99.0.0/16".parse().expect("a range")];
    let setup = Setup::new(dir.clone(), domain, ranges);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(authority::init(&setup)).expect("a CA");
    let ca = runtime.block_on(Authority::open(&dir)).expect("a CA");
    let bundle = ca.bundle(1).expect("a bundle");
    let csr = PrivateKey::generate()
        .and_then(|key| key.csr())
        .expect("a request");
    let key = CsrKey::read(&csr).expect("a good request");
    let name: NodeName = "n1".parse().expect("a name");
    let id = SpiffeId::new("spiffe://example.org/web").expect("an ID");

    let node_binding = NodeBinding {
        name: name.clone(),
        prefixes: vec![
            "10.99.1.0/24".parse().expect("a prefix"),
            "fd00:99:1::/64".parse().expect("a prefix"),
        ],
        assignment: 4,
    };
    let proof_binding = ProofBinding {
        node: name,
        labels: [("run".to_owned(), "nginx".to_owned())]
            .into_iter()
            .collect(),
    };
    let dns = ["web.example.org".to_owned()];
    let issued = [
        ca.node_svid(&key, &node_binding).expect("a node SVID"),
        ca.proof_svid(&key, id.clone(), &proof_binding, None)
            .expect("a proof SVID"),
        ca.workload_svid(&key, id, &dns, None)
            .expect("a workload SVID"),
    ];
    Examples {
        verifier: Verifier::new(bundle.clone(), DenyList::empty()),
        issuing: issued[0].chain[1].clone(),
        leaves: issued
            .iter()
            .map(|issued| issued.chain[0].to_vec())
            .collect(),
        others: vec![
            csr,
            node_binding.encode(),
            proof_binding.encode(),
            bundle.to_bytes(),
            ca.sign_deny_list(7, &[]).expect("a deny list"),
        ],
    }
}
