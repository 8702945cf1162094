//! Join tokens: made for a node, spent once, void when they were lost, and good for as long as the root that they name.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sqlx::AssertSqlSafe;

use super::store::{Change, int, uint};
use super::{NodeOrder, Registry};
use crate::bundle::Fingerprint;
use crate::certificate::NodeBinding;
use crate::client::moment;
use crate::model::{TokenId, TokenRecord};
use crate::token::Secret;
use crate::{Error, NodeName, now_ms};

/// A token lives no longer.
const MAX_TTL: u64 = 30 * 24 * 3600;
const DEFAULT_TTL: u64 = 3600;
/// A listing has the newest.
const MAX_LISTED: i64 = 10_000;
/// Whoever has only a root's fingerprint needs that root in the bundle, and no one should follow one that is compromised.
/// (Of tokens of an earlier version nobody knows which root they name.)
const ROOT_GONE: &str = "root <> '' AND root NOT IN
    (SELECT id FROM authorities WHERE kind = 'root' AND state <> 'retired' AND compromised = 0)";
const WHY_GONE: &str =
    "the root by which it knows this CA was replaced since it was made, or is compromised";

/// Of a token: hash, node, when it was made, until when, when it was used, why it is void, whether its root is gone.
type Row = (Vec<u8>, String, i64, i64, Option<i64>, String, i64);

/// Reads tokens, each as a [`Row`].
fn select(which: &str) -> String {
    format!(
        "SELECT hash, node, created_ms, expires_ms, used_ms, void,
                CAST(CASE WHEN {ROOT_GONE} THEN 1 ELSE 0 END AS BIGINT)
         FROM tokens {which}"
    )
}

/// What a token is made for.
#[derive(Debug, Clone)]
pub(crate) struct TokenOrder {
    pub(crate) node: NodeOrder,
    /// `HOST:PORT`; checked against prefixes if the host is an address.
    pub(crate) ca_address: String,
    pub(crate) ttl_seconds: u64,
}

/// A token that was made.
#[derive(Debug)]
pub(crate) struct TokenMade {
    pub(crate) secret: Secret,
    pub(crate) expires_at_ms: u64,
    pub(crate) prefixes: Vec<IpNet>,
    /// The root that it names.
    pub(crate) root: Fingerprint,
}

impl Registry {
    /// Makes a token, and its node if that is new.
    pub(crate) async fn create_token(&self, order: &TokenOrder) -> Result<TokenMade, Error> {
        let ttl = if order.ttl_seconds == 0 {
            DEFAULT_TTL
        } else {
            order.ttl_seconds
        };
        if ttl > MAX_TTL {
            return Err(Error::invalid("ttl", "a token lives 30 days at most"));
        }
        let ca = host_and_port(&order.ca_address)?;
        let mut change = self.store.begin().await?;
        if let Some(address) = ca {
            self.claim_ca_address(&mut change, address).await?;
        }
        let prefixes = self.place_node(&mut change, &order.node).await?;
        let root = self.named_root(&mut change).await?;
        let secret = Secret::random();
        let expires_at_ms = now_ms() + ttl * 1000;
        sqlx::query(
            "INSERT INTO tokens (hash, node, created_ms, expires_ms, void, root) VALUES ($1, $2, $3, $4, '', $5)",
        )
        .bind(secret.hash().as_slice())
        .bind(order.node.name.as_str())
        .bind(int(now_ms()))
        .bind(int(expires_at_ms))
        .bind(&root)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(TokenMade {
            secret,
            expires_at_ms,
            prefixes,
            root: self.stored(format!("sha256:{root}").parse())?,
        })
    }

    /// The root that signs at the moment of a change.
    async fn named_root(&self, change: &mut Change) -> Result<String, Error> {
        let root: Option<String> = sqlx::query_scalar(
            "SELECT max(id) FROM authorities WHERE kind = 'root' AND state = 'active'",
        )
        .fetch_one(&mut **change)
        .await?;
        root.ok_or_else(|| {
            Error::NotSigning(
                "this CA has no root yet that a token could name; nothing was changed".to_owned(),
            )
        })
    }

    /// How many tokens can still be used.
    pub(super) async fn open_tokens(&self) -> Result<u64, Error> {
        let sql = format!(
            "SELECT count(*) FROM tokens WHERE used_ms IS NULL AND void = '' AND expires_ms > $1 AND NOT ({ROOT_GONE})"
        );
        let open: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(int(now_ms()))
            .fetch_one(self.store.reader())
            .await?;
        Ok(uint(open))
    }

