//! The agent's folder on disk: identity, trust bundle, deny list, and what the CA said last.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::BASE64;
use handfast_ca::audit::AuditHead;
use handfast_ca::bundle::{TrustBundle, pem};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{Joined, Keyed, NodeIdentity};
use ipnet::IpNet;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{IdentityError, Standing};
use crate::files;

const IDENTITY: &str = "node.pem";
const SETTINGS: &str = "node.json";
const KNOWLEDGE: &str = "knowledge.json";
const FOREIGN: &str = "foreign.json";
const AUDIT_HEADS: &str = "audit-heads.json";

/// The agent's folder, 0700.
#[derive(Clone, Debug)]
pub struct NodeStore {
    dir: PathBuf,
}

/// Where to find the CA again.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Settings {
    ca_address: String,
    /// How this node may attest anew by itself; none for a node that joined by a token.
    #[serde(flatten)]
    standing: Option<Standing>,
}

/// What the CA said last, for a start without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// The update's number.
    pub sequence: u64,
    /// The nodes of the mesh.
    pub nodes: Vec<KnownNode>,
    /// Entries that apply to this node; shared with whoever serves by them.
    pub entries: Vec<Arc<KnownEntry>>,
    /// The CA's policies, the last that could be read.
    pub policies: Vec<KnownPolicy>,
    /// Those of this node's own files, the last that could be read.
    #[serde(default)]
    pub local_policies: Vec<KnownPolicy>,
    /// `HOST:PORT` of the CA's servers.
    #[serde(default)]
    pub servers: Vec<String>,
    /// Issuing CAs and JWT keys whose signatures are to be replaced.
    #[serde(default)]
    pub retired: Vec<String>,
}

impl Knowledge {
    /// All servers of the CA that are known, the one that this node joined first.
    pub fn servers(&self, joined: &str) -> Vec<String> {
        let mut servers = vec![joined.to_owned()];
        let others = self.servers.iter().filter(|server| *server != joined);
        servers.extend(others.cloned());
        servers
    }
}

/// What workloads need to judge others by, beside this trust domain's bundle.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    /// Bundles of other trust domains.
    pub federated: Vec<TrustBundle>,
    /// Revocation lists, DER.
    pub crls: Vec<Vec<u8>>,
}

/// The same as it is written.
#[derive(Default, Serialize, Deserialize)]
struct ForeignFile {
    federated: Vec<String>,
    crls: Vec<String>,
}

/// A node of the mesh, as a hint: what counts is its SVID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownNode {
    /// Its full SPIFFE ID.
    pub spiffe_id: String,
    /// Its name.
    pub name: String,
    /// Where its sessions are reached.
    pub underlay: Vec<SocketAddr>,
    /// The addresses of its workloads.
    pub prefixes: Vec<IpNet>,
    /// It is joining: cleartext to and from it is counted, not dropped.
    #[serde(default)]
    pub joining: bool,
}

/// An entry that applies to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownEntry {
    /// The registry's key of it.
    pub id: String,
    /// The identity.
    pub spiffe_id: String,
    /// `(kind, value)`; all must match.
    pub selectors: Vec<(String, String)>,
    /// What the CA signs into the proof SVID.
    pub labels: BTreeMap<String, String>,
    /// SPIFFE ID of the node that it is for; none for any.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// Names that the CA signs into workload SVIDs.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Life of workload SVIDs in seconds; none for the CA's default.
    #[serde(default)]
    pub ttl: Option<u32>,
    /// When it was made (unix milliseconds): the oldest that matches is a workload's default identity.
    #[serde(default)]
    pub created_at_ms: u64,
    /// Tells several identities of one workload apart.
    #[serde(default)]
    pub hint: String,
    /// Trust domains whose bundles its workloads get.
    #[serde(default)]
    pub federates_with: Vec<String>,
    /// From then on it counts as deleted (unix milliseconds).
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

impl Keyed for KnownNode {
    fn key(&self) -> &str {
        &self.name
    }
}

impl Keyed for KnownEntry {
    fn key(&self) -> &str {
        &self.id
    }
}

impl KnownEntry {
    /// Its selectors as [`super::matches`] takes them.
    pub fn selectors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.selectors
            .iter()
            .map(|(kind, value)| (kind.as_str(), value.as_str()))
    }

    /// Would the CA sign the same certificate for both?
    pub(super) fn signs_the_same(&self, other: &Self) -> bool {
        (&self.spiffe_id, &self.dns_names, self.ttl)
            == (&other.spiffe_id, &other.dns_names, other.ttl)
    }

    /// Is it over at this time (unix seconds)?
    pub(super) fn is_over(&self, now: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at / 1000 <= now)
    }

    /// Would what is signed for it today end no later than this (unix seconds)?
    pub(super) fn ends_by(&self, not_after: u64) -> bool {
        self.is_over(not_after)
    }
}

