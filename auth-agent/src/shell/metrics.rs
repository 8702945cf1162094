//! What the node measures of itself, written out every few seconds: gauges, and the counters of core and kernel.

use super::RunError;
use super::agent::Agent;
use super::report;
use crate::core::{ConnectionView, PeerView, View};
use crate::metrics::{self, name};

impl Agent {
    /// Tells the exporter how the node stands, and probes whether it is ready.
    pub(super) fn measure(&mut self) {
        self.readiness.set(self.unready());
        self.measure_identities();
        if let Err(error) = self.measure_flows() {
            tracing::debug!(%error, "the kernel's counters are not exported");
        }
    }

    /// Why the node is not ready, if it is not. A CA that is away is no reason: what is proven goes on.
    fn unready(&self) -> Option<String> {
        if self.clock.now().wall >= self.node.not_after {
            return Some("the node's SVID has ended".into());
        }
        if self.knowledge.sequence == 0 {
            return Some("the CA was not heard yet".into());
        }
        None
    }

    fn measure_identities(&self) {
        let (workloads, streams) = self.workloads.counts();
        metrics::set(name::CA_CONNECTED, f64::from(u8::from(self.ca_connected)));
        metrics::set(name::CA_SEQUENCE, float(self.knowledge.sequence));
        let bundle = self.verifier.bundle().sequence();
        metrics::set(name::BUNDLE_SEQUENCE, float(bundle));
        metrics::set(name::DENY_NUMBER, float(self.verifier.deny_list().number()));
        metrics::set(name::STREAMS, float(streams as u64));
        let kinds = [
            ("node", 1, Some(self.node.not_after)),
            (
                "proof",
                self.svids.proofs().len(),
                self.svids.nearest_expiry(),
            ),
            ("workload", workloads, self.workloads.nearest_expiry()),
        ];
        for (kind, count, expiry) in kinds {
            metrics::set_labelled(name::SVIDS, "kind", kind, float(count as u64));
            // Without any there is none that could end.
            if let Some(expiry) = expiry {
                metrics::set_labelled(name::NEAREST_EXPIRY, "kind", kind, float(expiry));
            }
        }
    }

    fn measure_flows(&self) -> Result<(), RunError> {
        let view = self.view();
        for state in ["none", "waiting", "connecting", "live"] {
            let peers = view.peers.iter();
            let count = peers.filter(|peer| peer.connection.word() == state).count();
            metrics::set_labelled(name::PEERS, "state", state, float(count as u64));
        }
        let live = |peer: &&crate::core::PeerView| peer.connection == ConnectionView::Live;
        let proven: usize = view.peers.iter().filter(live).map(|p| p.proven.len()).sum();
        metrics::set(name::PROVEN, float(proven as u64));
        metrics::set(name::HOLDS, float(view.holds.len() as u64));
        metrics::set(name::ENDPOINTS, float(self.endpoints.all().len() as u64));
        let (packets, bytes) = self.gates.held()?;
        metrics::set(name::HELD_PACKETS, float(packets));
        metrics::set(name::HELD_BYTES, float(bytes));
        metrics::count_to(name::EVENTS_LOST, "at", "gates", self.gates.events_lost()?);
        // The pairs that the kernel lets pass, and those that were proven since this run began.
        let recorded = self.gates.pairs()?.len();
        self.measure_maps(&view, recorded);
        metrics::set_labelled(name::PAIRS, "state", "recorded", float(recorded as u64));
        let proven = report::proven(&view) as u64;
        metrics::set_labelled(name::PAIRS, "state", "proven", float(proven));
        for (counter, count) in self.gates.counters()? {
            let reason = counter.strip_prefix("packets: ").unwrap_or(&counter);
            metrics::count_to(name::PACKETS, "reason", reason, count);
        }
        for (event, count) in &view.counters {
            metrics::count_to(name::PROTOCOL, "event", event, *count);
        }
        for (reason, count) in self.tls.failures() {
            metrics::count_to(name::HANDSHAKE_FAILURES, "reason", reason, count);
        }
        Ok(())
    }
}

impl Agent {
    /// How much of the kernel's maps is used: what the agent writes by its own books, flows as last collected.
    fn measure_maps(&self, view: &View, pairs: usize) {
        let of_peers = |count: fn(&PeerView) -> usize| view.peers.iter().map(count).sum::<usize>();
        let endpoints = self.endpoints.all();
        let used = [
            ("endpoints", endpoints.len()),
            (
                "locals",
                endpoints.iter().map(|one| one.addresses.len()).sum(),
            ),
            (
                "remotes",
                of_peers(|peer| peer.remotes.len() + peer.refused.len()),
            ),
            (
                "prefixes",
                of_peers(|peer| peer.prefixes.len()) + self.node.prefixes.len(),
            ),
            (
                "sessions",
                of_peers(|peer| usize::from(peer.session.is_some())) + 1,
            ),
            ("announced", of_peers(|peer| peer.announced.len())),
            ("identities", view.identities.len()),
            ("policy", self.policy.len()),
            ("cidrs", self.gates.cidrs().count()),
            ("auth", pairs),
            ("connections", self.gates.flows()),
        ];
        for (map, entries) in used {
            metrics::set_labelled(name::MAP_ENTRIES, "map", map, float(entries as u64));
        }
        for (map, room) in self.gates.capacities() {
            metrics::set_labelled(name::MAP_CAPACITY, "map", map, f64::from(room));
        }
    }
}

/// Exact up to 2^53, which no value here reaches: sequence numbers are milliseconds since 1970.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}
