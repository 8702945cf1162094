//! The CA's folder: made whole or not at all, and only opened if it is ours alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::issuing::Issuing;
use super::jwt::JwtKey;
use super::{Lifetimes, Setup, make_root};
use crate::bundle::{Fingerprint, pem};
use crate::certificate::{PrivateKey, Signer};
use crate::{Error, now_ms};

/// The registry's file in the folder.
pub(crate) const STORE: &str = "registry.sqlite";
const MARKER: &str = "ca.json";
const ROOT_CERTIFICATE: &str = "root.crt";
const ROOT_KEY: &str = "root.key";
const ISSUING: &str = "issuing.pem";
const JWT_KEY: &str = "jwt.key";
const LOCK: &str = "lock";
const VERSION: u32 = 1;

/// The folder's description of itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    handfast_ca: u32,
    trust_domain: String,
    prefix_ranges: Vec<IpNet>,
    #[serde(default)]
    lifetimes_seconds: Lifetimes,
    created_at_ms: u64,
}

pub(super) struct Opened {
    pub(super) trust_domain: TrustDomain,
    pub(super) prefix_ranges: Vec<IpNet>,
    pub(super) lifetimes: Lifetimes,
    pub(super) root: CertificateDer<'static>,
    pub(super) root_key: PrivateKey,
    pub(super) issuing: Issuing,
    pub(super) jwt: JwtKey,
}

/// Fills a draft beside `dir` and renames it there: a crash leaves no half CA.
pub(super) async fn create<T, F>(dir: &Path, fill: impl FnOnce(&Path) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    refuse_occupied(dir)?;
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(Error::io("cannot create", &parent))?;
    let name = dir
        .file_name()
        .ok_or_else(|| problem(dir, "give the folder a name"))?;
    let suffix: u64 = rand::random();
    let draft = parent.join(format!(".{}.draft-{suffix:016x}", name.to_string_lossy()));
    DirBuilder::new()
        .mode(0o700)
        .create(&draft)
        .map_err(Error::io("cannot create", &draft))?;
    let guard = Draft(Some(draft.clone()));
    let filled = fill(&draft).await?;
    File::open(&draft)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("cannot write", &draft))?;
    // Over an empty folder this works, over anything else it does not.
    fs::rename(&draft, dir).map_err(Error::io("cannot create", dir))?;
    guard.keep();
    File::open(&parent)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("cannot write", &parent))?;
    Ok(filled)
}

/// Removes an unfinished draft.
struct Draft(Option<PathBuf>);

impl Draft {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn refuse_occupied(dir: &Path) -> Result<(), Error> {
    let mut content = match fs::read_dir(dir) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("cannot read", dir)(error)),
    };
    if dir.join(MARKER).exists() {
        return Err(problem(
            dir,
            "holds a CA already; it was left as it is (start it with `handfast ca serve`, or choose another folder with --dir)",
        ));
    }
    if content.next().is_some() {
        return Err(problem(
            dir,
            "is not empty and not a CA's; choose another folder with --dir",
        ));
    }
    Ok(())
}

/// Is this a CA's folder, owned by us and closed to all others?
pub(crate) fn check_folder(dir: &Path) -> Result<(), Error> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => problem(
            dir,
            "does not exist; make a CA with `handfast ca init`, or give its folder with --dir",
        ),
        _ => Error::io("cannot read", dir)(error),
    };
    let folder = fs::symlink_metadata(dir).map_err(missing)?;
    if !folder.is_dir() {
        return Err(problem(dir, "is not a folder"));
    }
    check_private(dir, &folder)?;
    if !dir.join(MARKER).exists() {
        return Err(problem(
            dir,
            "is not a handfast CA's; make one with `handfast ca init`, or give the right folder with --dir",
        ));
    }
    for name in [MARKER, ROOT_KEY, ISSUING, STORE] {
        let path = dir.join(name);
        let file = fs::symlink_metadata(&path).map_err(Error::io("cannot read", &path))?;
        if !file.is_file() {
            return Err(problem(&path, "is not a plain file"));
        }
        check_private(&path, &file)?;
    }
    Ok(())
}

fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), Error> {
    let us = nix::unistd::geteuid().as_raw();
    if metadata.uid() != us {
        return Err(problem(
            path,
            &format!(
                "belongs to uid {}, we are uid {us}: run as its owner, or give another folder",
                metadata.uid()
            ),
        ));
    }
    let open = metadata.mode() & 0o077;
    if open != 0 {
        return Err(problem(
            path,
            &format!(
                "can be reached by others (mode {:o}): nothing was read; close it with `chmod -R go= {}` and consider its keys known",
                metadata.mode() & 0o777,
                path.display()
            ),
        ));
    }
    Ok(())
}

