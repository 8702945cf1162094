//! What a caller can make the endpoint hold: each call is counted before anything of it is read, on every service, and
//! may be so long and so slow.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handfast_agent::workload_api::Limits;
use handfast_agent::workload_api::client::{call, channel};
use handfast_agent::workload_api::proto::{X509svidRequest, X509svidResponse};
use http::uri::PathAndQuery;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::frames::{Outcome, Raw, literal};
use crate::support::{Node, next, ready, until};

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
    let calls = node.calls().await;
    until("refused", || {
        let mut calls = calls.clone();
        async move {
            let refused = calls.fetch_x509svid(call(X509svidRequest {})).await;
            refused.is_err_and(|status| status.code() == Code::Unavailable)
        }
    })
    .await;
    for stream in held {
        let outcome = raw.outcome(stream).await;
        assert!(matches!(outcome, Outcome::Ended(_)), "{outcome:?}");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(9), "{took:?}");
    until("a place again", || {
        let mut calls = calls.clone();
        async move { calls.fetch_x509svid(call(X509svidRequest {})).await.is_ok() }
    })
    .await;
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
    until("a place again", || {
        let mut health = health.clone();
        async move { health.check(HealthCheckRequest::default()).await.is_ok() }
    })
    .await;
}

/// A group of the tree of version 2, which is mounted for it if it is not.
struct Group {
    tree: tempfile::TempDir,
    name: String,
}

impl Group {
    fn new(name: &str) -> Option<Self> {
        let tree = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), tree.path(), Some("cgroup2"), flags, none).ok()?;
        let name = format!("hf-bounds-{}-{name}", std::process::id());
        let group = Self { tree, name };
        std::fs::create_dir(group.path()).ok()?;
        Some(group)
    }

    fn path(&self) -> std::path::PathBuf {
        self.tree.path().join(&self.name)
    }

    /// Processes of this group that take connections; how many they keep, until their input ends.
    fn connect(&self, socket: &std::path::Path, processes: usize) -> (Child, usize) {
        let mut child = Command::new("python3")
            .args(["-c", HOG])
            .arg(socket)
            .arg(self.path().join("cgroup.procs"))
            .arg(processes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let kept = output.lines().take(processes);
        let kept = kept.map(|line| line.unwrap().parse::<usize>().unwrap());
        (child, kept.sum())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.path());
        let _ = nix::mount::umount(self.tree.path());
    }
}

/// Each process takes sixteen, and says how many are open when none has been closed for a while. (Those who say nothing
/// are hung up on after ten seconds.)
const HOG: &str = r#"
import os, select, socket, sys, time
open(sys.argv[2], "w").write(str(os.getpid()))
children = []
for _ in range(int(sys.argv[3])):
    child = os.fork()
    if child == 0:
        held = []
        for _ in range(16):
            s = socket.socket(socket.AF_UNIX)
            s.connect(sys.argv[1])
            held.append(s)
        begun = changed = time.monotonic()
        while time.monotonic() - changed < 1 and time.monotonic() - begun < 4:
            for s in select.select(held, [], [], 0.1)[0]:
                try:
                    closed = s.recv(4096) == b""
                except OSError:
                    closed = True
                if closed:
                    held.remove(s)
                    changed = time.monotonic()
        os.write(1, f"{len(held)}\n".encode())
        time.sleep(60)
    children.append(child)
sys.stdin.read()
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_root_that_takes_all_it_can_leaves_another_its_share() {
    let (Some(greedy), Some(modest)) = (Group::new("greedy"), Group::new("modest")) else {
        eprintln!("SKIPPED: no right to make control groups");
        return;
    };
    let node = Node::start_with(Limits {
        connections: 64,
        least_connections: 4,
        process_connections: 16,
        ..Limits::default()
    });
    let path = node.path();
    let (mut hog, taken) = tokio::task::block_in_place(|| greedy.connect(&path, 10));
    let (mut other, kept) = tokio::task::block_in_place(|| modest.connect(&path, 1));
    for child in [&mut hog, &mut other] {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    // Half of all for its group, and half of that for one user in it.
    assert!((8..=17).contains(&taken), "{taken} of 160 tries");
    assert!(kept >= 4, "{kept} beside {taken}");
}
