//! The store in one SQLite file: what only that kind needs.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Connection};

use crate::Error;

/// "hfca": so that a file of another program is not taken for ours.
const APPLICATION: i64 = 0x6866_6361;

/// The setting of each connection that differs from the driver's own. It must
/// not touch the file: a pool tries a connection whose settings fail again and
/// again, until whoever asked has gone, and nobody hears that the file is damaged.
const SETTINGS: &str = "PRAGMA busy_timeout = 10000";

/// The setting that stays with the file.
const JOURNAL: &str = "PRAGMA journal_mode = WAL";

pub(super) fn create_file(path: &Path) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(Error::io("cannot create", path))
}

/// Marks a new file as ours, and has it keep a journal beside it.
pub(super) async fn claim(path: &Path) -> Result<(), Error> {
    let mut connection = alone(path, Access::Write).await?;
    sqlx::raw_sql("PRAGMA application_id = 0x68666361")
        .execute(&mut connection)
        .await?;
    sqlx::raw_sql(JOURNAL).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Is the file ours and whole? Only read: what a journal holds is not put into
/// a file that may be damaged.
pub(super) async fn check(path: &Path) -> Result<(), Error> {
    let problem = match examine(path).await {
        Ok(None) => return Ok(()),
        Ok(Some(problem)) => problem,
        Err(error) => match Error::from(error) {
            Error::StoreCorrupt(error) => error.to_string(),
            other => return Err(other),
        },
    };
    Err(Error::StoreDamaged {
        store: path.display().to_string(),
        problem,
    })
}

async fn examine(path: &Path) -> Result<Option<String>, sqlx::Error> {
    let mut connection = alone(path, Access::Read).await?;
    let application: i64 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut connection)
        .await?;
    if application != APPLICATION {
        return Ok(Some("it is not a handfast registry".to_owned()));
    }
    let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    Ok(Some(found).filter(|found| found != "ok"))
}

/// What a connection may do to the file.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

/// A connection outside of the pool, which would try again and again.
async fn alone(path: &Path, access: Access) -> Result<AnyConnection, sqlx::Error> {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(&url(path, access)).await?;
    sqlx::raw_sql(SETTINGS).execute(&mut connection).await?;
    Ok(connection)
}

pub(super) async fn connect(path: &Path) -> Result<AnyPool, sqlx::Error> {
    sqlx::any::install_default_drivers();
    AnyPoolOptions::new()
        .max_connections(4)
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(SETTINGS).execute(connection).await?;
                Ok(())
            })
        })
        .connect(&url(path, Access::Write))
        .await
}

/// A path may hold what means something in a URL.
fn url(path: &Path, access: Access) -> String {
    let mut url = String::from("sqlite://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => url.push(char::from(*byte)),
            plain if plain.is_ascii_alphanumeric() => url.push(char::from(*plain)),
            // Writing to a string does not fail.
            other => drop(write!(url, "%{other:02x}")),
        }
    }
    url.push_str(match access {
        Access::Read => "?mode=ro",
        Access::Write => "?mode=rw",
    });
    url
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;

    /// A token that was spent stays spent, whatever the power does.
    #[tokio::test]
    async fn what_is_committed_is_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.sqlite");
        Store::create(&path).await.unwrap();
        let store = Store::open(&path).await.unwrap();
        let full: i64 = sqlx::query_scalar("PRAGMA synchronous")
            .fetch_one(store.reader())
            .await
            .unwrap();
        assert_eq!(full, 2);
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(store.reader())
            .await
            .unwrap();
        assert_eq!(journal, "wal");
        let foreign_keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys")
            .fetch_one(store.reader())
            .await
            .unwrap();
        assert_eq!(foreign_keys, 1);
    }
}
