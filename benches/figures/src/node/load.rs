//! A node's memory, idle and loaded, and how soon a restarted agent has proven everything again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::connect::{connect, listen};
use super::mesh::{LONG, Mesh, Wanted, addresses};
use crate::harness::lab::Workload;
use crate::harness::wait;
use crate::report::{Figure, Goal, figure, own_mib_of, resident_mib_of};

/// Workloads that make pairs, on each of the two nodes.
const EACH: usize = 100;
/// Workloads on the loaded node, those without pairs included.
const ENDPOINTS: usize = 200;
const PAIRS: usize = EACH * EACH;
const STORMS: usize = 6;
/// How the second of two figures of memory differs from the first.
const OWN: &str = "of that, what is no page of a file";

/// Servers and clients, proven; nobody else has anybody, so that no other pair is proven ahead of traffic.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: servers}
spec:
  endpointSelector: {matchLabels: {side: server}}
  ingress:
    - fromEndpoints: [{matchLabels: {side: client}}]
      authentication: {mode: required}
  egress:
    - toEndpoints: [{matchLabels: {side: client}}]
      authentication: {mode: required}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: clients}
spec:
  endpointSelector: {matchLabels: {side: client}}
  ingress:
    - fromEndpoints: [{matchLabels: {side: server}}]
      authentication: {mode: required}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: others}
spec:
  endpointSelector: {matchLabels: {side: other}}
  ingress:
    - fromEndpoints: [{matchLabels: {side: nobody}}]
  egress:
    - toEndpoints: [{matchLabels: {side: nobody}}]
";

/// `node.rss_idle_mib`, `node.rss_loaded_mib`, `node.storm_10k_s`.
pub fn measure() -> Result<Vec<Figure>> {
    let mut figures = idle()?;
    figures.extend(loaded()?);
    Ok(figures)
}

/// Three nodes, a workload on each, sessions from the first to both others.
fn idle() -> Result<Vec<Figure>> {
    let mut mesh = Mesh::start(3)?;
    mesh.apply(POLICY)?;
    let workloads = mesh.namespaces("w", 3)?;
    let [client, servers @ ..] = workloads.as_slice() else {
        anyhow::bail!("three workloads");
    };
    mesh.attach(1, &[wanted(client, "client", "c", 2)])?;
    let mut listeners = Vec::new();
    for (server, number) in servers.iter().zip(2..) {
        let path = format!("s{number}");
        mesh.attach(number, &[wanted(server, "server", &path, 2)])?;
        listeners.push(listen(&server.ns)?);
        let to = addresses(number, 2);
        let to = *to.first().context("an address")?;
        wait::until("a connection", LONG, || Ok(connect(&client.ns, to).ok()))?;
    }
    let sessions = mesh.status(1)?.sessions;
    ensure!(sessions == 2, "{sessions} sessions");
    let [resident, own] = settled(&mut mesh)?;
    let how = "resident memory of the agent of a node with 2 live sessions, 1 workload and 2 pairs, the least in 5 s \
               after 15 s of rest";
    Ok(vec![
        figure(
            "node.rss_idle_mib",
            "MiB",
            Goal::AtMost(14.0),
            resident,
            how,
        )?,
        figure("node.rss_idle_own_mib", "MiB", Goal::None, own, OWN)?,
    ])
}

