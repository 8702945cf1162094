//! The registry as agents see it, in memory: replaced section by section after each change.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::Row;

use super::Registry;
use super::federations::Federations;
use super::mesh::Mesh;
use super::operators::Operators;
use super::store::uint;
use super::table::EntryTable;
use crate::authority::{Authority, Record};
use crate::bundle::TrustBundle;
use crate::deny::DenyList;
use crate::model::{Entry, Node, PolicyDocument};
use crate::verify::Verifier;
use crate::{Error, NodeName, now_ms};

/// The number of the last change, and of the last change of each section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Revisions {
    pub(crate) last: u64,
    pub(crate) bundle: u64,
    pub(crate) nodes: u64,
    pub(crate) entries: u64,
    pub(crate) policies: u64,
    pub(crate) deny: u64,
    pub(crate) retired: u64,
    pub(crate) operators: u64,
    pub(crate) servers: u64,
    pub(crate) federation: u64,
    /// Deletions of entries up to here are no longer known one by one.
    pub(crate) forgotten: u64,
    /// The last deletion of a node.
    pub(crate) nodes_deleted: u64,
}

/// One state of the registry.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) revisions: Revisions,
    pub(crate) bundle: Arc<TrustBundle>,
    /// What agents are to leave: issuing CAs and JWT keys.
    pub(crate) retired: Arc<BTreeSet<String>>,
    /// All nodes, those that have not joined too.
    pub(crate) nodes: Arc<Mesh>,
    pub(crate) entries: Arc<EntryTable>,
    pub(crate) operators: Arc<Operators>,
    pub(crate) policies: Arc<Vec<PolicyDocument>>,
    pub(crate) deny: Arc<DenyList>,
    /// Foreign trust domains.
    pub(crate) federations: Arc<Federations>,
    /// Judges agents by this bundle and deny list.
    pub(crate) verifier: Verifier,
    /// Judges agents that slept through a rotation: roots that left the bundle
    /// uncompromised count too.
    pub(crate) remembering: Verifier,
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
        let signers = fresh(|revisions| revisions.bundle)
            .filter(|before| before.revisions.retired == revisions.retired);
        if signers.is_none() {
            authority.adopt(registry.authorities().await?)?;
        }
        let retired = match signers {
            Some(before) => Arc::clone(&before.retired),
            None => Arc::new(authority.authorities().retired(now_ms())),
        };
        let bundle = match fresh(|revisions| revisions.bundle) {
            Some(before) => Arc::clone(&before.bundle),
            None => Arc::new(authority.bundle(revisions.bundle)?),
        };
        let deny = match fresh(|revisions| revisions.deny) {
            Some(before) => Arc::clone(&before.deny),
            None => {
                let denials = registry.denials().await?;
                Arc::new(match authority.sign_deny_list(revisions.deny, &denials) {
                    Ok(signed) => DenyList::from_bytes(&signed, &bundle)?,
                    // It counts here all the same; agents get it when there is a signature.
                    Err(Error::NotSigning(_)) => DenyList::unsigned(revisions.deny, denials),
                    Err(error) => return Err(error),
                })
            }
        };
        let nodes = registry.mesh(before, &revisions, &deny).await?;
        registry.know_nodes(revisions.nodes, &nodes);
        let entries = registry.entry_table(before, &revisions).await?;
        let operators = match fresh(|revisions| revisions.operators) {
            Some(before) => Arc::clone(&before.operators),
            None => Arc::new(registry.operators().await?),
        };
        let policies = match fresh(|revisions| revisions.policies) {
            Some(before) => Arc::clone(&before.policies),
            None => Arc::new(registry.policies().await?),
        };
        let federations = match fresh(|revisions| revisions.federation) {
            Some(before) => Arc::clone(&before.federations),
            None => Arc::new(registry.federations().await?),
        };
        let verifier = Verifier::new(Arc::clone(&bundle), Arc::clone(&deny));
        let remembered = authority
            .authorities()
            .remembered(authority.trust_domain())?;
        let remembering = Verifier::new(remembered, Arc::clone(&deny));
        Ok(Self {
            revisions,
            bundle,
            retired,
            remembering,
            nodes,
            entries,
            policies,
            deny,
            federations,
            operators,
            verifier,
        })
    }

    /// A node of the registry.
    pub(crate) fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name).map(Arc::as_ref)
    }

    /// An entry, if it applies to a node.
    pub(crate) fn entry_of(&self, node: &Node, id: &str) -> Option<Arc<Entry>> {
        self.entries.entry_of(node, id, now_ms())
    }

    /// The entries that apply to a node.
    pub(crate) fn entries_of(&self, node: &Node) -> Vec<Arc<Entry>> {
        self.entries.entries_of(node, now_ms())
    }
}

