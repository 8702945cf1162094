//! SVIDs and keys of workloads in a folder of the machine's memory, so that an agent that is started again serves at
//! once, whether the CA is there or not. They never reach a disk: on any other file system nothing is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handfast_ca::bundle::{pem, sha256};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::Svid;
use handfast_ca::verify::Verifier;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::held::Held;
use crate::files;
use crate::identity::KnownEntry;

/// Files that are looked at; more than SVIDs are ever held.
const MAX_FILES: usize = 20_000;
/// `RAMFS_MAGIC` of the kernel's `linux/magic.h`, which nix does not name.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
const SUFFIX: &str = "pem";
/// A file beside an SVID that a workload has: [`Has`].
const SERVED: &str = "served";

/// What a workload has: the number of its bundle, and what its SVID hangs on. The SVID that is kept may be a newer one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Has {
    pub(super) bundle: u64,
    pub(super) authority: Arc<str>,
}

/// The folder; none where nothing may be kept.
#[derive(Debug)]
pub(super) struct Keep {
    folder: Option<PathBuf>,
    /// Never taken by who holds the state of the workloads.
    writing: Mutex<()>,
    /// Entries whose SVIDs are marked as being served.
    served: Mutex<HashMap<Arc<str>, Has>>,
}

impl Keep {
    /// Makes the folder (0700), if it lies in memory. The second value says why nothing is kept.
    pub(super) fn open(folder: &Path) -> (Self, Option<String>) {
        match in_memory(folder) {
            Ok(()) => {
                let keep = Self {
                    folder: Some(folder.to_owned()),
                    writing: Mutex::default(),
                    served: Mutex::default(),
                };
                (keep, None)
            }
            Err(problem) => (Self::nothing(), Some(problem)),
        }
    }

    /// Keeps nothing.
    pub(super) fn nothing() -> Self {
        Self {
            folder: None,
            writing: Mutex::default(),
            served: Mutex::default(),
        }
    }

    /// Keeps an SVID, in one file with its key so that they always belong together, if it is `wanted` still when its
    /// turn comes: an entry may go while this one waits, and what was forgotten must not come back.
    pub(super) fn save(&self, held: &Held, wanted: impl FnOnce() -> bool) {
        let Some(path) = self.path(&held.entry.id) else {
            return;
        };
        let _turn = self.turn();
        if !wanted() {
            return;
        }
        if let Err(error) = files::write(&path, text(held).as_bytes()) {
            // What is held in memory serves; a restart without the CA would not.
            tracing::warn!(%error, "an SVID is not kept for a restart");
        }
    }

    /// Forgets SVIDs by their entries, which are gone already.
    pub(super) fn forget<'a>(&self, entries: impl IntoIterator<Item = &'a Arc<str>>) {
        for path in entries.into_iter().filter_map(|id| self.path(id)) {
            let _turn = self.turn();
            remove(&path);
            remove(&path.with_extension(SERVED));
        }
    }

    /// Notes for the next run what workloads have of these entries, and of no others.
    pub(super) fn serves(&self, now: HashMap<Arc<str>, Has>) {
        let mut before = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = |id: &Arc<str>| Some(self.path(id)?.with_extension(SERVED));
        for (id, has) in &now {
            if before.get(id) != Some(has)
                && let Some(path) = mark(id)
                && let Err(error) = files::write_volatile_json(&path, has)
            {
                tracing::warn!(%error, "that an SVID is served is not noted for a restart");
            }
        }
        let gone = before.keys().filter(|id| !now.contains_key(*id));
        for path in gone.filter_map(mark) {
            remove(&path);
        }
        *before = now;
    }

    /// What a workload had of this entry when the earlier run ended; none if none was served.
    pub(super) fn was_served(&self, entry: &str) -> Option<Has> {
        files::read_json(&self.path(entry)?.with_extension(SERVED)).ok()?
    }

    /// One file at a time.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an earlier run has kept, as far as it is good; the rest is removed.
    pub(super) fn load(&self, verifier: &Verifier, now: u64) -> Vec<Held> {
        let Some(folder) = &self.folder else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir(folder) else {
            return Vec::new();
        };
        let mut kept = Vec::new();
        for entry in entries.take(MAX_FILES).filter_map(Result::ok) {
            let path = entry.path();
            if path.extension().is_some_and(|end| end == SERVED)
                && path.with_extension(SUFFIX).exists()
            {
                continue;
            }
            match read(&path, verifier, now) {
                Some(held) => kept.push(held),
                None => remove(&path),
            }
        }
        kept
    }

    fn path(&self, entry: &str) -> Option<PathBuf> {
        // A name that no entry can make lead anywhere else.
        let name = data_encoding::HEXLOWER.encode(&sha256(entry.as_bytes()));
        let folder = self.folder.as_ref()?;
        Some(folder.join(name).with_extension(SUFFIX))
    }
}

