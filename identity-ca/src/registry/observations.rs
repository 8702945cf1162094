//! What nodes saw under rules in audit mode: summed up until the policy changes.

use std::collections::BTreeMap;

use futures::TryStreamExt;

use super::Registry;
use super::store::{Change, int, uint};
use crate::model::{NodeObservations, ObservedPair};
use crate::{Error, NodeName, now_ms};

/// Pairs of one node; more are counted as lost.
const MAX_PAIRS: i64 = 10_000;
/// What is listed of one policy in bytes, about: what is beyond counts as lost, so that nobody takes a part for all.
const MAX_LISTED: usize = 40 << 20;
/// Of a listed pair, beside its texts.
const PAIR: usize = 64;
/// Counts end here instead of running over.
const MOST: i64 = i64::MAX;
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
                lost = CASE WHEN observers.heard_ms < $4 THEN $3
                            WHEN observers.lost > $5 - $3 THEN $5
                            ELSE observers.lost + $3 END,
                heard_ms = $2",
        )
        .bind(node.as_str())
        .bind(int(now))
        .bind(int(lost))
        .bind(int(now.saturating_sub(PAUSE_MS)))
        .bind(MOST)
        .execute(&mut *change)
        .await?;
        change.commit().await
    }

    /// What every node has seen of the present version of a policy.
    pub(crate) async fn observations(&self, policy: &str) -> Result<Vec<NodeObservations>, Error> {
        self.observations_within(policy, MAX_LISTED).await
    }

    async fn observations_within(
        &self,
        policy: &str,
        most: usize,
    ) -> Result<Vec<NodeObservations>, Error> {
        let observers: Vec<(String, i64, i64, i64)> =
            sqlx::query_as("SELECT node, since_ms, heard_ms, lost FROM observers ORDER BY node")
                .fetch_all(self.store.reader())
                .await?;
        let mut by_node: BTreeMap<String, Vec<ObservedPair>> = BTreeMap::new();
        let mut room = most;
        let mut rows = sqlx::query_as::<_, Row>(
            "SELECT o.policy, o.version, o.field, o.source, o.destination, o.flows, o.unproven, o.proven_ms,
                    o.unproven_ms, o.node
             FROM observations o JOIN policies p ON p.name = o.policy AND p.version = o.version
             WHERE o.policy = $1 ORDER BY o.node, o.field, o.source, o.destination",
        )
        .bind(policy)
        .fetch(self.store.reader());
        let mut whole = true;
        while let Some(row) = rows.try_next().await? {
            let (node, pair) = pair(row);
            let texts = [&pair.policy, &pair.field, &pair.source, &pair.destination];
            let size = PAIR + texts.iter().map(|text| text.len()).sum::<usize>();
            if size > room {
                whole = false;
                break;
            }
            room -= size;
            by_node.entry(node).or_default().push(pair);
        }
        drop(rows);
        let kept = match whole {
            true => BTreeMap::new(),
            false => self.kept(policy).await?,
        };
        observers
            .into_iter()
            .map(|(name, since, heard, lost)| {
                let pairs = by_node.remove(&name).unwrap_or_default();
                let kept = kept.get(&name).copied().unwrap_or_default();
                let unlisted = kept.saturating_sub(pairs.len() as u64);
                Ok(NodeObservations {
                    node: self.stored(name.parse())?,
                    since_ms: uint(since),
                    heard_at_ms: uint(heard),
                    lost: uint(lost).saturating_add(unlisted),
                    pairs,
                })
            })
            .collect()
    }

    /// How many pairs there are of each node.
    async fn kept(&self, policy: &str) -> Result<BTreeMap<String, u64>, Error> {
        let counts: Vec<(String, i64)> = sqlx::query_as(
            "SELECT o.node, count(*) FROM observations o
             JOIN policies p ON p.name = o.policy AND p.version = o.version
             WHERE o.policy = $1 GROUP BY o.node",
        )
        .bind(policy)
        .fetch_all(self.store.reader())
        .await?;
        let counts = counts.into_iter();
        Ok(counts.map(|(node, count)| (node, uint(count))).collect())
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
            flows = CASE WHEN flows > $10 - $1 THEN $10 ELSE flows + $1 END,
            unproven = CASE WHEN unproven > $10 - $2 THEN $10 ELSE unproven + $2 END,
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
    .bind(MOST)
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

#[cfg(test)]
mod tests {
    use super::super::{PolicyOrder, Store};
    use super::*;

    const POLICY: &str = "HandfastPolicy/shop/db";

    async fn registry() -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.sqlite");
        Store::create(&path).await.unwrap();
        let store = Store::open(&path).await.unwrap();
        let domain = spiffe::TrustDomain::new("example.org").unwrap();
        let registry = Registry::new(store, domain, vec![]);
        let order = PolicyOrder {
            instead_of: None,
            name: POLICY.to_owned(),
            text: "# one".to_owned(),
        };
        registry.put_policies(&[order]).await.unwrap();
        (folder, registry)
    }

    fn pair(destination: usize, flows: u64) -> ObservedPair {
        ObservedPair {
            policy: POLICY.to_owned(),
            version: 1,
            field: "spec.ingress[0]".to_owned(),
            source: "spiffe://example.org/web".to_owned(),
            destination: format!("spiffe://example.org/db/{destination}"),
            flows,
            unproven: flows,
            proven_at_ms: None,
            unproven_at_ms: Some(1000),
        }
    }

    #[tokio::test]
    async fn counts_end_where_they_would_run_over() {
        let (_folder, registry) = registry().await;
        let node = "web1".parse().unwrap();
        for _ in 0..3 {
            let most = [pair(1, u64::MAX / 3)];
            registry.observed(&node, &most, u64::MAX / 3).await.unwrap();
        }
        let seen = registry.observations(POLICY).await.unwrap().remove(0);
        let most = uint(i64::MAX);
        assert_eq!((seen.lost, seen.pairs[0].flows), (most, most));
        assert_eq!(seen.pairs[0].unproven, most);
    }

    #[tokio::test]
    async fn what_does_not_fit_into_a_list_counts_as_lost_with_its_node() {
        let (_folder, registry) = registry().await;
        let pairs: Vec<ObservedPair> = (0..10).map(|number| pair(number, 1)).collect();
        let (one, other) = ("db1".parse().unwrap(), "web1".parse().unwrap());
        registry.observed(&one, &pairs, 0).await.unwrap();
        registry.observed(&other, &pairs, 2).await.unwrap();
        let counts = async |most| {
            let seen = registry.observations_within(POLICY, most).await.unwrap();
            let counts = seen.iter().map(|node| (node.pairs.len(), node.lost));
            counts.collect::<Vec<_>>()
        };
        assert_eq!(counts(MAX_LISTED).await, [(10, 0), (10, 2)]);
        let one_pair = PAIR + POLICY.len() + 15 + 24 + 26;
        assert_eq!(counts(12 * one_pair).await, [(10, 0), (2, 10)]);
    }
}
