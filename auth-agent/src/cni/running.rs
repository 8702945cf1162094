//! Pods that ran before the agent did, or started while nobody called the plugin: their network namespaces are found by
//! their processes.
//!
//! A process says by its control group which pod it is of (the kubelet made that group, and what a pod makes below it
//! changes nothing), and by its folder under `/proc` which namespace it is in. A pod counts only if all of its
//! processes that are in a namespace with a name, under `/run/netns`, are in the same one, and no other pod's are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstatat};

use crate::endpoint::NamespaceName;
use crate::identity::pod_uid;

/// Where runtimes keep pods' network namespaces.
const NAMESPACES: &str = "/run/netns";
/// Names that are looked at; more than any node has pods.
const MAX_NAMESPACES: usize = 16_384;
/// Of a process's control groups; a longer list is none that a kubelet made.
const MAX_CGROUP: u64 = 64 << 10;

/// Where a pod is that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Running {
    /// In this namespace of its own.
    In(NamespaceName),
    /// In the node's own namespace: it has no link that could be gated.
    OnHost,
    /// Where it cannot be gated, and why.
    Odd(&'static str),
}

/// A namespace as the kernel numbers it: device and inode.
type Number = (u64, u64);

/// Looks for the processes of these pods (UIDs). Pods of which nothing runs are not in the answer.
///
/// # Errors
/// `/proc` or `/run/netns` cannot be read.
pub fn running(wanted: &BTreeSet<String>) -> io::Result<BTreeMap<String, Running>> {
    let host = number(&fs::metadata("/proc/self/ns/net")?);
    let mut seen: BTreeMap<String, BTreeSet<Number>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // Processes come and go; one that cannot be read is of nobody.
        if let Some((uid, namespace)) = process(&Path::new("/proc").join(name), wanted) {
            seen.entry(uid).or_default().insert(namespace);
        }
    }
    Ok(judge(seen, host, &named(Path::new(NAMESPACES))?))
}

/// The pod and the namespace of one process, if the pod is wanted. Both are read through one descriptor of its folder,
/// which never becomes another process's.
fn process(folder: &Path, wanted: &BTreeSet<String>) -> Option<(String, Number)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder: OwnedFd = open(folder, flags, Mode::empty()).ok()?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(folder.as_fd(), "cgroup", flags, Mode::empty()).ok()?;
    let mut text = String::new();
    let mut file = File::from(file).take(MAX_CGROUP);
    file.read_to_string(&mut text).ok()?;
    let uid = pod_uid(&text).filter(|uid| wanted.contains(uid))?;
    let namespace: FileStat = fstatat(folder.as_fd(), "ns/net", AtFlags::empty()).ok()?;
    Some((uid, (namespace.st_dev, namespace.st_ino)))
}

/// The namespaces that have names. What is no namespace has a number that no process is in.
fn named(folder: &Path) -> io::Result<BTreeMap<Number, NamespaceName>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut named = BTreeMap::new();
    for entry in entries.take(MAX_NAMESPACES) {
        let entry = entry?;
        let name = entry.file_name();
        // It may go at any moment.
        let Ok(metadata) = fs::metadata(entry.path()) else {
            continue;
        };
        if let Some(Ok(name)) = name.to_str().map(NamespaceName::new) {
            named.insert(number(&metadata), name);
        }
    }
    Ok(named)
}

fn number(metadata: &fs::Metadata) -> Number {
    (metadata.dev(), metadata.ino())
}

fn judge(
    seen: BTreeMap<String, BTreeSet<Number>>,
    host: Number,
    named: &BTreeMap<Number, NamespaceName>,
) -> BTreeMap<String, Running> {
    let mut pods: BTreeMap<Number, usize> = BTreeMap::new();
    for namespace in seen.values().flatten() {
        *pods.entry(*namespace).or_default() += 1;
    }
    let of = |namespaces: &BTreeSet<Number>| {
        let own: Vec<(&Number, &NamespaceName)> = namespaces
            .iter()
            .filter(|namespace| **namespace != host)
            .filter_map(|namespace| Some((namespace, named.get(namespace)?)))
            .collect();
        match own.as_slice() {
            [] if namespaces.contains(&host) => Running::OnHost,
            [] => Running::Odd("its network namespace has no name under /run/netns"),
            [(namespace, name)] => match pods.get(namespace) {
                Some(1) => Running::In((*name).clone()),
                _ => Running::Odd("another pod has processes in its network namespace"),
            },
            _ => Running::Odd("its processes are in several network namespaces"),
        }
    };
    seen.iter()
        .map(|(uid, namespaces)| (uid.clone(), of(namespaces)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Number = (4, 1);

    fn look(seen: &[(&str, &[u64])]) -> BTreeMap<String, Running> {
        let named = [10, 11].map(|inode| {
            let name = NamespaceName::new(&format!("cni-{inode}")).unwrap();
            ((4, inode), name)
        });
        let seen = seen.iter().map(|(uid, inodes)| {
            let namespaces = inodes.iter().map(|inode| (4, *inode)).collect();
            ((*uid).to_owned(), namespaces)
        });
        judge(seen.collect(), HOST, &named.into())
    }

    #[test]
    fn a_pod_is_in_the_one_named_namespace_that_its_processes_are_in() {
        let found = look(&[("a", &[10]), ("b", &[11, 99]), ("c", &[1])]);
        let place = |inode: u64| Running::In(NamespaceName::new(&format!("cni-{inode}")).unwrap());
        assert_eq!(found["a"], place(10));
        // One that it made itself, without a name, is its own affair.
        assert_eq!(found["b"], place(11));
        assert_eq!(found["c"], Running::OnHost);
    }

    #[test]
    fn what_is_not_plain_is_not_guessed() {
        let odd = |running: &Running| matches!(running, Running::Odd(_));
        assert!(odd(&look(&[("a", &[99])])["a"]));
        assert!(odd(&look(&[("a", &[10, 11])])["a"]));
        let shared = look(&[("a", &[10]), ("b", &[10])]);
        assert!(odd(&shared["a"]) && odd(&shared["b"]));
    }

    #[test]
    fn processes_of_no_pod_are_of_nobody() {
        let wanted = BTreeSet::from(["1a2b3c4d-0000-4111-8222-333344445555".to_owned()]);
        assert_eq!(running(&wanted).unwrap(), BTreeMap::new());
    }
}
