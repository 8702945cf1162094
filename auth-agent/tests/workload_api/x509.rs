//! The X.509 profile and what holds for every call.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::workload_api::WorkloadState;
use handfast_agent::workload_api::client::{call, channel, socket_path};
use handfast_agent::workload_api::proto::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use handfast_ca::deny::DenyList;
use handfast_ca::verify::Verifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use tonic::{Code, Request};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::support::{Ca, Node, next, ready};

/// Takes concatenated DER apart.
fn certificates(mut der: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).expect("certificates, and nothing else");
        found.push(der[..der.len() - rest.len()].to_vec().into());
        der = rest;
    }
    found
}

#[tokio::test]
async fn w1_w5_w17_methods_have_no_package_their_kinds_are_as_specified_and_both_profiles_are_there()
 {
    let (_ca, node, _) = ready().await;
    let mut grpc = tonic::client::Grpc::new(channel(&node.path()).await.unwrap());
    for (method, code) in [
        ("/SpiffeWorkloadAPI/FetchX509SVID", Code::Ok),
        ("/SpiffeWorkloadAPI/FetchX509Bundles", Code::Ok),
        ("/SpiffeWorkloadAPI/FetchJWTBundles", Code::Ok),
        ("/SpiffeWorkloadAPI/FetchJWTSVID", Code::InvalidArgument),
        ("/SpiffeWorkloadAPI/ValidateJWTSVID", Code::InvalidArgument),
        // The optional profile is not implemented (W-8, W-17), and the service has no calls of ours.
        ("/SpiffeWorkloadAPI/FetchWITSVID", Code::Unimplemented),
        ("/SpiffeWorkloadAPI/FetchWITBundles", Code::Unimplemented),
        (
            "/spiffe.SpiffeWorkloadAPI/FetchX509SVID",
            Code::Unimplemented,
        ),
    ] {
        grpc.ready().await.unwrap();
        let codec: tonic_prost::ProstCodec<X509svidRequest, X509svidRequest> =
            tonic_prost::ProstCodec::default();
        let answer = grpc
            .server_streaming(call(X509svidRequest {}), method.parse().unwrap(), codec)
            .await;
        let found = answer.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(found, code, "{method}");
    }
}

#[tokio::test]
async fn w2_w3_w4_svids_come_as_der_with_key_and_bundle() {
    let (ca, node, svids) = ready().await;
    let other = Ca::start("other.example").await;
    let crl = vec![1, 2, 3];
    node.desk.give_with(
        svids,
        ca.bundle.clone(),
        [other.bundle.clone()],
        vec![crl.clone()],
    );
    let response = next(&mut node.x509().await).await.unwrap();
    assert_eq!(response.crl, std::slice::from_ref(&crl));
    assert_eq!(response.svids.len(), 2);
    for svid in &response.svids {
        let chain = certificates(&svid.x509_svid);
        let roots = certificates(&svid.bundle);
        assert_eq!(chain.len(), 2, "leaf and issuing CA, not the root");
        assert_eq!(roots, ca.bundle.roots().cloned().collect::<Vec<_>>());
        let verifier = Verifier::new(ca.bundle.clone(), DenyList::empty());
        let verified = verifier.workload(&chain, UnixTime::now()).unwrap();
        assert_eq!(verified.spiffe_id.to_string(), svid.spiffe_id);
        let key = handfast_ca::certificate::PrivateKey::from_pkcs8(&svid.x509_svid_key).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        let public = leaf.public_key().subject_public_key.data.to_vec();
        let csr = handfast_ca::certificate::CsrKey::read(&key.csr().unwrap()).unwrap();
        assert_eq!(csr.point(), public, "the key is the leaf's");
    }
    let foreign = &response.federated_bundles;
    assert_eq!(
        foreign.keys().collect::<Vec<_>>(),
        ["spiffe://other.example"]
    );
    assert_eq!(
        certificates(&foreign["spiffe://other.example"]),
        other.bundle.roots().cloned().collect::<Vec<_>>(),
    );
    let call = call(X509BundlesRequest {});
    let stream = node.calls().await.fetch_x509_bundles(call).await.unwrap();
    let bundles = next(&mut stream.into_inner()).await.unwrap();
    assert_eq!(bundles.crl, [crl]);
    let mut names: Vec<_> = bundles.bundles.keys().collect();
    names.sort();
    assert_eq!(
        names,
        ["spiffe://example.org", "spiffe://other.example"],
        "W-11: the own one too"
    );
}

#[tokio::test]
async fn w5_w6_streams_give_full_state_at_once_and_after_each_change() {
    let (mut ca, node, svids) = ready().await;
    let mut stream = node.x509().await;
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 2, "at once");
    // What is absent has been withdrawn.
    node.desk.give(svids[1..].to_vec(), ca.bundle.clone());
    let after = next(&mut stream).await.unwrap();
    assert_eq!(after.svids.len(), 1);
    assert_eq!(after.svids[0].spiffe_id, "spiffe://example.org/api");
    // A change that is none for this caller is not said.
    node.desk.give(svids[1..].to_vec(), ca.bundle.clone());
    let entry = ca.entry("spiffe://example.org/new").await;
    let renewed = ca.issue(&entry, "").await;
    node.desk.give(vec![renewed], ca.bundle.clone());
    let after = next(&mut stream).await.unwrap();
    assert_eq!(after.svids[0].spiffe_id, "spiffe://example.org/new");
}

