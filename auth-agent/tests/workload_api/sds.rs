//! SDS by the frame: subscriptions, acknowledgements, refusals, withdrawals.

use std::collections::HashMap;

use handfast_agent::workload_api::WorkloadState;
use handfast_agent::workload_api::client::channel;
use handfast_agent::workload_api::proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use handfast_agent::workload_api::proto::envoy::extensions::transport_sockets::tls::v3::{
    Secret, SpiffeCertValidatorConfig,
};
use handfast_agent::workload_api::proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use handfast_agent::workload_api::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use handfast_agent::workload_api::proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use handfast_agent::workload_api::proto::google::rpc::Status as Complaint;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::support::{Ca, Node, next, ready};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const WEB: &str = "spiffe://example.org/web";

async fn client(node: &Node) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel(&node.path()).await.unwrap())
}

fn wanted(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// An acknowledgement that wants `names` from now on.
fn ack(response: &DiscoveryResponse, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        ..wanted(names)
    }
}

type World = (
    mpsc::UnboundedSender<DiscoveryRequest>,
    Streaming<DiscoveryResponse>,
);

async fn world(node: &Node, first: DiscoveryRequest) -> World {
    let (sender, requests) = mpsc::unbounded_channel();
    sender.send(first).unwrap();
    let stream = client(node)
        .await
        .stream_secrets(UnboundedReceiverStream::new(requests))
        .await;
    (sender, stream.unwrap().into_inner())
}

type Delta = (
    mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
);

