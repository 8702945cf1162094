//! The Workload API's messages (W-2, W-3, W-4), from what a workload gets.

use std::collections::{HashMap, HashSet};

use handfast_ca::bundle::TrustBundle;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroize;

use super::proto::{
    JwtBundlesResponse, Jwtsvid, JwtsvidResponse, X509BundlesResponse, X509svid, X509svidResponse,
};
use super::{JwtSvid, Material};

/// W-10.
const MAX_HINT: usize = 1024;

/// What a stream says, and remembers to have said.
pub(super) trait Said: Clone + PartialEq + Send + 'static {
    /// The same without private keys, which nobody needs once they are sent: a certificate tells them apart.
    fn without_keys(self) -> Self {
        self
    }
}

impl Said for X509svidResponse {
    fn without_keys(mut self) -> Self {
        for svid in &mut self.svids {
            svid.x509_svid_key.zeroize();
        }
        self
    }
}

impl Said for X509BundlesResponse {}
impl Said for JwtBundlesResponse {}

pub(super) fn x509_svids(material: &Material) -> X509svidResponse {
    let bundles = &material.bundles;
    let mut hints = Hints::default();
    let svids = material.svids.iter().map(|svid| X509svid {
        spiffe_id: svid.spiffe_id.to_string(),
        x509_svid: concatenated(&svid.chain),
        x509_svid_key: svid.key.to_vec(),
        bundle: roots(&bundles.own),
        hint: hints.unique(&svid.hint),
    });
    X509svidResponse {
        svids: svids.collect(),
        crl: material.crls.to_vec(),
        federated_bundles: by_trust_domain(bundles.federated.values(), roots),
    }
}

pub(super) fn x509_bundles(material: &Material) -> X509BundlesResponse {
    X509BundlesResponse {
        crl: material.crls.to_vec(),
        bundles: by_trust_domain(material.bundles.all(), roots),
    }
}

pub(super) fn jwt_bundles(material: &Material) -> JwtBundlesResponse {
    JwtBundlesResponse {
        bundles: by_trust_domain(material.bundles.all(), |bundle| {
            bundle.jwt_jwks().to_string().into_bytes()
        }),
    }
}

pub(super) fn jwt_svids(svids: &[JwtSvid]) -> JwtsvidResponse {
    let mut hints = Hints::default();
    let svids = svids.iter().map(|svid| Jwtsvid {
        spiffe_id: svid.spiffe_id.to_string(),
        svid: svid.token.to_string(),
        hint: hints.unique(&svid.hint),
    });
    JwtsvidResponse {
        svids: svids.collect(),
    }
}

/// A trust domain's CAs as concatenated DER.
pub(super) fn roots(bundle: &TrustBundle) -> Vec<u8> {
    concatenated(bundle.roots())
}

fn concatenated<'a>(
    certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Vec<u8> {
    certificates
        .into_iter()
        .flat_map(|certificate| certificate.iter().copied())
        .collect()
}

fn by_trust_domain<'a>(
    bundles: impl Iterator<Item = &'a TrustBundle>,
    content: impl Fn(&TrustBundle) -> Vec<u8>,
) -> HashMap<String, Vec<u8>> {
    bundles
        .map(|bundle| (bundle.trust_domain().id_string(), content(bundle)))
        .collect()
}

/// A hint means one SVID: of several with the same, the first keeps it.
#[derive(Default)]
struct Hints(HashSet<String>);

impl Hints {
    fn unique(&mut self, hint: &str) -> String {
        if hint.len() > MAX_HINT || !self.0.insert(hint.to_owned()) {
            return String::new();
        }
        hint.to_owned()
    }
}
