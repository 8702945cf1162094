//! All authorities of the trust domain at one moment: what the bundle holds, who signs, what is to be left.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;

use super::record::{Kind, Record, Standing};
use crate::bundle::TrustBundle;
use crate::{Error, proto};

/// Cross-signed roots that the CA shows to who may have slept: with the leaf, its issuer and two roots this is what
/// verifiers look at.
const MAX_CROSS_SIGNED: usize = 4;

/// The authorities of the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Authorities {
    records: Arc<Vec<Record>>,
}

impl Authorities {
    pub(crate) fn new(records: Vec<Record>) -> Self {
        Self {
            records: Arc::new(records),
        }
    }

    pub(crate) fn all(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn find(&self, id: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.id == id)
    }

    /// The root that signs issuing CAs.
    pub(crate) fn active_root(&self) -> Option<&Record> {
        self.of(Kind::Root, Standing::Active).next()
    }

    /// What a server signs with.
    pub(crate) fn active(&self, kind: Kind, server: &str) -> Option<&Record> {
        self.of(kind, Standing::Active)
            .find(|record| record.server == server)
    }

    pub(crate) fn of(&self, kind: Kind, standing: Standing) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.kind == kind && record.standing == standing)
    }

    /// Servers that sign, or will once they have a certificate.
    pub(crate) fn servers(&self) -> BTreeSet<&str> {
        self.records
            .iter()
            .filter(|record| record.kind == Kind::Issuing && record.standing == Standing::Active)
            .map(|record| record.server.as_str())
            .collect()
    }

    /// The bundle: what agents and partners trust.
    pub(crate) fn bundle(
        &self,
        trust_domain: &TrustDomain,
        sequence: u64,
    ) -> Result<TrustBundle, Error> {
        let trusted = |kind: Kind| {
            self.records
                .iter()
                .filter(move |record| record.kind == kind && record.is_trusted())
        };
        let bundle = proto::Bundle {
            trust_domain: trust_domain.as_str().to_owned(),
            sequence,
            roots: trusted(Kind::Root)
                .map(|record| record.der.clone())
                .collect(),
            jwt_keys: trusted(Kind::Jwt)
                .map(|record| proto::JwtKey {
                    key_id: record.id.clone(),
                    public_key: record.der.clone(),
                    not_after_ms: record.not_after_ms,
                })
                .collect(),
            cross_signed: self.cross_signed().map(|cross| cross.to_vec()).collect(),
            ..proto::Bundle::default()
        };
        bundle.try_into()
    }

    /// Roots that a node which slept may still come with: those of the bundle, and those that left it uncompromised.
    pub(crate) fn remembered(&self, trust_domain: &TrustDomain) -> Result<TrustBundle, Error> {
        let roots = self.records.iter().filter(|record| {
            record.kind == Kind::Root
                && (record.is_trusted()
                    || record.standing == Standing::Retired && !record.compromised)
        });
        // The newest, if there were ever more than a bundle holds.
        let newest = roots.rev().take(8).map(|record| record.der.clone());
        TrustBundle::new(trust_domain.clone(), 0, newest)
    }

    /// Newer roots signed by older ones, newest first; none by a root that is compromised.
    pub(crate) fn cross_signed(&self) -> impl Iterator<Item = CertificateDer<'static>> {
        let followed = self.records.iter().rev().filter_map(|record| {
            let cross = record.cross_signed.as_ref()?;
            let signer = self.find(&cross.signer)?;
            (!signer.compromised && !record.compromised)
                .then(|| CertificateDer::from(cross.der.clone()))
        });
        followed.take(MAX_CROSS_SIGNED)
    }

    /// What the CA shows behind its own certificate and its issuer: roots, for who knows a fingerprint only, and
    /// cross-signed roots, for who slept.
    pub(crate) fn shown(&self) -> Vec<CertificateDer<'static>> {
        let last = |standing| self.of(Kind::Root, standing).last();
        // The former one until it leaves the bundle: join tokens may name it.
        let former = last(Standing::Superseded).or_else(|| last(Standing::Tainted));
        let roots = last(Standing::Active).into_iter().chain(former);
        let roots = roots.map(|record| CertificateDer::from(record.der.clone()));
        roots.chain(self.cross_signed()).collect()
    }

    /// What agents are to leave: issuing CAs and JWT keys that were superseded and may still have living leaves.
    pub(crate) fn retired(&self, now_ms: u64) -> BTreeSet<String> {
        self.records
            .iter()
            .filter(|record| record.kind != Kind::Root && record.not_after_ms > now_ms)
            .filter(|record| {
                matches!(
                    record.standing,
                    Standing::Superseded | Standing::Tainted | Standing::Retired
                )
            })
            .map(|record| record.id.clone())
            .collect()
    }
}

impl Record {
    /// Does it stand in the bundle? Issuing CAs never do.
    pub(crate) fn is_trusted(&self) -> bool {
        matches!(
            self.standing,
            Standing::Prepared | Standing::Active | Standing::Superseded | Standing::Tainted
        )
    }
}
