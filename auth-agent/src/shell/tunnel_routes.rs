//! Which way peers' packets go: our routing table, as the mesh wants it, and whether it still is so.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::RunError;
use super::agent::Agent;
use super::contradictions::Contradictions;
use crate::identity::KnownNode;

impl Agent {
    pub(super) async fn retry_routes(&mut self) {
        if let Err(error) = self.set_routes().await {
            self.alarm(format!("routes: {error}"));
        }
    }

    /// Puts back what somebody has changed of the rules or the table, and tells of it.
    pub(super) async fn mend_routes(&mut self) -> Result<(), RunError> {
        let wanted = self.wanted_routes();
        let found = self.routes.mend(&each(&wanted)).await?;
        for what in found {
            self.alarm(format!("routes: {what}"));
        }
        Ok(())
    }

    pub(super) async fn set_routes(&self) -> Result<(), RunError> {
        let wanted = self.wanted_routes();
        Ok(self.routes.set_each(&each(&wanted)).await?)
    }

    /// Sends each peer's prefixes to the device that the peer is on, and all others to where new peers go. To and from
    /// joining nodes packets go as they did before: workloads there may have no gate yet, and a tunnel takes nothing
    /// else.
    fn wanted_routes(&self) -> BTreeMap<u32, Vec<IpNet>> {
        let standing = self.tunnels.standing();
        let view = self.view();
        let on: BTreeMap<&str, u32> = view
            .peers
            .iter()
            .filter_map(|peer| {
                let slot = standing.peers.get(&peer.number)?.active.slot;
                Some((
                    peer.id.as_str(),
                    standing.devices.get(&slot)?.device().index,
                ))
            })
            .collect();
        let usual = standing.current.device().index;
        let own = self.node.spiffe_id.to_string();
        let mut routes: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        let nodes = &self.knowledge.nodes;
        let joining = nodes.iter().any(|n| n.spiffe_id == own && n.joining);
        let managed = |n: &&KnownNode| n.spiffe_id != own && !n.joining && !joining;
        let sound = Contradictions::of(&own, &self.node.prefixes, nodes);
        for node in nodes.iter().filter(managed) {
            let device = on.get(node.spiffe_id.as_str()).copied().unwrap_or(usual);
            let prefixes = node.prefixes.iter().filter(|p| sound.allow_route(p));
            routes.entry(device).or_default().extend(prefixes);
        }
        routes
    }
}

fn each(routes: &BTreeMap<u32, Vec<IpNet>>) -> Vec<(u32, &[IpNet])> {
    routes.iter().map(|(to, all)| (*to, &**all)).collect()
}
