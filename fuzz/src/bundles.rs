//! SPIFFE bundles, bundle maps, JWT-SVIDs and the URLs of bundle endpoints: what comes from foreign trust domains.
//!
//! What was read is written and read again as the same; and no bytes make a token, since nobody here has the key.

use std::sync::LazyLock;

use handfast_ca::authority::{self, Authority, Setup};
use handfast_ca::bundle::{BundleMap, TrustBundle};
use handfast_ca::federation::Endpoint;
use handfast_ca::jwt;
use rustls_pki_types::UnixTime;
use spiffe::TrustDomain;

static BUNDLE: LazyLock<TrustBundle> = LazyLock::new(example);

pub fn run(data: &[u8]) {
    let domain = BUNDLE.trust_domain().clone();
    if let Ok(read) = TrustBundle::from_spiffe_json(domain.clone(), data) {
        let text = read.bundle.to_spiffe_json().to_string();
        let again = TrustBundle::from_spiffe_json(domain, text.as_bytes());
        let again = again.expect("what was written can be read").bundle;
        assert!(again.roots().eq(read.bundle.roots()));
        assert_eq!(again.jwt_keys(), read.bundle.jwt_keys());
        assert_eq!(again.sequence(), read.bundle.sequence());
    }
    if let Ok((map, _)) = BundleMap::from_spiffe_json(data) {
        let text = map.to_spiffe_json().to_string();
        let (again, _) = BundleMap::from_spiffe_json(text.as_bytes()).expect("it can be read");
        assert!(
            again
                .iter()
                .map(TrustBundle::trust_domain)
                .eq(map.iter().map(TrustBundle::trust_domain))
        );
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let known = |named: &TrustDomain| Some(&*BUNDLE).filter(|own| own.trust_domain() == named);
        let now = UnixTime::now();
        assert!(
            jwt::verify(text, "db", known, now).is_err(),
            "a forged token passed"
        );
        if let Ok(endpoint) = Endpoint::new(text, "https_web", "") {
            assert_eq!(endpoint.url().scheme(), "https");
        }
        let _ = TrustBundle::from_pem(BUNDLE.trust_domain().clone(), text);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = BUNDLE.to_spiffe_json().to_string();
    let map: BundleMap = [BUNDLE.clone()].into_iter().collect();
    let header = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIiwidHlwIjoiSldUIn0";
    let claims =
        "eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy93ZWIiLCJhdWQiOlsiZGIiXSwiZXhwIjo0MDAwMDAwMDAwfQ";
    vec![
        text.into_bytes(),
        map.to_spiffe_json().to_string().into_bytes(),
        format!("{header}.{claims}.{}", "A".repeat(86)).into_bytes(),
        b"https://partner.example:8443/bundle?x=1".to_vec(),
        BUNDLE.to_pem().into_bytes(),
    ]
}

fn example() -> TrustBundle {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("ca");
    let domain = TrustDomain::new("example.org").expect("a name");
    let setup = Setup::new(dir.clone(), domain, vec![]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        authority::init(&setup).await.expect("a CA");
        let authority = Authority::open(&dir).await.expect("the CA");
        authority.bundle(1).expect("its bundle")
    })
}
