//! The first connection of two identities that have not met, and the next one, against the same tunnel without gates.

use std::fmt::Write;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result};

use super::connect::{connect, drain, listen, quantile, syn_again};
use super::mesh::{LONG, Mesh, Wanted, addresses};
use crate::bare::Bare;
use crate::harness::lab::Workload;
use crate::harness::wait;
use crate::report::{Figure, Goal, figure};

const ROUNDS: usize = 5;
/// New pairs in one round.
const PAIRS: usize = 200;
/// Of so many new pairs each has a median of its own.
const PART: usize = 40;
/// The first workload's number on its node.
const FIRST: u8 = 10;

/// `node.first_conn_added_p50_ms`, `…_p99_ms`, `node.known_pair_ratio`, `node.syn_retransmissions`.
pub fn measure() -> Result<Vec<Figure>> {
    let mut mesh = Mesh::start(2)?;
    let bare = Bare::start(&mesh.lab)?;
    let plain = bare.many(&mesh.lab, u8::try_from(PAIRS)?)?;
    let plain_listeners: Vec<TcpListener> = plain
        .servers
        .iter()
        .map(|(server, _)| listen(&server.ns))
        .collect::<Result<_>>()?;
    mesh.apply(&rule("warm", "warm-s", "warm-c")?)?;
    meet_once(&mut mesh)?;
    let clients = mesh.namespaces("c", PAIRS)?;
    let servers = mesh.namespaces("s", PAIRS)?;
    let listeners: Vec<TcpListener> = servers
        .iter()
        .map(|server| listen(&server.ns))
        .collect::<Result<_>>()?;
    for (client, (_, address)) in plain.clients.iter().zip(&plain.servers) {
        connect(&client.ns, *address)?;
    }
    let (mut p50, mut p99, mut known_ratio) = (Vec::new(), Vec::new(), Vec::new());
    let before = syn_again(clients.iter().chain(&servers))?;
    for round in 0..ROUNDS {
        let ours = wanted(&clients, "c", round);
        let theirs = wanted(&servers, "s", round);
        // Of other labels each time: an agent remembers whom it has met, and proves to their like ahead.
        mesh.apply(&policies(PAIRS, round)?)?;
        mesh.attach(1, &ours)?;
        mesh.attach(2, &theirs)?;
        let (mut bare, mut first, mut known) = (Vec::new(), Vec::new(), Vec::new());
        for again in [false, true] {
            let without = plain.clients.iter().zip(&plain.servers);
            for ((client, server), (from, (_, to))) in ours.iter().zip(&theirs).zip(without) {
                let address = addresses(2, server.index);
                let address = *address.first().context("an address")?;
                bare.push(connect(&from.ns, *to)?);
                let took = connect(&client.workload.ns, address)?;
                if again { &mut known } else { &mut first }.push(took);
            }
        }
        listeners
            .iter()
            .chain(&plain_listeners)
            .try_for_each(drain)?;
        // Later ones have addresses that a workload had before: the other node is told of those ahead.
        if round == 0 {
            for (first, bare) in first.chunks(PART).zip(bare.chunks(PART)) {
                p50.push(quantile(first, 0.5)? - quantile(bare, 0.5)?);
            }
            p99.push(quantile(&first, 0.99)? - quantile(&bare, 0.99)?);
        }
        known_ratio.push(quantile(&known, 0.5)? / quantile(&bare, 0.5)?);
        eprintln!(
            "round {round}: without gates {:.3} and {:.3} ms, first {:.3} and {:.3}, known {:.3} and {:.3} (p50 and p99)",
            quantile(&bare, 0.5)?,
            quantile(&bare, 0.99)?,
            quantile(&first, 0.5)?,
            quantile(&first, 0.99)?,
            quantile(&known, 0.5)?,
            quantile(&known, 0.99)?,
        );
        mesh.detach(1, &ours)?;
        mesh.detach(2, &theirs)?;
        // The addresses rest before others may have them.
        wait::pause(Duration::from_secs(6))?;
    }
    let again = syn_again(clients.iter().chain(&servers))? - before;
    let of = format!(
        "of {PAIRS} TCP connections between workloads of two nodes, over the same through a tunnel of the same kind \
         without gates between as many other workloads, interleaved"
    );
    let first = format!(
        "the first {of}; of two hundred with identities and addresses that the other node has never heard of"
    );
    Ok(vec![
        figure(
            "node.first_conn_added_p50_ms",
            "ms",
            Goal::AtMost(1.0),
            p50,
            &first,
        )?,
        figure(
            "node.first_conn_added_p99_ms",
            "ms",
            Goal::AtMost(5.0),
            p99,
            &first,
        )?,
        figure(
            "node.known_pair_ratio",
            "ratio",
            Goal::AtMost(1.1),
            known_ratio,
            &format!("median of the second {of}"),
        )?,
        figure(
            "node.syn_retransmissions",
            "count",
            Goal::AtMost(0.0),
            vec![again as f64],
            &format!(
                "SYN and SYN-ACK segments sent again by clients and servers in {} first connections",
                ROUNDS * PAIRS
            ),
        )?,
    ])
}

/// A session between the nodes, so that what is measured is the pair and not the handshake.
fn meet_once(mesh: &mut Mesh) -> Result<()> {
    let [client, server] = ["warm-c", "warm-s"].map(|name| mesh.lab.workload(name));
    let (client, server) = (client?, server?);
    let one = |workload, name: &str| Wanted {
        workload,
        path: name.to_owned(),
        label: ("pair", name.to_owned()),
        index: 5,
    };
    mesh.attach(1, &[one(&client, "warm-c")])?;
    mesh.attach(2, &[one(&server, "warm-s")])?;
    let _listener = listen(&server.ns)?;
    let to = addresses(2, 5);
    let to = *to.first().context("an address")?;
    wait::until("the nodes' session", LONG, || {
        Ok(connect(&client.ns, to).ok())
    })?;
    Ok(())
}

fn wanted<'a>(workloads: &'a [Workload], kind: &str, round: usize) -> Vec<Wanted<'a>> {
    let each = workloads.iter().zip(FIRST..).enumerate();
    each.map(|(number, (workload, index))| Wanted {
        workload,
        path: format!("{kind}/{round}/{number}"),
        label: ("pair", format!("{kind}{round}-{number}")),
        index,
    })
    .collect()
}

/// Each server takes its own client alone, proven, and neither has anybody else: what one pair proves is of no use to
/// another, and nothing else is proven ahead of traffic.
pub fn policies(pairs: usize, round: usize) -> Result<String> {
    let mut text = rule("warm", "warm-s", "warm-c")?;
    for number in 0..pairs {
        text += &rule(
            &format!("p{number}"),
            &format!("s{round}-{number}"),
            &format!("c{round}-{number}"),
        )?;
    }
    Ok(text)
}

fn rule(name: &str, server: &str, client: &str) -> Result<String> {
    let mut text = String::new();
    write!(
        text,
        "---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: server-{name}}}
spec:
  endpointSelector: {{matchLabels: {{pair: {server}}}}}
  ingress:
    - fromEndpoints: [{{matchLabels: {{pair: {client}}}}}]
      authentication: {{mode: required}}
  egress:
    - toEndpoints: [{{matchLabels: {{pair: {client}}}}}]
      authentication: {{mode: required}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: client-{name}}}
spec:
  endpointSelector: {{matchLabels: {{pair: {client}}}}}
  ingress:
    - fromEndpoints: [{{matchLabels: {{pair: {server}}}}}]
      authentication: {{mode: required}}
"
    )?;
    Ok(text)
}
