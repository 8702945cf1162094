//! Selectors that are true of no workload, whatever runs: slips, told to whoever writes an entry.

/// Why a selector of a kind that this version looks at never matches; none if it may. Of other kinds nothing is said.
pub fn in_vain(kind: &str, value: &str) -> Option<&'static str> {
    match kind {
        "unix" => unix(value),
        "cgroup" if !value.starts_with('/') => Some(
            "write the path from the root of the tree, such as cgroup:/system.slice/web.service",
        ),
        "systemd" if named(value, "id").is_none() => {
            Some("write systemd:id:UNIT, such as systemd:id:web.service")
        }
        "label" if !value.contains('=') => Some("write label:KEY=VALUE"),
        "k8s"
            if !["pod-uid", "pod-name", "ns"]
                .iter()
                .any(|what| named(value, what).is_some()) =>
        {
            Some("write k8s:pod-uid:UID, k8s:pod-name:NAME or k8s:ns:NAMESPACE")
        }
        "netns" if value.contains('/') => {
            Some("write the name of the network namespace, not its path")
        }
        _ => None,
    }
}

fn unix(value: &str) -> Option<&'static str> {
    let Some((what, value)) = value.split_once(':') else {
        return Some(UNIX);
    };
    // As this node writes it: what is written otherwise is never the same text.
    let is_number = || {
        value
            .parse::<u32>()
            .is_ok_and(|number| number.to_string() == value)
    };
    let is_hash = || {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        value.len() == 64 && value.bytes().all(digit)
    };
    match what {
        "uid" | "gid" | "supplementary_gid" if !is_number() => {
            Some("write a number from 0 to 4294967295, or unix:user:NAME and unix:group:NAME")
        }
        "sha256" if !is_hash() => {
            Some("write the SHA-256 of the program as 64 lower-case hexadecimal digits")
        }
        "path" if !value.starts_with('/') => Some("write the absolute path of the program"),
        "user" | "group" | "supplementary_group" if value.is_empty() => Some("write its name"),
        "uid"
        | "gid"
        | "supplementary_gid"
        | "sha256"
        | "path"
        | "user"
        | "group"
        | "supplementary_group" => None,
        _ => Some(UNIX),
    }
}

const UNIX: &str = "of unix there are uid, user, gid, group, supplementary_gid, supplementary_group, path and sha256";

/// What stands behind `WHAT:`, if something does.
fn named<'a>(value: &'a str, what: &str) -> Option<&'a str> {
    let name = value.strip_prefix(what)?.strip_prefix(':')?;
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_workload_can_be_is_told_from_what_some_may_be() {
        let hash = "0f".repeat(32);
        for good in [
            "unix:uid:0",
            "unix:uid:4294967295",
            "unix:user:web",
            "unix:path:/usr/bin/web",
            &format!("unix:sha256:{hash}"),
            "cgroup:/system.slice/*",
            "systemd:id:web.service",
            "label:app=web",
            "k8s:ns:shop",
            "netns:web",
            "endpoint:host",
            "tpm:whatever",
        ] {
            let (kind, value) = good.split_once(':').unwrap();
            assert_eq!(in_vain(kind, value), None, "{good}");
        }
        for bad in [
            "unix:uid:abc",
            "unix:uid:-1",
            "unix:uid:01",
            "unix:uid:4294967296",
            "unix:uuid:1",
            "unix:root",
            "unix:user:",
            "unix:sha256:zz",
            &format!("unix:sha256:{}", hash.to_uppercase()),
            "unix:path:web",
            "cgroup:relative",
            "systemd:web.service",
            "systemd:id:",
            "label:app",
            "k8s:pod:web",
            "netns:/run/netns/web",
        ] {
            let (kind, value) = bad.split_once(':').unwrap();
            assert!(in_vain(kind, value).is_some(), "{bad}");
        }
    }
}
