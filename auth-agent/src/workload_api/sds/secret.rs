//! Secrets by name.

use handfast_ca::bundle::{TrustBundle, pem, sha256};
use prost::Message;
use prost_types::Any;
use spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::super::proto::envoy::config::core::v3::data_source::Specifier;
use super::super::proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use super::super::proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use super::super::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret::Type,
};
use super::super::{Material, X509Svid};

/// What SDS hands out, and nothing else.
pub(super) const SECRET_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// The first identity's certificate.
const DEFAULT: &str = "default";
/// This trust domain's CAs, without regard to SPIFFE IDs.
const ROOT_CA: &str = "ROOTCA";
/// Every trust domain's CAs, each for its own SPIFFE IDs.
const ALL: &str = "ALL";

/// A secret that can be sent.
pub(super) struct Rendered {
    pub(super) name: String,
    /// Changes with the content; says nothing of a key.
    pub(super) version: String,
    pub(super) resource: Any,
}

/// The secret that `name` means for a workload; none if it has no such.
pub(super) fn secret(name: &str, material: &Material) -> Option<Rendered> {
    let bundles = &material.bundles;
    match name {
        DEFAULT => material.svids.first().map(|svid| certificate(name, svid)),
        ROOT_CA => Some(validation(
            name,
            CertificateValidationContext {
                trusted_ca: Some(bundle_pem(&bundles.own)),
                custom_validator_config: None,
            },
        )),
        ALL => Some(validator(name, bundles.all())),
        _ => match SpiffeId::new(name) {
            Ok(id) if !id.path().is_empty() => material
                .svids
                .iter()
                .find(|svid| svid.spiffe_id == id)
                .map(|svid| certificate(name, svid)),
            Ok(id) => bundles
                .of(id.trust_domain())
                .map(|bundle| validator(name, [bundle])),
            Err(_) => bundles
                .all()
                .find(|bundle| bundle.trust_domain().as_str() == name)
                .map(|bundle| validator(name, [bundle])),
        },
    }
}

/// The names of all that a workload has, for who asks for everything.
pub(super) fn names(material: &Material) -> Vec<String> {
    let svids = material.svids.iter().map(|svid| svid.spiffe_id.to_string());
    let bundles = material.bundles.all();
    svids
        .chain(bundles.map(|bundle| bundle.trust_domain().id_string()))
        .collect()
}

fn certificate(name: &str, svid: &X509Svid) -> Rendered {
    let chain: String = svid
        .chain
        .iter()
        .map(|certificate| pem("CERTIFICATE", certificate))
        .collect();
    let version = version(&[name.as_bytes(), chain.as_bytes()]);
    let key = Zeroizing::new(pem("PRIVATE KEY", &svid.key));
    let kind = Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain.into_bytes())),
        private_key: Some(inline(key.as_bytes().to_vec())),
    });
    rendered(name, version, kind)
}

fn validator<'a>(name: &str, bundles: impl IntoIterator<Item = &'a TrustBundle>) -> Rendered {
    let config = SpiffeCertValidatorConfig {
        trust_domains: bundles
            .into_iter()
            // A verifier that knows no CA of a trust domain refuses it, and the message too if one is named.
            .filter(|bundle| !bundle.is_empty())
            .map(|bundle| TrustDomain {
                name: bundle.trust_domain().to_string(),
                trust_bundle: Some(bundle_pem(bundle)),
            })
            .collect(),
    };
    let context = CertificateValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(TypedExtensionConfig {
            name: VALIDATOR.to_owned(),
            typed_config: Some(Any {
                type_url: VALIDATOR_TYPE.to_owned(),
                value: config.encode_to_vec(),
            }),
        }),
    };
    validation(name, context)
}

fn validation(name: &str, context: CertificateValidationContext) -> Rendered {
    let version = version(&[name.as_bytes(), &context.encode_to_vec()]);
    rendered(name, version, Type::ValidationContext(context))
}

fn rendered(name: &str, version: String, kind: Type) -> Rendered {
    let secret = Secret {
        name: name.to_owned(),
        r#type: Some(kind),
    };
    Rendered {
        name: name.to_owned(),
        version,
        resource: Any {
            type_url: SECRET_TYPE.to_owned(),
            value: secret.encode_to_vec(),
        },
    }
}

fn bundle_pem(bundle: &TrustBundle) -> DataSource {
    inline(bundle.to_pem().into_bytes())
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
    }
}

/// The same content has the same version, after a restart too.
pub(super) fn version(parts: &[&[u8]]) -> String {
    let mut whole = Vec::new();
    for part in parts {
        whole.extend_from_slice(&sha256(part));
    }
    let hash = sha256(&whole);
    let (short, _) = hash.split_at(hash.len() / 2);
    data_encoding::HEXLOWER.encode(short)
}
