//! Which pod of Kubernetes a process belongs to, by the control group that the kubelet has made for the pod.

/// Above the kubelet's tree, where its `--cgroup-root` is not the root: what the nodes of kind say, and others that run
/// the kubelet in a container of its own.
const KUBELET: &str = "kubelet";
/// The kubelet's tree.
const PODS: &str = "kubepods";
/// Pods of the third class, guaranteed, have no group of their own.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// The UID of the pod in a path of the tree; none for a process of no pod.
///
/// Both ways in which kubelets name groups: `kubepods/burstable/podUID/…` (cgroupfs) and
/// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/…` (systemd, with `_` for `-`); at the root of
/// the tree, or in the kubelet's own group there. Nowhere else: a user to whom a branch of the tree was delegated can make
/// groups of any name in it, as a pod can below its own.
pub(super) fn uid(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let uid = by_folders(&parts).or_else(|| by_slices(&parts))?;
    let plain = |c: char| c.is_ascii_hexdigit() || c == '-';
    // A UUID, or the hash of a pod of the kubelet's own.
    let whole = (32..=36).contains(&uid.len()) && uid.chars().all(plain);
    whole.then_some(uid)
}

/// The kubelet made the groups itself.
fn by_folders(parts: &[&str]) -> Option<String> {
    let parts = parts.strip_prefix(&[KUBELET]).unwrap_or(parts);
    let (pods, below) = parts.split_first()?;
    if *pods != PODS {
        return None;
    }
    let (first, second) = (below.first()?, below.get(1));
    let pod = if CLASSES.contains(first) {
        second?
    } else {
        first
    };
    pod.strip_prefix("pod").map(str::to_owned)
}

