//! Which entries apply to which workload: all selectors of an entry must match.

use crate::endpoint::Endpoint;

/// The kinds that this node can look at.
pub const SELECTOR_KINDS: [&str; 3] = ["netns", "endpoint", "label"];

/// True if every selector (`KIND:VALUE`) is a property of the endpoint. An entry without selectors matches nobody,
/// and neither does one of a kind that this node cannot look at.
pub fn matches<'a>(
    selectors: impl IntoIterator<Item = (&'a str, &'a str)>,
    endpoint: &Endpoint,
) -> bool {
    let mut any = false;
    for (kind, value) in selectors {
        let found = match kind {
            "netns" => endpoint.netns.as_str() == value,
            "endpoint" => endpoint.name == value,
            "label" => value.split_once('=').is_some_and(|(key, value)| {
                endpoint.labels.get(key).is_some_and(|found| found == value)
            }),
            _ => false,
        };
        if !found {
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
            netns: NamespaceName::new("web").unwrap(),
            netns_inode: 1,
            labels: [("tier".to_owned(), "front".to_owned())].into(),
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
}
