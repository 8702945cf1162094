//! What the Workload API and SDS count.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use tonic::Code;

const CALLS: &str = "handfast_agent_workload_api_calls_total";
const STREAMS: &str = "handfast_agent_workload_api_streams";
const REFUSED: &str = "handfast_agent_workload_api_refused_connections_total";
const REFUSED_CALLS: &str = "handfast_agent_workload_api_refused_calls_total";
const SDS_REJECTED: &str = "handfast_agent_sds_rejected_total";

/// Names them to the recorder.
pub(super) fn describe() {
    describe_counter!(
        CALLS,
        "Calls of the Workload API and SDS, by method and the code they began with"
    );
    describe_gauge!(
        STREAMS,
        "Open streams of the Workload API and SDS, by method"
    );
    describe_counter!(
        REFUSED,
        "Connections refused because their caller holds too many"
    );
    describe_counter!(
        REFUSED_CALLS,
        "Calls refused before they were read, because their caller has its share"
    );
    describe_counter!(SDS_REJECTED, "Secrets that an Envoy refused");
}

pub(super) fn call(method: &'static str, code: Code) {
    counter!(CALLS, "method" => method, "code" => format!("{code:?}")).increment(1);
}

pub(super) fn refused_connection() {
    counter!(REFUSED).increment(1);
}

pub(super) fn refused_call() {
    counter!(REFUSED_CALLS).increment(1);
}

pub(super) fn sds_rejected() {
    counter!(SDS_REJECTED).increment(1);
}

/// An open stream.
#[derive(Debug)]
pub(super) struct OpenStream(&'static str);

impl OpenStream {
    pub(super) fn new(method: &'static str) -> Self {
        gauge!(STREAMS, "method" => method).increment(1);
        Self(method)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        gauge!(STREAMS, "method" => self.0).decrement(1);
    }
}
