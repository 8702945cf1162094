//! After a restore: the CA waits for the newest deny list, which its agents have.
//!
//! A backup does not know who was revoked since. Each agent holds the newest
//! list that it has heard, signed by the CA itself; the highest number wins.
//! Once more than half of the nodes have shown theirs, the CA signs again.

use crate::Error;
use crate::NodeName;
use crate::deny::DenyList;
use crate::registry::{Registry, Section, int, uint};

/// How far a recovery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// Nodes whose list was heard.
    pub(crate) heard: u64,
    /// Nodes that have joined and may still come.
    pub(crate) joined: u64,
}

impl Recovery {
    /// The reason why nothing is signed now.
    pub(crate) fn reason(self) -> String {
        format!(
            "this CA was restored from a backup and hears from its agents who was revoked since: {} of {} nodes have said so, more than half must; `handfast ca restore --finish --reason TEXT` ends the wait",
            self.heard, self.joined
        )
    }

    fn is_enough(self) -> bool {
        self.heard * 2 > self.joined || self.joined == 0
    }
}

impl Registry {
    /// Is a recovery under way, and how far is it?
    pub(crate) async fn recovery(&self) -> Result<Option<Recovery>, Error> {
        let mut reader = self.store().reader().acquire().await?;
        let since: Option<i64> = sqlx::query_scalar("SELECT since_ms FROM recovery")
            .fetch_optional(&mut *reader)
            .await?;
        if since.is_none() {
            return Ok(None);
        }
        let (heard, joined): (i64, i64) = sqlx::query_as(COUNTS).fetch_one(&mut *reader).await?;
        let recovery = Recovery {
            heard: uint(heard),
            joined: uint(joined),
        };
        Ok(Some(recovery))
    }

    /// A node shows its deny list. Gives what is still waited for: nothing, once it was enough.
    pub(crate) async fn hear_deny_list(
        &self,
        node: &NodeName,
        list: &DenyList,
    ) -> Result<Option<Recovery>, Error> {
        let mut change = self.store().begin().await?;
        let known: Option<(i64, i64)> =
            sqlx::query_as("SELECT since_ms, deny_number FROM recovery")
                .fetch_optional(&mut *change)
                .await?;
        let Some((since, newest)) = known else {
            return Ok(None);
        };
        if list.number() > uint(newest) {
            self.replace_denials(&mut change, list.denials(), since)
                .await?;
            sqlx::query("UPDATE recovery SET deny_number = $1")
                .bind(int(list.number()))
                .execute(&mut *change)
                .await?;
        }
        sqlx::query(
            "INSERT INTO recovery_heard (node, number) VALUES ($1, $2)
             ON CONFLICT (node) DO UPDATE SET number = $2",
        )
        .bind(node.as_str())
        .bind(int(list.number()))
        .execute(&mut *change)
        .await?;
        let (heard, joined): (i64, i64) = sqlx::query_as(COUNTS).fetch_one(&mut *change).await?;
        let recovery = Recovery {
            heard: uint(heard),
            joined: uint(joined),
        };
        let over = recovery.is_enough();
        if over {
            end(&mut change).await?;
        }
        change.commit().await?;
        Ok((!over).then_some(recovery))
    }

    /// Ends a recovery, whoever has been heard; says whether there was one.
    pub(crate) async fn finish_recovery(&self) -> Result<bool, Error> {
        if self.recovery().await?.is_none() {
            return Ok(false);
        }
        let mut change = self.store().begin().await?;
        end(&mut change).await?;
        change.commit().await?;
        Ok(true)
    }
}

/// Nodes that were heard, and all, each time without those that no longer count.
const COUNTS: &str = "SELECT count(recovery_heard.node), count(nodes.name)
    FROM nodes LEFT JOIN recovery_heard ON recovery_heard.node = nodes.name
    WHERE joined_ms IS NOT NULL AND evicted = 0 AND banned = 0
        AND NOT EXISTS (SELECT 1 FROM denials WHERE kind = 'node' AND subject = nodes.name)";

async fn end(change: &mut crate::registry::Change) -> Result<(), Error> {
    for sql in ["DELETE FROM recovery", "DELETE FROM recovery_heard"] {
        sqlx::query(sql).execute(&mut **change).await?;
    }
    // A number of its own for the list that agents get now, and for entries of who is denied.
    change.number(Section::Deny).await?;
    Ok(())
}
