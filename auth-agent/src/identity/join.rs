//! How a node gets its first SVID, and later ones after it was evicted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use handfast_ca::client::{Attestation, CaTrust, K8sPsat, X509Pop, attest};
use handfast_ca::token::JoinToken;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spiffe::SpiffeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::store::NodeStore;
use super::{IdentityError, Joined};

/// How a node proves who it is.
#[derive(Clone, Debug)]
pub enum Method {
    /// By a token that works once.
    Token {
        /// The file.
        file: PathBuf,
    },
    /// By the key of a certificate that another CA gave this machine; as often as needed.
    X509Pop {
        /// Where certificate and key are.
        files: X509PopFiles,
        /// `HOST:PORT` of the CA.
        ca_address: String,
        /// How the CA is recognised.
        trust: CaTrust,
    },
    /// By the token that a Kubernetes cluster keeps in a file of this agent's pod; as often as needed.
    K8sPsat {
        /// Where the token is.
        file: K8sPsatFile,
        /// `HOST:PORT` of the CA.
        ca_address: String,
        /// How the CA is recognised.
        trust: CaTrust,
    },
}

/// A projected service account token. Read at each attestation, since the kubelet renews it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct K8sPsatFile {
    /// The file.
    pub token: PathBuf,
    /// The Kubernetes node that this one is; none for whatever the token says.
    pub node: Option<String>,
}

/// By what a node can attest anew by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The key of another CA's certificate.
    X509pop(X509PopFiles),
    /// The cluster's token.
    K8sPsat(K8sPsatFile),
}

impl Standing {
    /// Ready to attest.
    pub fn read(&self) -> Result<Arc<dyn Attestation>, IdentityError> {
        match self {
            Self::X509pop(files) => files.read(),
            Self::K8sPsat(file) => Ok(Arc::new(K8sPsat {
                token: file.token.clone(),
                node: file.node.clone(),
            })),
        }
    }
}

/// PEM files of another CA's certificate for this machine. Read at each attestation, since others renew them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X509PopFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl X509PopFiles {
    /// Ready to answer a challenge.
    pub fn read(&self) -> Result<Arc<dyn Attestation>, IdentityError> {
        Ok(Arc::new(X509Pop::read(&self.certificate, &self.key)?))
    }
}

/// Gets this node's identity and keeps it in `data_dir`. With `again` a node that has one attests anew and stays who
/// it is.
///
/// # Errors
/// The folder holds an identity already and `again` is not set (no token is used then), the CA is not reached or not
/// the right one, it does not let the node in or takes it for another, or the disk refuses.
pub async fn join(method: &Method, data_dir: &Path, again: bool) -> Result<Joined, IdentityError> {
    // What the method needs is read before anything is made.
    let ready = Ready::of(method)?;
    let (store, before) = if again {
        let store = NodeStore::open(data_dir)?;
        let before = spiffe_id(&store)?;
        (store, Some(before))
    } else {
        (NodeStore::create(data_dir)?, None)
    };
    let joined = match &ready {
        Ready::Token(token) => handfast_ca::client::join(token).await?,
        Ready::Standing {
            ca_address,
            trust,
            by,
            ..
        } => attest(ca_address, trust, &**by).await?,
    };
    if let Some(was) = before
        && was != joined.node.spiffe_id
    {
        return Err(IdentityError::AnotherNode {
            was,
            would_be: joined.node.spiffe_id,
            dir: data_dir.to_owned(),
        });
    }
    let (ca_address, standing) = match &ready {
        Ready::Token(token) => (token.ca_address.as_str(), None),
        Ready::Standing {
            ca_address,
            standing,
            ..
        } => (ca_address.as_str(), Some(standing)),
    };
    store.save_joined(ca_address, standing, &joined)?;
    Ok(Joined {
        spiffe_id: joined.node.spiffe_id,
        not_after: joined.node.not_after,
    })
}

/// A method whose files were read.
enum Ready<'a> {
    Token(JoinToken),
    Standing {
        ca_address: &'a String,
        trust: &'a CaTrust,
        standing: Standing,
        by: Arc<dyn Attestation>,
    },
}

impl<'a> Ready<'a> {
    fn of(method: &'a Method) -> Result<Self, IdentityError> {
        let (standing, ca_address, trust) = match method {
            Method::Token { file } => return Ok(Self::Token(JoinToken::read(file)?)),
            Method::X509Pop {
                files,
                ca_address,
                trust,
            } => (Standing::X509pop(files.clone()), ca_address, trust),
            Method::K8sPsat {
                file,
                ca_address,
                trust,
            } => (Standing::K8sPsat(file.clone()), ca_address, trust),
        };
        Ok(Self::Standing {
            ca_address,
            trust,
            by: standing.read()?,
            standing,
        })
    }
}

/// Who the kept SVID says that this node is; it may have ended long ago.
fn spiffe_id(store: &NodeStore) -> Result<SpiffeId, IdentityError> {
    let identity = store.identity()?;
    let read = |der: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names
            .value
            .general_names
            .iter()
            .find_map(|name| match name {
                GeneralName::URI(uri) => SpiffeId::new(uri).ok(),
                _ => None,
            })
    };
    let damaged = || store.damaged_identity("its certificate names no SPIFFE ID");
    identity.chain.first().and_then(read).ok_or_else(damaged)
}
