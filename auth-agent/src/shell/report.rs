//! How the node stands, for people and programs.

use super::RunError;
use super::agent::Agent;
use crate::admin::{EndpointInfo, PolicyInfo, Status, SvidInfo};
use crate::core::{ConnectionView, IdentityNumber, PairView, PeerNumber, View};
use crate::endpoint::Endpoint;

/// Pairs that were proven since this run began. Two identities of this node are one pair, whichever is named first.
pub(super) fn proven(view: &View) -> usize {
    let once =
        |of: &&PairView| of.pair.peer != PeerNumber::LOCAL || of.pair.local <= of.pair.remote;
    view.pairs.iter().filter(once).count()
}

impl Agent {
    pub(super) fn view(&self) -> View {
        self.core.view()
    }

    pub(super) fn status(&self) -> Result<Status, RunError> {
        let view = self.view();
        let mut counters = self.gates.counters()?;
        for (name, count) in &view.counters {
            counters.insert(format!("protocol: {name}"), *count);
        }
        for (reason, count) in self.tls.failures() {
            counters.insert(format!("session not opened: {reason}"), count);
        }
        let (workload_svids, workload_streams) = self.workloads.counts();
        Ok(Status {
            node: self.node.spiffe_id.to_string(),
            name: self.node.name.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.started.elapsed().as_secs(),
            node_svid_expires: self.node.not_after,
            ca_connected: self.ca_connected,
            ca_sequence: self.knowledge.sequence,
            ca_address: self.ca_address.clone(),
            bundle_sequence: self.verifier.bundle().sequence(),
            authorities_in_use: self.ca.in_use(),
            nearest_expiry: self.nearest_expiry(),
            workload_svids,
            workload_streams,
            tunnel: self.tunnels.current().device().backend.to_string(),
            key_exchange: "X25519MLKEM768".into(),
            endpoints: self.endpoints.all().len(),
            sessions: view
                .peers
                .iter()
                .filter(|peer| peer.connection == ConnectionView::Live)
                .count(),
            pairs: proven(&view),
            policy_version: self.policy_version,
            policy_error: self.policy_error.clone(),
            deny_number: view.deny_number,
            counters,
            alarms: self.alarms.all(self.clock.now()),
        })
    }

    pub(super) fn endpoint_info(&self, endpoint: &Endpoint) -> EndpointInfo {
        let identity = self.identity_of(endpoint);
        let announced = |peer: &crate::core::PeerView| {
            peer.announced.iter().any(|(_, id, state)| {
                id.0 == endpoint.id && *state == crate::core::AnnouncedState::Confirmed
            })
        };
        EndpointInfo {
            id: endpoint.id,
            name: endpoint.name.clone(),
            netns: endpoint.netns.as_ref().map(ToString::to_string),
            cgroup: endpoint.host.as_ref().map(|host| host.path.clone()),
            exempt: endpoint
                .host
                .as_ref()
                .map(|host| host.exempt.clone())
                .unwrap_or_default(),
            addresses: endpoint.addresses.clone(),
            interface: endpoint.interface.clone(),
            spiffe_id: identity.as_ref().map(|identity| identity.spiffe_id.clone()),
            labels: identity.map(|identity| identity.labels).unwrap_or_default(),
            announced_to: self
                .view()
                .peers
                .iter()
                .filter(|peer| announced(peer))
                .map(|peer| peer.name.clone())
                .collect(),
        }
    }

    /// When the first SVID of any kind ends (unix seconds).
    fn nearest_expiry(&self) -> u64 {
        [self.svids.nearest_expiry(), self.workloads.nearest_expiry()]
            .into_iter()
            .flatten()
            .fold(self.node.not_after, u64::min)
    }

    pub(super) fn svid_list(&self) -> Vec<SvidInfo> {
        let mut svids = vec![SvidInfo {
            spiffe_id: self.node.spiffe_id.to_string(),
            kind: "node".into(),
            serial: self.node.serial.to_string(),
            not_after: self.node.not_after,
        }];
        svids.extend(self.svids.proofs().values().map(|svid| SvidInfo {
            spiffe_id: svid.identity.spiffe_id.clone(),
            kind: "proof".into(),
            serial: data_encoding::HEXLOWER.encode(&svid.serial),
            not_after: svid.not_after,
        }));
        let workloads = self.workloads.svids().into_iter();
        svids.extend(workloads.map(|svid| SvidInfo {
            spiffe_id: svid.spiffe_id,
            kind: "workload".into(),
            serial: svid.serial,
            not_after: svid.not_after,
        }));
        svids
    }

    pub(super) fn policies(&self) -> PolicyInfo {
        PolicyInfo {
            version: self.policy_version,
            documents: self
                .policy
                .set()
                .policies()
                .iter()
                .map(|policy| format!("{} {}", policy.kind, policy.name))
                .collect(),
            error: self.policy_error.clone(),
        }
    }
}

/// An identity's SPIFFE ID, or its number where nothing is known of it.
pub(super) fn name(view: &View, number: IdentityNumber) -> String {
    view.identities.get(&number).map_or_else(
        || format!("identity {}", number.0),
        |i| i.identity.spiffe_id.clone(),
    )
}

/// A peer's name, or `local`.
pub(super) fn peer_name(view: &View, number: PeerNumber) -> String {
    if number == PeerNumber::LOCAL {
        return "local".into();
    }
    view.peers
        .iter()
        .find(|peer| peer.number == number)
        .map_or_else(|| format!("peer {number}"), |peer| peer.name.clone())
}
