//! Registration entries: made, changed, imported and deleted, any number in one transaction.

mod order;
mod owned;
mod parents;
mod row;

use std::collections::{HashMap, HashSet};

use spiffe::SpiffeId;

use super::Registry;
use super::store::{Change, Section, int};
use crate::model::Entry;
use crate::{Error, now_ms};

pub(crate) use self::order::{EntryOrder, MAX_SVID_TTL, parent_of};
pub(crate) use self::owned::OwnedOutcome;
use self::parents::Parents;
use self::row::{Texts, delete, insert, replace};

/// Entries of a registry.
pub(crate) const MAX_ENTRIES: i64 = 500_000;
/// So many are better looked up in memory than one by one.
const MANY: usize = 256;
/// Word of a deletion is kept for so long (milliseconds).
const REMEMBER_MS: u64 = 24 * 3600 * 1000;

/// What became of an entry that was imported; what has changed is named by ID and SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Imported {
    Created(String, SpiffeId),
    Updated(String, SpiffeId),
    Unchanged,
}

impl Registry {
    /// Makes an entry.
    pub(crate) async fn create_entry(&self, order: &EntryOrder) -> Result<Entry, Error> {
        let entry = order.read(&self.trust_domain)?;
        let mut change = self.store.begin().await?;
        if let Some(same) = self.same_entry(&mut change, &entry).await? {
            return Err(exists(&entry, &same));
        }
        let number = change.number(Section::Entries).await?;
        insert(&mut change, std::slice::from_ref(&entry), number).await?;
        self.check_parents(&mut change, std::slice::from_ref(&entry))
            .await?;
        check_count(&mut change).await?;
        change.commit().await?;
        Ok(entry)
    }

    /// Writes an entry anew. `revision` is what the caller has seen; 0 for
    /// whatever it is.
    pub(crate) async fn update_entry(
        &self,
        id: &str,
        revision: u64,
        order: &EntryOrder,
    ) -> Result<Entry, Error> {
        let mut entry = order.read(&self.trust_domain)?;
        let mut change = self.store.begin().await?;
        let before = self.entry_by_id(&mut change, id).await?;
        if revision != 0 && revision != before.revision {
            return Err(Error::Conflict {
                what: "entry",
                name: id.to_owned(),
                problem: format!(
                    "somebody has changed it meanwhile (revision {}, you saw {revision}); nothing was changed: look at it and try again",
                    before.revision
                ),
            });
        }
        if let Some(same) = self.same_entry(&mut change, &entry).await?
            && same.id != id
        {
            return Err(exists(&entry, &same));
        }
        entry.id.clone_from(&before.id);
        entry.created_at_ms = before.created_at_ms;
        entry.revision = before.revision + 1;
        let number = change.number(Section::Entries).await?;
        replace(&mut change, &entry, number).await?;
        self.check_parents(&mut change, std::slice::from_ref(&entry))
            .await?;
        self.check_orphans(&mut change, std::slice::from_ref(&before))
            .await?;
        change.commit().await?;
        Ok(entry)
    }

    /// Deletes entries, all or none, and returns them; one that is named twice is deleted once.
    pub(crate) async fn delete_entries(&self, ids: &[String]) -> Result<Vec<Entry>, Error> {
        let mut change = self.store.begin().await?;
        let mut entries = Vec::with_capacity(ids.len());
        let mut named = HashSet::new();
        for id in ids.iter().filter(|id| named.insert(id.as_str())) {
            entries.push(self.entry_by_id(&mut change, id).await?);
        }
        if entries.is_empty() {
            return Ok(entries);
        }
        self.drop_entries(&mut change, &entries).await?;
        change.commit().await?;
        Ok(entries)
    }

    /// Deletes entries, unless others stand below them.
    pub(super) async fn drop_entries(
        &self,
        change: &mut Change,
        entries: &[Entry],
    ) -> Result<(), Error> {
        let number = change.number(Section::Entries).await?;
        for entry in entries {
            delete(change, &entry.id, number).await?;
        }
        self.check_orphans(change, entries).await
    }

