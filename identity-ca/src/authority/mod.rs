//! The keys that sign, and the folder that keeps them.
//!
//! A root signs issuing CAs; an issuing CA signs everything else. Nothing is
//! taken from a request but its key: the caller fills in the profile from the
//! registry. Which authority signs stands in the store, the private keys are
//! files of this server.

mod able;
mod crl;
mod folder;
mod issuing;
mod jwt;
mod keys;
mod lifetimes;
mod offline;
mod rebuilt;
mod record;
mod root;
mod seal;
mod set;
mod setup;
mod successor;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ipnet::IpNet;
use rcgen::{Issuer, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};

use crate::audit::{self, Position};
use crate::bundle::{Fingerprint, TrustBundle};
use crate::certificate::profile::{self, Profile, Serial20, Validity};
use crate::certificate::{CsrKey, NodeBinding, PrivateKey, ProofBinding, Signer, Signing};
use crate::model::{Denial, Serial};
use crate::names::{audit_id, deny_list_id, server_id};
use crate::registry::Store;
use crate::{Error, deny, node_id, now_ms, proto};

use self::able::Lease;
use self::folder::Folder;
use self::issuing::Issuing;
use self::keys::Keys;

pub(crate) use self::able::Moment;
pub use self::able::SIGN_WITHOUT_STORE;
pub(crate) use self::crl::Crl;
pub use self::folder::is_initialized;
pub(crate) use self::folder::{Lock, check_folder};
pub(crate) use self::jwt::JwtKey;
pub use self::lifetimes::{Lifetime, Lifetimes};
pub(crate) use self::offline::certificate;
pub use self::offline::{OfflineRoot, bring_root_key, install, request};
pub(crate) use self::rebuilt::{RootKey, SealedKey, rebuild};
pub(crate) use self::record::{Kind, Record, Standing, certificate_id};
pub(crate) use self::root::Root;
pub(crate) use self::set::Authorities;
pub use self::setup::{RootSource, Setup, init, trust_domain};
pub(crate) use self::successor::Brought;

/// Leaves are valid from a little before they were made, for clocks that are
/// a little behind.
const BACKDATE: u64 = 60;

/// A CA that was opened: able to sign. What it signs comes from the caller,
/// which is the server with its registry.
pub struct Authority {
    trust_domain: TrustDomain,
    prefix_ranges: Vec<IpNet>,
    lifetimes: Lifetimes,
    server: String,
    keys: Keys,
    lease: Lease,
    current: RwLock<Arc<Current>>,
}

/// What signs now; a server that was removed has neither.
struct Current {
    authorities: Authorities,
    issuing: Option<Arc<Issuing>>,
    jwt: Option<Arc<JwtKey>>,
}

/// A certificate that was just signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its serial number.
    pub serial: Serial,
    /// Unix seconds.
    pub not_after: u64,
}

