//! Who comes in: a node that proved itself, by whatever means; and who is put out again.

use super::store::{Change, Section, int};
use super::{NodeOrder, Registry};
use crate::certificate::NodeBinding;
use crate::model::{NodeAct, Subject};
use crate::{Error, NodeName, now_ms};

/// How the reason of a denial begins that a ban has made.
const BANNED: &str = "banned: ";

impl Registry {
    /// Registers a node that has proved itself without a token, and lets it in.
    pub(crate) async fn attest<T>(
        &self,
        order: &NodeOrder,
        attestation: &str,
        key_hash: &[u8; 32],
        sign: impl FnOnce(&NodeBinding) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut change = self.store.begin().await?;
        self.same_kind(&mut change, &order.name, attestation)
            .await?;
        self.place_node(&mut change, order).await?;
        let signed = self
            .admit(&mut change, &order.name, attestation, key_hash, sign)
            .await?;
        change.commit().await?;
        Ok(signed)
    }

    /// One way of attesting does not take over who came by another: who may
    /// make nodes in a cluster is not whom tokens are given to.
    async fn same_kind(
        &self,
        change: &mut Change,
        name: &NodeName,
        attestation: &str,
    ) -> Result<(), Error> {
        let known: Option<(String, i64)> = sqlx::query_as(
            "SELECT attestation, evicted FROM nodes WHERE name = $1 AND joined_ms IS NOT NULL",
        )
        .bind(name.as_str())
        .fetch_optional(&mut **change)
        .await?;
        match known {
            Some((kind, 0)) if kind != attestation => Err(Error::Denied(format!(
                "node {name} has joined by {kind}, not by {attestation}: if it is to change, `handfast node evict {name}` first"
            ))),
            _ => Ok(()),
        }
    }

    /// Lets a registered node in that has proved itself, unless it is banned
    /// or revoked. `sign` makes its certificate; both are committed with
    /// `change`, or neither is.
    pub(crate) async fn admit<T>(
        &self,
        change: &mut Change,
        name: &NodeName,
        attestation: &str,
        key_hash: &[u8; 32],
        sign: impl FnOnce(&NodeBinding) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let known: Option<(i64, i64, String)> =
            sqlx::query_as("SELECT evicted, banned, reason FROM nodes WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(&mut **change)
                .await?;
        let was_evicted = matches!(known, Some((1.., ..)));
        if let Some((_, 1.., reason)) = known {
            return Err(Error::Denied(format!(
                "node {name} is banned ({reason}); `handfast node unban {name}` on the CA lifts that"
            )));
        }
        if self.denied(change, &Subject::Node(name.clone())).await? {
            return Err(Error::Denied(format!(
                "node {name} is revoked; `handfast revoke --undo --node {name}` on the CA lifts that"
            )));
        }
        if was_evicted {
            self.keep_place(change, name).await?;
            // Certificates from before count no more: whoever has stolen one has not attested again.
            let assignment = change.number(Section::Nodes).await?;
            sqlx::query("UPDATE nodes SET assignment = $1 WHERE name = $2")
                .bind(int(assignment))
                .bind(name.as_str())
                .execute(&mut **change)
                .await?;
        }
        let binding = self
            .binding(change, name)
            .await?
            .ok_or_else(|| Error::Missing {
                what: "node",
                name: name.to_string(),
            })?;
        let signed = sign(&binding)?;
        let number = change.number(Section::Nodes).await?;
        sqlx::query(
            "UPDATE nodes SET joined_ms = coalesce(joined_ms, $1), seen_ms = $1, key_hash = $2,
                attestation = $3, evicted = 0, reason = '', changed = $5 WHERE name = $4",
        )
        .bind(int(now_ms()))
        .bind(key_hash.as_slice())
        .bind(attestation)
        .bind(name.as_str())
        .bind(int(number))
        .execute(&mut **change)
        .await?;
        Ok(signed)
    }

    /// Puts nodes out, lets them in, makes them managed or joining: all of them or none. Gives the number
    /// of the change; none if all was so already.
    pub(crate) async fn change_nodes(
        &self,
        names: &[NodeName],
        act: NodeAct,
        reason: &str,
    ) -> Result<Option<u64>, Error> {
        let sql = match act {
            NodeAct::Evict => {
                "UPDATE nodes SET evicted = 1, reason = $1 WHERE name = $2 AND evicted = 0"
            }
            NodeAct::Ban => {
                "UPDATE nodes SET evicted = 1, banned = 1, reason = $1 WHERE name = $2 AND banned = 0"
            }
            NodeAct::Unban => {
                "UPDATE nodes SET banned = 0, reason = $1 WHERE name = $2 AND banned = 1"
            }
            NodeAct::Enforce => {
                "UPDATE nodes SET managed = 1, reason = $1 WHERE name = $2 AND managed = 0"
            }
            NodeAct::Relax => {
                "UPDATE nodes SET managed = 0, reason = $1 WHERE name = $2 AND managed = 1"
            }
        };
        // In the order in which `hear` locks them.
        let mut names: Vec<&NodeName> = names.iter().collect();
        names.sort_unstable();
        let mut change = self.store.begin().await?;
        let mut changed = 0;
        for name in &names {
            if self.binding(&mut change, name).await?.is_none() {
                return Err(Error::Missing {
                    what: "node",
                    name: name.to_string(),
                });
            }
            let written = sqlx::query(sql)
                .bind(reason)
                .bind(name.as_str())
                .execute(&mut *change)
                .await?;
            changed += written.rows_affected();
            match act {
                NodeAct::Evict | NodeAct::Enforce | NodeAct::Relax => {}
                NodeAct::Ban => cut(&mut change, name, reason).await?,
                NodeAct::Unban => heal(&mut change, name).await?,
            }
        }
        if changed == 0 {
            return Ok(None);
        }
        if matches!(act, NodeAct::Ban | NodeAct::Unban) {
            change.number(Section::Deny).await?;
        }
        let number = change.number(Section::Nodes).await?;
        for name in names {
            sqlx::query("UPDATE nodes SET changed = $1 WHERE name = $2")
                .bind(int(number))
                .bind(name.as_str())
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(Some(number))
    }
}

/// A ban stands on the deny list too, so that peers cut the node, and keep it
/// cut whatever becomes of this store.
pub(super) async fn cut(change: &mut Change, name: &NodeName, reason: &str) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO denials VALUES ('node', $1, $2, $3) ON CONFLICT (kind, subject) DO NOTHING",
    )
    .bind(name.as_str())
    .bind(format!("{BANNED}{reason}"))
    .bind(int(now_ms()))
    .execute(&mut **change)
    .await?;
    // What was made for it before must not let it in later.
    sqlx::query(
        "UPDATE tokens SET void = 'its node was banned' WHERE node = $1 AND used_ms IS NULL AND void = ''",
    )
    .bind(name.as_str())
    .execute(&mut **change)
    .await?;
    Ok(())
}

/// Takes off the deny list what the ban has put there, and nothing else.
async fn heal(change: &mut Change, name: &NodeName) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM denials WHERE kind = 'node' AND subject = $1 AND substr(reason, 1, 8) = $2",
    )
    .bind(name.as_str())
    .bind(BANNED)
    .execute(&mut **change)
    .await?;
    Ok(())
}
