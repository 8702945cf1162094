//! Servers of this CA: each tells the others, through the store, that it is there.

use sqlx::Row;

use super::Registry;
use super::store::{Section, int, uint};
use crate::model::CaServer;
use crate::{Error, now_ms};

/// A server tells so often that it is there (milliseconds).
pub(crate) const HEARTBEAT_MS: u64 = 10_000;
/// Who was not heard for so long gets no agents.
const LOST_MS: u64 = 60_000;
const MAX_SERVERS: i64 = 64;

impl Registry {
    /// All servers, by name.
    pub(crate) async fn servers(&self) -> Result<Vec<CaServer>, Error> {
        let rows = sqlx::query("SELECT * FROM servers")
            .fetch_all(self.store.reader())
            .await?;
        let server = |row: &sqlx::any::AnyRow| -> Result<CaServer, Error> {
            let seen_at_ms = uint(row.try_get("seen_ms")?);
            Ok(CaServer {
                this: false,
                alive: now_ms().saturating_sub(seen_at_ms) < LOST_MS,
                name: row.try_get("name")?,
                address: row.try_get("address")?,
                version: row.try_get("version")?,
                started_at_ms: uint(row.try_get("started_ms")?),
                seen_at_ms,
            })
        };
        let mut servers: Vec<CaServer> = rows.iter().map(server).collect::<Result<_, _>>()?;
        servers.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(servers)
    }

    /// Enters this server, with the address that agents are sent to.
    pub(crate) async fn enter_server(&self, name: &str, address: &str) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        sqlx::query(
            "INSERT INTO servers VALUES ($1, $2, $3, $4, $4)
             ON CONFLICT (name) DO UPDATE SET address = $2, version = $3, started_ms = $4, seen_ms = $4",
        )
        .bind(name)
        .bind(address)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(int(now_ms()))
        .execute(&mut *change)
        .await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM servers")
            .fetch_one(&mut *change)
            .await?;
        if count > MAX_SERVERS {
            return Err(Error::invalid(
                "servers",
                format!(
                    "more than {MAX_SERVERS}; remove those that are gone (`handfast ca server remove`)"
                ),
            ));
        }
        change.number(Section::Servers).await?;
        change.commit().await
    }

    /// This server is there. Says whether that is news to agents: it was
    /// thought lost.
    pub(crate) async fn heartbeat(&self, name: &str) -> Result<(), Error> {
        let mut change = self.store.begin_beside().await?;
        sqlx::query("UPDATE servers SET seen_ms = $1 WHERE name = $2")
            .bind(int(now_ms()))
            .bind(name)
            .execute(&mut *change)
            .await?;
        change.commit().await
    }

    /// Strikes a server off the list, with its issuing CA and its JWT key.
    pub(crate) async fn remove_server(&self, name: &str) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        let gone = sqlx::query("DELETE FROM servers WHERE name = $1")
            .bind(name)
            .execute(&mut *change)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(Error::Missing {
                what: "server",
                name: name.chars().take(64).collect(),
            });
        }
        // What it signs with goes with it, and nobody waits for it any more.
        sqlx::query("UPDATE authorities SET state = 'retired' WHERE server = $1")
            .bind(name)
            .execute(&mut *change)
            .await?;
        sqlx::query("DELETE FROM signers WHERE server = $1")
            .bind(name)
            .execute(&mut *change)
            .await?;
        change.number(Section::Bundle).await?;
        change.number(Section::Retired).await?;
        change.number(Section::Servers).await?;
        change.commit().await
    }
}
