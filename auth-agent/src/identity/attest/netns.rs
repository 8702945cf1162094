//! The network namespace of a process, by its name under `/run/netns`, and the endpoint that is attached there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use handfast_ca::model::Selector;
use nix::errno::Errno;

use super::process::{Process, failed};
use super::selector;
use crate::endpoint::Endpoint;
use crate::workload_api::AttestError;

/// Names that are compared; a node has as many namespaces as endpoints.
const MAX_NAMES: usize = 8192;

/// Returns the namespace's inode, where it can be seen.
pub(super) fn look(
    process: &Process,
    endpoints: &[Endpoint],
    found: &mut Vec<Selector>,
) -> Result<Option<u64>, AttestError> {
    let own = match process.stat("ns/net") {
        Ok(stat) => stat,
        Err(Errno::EACCES | Errno::EPERM) => return Ok(None),
        Err(error) => return Err(failed("its network namespace", error)),
    };
    let inode = own.st_ino;
    let names = names(Path::new("/run/netns"), own.st_dev, inode);
    // The number alone may be that of a namespace which is gone and somebody
    // else's now: the endpoint's name must still stand for it.
    let is_its = |endpoint: &&Endpoint| {
        endpoint.netns_inode == inode
            && endpoint
                .netns
                .as_ref()
                .is_some_and(|netns| names.iter().any(|name| *name == *netns.as_str()))
    };
    found.extend(names.iter().map(|name| selector("netns", name.clone())));
    for endpoint in endpoints.iter().filter(is_its) {
        found.push(selector("endpoint", endpoint.name.clone()));
        for (key, value) in &endpoint.labels {
            found.push(selector("label", format!("{key}={value}")));
        }
        if let Some(pod) = &endpoint.pod {
            found.push(selector("k8s", format!("ns:{}", pod.namespace)));
            found.push(selector("k8s", format!("pod-name:{}", pod.name)));
        }
    }
    Ok(Some(inode))
}

/// Is this property one of the namespace that a process is in?
pub(super) fn is_of_namespace(selector: &Selector) -> bool {
    match selector.kind.as_str() {
        "netns" | "endpoint" | "label" => true,
        // The UID is known by the control group, which a process does not leave.
        "k8s" => !selector.value.starts_with("pod-uid:"),
        _ => false,
    }
}

/// The names of a namespace, in order: most have none or one.
fn names(folder: &Path, device: u64, inode: u64) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .take(MAX_NAMES)
        .filter_map(Result::ok)
        .filter(|entry| {
            // The file behind a bind mount, not the place that it is mounted on, which is what the entry tells.
            std::fs::metadata(entry.path())
                .is_ok_and(|file| (file.dev(), file.ino()) == (device, inode))
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}
