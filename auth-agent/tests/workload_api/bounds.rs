//! What a caller can make the endpoint hold: each call is counted before anything of it is read, on every service, and
//! may be so long and so slow.

use std::time::{Duration, Instant};

use handfast_agent::workload_api::Limits;
use handfast_agent::workload_api::client::{call, channel};
use handfast_agent::workload_api::proto::{X509svidRequest, X509svidResponse};
use http::uri::PathAndQuery;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::frames::{Outcome, Raw, literal};
use crate::support::{Node, next, ready};

const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const STREAM: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";

async fn limited(calls: usize) -> (crate::support::Ca, Node) {
    let (ca, _, svids) = ready().await;
    let node = Node::start_with(Limits {
        process_calls: calls,
        ..Limits::default()
    });
    node.desk.give(svids, ca.bundle.clone());
    (ca, node)
}

#[tokio::test]
async fn a_call_whose_message_does_not_come_holds_a_place_and_only_for_a_while() {
    let (_ca, node) = limited(4).await;
    let mut raw = Raw::connect(&node.path()).await;
    let begun = Instant::now();
    let mut held = Vec::new();
    for method in [FETCH, FETCH, STREAM, STREAM] {
        held.push(raw.headers(method, &literal(0x41, b"", b"localhost")).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut calls = node.calls().await;
    let refused = calls.fetch_x509svid(call(X509svidRequest {})).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    for stream in held {
        let outcome = raw.outcome(stream).await;
        assert!(matches!(outcome, Outcome::Ended(_)), "{outcome:?}");
    }
    let took = begun.elapsed();
    assert!(
        (Duration::from_secs(9)..Duration::from_secs(15)).contains(&took),
        "{took:?}"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    next(&mut node.x509().await).await.unwrap();
}

#[tokio::test]
async fn a_request_is_as_long_as_its_method_needs_it() {
    let (_ca, node, _) = ready().await;
    for (method, longest) in [
        ("FetchX509SVID", 4 << 10),
        ("FetchX509Bundles", 4 << 10),
        ("FetchJWTBundles", 4 << 10),
        ("FetchJWTSVID", 16 << 10),
        ("ValidateJWTSVID", 64 << 10),
    ] {
        let mut grpc = tonic::client::Grpc::new(channel(&node.path()).await.unwrap());
        for (length, refused) in [(longest - 100, false), (longest, true)] {
            grpc.ready().await.unwrap();
            // A field that nobody knows, of that length.
            let message = Filler {
                bytes: vec![7; length],
            };
            let codec = tonic_prost::ProstCodec::<Filler, X509svidResponse>::default();
            let path: PathAndQuery = format!("/SpiffeWorkloadAPI/{method}").parse().unwrap();
            let answer = grpc.server_streaming(call(message), path, codec).await;
            let code = match answer {
                Ok(_) => Code::Ok,
                Err(status) => status.code(),
            };
            assert_eq!(
                code == Code::OutOfRange,
                refused,
                "{method}, {length}: {code:?}"
            );
        }
    }
}

/// A message with a field that no other has.
#[derive(Clone, PartialEq, prost::Message)]
struct Filler {
    #[prost(bytes = "vec", tag = "1000")]
    bytes: Vec<u8>,
}

#[tokio::test]
async fn calls_of_health_and_reflection_are_counted_like_all_others() {
    let (_ca, node) = limited(3).await;
    let channel = channel(&node.path()).await.unwrap();
    let mut health = HealthClient::new(channel);
    let mut watching = Vec::new();
    for _ in 0..3 {
        let request = HealthCheckRequest::default();
        watching.push(health.watch(request).await.unwrap().into_inner());
    }
    let refused = health.check(HealthCheckRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    drop(watching);
    tokio::time::sleep(Duration::from_millis(100)).await;
    health.check(HealthCheckRequest::default()).await.unwrap();
}
