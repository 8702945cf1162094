//! Entries in the store: how a row is read and written.

use futures::TryStreamExt;
use spiffe::TrustDomain;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use crate::Error;
use crate::convert::trust_domains;
use crate::model::{Entry, Selector};
use crate::names::operator_id;
use crate::registry::Registry;
use crate::registry::store::{Change, int, uint};

/// Rows of one INSERT: 14 values each, within what every database takes.
const CHUNK: usize = 64;

impl Registry {
    pub(super) fn entry(&self, row: &AnyRow) -> Result<Entry, Error> {
        let parent: &str = row.try_get("parent")?;
        let selectors: Vec<String> =
            self.stored(serde_json::from_str(row.try_get("selectors")?))?;
        let selectors: Result<Vec<Selector>, Error> =
            selectors.iter().map(|text| text.parse()).collect();
        let domains: Vec<String> =
            self.stored(serde_json::from_str(row.try_get("federates_with")?))?;
        let ttl = |column| -> Result<Option<u32>, Error> {
            let ttl: Option<i64> = row.try_get(column)?;
            Ok(ttl.and_then(|ttl| u32::try_from(ttl).ok()))
        };
        Ok(Entry {
            id: row.try_get("id")?,
            spiffe_id: self.stored(operator_id(row.try_get("spiffe_id")?))?,
            parent_id: if parent.is_empty() {
                None
            } else {
                Some(self.stored(operator_id(parent))?)
            },
            selectors: self.stored(selectors)?,
            labels: self.stored(serde_json::from_str(row.try_get("labels")?))?,
            workload_ttl_seconds: ttl("ttl")?,
            dns_names: self.stored(serde_json::from_str(row.try_get("dns_names")?))?,
            hint: row.try_get("hint")?,
            federates_with: self.stored(trust_domains(&domains))?,
            jwt_ttl_seconds: ttl("jwt_ttl")?,
            expires_at_ms: row.try_get::<Option<i64>, _>("expires_ms")?.map(uint),
            created_at_ms: uint(row.try_get("created_ms")?),
            revision: uint(row.try_get("revision")?),
        })
    }

    /// Hands out the entries that were changed after `since`, each with the
    /// number of its change, without holding all of their rows.
    pub(in crate::registry) async fn entries_since(
        &self,
        since: u64,
        mut take: impl FnMut(Entry, u64),
    ) -> Result<(), Error> {
        let mut rows = sqlx::query("SELECT * FROM entries WHERE changed > $1")
            .bind(int(since))
            .fetch(self.store.reader());
        while let Some(row) = rows.try_next().await? {
            take(self.entry(&row)?, uint(row.try_get("changed")?));
        }
        Ok(())
    }

    /// IDs of entries that were deleted after `since`, each with its number.
    pub(in crate::registry) async fn deletions_since(
        &self,
        since: u64,
    ) -> Result<Vec<(String, u64)>, Error> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT id, changed FROM deleted_entries WHERE changed > $1")
                .bind(int(since))
                .fetch_all(self.store.reader())
                .await?;
        Ok(rows.into_iter().map(|(id, at)| (id, uint(at))).collect())
    }
}

/// In the order in which [`insert`] binds them.
const COLUMNS: [&str; 14] = [
    "id",
    "spiffe_id",
    "parent",
    "selectors",
    "labels",
    "ttl",
    "jwt_ttl",
    "dns_names",
    "hint",
    "federates_with",
    "created_ms",
    "expires_ms",
    "revision",
    "changed",
];

/// Writes entries that are new, under the number `changed`.
pub(super) async fn insert(
    change: &mut Change,
    entries: &[Entry],
    changed: u64,
) -> Result<(), Error> {
    for chunk in entries.chunks(CHUNK) {
        let mut rows = Vec::with_capacity(chunk.len());
        for entry in chunk {
            rows.push((entry, Texts::of(entry)?));
        }
        // Numbered by us: the builder of queries for any database writes `?`,
        // which PostgreSQL does not know.
        let marks = |row: usize| {
            let marks =
                (1..=COLUMNS.len()).map(|column| format!("${}", row * COLUMNS.len() + column));
            format!("({})", marks.collect::<Vec<_>>().join(", "))
        };
        let sql = format!(
            "INSERT INTO entries ({}) VALUES {}",
            COLUMNS.join(", "),
            (0..rows.len()).map(marks).collect::<Vec<_>>().join(", ")
        );
        let mut insert = sqlx::query(AssertSqlSafe(sql));
        for (entry, texts) in rows {
            insert = insert
                .bind(entry.id.clone())
                .bind(entry.spiffe_id.to_string())
                .bind(texts.parent)
                .bind(texts.selectors)
                .bind(texts.labels)
                .bind(entry.workload_ttl_seconds.map(i64::from))
                .bind(entry.jwt_ttl_seconds.map(i64::from))
                .bind(texts.dns_names)
                .bind(entry.hint.clone())
                .bind(texts.federates_with)
                .bind(int(entry.created_at_ms))
                .bind(entry.expires_at_ms.map(int))
                .bind(int(entry.revision))
                .bind(int(changed));
        }
        insert.execute(&mut **change).await?;
    }
    Ok(())
}

/// Writes an entry over the one with its ID.
pub(super) async fn replace(change: &mut Change, entry: &Entry, changed: u64) -> Result<(), Error> {
    sqlx::query("DELETE FROM entries WHERE id = $1")
        .bind(&entry.id)
        .execute(&mut **change)
        .await?;
    insert(change, std::slice::from_ref(entry), changed).await
}

/// Deletes an entry, and leaves word of it for servers that do not know.
pub(super) async fn delete(change: &mut Change, id: &str, changed: u64) -> Result<(), Error> {
    sqlx::query("DELETE FROM entries WHERE id = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    sqlx::query("INSERT INTO deleted_entries VALUES ($1, $2)")
        .bind(id)
        .bind(int(changed))
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// The columns that hold lists, and the parent.
pub(super) struct Texts {
    pub(super) parent: String,
    pub(super) selectors: String,
    labels: String,
    dns_names: String,
    federates_with: String,
}

impl Texts {
    pub(super) fn of(entry: &Entry) -> Result<Self, Error> {
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| Error::invalid("entry", error.to_string()))
        };
        let domains: Vec<&str> = entry
            .federates_with
            .iter()
            .map(TrustDomain::as_str)
            .collect();
        Ok(Self {
            parent: parent_text(entry),
            selectors: json(serde_json::to_string(&entry.selectors))?,
            labels: json(serde_json::to_string(&entry.labels))?,
            dns_names: json(serde_json::to_string(&entry.dns_names))?,
            federates_with: json(serde_json::to_string(&domains))?,
        })
    }
}

pub(super) fn parent_text(entry: &Entry) -> String {
    entry
        .parent_id
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default()
}
