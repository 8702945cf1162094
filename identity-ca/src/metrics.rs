//! What the CA counts and measures; names as Prometheus users expect them.
//!
//! Whoever runs the server decides where it goes: without a recorder all of
//! this is nothing.

use std::time::Instant;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::Error;
use crate::registry::Snapshot;

const ISSUED: &str = "handfast_ca_svids_issued_total";
const REFUSED: &str = "handfast_ca_refusals_total";
const ISSUE: &str = "handfast_ca_issue_seconds";
const CHANGE: &str = "handfast_ca_store_change_seconds";
const AUDIT: &str = "handfast_ca_audit_write_seconds";
const NOT_CONNECTED: &str = "handfast_ca_connections_refused_total";
const CONNECTED: &str = "handfast_ca_agents_connected";
const SEQUENCE: &str = "handfast_ca_sequence";
const BUNDLE: &str = "handfast_ca_bundle_sequence";
const CONFIRMED: &str = "handfast_ca_agent_acknowledged_sequence";
const ENTRIES: &str = "handfast_ca_entries";
const NODES: &str = "handfast_ca_nodes";
const EXPIRY: &str = "handfast_ca_authority_expiry_timestamp_seconds";

/// Says what each of them means; called once, when a server starts.
pub(crate) fn describe() {
    describe_counter!(ISSUED, "SVIDs signed, by kind");
    describe_counter!(REFUSED, "Requests refused, by act and by reason");
    describe_histogram!(
        ISSUE,
        Unit::Seconds,
        "Time to answer a batch of signing requests"
    );
    describe_histogram!(
        CHANGE,
        Unit::Seconds,
        "Time to commit a change and to see it"
    );
    describe_histogram!(AUDIT, Unit::Seconds, "Time to make audit records durable");
    describe_counter!(
        NOT_CONNECTED,
        "Connections refused since their source, or who they are, has too many of the kind"
    );
    describe_gauge!(CONNECTED, "Nodes whose agents are connected");
    describe_gauge!(SEQUENCE, "Number of the last change");
    describe_gauge!(BUNDLE, "Number of the trust bundle");
    describe_gauge!(
        CONFIRMED,
        "Number of the last update that a node's agent has applied"
    );
    describe_gauge!(ENTRIES, "Registration entries");
    describe_gauge!(NODES, "Nodes, joined or not");
    describe_gauge!(EXPIRY, "When a signing authority ends, by kind");
}

pub(crate) fn issued(kind: &'static str) {
    counter!(ISSUED, "kind" => kind).increment(1);
}

pub(crate) fn refused(act: &'static str, error: &Error) {
    counter!(REFUSED, "act" => act, "reason" => error.reason()).increment(1);
}

pub(crate) fn batch(since: Instant) {
    histogram!(ISSUE).record(since.elapsed());
}

pub(crate) fn change(since: Instant) {
    histogram!(CHANGE).record(since.elapsed());
}

pub(crate) fn audit(since: Instant) {
    histogram!(AUDIT).record(since.elapsed());
}

pub(crate) fn connected(nodes: usize) {
    gauge!(CONNECTED).set(nodes as f64);
}

pub(crate) fn connection_refused(what: &'static str) {
    counter!(NOT_CONNECTED, "kind" => what).increment(1);
}

pub(crate) fn acknowledged(node: &str, sequence: u64) {
    gauge!(CONFIRMED, "node" => node.to_owned()).set(sequence as f64);
}

pub(crate) fn authority(kind: &'static str, not_after: u64) {
    gauge!(EXPIRY, "kind" => kind).set(not_after as f64);
}

pub(crate) fn registry(now: &Snapshot) {
    gauge!(SEQUENCE).set(now.revisions.last as f64);
    gauge!(BUNDLE).set(now.revisions.bundle as f64);
    gauge!(ENTRIES).set(now.entries.len() as f64);
    gauge!(NODES).set(now.nodes.all().len() as f64);
}
