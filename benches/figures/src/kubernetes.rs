//! What a pod's start and a policy's change cost on a cluster: a real API server, real agents and tunnels, and the plugin
//! called as a container runtime calls it.
//!
//! COUNT=5 measures so many of each instead of a hundred.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use handfast_agent::admin::{Client, Request, Status};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::cluster;
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::report::{Figure, Goal, figure};
use crate::support::SOON;

/// Of each thing, unless COUNT says otherwise.
const COUNT: u8 = 100;
/// The first pod's number on its node.
const FIRST: u8 = 20;
/// Policies of the cluster, as in `policy.compile_5000_s`.
const POLICIES: usize = 500;
const PORT: u16 = 9000;
const POLICY: &str = "/apis/handfast.io/v1alpha1/namespaces/shop/handfastpolicies/policy-0";

/// `cni.add_p99_ms`, `k8s.pod_to_proof_p99_ms` and `policy.apply_p99_ms`.
pub fn measure() -> Result<Vec<Figure>> {
    let count = match std::env::var("COUNT") {
        Ok(text) => text.parse().context("COUNT")?,
        Err(_) => COUNT,
    };
    ensure!((1..=200).contains(&count), "COUNT: 1 to 200");
    if let Err(missing) = cluster::binaries() {
        eprintln!(
            "not measured: cni.add_p99_ms, k8s.pod_to_proof_p99_ms, policy.apply_p99_ms: {missing}"
        );
        return Ok(Vec::new());
    }
    let mut mesh = Mesh::start("figures").context("the machine is not fit")?;
    mesh.node(1)?;
    mesh.node(2)?;
    mesh.cluster
        .namespace("shop", &json!({}), &["server", "client"])?;
    let policies: Vec<Value> = (0..POLICIES).map(|number| policy(number, 0)).collect();
    mesh.cluster.create_all(&policies)?;
    let server = mesh.pod(0, "shop", "server", "server", &[("app", "app-0")], 10)?;
    let address = SocketAddr::new(server.address, PORT);
    let listener = server
        .workload
        .ns
        .inside(|| Ok(TcpListener::bind(address)?))?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let rounds = usize::from(count);
    Ok(vec![
        added(&mesh, count)?,
        proven(&mesh, count, address)?,
        applied(&mesh, rounds)?,
    ])
}

/// From the plugin's start to its end, for pods that the authority knows.
fn added(mesh: &Mesh, count: u8) -> Result<Figure> {
    let mut times = Vec::new();
    for number in 0..count {
        let name = format!("added-{number}");
        let labels = [("app", "app-2")];
        let uid = mesh.cluster.pod("shop", &name, "n1", "client", &labels)?;
        let node = &mesh.nodes[0];
        let pod = Pod::make(&mesh.lab, node, "shop", &name, &uid, FIRST + number)?;
        let selector = format!("k8s:pod-uid:{uid}");
        wait::until("the pod's entry", SOON, || {
            let entries = mesh.entries()?;
            let known = entries
                .iter()
                .any(|entry| entry["selectors"].to_string().contains(&selector));
            Ok(known.then_some(()))
        })?;
        let begun = Instant::now();
        let said = pod.cni(node, "ADD")?;
        times.push(begun.elapsed());
        ensure!(said.ok, "ADD: {}", said.json);
    }
    let (p99, how) = p99(times);
    let how =
        format!("the plugin's ADD, from its start to its end, for a pod that the CA knows: {how}");
    figure("cni.add_p99_ms", "ms", Goal::AtMost(20.0), vec![p99], &how)
}

/// From the request that makes a pod to its first connection with a peer on another node, which needs a proof.
fn proven(mesh: &Mesh, count: u8, server: SocketAddr) -> Result<Figure> {
    let mut times = Vec::new();
    for number in 0..count {
        let node = &mesh.nodes[1];
        let name = format!("proven-{number}");
        // What the plugins before ours make is theirs.
        let mut pod = Pod::make(&mesh.lab, node, "shop", &name, "", FIRST + number)?;
        let tag = format!("tag-{number}");
        let labels = [("app", "app-1"), ("tag", &tag)];
        let begun = Instant::now();
        pod.uid = mesh.cluster.pod("shop", &name, "n2", "client", &labels)?;
        let said = pod.cni(node, "ADD")?;
        ensure!(said.ok, "ADD: {}", said.json);
        pod.workload
            .ns
            .inside(|| Ok(TcpStream::connect_timeout(&server, SOON)?))
            .context("the first connection")?;
        times.push(begun.elapsed());
    }
    let (p99, how) = p99(times);
    let how = format!(
        "from the request that makes a pod, an identity of its own, over its entry, its ADD and its proof SVID to its \
         first TCP connection with a pod on another node whose policy requires a proof: {how}"
    );
    let goal = Goal::AtMost(500.0);
    figure("k8s.pod_to_proof_p99_ms", "ms", goal, vec![p99], &how)
}

/// From the request that changes a policy to its being in the maps of the node that it concerns.
fn applied(mesh: &Mesh, rounds: usize) -> Result<Figure> {
    let runtime = Runtime::new()?;
    let socket = mesh.nodes[0].socket();
    let mut client = runtime.block_on(Client::connect(&socket))?;
    let mut version = || -> Result<u64> {
        let status: Status = runtime.block_on(client.ask(&Request::Status))?;
        Ok(status.policy_version)
    };
    let mut times = Vec::new();
    for round in 0..rounds {
        let before = version()?;
        let changed = json!({"spec": policy(0, round + 1)["spec"]});
        let begun = Instant::now();
        mesh.cluster.patch(POLICY, &changed)?;
        // The agent answers between two steps: a version that it names is in the maps.
        while version()? <= before {
            ensure!(begun.elapsed() < SOON, "the policy is not in the maps");
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(begun.elapsed());
    }
    let (p99, how) = p99(times);
    let how = format!(
        "from before the request that changes one of {POLICIES} policies, what the API server needs included, until it \
         is in the maps of the node whose pod it selects: {how}"
    );
    figure(
        "policy.apply_p99_ms",
        "ms",
        Goal::AtMost(100.0),
        vec![p99],
        &how,
    )
}

/// The worst of a hundred, in milliseconds, and what else there is to say.
fn p99(mut times: Vec<Duration>) -> (f64, String) {
    times.sort();
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    let at = |share: usize| ms(times.get((times.len() * share).div_ceil(100).saturating_sub(1)));
    let how = format!(
        "p99 of {}, p50 {:.1} ms, longest {:.1} ms",
        times.len(),
        at(50),
        ms(times.last())
    );
    (at(99), how)
}

/// One of the policies: pods of one kind are reached by those of the next. Another revision has another port.
fn policy(number: usize, revision: usize) -> Value {
    json!({
        "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy",
        "metadata": {"name": format!("policy-{number}"), "namespace": "shop"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": format!("app-{number}")}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": format!("app-{}", number + 1)}}],
                    "authentication": {"mode": "required"},
                    "toPorts": [{"ports": [{"port": PORT.to_string(), "protocol": "TCP"}]}],
                },
                {
                    "fromEndpoints": [{"matchLabels": {"app": "monitoring"}}],
                    "toPorts": [{"ports": [{"port": (9100 + revision).to_string(), "protocol": "TCP"}]}],
                },
            ],
        },
    })
}
