//! The private keys of one server: a file each, ours alone, destroyed when nothing may be signed with it any more.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::record::{Kind, Record};
use super::seal::{self, PassphraseFile};
use crate::bundle::{pem, sha256};
use crate::certificate::{PrivateKey, Signer};
use crate::{Error, failpoint};

const PLAIN: &str = "PRIVATE KEY";
pub(super) const SEALED: &str = "ENCRYPTED PRIVATE KEY";
/// A key whose row was never written is left for as long as somebody may still be about to.
const ORPHAN: Duration = Duration::from_secs(24 * 3600);

/// The folder of keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    dir: PathBuf,
    /// Seals roots' keys.
    passphrase: Option<PassphraseFile>,
}

impl Keys {
    /// Makes the folder.
    pub(super) fn create(dir: PathBuf, passphrase: Option<PathBuf>) -> Result<Self, Error> {
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(Error::io("cannot create", &dir))?;
        Ok(Self::open(dir, passphrase))
    }

    /// A folder that is there.
    pub(super) fn open(dir: PathBuf, passphrase: Option<PathBuf>) -> Self {
        Self {
            dir,
            passphrase: passphrase.map(PassphraseFile),
        }
    }

    /// Stores a key, before any row refers to it; gives its name.
    pub(super) fn write(&self, kind: Kind, key: &PrivateKey) -> Result<String, Error> {
        let name = name(kind, key.public_key());
        let path = self.path(&name);
        if path.exists() {
            // Named by its public key: it is the same.
            return Ok(name);
        }
        let pkcs8 = key.to_pkcs8();
        let text = match (&self.passphrase, kind) {
            (Some(passphrase), Kind::Root) => pem(SEALED, &seal::seal(&pkcs8, passphrase)?),
            _ => pem(PLAIN, &pkcs8),
        };
        write_private(&path, &Zeroizing::new(text))?;
        self.sync()?;
        Ok(name)
    }

    /// Reads a key; it is the one that its name says.
    pub(super) fn read(&self, name: &str) -> Result<PrivateKey, Error> {
        let path = self.path(name);
        if !path.exists() {
            return Err(problem(
                &path,
                "this private key is missing, and the CA signs with it: nothing was changed. Put the file back, or restore a backup that holds the keys into another folder (`handfast ca restore`, see docs/recovery.md)",
            ));
        }
        let key = read_key(&path, self.passphrase.as_ref())?;
        if kind_of(name, key.public_key()).is_some() {
            Ok(key)
        } else {
            Err(problem(&path, "holds another key than its name says"))
        }
    }

    /// Is the key here?
    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The names of all keys.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(Error::io("cannot read", &self.dir))? {
            let file = file.map_err(Error::io("cannot read", &self.dir))?;
            let name = file.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.strip_suffix(".pem"))
                    .map(ToOwned::to_owned),
            );
        }
        names.sort();
        Ok(names)
    }

    /// Destroys a key; what it has signed stays good. One that is gone already is.
    pub(super) fn destroy(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        let file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("cannot destroy", path)(error)),
        };
        failpoint::here("before-key-destroyed");
        overwrite(file).map_err(Error::io("cannot destroy", &path))?;
        fs::remove_file(&path).map_err(Error::io("cannot destroy", &path))?;
        failpoint::here("after-key-destroyed");
        self.sync()?;
        tracing::info!(key = name, "a key that signs no more was destroyed");
        Ok(())
    }

    /// Destroys the keys that may not sign any more, and those that a crash left without a row.
    pub(super) fn tidy(&self, records: &[Record]) -> Result<(), Error> {
        let read = Error::io("cannot read", &self.dir);
        for file in fs::read_dir(&self.dir).map_err(read)? {
            let file = file.map_err(Error::io("cannot read", &self.dir))?;
            let file_name = file.file_name();
            let Some(name) = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(".pem"))
            else {
                continue;
            };
            let mut referring = records
                .iter()
                .filter(|record| record.key == name)
                .peekable();
            let orphan = || {
                let age = file.metadata().and_then(|metadata| metadata.modified());
                age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ORPHAN))
            };
            let done = match referring.peek() {
                Some(_) => referring.all(|record| !record.standing.needs_key()),
                // A root's key is never taken for rubbish.
                None => !name.starts_with(Kind::Root.name()) && orphan(),
            };
            if done {
                self.destroy(name)?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.dir)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("cannot write", &self.dir))
    }
}

