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
    ];
    for (counter, what) in counters {
        describe_counter!(counter, what);
    }
    describe_histogram!(
        name::ATTEST_SECONDS,
        Unit::Seconds,
        "Looking at a process that asks for its identity"
    );
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