    /// The entries that have a SPIFFE ID as their parent.
    pub(super) async fn entries_below(
        &self,
        change: &mut Change,
        parent: &SpiffeId,
    ) -> Result<Vec<Entry>, Error> {
        let rows = sqlx::query("SELECT * FROM entries WHERE parent = $1 ORDER BY spiffe_id, id")
            .bind(parent.to_string())
            .fetch_all(&mut **change)
            .await?;
        rows.iter().map(|row| self.entry(row)).collect()
    }

    /// Takes entries in: all or none. One that is there already (same SPIFFE
    /// ID, parent and selectors) is left if it says the same, and otherwise
    /// changed if `update` says so. A dry run says what would become of them.
    pub(crate) async fn import_entries(
        &self,
        orders: &[EntryOrder],
        update: bool,
        dry_run: bool,
    ) -> Result<Vec<Imported>, Error> {
        let mut change = self.store.begin().await?;
        let known = match orders.len() {
            many if many > MANY => Some(self.known_entries(&mut change).await?),
            _ => None,
        };
        let mut outcome = Vec::with_capacity(orders.len());
        let mut fresh: HashMap<Key, usize> = HashMap::new();
        let (mut created, mut updated) = (Vec::new(), Vec::new());
        for (position, order) in orders.iter().enumerate() {
            let at = |error| in_import(position, order, error);
            let mut entry = order.read(&self.trust_domain).map_err(at)?;
            let key = Key::of(&entry)?;
            if let Some(first) = fresh.insert(key.clone(), position) {
                return Err(in_import(
                    position,
                    order,
                    Error::invalid(
                        "duplicate",
                        format!(
                            "the same SPIFFE ID, parent and selectors as number {}",
                            first + 1
                        ),
                    ),
                ));
            }
            let same = match &known {
                Some(known) => match known.get(&key) {
                    Some(id) => Some(self.entry_by_id(&mut change, id).await?),
                    None => None,
                },
                None => self.same_entry(&mut change, &entry).await?,
            };
            let Some(same) = same else {
                outcome.push(Imported::Created(entry.id.clone(), entry.spiffe_id.clone()));
                created.push(entry);
                continue;
            };
            entry.id.clone_from(&same.id);
            entry.created_at_ms = same.created_at_ms;
            entry.revision = same.revision;
            if entry == same {
                outcome.push(Imported::Unchanged);
            } else if update {
                entry.revision += 1;
                outcome.push(Imported::Updated(entry.id.clone(), entry.spiffe_id.clone()));
                updated.push(entry);
            } else {
                return Err(in_import(position, order, exists(&entry, &same)));
            }
        }
        if created.is_empty() && updated.is_empty() {
            return Ok(outcome);
        }
        let number = change.number(Section::Entries).await?;
        insert(&mut change, &created, number).await?;
        for entry in &updated {
            replace(&mut change, entry, number).await?;
        }
        self.check_parents(&mut change, &created).await?;
        self.check_parents(&mut change, &updated).await?;
        check_count(&mut change).await?;
        // Dropped, it never happened.
        if !dry_run {
            change.commit().await?;
        }
        Ok(outcome)
    }

    /// Deletes what has expired, and forgets deletions of long ago. Says how
    /// many entries ended.
    pub(crate) async fn prune_entries(&self) -> Result<Vec<Entry>, Error> {
        let mut change = self.store.begin().await?;
        let now = now_ms();
        let rows = sqlx::query("SELECT * FROM entries WHERE expires_ms <= $1")
            .bind(int(now))
            .fetch_all(&mut *change)
            .await?;
        let expired: Vec<Entry> = rows
            .iter()
            .map(|row| self.entry(row))
            .collect::<Result<_, _>>()?;
        if expired.is_empty() {
            return Ok(expired);
        }
        let number = change.number(Section::Entries).await?;
        for entry in &expired {
            delete(&mut change, &entry.id, number).await?;
        }
        change.commit().await?;
        Ok(expired)
    }

