//! What stands above an entry: a node, or other entries, and never the entry itself.
//!
//! An entry whose parent is the SPIFFE ID of other entries applies wherever
//! one of those applies: so many entries share one place, and move with it.

use std::collections::{HashMap, HashSet};

use super::row::parent_text;
use crate::Error;
use crate::model::Entry;
use crate::names::node_id;
use crate::registry::Registry;
use crate::registry::store::Change;

/// Steps from an entry up to its node.
const MAX_DEPTH: usize = 8;

/// The parents of all entries that are parents themselves, and all nodes.
pub(super) struct Parents {
    nodes: HashSet<String>,
    /// SPIFFE ID → parents of the entries that give it.
    above: HashMap<String, HashSet<String>>,
}

impl Parents {
    pub(super) async fn load(registry: &Registry, change: &mut Change) -> Result<Self, Error> {
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM nodes")
            .fetch_all(&mut **change)
            .await?;
        let nodes = names
            .iter()
            .map(|name| {
                let name = registry.stored(name.parse())?;
                Ok(node_id(&registry.trust_domain, &name)?.to_string())
            })
            .collect::<Result<_, Error>>()?;
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT spiffe_id, parent FROM entries WHERE spiffe_id IN (SELECT parent FROM entries)",
        )
        .fetch_all(&mut **change)
        .await?;
        let mut above: HashMap<String, HashSet<String>> = HashMap::new();
        for (id, parent) in rows {
            above.entry(id).or_default().insert(parent);
        }
        Ok(Self { nodes, above })
    }

    /// Refuses a parent that is not there, a loop, and a tower.
    pub(super) fn check(&self, entry: &Entry) -> Result<(), Error> {
        let id = entry.spiffe_id.to_string();
        let mut frontier = HashSet::from([parent_text(entry)]);
        for _ in 0..MAX_DEPTH {
            let mut next = HashSet::new();
            for parent in frontier {
                if parent.is_empty() || self.nodes.contains(&parent) {
                    continue;
                }
                if parent == id {
                    return Err(Error::invalid(
                        format!("parent {}", parent_text(entry)),
                        format!("a loop: {id} would stand above itself; nothing was changed"),
                    ));
                }
                match self.above.get(&parent) {
                    Some(parents) => next.extend(parents.iter().cloned()),
                    None => {
                        return Err(Error::invalid(
                            format!("parent {parent}"),
                            "no node and no entry has that SPIFFE ID; nothing was changed",
                        ));
                    }
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            frontier = next;
        }
        Err(Error::invalid(
            format!("parent {}", parent_text(entry)),
            format!("more than {MAX_DEPTH} steps up to a node; nothing was changed"),
        ))
    }
}
