//! The registry as agents see it, in memory: replaced section by section after each change.

use std::collections::HashMap;
use std::sync::Arc;

use super::Registry;
use super::store::uint;
use crate::authority::Authority;
use crate::bundle::TrustBundle;
use crate::deny::DenyList;
use crate::model::{Entry, Node, PolicyDocument};
use crate::verify::Verifier;
use crate::{Error, NodeName};

/// The number of the last change, and of the last change of each section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Revisions {
    pub(crate) last: u64,
    pub(crate) bundle: u64,
    pub(crate) nodes: u64,
    pub(crate) entries: u64,
    pub(crate) policies: u64,
    pub(crate) deny: u64,
}

/// One state of the registry.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) revisions: Revisions,
    pub(crate) bundle: Arc<TrustBundle>,
    /// All nodes, those that have not joined too.
    pub(crate) nodes: Arc<Vec<Node>>,
    pub(crate) entries: Arc<Vec<Entry>>,
    pub(crate) policies: Arc<Vec<PolicyDocument>>,
    pub(crate) deny: Arc<DenyList>,
    /// Judges agents by this bundle and deny list.
    pub(crate) verifier: Verifier,
    /// Positions in `entries` by entry ID.
    by_id: Arc<HashMap<String, usize>>,
}

impl Snapshot {
    /// Loads what has changed since `before`.
    pub(crate) async fn load(
        registry: &Registry,
        authority: &Authority,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let revisions = registry.revisions().await?;
        let fresh = |of: fn(&Revisions) -> u64| {
            before.filter(|before| of(&before.revisions) == of(&revisions))
        };
        let bundle = match fresh(|revisions| revisions.bundle) {
            Some(before) => Arc::clone(&before.bundle),
            None => Arc::new(authority.bundle(revisions.bundle)?),
        };
        let deny = match fresh(|revisions| revisions.deny) {
            Some(before) => Arc::clone(&before.deny),
            None => {
                let denials = registry.denials().await?;
                let signed = authority.sign_deny_list(revisions.deny, &denials)?;
                Arc::new(DenyList::from_bytes(&signed, &bundle)?)
            }
        };
        let kept = fresh(|revisions| revisions.nodes)
            .filter(|before| before.revisions.deny == revisions.deny);
        let nodes = match kept {
            Some(before) => Arc::clone(&before.nodes),
            None => {
                let mut nodes = registry.nodes().await?;
                for node in &mut nodes {
                    node.revoked = deny.denies_node(&node.name);
                }
                Arc::new(nodes)
            }
        };
        let (entries, by_id) = match fresh(|revisions| revisions.entries) {
            Some(before) => (Arc::clone(&before.entries), Arc::clone(&before.by_id)),
            None => {
                let entries = registry.entries().await?;
                let ids = entries
                    .iter()
                    .enumerate()
                    .map(|(at, entry)| (entry.id.clone(), at));
                let by_id = Arc::new(ids.collect());
                (Arc::new(entries), by_id)
            }
        };
        let policies = match fresh(|revisions| revisions.policies) {
            Some(before) => Arc::clone(&before.policies),
            None => Arc::new(registry.policies().await?),
        };
        let verifier = Verifier::new(Arc::clone(&bundle), Arc::clone(&deny));
        Ok(Self {
            revisions,
            bundle,
            nodes,
            entries,
            policies,
            deny,
            verifier,
            by_id,
        })
    }

    /// A node of the registry.
    pub(crate) fn node(&self, name: &NodeName) -> Option<&Node> {
        // Loaded in the order of names.
        let at = self
            .nodes
            .binary_search_by(|node| node.name.cmp(name))
            .ok()?;
        self.nodes.get(at)
    }

    /// An entry, if it applies to a node.
    pub(crate) fn entry_of(&self, node: &Node, id: &str) -> Option<&Entry> {
        self.by_id
            .get(id)
            .and_then(|at| self.entries.get(*at))
            .filter(|entry| applies(entry, node))
    }

    /// The entries that apply to a node.
    pub(crate) fn entries_of<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Entry> {
        self.entries
            .iter()
            .filter(move |entry| applies(entry, node))
    }
}

fn applies(entry: &Entry, node: &Node) -> bool {
    entry
        .parent_id
        .as_ref()
        .is_none_or(|parent| *parent == node.spiffe_id)
}

impl Registry {
    async fn revisions(&self) -> Result<Revisions, Error> {
        let row: (i64, i64, i64, i64, i64, i64) =
            sqlx::query_as("SELECT last, bundle, nodes, entries, policies, deny FROM sequence")
                .fetch_one(self.store.reader())
                .await?;
        Ok(Revisions {
            last: uint(row.0),
            bundle: uint(row.1),
            nodes: uint(row.2),
            entries: uint(row.3),
            policies: uint(row.4),
            deny: uint(row.5),
        })
    }

    /// All nodes with what their agents said last, for operators.
    pub(crate) async fn nodes_for_operators(&self, deny: &DenyList) -> Result<Vec<Node>, Error> {
        let mut nodes = self.nodes().await?;
        for node in &mut nodes {
            node.revoked = deny.denies_node(&node.name);
        }
        Ok(nodes)
    }
}
