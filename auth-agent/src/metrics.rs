//! What the agent counts and measures, by name. Recorded through the `metrics` facade: without an exporter installed
//! each costs a look at a flag.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// Names, as exporters show them.
pub(crate) mod name {
    pub(crate) const ISSUE_SECONDS: &str = "handfast_agent_issue_seconds";
    pub(crate) const NOT_ISSUED: &str = "handfast_agent_not_issued_total";
    pub(crate) const ATTEST_SECONDS: &str = "handfast_agent_workload_attestation_seconds";
    pub(crate) const ATTEST_FAILURES: &str = "handfast_agent_workload_attestation_failures_total";
    pub(crate) const SVIDS: &str = "handfast_agent_svids";
    pub(crate) const STREAMS: &str = "handfast_agent_watched_workloads";
    pub(crate) const NEAREST_EXPIRY: &str = "handfast_agent_svid_nearest_expiry_timestamp_seconds";
    pub(crate) const CA_CONNECTED: &str = "handfast_agent_ca_connected";
    pub(crate) const CA_SEQUENCE: &str = "handfast_agent_ca_sequence";
    pub(crate) const BUNDLE_SEQUENCE: &str = "handfast_agent_bundle_sequence";
    pub(crate) const DENY_NUMBER: &str = "handfast_agent_deny_list_number";
    pub(crate) const PEERS: &str = "handfast_agent_peers";
    pub(crate) const PROVEN: &str = "handfast_agent_proven_remote_identities";
    pub(crate) const PAIRS: &str = "handfast_agent_pairs";
    pub(crate) const HOLDS: &str = "handfast_agent_hold_queues";
    pub(crate) const ENDPOINTS: &str = "handfast_agent_endpoints";
    pub(crate) const PACKETS: &str = "handfast_agent_packets_total";
    pub(crate) const PROTOCOL: &str = "handfast_agent_protocol_events_total";
    pub(crate) const HANDSHAKE_FAILURES: &str = "handfast_agent_handshake_failures_total";
    pub(crate) const HANDSHAKE_SECONDS: &str = "handfast_agent_handshake_seconds";
    pub(crate) const PROOF_SECONDS: &str = "handfast_agent_proof_verification_seconds";
    pub(crate) const PROOF_FAILURES: &str = "handfast_agent_proof_failures_total";
    pub(crate) const HOLD_SECONDS: &str = "handfast_agent_hold_seconds";
    pub(crate) const HOLD_DISCARDED: &str = "handfast_agent_held_packets_discarded_total";
    pub(crate) const HELD_PACKETS: &str = "handfast_agent_held_packets";
    pub(crate) const HELD_BYTES: &str = "handfast_agent_held_bytes";
    pub(crate) const MAP_ENTRIES: &str = "handfast_agent_map_entries";
    pub(crate) const MAP_CAPACITY: &str = "handfast_agent_map_capacity";
    pub(crate) const EVENTS_LOST: &str = "handfast_agent_events_lost_total";
}

