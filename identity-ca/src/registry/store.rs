//! The SQLite file: made, checked, opened, and changed in transactions.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

use crate::Error;

/// "hfca": so that a file of another program is not taken for ours.
const APPLICATION: i64 = 0x6866_6361;

/// What agents are told of; each section has its own revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Nodes,
    Entries,
    Policies,
    Deny,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: SqlitePool,
    path: PathBuf,
}

impl Store {
    /// Makes a new store.
    pub(crate) async fn create(path: &Path) -> Result<(), Error> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("cannot create", path))?;
        let store = Self {
            pool: connect(path).await?,
            path: path.to_owned(),
        };
        sqlx::query("PRAGMA application_id = 0x68666361")
            .execute(&store.pool)
            .await?;
        store.migrate().await?;
        sqlx::query("UPDATE sequence SET last = ?1, bundle = ?1")
            .bind(int(crate::now_ms()))
            .execute(&store.pool)
            .await?;
        store.close().await;
        Ok(())
    }

    /// Opens a store, and refuses one that is damaged or of another program.
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        let damaged = |problem: String| Error::StoreDamaged {
            path: path.to_owned(),
            problem,
        };
        let broken = |error: sqlx::Error| {
            let code = error
                .as_database_error()
                .and_then(|error| error.code())
                .unwrap_or_default();
            // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes.
            let primary = code.parse::<i64>().unwrap_or(0) & 0xff;
            if primary == 11 || primary == 26 {
                damaged(error.to_string())
            } else {
                error.into()
            }
        };
        let store = Self {
            pool: connect(path).await.map_err(broken)?,
            path: path.to_owned(),
        };
        let application: i64 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&store.pool)
            .await
            .map_err(broken)?;
        if application != APPLICATION {
            return Err(damaged("it is not a handfast registry".to_owned()));
        }
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&store.pool)
            .await
            .map_err(broken)?;
        if found != "ok" {
            return Err(damaged(found));
        }
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), Error> {
        sqlx::migrate!("./migrations")
            .run(&self.pool)
            .await
            .map_err(|error| match error {
                sqlx::migrate::MigrateError::Execute(error) => error.into(),
                other => self.damaged(&other.to_string()),
            })
    }

    /// Begins a change; dropped without commit, it never happened.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, Error> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// For reading what is committed.
    pub(super) fn reader(&self) -> &SqlitePool {
        &self.pool
    }

    pub(super) fn damaged(&self, problem: &str) -> Error {
        Error::StoreDamaged {
            path: self.path.clone(),
            problem: problem.to_owned(),
        }
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// Takes the next number for a change of `section`.
pub(super) async fn next_sequence(
    change: &mut Transaction<'static, Sqlite>,
    section: Section,
) -> Result<u64, Error> {
    // In an UPDATE every right side sees the old row.
    let sql = match section {
        Section::Nodes => {
            "UPDATE sequence SET last = max(last + 1, ?1), nodes = max(last + 1, ?1) RETURNING last"
        }
        Section::Entries => {
            "UPDATE sequence SET last = max(last + 1, ?1), entries = max(last + 1, ?1) RETURNING last"
        }
        Section::Policies => {
            "UPDATE sequence SET last = max(last + 1, ?1), policies = max(last + 1, ?1) RETURNING last"
        }
        Section::Deny => {
            "UPDATE sequence SET last = max(last + 1, ?1), deny = max(last + 1, ?1) RETURNING last"
        }
    };
    let last: i64 = sqlx::query_scalar(sql)
        .bind(int(crate::now_ms()))
        .fetch_one(&mut **change)
        .await?;
    Ok(uint(last))
}

async fn connect(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A token that was spent stays spent, whatever the power does.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10));
    SqlitePoolOptions::new()
        .max_connections(4)
        .connect_with(options)
        .await
}

/// SQLite's integers are signed; ours are times and counters far below 2^63.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::{PolicyOrder, Registry};
    use super::*;

    async fn registry() -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.sqlite");
        Store::create(&path).await.unwrap();
        let store = Store::open(&path).await.unwrap();
        let domain = spiffe::TrustDomain::new("example.org").unwrap();
        (folder, Registry::new(store, domain, vec![]))
    }

    #[tokio::test]
    async fn a_full_disk_changes_nothing_and_is_named() {
        let (_folder, registry) = registry().await;
        let put = |size: usize| {
            let order = PolicyOrder {
                name: format!("p{size}"),
                text: "x".repeat(size),
            };
            let registry = registry.clone();
            async move { registry.put_policies(&[order]).await }
        };
        put(10).await.unwrap();
        let before: i64 = sqlx::query_scalar("SELECT last FROM sequence")
            .fetch_one(registry.store.reader())
            .await
            .unwrap();
        // The file may not grow: what SQLite says then is what it says on a full disk.
        let mut connections = Vec::new();
        for _ in 0..4 {
            let mut connection = registry.store.pool.acquire().await.unwrap();
            sqlx::query("PRAGMA max_page_count = 1")
                .execute(&mut *connection)
                .await
                .unwrap();
            connections.push(connection);
        }
        drop(connections);
        let error = put(500_000).await.unwrap_err();
        assert!(matches!(error, Error::StoreFull), "{error}");
        assert!(error.to_string().contains("nothing was changed"));
        assert_eq!(registry.policies().await.unwrap().len(), 1);
        let after: i64 = sqlx::query_scalar("SELECT last FROM sequence")
            .fetch_one(registry.store.reader())
            .await
            .unwrap();
        assert_eq!(before, after);
    }

    #[tokio::test]
    async fn numbers_rise_even_when_the_clock_goes_back() {
        let (_folder, registry) = registry().await;
        let future = int(crate::now_ms()) + 1_000_000;
        sqlx::query("UPDATE sequence SET last = ?")
            .bind(future)
            .execute(registry.store.reader())
            .await
            .unwrap();
        let mut last = uint(future);
        for section in [
            Section::Nodes,
            Section::Deny,
            Section::Deny,
            Section::Policies,
        ] {
            let mut change = registry.store.begin().await.unwrap();
            let next = next_sequence(&mut change, section).await.unwrap();
            change.commit().await.unwrap();
            assert_eq!(next, last + 1);
            last = next;
        }
    }

    #[tokio::test]
    async fn a_change_that_is_not_committed_never_happened() {
        let (_folder, registry) = registry().await;
        let mut change = registry.store.begin().await.unwrap();
        next_sequence(&mut change, Section::Nodes).await.unwrap();
        sqlx::query("INSERT INTO policies VALUES ('a', 'b', 1, 1)")
            .execute(&mut *change)
            .await
            .unwrap();
        drop(change);
        assert!(registry.policies().await.unwrap().is_empty());
    }
}
