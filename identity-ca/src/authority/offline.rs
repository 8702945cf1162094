//! A root whose key is kept offline: requests go out, certificates come in.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use spiffe::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::folder::{Folder, Lock, REQUEST, check_folder};
use super::keys::{self, read_key, write_private};
use super::record::{Kind, Record, Standing};
use super::root::{Root, named};
use super::seal::{self, PassphraseFile};
use super::set::Authorities;
use super::setup::read_certificate;
use crate::Error;
use crate::bundle::{Fingerprint, pem};
use crate::certificate::{CsrKey, PrivateKey};
use crate::registry::Section;

const CERTIFICATE: &str = "root.crt";
const KEY: &str = "root.key";

/// A root in a folder of its own, on a machine that serves nobody.
#[derive(Debug)]
pub struct OfflineRoot {
    dir: PathBuf,
    trust_domain: TrustDomain,
    root: Root,
    passphrase: Option<PassphraseFile>,
}

impl OfflineRoot {
    /// Makes a root; `life` in seconds.
    pub fn create(
        dir: &Path,
        trust_domain: &TrustDomain,
        life: u64,
        passphrase_file: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let passphrase = passphrase_file.map(PassphraseFile);
        let (key, root) = Root::make(trust_domain, life)?;
        let pkcs8 = key.to_pkcs8();
        let text = Zeroizing::new(match &passphrase {
            Some(passphrase) => pem("ENCRYPTED PRIVATE KEY", &seal::seal(&pkcs8, passphrase)?),
            None => pem("PRIVATE KEY", &pkcs8),
        });
        DirBuilder::new()
            .mode(0o700)
            .create(dir)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Error::Folder {
                    path: dir.to_owned(),
                    problem:
                        "is there already and was left as it is; choose another folder with --dir"
                            .to_owned(),
                },
                _ => Error::io("cannot create", dir)(error),
            })?;
        write_private(&dir.join(KEY), &text)?;
        write_private(
            &dir.join(CERTIFICATE),
            &pem("CERTIFICATE", &root.certificate),
        )?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain: trust_domain.clone(),
            root,
            passphrase,
        })
    }

    /// Opens a root that [`OfflineRoot::create`] made, or one whose
    /// certificate and key were put into `root.crt` and `root.key`.
    pub fn open(dir: &Path, passphrase_file: Option<PathBuf>) -> Result<Self, Error> {
        let path = dir.join(CERTIFICATE);
        let certificate = read_certificate(&path)?;
        let parsed = X509Certificate::from_der(&certificate).ok();
        let trust_domain = parsed
            .and_then(|(_, parsed)| named(&parsed))
            .ok_or_else(|| Error::Folder {
                path,
                problem: "names no trust domain (a URI such as spiffe://example.org)".to_owned(),
            })?;
        let root = Self {
            dir: dir.to_owned(),
            root: Root::read(&certificate, &trust_domain)?,
            trust_domain,
            passphrase: passphrase_file.map(PassphraseFile),
        };
        root.root.check_key(&root.key()?)?;
        Ok(root)
    }

    /// The certificate (PEM): what `handfast ca init --root-certificate` takes.
    pub fn certificate(&self) -> String {
        pem("CERTIFICATE", &self.root.certificate)
    }

    /// As join tokens name it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.root.certificate)
    }

    /// Whose root it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs the request (PEM) of a server's issuing CA; `life` in seconds.
    pub fn sign(&self, request: &str, server: &str, life: u64) -> Result<String, Error> {
        let csr = CertificateSigningRequestDer::from_pem_slice(request.as_bytes())
            .map_err(|error| Error::invalid("request", format!("not a PEM request: {error}")))?;
        let certificate = self.root.sign_issuing(
            self.key()?,
            &self.trust_domain,
            server,
            &CsrKey::read(&csr)?,
            life,
        )?;
        Ok(pem("CERTIFICATE", &certificate))
    }

    /// Signs a newer root (PEM), so that agents that know only this one follow.
    pub fn cross_sign(&self, newer: &str) -> Result<String, Error> {
        let newer = Root::read(&certificate(newer)?, &self.trust_domain)?;
        let cross = self.root.cross_sign(self.key()?, &newer)?;
        Ok(pem("CERTIFICATE", &cross))
    }

    fn key(&self) -> Result<PrivateKey, Error> {
        read_key(&self.dir.join(KEY), self.passphrase.as_ref())
    }
}

