//! All nodes as one moment of the registry knows them, and which of them have changed lately for their peers: what
//! one node's joining costs is neither a look at all of them nor one message about all of them to each.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::NodeName;
use crate::model::Node;

/// Changes that are known one by one; who has missed more of them gets all nodes.
const MAX_LOG: usize = 4096;

/// The nodes of a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Mesh {
    /// By name.
    nodes: Vec<Arc<Node>>,
    /// What peers see that has changed, under the number of the snapshot that brought it.
    log: VecDeque<(u64, Arc<Node>)>,
    /// What came up to here is not in the log.
    floor: u64,
}

impl Mesh {
    /// These and no others, at this number: the first that is known, or what is left after a deletion. Everybody who
    /// knows an earlier moment gets all of them.
    pub(super) fn of(mut nodes: Vec<Node>, number: u64) -> Self {
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Self {
            nodes: nodes.into_iter().map(Arc::new).collect(),
            log: VecDeque::new(),
            floor: number,
        }
    }

    /// The next moment, at a number that is higher: these nodes are new, or may be other than before.
    pub(super) fn next(&self, changed: Vec<Node>, number: u64) -> Self {
        let mut next = Self {
            nodes: self.nodes.clone(),
            log: self.log.clone(),
            floor: self.floor,
        };
        for node in changed {
            next.put(node, number);
        }
        while next.log.len() > MAX_LOG
            && let Some((oldest, _)) = next.log.pop_front()
        {
            next.floor = oldest;
        }
        next
    }

    fn put(&mut self, node: Node, number: u64) {
        let place = self.find(&node.name);
        if let Some(before) = place.ok().and_then(|at| self.nodes.get(at))
            && same_to_peers(before, &node)
        {
            return;
        }
        let node = Arc::new(node);
        self.log.push_back((number, Arc::clone(&node)));
        match place {
            Ok(at) => {
                if let Some(known) = self.nodes.get_mut(at) {
                    *known = node;
                }
            }
            Err(at) => self.nodes.insert(at, node),
        }
    }

    fn find(&self, name: &NodeName) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.name.cmp(name))
    }

    /// A node.
    pub(crate) fn get(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.nodes.get(self.find(name).ok()?)
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = &Node> + Clone {
        self.nodes.iter().map(Arc::as_ref)
    }

    /// Those that peers see otherwise than at `number`; none if that is too long ago to be told.
    pub(crate) fn since(&self, number: u64) -> Option<Vec<&Node>> {
        if number < self.floor {
            return None;
        }
        let begin = self.log.partition_point(|(logged, _)| *logged <= number);
        let latest: BTreeMap<&NodeName, &Node> = self
            .log
            .range(begin..)
            .map(|(_, node)| (&node.name, node.as_ref()))
            .collect();
        Some(latest.into_values().collect())
    }
}

/// What its agent says, and how it proved itself, is nothing to other nodes.
fn same_to_peers(one: &Node, other: &Node) -> bool {
    (&one.prefixes, &one.underlay, one.assignment)
        == (&other.prefixes, &other.underlay, other.assignment)
        && (one.managed, one.joined_at_ms) == (other.managed, other.joined_at_ms)
        && (one.revoked, one.evicted, one.banned) == (other.revoked, other.evicted, other.banned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, assignment: u64) -> Node {
        Node {
            spiffe_id: format!("spiffe://example.org/handfast/node/{name}")
                .parse()
                .unwrap(),
            name: name.parse().unwrap(),
            prefixes: vec![],
            underlay: vec![],
            managed: true,
            assignment,
            joined_at_ms: Some(1),
            seen_at_ms: None,
            acknowledged: 0,
            problem: String::new(),
            revoked: false,
            evicted: false,
            banned: false,
            attestation: String::new(),
            authorities_in_use: vec![],
        }
    }

    fn names(nodes: Option<Vec<&Node>>) -> Vec<String> {
        nodes
            .unwrap()
            .iter()
            .map(|node| node.name.to_string())
            .collect()
    }

    #[test]
    fn only_what_has_changed_since_is_told_each_node_once_and_as_it_is_now() {
        let mesh = Mesh::of(vec![node("b", 1), node("a", 1)], 10);
        let mesh = mesh.next(vec![node("a", 2), node("b", 1)], 20);
        let mesh = mesh.next(vec![node("c", 1), node("a", 3)], 30);
        assert_eq!(mesh.all().len(), 3);
        assert_eq!(mesh.get(&"b".parse().unwrap()).unwrap().assignment, 1);
        assert_eq!(names(mesh.since(10)), ["a", "c"]);
        assert_eq!(mesh.since(10).unwrap()[0].assignment, 3);
        assert_eq!(names(mesh.since(20)), ["a", "c"]);
        assert!(names(mesh.since(30)).is_empty());
        assert!(mesh.since(9).is_none(), "that was before it began");
    }

    #[test]
    fn what_an_agent_says_of_itself_is_no_change_to_others() {
        let mesh = Mesh::of(vec![node("a", 1)], 10);
        let mut heard = node("a", 1);
        (heard.acknowledged, heard.seen_at_ms) = (9, Some(9));
        heard.authorities_in_use = vec!["ca".to_owned()];
        let mesh = mesh.next(vec![heard], 20);
        assert!(names(mesh.since(10)).is_empty());
    }

    #[test]
    fn who_has_missed_too_much_or_a_deletion_gets_all() {
        let mut mesh = Mesh::of(vec![node("a", 0), node("b", 0)], 0);
        for number in 1..=MAX_LOG as u64 + 1 {
            mesh = mesh.next(vec![node("a", number)], number);
        }
        assert!(mesh.since(0).is_none());
        assert_eq!(names(mesh.since(1)), ["a"]);
        let mesh = Mesh::of(vec![node("b", 0)], 10_000);
        assert!(mesh.since(9_999).is_none());
        assert!(names(mesh.since(10_000)).is_empty());
    }
}