impl From<&handfast_ca::model::Entry> for KnownEntry {
    fn from(entry: &handfast_ca::model::Entry) -> Self {
        Self {
            id: entry.id.clone(),
            spiffe_id: entry.spiffe_id.to_string(),
            selectors: entry
                .selectors
                .iter()
                .map(|selector| (selector.kind.clone(), selector.value.clone()))
                .collect(),
            labels: entry.labels.clone(),
            parent_id: entry.parent_id.as_ref().map(ToString::to_string),
            dns_names: entry.dns_names.clone(),
            ttl: entry.workload_ttl_seconds,
            created_at_ms: entry.created_at_ms,
            hint: entry.hint.clone(),
            federates_with: entry
                .federates_with
                .iter()
                .map(ToString::to_string)
                .collect(),
            expires_at_ms: entry.expires_at_ms,
        }
    }
}

/// A policy document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPolicy {
    /// Its name in the registry.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Its version.
    pub version: u64,
}

impl NodeStore {
    /// Makes the folder for a node that has no identity yet. One that somebody else made for it, a kubelet for a volume
    /// of its host's, is made private if there is nothing in it yet.
    pub fn create(dir: &Path) -> Result<Self, IdentityError> {
        files::private_dir(dir)?;
        files::make_private_if_empty(dir)?;
        let store = Self::checked(dir)?;
        if store.path(IDENTITY).exists() {
            return Err(IdentityError::AlreadyJoined(dir.to_owned()));
        }
        Ok(store)
    }

