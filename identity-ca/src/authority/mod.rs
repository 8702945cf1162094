//! The keys that sign, and the folder that keeps them.
//!
//! A root signs issuing CAs; an issuing CA signs everything else. Nothing is
//! taken from a request but its key: the caller fills in the profile from the
//! registry.

mod folder;
mod issuing;
mod jwt;
mod seal;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;
use rcgen::{CertificateParams, Issuer, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spiffe::{SpiffeId, TrustDomain};

use crate::audit::{self, Position};
use crate::bundle::{Fingerprint, TrustBundle};
use crate::certificate::profile::{self, Profile, Serial20, Validity};
use crate::certificate::{CsrKey, NodeBinding, PrivateKey, ProofBinding, Signer, Signing};
use crate::model::{Denial, Serial};
use crate::names::{audit_id, deny_list_id, server_id};
use crate::{Error, deny, node_id, now_ms, proto};

pub(crate) use self::folder::{Lock, STORE, check_folder};
use self::issuing::Issuing;
pub(crate) use self::jwt::JwtKey;

/// Leaves and CAs are valid from a little before they were made, for clocks
/// that are a little behind.
const BACKDATE: u64 = 60;
const DAY: u64 = 24 * 3600;
const ROOT_LIFE: u64 = 3650 * DAY;

/// How a CA is set up; fixed when it is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The folder that is made.
    pub dir: PathBuf,
    /// The trust domain that it signs for.
    pub trust_domain: TrustDomain,
    /// Nodes get prefixes out of these.
    pub prefix_ranges: Vec<IpNet>,
}

/// Lifetimes of what is signed, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lifetimes {
    /// Node SVIDs.
    pub node: u64,
    /// Proof SVIDs.
    pub proof: u64,
    /// Workload SVIDs, unless their entry says otherwise.
    pub workload: u64,
    /// Issuing CAs; renewed when half of it is over.
    pub issuing: u64,
    /// JWT-SVIDs, unless their entry says otherwise.
    pub jwt: u64,
    /// Keys that sign JWT-SVIDs; renewed when half of it is over.
    pub jwt_key: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            node: DAY,
            proof: DAY,
            workload: 3600,
            issuing: 90 * DAY,
            jwt: 300,
            jwt_key: 30 * DAY,
        }
    }
}

/// Reads the name of a trust domain as an operator writes it: lower case, no scheme, no path.
pub fn trust_domain(text: &str) -> Result<TrustDomain, Error> {
    let shown: String = text.chars().take(64).collect();
    let bad = |problem: String| Error::invalid(format!("trust domain {shown:?}"), problem);
    let domain = TrustDomain::new(text)
        .map_err(|error| bad(format!("{error} (an example: example.org)")))?;
    if domain.as_str() != text {
        return Err(bad(format!(
            "write it without scheme and path, in lower case: {domain}"
        )));
    }
    Ok(domain)
}

/// Makes a CA in a folder: all of it, or nothing.
pub async fn init(setup: &Setup) -> Result<Fingerprint, Error> {
    if setup
        .prefix_ranges
        .iter()
        .any(|range| range.trunc() != *range)
    {
        return Err(Error::invalid(
            "prefix range",
            "bits are set behind its length",
        ));
    }
    folder::create(&setup.dir, |draft| {
        let draft = draft.to_owned();
        let setup = setup.clone();
        async move {
            let fingerprint = folder::write_keys(&draft, &setup)?;
            crate::registry::Store::create(&draft.join(STORE)).await?;
            Ok(fingerprint)
        }
    })
    .await
}

/// A CA that was opened: able to sign. What it signs comes from the caller,
/// which is the server with its registry.
pub struct Authority {
    trust_domain: TrustDomain,
    prefix_ranges: Vec<IpNet>,
    lifetimes: Lifetimes,
    dir: PathBuf,
    root: CertificateDer<'static>,
    root_key: Arc<dyn Signer>,
    issuing: RwLock<Arc<Issuing>>,
    jwt: RwLock<Arc<JwtKey>>,
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
    pub fn open(dir: &Path) -> Result<Self, Error> {
        check_folder(dir)?;
        let opened = folder::read_keys(dir)?;
        let authority = Self {
            trust_domain: opened.trust_domain,
            prefix_ranges: opened.prefix_ranges,
            lifetimes: opened.lifetimes,
            dir: dir.to_owned(),
            root: opened.root,
            root_key: Arc::new(opened.root_key),
            issuing: RwLock::new(Arc::new(opened.issuing)),
            jwt: RwLock::new(Arc::new(opened.jwt)),
        };
        authority.bundle(0)?;
        authority.renew_issuing()?;
        Ok(authority)
    }