/// Says what each of them is. Called once, after the exporter is installed.
pub fn describe() {
    describe_histogram!(
        name::ISSUE_SECONDS,
        Unit::Seconds,
        "From the request for a batch of certificates or a JWT-SVID to the CA's answer, by kind"
    );
    let counters = [
        (
            name::NOT_ISSUED,
            "Certificates and JWT-SVIDs that did not come, by kind and reason",
        ),
        (
            name::ATTEST_FAILURES,
            "Processes that could not be attested, by reason",
        ),
        (name::PACKETS, "Packets that the gates counted, by reason"),
        (name::PROTOCOL, "What happened on sessions, by event"),
        (
            name::HANDSHAKE_FAILURES,
            "Sessions that were not opened, by reason",
        ),
        (
            name::PROOF_FAILURES,
            "Peers' proofs that were not believed, by the step that refused them",
        ),
        (
            name::HOLD_DISCARDED,
            "Held packets that were given up, by reason",
        ),
        (
            name::EVENTS_LOST,
            "Verdicts that nobody could be told of: in the gates (ring), or at a watcher that is too slow (watcher)",
        ),
    ];
    for (counter, what) in counters {
        describe_counter!(counter, what);
    }
    let histograms = [
        (
            name::ATTEST_SECONDS,
            "Looking at a process that asks for its identity",
        ),
        (
            name::HANDSHAKE_SECONDS,
            "TLS handshakes of sessions that were opened, by the side that dialled",
        ),
        (
            name::PROOF_SECONDS,
            "Verifying a peer's proof: the authenticator, the chain, the rules",
        ),
        (
            name::HOLD_SECONDS,
            "From a packet's arrival in hold until it was given back or dropped, by outcome",
        ),
    ];
    for (histogram, what) in histograms {
        describe_histogram!(histogram, Unit::Seconds, what);
    }
    let gauges = [
        (name::SVIDS, "SVIDs held, by kind"),
        (name::STREAMS, "Workloads whose identities are watched"),
        (
            name::NEAREST_EXPIRY,
            "When the first SVID of a kind ends (unix time)",
        ),
        (name::CA_CONNECTED, "1 while a server of the CA is reached"),
        (name::CA_SEQUENCE, "The CA's last update that was taken"),
        (name::BUNDLE_SEQUENCE, "Number of the trust bundle in force"),
        (name::DENY_NUMBER, "Number of the deny list in force"),
        (name::PEERS, "Other nodes, by the state of the connection"),
        (name::PROVEN, "Remote identities proven on live sessions"),
        (
            name::PAIRS,
            "Pairs that the kernel lets pass (recorded), and those proven since the agent started",
        ),
        (name::HOLDS, "Pairs whose packets wait for a decision"),
        (name::ENDPOINTS, "Attached workloads"),
        (name::HELD_PACKETS, "Packets that wait for a decision"),
        (name::HELD_BYTES, "Their bytes"),
        (name::MAP_ENTRIES, "Entries in use, by bounded map"),
        (
            name::MAP_CAPACITY,
            "Entries that there is room for, by bounded map",
        ),
    ];
    for (gauge, what) in gauges {
        describe_gauge!(gauge, what);
    }
}

/// The CA has answered.
pub(crate) fn issued(kind: &'static str, took: Duration) {
    histogram!(name::ISSUE_SECONDS, "kind" => kind).record(took);
}

/// It has not, or has said no.
pub(crate) fn not_issued(kind: &'static str, reason: &'static str, count: usize) {
    counter!(name::NOT_ISSUED, "kind" => kind, "reason" => reason).increment(count as u64);
}

/// A process was looked at, or could not be.
pub(crate) fn attested(took: Duration, failure: Option<&'static str>) {
    match failure {
        None => histogram!(name::ATTEST_SECONDS).record(took),
        Some(reason) => counter!(name::ATTEST_FAILURES, "reason" => reason).increment(1),
    }
}

/// A session was opened.
pub(crate) fn handshaken(side: &'static str, took: Duration) {
    histogram!(name::HANDSHAKE_SECONDS, "side" => side).record(took);
}

/// A peer's proof was looked at.
pub(crate) fn proof_verified(took: Duration, failure: Option<&'static str>) {
    histogram!(name::PROOF_SECONDS).record(took);
    if let Some(step) = failure {
        counter!(name::PROOF_FAILURES, "step" => step).increment(1);
    }
}

/// A held packet has left the queue.
pub(crate) fn hold_ended(outcome: &'static str, took: Duration) {
    histogram!(name::HOLD_SECONDS, "outcome" => outcome).record(took);
}

/// Held packets were given up.
pub(crate) fn discarded(reason: &str, packets: usize) {
    counter!(name::HOLD_DISCARDED, "reason" => reason.to_owned()).increment(packets as u64);
}

/// A watcher was too slow for some verdicts.
pub(crate) fn watcher_lagged(count: u64) {
    counter!(name::EVENTS_LOST, "at" => "watcher").increment(count);
}

/// A value that goes up and down.
pub(crate) fn set(name: &'static str, value: f64) {
    gauge!(name).set(value);
}

/// The same, of one kind or state.
pub(crate) fn set_labelled(name: &'static str, label: &'static str, of: &'static str, value: f64) {
    gauge!(name, label => of).set(value);
}

/// A counter that is kept elsewhere.
pub(crate) fn count_to(name: &'static str, label: &'static str, of: &str, count: u64) {
    counter!(name, label => of.to_owned()).absolute(count);
}
