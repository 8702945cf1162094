//! The store, whichever database it is: opened, migrated, and changed in
//! transactions that follow one another.
//!
//! Statements are written once, in the part of SQL that SQLite and PostgreSQL
//! share: `$1` placeholders, whole numbers (truth too) as 64-bit integers, a
//! sum cast back to BIGINT, `ON CONFLICT` and `RETURNING`.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe};

use super::{postgres, sqlite};
use crate::Error;

static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// What agents are told of; each section has its own revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Bundle,
    Retired,
    Nodes,
    Entries,
    Policies,
    Deny,
    Operators,
    Servers,
    Federation,
}

impl Section {
    /// Its column in `sequence`.
    fn column(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Retired => "retired",
            Self::Nodes => "nodes",
            Self::Entries => "entries",
            Self::Policies => "policies",
            Self::Deny => "deny",
            Self::Operators => "operators",
            Self::Servers => "servers",
            Self::Federation => "federation",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// A store that is open.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: AnyPool,
    kind: Kind,
    /// What people are told that it is: a path, or an address without secrets.
    name: String,
    url: Option<postgres::StoreUrl>,
    file: Option<PathBuf>,
}

impl Store {
    /// Makes a new store in a file.
    pub(crate) async fn create(path: &Path) -> Result<(), Error> {
        sqlite::create_file(path)?;
        sqlite::claim(path).await?;
        let store = Self::sqlite(path).await?;
        store.migrate().await?;
        store.first_number().await?;
        store.close().await;
        Ok(())
    }

    /// Opens a store in a file, and refuses one that is damaged or of another
    /// program.
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        sqlite::check(path).await?;
        let store = Self::sqlite(path).await?;
        store.migrate().await?;
        Ok(store)
    }

    async fn sqlite(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            pool: sqlite::connect(path).await?,
            kind: Kind::Sqlite,
            name: path.display().to_string(),
            url: None,
            file: Some(path.to_owned()),
        })
    }

    /// Opens a PostgreSQL database, and fills it with our tables if it is empty.
    pub(crate) async fn connect(url: &postgres::StoreUrl) -> Result<Self, Error> {
        let store = Self {
            pool: postgres::connect(url).await?,
            kind: Kind::Postgres,
            name: url.to_string(),
            url: Some(url.clone()),
            file: None,
        };
        store.migrate().await?;
        store.first_number().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), Error> {
        let migrations = match self.kind {
            Kind::Sqlite => &SQLITE,
            Kind::Postgres => &POSTGRES,
        };
        migrations
            .run(&self.pool)
            .await
            .map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                    error.into()
                }
                MigrateError::VersionMissing(version) => Error::Store(sqlx::Error::Configuration(
                    format!("{} was changed by a newer handfast (step {version}); run that one, nothing was changed", self.name).into(),
                )),
                other => self.damaged(&other.to_string()),
            })
    }

    /// A store that has never changed begins at today's number.
    async fn first_number(&self) -> Result<(), Error> {
        sqlx::query("UPDATE sequence SET last = $1, bundle = $1 WHERE last = 0")
            .bind(int(crate::now_ms()))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Begins a change; dropped without commit, it never happened. One change
    /// at a time, across all servers: what it reads stays true until it ends.
    pub(crate) async fn begin(&self) -> Result<Change, Error> {
        let mut change = self.begin_beside().await?;
        if self.kind == Kind::Postgres {
            sqlx::query("SELECT last FROM sequence WHERE id = 1 FOR UPDATE")
                .execute(&mut *change)
                .await?;
        }
        Ok(change)
    }

    /// Begins to read one moment of the store, however long that takes: others
    /// go on changing it meanwhile.
    pub(crate) async fn begin_reading(&self) -> Result<Change, Error> {
        self.begin_by(match self.kind {
            Kind::Sqlite => "BEGIN DEFERRED",
            Kind::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        })
        .await
    }

    /// Begins a change that needs no number and reads nothing to decide by.
    pub(super) async fn begin_beside(&self) -> Result<Change, Error> {
        self.begin_by(match self.kind {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN",
        })
        .await
    }

    async fn begin_by(&self, begin: &'static str) -> Result<Change, Error> {
        let mut change = Change {
            connection: self.pool.acquire().await?,
            kind: self.kind,
            numbered: false,
            over: false,
        };
        sqlx::query(begin).execute(&mut *change).await?;
        Ok(change)
    }

    /// Lists the names of all tables.
    pub(crate) fn tables_statement(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => {
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            }
            Kind::Postgres => {
                "SELECT CAST(table_name AS TEXT) FROM information_schema.tables
                 WHERE table_schema = current_schema()"
            }
        }
    }

    /// Where it is, if other servers may share it.
    pub(super) fn url(&self) -> Option<&postgres::StoreUrl> {
        self.url.as_ref()
    }

    /// Is it still whole? Read afresh, since what is open may have it in
    /// memory. A database looks after itself.
    pub(crate) async fn examine(&self) -> Result<(), Error> {
        match &self.file {
            Some(file) => sqlite::check(file).await,
            None => Ok(()),
        }
    }

    /// What people are told that it is.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// For reading what is committed.
    pub(crate) fn reader(&self) -> &AnyPool {
        &self.pool
    }

    pub(crate) fn damaged(&self, problem: &str) -> Error {
        Error::StoreDamaged {
            store: self.name.clone(),
            problem: problem.to_owned(),
        }
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A transaction under way.
pub(crate) struct Change {
    connection: PoolConnection<Any>,
    kind: Kind,
    numbered: bool,
    over: bool,
}

impl Change {
    /// Takes the next number, max(last + 1, unix milliseconds), for a change
    /// of `section`.
    pub(crate) async fn number(&mut self, section: Section) -> Result<u64, Error> {
        // In an UPDATE every right side sees the old row.
        let next = "CASE WHEN last >= $1 THEN last + 1 ELSE $1 END";
        let column = section.column();
        let sql = format!("UPDATE sequence SET last = {next}, {column} = {next} RETURNING last");
        let last: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(int(crate::now_ms()))
            .fetch_one(&mut **self)
            .await?;
        self.numbered = true;
        Ok(uint(last))
    }

    /// Makes it so, and wakes the other servers.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        if self.numbered && self.kind == Kind::Postgres {
            sqlx::query(postgres::NOTIFY).execute(&mut *self).await?;
        }
        sqlx::query("COMMIT").execute(&mut *self).await?;
        self.over = true;
        Ok(())
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.over {
            // Whatever went wrong, the connection goes and takes its transaction
            // along. A pool hands it out again in the state in which, say, a
            // full disk has left it.
            self.connection.close_on_drop();
        }
    }
}

impl Deref for Change {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.connection
    }
}

impl DerefMut for Change {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.connection
    }
}

/// The databases' integers are signed; ours are times and counters far below 2^63.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn uint(value: i64) -> u64 {
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
                instead_of: None,
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
        sqlx::query("UPDATE sequence SET last = $1")
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
            let next = change.number(section).await.unwrap();
            change.commit().await.unwrap();
            assert_eq!(next, last + 1);
            last = next;
        }
    }

    #[tokio::test]
    async fn a_change_that_is_not_committed_never_happened() {
        let (_folder, registry) = registry().await;
        let mut change = registry.store.begin().await.unwrap();
        change.number(Section::Nodes).await.unwrap();
        sqlx::query("INSERT INTO policies VALUES ('a', 'b', 1, 1)")
            .execute(&mut *change)
            .await
            .unwrap();
        drop(change);
        assert!(registry.policies().await.unwrap().is_empty());
    }
}