impl Registry {
    async fn revisions(&self) -> Result<Revisions, Error> {
        let row = sqlx::query("SELECT * FROM sequence")
            .fetch_one(self.store.reader())
            .await?;
        let number = |column| row.try_get::<i64, _>(column).map(uint);
        Ok(Revisions {
            last: number("last")?,
            bundle: number("bundle")?,
            nodes: number("nodes")?,
            entries: number("entries")?,
            policies: number("policies")?,
            deny: number("deny")?,
            retired: number("retired")?,
            operators: number("operators")?,
            servers: number("servers")?,
            federation: number("federation")?,
            forgotten: number("forgotten")?,
            nodes_deleted: number("nodes_deleted")?,
        })
    }

    /// The nodes, brought up to `now`: by those that have changed since `before`, and those that were revoked or are no
    /// longer, unless one was deleted.
    async fn mesh(
        &self,
        before: Option<&Snapshot>,
        now: &Revisions,
        deny: &DenyList,
    ) -> Result<Arc<Mesh>, Error> {
        let mut known = before.filter(|before| before.revisions.nodes >= now.nodes_deleted);
        let since = known.map(|before| before.revisions.nodes);
        let mut changed = Vec::new();
        if since != Some(now.nodes) {
            let mut reader = self.store.reader().acquire().await?;
            changed = self.nodes_since(&mut reader, since).await?;
            if changed.is_empty() && known.take().is_some() {
                // A server of an earlier version on the same store does not say which.
                changed = self.nodes_since(&mut reader, None).await?;
            }
        }
        let Some(before) = known else {
            let all = changed.into_iter().map(|node| judged(node, deny));
            return Ok(Arc::new(Mesh::of(all.collect(), now.last)));
        };
        if before.revisions.deny != now.deny {
            let moved = before.deny.nodes().filter(|name| !deny.denies_node(name));
            let moved = moved.chain(deny.nodes().filter(|name| !before.deny.denies_node(name)));
            let moved: Vec<Node> = moved
                .filter(|name| !changed.iter().any(|node| node.name == **name))
                .filter_map(|name| before.nodes.get(name))
                .map(|node| Node::clone(node))
                .collect();
            changed.extend(moved);
        }
        if changed.is_empty() {
            return Ok(Arc::clone(&before.nodes));
        }
        let changed = changed.into_iter().map(|node| judged(node, deny)).collect();
        Ok(Arc::new(before.nodes.next(changed, now.last)))
    }

    /// The table of entries, brought up to `now`: by what has changed since
    /// `before`, if that is known.
    async fn entry_table(
        &self,
        before: Option<&Snapshot>,
        now: &Revisions,
    ) -> Result<Arc<EntryTable>, Error> {
        let known = before.filter(|before| {
            let same = before.revisions.entries == now.entries;
            same || before.revisions.entries >= now.forgotten
        });
        let (table, since) = match known {
            Some(before) if before.revisions.entries == now.entries => {
                return Ok(Arc::clone(&before.entries));
            }
            Some(before) => (Arc::clone(&before.entries), before.revisions.entries),
            None => (Arc::new(EntryTable::new(now.entries)), 0),
        };
        let mut changed = Vec::new();
        self.entries_since(since, |entry, number| match known {
            None if number <= now.entries => table.fill(entry),
            _ => changed.push((entry, number)),
        })
        .await?;
        let deleted = match known {
            Some(_) => self.deletions_since(since).await?,
            None => Vec::new(),
        };
        table.apply(changed, deleted);
        Ok(table)
    }

    /// Roots, issuing CAs and JWT keys.
    async fn authorities(&self) -> Result<Vec<Record>, Error> {
        let mut reader = self.store.reader().acquire().await?;
        self.stored(Record::all(&mut reader).await)
    }

    /// All nodes with what their agents said last, for operators.
    pub(crate) async fn nodes_for_operators(&self, deny: &DenyList) -> Result<Vec<Node>, Error> {
        let mut reader = self.store.reader().acquire().await?;
        let mut nodes = self.nodes_since(&mut reader, None).await?;
        // Each database sorts by rules of its own.
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(nodes.into_iter().map(|node| judged(node, deny)).collect())
    }
}

/// Rows of nodes do not say who is revoked.
fn judged(mut node: Node, deny: &DenyList) -> Node {
    node.revoked = deny.denies_node(&node.name);
    node
}
