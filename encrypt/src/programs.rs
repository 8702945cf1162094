//! Finding the programs this crate runs.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where administrators' programs are when PATH does not say so (services often start without `sbin`).
const USUAL: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The program's full path: as named if it is a path, else from PATH and the usual folders. Links are not
/// followed: some programs go by the name they are called by.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return runnable(program);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(USUAL.iter().map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .find_map(|folder| runnable(&folder.join(program)))
}

fn runnable(path: &Path) -> Option<PathBuf> {
    let metadata = path.metadata().ok()?;
    let runs = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
    runs.then(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_name_or_path_and_a_folder_is_none() {
        let shell = find(Path::new("sh")).expect("a shell");
        assert_eq!(find(&shell), Some(shell));
        assert_eq!(find(Path::new("/etc")), None);
        assert_eq!(find(Path::new("no-such-program-at-all")), None);
    }
}
