//! The SVIDs that this run of the agent holds, and when each is renewed: at half its life, give or take a tenth,
//! so that many agents do not ask at once and a CA that is away for hours is not noticed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{NodeIdentity, Svid, SvidKind, SvidRequest};
use handfast_ca::verify::{NodeSvid, Verifier};
use rand::Rng;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{IdentityError, KnownEntry};
use crate::core::{Identity, LocalIdentity};
use crate::proof::ProofKey;
use crate::wire::LeafHash;

/// Seconds before something that failed is asked for again.
const RETRY: u64 = 10;

/// An identity of a workload on this node.
pub type WorkloadIdentity = Identity;

/// A proof SVID with its key.
#[derive(Debug)]
pub struct ProofSvid {
    /// Whose, as the CA signed it.
    pub identity: WorkloadIdentity,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: ProofKey,
    /// SHA-256 of the leaf.
    pub leaf_hash: LeafHash,
    /// Seconds since 1970.
    pub not_after: u64,
    /// The leaf's serial number.
    pub serial: Vec<u8>,
    /// The issuing CA, as [`authority_of`] names it.
    authority: Arc<str>,
    renew_at: u64,
}

impl ProofSvid {
    /// As the core knows it.
    pub fn local_identity(&self) -> LocalIdentity {
        LocalIdentity {
            identity: self.identity.clone(),
            leaf_hash: self.leaf_hash,
            not_after: self.not_after,
            serial: self.serial.clone(),
        }
    }
}

/// One certificate that is asked for, with the key that was made for it.
#[derive(Debug)]
pub struct Renewal {
    what: What,
    key: PrivateKey,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Node,
    Proof(String),
}

/// What has become of a renewal.
#[derive(Debug)]
pub enum Renewed {
    /// The node has a new SVID.
    Node(Box<(NodeIdentity, NodeSvid)>),
    /// A workload's identity can be proven; the entry's key in the registry.
    Proof(String),
    /// Nothing: the entry is gone, or names something else by now. The certificate and its key are dropped.
    Unwanted(String),
}

/// All SVIDs of this run.
#[derive(Debug)]
pub struct Svids {
    node_renew_at: u64,
    node_authority: Arc<str>,
    /// What these signed is replaced at once.
    retired: HashSet<String>,
    proofs: BTreeMap<String, ProofSvid>,
    /// Not to be asked for before; also what is being asked for.
    not_before: BTreeMap<What, u64>,
    /// When it was last looked what is due.
    looked_at: u64,
}

