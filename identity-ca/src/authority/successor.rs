//! What a rotation begins with: new roots, issuing CAs and JWT keys. A key's file is written before anything refers
//! to it; what nothing refers to after a crash is tidied away.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::record::{CrossSigned, Kind, Record, Standing};
use super::root::Root;
use super::{Authority, jwt, offline};
use crate::Error;
use crate::certificate::{CsrKey, PrivateKey};

/// What a server signs a request of its own with, before the DER of the request.
const ENDORSEMENT: &[u8] = b"handfast issuing request v1\0";

/// A root that an operator brings.
#[derive(Debug, Clone)]
pub(crate) struct Brought {
    /// PEM.
    pub(crate) certificate: String,
    /// PEM: its key signed by the present root; empty if there is none.
    pub(crate) cross_signed: String,
}

impl Authority {
    /// A new root of our own, signed by the present one too unless that is
    /// compromised.
    pub(crate) fn make_root(&self, compromised: bool) -> Result<Record, Error> {
        let (key, root) = Root::make(&self.trust_domain, self.lifetimes.root)?;
        let cross = if compromised {
            None
        } else {
            Some(self.cross_sign(&root)?)
        };
        self.keys.write(Kind::Root, &key)?;
        let mut record = Record::of_root(&root, Standing::Prepared);
        record.cross_signed = cross;
        Ok(record)
    }

    /// A new root that was made elsewhere.
    pub(crate) fn take_root(&self, brought: &Brought, compromised: bool) -> Result<Record, Error> {
        let root = Root::read(
            &offline::certificate(&brought.certificate)?,
            &self.trust_domain,
        )?;
        let mut record = Record::of_root(&root, Standing::Prepared);
        if self.authorities().find(&record.id).is_some() {
            return Err(Error::Exists {
                what: "root",
                name: record.id,
                hint: "bring one that was not in the bundle before; nothing was changed".to_owned(),
            });
        }
        record.cross_signed = match (compromised, brought.cross_signed.is_empty()) {
            (true, _) => None,
            (false, false) => Some(self.check_cross_signed(&root, &brought.cross_signed)?),
            (false, true) => Some(self.cross_sign(&root)?),
        };
        Ok(record)
    }

    /// The present root signs a newer one. Who knows only the old one follows.
    fn cross_sign(&self, newer: &Root) -> Result<CrossSigned, Error> {
        let authorities = self.authorities();
        let (signer, old) = self.present_root(&authorities)?;
        if !self.keys.has(&signer.key) {
            return Err(Error::invalid(
                "root",
                "the present root's key is not in this server's folder: if another server has it, rotate there; else have the new root signed with `handfast ca root cross-sign` where it is, and give that with --cross-signed (or say --compromised, and nodes that sleep now must join again); nothing was changed",
            ));
        }
        Ok(CrossSigned {
            der: old.cross_sign(self.keys.read(&signer.key)?, newer)?,
            signer: signer.id.clone(),
        })
    }

    fn check_cross_signed(&self, newer: &Root, text: &str) -> Result<CrossSigned, Error> {
        let authorities = self.authorities();
        let (signer, old) = self.present_root(&authorities)?;
        let der = offline::certificate(text)?;
        if !old.has_cross_signed(newer, &der)? {
            return Err(Error::invalid(
                "cross-signed certificate",
                "it is not the new root's key signed by the present root: nothing was changed",
            ));
        }
        Ok(CrossSigned {
            der: der.to_vec(),
            signer: signer.id.clone(),
        })
    }