#[tokio::test]
async fn w6_a_slow_reader_gets_the_newest_state_only() {
    let (ca, node, svids) = ready().await;
    let bundle = ca.bundle.clone();
    let mut stream = node.x509().await;
    next(&mut stream).await.unwrap();
    // Far more than the connection's window takes, while nobody reads.
    for step in 0..2_000u32 {
        let filler = vec![u8::try_from(step % 251).unwrap(); 4096];
        node.desk
            .give_with(svids.clone(), bundle.clone(), [], vec![filler]);
        if step % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    node.desk
        .give_with(svids.clone(), bundle, [], vec![b"last".to_vec()]);
    let mut read = 0;
    while next(&mut stream).await.unwrap().crl != [b"last".to_vec()] {
        read += 1;
    }
    assert!(read < 1_500, "{read} of 2,000 states were queued");
}

#[tokio::test]
async fn w7_missing_security_header() {
    let (_ca, node, _) = ready().await;
    let mut calls = node.calls().await;
    for header in [None, Some("True"), Some("1"), Some("")] {
        fn with<T>(message: T, header: Option<&'static str>) -> Request<T> {
            let mut request = Request::new(message);
            if let Some(value) = header {
                request
                    .metadata_mut()
                    .insert("workload.spiffe.io", value.parse().unwrap());
            }
            request
        }
        let validate = ValidateJwtsvidRequest::default();
        let codes = [
            calls
                .fetch_x509svid(with(X509svidRequest {}, header))
                .await
                .unwrap_err()
                .code(),
            calls
                .fetch_x509_bundles(with(X509BundlesRequest {}, header))
                .await
                .unwrap_err()
                .code(),
            calls
                .fetch_jwt_bundles(with(JwtBundlesRequest {}, header))
                .await
                .unwrap_err()
                .code(),
            calls
                .fetch_jwtsvid(with(JwtsvidRequest::default(), header))
                .await
                .unwrap_err()
                .code(),
            calls
                .validate_jwtsvid(with(validate, header))
                .await
                .unwrap_err()
                .code(),
        ];
        assert_eq!(codes, [Code::InvalidArgument; 5], "{header:?}");
    }
}

#[tokio::test]
async fn w8_no_identity_is_permission_denied_and_a_starting_agent_is_unavailable() {
    let node = Node::start();
    node.desk.set(WorkloadState::NoIdentity);
    let mut calls = node.calls().await;
    let jwt = JwtsvidRequest {
        audience: vec!["a".to_owned()],
        ..JwtsvidRequest::default()
    };
    let validate = ValidateJwtsvidRequest {
        audience: "a".to_owned(),
        svid: "b".to_owned(),
    };
    for expected in [Code::PermissionDenied, Code::Unavailable] {
        let mut others = calls.clone();
        let (jwt, validate) = (call(jwt.clone()), call(validate.clone()));
        let (x509, bundles, jwt) = tokio::join!(
            calls.fetch_x509svid(call(X509svidRequest {})),
            others.fetch_x509_bundles(call(X509BundlesRequest {})),
            async { node.calls().await.fetch_jwtsvid(jwt).await },
        );
        assert_eq!(x509.unwrap_err().code(), expected);
        assert_eq!(bundles.unwrap_err().code(), expected);
        assert_eq!(jwt.unwrap_err().code(), expected);
        let (bundles, validated) = tokio::join!(
            others.fetch_jwt_bundles(call(JwtBundlesRequest {})),
            calls.validate_jwtsvid(validate),
        );
        assert_eq!(bundles.unwrap_err().code(), expected);
        assert_eq!(validated.unwrap_err().code(), expected);
        node.desk.set(WorkloadState::Initialising);
    }
}

#[tokio::test]
async fn w8_a_caller_whose_svid_is_being_made_waits_for_it() {
    let (ca, node, svids) = ready().await;
    node.desk.set(WorkloadState::Initialising);
    let desk = Arc::clone(&node.desk);
    let caller = tokio::spawn(async move { next(&mut node.x509().await).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!caller.is_finished());
    desk.give(svids, ca.bundle.clone());
    assert_eq!(caller.await.unwrap().unwrap().svids.len(), 2);
}

#[tokio::test]
async fn w9_a_withdrawn_identity_ends_its_streams_with_permission_denied() {
    let (_ca, node, _) = ready().await;
    let mut svids = node.x509().await;
    next(&mut svids).await.unwrap();
    let mut calls = node.calls().await;
    let bundles = calls.fetch_x509_bundles(call(X509BundlesRequest {})).await;
    let mut bundles = bundles.unwrap().into_inner();
    next(&mut bundles).await.unwrap();
    let jwt = calls.fetch_jwt_bundles(call(JwtBundlesRequest {})).await;
    let mut jwt = jwt.unwrap().into_inner();
    next(&mut jwt).await.unwrap();
    node.desk.set(WorkloadState::NoIdentity);
    assert_eq!(
        next(&mut svids).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        next(&mut bundles).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        next(&mut jwt).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

/// What the agent has of a certificate that is revoked until the next one is signed.
#[tokio::test]
async fn w9_a_stream_stays_open_and_silent_while_its_svid_is_made_anew() {
    let (mut ca, node, svids) = ready().await;
    let mut stream = node.x509().await;
    next(&mut stream).await.unwrap();
    node.desk.set(WorkloadState::Initialising);
    let silence = tokio::time::timeout(Duration::from_millis(500), stream.message());
    assert!(silence.await.is_err(), "nothing is said, and nothing ends");
    let entry = ca.entry("spiffe://example.org/web3").await;
    let renewed = ca.issue(&entry, "").await;
    node.desk.give(vec![renewed], ca.bundle.clone());
    let news = next(&mut stream).await.unwrap();
    assert_eq!(news.svids.len(), 1);
    assert_ne!(news.svids[0].spiffe_id, svids[0].spiffe_id.to_string());
}

#[tokio::test]
async fn w10_hints_are_unique_and_bounded_and_the_first_svid_is_the_default() {
    let (mut ca, node, _) = ready().await;
    let entry = ca.entry("spiffe://example.org/many").await;
    let mut svids = Vec::new();
    for hint in ["b", "a", "b", &"x".repeat(1025), &"y".repeat(1024), "", ""] {
        svids.push(ca.issue(&entry, hint).await);
    }
    node.desk.give(svids, ca.bundle.clone());
    let response = next(&mut node.x509().await).await.unwrap();
    let hints: Vec<_> = response
        .svids
        .iter()
        .map(|svid| svid.hint.as_str())
        .collect();
    let longest = "y".repeat(1024);
    assert_eq!(hints, ["b", "a", "", "", &longest, "", ""]);
    for svid in response.svids {
        assert!(!svid.spiffe_id.is_empty() && !svid.x509_svid.is_empty());
        assert!(!svid.x509_svid_key.is_empty() && !svid.bundle.is_empty());
    }
}

#[tokio::test]
async fn w14_anybody_on_the_node_may_connect_in_clear_to_one_socket() {
    let (_ca, node, _) = ready().await;
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.path()), 0o666);
    assert_eq!(mode(node.path().parent().unwrap()), 0o755);
    next(&mut node.x509().await).await.unwrap();
}

#[test]
fn w15_an_endpoint_is_named_by_a_unix_socket() {
    for good in [
        "unix:///run/handfast/agent.sock",
        "unix:/run/handfast/agent.sock",
    ] {
        assert_eq!(
            socket_path(good).unwrap().to_str(),
            Some("/run/handfast/agent.sock")
        );
    }
    for bad in [
        "",
        "/run/agent.sock",
        "unix:agent.sock",
        "unix://host/run/agent.sock",
        "unix:///run/agent.sock?x",
        "unix:///run/agent.sock#x",
        "tcp://127.0.0.1:8000",
    ] {
        assert!(socket_path(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn w18_an_agent_that_stops_says_unavailable_and_clients_come_back_to_the_next() {
    let (ca, node, svids) = ready().await;
    let path = node.path();
    let mut stream = node.x509().await;
    let before = next(&mut stream).await.unwrap();
    let Node {
        folder,
        endpoint,
        desk,
    } = node;
    let (ended, ()) = tokio::join!(next(&mut stream), endpoint.stop());
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    assert!(!path.exists());
    let source = Arc::clone(&desk) as Arc<dyn handfast_agent::workload_api::Source>;
    let endpoint = handfast_agent::workload_api::serve(&path, source, Default::default()).unwrap();
    desk.give(svids, ca.bundle.clone());
    let node = Node {
        folder,
        desk,
        endpoint,
    };
    assert_eq!(
        next(&mut node.x509().await).await.unwrap(),
        before,
        "the same SVIDs"
    );
}

#[tokio::test]
async fn the_first_answer_waits_a_moment_for_identities_that_are_being_made_and_no_longer() {
    let (ca, node, svids) = ready().await;
    assert!(svids.len() > 1);
    let part = |count: usize, whole| {
        let some = svids[..count].to_vec();
        node.desk
            .give_part(some, ca.bundle.clone(), [], Vec::new(), whole);
    };
    let mut client = node.calls().await;
    part(1, false);
    let asking = client.fetch_x509svid(call(X509svidRequest {}));
    let making = async {
        while node.desk.watchers() == 0 {
            tokio::task::yield_now().await;
        }
        part(svids.len(), true);
    };
    let (stream, ()) = tokio::join!(asking, making);
    let first = next(&mut stream.unwrap().into_inner()).await.unwrap();
    assert_eq!(first.svids.len(), svids.len());

    // The CA is away, say.
    part(1, false);
    let mut client = node.calls().await;
    let stream = client.fetch_x509svid(call(X509svidRequest {})).await;
    let mut stream = stream.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
    part(svids.len(), true);
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), svids.len());
}
