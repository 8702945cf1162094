//! Join tokens: made for a node, spent once.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::store::{int, uint};
use super::{NodeOrder, Registry};
use crate::certificate::NodeBinding;
use crate::client::moment;
use crate::token::Secret;
use crate::{Error, NodeName, now_ms};

/// A token lives no longer.
const MAX_TTL: u64 = 30 * 24 * 3600;
const DEFAULT_TTL: u64 = 3600;

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
        let secret = Secret::random();
        let expires_at_ms = now_ms() + ttl * 1000;
        sqlx::query(
            "INSERT INTO tokens (hash, node, created_ms, expires_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(secret.hash().as_slice())
        .bind(order.node.name.as_str())
        .bind(int(now_ms()))
        .bind(int(expires_at_ms))
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(TokenMade {
            secret,
            expires_at_ms,
            prefixes,
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
        let row: Option<(String, i64, Option<i64>, String)> =
            sqlx::query_as("SELECT node, expires_ms, used_ms, void FROM tokens WHERE hash = $1")
                .bind(secret.hash().as_slice())
                .fetch_optional(&mut *change)
                .await?;
        let Some((node, expires, used, void)) = row else {
            return Err(Error::Token(
                "this CA has not made it (is it the right CA?)".to_owned(),
            ));
        };
        let node: NodeName = self.stored(node.parse())?;
        if let Some(used) = used {
            drop(change);
            let when = moment(uint(used));
            self.alarm(&format!(
                "the join token of node {node}, used at {when}, was presented again"
            ))
            .await?;
            return Err(Error::Token(format!(
                "it was used already, at {when}; a token works once. If that was not you, somebody else joined as {node}: revoke the node (`handfast revoke --node {node}`); make a new one with `handfast token create --node {node}`"
            )));
        }
        if uint(expires) <= now {
            return Err(Error::Token(format!(
                "it expired at {}; make a new one with `handfast token create --node {node}`",
                moment(uint(expires))
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
