//! The registry: nodes, tokens, entries, policies and the deny list, in one SQLite file or in PostgreSQL.
//!
//! Every change is one transaction that also takes the next sequence number,
//! from one locked row: max(last + 1, unix milliseconds), so that numbers rise
//! in commit order and a restored backup does not go back behind the clock.

mod admission;
mod crls;
mod denials;
mod entries;
mod federations;
mod gone;
mod heard;
mod mesh;
mod nodes;
mod observations;
mod operators;
mod policies;
mod postgres;
mod prefix;
mod servers;
mod snapshot;
mod sqlite;
mod store;
mod table;
mod tokens;
mod trial;

use ipnet::IpNet;
use spiffe::TrustDomain;

use crate::Error;

pub(crate) use self::entries::{EntryOrder, Imported, MAX_SVID_TTL, OwnedOutcome, parent_of};
pub(crate) use self::federations::Fetched;
pub(crate) use self::gone::Deleted;
pub(crate) use self::heard::{Heard, News};
use self::nodes::KnownNodes;
pub(crate) use self::nodes::{NodeOrder, session_address};
pub(crate) use self::operators::Who;
pub(crate) use self::policies::PolicyOrder;
pub(crate) use self::postgres::Notices;
pub(crate) use self::servers::HEARTBEAT_MS;
pub(crate) use self::snapshot::{Revisions, Snapshot};
pub(crate) use self::store::{Change, Section, Store, int, uint};
pub(crate) use self::table::Difference;
pub(crate) use self::tokens::TokenOrder;
pub(crate) use self::trial::{TrialOrder, none as no_trial};

/// The rules of the registry over its store.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    store: Store,
    trust_domain: TrustDomain,
    prefix_ranges: Vec<IpNet>,
    known: KnownNodes,
}

impl Registry {
    pub(crate) fn new(store: Store, trust_domain: TrustDomain, prefix_ranges: Vec<IpNet>) -> Self {
        Self {
            store,
            trust_domain,
            prefix_ranges,
            known: KnownNodes::default(),
        }
    }

    /// Where it is kept.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Notices of other servers' changes; none if the store is ours alone.
    pub(crate) fn notices(&self) -> Option<Notices> {
        self.store.url().map(Notices::new)
    }

    /// The number of the last change, whoever made it.
    pub(crate) async fn last_number(&self) -> Result<u64, Error> {
        let last: i64 = sqlx::query_scalar("SELECT last FROM sequence")
            .fetch_one(self.store.reader())
            .await?;
        Ok(uint(last))
    }

    /// Something that an operator should look into. Kept, since a log line is
    /// easily missed.
    pub(crate) async fn alarm(&self, detail: &str) -> Result<(), Error> {
        tracing::warn!(target: "handfast::audit", detail, "alarm");
        let mut change = self.store.begin().await?;
        sqlx::query("INSERT INTO alarms (at_ms, detail) VALUES ($1, $2)")
            .bind(store::int(crate::now_ms()))
            .bind(detail)
            .execute(&mut *change)
            .await?;
        // Whoever repeats himself does not fill the disk.
        sqlx::query("DELETE FROM alarms WHERE id <= (SELECT max(id) FROM alarms) - 1000")
            .execute(&mut *change)
            .await?;
        change.commit().await
    }

    /// The newest alarms, each with its time (unix milliseconds).
    pub(crate) async fn newest_alarms(&self) -> Result<Vec<(u64, String)>, Error> {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("SELECT at_ms, detail FROM alarms ORDER BY id DESC LIMIT 10")
                .fetch_all(self.store.reader())
                .await?;
        let rows = rows.into_iter();
        Ok(rows.map(|(at, detail)| (store::uint(at), detail)).collect())
    }

    /// How many alarms there are, and how many tokens can still be used.
    pub(crate) async fn counts(&self) -> Result<(u64, u64), Error> {
        let alarms: i64 = sqlx::query_scalar("SELECT count(*) FROM alarms")
            .fetch_one(self.store.reader())
            .await?;
        Ok((store::uint(alarms), self.open_tokens().await?))
    }

    pub(crate) async fn close(&self) {
        self.store.close().await;
    }

    /// What does not read back as it was written is damage, not input.
    fn stored<T>(&self, value: Result<T, impl std::fmt::Display>) -> Result<T, Error> {
        value.map_err(|error| self.store.damaged(&error.to_string()))
    }
}
