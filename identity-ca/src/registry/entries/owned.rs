//! Entries that follow something outside of the registry, such as the pods of a cluster: made, changed and taken away
//! under a key of whoever owns them, and told apart from those of operators.

use std::collections::{HashMap, HashSet};

use super::check_count;
use super::order::EntryOrder;
use super::row::{delete, insert, replace};
use crate::model::Entry;
use crate::registry::Registry;
use crate::registry::store::{Change, Section};
use crate::{Error, NodeName, node_id};

/// What became of a change.
#[derive(Debug, Default)]
pub(crate) struct OwnedOutcome {
    /// Keys with the IDs of their entries, those that are new or were changed.
    pub(crate) written: Vec<(String, String)>,
    /// Those that said so already.
    pub(crate) kept: Vec<(String, String)>,
    /// How many of those written are new.
    pub(crate) created: usize,
    /// Keys whose entries are gone.
    pub(crate) deleted: Vec<String>,
    /// What could not be done, by key; the rest was.
    pub(crate) refused: Vec<(String, Error)>,
}

impl OwnedOutcome {
    /// Was anything changed?
    pub(crate) fn is_change(&self) -> bool {
        !(self.written.is_empty() && self.deleted.is_empty())
    }
}

impl Registry {
    /// IDs of the entries that somebody owns, by key.
    pub(crate) async fn owned_entries(&self) -> Result<HashMap<String, String>, Error> {
        let rows: Vec<(String, String)> = sqlx::query_as("SELECT owner, entry FROM owned_entries")
            .fetch_all(self.store.reader())
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Makes it so, in one transaction: entries of these keys say this, those of the others are gone. What is the same
    /// already is left, an operator's that says the same is taken over, and one that cannot be is refused without
    /// keeping the others back: then what stood under its key ends, since it says what no longer holds.
    pub(crate) async fn change_owned(
        &self,
        put: &[(String, EntryOrder)],
        gone: &[String],
    ) -> Result<OwnedOutcome, Error> {
        let mut change = self.store.begin().await?;
        let mut outcome = OwnedOutcome::default();
        let nodes = self.node_ids(&mut change).await?;
        let (mut created, mut updated, mut adopted) = (Vec::new(), Vec::new(), Vec::new());
        let mut ended = Vec::new();
        for (key, order) in put {
            let read = order.read(&self.trust_domain).and_then(|entry| {
                let parent = entry.parent_id.as_ref().map(ToString::to_string);
                match parent {
                    Some(parent) if !nodes.contains(&parent) => Err(Error::Missing {
                        what: "node",
                        name: parent,
                    }),
                    _ => Ok(entry),
                }
            });
            let mut entry = match read {
                Ok(entry) => entry,
                Err(error) => {
                    outcome.refused.push((key.clone(), error));
                    if let Some(known) = self.owned(&mut change, key).await? {
                        ended.push((key, known));
                    }
                    continue;
                }
            };
            let known = match self.owned(&mut change, key).await? {
                Some(known) => Some(known),
                None => {
                    let same = self.same_entry(&mut change, &entry).await?;
                    if let Some(same) = &same {
                        adopted.push((key, same.id.clone()));
                    }
                    same
                }
            };
            match known {
                Some(known) => {
                    entry.id.clone_from(&known.id);
                    entry.created_at_ms = known.created_at_ms;
                    entry.revision = known.revision;
                    if entry == known {
                        outcome.kept.push((key.clone(), entry.id));
                    } else {
                        entry.revision += 1;
                        updated.push((key, entry));
                    }
                }
                None => created.push((key, entry)),
            }
        }
        for key in gone {
            match self.owned(&mut change, key).await? {
                Some(entry) => ended.push((key, entry)),
                // Somebody was faster: that is what was wanted.
                None => outcome.deleted.push(key.clone()),
            }
        }
        for (key, entry) in &adopted {
            own(&mut change, key, entry).await?;
        }
        if created.is_empty() && updated.is_empty() && ended.is_empty() {
            if !adopted.is_empty() {
                change.commit().await?;
            }
            return Ok(outcome);
        }
        let number = change.number(Section::Entries).await?;
        let fresh: Vec<Entry> = created.iter().map(|(_, entry)| entry.clone()).collect();
        insert(&mut change, &fresh, number).await?;
        for (_, entry) in &updated {
            replace(&mut change, entry, number).await?;
        }
        for (key, entry) in &created {
            own(&mut change, key, &entry.id).await?;
        }
        for (key, entry) in &ended {
            delete(&mut change, &entry.id, number).await?;
            disown(&mut change, key).await?;
        }
        check_count(&mut change).await?;
        change.commit().await?;
        outcome.created = created.len();
        let written = created.into_iter().chain(updated);
        outcome.written = written
            .map(|(key, entry)| (key.clone(), entry.id))
            .collect();
        let ended = ended.into_iter().map(|(key, _)| key.clone());
        outcome.deleted.extend(ended);
        Ok(outcome)
    }

    /// The entry of a key, if it is there still.
    async fn owned(&self, change: &mut Change, key: &str) -> Result<Option<Entry>, Error> {
        let row = sqlx::query(
            "SELECT entries.* FROM entries JOIN owned_entries ON entries.id = owned_entries.entry
             WHERE owned_entries.owner = $1",
        )
        .bind(key)
        .fetch_optional(&mut **change)
        .await?;
        row.map(|row| self.entry(&row)).transpose()
    }

    async fn node_ids(&self, change: &mut Change) -> Result<HashSet<String>, Error> {
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM nodes")
            .fetch_all(&mut **change)
            .await?;
        let ids = names.iter().map(|name| {
            let name: NodeName = self.stored(name.parse())?;
            Ok(node_id(&self.trust_domain, &name)?.to_string())
        });
        ids.collect()
    }
}

async fn own(change: &mut Change, key: &str, entry: &str) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO owned_entries (owner, entry) VALUES ($1, $2)
         ON CONFLICT (owner) DO UPDATE SET entry = $2",
    )
    .bind(key)
    .bind(entry)
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn disown(change: &mut Change, key: &str) -> Result<(), Error> {
    sqlx::query("DELETE FROM owned_entries WHERE owner = $1")
        .bind(key)
        .execute(&mut **change)
        .await?;
    Ok(())
}
