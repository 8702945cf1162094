//! Which pod of Kubernetes a process belongs to, by the control group that the kubelet has made for the pod.

/// The UID of the pod in a path of the tree; none for a process of no pod.
///
/// Both ways in which kubelets name groups: `kubepods/burstable/podUID/…` (cgroupfs) and
/// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/…` (systemd, with `_` for `-`); at the root of
/// the tree, or in the kubelet's own group there. Nowhere else: a user to whom a branch of the tree was delegated can make
/// groups of any name in it, as a pod can below its own.
pub(super) fn uid(path: &str) -> Option<String> {
    let path = path.strip_prefix('/')?;
    let path = ["kubelet/", "kubelet.slice/"]
        .iter()
        .find_map(|kubelet| path.strip_prefix(kubelet))
        .unwrap_or(path);
    let mut parts = path.split('/');
    let systemd = match parts.next()? {
        "kubepods" => false,
        "kubepods.slice" => true,
        _ => return None,
    };
    let uid = parts.take(2).find_map(|part| {
        if systemd {
            let slice = part.strip_suffix(".slice")?;
            let (_, uid) = slice.split_once("-pod")?;
            Some(uid.replace('_', "-"))
        } else {
            part.strip_prefix("pod").map(str::to_owned)
        }
    })?;
    let plain = |c: char| c.is_ascii_hexdigit() || c == '-';
    // A UUID, or the hash of a pod of the kubelet's own.
    let whole = (32..=36).contains(&uid.len()) && uid.chars().all(plain);
    whole.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "1a2b3c4d-0000-4111-8222-333344445555";

    #[test]
    fn a_pod_is_found_in_the_groups_of_either_driver_and_of_every_class() {
        let escaped = UID.replace('-', "_");
        for path in [
            format!("/kubepods/pod{UID}/abc"),
            format!("/kubepods/burstable/pod{UID}/abc"),
            format!("/kubelet/kubepods/besteffort/pod{UID}"),
            format!("/kubepods.slice/kubepods-pod{escaped}.slice/cri-containerd-abc.scope"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/crio-abc.scope"
            ),
            format!(
                "/kubelet.slice/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{escaped}.slice/x"
            ),
        ] {
            assert_eq!(uid(&path).as_deref(), Some(UID), "{path}");
        }
    }

    #[test]
    fn nobody_becomes_another_pod_by_making_groups_of_its_own() {
        let other = "ffffffff-0000-4111-8222-333344445555";
        let inside = format!("/kubepods/burstable/pod{UID}/abc/kubepods/pod{other}");
        assert_eq!(uid(&inside).as_deref(), Some(UID));
        let escaped = UID.replace('-', "_");
        for delegated in [
            "/user.slice/user-1000.slice/user@1000.service",
            "/system.slice/runner.service",
            "/kubelet/x",
            "/x/kubelet",
            "/kubelet/kubelet",
        ] {
            for made in [
                format!("kubepods/pod{UID}/x"),
                format!("kubepods/burstable/pod{UID}/x"),
                format!("kubepods.slice/kubepods-pod{escaped}.slice/x"),
            ] {
                assert_eq!(
                    uid(&format!("{delegated}/{made}")),
                    None,
                    "{delegated}/{made}"
                );
            }
        }
        for path in [
            "/",
            "/system.slice/kubelet.service",
            "/kubepods",
            "/kubepods/podx",
            "/user.slice/pod1a2b3c4d-0000-4111-8222-333344445555",
            "/kubepods/a/b/pod1a2b3c4d-0000-4111-8222-333344445555",
        ] {
            assert_eq!(uid(path), None, "{path}");
        }
    }
}