async fn delta(node: &Node, first: DeltaDiscoveryRequest) -> Delta {
    let (sender, requests) = mpsc::unbounded_channel();
    sender.send(first).unwrap();
    let stream = client(node)
        .await
        .delta_secrets(UnboundedReceiverStream::new(requests))
        .await;
    (sender, stream.unwrap().into_inner())
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: SECRET.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn secrets(response: &DiscoveryResponse) -> HashMap<String, Type> {
    assert_eq!(response.type_url, SECRET);
    let read = response.resources.iter().map(|any| {
        assert_eq!(any.type_url, SECRET);
        let secret = Secret::decode(any.value.as_slice()).unwrap();
        (secret.name, secret.r#type.unwrap())
    });
    read.collect()
}

fn text(source: &Option<DataSource>) -> String {
    match source.as_ref().unwrap().specifier.as_ref().unwrap() {
        Specifier::InlineBytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
    }
}

/// Nothing comes, for as long as something would need to come.
async fn silent<T>(stream: &mut Streaming<T>) {
    let wait = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(wait, stream.message()).await.is_err());
}

fn trust_domains(context: &Type) -> HashMap<String, String> {
    let Type::ValidationContext(context) = context else {
        panic!("{context:?}")
    };
    assert!(context.trusted_ca.is_none());
    let validator = context.custom_validator_config.as_ref().unwrap();
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config = validator.typed_config.as_ref().unwrap();
    assert!(config.type_url.ends_with(".v3.SPIFFECertValidatorConfig"));
    let config = SpiffeCertValidatorConfig::decode(config.value.as_slice()).unwrap();
    let domains = config.trust_domains.iter();
    domains
        .map(|domain| (domain.name.clone(), text(&domain.trust_bundle)))
        .collect()
}

#[tokio::test]
async fn each_kind_of_name_means_its_secret() {
    let (ca, node, svids) = ready().await;
    let other = Ca::start("other.example").await;
    node.desk
        .give_with(svids, ca.bundle.clone(), [other.bundle.clone()], Vec::new());
    let names = [
        WEB,
        "spiffe://example.org/api",
        "default",
        "ROOTCA",
        "ALL",
        "spiffe://example.org",
        "spiffe://other.example",
        "other.example",
    ];
    let mut asked = names.to_vec();
    asked.extend([
        "spiffe://example.org/not/mine",
        "spiffe://unknown.example",
        "",
        "nonsense",
    ]);
    let response = client(&node)
        .await
        .fetch_secrets(wanted(&asked))
        .await
        .unwrap()
        .into_inner();
    let secrets = secrets(&response);
    assert_eq!(
        secrets.len(),
        names.len(),
        "what this workload may not have is not there"
    );
    let Type::TlsCertificate(web) = &secrets[WEB] else {
        panic!()
    };
    assert_eq!(
        text(&web.certificate_chain)
            .matches("BEGIN CERTIFICATE")
            .count(),
        2
    );
    assert!(text(&web.private_key).starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(secrets["default"], secrets[WEB]);
    assert_ne!(secrets["spiffe://example.org/api"], secrets[WEB]);
    let Type::ValidationContext(root) = &secrets["ROOTCA"] else {
        panic!()
    };
    assert_eq!(text(&root.trusted_ca), ca.bundle.to_pem());
    assert!(root.custom_validator_config.is_none());
    let (own, foreign) = (ca.bundle.to_pem(), other.bundle.to_pem());
    let own = ("example.org".to_owned(), own);
    let foreign = ("other.example".to_owned(), foreign);
    assert_eq!(
        trust_domains(&secrets["ALL"]),
        HashMap::from([own.clone(), foreign.clone()])
    );
    assert_eq!(
        trust_domains(&secrets["spiffe://example.org"]),
        HashMap::from([own])
    );
    assert_eq!(
        trust_domains(&secrets["spiffe://other.example"]),
        HashMap::from([foreign])
    );
}

#[tokio::test]
async fn a_stream_answers_a_change_of_names_or_content_and_nothing_else() {
    let (mut ca, node, svids) = ready().await;
    let (sender, mut stream) = world(&node, wanted(&[WEB])).await;
    let first = next(&mut stream).await.unwrap();
    assert_eq!(secrets(&first).len(), 1);
    sender.send(ack(&first, &[WEB])).unwrap();
    silent(&mut stream).await;
    // More names: all of them come.
    sender.send(ack(&first, &[WEB, "ROOTCA"])).unwrap();
    let second = next(&mut stream).await.unwrap();
    assert_eq!(secrets(&second).len(), 2);
    assert_ne!(second.nonce, first.nonce);
    // What is said of an older response counts no more.
    sender.send(ack(&first, &["ALL"])).unwrap();
    silent(&mut stream).await;
    // A refusal is heard, and the same is not sent again.
    let refusal = DiscoveryRequest {
        error_detail: Some(Complaint {
            code: 3,
            message: "x".repeat(10_000),
        }),
        version_info: first.version_info.clone(),
        ..ack(&second, &[WEB, "ROOTCA"])
    };
    sender.send(refusal).unwrap();
    silent(&mut stream).await;
    // New content is sent, unasked.
    let entry = ca.entry("spiffe://example.org/other").await;
    let mut renewed = svids.clone();
    renewed.push(ca.issue(&entry, "").await);
    node.desk.give(renewed.clone(), ca.bundle.clone());
    silent(&mut stream).await;
    renewed.remove(0);
    node.desk.give(renewed, ca.bundle.clone());
    let lost = next(&mut stream).await.unwrap_err();
    assert_eq!(
        lost.code(),
        Code::PermissionDenied,
        "W-9: {WEB} was withdrawn"
    );
}

#[tokio::test]
async fn a_secret_that_comes_later_is_sent_when_it_is_there() {
    let (mut ca, node, mut svids) = ready().await;
    let (_sender, mut stream) = world(&node, wanted(&["spiffe://example.org/later"])).await;
    silent(&mut stream).await;
    let entry = ca.entry("spiffe://example.org/later").await;
    svids.push(ca.issue(&entry, "").await);
    node.desk.give(svids, ca.bundle.clone());
    let response = next(&mut stream).await.unwrap();
    assert!(secrets(&response).contains_key("spiffe://example.org/later"));
    node.desk.set(WorkloadState::NoIdentity);
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn the_same_content_has_the_same_version_on_every_stream() {
    let (mut ca, node, _) = ready().await;
    let entry = ca.entry("spiffe://example.org/renewed").await;
    let version = async || {
        let (_sender, mut stream) = world(&node, wanted(&["ALL", "default"])).await;
        next(&mut stream).await.unwrap().version_info
    };
    node.desk
        .give(vec![ca.issue(&entry, "").await], ca.bundle.clone());
    let before = version().await;
    assert_eq!(before, version().await);
    node.desk
        .give(vec![ca.issue(&entry, "").await], ca.bundle.clone());
    assert_ne!(before, version().await);
}

#[tokio::test]
async fn incremental_streams_send_what_changed_and_what_is_gone() {
    let (mut ca, node, mut svids) = ready().await;
    let (sender, mut stream) = delta(
        &node,
        subscribe(&[WEB, "ROOTCA", "spiffe://example.org/late"]),
    )
    .await;
    let names = |response: &DeltaDiscoveryResponse| {
        let mut names: Vec<_> = response.resources.iter().map(|r| r.name.clone()).collect();
        names.sort();
        names
    };
    let first = next(&mut stream).await.unwrap();
    assert_eq!(names(&first), ["ROOTCA", WEB]);
    let acknowledged = |response: &DeltaDiscoveryResponse| DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        ..subscribe(&[])
    };
    sender.send(acknowledged(&first)).unwrap();
    silent(&mut stream).await;
    let entry = ca.entry("spiffe://example.org/late").await;
    svids.push(ca.issue(&entry, "").await);
    node.desk.give(svids.clone(), ca.bundle.clone());
    let second = next(&mut stream).await.unwrap();
    assert_eq!(names(&second), ["spiffe://example.org/late"]);
    svids.remove(0);
    node.desk.give(svids.clone(), ca.bundle.clone());
    let third = next(&mut stream).await.unwrap();
    assert_eq!(third.removed_resources, [WEB]);
    assert!(third.resources.is_empty());
    // Asked for again, it is sent again, changed or not.
    sender.send(subscribe(&["ROOTCA"])).unwrap();
    assert_eq!(names(&next(&mut stream).await.unwrap()), ["ROOTCA"]);
    // What is not wanted any more is not sent, and its going not told.
    sender
        .send(DeltaDiscoveryRequest {
            resource_names_unsubscribe: vec!["spiffe://example.org/late".to_owned()],
            ..subscribe(&[])
        })
        .unwrap();
    silent(&mut stream).await;
    svids.pop();
    node.desk.give(svids, ca.bundle.clone());
    silent(&mut stream).await;
    // Who comes back with what it has is sent the difference only.
    let had = first
        .resources
        .iter()
        .map(|resource| (resource.name.clone(), resource.version.clone()));
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: had.collect(),
        ..subscribe(&[WEB, "ROOTCA", "ALL"])
    };
    let (_sender, mut stream) = delta(&node, again).await;
    let response = next(&mut stream).await.unwrap();
    assert_eq!(names(&response), ["ALL"]);
    assert_eq!(response.removed_resources, [WEB]);
    // No name at all stands for everything.
    let (_sender, mut stream) = delta(&node, subscribe(&[])).await;
    let everything = next(&mut stream).await.unwrap();
    assert_eq!(
        names(&everything),
        ["spiffe://example.org", "spiffe://example.org/api"]
    );
}

#[tokio::test]
async fn other_types_and_too_many_names_are_refused() {
    let (_ca, node, _) = ready().await;
    let mut cluster = wanted(&[WEB]);
    cluster.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let many: Vec<String> = (0..257).map(|number| format!("n{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "n".repeat(2049);
    for request in [cluster, wanted(&many), wanted(&[&long])] {
        let (_sender, mut stream) = world(&node, request.clone()).await;
        assert_eq!(
            next(&mut stream).await.unwrap_err().code(),
            Code::InvalidArgument
        );
        let status = client(&node)
            .await
            .fetch_secrets(request)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    for names in [&many[..], &[long.as_str()]] {
        let (_sender, mut stream) = delta(&node, subscribe(names)).await;
        assert_eq!(
            next(&mut stream).await.unwrap_err().code(),
            Code::InvalidArgument
        );
    }
    let nothing = client(&node)
        .await
        .fetch_secrets(wanted(&["nonsense"]))
        .await
        .unwrap_err();
    assert_eq!(nothing.code(), Code::PermissionDenied);
    node.desk.set(WorkloadState::NoIdentity);
    let nobody = client(&node)
        .await
        .fetch_secrets(wanted(&[WEB]))
        .await
        .unwrap_err();
    assert_eq!(nobody.code(), Code::PermissionDenied);
}