/// The request (PEM) of a CA that has not served yet, from its folder.
pub async fn request(dir: &Path) -> Result<String, Error> {
    check_folder(dir)?;
    let path = dir.join(REQUEST);
    std::fs::read_to_string(&path).map_err(|_| Error::Folder {
        path: dir.to_owned(),
        problem: "waits for no certificate; for the next one ask the running CA (leave --dir out)"
            .to_owned(),
    })
}

/// Takes the first certificate (PEM) of a CA in, which can serve from then on.
pub async fn install(dir: &Path, text: &str) -> Result<(), Error> {
    check_folder(dir)?;
    let _lock = Lock::take(dir)?;
    let folder = Folder::open(dir, None)?;
    let store = folder.open_store().await?;
    let mut change = store.begin().await?;
    let authorities = Authorities::new(Record::all(&mut change).await?);
    let (request, mut record) =
        authorities.answered(&certificate(text)?, &folder.trust_domain, &folder.server)?;
    if authorities.active(Kind::Issuing, &folder.server).is_some() {
        return Err(Error::invalid(
            "certificate",
            "this CA has an issuing CA already: start it and install the next one there (leave --dir out); nothing was changed",
        ));
    }
    keys::must_have(&folder.keys, &record)?;
    record.standing = Standing::Active;
    Record::delete(&mut change, &request).await?;
    record.insert(&mut change).await?;
    change.number(Section::Retired).await?;
    change.commit().await?;
    store.close().await;
    let request = dir.join(REQUEST);
    std::fs::remove_file(&request).map_err(Error::io("cannot remove", request))
}

/// Copies the private key of a root (PEM) that is going to be prepared into
/// the CA's folder, if it is that root's.
pub fn bring_root_key(
    dir: &Path,
    root: &str,
    key: &Path,
    passphrase_file: Option<PathBuf>,
) -> Result<(), Error> {
    check_folder(dir)?;
    let folder = Folder::open(dir, passphrase_file.clone())?;
    let root = Root::read(&certificate(root)?, &folder.trust_domain)?;
    let key = read_key(key, passphrase_file.map(PassphraseFile).as_ref())?;
    root.check_key(&key)?;
    folder.keys.write(Kind::Root, &key).map(drop)
}

impl Authorities {
    /// The request of a server that this certificate answers, and the issuing CA that it makes; signed by a root that
    /// signs or is going to.
    pub(crate) fn answered(
        &self,
        certificate: &CertificateDer<'_>,
        trust_domain: &TrustDomain,
        server: &str,
    ) -> Result<(String, Record), Error> {
        let bad = |problem: &str| {
            Error::invalid("certificate", format!("{problem}: nothing was changed"))
        };
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| bad("it is not well-formed"))?;
        crate::verify::check_intermediate(certificate, trust_domain)
            .map_err(|rejection| bad(&rejection.to_string()))?;
        let point = parsed.public_key().subject_public_key.data.as_ref();
        let key = keys::name(Kind::Issuing, point);
        let request = self
            .of(Kind::Issuing, Standing::Requested)
            .find(|record| record.server == server && record.key == key)
            .ok_or_else(|| bad("it answers no request of this server"))?;
        let signs = |record: &&Record| {
            record.kind == Kind::Root
                && matches!(record.standing, Standing::Prepared | Standing::Active)
        };
        for root in self.all().iter().filter(signs) {
            if Root::read(&root.der, trust_domain)?.signed(certificate)? {
                let record =
                    Record::of_issuing(certificate, server, &root.id, key, Standing::Prepared)?;
                return Ok((request.id.clone(), record));
            }
        }
        Err(bad("none of the roots in the bundle has signed it"))
    }
}

/// The certificate in a PEM text.
pub(crate) fn certificate(text: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|error| Error::invalid("certificate", format!("not PEM: {error}")))
}