    /// Opens the folder of a node that has joined.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        if !dir.join(IDENTITY).exists() {
            return Err(IdentityError::NotJoined(dir.to_owned()));
        }
        Self::checked(dir)
    }

    fn checked(dir: &Path) -> Result<Self, IdentityError> {
        let mode = fs::metadata(dir)
            .map_err(|source| files::FileError::Io {
                doing: "look at",
                path: dir.to_owned(),
                source,
            })?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::TooOpen {
                path: dir.to_owned(),
                mode,
            });
        }
        files::clear_leftovers(dir);
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Keeps what joining gave. The identity is written last: without it the node has not joined.
    pub fn save_joined(
        &self,
        ca_address: &str,
        standing: Option<&Standing>,
        joined: &Joined,
    ) -> Result<(), IdentityError> {
        let settings = Settings {
            ca_address: ca_address.to_owned(),
            standing: standing.cloned(),
        };
        files::write_json(&self.path(SETTINGS), &settings)?;
        self.save_joined_trust(joined.bundle.clone())?;
        self.save_identity(&joined.identity)
    }

    /// Keeps key and chain, in one file so that they always belong together.
    pub fn save_identity(&self, identity: &NodeIdentity) -> Result<(), IdentityError> {
        let mut text = Zeroizing::new(pem("PRIVATE KEY", &identity.key.to_pkcs8()));
        for certificate in &identity.chain {
            text.push_str(&pem("CERTIFICATE", certificate));
        }
        Ok(files::write(&self.path(IDENTITY), text.as_bytes())?)
    }

    /// The node's key and chain.
    pub fn identity(&self) -> Result<NodeIdentity, IdentityError> {
        let path = self.path(IDENTITY);
        let bytes = files::read(&path)?
            .map(Zeroizing::new)
            .ok_or_else(|| IdentityError::NotJoined(self.dir.clone()))?;
        let damaged = |problem: String| IdentityError::Damaged {
            path: path.clone(),
            problem,
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&bytes)
            .map_err(|error| damaged(format!("no private key ({error})")))?;
        let key = PrivateKey::from_pkcs8(key.secret_pkcs8_der())?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(format!("certificates cannot be read ({error})")))?;
        if chain.is_empty() {
            return Err(damaged("no certificate".into()));
        }
        Ok(NodeIdentity { chain, key })
    }

    /// `HOST:PORT` of the CA.
    pub fn ca_address(&self) -> Result<String, IdentityError> {
        files::read_json::<Settings>(&self.path(SETTINGS))?
            .map(|settings| settings.ca_address)
            .ok_or_else(|| IdentityError::NotJoined(self.dir.clone()))
    }

    /// How this node may attest anew by itself.
    pub fn standing(&self) -> Result<Option<Standing>, IdentityError> {
        let settings = files::read_json::<Settings>(&self.path(SETTINGS))?;
        Ok(settings.and_then(|settings| settings.standing))
    }

    /// What is said of a kept identity that makes no sense.
    pub(super) fn damaged_identity(&self, problem: &str) -> IdentityError {
        IdentityError::Damaged {
            path: self.path(IDENTITY),
            problem: problem.to_owned(),
        }
    }

    /// Keeps foreign bundles and revocation lists.
    pub fn save_foreign(&self, foreign: &Foreign) -> Result<(), IdentityError> {
        let file = ForeignFile {
            federated: foreign
                .federated
                .iter()
                .map(|bundle| BASE64.encode(&bundle.to_bytes()))
                .collect(),
            crls: foreign.crls.iter().map(|crl| BASE64.encode(crl)).collect(),
        };
        Ok(files::write_json(&self.path(FOREIGN), &file)?)
    }

    /// Foreign bundles and revocation lists, as last heard.
    pub fn foreign(&self) -> Result<Foreign, IdentityError> {
        let path = self.path(FOREIGN);
        let file: ForeignFile = files::read_json(&path)?.unwrap_or_default();
        let federated = decoded(&path, &file.federated)?;
        let federated = federated.iter().map(|der| TrustBundle::from_bytes(der));
        Ok(Foreign {
            federated: federated.collect::<Result<_, _>>()?,
            crls: decoded(&path, &file.crls)?,
        })
    }

    /// Keeps how far the audit logs of the CA's servers had come.
    pub fn save_audit_heads<'a>(
        &self,
        heads: impl Iterator<Item = &'a AuditHead>,
    ) -> Result<(), IdentityError> {
        let heads: Vec<String> = heads.map(|head| BASE64.encode(head.bytes())).collect();
        Ok(files::write_json(&self.path(AUDIT_HEADS), &heads)?)
    }

    /// The signed heads in an agent's folder, or in a copy of its file of them, as they came: whoever has the bundle
    /// judges them.
    pub fn audit_heads_in(place: &Path) -> Result<Vec<Vec<u8>>, IdentityError> {
        let path = match place.is_dir() {
            true => place.join(AUDIT_HEADS),
            false => place.to_owned(),
        };
        let file: Option<Vec<String>> = files::read_json(&path)?;
        let none = || {
            IdentityError::Damaged {
            path: path.clone(),
            problem: "there are no heads of audit logs; an agent that has reached its CA keeps them there".to_owned(),
        }
        };
        decoded(&path, &file.ok_or_else(none)?)
    }

    /// How far they had come. Those whose signers nobody vouches for any more are left out.
    pub fn audit_heads(&self, bundle: &TrustBundle) -> Result<Vec<AuditHead>, IdentityError> {
        let path = self.path(AUDIT_HEADS);
        let file: Vec<String> = files::read_json(&path)?.unwrap_or_default();
        let heads = decoded(&path, &file)?;
        Ok(heads
            .iter()
            .filter_map(|head| AuditHead::from_bytes(head, bundle).ok())
            .collect())
    }

    /// Keeps what the CA said.
    pub fn save_knowledge(&self, knowledge: &Knowledge) -> Result<(), IdentityError> {
        Ok(files::write_json(&self.path(KNOWLEDGE), knowledge)?)
    }

    /// What the CA said last; nothing yet is empty.
    pub fn knowledge(&self) -> Result<Knowledge, IdentityError> {
        Ok(files::read_json(&self.path(KNOWLEDGE))?.unwrap_or_default())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn decoded(path: &Path, parts: &[String]) -> Result<Vec<Vec<u8>>, IdentityError> {
    let decoded = parts.iter().map(|part| BASE64.decode(part.as_bytes()));
    decoded
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Damaged {
            path: path.to_owned(),
            problem: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_as_it_was_kept_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::create(&dir.path().join("agent")).unwrap();
        let key = PrivateKey::generate().unwrap();
        let pkcs8 = key.to_pkcs8();
        let chain = vec![
            CertificateDer::from(vec![1; 300]),
            CertificateDer::from(vec![2; 200]),
        ];
        store
            .save_identity(&NodeIdentity {
                chain: chain.clone(),
                key,
            })
            .unwrap();
        let again = NodeStore::open(&dir.path().join("agent"))
            .unwrap()
            .identity()
            .unwrap();
        assert_eq!(again.chain, chain);
        assert_eq!(again.key.to_pkcs8(), pkcs8);
        let mode = fs::metadata(dir.path().join("agent/node.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), "x").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(
            NodeStore::create(dir.path()),
            Err(IdentityError::TooOpen { mode: 0o755, .. })
        ));
    }

    #[test]
    fn an_empty_folder_that_others_can_read_has_nothing_to_hide_and_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o755, 0o777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            NodeStore::create(dir.path()).unwrap();
            let now = fs::metadata(dir.path()).unwrap().permissions().mode();
            assert_eq!(now & 0o777, 0o700);
        }
    }

    #[test]
    fn a_node_that_has_joined_does_not_spend_another_token() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        let store = NodeStore::create(&agent).unwrap();
        store
            .save_identity(&NodeIdentity {
                chain: vec![CertificateDer::from(vec![1])],
                key: PrivateKey::generate().unwrap(),
            })
            .unwrap();
        assert!(matches!(
            NodeStore::create(&agent),
            Err(IdentityError::AlreadyJoined(_))
        ));
    }
}