    fn present_root<'a>(
        &self,
        authorities: &'a super::Authorities,
    ) -> Result<(&'a Record, Root), Error> {
        let record = authorities.active_root().ok_or(Error::Missing {
            what: "active root in",
            name: "the store".to_owned(),
        })?;
        Ok((record, Root::read(&record.der, &self.trust_domain)?))
    }

    /// A new issuing CA of this server under a root: signed, if the root's key
    /// is here, or a request that whoever has it can sign.
    pub(crate) fn make_issuing(&self, root: &Record) -> Result<Record, Error> {
        let key = PrivateKey::generate()?;
        let csr = key.csr()?;
        let name = self.keys.write(Kind::Issuing, &key)?;
        if self.has_key(root) {
            let certificate = self.sign_issuing(root, &self.server, &csr)?;
            let standing = Standing::Prepared;
            return Record::of_issuing(&certificate, &self.server, &root.id, name, standing);
        }
        let message = [ENDORSEMENT, &csr].concat();
        let endorsement = self.issuing()?.issuer.key().0.sign(&message)?;
        Ok(Record::of_request(
            csr,
            &self.server,
            &root.id,
            name,
            Some(endorsement),
        ))
    }

    /// A new key for JWT-SVIDs.
    pub(crate) fn make_jwt_key(&self) -> Result<Record, Error> {
        let key = PrivateKey::generate()?;
        let name = self.keys.write(Kind::Jwt, &key)?;
        let life = self.lifetimes.jwt_key;
        jwt::record(&key, &self.server, name, life, Standing::Prepared)
    }

    /// Signs another server's request, if that server's present issuing CA
    /// vouches for it and we have the root's key: who can only write to the
    /// store gets nothing.
    pub(crate) fn answer(&self, request: &Record) -> Result<Option<Record>, Error> {
        let authorities = self.authorities();
        let Some(root) = authorities
            .find(&request.parent)
            .filter(|root| self.has_key(root))
        else {
            return Ok(None);
        };
        let present = authorities.active(Kind::Issuing, &request.server);
        let (Some(present), Some(endorsement)) = (present, &request.endorsement) else {
            return Ok(None);
        };
        if !self.vouched_for(&authorities, present, &request.der, endorsement)? {
            return Err(Error::Denied(format!(
                "the request of server {} for an issuing CA is not endorsed by its present one",
                request.server
            )));
        }
        let certificate = self.sign_issuing(root, &request.server, &request.der)?;
        Record::of_issuing(
            &certificate,
            &request.server,
            &root.id,
            request.key.clone(),
            Standing::Prepared,
        )
        .map(Some)
    }

    fn vouched_for(
        &self,
        authorities: &super::Authorities,
        present: &Record,
        csr: &[u8],
        endorsement: &[u8],
    ) -> Result<bool, Error> {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
        // A root whose key is in our folder: the store could say anything.
        let ours = authorities
            .find(&present.parent)
            .filter(|root| root.kind == Kind::Root && self.has_key(root));
        let Some(ours) = ours else {
            return Ok(false);
        };
        let root = Root::read(&ours.der, &self.trust_domain)?;
        let certificate = CertificateDer::from(present.der.clone());
        if !root.signed(&certificate)? {
            return Ok(false);
        }
        let Some(key) = super::root::public_point(&certificate) else {
            return Ok(false);
        };
        let message = [ENDORSEMENT, csr].concat();
        Ok(UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(&message, endorsement)
            .is_ok())
    }

    /// Signs the request (PEM) of another server, which an operator vouches for.
    pub(crate) fn sign_for(
        &self,
        server: &str,
        request: &str,
    ) -> Result<CertificateDer<'static>, Error> {
        self.in_touch()?;
        let server: crate::NodeName = server.parse()?;
        let csr = CertificateSigningRequestDer::from_pem_slice(request.as_bytes())
            .map_err(|error| Error::invalid("request", format!("not a PEM request: {error}")))?;
        let authorities = self.authorities();
        let (root, _) = self.present_root(&authorities)?;
        if !self.has_key(root) {
            return Err(Error::invalid(
                "request",
                "the root's key is not in this CA's folder: sign it where the key is (`handfast ca root sign --dir`); nothing was changed",
            ));
        }
        self.sign_issuing(root, server.as_str(), &csr)
    }

    fn sign_issuing(
        &self,
        root: &Record,
        server: &str,
        csr: &[u8],
    ) -> Result<CertificateDer<'static>, Error> {
        Root::read(&root.der, &self.trust_domain)?.sign_issuing(
            self.keys.read(&root.key)?,
            &self.trust_domain,
            server,
            &CsrKey::read(csr)?,
            self.lifetimes.issuing,
        )
    }

    /// Is the present root's private key in our folder?
    pub(crate) fn has_root_key(&self) -> bool {
        let authorities = self.authorities();
        authorities
            .active_root()
            .is_some_and(|root| self.has_key(root))
    }

    /// Is its private key in our folder?
    pub(crate) fn has_key(&self, record: &Record) -> bool {
        self.keys.has(&record.key)
    }

    /// Throws away the key of what was made but came to nothing.
    pub(crate) fn discard(&self, record: &Record) {
        if let Err(error) = self.keys.destroy(&record.key) {
            tracing::warn!(%error, "the key of an authority that came to nothing is still there");
        }
    }
}
