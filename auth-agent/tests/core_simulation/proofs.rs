//! Authenticators between simulated nodes: real ones, or terms.
//!
//! *Real*: `handfast_agent::proof` makes and verifies them, with P-256 keys and certificates of a pool, over an
//! exporter that is an HMAC of the connection's own secret. What certificates mean is the CA model's to say, since
//! judging chains is the business of `handfast_ca::verify`.
//!
//! *Terms*: an authenticator is the number of a record of who made what for which connection. A liar may hand over
//! any record that it has ever seen, and may add records, but only for connections that it is an end of and signed by
//! keys that it holds: as far as signatures, exporter and MAC let it. It is an order of magnitude faster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use handfast_agent::core::{LocalIdentity, RemoteProof};
use handfast_agent::proof::{self, Export, ProofContext, ProofError, ProofKey, Role};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::hash::HashAlgorithm;
use rustls_pki_types::CertificateDer;

use super::authority::{leaf, serial_of};
use super::world::World;

/// What an authenticator is made of.
#[derive(Clone, Debug)]
pub struct Term {
    pub link: u64,
    pub by_dialler: bool,
    pub request: Option<[u8; 32]>,
    /// Serials, end entity first.
    pub chain: Vec<u64>,
    /// Whose key signed.
    pub signer: u64,
}

/// Both kinds, and the truth about who made what.
pub struct Proofs {
    pub real: bool,
    /// In the order of making; a term is its number.
    pub terms: Vec<Term>,
    /// Real bytes, and the term that they are.
    bytes: BTreeMap<Vec<u8>, usize>,
    contexts: BTreeMap<(u64, bool), ProofContext>,
    /// Terms that have counted once, by who took them.
    spent: BTreeSet<(usize, bool)>,
}

/// Why an authenticator is not believed.
pub type Refusal = String;

impl Proofs {
    pub fn new(real: bool) -> Self {
        Self {
            real,
            terms: Vec::new(),
            bytes: BTreeMap::new(),
            contexts: BTreeMap::new(),
            spent: BTreeSet::new(),
        }
    }

    fn context(&mut self, link: u64, dialler: bool) -> &ProofContext {
        self.contexts.entry((link, dialler)).or_insert_with(|| {
            let role = if dialler { Role::Client } else { Role::Server };
            ProofContext::derive(role, HashAlgorithm::SHA256, &Exporter(link)).unwrap()
        })
    }

    /// Nobody speaks over it any more.
    pub fn forget(&mut self, link: u64) {
        self.contexts.remove(&(link, true));
        self.contexts.remove(&(link, false));
    }

    /// Makes one as the term says; the first certificate's key signs unless the maker lies.
    pub fn make(&mut self, term: Term) -> Vec<u8> {
        let bytes = match self.real {
            false => (self.terms.len() as u64).to_be_bytes().to_vec(),
            true => self.make_real(&term),
        };
        if self.real {
            self.bytes.insert(bytes.clone(), self.terms.len());
        }
        self.terms.push(term);
        bytes
    }

    /// The very bytes of an earlier one.
    pub fn replay(&self, number: usize) -> Vec<u8> {
        if !self.real {
            return (number as u64).to_be_bytes().to_vec();
        }
        let mut all = self.bytes.iter();
        let found = all.find(|(_, of)| **of == number);
        found.map(|(bytes, _)| bytes.clone()).unwrap_or_default()
    }

    fn make_real(&mut self, term: &Term) -> Vec<u8> {
        let chain: Vec<_> = term.chain.iter().map(|of| minted(*of)).collect();
        let certificates: Vec<_> = chain.iter().map(|of| of.certificate.clone()).collect();
        if term.chain.first() == Some(&term.signer) {
            let context = self.context(term.link, term.by_dialler);
            let key = &chain[0].key;
            return proof::make(context, &certificates, key, term.request.as_ref()).unwrap();
        }
        super::forge::authenticator(&Exporter(term.link), term, &certificates)
    }

    /// As the shell does it, without what the certificate means.
    fn verify(
        &mut self,
        link: u64,
        by_dialler: bool,
        authenticator: &[u8],
        request: Option<[u8; 32]>,
    ) -> Result<u64, Refusal> {
        if self.real {
            let context = self.context(link, !by_dialler);
            let chain = proof::verify(context, authenticator, request.as_ref());
            let chain = chain.map_err(|error| error.to_string())?;
            let first = chain.certificates().first().map(minted_as);
            return first.flatten().ok_or("an unknown certificate".to_owned());
        }
        let number = <[u8; 8]>::try_from(authenticator).map(u64::from_be_bytes);
        let number = number.map_err(|_| "malformed")? as usize;
        let term = self.terms.get(number).ok_or("malformed")?;
        let fits = term.link == link && term.by_dialler == by_dialler && term.request == request;
        if !fits {
            return Err("of another session, role or request".to_owned());
        }
        if term.chain.first() != Some(&term.signer) {
            return Err("not signed by the first certificate's key".to_owned());
        }
        if !self.spent.insert((number, by_dialler)) {
            return Err("used before".to_owned());
        }
        Ok(term.signer)
    }