/// What a key's file is called: its kind, and the hash of its public key (a point).
pub(super) fn name(kind: Kind, public_key: &[u8]) -> String {
    let hash = data_encoding::HEXLOWER.encode(&sha256(public_key));
    let short = hash.get(..32).unwrap_or(&hash);
    format!("{}-{short}", kind.name())
}

/// What a key of this name is for, if it is the one that its name says.
pub(super) fn kind_of(name: &str, public_key: &[u8]) -> Option<Kind> {
    [Kind::Root, Kind::Issuing, Kind::Jwt]
        .into_iter()
        .find(|kind| self::name(*kind, public_key) == name)
}

/// A private key of a file, sealed or plain.
pub(super) fn read_key(
    path: &Path,
    passphrase: Option<&PassphraseFile>,
) -> Result<PrivateKey, Error> {
    let text = Zeroizing::new(fs::read(path).map_err(Error::io("cannot read", path))?);
    let metadata = fs::metadata(path).map_err(Error::io("cannot read", path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 && matches!(sections(&text), Some((Label::Plain, _))) {
        return Err(problem(
            path,
            &format!(
                "this private key can be read by others (mode {mode:o}): nothing was changed; close it with `chmod 600 {}`, and consider whether it is known already",
                path.display()
            ),
        ));
    }
    read_key_text(&text, path, passphrase)
}

/// The same of a text; `path` is where it is from.
pub(super) fn read_key_text(
    text: &[u8],
    path: &Path,
    passphrase: Option<&PassphraseFile>,
) -> Result<PrivateKey, Error> {
    let (label, der) =
        sections(text).ok_or_else(|| problem(path, "holds no private key (PEM, PKCS#8, P-256)"))?;
    let der = match (label, passphrase) {
        (Label::Plain, _) => der,
        (Label::Sealed, Some(passphrase)) => seal::open(&der, path, passphrase)?,
        (Label::Sealed, None) => {
            return Err(problem(
                path,
                "is sealed by a passphrase: give its file with --passphrase-file",
            ));
        }
    };
    PrivateKey::from_pkcs8(&der).map_err(|error| match label {
        Label::Sealed => problem(
            path,
            "does not open with this passphrase: nothing was changed",
        ),
        Label::Plain => problem(path, &error.to_string()),
    })
}

#[derive(Clone, Copy)]
enum Label {
    Plain,
    Sealed,
}

fn sections(text: &[u8]) -> Option<(Label, Zeroizing<Vec<u8>>)> {
    if let Ok(key) = PrivatePkcs8KeyDer::from_pem_slice(text) {
        return Some((
            Label::Plain,
            Zeroizing::new(key.secret_pkcs8_der().to_vec()),
        ));
    }
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {SEALED}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {SEALED}-----"))?;
    let digits: Vec<u8> = body
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let der = data_encoding::BASE64.decode(&digits).ok()?;
    Some((Label::Sealed, Zeroizing::new(der)))
}

fn overwrite(mut file: File) -> io::Result<()> {
    // A file system that writes elsewhere keeps the old blocks; this is for those that do not.
    let length = file.metadata()?.len();
    let zeros = vec![0; usize::try_from(length).unwrap_or(0).min(1 << 16)];
    file.write_all(&zeros)?;
    file.sync_all()
}

/// Writes a file that only we can read, and that was not there before.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    // Complete or not at all: a crash leaves no half key under the final name.
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("cannot replace", &draft)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(Error::io("cannot create", &draft))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("cannot write", &draft))?;
    fs::rename(&draft, path).map_err(Error::io("cannot create", path))
}

fn problem(path: &Path, problem: &str) -> Error {
    Error::Folder {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}

/// A certificate without its key is of no use here.
pub(super) fn must_have(keys: &Keys, record: &Record) -> Result<(), Error> {
    if keys.has(&record.key) {
        Ok(())
    } else {
        Err(Error::invalid(
            "certificate",
            "the private key of its request is not in this CA's folder: nothing was changed",
        ))
    }
}
