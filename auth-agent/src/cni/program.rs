//! The plugin's program among those of the runtime: a copy of this one, under the plugin's name.
//!
//! A copy, not a link: the program that runs may be in a container, where the runtime does not look.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::PLUGIN;

/// Puts the program into `folder`, renamed into place so that a runtime never starts half of it.
///
/// # Errors
/// The disk refuses; what was there before stays.
pub fn place_program(folder: &Path) -> io::Result<PathBuf> {
    let target = folder.join(PLUGIN);
    let fresh = folder.join(format!(".{PLUGIN}.{}", std::process::id()));
    let placed = fs::copy("/proc/self/exe", &fresh)
        .and_then(|_| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&fresh, &target));
    if placed.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&fresh);
    }
    placed.map(|()| target)
}

/// Takes the program away; one that is not there is no error.
///
/// # Errors
/// The disk refuses.
pub fn remove_program(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(PLUGIN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
