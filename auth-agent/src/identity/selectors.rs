//! Which entries apply to which workload: all selectors of an entry must match.

use handfast_ca::model::Selector;

use super::attest::pattern_matches;
use crate::endpoint::{Endpoint, Group};

/// The kinds that this node can look at.
pub const SELECTOR_KINDS: [&str; 7] = [
    "unix", "cgroup", "systemd", "netns", "endpoint", "label", "k8s",
];

/// What is only looked at if an entry asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// The hash of the program.
    pub sha256: bool,
    /// Names of users and groups.
    pub names: bool,
}

impl Demands {
    /// What these selectors ask for.
    pub fn of<'a>(selectors: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut demands = Self::default();
        for (kind, value) in selectors {
            let (what, _) = value.split_once(':').unwrap_or((value, ""));
            match (kind, what) {
                ("unix", "sha256") => demands.sha256 = true,
                ("unix", "user" | "group" | "supplementary_group") => demands.names = true,
                _ => {}
            }
        }
        demands
    }

    /// True if nothing is asked for that `other` does not ask for.
    pub fn within(self, other: Self) -> bool {
        self.or(other) == other
    }

    /// Both.
    pub fn or(self, other: Self) -> Self {
        Self {
            sha256: self.sha256 || other.sha256,
            names: self.names || other.names,
        }
    }
}

/// Whoever selectors can speak of.
pub trait Subject {
    /// Is this true of it?
    fn has(&self, kind: &str, value: &str) -> bool;
}

impl Subject for Endpoint {
    fn has(&self, kind: &str, value: &str) -> bool {
        match kind {
            "netns" => self
                .netns
                .as_ref()
                .is_some_and(|netns| netns.as_str() == value),
            "cgroup" => {
                let host = self.host.as_ref();
                host.is_some_and(|host| pattern_matches(value, &host.path))
            }
            "systemd" => self.host.as_ref().is_some_and(|host| match &host.group {
                Group::Unit(unit) => value.strip_prefix("id:") == Some(unit),
                _ => false,
            }),
            "endpoint" => self.name == value,
            "label" => value.split_once('=').is_some_and(|(key, value)| {
                self.labels.get(key).is_some_and(|found| found == value)
            }),
            "k8s" => self.pod.as_ref().is_some_and(|pod| {
                value
                    .split_once(':')
                    .is_some_and(|(what, value)| match what {
                        "pod-uid" => pod.uid == value,
                        "pod-name" => pod.name == value,
                        "ns" => pod.namespace == value,
                        _ => false,
                    })
            }),
            _ => false,
        }
    }
}

/// A process, by what was found to be true of it.
impl Subject for [Selector] {
    fn has(&self, kind: &str, value: &str) -> bool {
        self.iter().any(|found| {
            found.kind == kind
                && match kind {
                    "cgroup" => pattern_matches(value, &found.value),
                    _ => found.value == value,
                }
        })
    }
}

/// True if every selector (`KIND:VALUE`) is a property of the subject. An entry without selectors matches nobody,
/// and neither does one of a kind that this node cannot look at.
pub fn matches<'a, S: Subject + ?Sized>(
    selectors: impl IntoIterator<Item = (&'a str, &'a str)>,
    subject: &S,
) -> bool {
    let mut any = false;
    for (kind, value) in selectors {
        if !subject.has(kind, value) {
            return false;
        }
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::NamespaceName;

    #[test]
    fn all_selectors_must_match_and_unknown_kinds_match_nothing() {
        let endpoint = Endpoint {
            id: 1,
            name: "front".into(),
            netns: Some(NamespaceName::new("web").unwrap()),
            host: None,
            netns_inode: 1,
            labels: [("tier".to_owned(), "front".to_owned())].into(),
            pod: None,
            addresses: vec![],
            interface: "hfe1".into(),
            ifindex: 1,
            mac: [0; 6],
            host_mac: [0; 6],
            created: true,
        };
        assert!(matches([("netns", "web")], &endpoint));
        assert!(matches(
            [("netns", "web"), ("endpoint", "front")],
            &endpoint
        ));
        assert!(!matches(
            [("netns", "web"), ("endpoint", "back")],
            &endpoint
        ));
        assert!(matches(
            [("netns", "web"), ("label", "tier=front")],
            &endpoint
        ));
        assert!(!matches([("label", "tier=back")], &endpoint));
        assert!(!matches([("label", "tier")], &endpoint));
        assert!(!matches([("unix", "uid:0")], &endpoint));
        assert!(!matches([], &endpoint));
    }

    #[test]
    fn a_process_matches_by_all_that_is_true_of_it_and_by_patterns_of_its_control_group() {
        let found: Vec<Selector> = ["unix:uid:7", "cgroup:/system.slice/web.service"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let found = found.as_slice();
        assert!(matches([("unix", "uid:7")], found));
        assert!(matches(
            [("unix", "uid:7"), ("cgroup", "/system.slice/*.service")],
            found
        ));
        assert!(!matches([("unix", "uid:7"), ("unix", "gid:7")], found));
        assert!(!matches([("unix", "uid:*")], found));
        assert!(!matches([("k8s", "ns:web")], found));
        assert!(!matches([], found));
    }

    #[test]
    fn only_what_costs_more_than_a_look_is_a_demand() {
        let demands = Demands::of([("unix", "uid:0"), ("unix", "path:/x"), ("netns", "user")]);
        assert_eq!(demands, Demands::default());
        let hash = Demands::of([("unix", "sha256:00")]);
        assert!(hash.sha256 && !hash.names);
        assert!(Demands::of([("unix", "supplementary_group:wheel")]).names);
        assert!(demands.within(hash) && !hash.within(demands));
    }
}
