//! A CA from a backup: a new folder, all of it or nothing.

use std::path::PathBuf;

use sqlx::AnyConnection;

use super::file::{self, problem};
use super::{Header, rows};
use crate::authority::{self, RootKey, Setup};
use crate::bundle::Fingerprint;
use crate::registry::{Store, int};
use crate::{Error, now_ms};

/// Numbers begin again so far above the backup's, in milliseconds: no server
/// has ever given higher ones, unless its clock was off by more.
const EPOCH_MS: u64 = 24 * 3600 * 1000;

/// What is to be restored, and where.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The backup.
    pub backup: PathBuf,
    /// The folder that is made.
    pub dir: PathBuf,
    /// The server's name; none: as in the backup.
    pub server: Option<String>,
    /// Opens the keys in the backup, and seals the root's key in the folder.
    pub passphrase_file: Option<PathBuf>,
    /// The root's private key (PEM), if it is at hand and not in the backup.
    pub root_key: Option<PathBuf>,
}

/// What has come of it.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Whom the CA signs for.
    pub trust_domain: String,
    /// The root's fingerprint, as join tokens name it.
    pub root: Fingerprint,
    /// When the backup was written (unix milliseconds).
    pub at_ms: u64,
    /// Nodes that had joined, whose agents are waited for.
    pub nodes: u64,
    /// The root is kept offline: the issuing CA waits for its certificate.
    pub waits_for_root: bool,
}

/// Makes the folder of a CA from a backup. Nothing is left behind if it fails.
pub async fn restore(order: &Restore) -> Result<Restored, Error> {
    // Once to the end, before anything is made of it.
    let content = file::read(&order.backup, |_| async { Ok(()) }).await?;
    let header = content.header;
    let trust_domain = authority::trust_domain(&header.trust_domain)
        .map_err(|error| problem(&order.backup, &error.to_string()))?;
    let mut setup = Setup::new(
        order.dir.clone(),
        trust_domain,
        header.prefix_ranges.clone(),
    );
    setup.server = order
        .server
        .clone()
        .unwrap_or_else(|| header.server.clone());
    setup.lifetimes = header.lifetimes_seconds;
    setup.passphrase_file = order.passphrase_file.clone();
    let root_key = match &order.root_key {
        Some(path) => RootKey::File(path.clone()),
        None => RootKey::AsInFolder,
    };
    let fill = |store: Store| fill(order.clone(), header.clone(), store);
    let rebuilt = authority::rebuild(&setup, content.keys, &root_key, fill).await?;
    Ok(Restored {
        trust_domain: header.trust_domain,
        root: rebuilt.root,
        at_ms: header.at_ms,
        nodes: rebuilt.filled,
        waits_for_root: rebuilt.waits_for_root,
    })
}

/// Fills an empty store; gives how many nodes had joined and count.
async fn fill(order: Restore, header: Header, store: Store) -> Result<u64, Error> {
    let mut change = store.begin().await?;
    if header.schema > rows::schema(&mut change).await? {
        return Err(problem(
            &order.backup,
            "was written by a newer handfast; restore it with that one",
        ));
    }
    let tables = store.tables(&mut change).await?;
    rows::clear(&store, &mut change).await?;
    // Rows come in the order of the file; a task of its own would need another connection.
    let change = tokio::sync::Mutex::new(change);
    file::read(&order.backup, |row| {
        let (change, tables) = (&change, &tables);
        async move { rows::insert(&mut **change.lock().await, tables, &row).await }
    })
    .await?;
    let mut change = change.into_inner();
    begin_anew(&mut change, &header).await?;
    let joined: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM nodes WHERE joined_ms IS NOT NULL AND evicted = 0 AND banned = 0
         AND name NOT IN (SELECT subject FROM denials WHERE kind = 'node')",
    )
    .fetch_one(&mut *change)
    .await?;
    change.commit().await?;
    Ok(crate::registry::uint(joined))
}

/// What must not come back does not: numbers, tokens, and who was revoked since.
async fn begin_anew(change: &mut AnyConnection, header: &Header) -> Result<(), Error> {
    let now = now_ms();
    let number = int(header.sequence.max(now).saturating_add(EPOCH_MS));
    sqlx::query(
        "UPDATE sequence SET last = $1, bundle = $1, retired = $1, nodes = $1, entries = $1, policies = $1,
                deny = $1, operators = $1, servers = $1, forgotten = $1",
    )
    .bind(number)
    .execute(&mut *change)
    .await?;
    sqlx::query("UPDATE tokens SET void = 'made void when the CA was restored from a backup' WHERE used_ms IS NULL AND void = ''")
        .execute(&mut *change)
        .await?;
    sqlx::query("UPDATE nodes SET acknowledged = 0, authorities_in_use = '[]'")
        .execute(&mut *change)
        .await?;
    sqlx::query("INSERT INTO recovery (id, since_ms, deny_number) VALUES (1, $1, $2)")
        .bind(int(now))
        .bind(int(header.sequence))
        .execute(&mut *change)
        .await?;
    Ok(())
}
