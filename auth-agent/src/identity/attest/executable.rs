//! The program that a process runs: `unix:path:/usr/bin/web`, `unix:sha256:…`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use handfast_ca::model::Selector;
use nix::errno::Errno;

use super::process::{Process, failed};
use super::selector;
use crate::identity::selectors::Demands;
use crate::workload_api::AttestError;

/// Returns the open program if its hash is asked for.
pub(super) fn look(
    process: &Process,
    demands: Demands,
    found: &mut Vec<Selector>,
) -> Result<Option<File>, AttestError> {
    match path(process) {
        Ok(Some(path)) => found.push(selector("unix", format!("path:{path}"))),
        Ok(None) => {}
        // No right to see the program, or none there: it is known by the rest.
        Err(Errno::EACCES | Errno::EPERM | Errno::ENOENT) => {}
        Err(error) => return Err(failed("its program", error)),
    }
    if !demands.sha256 {
        return Ok(None);
    }
    match process.file("exe") {
        Ok(program) => Ok(Some(program)),
        Err(Errno::EACCES | Errno::EPERM | Errno::ENOENT) => Ok(None),
        Err(error) => Err(failed("its program", error)),
    }
}

/// The program's path, if it leads to the program here: a process with a root of its own could put any file at a
/// path that means something on the node.
fn path(process: &Process) -> Result<Option<String>, Errno> {
    let link = process.link("exe")?;
    let runs = process.stat("exe")?;
    let here = std::fs::metadata(Path::new(&link));
    let same = here.is_ok_and(|here| (here.dev(), here.ino()) == (runs.st_dev, runs.st_ino));
    Ok(link
        .into_string()
        .ok()
        .filter(|path| same && path.starts_with('/')))
}
