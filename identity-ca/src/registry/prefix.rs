//! Which prefixes a node may have: in range, disjoint, and holding nobody that the tunnels need.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Error, NodeName};

/// What a new assignment must get along with.
#[derive(Debug, Default)]
pub(super) struct Taken<'a> {
    /// Configured ranges.
    pub(super) ranges: Vec<IpNet>,
    /// Prefixes of other nodes.
    pub(super) prefixes: Vec<(&'a NodeName, IpNet)>,
    /// Addresses that traffic outside of the tunnels needs, and what they are.
    pub(super) outside: Vec<(IpAddr, Outside<'a>)>,
}

/// Whose address must stay outside of the tunnels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outside<'a> {
    Ca,
    Own,
    Node(&'a NodeName),
}

impl fmt::Display for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ca => f.write_str("an address of the CA"),
            Self::Own => f.write_str("the node's own underlay address"),
            Self::Node(name) => write!(f, "an underlay address of node {name}"),
        }
    }
}

/// Checks an assignment of prefixes and underlay addresses.
pub(super) fn check(
    prefixes: &[IpNet],
    underlay: &[IpAddr],
    taken: &Taken<'_>,
) -> Result<(), Error> {
    for (position, prefix) in prefixes.iter().enumerate() {
        let bad = |problem: String| Err(Error::invalid(format!("prefix {prefix}"), problem));
        if prefix.trunc() != *prefix {
            return bad(format!(
                "bits are set behind its length; {} was meant?",
                prefix.trunc()
            ));
        }
        if !taken.ranges.iter().any(|range| range.contains(prefix)) {
            let ranges: Vec<String> = taken.ranges.iter().map(ToString::to_string).collect();
            return bad(format!(
                "lies in none of the ranges of this CA ({}); they are set by `handfast ca init --prefix-range`",
                ranges.join(", ")
            ));
        }
        if let Some(other) = prefixes
            .iter()
            .take(position)
            .find(|other| overlap(prefix, other))
        {
            return bad(format!("overlaps {other} of the same node"));
        }
        if let Some((node, other)) = taken
            .prefixes
            .iter()
            .find(|(_, other)| overlap(prefix, other))
        {
            return bad(format!(
                "overlaps {other} of node {node}; prefixes of nodes are disjoint (if {node} is gone for good, `handfast revoke --node {node}` frees them)"
            ));
        }
        let own = underlay.iter().map(|address| (*address, Outside::Own));
        let mut outside = taken.outside.iter().copied().chain(own);
        if let Some((address, what)) = outside.find(|(address, _)| prefix.contains(address)) {
            return bad(format!(
                "contains {address}, {what}: the tunnels would need what they give"
            ));
        }
    }
    for address in underlay {
        if let Some((node, prefix)) = taken
            .prefixes
            .iter()
            .find(|(_, prefix)| prefix.contains(address))
        {
            return Err(Error::invalid(
                format!("underlay address {address}"),
                format!("lies in the prefix {prefix} of node {node}"),
            ));
        }
    }
    Ok(())
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(prefixes: &[&str], underlay: &[&str]) -> Result<(), String> {
        let db1: NodeName = "db1".parse().unwrap();
        let taken = Taken {
            ranges: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()],
            prefixes: vec![(&db1, "10.2.0.0/24".parse().unwrap())],
            outside: vec![("10.9.0.1".parse().unwrap(), Outside::Ca)],
        };
        let prefixes: Vec<IpNet> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let underlay: Vec<IpAddr> = underlay.iter().map(|text| text.parse().unwrap()).collect();
        check(&prefixes, &underlay, &taken).map_err(|error| error.to_string())
    }

    #[test]
    fn good_prefixes_are_given() {
        verdict(&["10.1.0.0/24", "fd00:1::/64"], &["192.0.2.1"]).unwrap();
        verdict(&[], &["192.0.2.1"]).unwrap();
    }

    #[test]
    fn bad_prefixes_are_refused_by_name() {
        let cases: &[(&[&str], &[&str], &str)] = &[
            (&["192.168.0.0/24"], &[], "none of the ranges"),
            (&["0.0.0.0/0"], &[], "none of the ranges"),
            (&["10.1.0.1/24"], &[], "10.1.0.0/24 was meant"),
            (&["10.1.0.0/24", "10.1.0.0/25"], &[], "of the same node"),
            (&["10.2.0.128/25"], &[], "of node db1"),
            (&["10.0.0.0/14"], &[], "of node db1"),
            (&["10.9.0.0/24"], &[], "an address of the CA"),
            (&["10.1.0.0/24"], &["10.1.0.9"], "own underlay address"),
            (&["10.1.0.0/24"], &["10.2.0.9"], "of node db1"),
        ];
        for (prefixes, underlay, words) in cases {
            let error = verdict(prefixes, underlay).unwrap_err();
            assert!(error.contains(words), "{prefixes:?}: {error}");
        }
    }
}
