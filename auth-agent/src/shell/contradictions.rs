//! Prefixes of the CA's list that contradict this node's own, or each other: named, and not followed where that would take
//! anything from anybody.
//!
//! Whoever a prefix is said to belong to, only the node that proves it in a session can use it (`core/prefix.rs`). The list
//! decides where packets are sent before that, and what counts as inside the mesh: a prefix that goes over ours would send
//! traffic between workloads of this node into the tunnel.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::identity::KnownNode;

/// As many are told at once.
const TOLD: usize = 8;

/// What of a list is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contradictions {
    /// Other nodes' prefixes with an address of ours in them: nothing is sent there.
    over_ours: BTreeSet<IpNet>,
    /// Those of them that lie within ours, which says already whose they are.
    within_ours: BTreeSet<IpNet>,
    /// In words.
    pub(super) told: Vec<String>,
}

impl Contradictions {
    /// Looks for them in a list; `own` is this node, whose signed prefixes are `ours`.
    pub(super) fn of(own: &str, ours: &[IpNet], nodes: &[KnownNode]) -> Self {
        let mut found = Self::default();
        let others = nodes.iter().filter(|node| node.spiffe_id != own);
        let mut all: Vec<(IpNet, &str)> = others
            .flat_map(|node| {
                let prefixes = node.prefixes.iter();
                prefixes.map(|prefix| (prefix.trunc(), node.name.as_str()))
            })
            .collect();
        // Whatever contains a prefix comes before it, with nothing between the two that does not overlap either.
        all.sort_by_key(|(prefix, _)| (prefix.network(), prefix.prefix_len()));
        let mut open: Vec<(IpNet, &str)> = Vec::new();
        for (prefix, node) in all {
            if let Some(mine) = ours.iter().find(|mine| overlap(mine, &prefix)) {
                found.over_ours.insert(prefix);
                if mine.contains(&prefix) {
                    found.within_ours.insert(prefix);
                }
                found.tell(format!(
                    "the CA says that {prefix} is node {node}'s, and this node's SVID that {mine} is ours: nothing is sent there"
                ));
            }
            while open.last().is_some_and(|(wide, _)| !wide.contains(&prefix)) {
                open.pop();
            }
            if let Some((wide, holder)) = open.last().filter(|(_, holder)| *holder != node) {
                found.tell(format!(
                    "the CA says that {wide} is node {holder}'s and that {prefix} is node {node}'s: only the one that proves it \
                     first has a session"
                ));
            }
            open.push((prefix, node));
        }
        found
    }

    fn tell(&mut self, what: String) {
        const WHAT_TO_DO: &str =
            "prefixes of nodes are disjoint; set them right on the CA (`handfast node list`)";
        if self.told.len() < TOLD {
            self.told.push(format!("{what}; {WHAT_TO_DO}"));
        }
    }

    /// Whether packets to this prefix of another node may be sent into the tunnel.
    pub(super) fn allow_route(&self, prefix: &IpNet) -> bool {
        !self.over_ours.contains(&prefix.trunc())
    }

    /// Whether the gates are to know this prefix as another node's.
    pub(super) fn allow_prefix(&self, prefix: &IpNet) -> bool {
        !self.within_ours.contains(&prefix.trunc())
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, prefixes: &[&str]) -> KnownNode {
        KnownNode {
            spiffe_id: format!("spiffe://example.org/handfast/node/{name}"),
            name: name.to_owned(),
            underlay: Vec::new(),
            prefixes: nets(prefixes),
            joining: false,
        }
    }

    fn nets(prefixes: &[&str]) -> Vec<IpNet> {
        prefixes
            .iter()
            .map(|prefix| prefix.parse().unwrap())
            .collect()
    }

    fn of(nodes: &[KnownNode]) -> Contradictions {
        let own = "spiffe://example.org/handfast/node/n1";
        Contradictions::of(own, &nets(&["10.1.0.0/16", "fd01::/64"]), nodes)
    }

    #[test]
    fn a_list_as_it_should_be_contradicts_nothing() {
        let nodes = [
            node("n1", &["10.1.0.0/16", "fd01::/64"]),
            node("n2", &["10.2.0.0/16", "10.3.0.0/24", "fd02::/64"]),
            node("n3", &["10.3.1.0/24", "fd03::/64"]),
        ];
        assert_eq!(of(&nodes), Contradictions::default());
    }

    #[test]
    fn a_prefix_over_ours_is_sent_nowhere_and_one_within_ours_stays_ours() {
        let nodes = [node("n2", &["10.1.7.0/24", "10.0.0.0/8", "10.2.0.0/16"])];
        let found = of(&nodes);
        let [within, over, fine] = nets(&["10.1.7.0/24", "10.0.0.0/8", "10.2.0.0/16"])
            .try_into()
            .unwrap();
        assert!(!found.allow_route(&within) && !found.allow_prefix(&within));
        // What else lies in it is still inside the mesh: nothing goes there in clear.
        assert!(!found.allow_route(&over) && found.allow_prefix(&over));
        assert!(found.allow_route(&fine) && found.allow_prefix(&fine));
        assert_eq!(found.told.len(), 2, "{found:?}");
        assert!(
            found.told.iter().all(|told| told.contains("node n2's")),
            "{found:?}"
        );
    }

    #[test]
    fn two_nodes_with_one_address_are_named_both() {
        let nodes = [
            node("n2", &["10.2.0.0/16"]),
            node("n3", &["10.2.128.0/17", "10.2.0.0/16"]),
        ];
        let found = of(&nodes);
        assert!(!found.told.is_empty());
        for told in &found.told {
            assert!(
                told.contains("n2") && told.contains("n3") && told.contains("node list"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_list_that_is_wrong_all_over_is_not_told_at_length() {
        let nodes: Vec<_> = (0..100)
            .map(|number| node(&format!("m{number}"), &["10.2.0.0/16"]))
            .collect();
        assert_eq!(of(&nodes).told.len(), TOLD);
    }
}
