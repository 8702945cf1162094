//! The endpoints that processes are matched with, by versions: what was found by an old list is found again.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use crate::endpoint::Endpoint;

/// This node's endpoints.
#[derive(Debug, Default)]
pub(super) struct Endpoints(RwLock<Listed>);

#[derive(Debug, Default)]
struct Listed {
    version: u64,
    all: Arc<Vec<Endpoint>>,
}

/// A change of the list: whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::identity) struct Touched {
    /// The list's version from now on.
    pub(in crate::identity) version: u64,
    /// Network namespaces (inodes) whose processes may be known otherwise now.
    pub(in crate::identity) namespaces: BTreeSet<u64>,
}

impl Endpoints {
    /// The list and its version.
    pub(super) fn now(&self) -> (u64, Arc<Vec<Endpoint>>) {
        let listed = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (listed.version, Arc::clone(&listed.all))
    }

    /// Takes the whole list anew.
    pub(super) fn set(&self, endpoints: Vec<Endpoint>) -> Option<Touched> {
        self.change(|_| endpoints)
    }

    /// One more, or one that has changed.
    pub(super) fn add(&self, endpoint: Endpoint) -> Option<Touched> {
        self.change(|all| {
            let mut all = all.to_vec();
            match all.iter_mut().find(|known| known.id == endpoint.id) {
                Some(known) => *known = endpoint,
                None => all.push(endpoint),
            }
            all
        })
    }

    fn change(&self, change: impl FnOnce(&[Endpoint]) -> Vec<Endpoint>) -> Option<Touched> {
        let mut listed = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let all = change(&listed.all);
        let only_in = |these: &[Endpoint], others: &[Endpoint]| -> BTreeSet<u64> {
            let same = |one: &Endpoint| others.iter().any(|other| known_alike(one, other));
            let changed = these.iter().filter(|endpoint| !same(endpoint));
            changed.map(|endpoint| endpoint.netns_inode).collect()
        };
        let mut namespaces = only_in(&listed.all, &all);
        namespaces.extend(only_in(&all, &listed.all));
        listed.all = Arc::new(all);
        if namespaces.is_empty() {
            return None;
        }
        listed.version += 1;
        Some(Touched {
            version: listed.version,
            namespaces,
        })
    }
}

/// Are processes known alike by both?
fn known_alike(one: &Endpoint, other: &Endpoint) -> bool {
    (
        one.netns_inode,
        &one.netns,
        &one.name,
        &one.labels,
        &one.pod,
    ) == (
        other.netns_inode,
        &other.netns,
        &other.name,
        &other.labels,
        &other.pod,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::NamespaceName;

    fn endpoint(id: u32, netns_inode: u64, label: &str) -> Endpoint {
        Endpoint {
            id,
            name: format!("e{id}"),
            netns: Some(NamespaceName::new("web").unwrap()),
            host: None,
            netns_inode,
            labels: [("tier".to_owned(), label.to_owned())].into(),
            pod: None,
            addresses: vec![],
            interface: "hfe1".into(),
            ifindex: 1,
            mac: [0; 6],
            host_mac: [0; 6],
            created: true,
        }
    }

    fn touched(version: u64, namespaces: &[u64]) -> Option<Touched> {
        Some(Touched {
            version,
            namespaces: namespaces.iter().copied().collect(),
        })
    }

    #[test]
    fn a_change_names_the_namespaces_that_it_concerns_and_no_others() {
        let endpoints = Endpoints::default();
        let (one, two) = (endpoint(1, 10, "front"), endpoint(2, 20, "back"));
        assert_eq!(endpoints.add(one.clone()), touched(1, &[10]));
        assert_eq!(endpoints.add(two.clone()), touched(2, &[20]));
        assert_eq!(endpoints.add(two.clone()), None, "nothing new");
        let relabelled = endpoint(2, 20, "front");
        assert_eq!(endpoints.add(relabelled.clone()), touched(3, &[20]));
        let mut elsewhere = relabelled.clone();
        elsewhere.addresses = vec!["10.0.0.1".parse().unwrap()];
        assert_eq!(endpoints.set(vec![one.clone(), elsewhere.clone()]), None);
        let moved = endpoint(2, 30, "front");
        let both = endpoints.set(vec![one, moved]);
        assert_eq!(both, touched(4, &[20, 30]));
        assert_eq!(endpoints.set(vec![]), touched(5, &[10, 30]));
        assert_eq!(endpoints.now().0, 5);
    }
}
