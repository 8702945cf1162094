//! Where a process stands in the tree of control groups (version 2), and which systemd unit that is.

use handfast_ca::model::Selector;

use super::pod;
use super::process::Process;
use super::selector;
use crate::workload_api::AttestError;
use crate::workload_api::cgroup::path_in;

pub(super) fn look(process: &Process, found: &mut Vec<Selector>) -> Result<(), AttestError> {
    let text = process.text("cgroup")?;
    let Some(path) = unified(&text) else {
        return Ok(());
    };
    found.push(selector("cgroup", path));
    if let Some(uid) = pod::uid(path) {
        found.push(selector("k8s", format!("pod-uid:{uid}")));
    }
    if let Some(unit) = systemd_unit(path) {
        found.push(selector("systemd", format!("id:{unit}")));
    }
    Ok(())
}

/// The pod (UID) of a process whose `/proc/PID/cgroup` this is.
pub fn pod_uid(file: &str) -> Option<String> {
    pod::uid(unified(file)?)
}

/// The path in the one tree of version 2. One that leads out of the tree that the agent sees is none.
fn unified(text: &str) -> Option<&str> {
    let path = path_in(text)?;
    let sane = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    sane.then_some(path)
}

/// The unit that systemd started the process in: the first part that is not a slice. Parts below it may have been
/// made by the unit's own user, and name nothing.
fn systemd_unit(path: &str) -> Option<&str> {
    const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
    let part = path
        .split('/')
        .filter(|part| !part.is_empty())
        .find(|part| !part.ends_with(".slice"))?;
    // systemd puts `_` before names that the kernel has taken.
    let unit = part.strip_prefix('_').unwrap_or(part);
    KINDS
        .iter()
        .any(|kind| unit.len() > kind.len() && unit.ends_with(kind))
        .then_some(unit)
}

/// Does a path of the tree match an entry's pattern? `*` stands for any characters of one part, `**` as a whole part
/// for any number of parts.
pub fn pattern_matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    wild(
        &pattern,
        &path,
        |part| *part == "**",
        |pattern, part| {
            let (pattern, part): (Vec<char>, Vec<char>) =
                (pattern.chars().collect(), part.chars().collect());
            wild(&pattern, &part, |c| *c == '*', |a, b| a == b)
        },
    )
}

/// Matches with wildcards for any number of items, in time of the product of both lengths: no pattern makes it worse.
fn wild<T>(pattern: &[T], items: &[T], any: fn(&T) -> bool, same: impl Fn(&T, &T) -> bool) -> bool {
    let (mut at, mut item) = (0, 0);
    // Where to go on if what follows the last wildcard does not fit: one item further.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(current) = items.get(item) {
        match pattern.get(at) {
            Some(wildcard) if any(wildcard) => {
                retry = Some((at, item));
                at += 1;
            }
            Some(exact) if same(exact, current) => {
                at += 1;
                item += 1;
            }
            _ => match retry {
                Some((wildcard, from)) => {
                    retry = Some((wildcard, from + 1));
                    at = wildcard + 1;
                    item = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_first_part_that_is_no_slice_whatever_its_user_made_below() {
        let unit = systemd_unit;
        assert_eq!(unit("/system.slice/nginx.service"), Some("nginx.service"));
        assert_eq!(
            unit("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service"),
            Some("user@1000.service")
        );
        assert_eq!(unit("/system.slice/_cpu.service"), Some("cpu.service"));
        assert_eq!(unit("/docker/0123"), None);
        assert_eq!(unit("/system.slice"), None);
        assert_eq!(unit("/"), None);
        assert_eq!(unit("/.service"), None);
    }

    #[test]
    fn a_path_that_leads_out_of_the_tree_is_none() {
        assert_eq!(unified("0::/a.slice/b\n"), Some("/a.slice/b"));
        assert_eq!(unified("0::/../../outside\n"), None);
        assert_eq!(unified("0::relative\n"), None);
    }

    #[test]
    fn a_star_stays_within_its_part_and_two_cross_parts() {
        let path = "/kubepods.slice/burstable/pod-1.slice/container-a";
        assert!(pattern_matches(path, path));
        assert!(pattern_matches("/kubepods.slice/**", path));
        assert!(pattern_matches("/kubepods.slice/*/pod-*.slice/*", path));
        assert!(pattern_matches("/**/container-a", path));
        assert!(pattern_matches("/**/**", path));
        assert!(!pattern_matches("/kubepods.slice/*", path));
        assert!(!pattern_matches("/kubepods*/container-a", path));
        assert!(!pattern_matches("/kubepods.slice", path));
        assert!(!pattern_matches("", path));
    }

    #[test]
    fn a_pattern_of_many_wildcards_takes_no_exponential_time() {
        let path = format!("/{}", "a".repeat(400));
        let pattern = format!("/{}b", "a*".repeat(200));
        let started = std::time::Instant::now();
        assert!(!pattern_matches(&pattern, &path));
        assert!(started.elapsed() < std::time::Duration::from_secs(30));
    }
}
