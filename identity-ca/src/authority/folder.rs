//! The CA's folder: made whole or not at all, and only opened if it is ours alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use spiffe::TrustDomain;

use super::keys::{Keys, write_private};
use super::{Lifetimes, Setup};
use crate::registry::Store;
use crate::{Error, now_ms};

/// The registry's file in the folder.
pub(crate) const STORE: &str = "registry.sqlite";
/// What an offline root is to sign.
pub(super) const REQUEST: &str = "request.csr";
const MARKER: &str = "ca.json";
const KEYS: &str = "keys";
const LOCK: &str = "lock";
const VERSION: u32 = 2;

/// The folder's description of itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    handfast_ca: u32,
    trust_domain: String,
    /// Names this server among those that share the store.
    server: String,
    prefix_ranges: Vec<IpNet>,
    /// The PostgreSQL database that several servers share; a file in the
    /// folder without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(default)]
    lifetimes_seconds: Lifetimes,
    created_at_ms: u64,
}

/// What the folder says.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    pub(super) trust_domain: TrustDomain,
    pub(super) server: String,
    pub(super) prefix_ranges: Vec<IpNet>,
    pub(super) lifetimes: Lifetimes,
    pub(super) keys: Keys,
    store: Option<String>,
}

impl Folder {
    /// Writes the description of a new CA, and an empty folder of keys.
    pub(super) fn make(dir: &Path, setup: &Setup) -> Result<Self, Error> {
        let marker = Marker {
            handfast_ca: VERSION,
            trust_domain: setup.trust_domain.as_str().to_owned(),
            server: setup.server.clone(),
            prefix_ranges: setup.prefix_ranges.clone(),
            store: setup.store.clone(),
            lifetimes_seconds: setup.lifetimes,
            created_at_ms: now_ms(),
        };
        let text = serde_json::to_string_pretty(&marker)
            .map_err(|error| problem(dir, &format!("cannot be described: {error}")))?;
        write_private(&dir.join(MARKER), &(text + "\n"))?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain: setup.trust_domain.clone(),
            server: setup.server.clone(),
            prefix_ranges: setup.prefix_ranges.clone(),
            lifetimes: setup.lifetimes,
            keys: Keys::create(dir.join(KEYS), setup.passphrase_file.clone())?,
            store: setup.store.clone(),
        })
    }

    /// Reads the description.
    pub(super) fn open(dir: &Path, passphrase_file: Option<PathBuf>) -> Result<Self, Error> {
        let path = dir.join(MARKER);
        let text = fs::read(&path).map_err(Error::io("cannot read", &path))?;
        let marker: Marker = serde_json::from_slice(&text)
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
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain,
            server: marker.server,
            prefix_ranges: marker.prefix_ranges,
            lifetimes: marker.lifetimes_seconds,
            keys: Keys::open(dir.join(KEYS), passphrase_file),
            store: marker.store,
        })
    }

    /// Opens the registry, wherever it is.
    pub(super) async fn open_store(&self) -> Result<Store, Error> {
        match &self.store {
            Some(url) => Store::connect(&url.parse()?).await,
            None => {
                let store = self.dir.join(STORE);
                if !store.exists() {
                    return Err(problem(
                        &store,
                        "the registry is missing: nothing was changed. Put it back if it was moved, or make the CA anew from a backup in another folder (`handfast ca restore`, see docs/recovery.md)",
                    ));
                }
                Store::open(&store).await
            }
        }
    }

    /// A CA that has never had an issuing CA waits for its certificate.
    pub(super) fn explain(&self, error: Error) -> Error {
        let request = self.dir.join(REQUEST);
        if matches!(error, Error::Missing { .. }) && request.exists() {
            return problem(
                &self.dir,
                &format!(
                    "waits for the certificate of its issuing CA: have {} signed where the root's key is (`handfast ca root sign --dir ROOT`), then take the certificate in with `handfast ca root install --dir {}`",
                    request.display(),
                    self.dir.display()
                ),
            );
        }
        error
    }
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
    // Nothing can be renamed over a mount point: it is filled from inside.
    let mounted = is_mount_point(dir, &parent)?;
    let parent = if mounted { dir.to_owned() } else { parent };
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
    if mounted {
        move_up(&draft, dir)?;
    } else {
        // Over an empty folder this works, over anything else it does not.
        fs::rename(&draft, dir).map_err(Error::io("cannot create", dir))?;
        guard.keep();
    }
    File::open(&parent)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("cannot write", &parent))?;
    Ok(filled)
}

fn is_mount_point(dir: &Path, parent: &Path) -> Result<bool, Error> {
    match fs::metadata(dir) {
        Ok(found) => {
            let above = fs::metadata(parent).map_err(Error::io("cannot read", parent))?;
            Ok(found.dev() != above.dev())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("cannot read", dir)(error)),
    }
}

/// Moves a draft into the folder around it. Without its description, which
/// comes last, the folder is no CA's.
fn move_up(draft: &Path, dir: &Path) -> Result<(), Error> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .map_err(Error::io("cannot protect", dir))?;
    let mut names = Vec::new();
    for entry in fs::read_dir(draft).map_err(Error::io("cannot read", draft))? {
        names.push(entry.map_err(Error::io("cannot read", draft))?.file_name());
    }
    names.sort_by_key(|name| name.as_os_str() == MARKER);
    for name in names {
        let place = dir.join(&name);
        fs::rename(draft.join(&name), &place).map_err(Error::io("cannot create", place))?;
    }
    Ok(())
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
    if is_initialized(dir) {
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

/// Whether a folder holds a CA.
#[must_use]
pub fn is_initialized(dir: &Path) -> bool {
    dir.join(MARKER).exists()
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
    if !is_initialized(dir) {
        return Err(problem(
            dir,
            "is not a handfast CA's; make one with `handfast ca init`, or give the right folder with --dir",
        ));
    }
    check_private(dir, &folder)?;
    let mut files = vec![dir.join(MARKER)];
    files.extend(Some(dir.join(STORE)).filter(|store| store.exists()));
    let keys = dir.join(KEYS);
    let folder = fs::symlink_metadata(&keys).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => problem(
            &keys,
            "the private keys are missing: nothing was changed. Put them back if they were moved, or make the CA anew from a backup in another folder (`handfast ca restore`, see docs/recovery.md)",
        ),
        _ => Error::io("cannot read", &keys)(error),
    })?;
    check_private(&keys, &folder)?;
    for file in fs::read_dir(&keys).map_err(Error::io("cannot read", &keys))? {
        files.push(file.map_err(Error::io("cannot read", &keys))?.path());
    }
    for path in files {
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