impl Svids {
    /// With the node's SVID, whose life is known by its end only: it is renewed soon, then at half life.
    pub fn new(node_chain: &[CertificateDer<'_>], node_not_after: u64, now: u64) -> Self {
        Self {
            node_renew_at: renew_at(now, node_not_after),
            node_authority: authority_of(node_chain),
            retired: HashSet::new(),
            proofs: BTreeMap::new(),
            not_before: BTreeMap::new(),
            looked_at: now,
        }
    }

    /// Proof SVIDs by their entries.
    pub fn proofs(&self) -> &BTreeMap<String, ProofSvid> {
        &self.proofs
    }

    /// The proof SVID with this leaf.
    pub fn by_leaf(&self, leaf: LeafHash) -> Option<&ProofSvid> {
        self.proofs.values().find(|svid| svid.leaf_hash == leaf)
    }

    /// The node has attested anew: this is its SVID.
    pub fn attested(&mut self, node_chain: &[CertificateDer<'_>], not_after: u64, now: u64) {
        self.node_renew_at = renew_at(now, not_after);
        self.node_authority = authority_of(node_chain);
    }

    /// What is signed by these is to be replaced now.
    pub fn retire(&mut self, authorities: &[String]) {
        let retired: HashSet<String> = authorities.iter().cloned().collect();
        if retired != self.retired {
            self.retired = retired;
            // A certificate that is being waited for may still be of theirs; asking twice costs one certificate.
            self.not_before.clear();
        }
    }

    /// Certificates with these serial numbers are revoked: their identities live on under other keys.
    pub fn replace_denied(&mut self, denied: impl Fn(&[u8]) -> bool) {
        let not_before = &mut self.not_before;
        for (entry, svid) in &mut self.proofs {
            if svid.renew_at > 0 && denied(&svid.serial) {
                svid.renew_at = 0;
                not_before.remove(&What::Proof(entry.clone()));
            }
        }
    }

    /// What the SVIDs here hang on.
    pub fn authorities(&self) -> BTreeSet<Arc<str>> {
        let proofs = self.proofs.values().map(|svid| &svid.authority);
        std::iter::once(&self.node_authority)
            .chain(proofs)
            .filter(|authority| !authority.is_empty())
            .cloned()
            .collect()
    }

    /// When the first proof SVID ends (unix seconds).
    pub fn nearest_expiry(&self) -> Option<u64> {
        self.proofs.values().map(|svid| svid.not_after).min()
    }

    /// Drops SVIDs whose entries no longer apply to any workload here, and returns them.
    pub fn retain(&mut self, wanted: &[KnownEntry]) -> Vec<ProofSvid> {
        let gone: Vec<String> = self
            .proofs
            .keys()
            .filter(|id| !wanted.iter().any(|entry| entry.id == **id))
            .cloned()
            .collect();
        self.not_before.retain(|what, _| match what {
            What::Node => true,
            What::Proof(id) => wanted.iter().any(|entry| entry.id == *id),
        });
        gone.iter()
            .filter_map(|id| self.proofs.remove(id))
            .collect()
    }

    /// Makes keys and requests for everything that is due. They count as being asked for until they are taken in
    /// or have failed.
    pub fn due(
        &mut self,
        now: u64,
        wanted: &[KnownEntry],
    ) -> Result<Vec<(Renewal, SvidRequest)>, IdentityError> {
        if now < self.looked_at {
            // The clock was ahead and was set right: what failed meanwhile would wait until it is as late again.
            self.not_before.clear();
        }
        self.looked_at = now;
        let mut due = Vec::new();
        if now >= self.node_renew_at || self.retired.contains(&*self.node_authority) {
            due.push((What::Node, SvidKind::Node));
        }
        for entry in wanted {
            let fresh = self.proofs.get(&entry.id).is_some_and(|svid| {
                let renewed = svid.renew_at > 0 && entry.ends_by(svid.not_after);
                (now < svid.renew_at || renewed)
                    && !self.retired.contains(&*svid.authority)
                    && svid.identity.spiffe_id == entry.spiffe_id
                    && svid.identity.labels == entry.labels
            });
            if !fresh {
                let kind = SvidKind::Proof {
                    entry_id: entry.id.clone(),
                };
                due.push((What::Proof(entry.id.clone()), kind));
            }
        }
        let mut requests = Vec::new();
        for (what, kind) in due {
            if self.not_before.get(&what).is_some_and(|until| now < *until) {
                continue;
            }
            self.not_before.insert(what.clone(), now + 6 * RETRY);
            let key = PrivateKey::generate()?;
            let csr = key.csr()?;
            requests.push((Renewal { what, key }, SvidRequest { kind, csr }));
        }
        Ok(requests)
    }

    /// Takes a certificate in, if our own verifier accepts it: what peers would refuse is never published. One of an
    /// entry that is not `wanted` any more as it was signed is dropped.
    pub fn accept(
        &mut self,
        renewal: Renewal,
        svid: Svid,
        verifier: &Verifier,
        wanted: &[KnownEntry],
        now: u64,
    ) -> Result<Renewed, IdentityError> {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        self.not_before.insert(renewal.what.clone(), now + RETRY);
        match renewal.what {
            What::Node => {
                let node = verifier
                    .node(&svid.chain, time)
                    .map_err(handfast_ca::Error::from)?;
                self.node_renew_at = renew_at(now, node.not_after);
                self.node_authority = authority_of(&svid.chain);
                let identity = NodeIdentity {
                    chain: svid.chain,
                    key: renewal.key,
                };
                Ok(Renewed::Node(Box::new((identity, node))))
            }
            What::Proof(entry) => {
                let proof = verifier
                    .proof(&svid.chain, time)
                    .map_err(handfast_ca::Error::from)?;
                let identity = Identity {
                    spiffe_id: proof.spiffe_id.to_string(),
                    labels: proof.labels,
                };
                let current = wanted.iter().any(|one| {
                    one.id == entry
                        && one.spiffe_id == identity.spiffe_id
                        && one.labels == identity.labels
                });
                if !current {
                    // Due at once if the entry is there and only says something else.
                    self.not_before.remove(&What::Proof(entry.clone()));
                    return Ok(Renewed::Unwanted(entry));
                }
                let key = ProofKey::from_pkcs8(&renewal.key.to_pkcs8()).map_err(|error| {
                    IdentityError::Ca(handfast_ca::Error::Crypto(error.to_string()))
                })?;
                let taken = ProofSvid {
                    authority: authority_of(&svid.chain),
                    identity,
                    chain: svid.chain,
                    key,
                    leaf_hash: LeafHash(proof.leaf_hash),
                    not_after: proof.not_after,
                    serial: serial_bytes(&proof.serial),
                    renew_at: renew_at(now, proof.not_after),
                };
                self.proofs.insert(entry.clone(), taken);
                Ok(Renewed::Proof(entry))
            }
        }
    }

    /// A renewal came to nothing; it is due again after a while.
    pub fn failed(&mut self, renewal: &Renewal, now: u64) {
        self.not_before.insert(renewal.what.clone(), now + RETRY);
    }
}

impl Renewal {
    /// For logs.
    pub fn describe(&self) -> String {
        match &self.what {
            What::Node => "the node's SVID".into(),
            What::Proof(entry) => format!("the proof SVID of entry {entry}"),
        }
    }
}

/// The bytes of a serial number, as the core compares them.
pub fn serial_bytes(serial: &handfast_ca::model::Serial) -> Vec<u8> {
    // A serial's text is always whole bytes in lower-case hexadecimal.
    data_encoding::HEXLOWER
        .decode(serial.to_string().as_bytes())
        .unwrap_or_default()
}

/// What a certificate hangs on, as the CA names it: SHA-256 of the certificate that signed it, in lower-case
/// hexadecimal.
pub fn authority_of(chain: &[CertificateDer<'_>]) -> Arc<str> {
    chain.get(1).map_or_else(Arc::default, |issuer| {
        let hash = handfast_ca::bundle::sha256(issuer);
        data_encoding::HEXLOWER.encode(&hash).into()
    })
}

/// When something that ends at `not_after` is renewed (unix seconds): around the half of what is left.
pub(super) fn renew_at(now: u64, not_after: u64) -> u64 {
    let half = not_after.saturating_sub(now) / 2;
    let jitter = half / 5;
    now + half - jitter / 2 + rand::rng().random_range(0..=jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> KnownEntry {
        KnownEntry {
            id: id.into(),
            spiffe_id: "spiffe://example.org/web".into(),
            ..KnownEntry::default()
        }
    }

    #[test]
    fn renewal_falls_around_the_half_of_a_life() {
        for _ in 0..100 {
            let at = renew_at(1_000, 1_000 + 3600);
            assert!((1_000 + 1600..=1_000 + 2000).contains(&at), "{at}");
        }
    }

    #[test]
    fn what_is_being_asked_for_is_not_asked_for_twice_and_again_after_a_failure() {
        let mut svids = Svids::new(&[], 10_000, 0);
        let mut first = svids.due(0, &[entry("a"), entry("b")]).unwrap();
        assert_eq!(first.len(), 2);
        assert!(svids.due(1, &[entry("a"), entry("b")]).unwrap().is_empty());
        svids.failed(&first.remove(0).0, 1);
        assert_eq!(
            svids
                .due(1 + RETRY, &[entry("a"), entry("b")])
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn what_failed_by_a_clock_that_was_ahead_is_asked_for_when_it_is_set_right() {
        let mut svids = Svids::new(&[], 90_000, 0);
        let ahead = svids.due(10_800, &[entry("a")]).unwrap();
        svids.failed(&ahead[0].0, 10_800);
        assert!(svids.due(10_801, &[entry("a")]).unwrap().is_empty());
        assert_eq!(svids.due(2, &[entry("a")]).unwrap().len(), 1);
        assert!(svids.due(3, &[entry("a")]).unwrap().is_empty());
    }
}