/// systemd made them, so that a group's name begins with the names of all groups above it.
fn by_slices(parts: &[&str]) -> Option<String> {
    let names: Vec<&str> = parts
        .iter()
        .map_while(|part| part.strip_suffix(".slice"))
        .collect();
    // A tree below the kubelet's slice is named after it; some are not, since who made them did not ask systemd.
    let (pods, below) = match names.as_slice() {
        [KUBELET, pods, below @ ..]
            if *pods == PODS || pods.strip_prefix("kubelet-") == Some(PODS) =>
        {
            (*pods, below)
        }
        [PODS, below @ ..] => (PODS, below),
        _ => return None,
    };
    let first = below.first()?;
    let rest = first.strip_prefix(pods)?;
    let classed = CLASSES
        .iter()
        .any(|class| rest.strip_prefix('-') == Some(*class));
    let uid = if classed {
        below.get(1)?.strip_prefix(first)?
    } else {
        rest
    };
    Some(uid.strip_prefix("-pod")?.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "1a2b3c4d-0000-4111-8222-333344445555";

    /// Where pods are, by what runs the kubelet and what it is told of control groups: as `/proc/PID/cgroup` has it.
    #[test]
    fn a_pod_is_found_in_the_groups_of_either_driver_at_every_root_that_distributions_use() {
        let id = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
        let table = [
            ("cgroupfs, guaranteed", format!("/kubepods/podUID/{id}")),
            (
                "cgroupfs, burstable",
                format!("/kubepods/burstable/podUID/{id}"),
            ),
            (
                "cgroupfs, best effort",
                format!("/kubepods/besteffort/podUID/{id}"),
            ),
            (
                "cgroupfs, the pod's own group",
                "/kubepods/burstable/podUID".to_owned(),
            ),
            (
                "kind, cgroupfs",
                format!("/kubelet/kubepods/burstable/podUID/{id}"),
            ),
            (
                "kubeadm with containerd, guaranteed",
                format!("/kubepods.slice/kubepods-podESCAPED.slice/cri-containerd-{id}.scope"),
            ),
            (
                "kubeadm with containerd, burstable",
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podESCAPED.slice/cri-containerd-{id}.scope"
                ),
            ),
            (
                "OpenShift, CRI-O, a group inside of the container's",
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podESCAPED.slice/crio-{id}.scope/container"
                ),
            ),
            (
                "CRI-O's monitor",
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podESCAPED.slice/crio-conmon-{id}.scope"
                ),
            ),
            (
                "cri-dockerd",
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podESCAPED.slice/docker-{id}.scope"
                ),
            ),
            (
                "kind, systemd, guaranteed",
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podESCAPED.slice/cri-containerd-{id}.scope"
                ),
            ),
            (
                "kind, systemd, burstable",
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podESCAPED.slice/cri-containerd-{id}.scope"
                ),
            ),
            (
                "kind, systemd, best effort",
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podESCAPED.slice/cri-containerd-{id}.scope"
                ),
            ),
            (
                "slices below the kubelet's that are not named after it",
                format!(
                    "/kubelet.slice/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podESCAPED.slice/{id}"
                ),
            ),
        ];
        for (where_, path) in table {
            let path = path
                .replace("UID", UID)
                .replace("ESCAPED", &UID.replace('-', "_"));
            assert_eq!(uid(&path).as_deref(), Some(UID), "{where_}: {path}");
        }
        let static_pod = "0123456789abcdef0123456789abcdef";
        let path = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{static_pod}.slice/x"
        );
        assert_eq!(
            uid(&path).as_deref(),
            Some(static_pod),
            "a pod of the kubelet's own"
        );
    }

    #[test]
    fn nobody_becomes_another_pod_by_making_groups_of_its_own() {
        let other = "ffffffff-0000-4111-8222-333344445555";
        let inside = format!("/kubepods/burstable/pod{UID}/abc/kubepods/pod{other}");
        assert_eq!(uid(&inside).as_deref(), Some(UID));
        let escaped = UID.replace('-', "_");
        let inside = format!(
            "/kubepods.slice/kubepods-pod{escaped}.slice/kubepods-pod{}.slice/x",
            other.replace('-', "_")
        );
        assert_eq!(uid(&inside).as_deref(), Some(UID));
        for delegated in [
            "/user.slice/user-1000.slice/user@1000.service",
            "/user.slice",
            "/system.slice/runner.service",
            "/system.slice",
            "/machine.slice",
            "/kubelet/x",
            "/x/kubelet",
            "/kubelet/kubelet",
            "/kubelet.slice/kubelet-x.slice",
            "/kubelet.slice/kubelet.service",
        ] {
            for made in [
                format!("kubepods/pod{UID}/x"),
                format!("kubepods/burstable/pod{UID}/x"),
                format!("kubepods.slice/kubepods-pod{escaped}.slice/x"),
                format!("kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice/x"),
            ] {
                assert_eq!(
                    uid(&format!("{delegated}/{made}")),
                    None,
                    "{delegated}/{made}"
                );
            }
        }
        for path in [
            "/".to_owned(),
            "/system.slice/kubelet.service".to_owned(),
            "/kubepods".to_owned(),
            "/kubepods/podx".to_owned(),
            format!("/user.slice/pod{UID}"),
            format!("/kubepods/a/b/pod{UID}"),
            format!("/kubepods/mine/pod{UID}"),
            // Names that systemd would not have given there.
            format!("/kubepods.slice/kubepods-mine-pod{escaped}.slice/x"),
            format!("/kubepods.slice/kubepods-mine.slice/kubepods-mine-pod{escaped}.slice/x"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-pod{escaped}.slice/x"),
            format!("/kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice/x"),
            // Outside of the reader's own namespace of control groups.
            format!("/../kubepods/pod{UID}/x"),
            // Two drivers mixed.
            format!("/kubepods/kubepods-pod{escaped}.slice/x"),
            format!("/kubelet/kubepods.slice/kubepods-pod{escaped}.slice/x"),
        ] {
            assert_eq!(uid(&path), None, "{path}");
        }
    }
}