    /// Forgets deletions of long ago: who has not heard of them by now reads
    /// everything anew.
    pub(crate) async fn forget_deletions(&self) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        let before = int(now_ms().saturating_sub(REMEMBER_MS));
        let gone = sqlx::query("DELETE FROM deleted_entries WHERE changed <= $1")
            .bind(before)
            .execute(&mut *change)
            .await?;
        if gone.rows_affected() == 0 {
            return Ok(());
        }
        sqlx::query("UPDATE sequence SET forgotten = $1")
            .bind(before)
            .execute(&mut *change)
            .await?;
        change.commit().await
    }

    async fn entry_by_id(&self, change: &mut Change, id: &str) -> Result<Entry, Error> {
        let row = sqlx::query("SELECT * FROM entries WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut **change)
            .await?;
        let missing = || Error::Missing {
            what: "entry",
            name: id.chars().take(64).collect(),
        };
        self.entry(&row.ok_or_else(missing)?)
    }

    /// The entry with the same identity, parent and selectors.
    async fn same_entry(&self, change: &mut Change, entry: &Entry) -> Result<Option<Entry>, Error> {
        let key = Key::of(entry)?;
        let row = sqlx::query(
            "SELECT * FROM entries WHERE spiffe_id = $1 AND parent = $2 AND selectors = $3",
        )
        .bind(key.spiffe_id)
        .bind(key.parent)
        .bind(key.selectors)
        .fetch_optional(&mut **change)
        .await?;
        row.map(|row| self.entry(&row)).transpose()
    }

    async fn known_entries(&self, change: &mut Change) -> Result<HashMap<Key, String>, Error> {
        let rows: Vec<(String, String, String, String)> =
            sqlx::query_as("SELECT id, spiffe_id, parent, selectors FROM entries")
                .fetch_all(&mut **change)
                .await?;
        let keyed = rows.into_iter().map(|(id, spiffe_id, parent, selectors)| {
            let key = Key {
                spiffe_id,
                parent,
                selectors,
            };
            (key, id)
        });
        Ok(keyed.collect())
    }

    /// Are the parents of these entries there, and above them?
    async fn check_parents(&self, change: &mut Change, entries: &[Entry]) -> Result<(), Error> {
        if entries.iter().all(|entry| entry.parent_id.is_none()) {
            return Ok(());
        }
        let parents = Parents::load(self, change).await?;
        entries.iter().try_for_each(|entry| parents.check(entry))
    }

    /// Does any entry stand below one of these, which are no more?
    async fn check_orphans(&self, change: &mut Change, gone: &[Entry]) -> Result<(), Error> {
        for entry in gone {
            let id = entry.spiffe_id.to_string();
            let (children, others): (i64, i64) = sqlx::query_as(
                "SELECT (SELECT count(*) FROM entries WHERE parent = $1),
                        (SELECT count(*) FROM entries WHERE spiffe_id = $1)",
            )
            .bind(&id)
            .fetch_one(&mut **change)
            .await?;
            if children > 0 && others == 0 {
                return Err(Error::invalid(
                    format!("entry {}", entry.id),
                    format!(
                        "{children} entries have {id} as their parent and would apply nowhere; delete those first (`handfast entry list --parent-id {id}`); nothing was changed"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// What makes two entries the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    spiffe_id: String,
    parent: String,
    selectors: String,
}

impl Key {
    fn of(entry: &Entry) -> Result<Self, Error> {
        let texts = Texts::of(entry)?;
        Ok(Self {
            spiffe_id: entry.spiffe_id.to_string(),
            parent: texts.parent,
            selectors: texts.selectors,
        })
    }
}

fn exists(entry: &Entry, same: &Entry) -> Error {
    Error::Exists {
        what: "entry",
        name: entry.spiffe_id.to_string(),
        hint: format!(
            "entry {} has the same parent and selectors; change or delete that one (`handfast entry update {0}`); nothing was changed",
            same.id
        ),
    }
}

fn in_import(position: usize, order: &EntryOrder, error: Error) -> Error {
    let id: String = order.spiffe_id.chars().take(128).collect();
    let why = error.to_string();
    let why = why.trim_end_matches("; nothing was changed");
    Error::invalid(
        format!("entry number {} ({id})", position + 1),
        format!("{why}; nothing was imported"),
    )
}

async fn check_count(change: &mut Change) -> Result<(), Error> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM entries")
        .fetch_one(&mut **change)
        .await?;
    if count > MAX_ENTRIES {
        return Err(Error::invalid(
            "entries",
            format!("more than {MAX_ENTRIES}; nothing was changed"),
        ));
    }
    Ok(())
}
