//! Nodes: what they may have, and when they were heard.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::Registry;
use super::prefix::{self, Taken};
use super::store::{Change, Section, int, uint};
use crate::certificate::{MAX_PREFIXES, NodeBinding};
use crate::model::{Node, SESSION_PORT};
use crate::{Error, NodeName, node_id, now_ms};

const COLUMNS: &str = "SELECT * FROM nodes";

/// Underlay addresses of a node.
const MAX_UNDERLAY: usize = 16;

/// Reads `IP` or `IP:PORT`; the port of sessions if there is none.
pub(crate) fn session_address(text: &str) -> Result<SocketAddr, Error> {
    let plain = text
        .parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, SESSION_PORT));
    let address = plain.or_else(|_| text.parse::<SocketAddr>()).map_err(|_| {
        Error::invalid(
            format!("underlay address {text:?}"),
            "write IP or IP:PORT, such as 192.0.2.10",
        )
    })?;
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || address.port() == 0 {
        return Err(Error::invalid(
            format!("underlay address {text:?}"),
            "no other node reaches one there; give the address by which its peers reach it",
        ));
    }
    Ok(address)
}

/// A node as it is to be registered.
#[derive(Debug, Clone)]
pub(crate) struct NodeOrder {
    pub(crate) name: NodeName,
    /// Empty keeps what a known node has.
    pub(crate) prefixes: Vec<IpNet>,
    /// Empty keeps what a known node has.
    pub(crate) underlay: Vec<SocketAddr>,
    /// For a node that is new.
    pub(crate) managed: bool,
}