    /// The newest tokens, spent, expired and void ones too, newest first.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRecord>, Error> {
        let sql = select("ORDER BY created_ms DESC, node LIMIT $1");
        let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(MAX_LISTED)
            .fetch_all(self.store.reader())
            .await?;
        rows.into_iter().map(|row| self.record(row)).collect()
    }

    /// Makes tokens void, all of them or none, and gives those that could have been used until now. One that was used
    /// stands for a node, which this would not put out.
    pub(crate) async fn delete_tokens(
        &self,
        ids: &[TokenId],
        reason: &str,
    ) -> Result<Vec<TokenRecord>, Error> {
        let sql = select("WHERE hash BETWEEN $1 AND $2");
        let mut change = self.store.begin().await?;
        let mut deleted = Vec::new();
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let [least, greatest] = id.hashes();
            let row: Option<Row> = sqlx::query_as(AssertSqlSafe(sql.as_str()))
                .bind(least.as_slice())
                .bind(greatest.as_slice())
                .fetch_optional(&mut *change)
                .await?;
            let Some(row) = row else {
                return Err(Error::Missing {
                    what: "token",
                    name: id.to_string(),
                });
            };
            let token = self.record(row)?;
            if let Some(used) = token.used_at_ms {
                let node = &token.node;
                return Err(Error::Conflict {
                    what: "token",
                    name: id.to_string(),
                    problem: format!(
                        "{node} has joined with it, at {}: to put that node out, `handfast node evict {node}` or `handfast revoke --node {node}`; nothing was changed",
                        moment(used)
                    ),
                });
            }
            if token.state(now_ms()) != "open" {
                continue;
            }
            sqlx::query("UPDATE tokens SET void = $1 WHERE hash BETWEEN $2 AND $3")
                .bind(format!("deleted: {reason}"))
                .bind(least.as_slice())
                .bind(greatest.as_slice())
                .execute(&mut *change)
                .await?;
            deleted.push(token);
        }
        change.commit().await?;
        Ok(deleted)
    }

    fn record(
        &self,
        (hash, node, created, expires, used, void, root_gone): Row,
    ) -> Result<TokenRecord, Error> {
        let hash: [u8; 32] = self.stored(hash.try_into().map_err(|_| "a token's hash"))?;
        Ok(TokenRecord {
            id: TokenId::of(&hash),
            node: self.stored(node.parse())?,
            created_at_ms: uint(created),
            expires_at_ms: uint(expires),
            used_at_ms: used.map(uint),
            void: match void.as_str() {
                "" if root_gone != 0 => WHY_GONE.to_owned(),
                _ => void,
            },
        })
    }

    /// Spends a token. `sign` makes the certificate; it, the spent token and
    /// the joined node are committed together, or nothing is.
    pub(crate) async fn join<T>(
        &self,
        secret: &Secret,
        key_hash: &[u8; 32],
        sign: impl FnOnce(&NodeBinding) -> Result<T, Error>,
    ) -> Result<(NodeName, T), Error> {
        let now = now_ms();
        let mut change = self.store.begin().await?;
        let row: Option<Row> = sqlx::query_as(AssertSqlSafe(select("WHERE hash = $1")))
            .bind(secret.hash().as_slice())
            .fetch_optional(&mut *change)
            .await?;
        let Some(row) = row else {
            return Err(Error::Token(
                "this CA has not made it (is it the right CA?)".to_owned(),
            ));
        };
        let TokenRecord {
            node,
            expires_at_ms,
            used_at_ms,
            void,
            ..
        } = self.record(row)?;
        if let Some(used) = used_at_ms {
            drop(change);
            let when = moment(used);
            self.alarm(&format!(
                "the join token of node {node}, used at {when}, was presented again"
            ))
            .await?;
            return Err(Error::Token(format!(
                "it was used already, at {when}; a token works once. If that was not you, somebody else joined as {node}: revoke the node (`handfast revoke --node {node}`); make a new one with `handfast token create --node {node}`"
            )));
        }
        if expires_at_ms <= now {
            return Err(Error::Token(format!(
                "it expired at {}; make a new one with `handfast token create --node {node}`",
                moment(expires_at_ms)
            )));
        }
        if !void.is_empty() {
            return Err(Error::Token(format!(
                "it is void: {void}; make a new one with `handfast token create --node {node}`"
            )));
        }
        let signed = self
            .admit(&mut change, &node, "join_token", key_hash, sign)
            .await?;
        sqlx::query("UPDATE tokens SET used_ms = $1 WHERE hash = $2")
            .bind(int(now))
            .bind(secret.hash().as_slice())
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok((node, signed))
    }
}

/// Checks `HOST:PORT`; the host's address if it is one.
fn host_and_port(text: &str) -> Result<Option<IpAddr>, Error> {
    let bad = || {
        let shown: String = text.chars().take(64).collect();
        Error::invalid(
            format!("CA address {shown:?}"),
            "write HOST:PORT as the node reaches it, such as 192.0.2.1:7251",
        )
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.ip().is_unspecified() || address.port() == 0 {
            Err(bad())
        } else {
            Ok(Some(address.ip()))
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let host_ok = !host.is_empty() && host.len() <= 253 && host.bytes().all(plain);
    let port_ok = port.parse::<u16>().is_ok_and(|port| port > 0);
    if host_ok && port_ok {
        Ok(None)
    } else {
        Err(bad())
    }
}
