//! Nodes: what they may have, and when they were heard.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::Registry;
use super::mesh::Mesh;
use super::prefix::{self, Outside, Taken};
use super::store::{Change, Section, int, uint};
use crate::certificate::{MAX_PREFIXES, NodeBinding};
use crate::model::{Node, SESSION_PORT};
use crate::{Error, NodeName, node_id, now_ms};

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

/// The nodes of the last snapshot: who has to get along with all nodes reads those that have changed since.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownNodes(Arc<Mutex<Option<Known>>>);

#[derive(Debug, Clone)]
struct Known {
    /// The last change of nodes in it.
    number: u64,
    mesh: Arc<Mesh>,
}

impl KnownNodes {
    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> Option<Known> {
        self.lock().clone()
    }
}

impl Registry {
    /// The nodes that have changed since a number, or all, in no order; `revoked` is not filled in.
    pub(super) async fn nodes_since(
        &self,
        store: &mut AnyConnection,
        since: Option<u64>,
    ) -> Result<Vec<Node>, Error> {
        let query = match since {
            Some(number) => sqlx::query("SELECT * FROM nodes WHERE changed > $1").bind(int(number)),
            None => sqlx::query("SELECT * FROM nodes"),
        };
        let rows = query.fetch_all(store).await?;
        rows.iter().map(|row| self.node(row)).collect()
    }

    /// Keeps what a snapshot knows, up to the number of the last change of nodes.
    pub(super) fn know_nodes(&self, number: u64, nodes: &Arc<Mesh>) {
        let mesh = Arc::clone(nodes);
        *self.known.lock() = Some(Known { number, mesh });
    }

    /// All nodes as a change sees them, itself included.
    async fn nodes_within(&self, change: &mut Change) -> Result<Arc<Mesh>, Error> {
        let known = self.known.last();
        let deleted: i64 = sqlx::query_scalar("SELECT nodes_deleted FROM sequence")
            .fetch_one(&mut **change)
            .await?;
        let known = known.filter(|known| known.number >= uint(deleted));
        let Some(Known { number, mesh }) = known else {
            let all = self.nodes_since(change, None).await?;
            return Ok(Arc::new(Mesh::of(all, 0)));
        };
        let changed = self.nodes_since(change, Some(number)).await?;
        Ok(match changed.is_empty() {
            true => mesh,
            false => Arc::new(mesh.next(changed, number)),
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
        let nodes = self.nodes_within(change).await?;
        let known = nodes.get(&order.name);
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
        let others = nodes.all().filter(|node| node.name != order.name);
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
    /// denied it may have been given to another. One that was deleted has nothing.
    pub(super) async fn keep_place(
        &self,
        change: &mut Change,
        name: &NodeName,
    ) -> Result<(), Error> {
        if self.binding(change, name).await?.is_none() {
            return Ok(());
        }
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
    ) -> Result<Taken<'a>, Error> {
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
            let prefixes = node.prefixes.iter().map(|prefix| (&node.name, *prefix));
            taken.prefixes.extend(prefixes);
            let underlay = node.underlay.iter();
            taken
                .outside
                .extend(underlay.map(|address| (address.ip(), Outside::Node(&node.name))));
        }
        let addresses: Vec<String> = sqlx::query_scalar("SELECT address FROM ca_addresses")
            .fetch_all(&mut **change)
            .await?;
        for address in addresses {
            let address: IpAddr = self.stored(address.parse())?;
            taken.outside.push((address, Outside::Ca));
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
            "INSERT INTO nodes (name, prefixes, underlay, managed, assignment, created_ms, changed)
             VALUES ($1, $2, $3, $4, $5, $6, $5)
             ON CONFLICT (name) DO UPDATE SET
                assignment = CASE WHEN nodes.prefixes = $2 THEN nodes.assignment ELSE $5 END,
                prefixes = $2, underlay = $3, changed = $5",
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
        let known: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM ca_addresses WHERE address = $1")
                .bind(address.to_string())
                .fetch_optional(&mut **change)
                .await?;
        if known.is_some() {
            // Whoever has come since was kept from it.
            return Ok(());
        }
        for node in self.nodes_within(change).await?.all() {
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