fn loaded() -> Result<Vec<Figure>> {
    let mut mesh = Mesh::start(2)?;
    mesh.apply(POLICY)?;
    let clients = mesh.namespaces("c", EACH)?;
    let others = mesh.namespaces("o", ENDPOINTS - EACH)?;
    let servers = mesh.namespaces("s", EACH)?;
    let all = |workloads: &'_ [Workload], side: &'static str, first: u8| -> Vec<(u8, String)> {
        let numbered = (first..).take(workloads.len());
        numbered
            .map(|index| (index, format!("{side}/{index}")))
            .collect()
    };
    for (number, workloads, side, first) in [
        (1, &clients, "client", 2),
        (1, &others, "other", 110),
        (2, &servers, "server", 2),
    ] {
        let named = all(workloads, side, first);
        let orders: Vec<Wanted> = workloads
            .iter()
            .zip(&named)
            .map(|(workload, (index, path))| wanted(workload, side, path, *index))
            .collect();
        mesh.attach(number, &orders)?;
    }
    let server = servers.first().context("a server")?;
    let client = clients.first().context("a client")?;
    let _listener = listen(&server.ns)?;
    let to = addresses(2, 2);
    let to = *to.first().context("an address")?;
    let start = Instant::now();
    wait::until("a connection", LONG, || Ok(connect(&client.ns, to).ok()))?;
    proven(&mesh, 1)?;
    proven(&mesh, 2)?;
    eprintln!("{PAIRS} pairs, the first time: {:?}", start.elapsed());
    let [resident, own] = settled(&mut mesh)?;

    let mut storms = Vec::new();
    for storm in 0..STORMS {
        let (hurt, other) = if storm % 2 == 0 { (1, 2) } else { (2, 1) };
        mesh.node_mut(hurt)?.agent()?.kill();
        let start = Instant::now();
        mesh.node_mut(hurt)?.launch()?;
        proven(&mesh, hurt)?;
        let took = start.elapsed();
        anew(&mesh, hurt)?;
        anew(&mesh, other)?;
        eprintln!(
            "storm {storm}: {took:?}, on both nodes {:?}",
            start.elapsed()
        );
        if storm > 0 {
            storms.push(took.as_secs_f64());
        }
    }
    Ok(vec![
        figure(
            "node.rss_loaded_mib",
            "MiB",
            Goal::AtMost(40.0),
            resident,
            &format!(
                "resident memory of the agent of a node with {ENDPOINTS} workloads and {PAIRS} pairs, the least in 5 s \
                 after 15 s of rest"
            ),
        )?,
        figure("node.rss_loaded_own_mib", "MiB", Goal::None, own, OWN)?,
        figure(
            "node.storm_10k_s",
            "s",
            Goal::AtMost(2.0),
            storms,
            &format!(
                "from the start of an agent that was killed until all of its {PAIRS} pairs ({EACH} identities on each \
                 of two nodes) are proven anew in a new session"
            ),
        )?,
    ])
}

fn wanted<'a>(workload: &'a Workload, side: &'static str, path: &str, index: u8) -> Wanted<'a> {
    Wanted {
        workload,
        path: path.to_owned(),
        label: ("side", side.to_owned()),
        index,
    }
}

/// Waits until an agent says that it has proven all pairs since it was started.
fn proven(mesh: &Mesh, number: u8) -> Result<()> {
    wait::until("all pairs", LONG, || {
        let status = mesh.status(number).ok();
        Ok(status.filter(|status| status.pairs >= PAIRS).map(drop))
    })
}

/// Waits until a node's kernel has all pairs under its newest epoch.
fn anew(mesh: &Mesh, number: u8) -> Result<()> {
    wait::until("all pairs of the new session", LONG, || {
        let pairs = mesh.pairs(number)?;
        let remote = || {
            let all = pairs.iter().map(|detail| &detail.pair);
            all.filter(|pair| pair.peer != "local")
        };
        let newest = remote().map(|pair| pair.epoch).max();
        let fresh = remote().filter(|pair| Some(pair.epoch) == newest).count();
        Ok((fresh >= PAIRS).then_some(()))
    })
}

/// Resident memory of the first node's agent when it has given back what it needed for a moment, and what of that is
/// its own: not pages of the program's file, which all that run it share and the kernel may drop.
fn settled(mesh: &mut Mesh) -> Result<[Vec<f64>; 2]> {
    // Its heap is given back every ten seconds.
    wait::pause(Duration::from_secs(15))?;
    let pid = mesh.node_mut(1)?.agent()?.id().to_string();
    let (mut least, mut least_own) = (f64::MAX, f64::MAX);
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        least = least.min(resident_mib_of(&pid)?);
        least_own = least_own.min(own_mib_of(&pid)?);
        wait::pause(Duration::from_millis(200))?;
    }
    Ok([vec![least], vec![least_own]])
}
