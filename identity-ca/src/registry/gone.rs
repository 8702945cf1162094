//! Nodes that are gone for good: struck off with what is kept for them alone. What was taken from them stays taken, and
//! what they have spent stays spent.

use std::collections::BTreeSet;

use super::Registry;
use super::admission::cut;
use super::store::{Change, Section, int, uint};
use crate::client::moment;
use crate::model::{Entry, Subject};
use crate::{Error, NodeName, node_id, now_ms};

/// Entries that an error names.
const SHOWN: usize = 5;

/// What a deletion has taken away.
#[derive(Debug)]
pub(crate) struct Deleted {
    /// Of the change.
    pub(crate) number: u64,
    /// Entries that had one of the nodes as their parent.
    pub(crate) entries: Vec<Entry>,
}

impl Registry {
    /// Deletes nodes, all of them or none: those that never joined, that are on the deny list, or that were not heard
    /// for `life_ms`, the life of a node's certificate. The deny list keeps whom it names. A dry run says what would go.
    pub(crate) async fn delete_nodes(
        &self,
        names: &[NodeName],
        with_entries: bool,
        life_ms: u64,
        dry_run: bool,
    ) -> Result<Deleted, Error> {
        // In the order in which `hear` locks them.
        let names: BTreeSet<&NodeName> = names.iter().collect();
        let mut change = self.store.begin().await?;
        let mut entries = Vec::new();
        for name in &names {
            self.may_go(&mut change, name, life_ms).await?;
            let id = node_id(&self.trust_domain, name)?;
            entries.extend(self.entries_below(&mut change, &id).await?);
        }
        if !entries.is_empty() {
            if !with_entries {
                return Err(in_the_way(&names, &entries));
            }
            self.drop_entries(&mut change, &entries).await?;
        }
        for name in &names {
            strike(&mut change, name).await?;
        }
        let number = change.number(Section::Nodes).await?;
        sqlx::query("UPDATE sequence SET nodes_deleted = $1")
            .bind(int(number))
            .execute(&mut *change)
            .await?;
        if !dry_run {
            change.commit().await?;
        }
        Ok(Deleted { number, entries })
    }

    /// A node whose certificate still counts with its peers would go on behind the registry's back.
    async fn may_go(
        &self,
        change: &mut Change,
        name: &NodeName,
        life_ms: u64,
    ) -> Result<(), Error> {
        let row: Option<(Option<i64>, Option<i64>, i64, String)> =
            sqlx::query_as("SELECT joined_ms, seen_ms, banned, reason FROM nodes WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(&mut **change)
                .await?;
        let Some((joined, seen, banned, reason)) = row else {
            return Err(Error::Missing {
                what: "node",
                name: name.to_string(),
            });
        };
        if banned != 0 {
            // The ban outlives the node where it always stood for its peers, even if that was lifted by hand.
            cut(change, name, &reason).await?;
            change.number(Section::Deny).await?;
            return Ok(());
        }
        if self.denied(change, &Subject::Node(name.clone())).await? {
            return Ok(());
        }
        let heard = joined.max(seen).map_or(0, uint);
        let until = heard.saturating_add(life_ms);
        if joined.is_none() || until < now_ms() {
            return Ok(());
        }
        Err(Error::Conflict {
            what: "node",
            name: name.to_string(),
            problem: format!(
                "it was heard at {}, and its certificate may count with its peers until {}: cut it first (`handfast revoke --node {name} --reason TEXT`), or wait until then; nothing was changed",
                moment(heard),
                moment(until)
            ),
        })
    }
}

fn in_the_way(names: &BTreeSet<&NodeName>, entries: &[Entry]) -> Error {
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    let shown: Vec<String> = entries
        .iter()
        .take(SHOWN)
        .map(|entry| format!("{} ({})", entry.id, entry.spiffe_id))
        .collect();
    let more = match entries.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Error::Conflict {
        what: "node",
        name: names.join(" "),
        problem: format!(
            "entries have it as their parent and would apply nowhere: {}{more}; delete them along with it (--with-entries), or give them another parent (`handfast entry update ID --parent-id …`); nothing was changed",
            shown.join(", ")
        ),
    }
}

async fn strike(change: &mut Change, name: &NodeName) -> Result<(), Error> {
    for sql in [
        "UPDATE tokens SET void = 'its node was deleted' WHERE node = $1 AND used_ms IS NULL AND void = ''",
        "DELETE FROM observations WHERE node = $1",
        "DELETE FROM observers WHERE node = $1",
        "DELETE FROM recovery_heard WHERE node = $1",
        "DELETE FROM nodes WHERE name = $1",
    ] {
        sqlx::query(sql)
            .bind(name.as_str())
            .execute(&mut **change)
            .await?;
    }
    Ok(())
}