fn in_memory(folder: &Path) -> Result<(), String> {
    files::private_dir(folder).map_err(|error| error.to_string())?;
    let mode = {
        use std::os::unix::fs::MetadataExt;
        std::fs::symlink_metadata(folder)
            .map(|found| (found.is_dir(), found.uid(), found.mode() & 0o077))
            .map_err(|error| format!("{}: {error}", folder.display()))?
    };
    if mode != (true, nix::unistd::geteuid().as_raw(), 0) {
        return Err(format!(
            "{} is not a folder of ours alone (mode 0700)",
            folder.display()
        ));
    }
    let kind = statfs(folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .filesystem_type();
    if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
        return Ok(());
    }
    // The folder was made to be asked; it holds nothing.
    let _ = std::fs::remove_dir(folder);
    Err(format!(
        "{} is not on a memory file system (tmpfs), and workloads' keys are not written to disks",
        folder.display()
    ))
}

/// One line of JSON that says for which entry it was signed, then key and certificates as PEM.
fn text(held: &Held) -> Zeroizing<String> {
    // Room for all of it at once: a text that grows leaves copies of the key.
    let mut text = Zeroizing::new(String::with_capacity(64 << 10));
    let entry = KnownEntry {
        id: held.entry.id.clone(),
        spiffe_id: held.entry.spiffe_id.clone(),
        dns_names: held.entry.dns_names.clone(),
        ttl: held.entry.ttl,
        ..KnownEntry::default()
    };
    text.push_str(&serde_json::to_string(&entry).unwrap_or_default());
    text.push('\n');
    text.push_str(&Zeroizing::new(pem("PRIVATE KEY", &held.svid.key)));
    for certificate in &held.svid.chain {
        text.push_str(&pem("CERTIFICATE", certificate));
    }
    text
}

fn read(path: &Path, verifier: &Verifier, now: u64) -> Option<Held> {
    if path.extension()? != SUFFIX {
        return None;
    }
    let bytes = files::read(path).ok()?.map(Zeroizing::new)?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, rest) = bytes.split_at_checked(end)?;
    let entry: KnownEntry = serde_json::from_slice(head).ok()?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(rest).ok()?;
    let key = PrivateKey::from_pkcs8(key.secret_pkcs8_der()).ok()?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(rest)
        .collect::<Result<_, _>>()
        .ok()?;
    let time = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    let verified = verifier.workload(&chain, time).ok()?;
    let svid = Svid {
        spiffe_id: verified.spiffe_id,
        chain,
        not_after: verified.not_after,
    };
    Held::verify(Arc::new(entry), &key, svid, verifier, now).ok()
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "a kept SVID is not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_on_a_disk_and_the_reason_is_said() {
        // The root of a machine is no memory file system, or this one cannot be tested on.
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        let kind = statfs(disk.path()).unwrap().filesystem_type();
        if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
            eprintln!("SKIPPED: /var/tmp is in memory here");
            return;
        }
        let folder = disk.path().join("svids");
        let (keep, problem) = Keep::open(&folder);
        assert!(keep.folder.is_none());
        assert!(problem.unwrap().contains("memory file system"));
        assert!(!folder.exists());
    }

    #[test]
    fn a_folder_that_others_may_enter_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(memory.path(), open).unwrap();
        let (keep, problem) = Keep::open(memory.path());
        assert!(keep.folder.is_none() && problem.is_some());
    }

    #[test]
    fn what_was_forgotten_while_it_waited_to_be_kept_does_not_come_back() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = memory.path().join("svids");
        let (keep, _) = Keep::open(&folder);
        let held = super::super::table::tests::held_for("e");
        let files = || std::fs::read_dir(&folder).unwrap().count();
        keep.save(&held, || false);
        assert_eq!(files(), 0);
        keep.save(&held, || true);
        assert_eq!(files(), 1);
        keep.forget([&"e".into()]);
        assert_eq!(files(), 0);
    }

    #[test]
    fn files_that_make_no_sense_are_removed_and_hold_nothing_up() {
        use handfast_ca::bundle::TrustBundle;
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = memory.path().join("svids");
        let (keep, problem) = Keep::open(&folder);
        assert_eq!(problem, None);
        std::fs::write(folder.join("a.pem"), "").unwrap();
        std::fs::write(folder.join("b.pem"), "{}\nrubbish").unwrap();
        std::fs::write(folder.join("c.new-1"), [0xff; 100]).unwrap();
        let domain = spiffe::TrustDomain::new("example.org").unwrap();
        let bundle = TrustBundle::new(domain, 1, []).unwrap();
        let verifier = Verifier::new(bundle, handfast_ca::deny::DenyList::empty());
        assert!(keep.load(&verifier, 0).is_empty());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}