impl Authority {
    /// Opens the CA in `dir`, after checking that nobody else can read it.
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        check_folder(dir)?;
        let store = open_store(dir).await?;
        let authority = Self::load(dir, None, &store).await;
        store.close().await;
        authority
    }

    /// Which server's folder `dir` is, and what its trust domain is and was verified with: no key is opened.
    pub async fn published(dir: &Path) -> Result<(String, TrustBundle), Error> {
        check_folder(dir)?;
        let folder = Folder::open(dir, None)?;
        let store = folder.open_store().await?;
        let mut reader = store.reader().acquire().await?;
        let records = Record::all(&mut reader).await;
        drop(reader);
        store.close().await;
        let bundle = Authorities::new(records?).remembered(&folder.trust_domain)?;
        Ok((folder.server, bundle))
    }

    /// Opens the keys in `dir` for the authorities of a store. Roots' keys may
    /// be sealed by the passphrase in a file.
    pub(crate) async fn load(
        dir: &Path,
        passphrase_file: Option<PathBuf>,
        store: &Store,
    ) -> Result<Self, Error> {
        let folder = Folder::open(dir, passphrase_file)?;
        let mut reader = store.reader().acquire().await?;
        let authorities = Authorities::new(Record::all(&mut reader).await?);
        drop(reader);
        let removed = authorities.removed(&folder.server);
        let current = Current::of(authorities, &folder.keys, &folder.server, None)?;
        if let Some(what) = current.missing() {
            return Err(match removed {
                Some(reason) => Error::NotSigning(reason),
                None => folder.explain(Error::Missing {
                    what,
                    name: folder.server.clone(),
                }),
            });
        }
        // Only now: a store that does not know what we sign with is not ours,
        // and no reason to destroy a key.
        folder.keys.tidy(current.authorities.all())?;
        let authority = Self {
            trust_domain: folder.trust_domain,
            prefix_ranges: folder.prefix_ranges,
            lifetimes: folder.lifetimes,
            server: folder.server,
            keys: folder.keys,
            lease: Lease::new(Duration::MAX),
            current: RwLock::new(Arc::new(current)),
        };
        authority.bundle(0)?;
        authority.check_root_key()?;
        Ok(authority)
    }

    /// Takes in what the store says now: who signs from here on.
    pub(crate) fn adopt(&self, records: Vec<Record>) -> Result<(), Error> {
        let before = self.current();
        let authorities = Authorities::new(records);
        let after = Current::of(authorities, &self.keys, &self.server, Some(&before))?;
        self.keys.tidy(after.authorities.all())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        Ok(())
    }

    /// A root's key that does not open is found out at the start, not in the
    /// middle of a rotation.
    fn check_root_key(&self) -> Result<(), Error> {
        let authorities = self.authorities();
        let Some(root) = authorities.active_root() else {
            return Ok(());
        };
        if self.keys.has(&root.key) {
            let key = self.keys.read(&root.key)?;
            Root::read(&root.der, &self.trust_domain)?.check_key(&key)?;
        }
        Ok(())
    }

    /// Whom it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The name of this server among those that share the trust domain.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn prefix_ranges(&self) -> &[IpNet] {
        &self.prefix_ranges
    }

    /// Lifetimes of what is signed.
    pub(crate) fn lifetimes(&self) -> &Lifetimes {
        &self.lifetimes
    }

    /// Instead of what the folder says, for as long as it is open.
    pub(crate) fn set_lifetime(&mut self, what: Lifetime, seconds: u64) -> Result<(), Error> {
        self.lifetimes.set(what, seconds)
    }

    /// All authorities of the trust domain.
    pub(crate) fn authorities(&self) -> Authorities {
        self.current().authorities.clone()
    }

    /// The root that join tokens name.
    pub(crate) fn root_fingerprint(&self) -> Fingerprint {
        let authorities = self.authorities();
        Fingerprint::of(authorities.active_root().map_or(&[], |root| &root.der))
    }

    /// The roots and JWT keys, as agents get them.
    pub fn bundle(&self, sequence: u64) -> Result<TrustBundle, Error> {
        self.authorities().bundle(&self.trust_domain, sequence)
    }

    /// Unix seconds.
    pub(crate) fn root_not_after(&self) -> Result<u64, Error> {
        let authorities = self.authorities();
        Ok(authorities
            .active_root()
            .map_or(0, |root| root.not_after_ms / 1000))
    }

    /// Unix seconds; 0 if there is none.
    pub(crate) fn issuing_not_after(&self) -> u64 {
        self.issuing().map_or(0, |issuing| issuing.not_after)
    }

    /// Changes when another issuing CA signs; none if there is none in its time.
    pub(crate) fn issuing_id(&self) -> Option<String> {
        let issuing = self.issuing().ok()?;
        issuing.check_time(now_ms() / 1000).ok()?;
        Some(certificate_id(&issuing.certificate))
    }

    /// Signs a node SVID.
    pub fn node_svid(&self, request: &CsrKey, binding: &NodeBinding) -> Result<Issued, Error> {
        self.in_touch()?;
        let id = node_id(&self.trust_domain, &binding.name)?;
        self.leaf(request, id, &Profile::Node(binding), self.lifetimes.node)
    }

    /// Signs a proof SVID; `life` in seconds, none for the default.
    pub fn proof_svid(
        &self,
        request: &CsrKey,
        id: SpiffeId,
        binding: &ProofBinding,
        life: Option<u64>,
    ) -> Result<Issued, Error> {
        self.in_touch()?;
        crate::model::check_labels(&binding.labels)?;
        let life = life.unwrap_or(self.lifetimes.proof);
        self.leaf(request, id, &Profile::Proof(binding), life)
    }

    /// Signs a workload SVID; `life` in seconds, none for the default.
    pub fn workload_svid(
        &self,
        request: &CsrKey,
        id: SpiffeId,
        dns_names: &[String],
        life: Option<u64>,
    ) -> Result<Issued, Error> {
        self.in_touch()?;
        let life = life.unwrap_or(self.lifetimes.workload);
        self.leaf(request, id, &Profile::Workload { dns_names }, life)
    }

    /// The certificate of the CA's own server, with its key. The chain holds
    /// the root too, for nodes that know only its fingerprint, and the roots'
    /// cross-signatures, for nodes that know only an older one.
    pub(crate) fn server_identity(
        &self,
        roots: &[CertificateDer<'static>],
    ) -> Result<(PrivateKey, Issued), Error> {
        let (key, mut issued) = self.own(server_id(&self.trust_domain)?, self.lifetimes.node)?;
        issued.chain.extend_from_slice(roots);
        Ok((key, issued))
    }

    /// Signs a deny list, which nodes verify and relay.
    pub fn sign_deny_list(&self, number: u64, denials: &[Denial]) -> Result<Vec<u8>, Error> {
        let (key, issued) = self.own(deny_list_id(&self.trust_domain)?, self.lifetimes.node)?;
        deny::sign(
            &self.trust_domain,
            number,
            now_ms(),
            denials,
            &key,
            &issued.chain,
        )
    }

    /// Signs how far this server's audit log has come.
    pub(crate) fn sign_audit_head(
        &self,
        server: &str,
        position: Position,
        at_ms: u64,
    ) -> Result<proto::AuditHead, Error> {
        let (key, issued) = self.own(audit_id(&self.trust_domain)?, self.lifetimes.node)?;
        audit::head::sign(server, position, at_ms, &key, &issued.chain)
    }

    /// Signs a leaf for a key that the CA makes for itself.
    fn own(&self, id: SpiffeId, life: u64) -> Result<(PrivateKey, Issued), Error> {
        let key = PrivateKey::generate()?;
        let request = CsrKey::read(&key.csr()?)?;
        let issued = self.leaf(&request, id, &Profile::Workload { dns_names: &[] }, life)?;
        Ok((key, issued))
    }

    fn leaf(
        &self,
        request: &CsrKey,
        spiffe_id: SpiffeId,
        profile: &Profile<'_>,
        life: u64,
    ) -> Result<Issued, Error> {
        let key = SubjectPublicKeyInfo::from_der(request.spki())?;
        let issuing = self.issuing()?;
        let now = now_ms() / 1000;
        issuing.check_time(now)?;
        let validity = Validity {
            not_before: now.saturating_sub(BACKDATE).max(issuing.not_before),
            not_after: now.saturating_add(life).min(issuing.not_after),
        };
        let number = Serial20::random();
        let params = profile::leaf(&spiffe_id, profile, validity, &number)?;
        let leaf = params.signed_by(&key, &issuing.issuer)?;
        let chain = vec![leaf.into(), issuing.certificate.clone()];
        Ok(Issued {
            spiffe_id,
            chain,
            serial: number.as_serial(),
            not_after: validity.not_after,
        })
    }

    /// What a node's SVID has to be followed by, for a node that knows only a
    /// root that has left the bundle.
    pub(crate) fn bridge(&self) -> Vec<CertificateDer<'static>> {
        self.authorities().cross_signed().collect()
    }

    /// What signs JWT-SVIDs now: take it anew for each token, since it rotates.
    pub(crate) fn jwt_key(&self) -> Result<Arc<JwtKey>, Error> {
        self.in_touch()?;
        self.current()
            .jwt
            .clone()
            .ok_or_else(|| self.has_no("JWT key"))
    }

    fn issuing(&self) -> Result<Arc<Issuing>, Error> {
        let issuing = self.current().issuing.clone();
        issuing.ok_or_else(|| self.has_no("issuing CA"))
    }

    fn has_no(&self, what: &str) -> Error {
        Error::NotSigning(format!("server {} has no active {what}", self.server))
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    /// Keys that are in memory already are not read again.
    fn of(
        authorities: Authorities,
        keys: &Keys,
        server: &str,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let issuing = authorities.active(Kind::Issuing, server);
        let jwt = authorities.active(Kind::Jwt, server);
        let known = before.and_then(|before| before.issuing.clone());
        let issuing = match (issuing, known) {
            (None, _) => None,
            (Some(record), Some(known)) if *known.certificate == *record.der => Some(known),
            (Some(record), _) => {
                let certificate = CertificateDer::from(record.der.clone());
                let key = keys.read(&record.key)?;
                Some(Arc::new(Issuing::new(certificate, key)?))
            }
        };
        let known = before.and_then(|before| before.jwt.clone());
        let jwt = match (jwt, known) {
            (None, _) => None,
            (Some(record), Some(known)) if known.key_id() == record.id => Some(known),
            (Some(record), _) => {
                let until = record.not_after_ms / 1000;
                Some(Arc::new(JwtKey::new(&keys.read(&record.key)?, until)?))
            }
        };
        Ok(Self {
            authorities,
            issuing,
            jwt,
        })
    }

    fn missing(&self) -> Option<&'static str> {
        match (&self.issuing, &self.jwt) {
            (None, _) => Some("active issuing CA of server"),
            (_, None) => Some("active JWT key of server"),
            _ => None,
        }
    }
}

/// Opens the registry of the CA in `dir`.
pub(crate) async fn open_store(dir: &Path) -> Result<Store, Error> {
    Folder::open(dir, None)?.open_store().await
}

type OwnIssuer = Issuer<'static, Signing<Arc<dyn Signer>>>;
