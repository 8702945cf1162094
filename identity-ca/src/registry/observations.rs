//! What nodes saw under rules in audit mode: summed up until the policy changes.

use std::collections::BTreeMap;

use super::Registry;
use super::store::{Change, int, uint};
use crate::model::{NodeObservations, ObservedPair};
use crate::{Error, NodeName, now_ms};

/// Pairs of one node; more are counted as lost.
const MAX_PAIRS: i64 = 10_000;
/// Pairs that are listed of one policy.
const MAX_LISTED: i64 = 200_000;
/// A node that was silent for so long may have missed anything meanwhile.
const PAUSE_MS: u64 = 10 * 60 * 1000;

type Row = (
    String,
    i64,
    String,
    String,
    String,
    i64,
    i64,
    i64,
    i64,
    String,
);

impl Registry {
    /// Adds what a node saw since its last report. Pairs of policies that have
    /// changed or gone meanwhile are left out.
    pub(crate) async fn observed(
        &self,
        node: &NodeName,
        pairs: &[ObservedPair],
        lost: u64,
    ) -> Result<(), Error> {
        let now = now_ms();
        let mut change = self.store.begin_beside().await?;
        let mut room = MAX_PAIRS;
        if !pairs.is_empty() {
            let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM observations WHERE node = $1")
                .bind(node.as_str())
                .fetch_one(&mut *change)
                .await?;
            room -= kept;
        }
        let mut lost = lost;
        // In one order, so that two reports at two servers do not wait for each other.
        let mut pairs: Vec<&ObservedPair> = pairs.iter().collect();
        pairs.sort_by(|one, other| one.policy.cmp(&other.policy));
        let mut versions: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for pair in pairs {
            let version = match versions.get(pair.policy.as_str()) {
                Some(version) => *version,
                None => {
                    let version = in_force(&mut change, &pair.policy).await?;
                    versions.insert(&pair.policy, version);
                    version
                }
            };
            if version != Some(pair.version) || add(&mut change, node, pair).await? {
                continue;
            }
            if room <= 0 {
                lost = lost.saturating_add(pair.flows);
                continue;
            }
            room -= 1;
            insert(&mut change, node, pair).await?;
        }
        sqlx::query(
            "INSERT INTO observers VALUES ($1, $2, $2, $3)
             ON CONFLICT (node) DO UPDATE SET
                since_ms = CASE WHEN observers.heard_ms < $4 THEN $2 ELSE observers.since_ms END,
                lost = CASE WHEN observers.heard_ms < $4 THEN $3 ELSE observers.lost + $3 END,
                heard_ms = $2",
        )
        .bind(node.as_str())
        .bind(int(now))
        .bind(int(lost))
        .bind(int(now.saturating_sub(PAUSE_MS)))
        .execute(&mut *change)
        .await?;
        change.commit().await
    }

    /// What every node has seen of the present version of a policy.
    pub(crate) async fn observations(&self, policy: &str) -> Result<Vec<NodeObservations>, Error> {
        let observers: Vec<(String, i64, i64, i64)> =
            sqlx::query_as("SELECT node, since_ms, heard_ms, lost FROM observers ORDER BY node")
                .fetch_all(self.store.reader())
                .await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT o.policy, o.version, o.field, o.source, o.destination, o.flows, o.unproven, o.proven_ms,
                    o.unproven_ms, o.node
             FROM observations o JOIN policies p ON p.name = o.policy AND p.version = o.version
             WHERE o.policy = $1 ORDER BY o.node, o.field, o.source, o.destination LIMIT $2",
        )
        .bind(policy)
        .bind(MAX_LISTED)
        .fetch_all(self.store.reader())
        .await?;
        let mut by_node: BTreeMap<String, Vec<ObservedPair>> = BTreeMap::new();
        for row in rows {
            let (node, pair) = pair(row);
            by_node.entry(node).or_default().push(pair);
        }
        observers
            .into_iter()
            .map(|(name, since, heard, lost)| {
                Ok(NodeObservations {
                    node: self.stored(name.parse())?,
                    since_ms: uint(since),
                    heard_at_ms: uint(heard),
                    lost: uint(lost),
                    pairs: by_node.remove(&name).unwrap_or_default(),
                })
            })
            .collect()
    }
}

/// The version of a policy that is in force; what was seen of earlier ones is forgotten.
async fn in_force(change: &mut Change, policy: &str) -> Result<Option<u64>, Error> {
    let version: Option<i64> = sqlx::query_scalar("SELECT version FROM policies WHERE name = $1")
        .bind(policy)
        .fetch_optional(&mut **change)
        .await?;
    sqlx::query("DELETE FROM observations WHERE policy = $1 AND version < $2")
        .bind(policy)
        .bind(version.unwrap_or(i64::MAX))
        .execute(&mut **change)
        .await?;
    Ok(version.map(uint))
}

/// Whether there was a row to add to.
async fn add(change: &mut Change, node: &NodeName, pair: &ObservedPair) -> Result<bool, Error> {
    let added = sqlx::query(
        "UPDATE observations SET
            flows = flows + $1,
            unproven = unproven + $2,
            proven_ms = CASE WHEN proven_ms < $3 THEN $3 ELSE proven_ms END,
            unproven_ms = CASE WHEN unproven_ms < $4 THEN $4 ELSE unproven_ms END
         WHERE node = $5 AND policy = $6 AND field = $7 AND source = $8 AND destination = $9",
    )
    .bind(int(pair.flows))
    .bind(int(pair.unproven))
    .bind(moment(pair.proven_at_ms))
    .bind(moment(pair.unproven_at_ms))
    .bind(node.as_str())
    .bind(&pair.policy)
    .bind(&pair.field)
    .bind(&pair.source)
    .bind(&pair.destination)
    .execute(&mut **change)
    .await?;
    Ok(added.rows_affected() > 0)
}

async fn insert(change: &mut Change, node: &NodeName, pair: &ObservedPair) -> Result<(), Error> {
    sqlx::query("INSERT INTO observations VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
        .bind(node.as_str())
        .bind(&pair.policy)
        .bind(int(pair.version))
        .bind(&pair.field)
        .bind(&pair.source)
        .bind(&pair.destination)
        .bind(int(pair.flows))
        .bind(int(pair.unproven))
        .bind(moment(pair.proven_at_ms))
        .bind(moment(pair.unproven_at_ms))
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// 0 is never.
fn moment(at: Option<u64>) -> i64 {
    int(at.unwrap_or(0))
}

fn pair(row: Row) -> (String, ObservedPair) {
    let (policy, version, field, source, destination, flows, unproven, proven, unproven_at, node) =
        row;
    let pair = ObservedPair {
        policy,
        version: uint(version),
        field,
        source,
        destination,
        flows: uint(flows),
        unproven: uint(unproven),
        proven_at_ms: Some(uint(proven)).filter(|at| *at > 0),
        unproven_at_ms: Some(uint(unproven_at)).filter(|at| *at > 0),
    };
    (node, pair)
}