/// Makes the keys and certificates of a new CA.
pub(super) fn write_keys(dir: &Path, setup: &Setup) -> Result<Fingerprint, Error> {
    let lifetimes = Lifetimes::default();
    let (root_key, root) = make_root(&setup.trust_domain)?;
    let pkcs8 = root_key.to_pkcs8();
    let signer: Arc<dyn Signer> = Arc::new(root_key);
    let issuing = Issuing::make(&setup.trust_domain, &root, &signer, lifetimes.issuing)?;
    write(
        &dir.join(ROOT_KEY),
        &Zeroizing::new(pem("PRIVATE KEY", &pkcs8)),
    )?;
    write(&dir.join(ROOT_CERTIFICATE), &pem("CERTIFICATE", &root))?;
    write_issuing(dir, &issuing)?;
    let marker = Marker {
        handfast_ca: VERSION,
        trust_domain: setup.trust_domain.as_str().to_owned(),
        prefix_ranges: setup.prefix_ranges.clone(),
        lifetimes_seconds: lifetimes,
        created_at_ms: now_ms(),
    };
    let text = serde_json::to_string_pretty(&marker)
        .map_err(|error| problem(dir, &format!("cannot be described: {error}")))?;
    write(&dir.join(MARKER), &(text + "\n"))?;
    Ok(Fingerprint::of(&root))
}

/// Key and certificate of an issuing CA in one file, replaced in one step.
pub(super) fn write_issuing(dir: &Path, issuing: &Issuing) -> Result<(), Error> {
    let text = Zeroizing::new(
        pem("PRIVATE KEY", issuing.pkcs8()) + &pem("CERTIFICATE", &issuing.certificate),
    );
    let (path, draft) = (dir.join(ISSUING), dir.join("issuing.pem.new"));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("cannot replace", &draft)(error));
        }
        _ => {}
    }
    write(&draft, &text)?;
    fs::rename(&draft, &path).map_err(Error::io("cannot replace", &path))
}

pub(super) fn read_keys(dir: &Path) -> Result<Opened, Error> {
    let path = dir.join(MARKER);
    let marker: Marker = serde_json::from_slice(&read(&path)?)
        .map_err(|error| problem(&path, &format!("cannot be understood: {error}")))?;
    if marker.handfast_ca != VERSION {
        return Err(problem(
            &path,
            &format!(
                "is of version {}, this program knows {VERSION}",
                marker.handfast_ca
            ),
        ));
    }
    let trust_domain = TrustDomain::new(&marker.trust_domain)
        .map_err(|error| problem(&path, &format!("names no trust domain: {error}")))?;
    let issuing = dir.join(ISSUING);
    Ok(Opened {
        trust_domain,
        prefix_ranges: marker.prefix_ranges,
        lifetimes: marker.lifetimes_seconds,
        root: certificate(&dir.join(ROOT_CERTIFICATE))?,
        root_key: key(&dir.join(ROOT_KEY))?,
        issuing: Issuing::from_parts(certificate(&issuing)?, key(&issuing)?)?,
        jwt: jwt_key(dir, marker.lifetimes_seconds.jwt_key)?,
    })
}

/// The key for JWT-SVIDs, made when there is none yet.
fn jwt_key(dir: &Path, life: u64) -> Result<JwtKey, Error> {
    let path = dir.join(JWT_KEY);
    if !path.exists() {
        let text = Zeroizing::new(pem("PRIVATE KEY", &PrivateKey::generate()?.to_pkcs8()));
        write(&path, &text)?;
    }
    JwtKey::new(&key(&path)?, now_ms() / 1000 + life)
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(&read(path)?)
        .map_err(|error| problem(path, &format!("holds no certificate: {error}")))
}

fn key(path: &Path) -> Result<PrivateKey, Error> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| problem(path, &format!("holds no private key: {error}")))?;
    PrivateKey::from_pkcs8(der.secret_pkcs8_der())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    fs::read(path)
        .map(Zeroizing::new)
        .map_err(Error::io("cannot read", path))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("cannot create", path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("cannot write", path))
}

/// Held while a server runs on the folder: two would sign two histories.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Lock {
    pub(crate) fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("cannot open", &path))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map(Self)
            .map_err(|_| {
                problem(
                    dir,
                    "is in use: another `handfast ca serve` runs on it; stop that one first",
                )
            })
    }
}

fn problem(path: &Path, problem: &str) -> Error {
    Error::Folder {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}