    fn term(&self, authenticator: &[u8]) -> Option<&Term> {
        let number = match self.real {
            true => *self.bytes.get(authenticator)?,
            false => u64::from_be_bytes(authenticator.try_into().ok()?) as usize,
        };
        self.terms.get(number)
    }
}

impl World {
    /// A node shows one of its SVIDs on a connection.
    pub fn authenticator(
        &mut self,
        index: usize,
        link: u64,
        svid: &LocalIdentity,
        request: Option<[u8; 32]>,
    ) -> Vec<u8> {
        let serial = serial_of(svid.leaf_hash);
        let by_dialler = self.links.get(&link).is_some_and(|of| of.dialler == index);
        self.proofs.make(Term {
            link,
            by_dialler,
            request,
            chain: vec![serial],
            signer: serial,
        })
    }

    /// A node's shell judges one: cryptography, then the certificate.
    pub fn judge(
        &mut self,
        index: usize,
        link: u64,
        authenticator: &[u8],
        request: Option<[u8; 32]>,
    ) -> Result<RemoteProof, Refusal> {
        let Some(peer) = self.other_end(index, link) else {
            return Err("no such connection".to_owned());
        };
        let by_dialler = self.links.get(&link).is_some_and(|of| of.dialler == peer);
        let verdict = self.proofs.verify(link, by_dialler, authenticator, request);
        let serial = verdict?;
        let certificate = &self.ca.certificates[&serial];
        // Property 1, before anybody relies on it.
        let made = self.proofs.term(authenticator);
        let honest = made.is_some_and(|term| {
            term.link == link
                && term.by_dialler == by_dialler
                && term.chain.first() == Some(&term.signer)
        });
        if !honest || certificate.owner != peer {
            self.fail(&format!(
                "property 1: node {index} believes that node {peer} has the key of {}: {made:?}",
                certificate.identity.spiffe_id
            ));
        }
        let node = &self.nodes[index];
        if !node.bundle.contains(&certificate.root) {
            return Err("under an unknown root".to_owned());
        }
        if certificate.not_after <= node.now(self.at).wall {
            return Err("expired".to_owned());
        }
        Ok(RemoteProof {
            identity: certificate.identity.clone(),
            node: self.nodes[certificate.owner].name.clone(),
            leaf_hash: leaf(serial),
            not_after: certificate.not_after,
            serial: serial.to_be_bytes().to_vec(),
        })
    }
}

/// The exporter of a connection that only its ends know.
pub struct Exporter(u64);

impl Export for Exporter {
    fn export(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ProofError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0.to_be_bytes());
        let tag = hmac::sign(&key, &[label, context].concat());
        output.copy_from_slice(&tag.as_ref()[..output.len()]);
        Ok(())
    }
}

/// A certificate and its key. The CA model says what it means.
pub struct Minted {
    pub certificate: CertificateDer<'static>,
    pub key: ProofKey,
    pkcs8: Vec<u8>,
}

impl Minted {
    /// ECDSA over SHA-256, of anything: `ProofKey` signs authenticators only.
    pub fn sign(&self, content: &[u8]) -> Vec<u8> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.pkcs8).unwrap();
        let signature = pair.sign(&SystemRandom::new(), content).unwrap();
        signature.as_ref().to_vec()
    }
}

/// One for each serial, made when first needed and shared by all histories of this process.
struct Pool {
    minted: Vec<Arc<Minted>>,
    serials: BTreeMap<Vec<u8>, u64>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    minted: Vec::new(),
    serials: BTreeMap::new(),
});

pub fn minted(serial: u64) -> Arc<Minted> {
    let mut pool = POOL.lock().unwrap();
    while pool.minted.len() as u64 <= serial {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let serial = pool.minted.len() as u64;
        pool.serials.insert(certificate.to_vec(), serial);
        let pkcs8 = key.serialize_der();
        let key = ProofKey::from_pkcs8(&pkcs8).unwrap();
        pool.minted.push(Arc::new(Minted {
            certificate,
            key,
            pkcs8,
        }));
    }
    pool.minted[usize::try_from(serial).unwrap()].clone()
}

fn minted_as(certificate: &CertificateDer<'_>) -> Option<u64> {
    let pool = POOL.lock().unwrap();
    pool.serials.get(certificate.as_ref()).copied()
}