impl Registry {
    /// All nodes; `revoked` is filled in by the snapshot.
    pub(super) async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let rows = sqlx::query(COLUMNS).fetch_all(self.store.reader()).await?;
        let nodes: Result<Vec<Node>, Error> = rows.iter().map(|row| self.node(row)).collect();
        // Each database sorts by rules of its own.
        nodes.map(|mut nodes| {
            nodes.sort_by(|one, other| one.name.cmp(&other.name));
            nodes
        })
    }

    fn node(&self, row: &AnyRow) -> Result<Node, Error> {
        let name: NodeName = self.stored(row.try_get::<String, _>("name")?.parse())?;
        Ok(Node {
            spiffe_id: node_id(&self.trust_domain, &name)?,
            prefixes: self.stored(serde_json::from_str(row.try_get("prefixes")?))?,
            underlay: self.stored(serde_json::from_str(row.try_get("underlay")?))?,
            managed: row.try_get::<i64, _>("managed")? != 0,
            assignment: uint(row.try_get("assignment")?),
            joined_at_ms: row.try_get::<Option<i64>, _>("joined_ms")?.map(uint),
            seen_at_ms: row.try_get::<Option<i64>, _>("seen_ms")?.map(uint),
            acknowledged: uint(row.try_get("acknowledged")?),
            problem: row.try_get("problem")?,
            revoked: false,
            evicted: row.try_get::<i64, _>("evicted")? != 0,
            banned: row.try_get::<i64, _>("banned")? != 0,
            attestation: row.try_get("attestation")?,
            authorities_in_use: self
                .stored(serde_json::from_str(row.try_get("authorities_in_use")?))?,
            name,
        })
    }

    /// Makes a node, or checks that it is the same as before.
    pub(super) async fn place_node(
        &self,
        change: &mut Change,
        order: &NodeOrder,
    ) -> Result<Vec<IpNet>, Error> {
        if order.prefixes.len() > MAX_PREFIXES || order.underlay.len() > MAX_UNDERLAY {
            return Err(Error::invalid(
                "node",
                "too many prefixes (64) or underlay addresses (16)",
            ));
        }
        let rows = sqlx::query(COLUMNS).fetch_all(&mut **change).await?;
        let nodes: Vec<Node> = rows
            .iter()
            .map(|row| self.node(row))
            .collect::<Result<_, _>>()?;
        let known = nodes.iter().find(|node| node.name == order.name);
        let keep = |new: &Vec<_>, old: Option<&Vec<_>>| match old {
            Some(old) if new.is_empty() => old.clone(),
            _ => new.clone(),
        };
        let prefixes: Vec<IpNet> = if order.prefixes.is_empty() {
            known.map(|node| node.prefixes.clone()).unwrap_or_default()
        } else {
            order.prefixes.clone()
        };
        let underlay: Vec<SocketAddr> = keep(&order.underlay, known.map(|node| &node.underlay));
        // One that must attest again comes back as a new assignment, which its peers prefer.
        if let Some(known) = known
            && known.joined_at_ms.is_some()
            && !known.evicted
            && known.prefixes != prefixes
        {
            return Err(Error::Conflict {
                what: "node",
                name: order.name.to_string(),
                problem: "it has joined with other prefixes, which its peers hold it to; keep them (make the token without --prefix), or evict the node first (`handfast node evict`)".to_owned(),
            });
        }
        let others = nodes.iter().filter(|node| node.name != order.name);
        let taken = self.taken(change, others).await?;
        let addresses: Vec<IpAddr> = underlay.iter().map(SocketAddr::ip).collect();
        prefix::check(&prefixes, &addresses, &taken)?;
        let unchanged =
            known.is_some_and(|node| node.prefixes == prefixes && node.underlay == underlay);
        if !unchanged {
            self.write_node(change, order, &prefixes, &underlay).await?;
        }
        Ok(prefixes)
    }

    /// Checks that what a node had is still free for it: of one that was
    /// denied it may have been given to another.
    pub(super) async fn keep_place(
        &self,
        change: &mut Change,
        name: &NodeName,
    ) -> Result<(), Error> {
        let order = NodeOrder {
            name: name.clone(),
            prefixes: Vec::new(),
            underlay: Vec::new(),
            managed: true,
        };
        self.place_node(change, &order).await.map(drop)
    }

    /// What others have. Of a node on the deny list everything is free: its
    /// peers have cut it, and a later assignment wins.
    async fn taken<'a>(
        &self,
        change: &mut Change,
        others: impl Iterator<Item = &'a Node>,
    ) -> Result<Taken, Error> {
        let mut taken = Taken {
            ranges: self.prefix_ranges.clone(),
            ..Taken::default()
        };
        let denied: Vec<String> =
            sqlx::query_scalar("SELECT subject FROM denials WHERE kind = 'node'")
                .fetch_all(&mut **change)
                .await?;
        let denied: HashSet<&str> = denied.iter().map(String::as_str).collect();
        for node in others.filter(|node| !denied.contains(node.name.as_str())) {
            taken.prefixes.extend(
                node.prefixes
                    .iter()
                    .map(|prefix| (node.name.clone(), *prefix)),
            );
            let what = format!("an underlay address of node {}", node.name);
            taken.outside.extend(
                node.underlay
                    .iter()
                    .map(|address| (address.ip(), what.clone())),
            );
        }
        let addresses: Vec<String> = sqlx::query_scalar("SELECT address FROM ca_addresses")
            .fetch_all(&mut **change)
            .await?;
        for address in addresses {
            let address: IpAddr = self.stored(address.parse())?;
            taken
                .outside
                .push((address, "an address of the CA".to_owned()));
        }
        Ok(taken)
    }

    async fn write_node(
        &self,
        change: &mut Change,
        order: &NodeOrder,
        prefixes: &[IpNet],
        underlay: &[SocketAddr],
    ) -> Result<(), Error> {
        let assignment = change.number(Section::Nodes).await?;
        sqlx::query(
            "INSERT INTO nodes (name, prefixes, underlay, managed, assignment, created_ms)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (name) DO UPDATE SET
                assignment = CASE WHEN nodes.prefixes = $2 THEN nodes.assignment ELSE $5 END,
                prefixes = $2, underlay = $3",
        )
        .bind(order.name.as_str())
        .bind(self.stored(serde_json::to_string(prefixes))?)
        .bind(self.stored(serde_json::to_string(underlay))?)
        .bind(i64::from(order.managed))
        .bind(int(assignment))
        .bind(int(now_ms()))
        .execute(&mut **change)
        .await?;
        Ok(())
    }

    /// What a node's certificate says; none if there is no such node.
    pub(super) async fn binding(
        &self,
        change: &mut Change,
        name: &NodeName,
    ) -> Result<Option<NodeBinding>, Error> {
        let row: Option<(String, i64)> =
            sqlx::query_as("SELECT prefixes, assignment FROM nodes WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(&mut **change)
                .await?;
        row.map(|(prefixes, assignment)| {
            Ok(NodeBinding {
                name: name.clone(),
                prefixes: self.stored(serde_json::from_str(&prefixes))?,
                assignment: uint(assignment),
            })
        })
        .transpose()
    }

    /// The hash of the public key of a node's last certificate.
    pub(crate) async fn last_key(&self, name: &NodeName) -> Result<Option<Vec<u8>>, Error> {
        let hash: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT key_hash FROM nodes WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(self.store.reader())
                .await?;
        Ok(hash.flatten())
    }

    /// Keeps an address of the CA out of everybody's prefixes, from now on.
    pub(crate) async fn reserve_ca_address(&self, address: IpAddr) -> Result<(), Error> {
        let mut change = self.store.begin().await?;
        self.claim_ca_address(&mut change, address).await?;
        change.commit().await
    }

    pub(super) async fn claim_ca_address(
        &self,
        change: &mut Change,
        address: IpAddr,
    ) -> Result<(), Error> {
        let rows = sqlx::query(COLUMNS).fetch_all(&mut **change).await?;
        for row in &rows {
            let node = self.node(row)?;
            if let Some(prefix) = node
                .prefixes
                .iter()
                .find(|prefix| prefix.contains(&address))
            {
                return Err(Error::invalid(
                    format!("CA address {address}"),
                    format!(
                        "lies in the prefix {prefix} of node {}: agents would need the tunnel to reach the CA that it needs; listen on an address outside",
                        node.name
                    ),
                ));
            }
        }
        if !address.is_unspecified() {
            sqlx::query("INSERT INTO ca_addresses VALUES ($1) ON CONFLICT DO NOTHING")
                .bind(address.to_string())
                .execute(&mut **change)
                .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_underlay_address_is_one_that_other_nodes_reach() {
        assert_eq!(session_address("192.0.2.10").unwrap().port(), SESSION_PORT);
        assert_eq!(session_address("[2001:db8::1]:99").unwrap().port(), 99);
        for bad in [
            "127.0.0.1",
            "[::1]:7250",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "192.0.2.10:0",
            "web1",
        ] {
            let error = session_address(bad).unwrap_err().to_string();
            assert!(error.contains("underlay address"), "{bad}: {error}");
        }
    }
}
