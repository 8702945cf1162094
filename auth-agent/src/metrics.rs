//! What the agent counts and measures, by name. Recorded through the `metrics` facade: without an exporter installed
//! each costs a look at a flag.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const ISSUE_SECONDS: &str = "handfast_agent_issue_seconds";
const NOT_ISSUED: &str = "handfast_agent_not_issued_total";
const ATTEST_SECONDS: &str = "handfast_agent_workload_attestation_seconds";
const ATTEST_FAILURES: &str = "handfast_agent_workload_attestation_failures_total";
pub(crate) const SVIDS: &str = "handfast_agent_svids";
pub(crate) const STREAMS: &str = "handfast_agent_workload_streams";
pub(crate) const NEAREST_EXPIRY: &str = "handfast_agent_svid_nearest_expiry_timestamp_seconds";
pub(crate) const CA_CONNECTED: &str = "handfast_agent_ca_connected";
pub(crate) const CA_SEQUENCE: &str = "handfast_agent_ca_sequence";
pub(crate) const BUNDLE_SEQUENCE: &str = "handfast_agent_bundle_sequence";
pub(crate) const DENY_NUMBER: &str = "handfast_agent_deny_list_number";

/// Says what each of them is. Called once, after the exporter is installed.
pub fn describe() {
    describe_histogram!(
        ISSUE_SECONDS,
        Unit::Seconds,
        "From the request for a batch of certificates or a JWT-SVID to the CA's answer"
    );
    describe_counter!(
        NOT_ISSUED,
        "Certificates and JWT-SVIDs that did not come, by kind and reason"
    );
    describe_histogram!(
        ATTEST_SECONDS,
        Unit::Seconds,
        "Looking at a process that asks for its identity"
    );
    describe_counter!(
        ATTEST_FAILURES,
        "Processes that could not be attested, by reason"
    );
    describe_gauge!(SVIDS, "SVIDs held, by kind");
    describe_gauge!(STREAMS, "Open streams of the Workload API and SDS");
    describe_gauge!(
        NEAREST_EXPIRY,
        Unit::Seconds,
        "When the first SVID of a kind ends (unix time)"
    );
    describe_gauge!(CA_CONNECTED, "1 while a server of the CA is reached");
    describe_gauge!(CA_SEQUENCE, "The CA's last update that was taken");
    describe_gauge!(BUNDLE_SEQUENCE, "Number of the trust bundle in force");
    describe_gauge!(DENY_NUMBER, "Number of the deny list in force");
}

/// The CA has answered.
pub(crate) fn issued(kind: &'static str, took: Duration) {
    histogram!(ISSUE_SECONDS, "kind" => kind).record(took);
}

/// It has not, or has said no.
pub(crate) fn not_issued(kind: &'static str, reason: &'static str, count: usize) {
    counter!(NOT_ISSUED, "kind" => kind, "reason" => reason).increment(count as u64);
}

/// A process was looked at, or could not be.
pub(crate) fn attested(took: Duration, failure: Option<&'static str>) {
    match failure {
        None => histogram!(ATTEST_SECONDS).record(took),
        Some(reason) => counter!(ATTEST_FAILURES, "reason" => reason).increment(1),
    }
}

/// A value that goes up and down.
pub(crate) fn set(name: &'static str, value: f64) {
    gauge!(name).set(value);
}

/// The same for a kind of SVID.
pub(crate) fn set_kind(name: &'static str, kind: &'static str, value: f64) {
    gauge!(name, "kind" => kind).set(value);
}
