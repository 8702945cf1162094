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
        let store = Self { pool: connect(path).await?, path: path.to_owned() };
        sqlx::query("PRAGMA application_id = 0x68666361").execute(&store.pool).await?;
        store.migrate().await?;
        store.close().await;
        Ok(())
    }

    /// Opens a store, and refuses one that is damaged or of another program.
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        let damaged = |problem: String| Error::StoreDamaged { path: path.to_owned(), problem };
        let broken = |error: sqlx::Error| {
            let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
            // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes.
            let primary = code.parse::<i64>().unwrap_or(0) & 0xff;
            if primary == 11 || primary == 26 { damaged(error.to_string()) } else { error.into() }
        };
        let store = Self { pool: connect(path).await.map_err(broken)?, path: path.to_owned() };
        let application: i64 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&store.pool)
            .await
            .map_err(broken)?;
        if application != APPLICATION {
            return Err(damaged("it is not a handfast registry".to_owned()));
        }
        let found: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&store.pool).await.map_err(broken)?;
        if found != "ok" {
            return Err(damaged(found));
        }
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), Error> {
        sqlx::migrate!("./migrations").run(&self.pool).await.map_err(|error| match error {
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
        Error::StoreDamaged { path: self.path.clone(), problem: problem.to_owned() }
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
        Section::Nodes => "UPDATE sequence SET last = max(last + 1, ?1), nodes = max(last + 1, ?1) RETURNING last",
        Section::Entries => "UPDATE sequence SET last = max(last + 1, ?1), entries = max(last + 1, ?1) RETURNING last",
        Section::Policies => "UPDATE sequence SET last = max(last + 1, ?1), policies = max(last + 1, ?1) RETURNING last",
        Section::Deny => "UPDATE sequence SET last = max(last + 1, ?1), deny = max(last + 1, ?1) RETURNING last",
    };
    let last: i64 =
        sqlx::query_scalar(sql).bind(int(crate::now_ms())).fetch_one(&mut **change).await?;
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
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await
}

/// SQLite's integers are signed; ours are times and counters far below 2^63.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
