//! Callers that lie, leave, flood and send nonsense.

use std::process::{Command, Stdio};
use std::time::Duration;

use handfast_agent::workload_api::client::call;
use handfast_agent::workload_api::proto::{
    JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest,
};
use handfast_agent::workload_api::{Limits, WorkloadState, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;

use crate::support::{Desk, Node, next, ready, until};

/// A process connects, calls, and is gone before it is known: nobody gets its answer.
#[tokio::test]
async fn a_caller_that_exits_during_attestation_gets_nothing_and_leaves_nothing() {
    let (_ca, node, _) = ready().await;
    *node.desk.slowness.lock().unwrap() = Duration::from_millis(500);
    let script = "import socket,sys\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        s.send(bytes.fromhex(sys.argv[2])); import time; time.sleep(0.2)";
    let block = "838644".to_owned()
        + &hex(b"\x20/SpiffeWorkloadAPI/FetchX509SVID")
        + "4101780012"
        + &hex(b"workload.spiffe.io\x04true")
        + "000c"
        + &hex(b"content-type\x10application/grpc");
    let length = block.len() / 2;
    let bytes = hex(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        + "000000040000000000"
        + &format!("{length:06x}010400000001")
        + &block
        + "00000500010000000100"
        + "00000000";
    let children: Vec<_> = (0..8)
        .map(|_| {
            Command::new("python3")
                .args(["-c", script])
                .arg(node.path())
                .arg(&bytes)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    // All have been looked at by then. One that was slow to leave may have been answered, and is noticed later.
    tokio::time::sleep(Duration::from_millis(800)).await;
    until("without watchers for who is gone", async || {
        node.desk.watchers() == 0
    })
    .await;
    *node.desk.slowness.lock().unwrap() = Duration::ZERO;
    next(&mut node.x509().await).await.unwrap();
}

#[tokio::test]
async fn one_process_cannot_take_all_connections_or_streams() {
    let limits = Limits {
        process_connections: 4,
        process_calls: 6,
        ..Limits::default()
    };
    let (ca, _, svids) = ready().await;
    let node = Node::start_with(limits);
    node.desk.give(svids, ca.bundle.clone());
    let mut idle = Vec::new();
    for _ in 0..2 {
        idle.push(UnixStream::connect(node.path()).await.unwrap());
    }
    let mut calls = node.calls().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    idle.push(UnixStream::connect(node.path()).await.unwrap());
    let mut refused = UnixStream::connect(node.path()).await.unwrap();
    assert_eq!(
        refused.read(&mut [0]).await.unwrap_or(0),
        0,
        "closed at once"
    );
    let mut streams = Vec::new();
    for _ in 0..6 {
        let stream = calls.fetch_x509svid(call(X509svidRequest {})).await;
        streams.push(stream.unwrap().into_inner());
    }
    let status = calls
        .fetch_x509svid(call(X509svidRequest {}))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "W-8: shedding");
    streams.pop();
    until("a place again", || {
        let mut calls = calls.clone();
        async move { calls.fetch_x509svid(call(X509svidRequest {})).await.is_ok() }
    })
    .await;
}

/// Real time: the socket's readiness and a paused clock do not go together.
#[tokio::test]
async fn who_connects_and_says_nothing_is_hung_up_on() {
    let (_ca, node, _) = ready().await;
    let mut silent = UnixStream::connect(node.path()).await.unwrap();
    let mut stream = node.x509().await;
    next(&mut stream).await.unwrap();
    let mut greeting = Vec::new();
    let closed = silent.read_to_end(&mut greeting);
    let closed = tokio::time::timeout(Duration::from_secs(60), closed).await;
    // A reset is as good an end as any.
    let _ = closed.expect("closed");
    // Who has spoken may be silent for long.
    node.desk.set(WorkloadState::NoIdentity);
    let end = next(&mut stream).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_refused_and_the_endpoint_goes_on() {
    let (_ca, node, _) = ready().await;
    let mut calls = node.calls().await;
    let huge = ValidateJwtsvidRequest {
        audience: "a".to_owned(),
        svid: "x".repeat(1 << 20),
    };
    assert_eq!(
        calls.validate_jwtsvid(call(huge)).await.unwrap_err().code(),
        Code::OutOfRange
    );
    for audience in [
        vec![],
        vec![String::new()],
        vec!["a".to_owned(); 33],
        vec!["a".repeat(2049)],
    ] {
        let request = JwtsvidRequest {
            audience,
            spiffe_id: String::new(),
        };
        let status = calls.fetch_jwtsvid(call(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let request = JwtsvidRequest {
        audience: vec!["a".to_owned()],
        spiffe_id: "http://example.org/web".to_owned(),
    };
    assert_eq!(
        calls.fetch_jwtsvid(call(request)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let request = JwtsvidRequest {
        audience: vec!["a".to_owned()],
        spiffe_id: "spiffe://example.org/not/mine".to_owned(),
    };
    assert_eq!(
        calls.fetch_jwtsvid(call(request)).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100_000],
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &[0xff; 4096],
        ]
        .concat(),
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &[0, 0, 4, 1, 4, 0, 0, 0, 1, 0x41, 0x7f, 0xff, 0xff],
        ]
        .concat(),
    ] {
        let mut connection = UnixStream::connect(node.path()).await.unwrap();
        let _ = connection.write_all(&bytes).await;
        let mut answer = Vec::new();
        let closed = connection.read_to_end(&mut answer);
        // A reset is as good an end as any.
        let _ = tokio::time::timeout(Duration::from_secs(30), closed)
            .await
            .expect("it is closed");
    }
    next(&mut node.x509().await).await.unwrap();
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_anything_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    std::fs::write(&path, "mine").unwrap();
    assert!(serve(&path, Desk::new(), Limits::default()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let endpoint = serve(&path, Desk::new(), Limits::default()).unwrap();
    assert!(UnixStream::connect(&path).await.is_ok());
    endpoint.stop().await;
    let long = folder.path().join("x".repeat(120));
    assert!(serve(&long, Desk::new(), Limits::default()).is_err());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
