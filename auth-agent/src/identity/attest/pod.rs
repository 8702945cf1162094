//! Which pod of Kubernetes a process belongs to, by the control group that the kubelet has made for the pod.

/// The UID of the pod in a path of the tree; none for a process of no pod.
///
/// Both ways in which kubelets name groups: `kubepods/burstable/podUID/…` (cgroupfs) and
/// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/…` (systemd, with `_` for `-`). The first
/// one counts: what stands below a pod's own group may have been made in the pod.
pub(super) fn uid(path: &str) -> Option<String> {
    let mut parts = path
        .split('/')
        .skip_while(|part| *part != "kubepods" && *part != "kubepods.slice");
    let systemd = parts.next()? == "kubepods.slice";
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
