//! A process's place in the one tree of control groups (version 2): whose share of the endpoint it uses, and what
//! attestation says of it.

use std::fs::File;
use std::io::Read;

/// More than any path of the tree: what is longer is told apart by its beginning only.
const MAX_FILE: u64 = 8192;

/// The path in the tree of version 2, as the agent sees it.
pub(crate) fn path_in(file: &str) -> Option<&str> {
    let path = file.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// The path of a process that is being accepted; empty where there is no such tree, or none to be seen.
pub(super) fn of(pid: u32) -> String {
    let mut text = String::new();
    let read = File::open(format!("/proc/{pid}/cgroup"))
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    match read {
        Ok(_) => path_in(&text).unwrap_or_default().to_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_unified_tree_counts() {
        let text = "12:pids:/evil\n1:name=systemd:/evil\n0::/system.slice/a.service\n";
        assert_eq!(path_in(text), Some("/system.slice/a.service"));
        assert_eq!(path_in("4:memory:/x\n"), None);
        assert_eq!(path_in("0::/gone (deleted)\n"), Some("/gone"));
    }

    #[test]
    fn a_process_that_is_gone_stands_nowhere() {
        assert_eq!(of(u32::MAX), "");
    }
}
