//! What is heard of nodes all the time: acknowledgements, and the keys of their next certificates. Nobody is pushed
//! anything for it, so it takes no number; and it comes from all agents at once, so many of them are one transaction.

use super::Registry;
use super::store::{Change, int};
use crate::{Error, NodeName, now_ms};

/// Something that was heard of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) node: NodeName,
    pub(crate) what: News,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// What its agent says of an update.
    Acknowledged {
        sequence: u64,
        /// Empty: applied.
        problem: String,
        /// What its SVIDs hang on.
        authorities: Vec<String>,
    },
    /// SHA-256 of the public key of its next certificate, to be kept before that is handed out.
    NextKey([u8; 32]),
}

impl Registry {
    /// Writes all of it down, or nothing. What was said later of a node counts.
    pub(crate) async fn hear(&self, mut heard: Vec<Heard>) -> Result<(), Error> {
        // Rows are locked in one order on all servers, so that they never wait for each other in a circle. The sort
        // is stable: what was said first is written first.
        heard.sort_by(|one, other| one.node.cmp(&other.node));
        let mut change = self.store.begin_beside().await?;
        for Heard { node, what } in heard {
            match what {
                News::Acknowledged {
                    sequence,
                    problem,
                    authorities,
                } => {
                    let authorities = self.stored(serde_json::to_string(&authorities))?;
                    acknowledged(&mut change, &node, sequence, &problem, &authorities).await?;
                }
                News::NextKey(hash) => next_key(&mut change, &node, &hash).await?,
            }
        }
        change.commit().await
    }
}

async fn acknowledged(
    change: &mut Change,
    node: &NodeName,
    sequence: u64,
    problem: &str,
    authorities: &str,
) -> Result<(), Error> {
    // What could not be applied is not acknowledged.
    let applied = if problem.is_empty() { sequence } else { 0 };
    sqlx::query(
        "UPDATE nodes SET acknowledged = CASE WHEN acknowledged > $1 THEN acknowledged ELSE $1 END,
            problem = $2, seen_ms = $3, authorities_in_use = $4 WHERE name = $5",
    )
    .bind(int(applied))
    .bind(problem)
    .bind(int(now_ms()))
    .bind(authorities)
    .bind(node.as_str())
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn next_key(change: &mut Change, node: &NodeName, hash: &[u8; 32]) -> Result<(), Error> {
    // Heard, too: what it gets now counts with its peers from now on.
    sqlx::query("UPDATE nodes SET key_hash = $1, seen_ms = $2 WHERE name = $3")
        .bind(hash.as_slice())
        .bind(int(now_ms()))
        .bind(node.as_str())
        .execute(&mut **change)
        .await?;
    Ok(())
}