    /// Whom it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The name of this server among those that share the trust domain.
    pub(crate) fn server(&self) -> &str {
        "ca"
    }

    pub(crate) fn prefix_ranges(&self) -> &[IpNet] {
        &self.prefix_ranges
    }

    pub(crate) fn root_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.root)
    }

    /// The roots, as agents get them.
    pub fn bundle(&self, sequence: u64) -> Result<TrustBundle, Error> {
        let jwt = self.jwt_key();
        let bundle = crate::proto::Bundle {
            trust_domain: self.trust_domain.as_str().to_owned(),
            sequence,
            roots: vec![self.root.to_vec()],
            jwt_keys: vec![crate::proto::JwtKey {
                key_id: jwt.key_id().to_owned(),
                public_key: jwt.public_key().to_vec(),
                not_after_ms: jwt.not_after() * 1000,
            }],
            ..Default::default()
        };
        bundle.try_into()
    }

    pub(crate) fn root_not_after(&self) -> Result<u64, Error> {
        issuing::validity(&self.root).map(|(_, not_after)| not_after)
    }

    pub(crate) fn issuing_not_after(&self) -> u64 {
        self.issuing().not_after
    }

    /// Signs a node SVID.
    pub fn node_svid(&self, request: &CsrKey, binding: &NodeBinding) -> Result<Issued, Error> {
        let id = node_id(&self.trust_domain, &binding.name)?;
        self.leaf(request, id, &Profile::Node(binding), self.lifetimes.node)
    }

    /// Signs a proof SVID.
    pub fn proof_svid(
        &self,
        request: &CsrKey,
        id: SpiffeId,
        binding: &ProofBinding,
    ) -> Result<Issued, Error> {
        crate::model::check_labels(&binding.labels)?;
        self.leaf(request, id, &Profile::Proof(binding), self.lifetimes.proof)
    }

    /// Signs a workload SVID; `life` in seconds, none for the default.
    pub fn workload_svid(
        &self,
        request: &CsrKey,
        id: SpiffeId,
        dns_names: &[String],
        life: Option<u64>,
    ) -> Result<Issued, Error> {
        let life = life.unwrap_or(self.lifetimes.workload);
        self.leaf(request, id, &Profile::Workload { dns_names }, life)
    }

    /// The certificate of the CA's own server, with its key. The chain holds
    /// the root too, for nodes that know only its fingerprint.
    pub(crate) fn server_identity(&self) -> Result<(PrivateKey, Issued), Error> {
        let (key, mut issued) = self.own(server_id(&self.trust_domain)?, self.lifetimes.node)?;
        issued.chain.push(self.root.clone());
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
        let issuing = self.issuing();
        let now = now_ms() / 1000;
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

    /// Replaces the issuing CA when half of its life is over. Its successor is
    /// on disk before it signs anything.
    pub(crate) fn renew_issuing(&self) -> Result<bool, Error> {
        let now = now_ms() / 1000;
        let current = self.issuing();
        let half = current.not_before + (current.not_after - current.not_before) / 2;
        if now < half {
            return Ok(false);
        }
        let next = Issuing::make(
            &self.trust_domain,
            &self.root,
            &self.root_key,
            self.lifetimes.issuing,
        )?;
        folder::write_issuing(&self.dir, &next)?;
        *self.issuing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        tracing::info!(target: "handfast::audit", "issuing CA renewed");
        Ok(true)
    }

    /// What signs JWT-SVIDs now: take it anew for each token, since it rotates.
    pub(crate) fn jwt_key(&self) -> Arc<JwtKey> {
        Arc::clone(&self.jwt.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lifetimes of what is signed.
    pub(crate) fn lifetimes(&self) -> &Lifetimes {
        &self.lifetimes
    }

    fn issuing(&self) -> Arc<Issuing> {
        Arc::clone(&self.issuing.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A new root: its key and its certificate.
fn make_root(trust_domain: &TrustDomain) -> Result<(PrivateKey, CertificateDer<'static>), Error> {
    let key = PrivateKey::generate()?;
    let now = now_ms() / 1000;
    let validity = Validity {
        not_before: now.saturating_sub(BACKDATE),
        not_after: now + ROOT_LIFE,
    };
    let params: CertificateParams = profile::authority(
        trust_domain,
        "handfast root",
        1,
        validity,
        &Serial20::random(),
    )?;
    let certificate = params.self_signed(&Signing(&key))?;
    Ok((key, certificate.into()))
}

type OwnIssuer = Issuer<'static, Signing<Arc<dyn Signer>>>;
