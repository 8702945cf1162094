//! User and groups of a process: `unix:uid:1000`, `unix:user:web`, `unix:supplementary_gid:7`, …
//!
//! User and group are those that the kernel noted when the process connected; what it calls itself since then does
//! not count.

use handfast_ca::model::Selector;
use nix::unistd::{Gid, Group, Uid, User};

use super::process::Process;
use super::selector;
use crate::identity::selectors::Demands;
use crate::workload_api::{AttestError, Peer};

/// Supplementary groups that are looked at; entries that name a later one do not match.
const MAX_GROUPS: usize = 1024;
/// Of them, those whose names are asked for.
const MAX_NAMES: usize = 64;

pub(super) fn look(
    peer: &Peer,
    process: &Process,
    demands: Demands,
    found: &mut Vec<Selector>,
) -> Result<(), AttestError> {
    let groups = supplementary_groups(&process.text("status")?);
    found.push(selector("unix", format!("uid:{}", peer.uid())));
    found.push(selector("unix", format!("gid:{}", peer.gid())));
    for group in &groups {
        found.push(selector("unix", format!("supplementary_gid:{group}")));
    }
    if demands.names {
        if let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid())) {
            found.push(selector("unix", format!("user:{}", user.name)));
        }
        if let Some(name) = group_name(peer.gid()) {
            found.push(selector("unix", format!("group:{name}")));
        }
        let names = groups.iter().take(MAX_NAMES).copied();
        for name in names.filter_map(group_name) {
            found.push(selector("unix", format!("supplementary_group:{name}")));
        }
    }
    Ok(())
}

fn group_name(gid: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(gid))
        .ok()
        .flatten()
        .map(|group| group.name)
}

/// The `Groups:` line of `/proc/PID/status`.
fn supplementary_groups(status: &str) -> Vec<u32> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .unwrap_or_default();
    line.split_ascii_whitespace()
        .take(MAX_GROUPS)
        .filter_map(|group| group.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_line_is_found_and_a_process_name_that_imitates_it_is_not() {
        // The kernel escapes line ends in names, so the name stays on its own line.
        let status = "Name:\tGroups: 0\nUmask:\t0022\nGroups:\t4 27 1000 \nNStgid:\t1\n";
        assert_eq!(supplementary_groups(status), [4, 27, 1000]);
        assert_eq!(supplementary_groups("Name:\tx\n"), Vec::<u32>::new());
    }
}
