//! The steps of the demonstration, in their order. Each returns the facts it saw, or why they are not as claimed.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::harness::counters::{Arrivals, Retransmissions};
use super::harness::mesh::{Node, Pair};
use super::harness::process::{Process, command};
use super::harness::wait;
use super::measure::{
    attempt, download, drop_reason, end_ping, fetch, find_pair, flowing, held, iperf, ms,
    no_syn_again, path, running, steady_ping, url, watch_download, wrong_arrivals,
};
use super::stage::{SERVICE, Stage};

/// One step.
pub struct Step {
    /// What it shows.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&mut Stage) -> anyhow::Result<String>,
}

/// All steps. The capture is judged last, since it must have seen them all.
pub const ALL: &[Step] = &[
    Step {
        name: "a. no policy: traffic flows, encrypted",
        run: without_policy,
    },
    Step {
        name: "b. policy: the right client gets through",
        run: right_client,
    },
    Step {
        name: "b. policy: the wrong client does not",
        run: wrong_client,
    },
    Step {
        name: "c. the pair is in both nodes' tables",
        run: pair_tables,
    },
    Step {
        name: "e. TCP, UDP and ICMP through it",
        run: protocols,
    },
    Step {
        name: "f. agents killed under a download",
        run: agent_restarts,
    },
    Step {
        name: "g. revoke cuts a running download",
        run: revocation,
    },
    Step {
        name: "d. nothing in clear on the underlay",
        run: underlay,
    },
];

const INDEX_GOOD: u8 = 3;
const INDEX_BAD: u8 = 4;
/// What a revocation may take (DESIGN.md, safety property 6).
const CUT_WITHIN: Duration = Duration::from_secs(1);

fn without_policy(stage: &mut Stage) -> anyhow::Result<String> {
    let before = Retransmissions::read(&stage.guest.ns)?;
    let held_before = held(stage)?;
    let tunnelled = stage.wire.with(|wire| wire.tunnelled);
    let [v4, v6] = stage.server_addresses;
    let first = fetch(&stage.guest, v4, &stage.secret)?;
    let second = fetch(&stage.guest, v6, &stage.secret)?;
    no_syn_again(&stage.guest, before)?;
    let (tunnelled, clear) = stage
        .wire
        .with(|wire| (wire.tunnelled - tunnelled, wire.clear + wire.secrets));
    ensure!(
        tunnelled > 0,
        "no encrypted packet was seen on the underlay"
    );
    ensure!(
        clear == 0,
        "{clear} packets were seen in clear on the underlay"
    );
    let held = held(stage)? - held_before;
    Ok(format!(
        "first connect between two nodes that had no session yet {} ({held} packets held), \
         then IPv6 {}; 0 SYN retransmissions; {tunnelled} packets in the tunnel, 0 in clear",
        ms(first),
        ms(second)
    ))
}

fn right_client(stage: &mut Stage) -> anyhow::Result<String> {
    stage.apply_example()?;
    // The instrument stands before the wrong client can send its first packet.
    let bad = super::harness::mesh::workload_addresses(1, INDEX_BAD);
    Arrivals::watch(&stage.server.place, &[("wrong", &bad)])?;
    let held_before = held(stage)?;
    // Not waited for: no identity, no announcement, no pair when the first packet is sent.
    stage.n1.attach(&stage.good, INDEX_GOOD)?;
    let before = [&stage.good, &stage.server].map(|w| Retransmissions::read(&w.ns));
    let mut times = Vec::new();
    // The very first packet goes to the service's address: held, translated, given back.
    for address in SERVICE.into_iter().chain(stage.server_addresses) {
        times.push(fetch(&stage.good, address, &stage.secret)?);
    }
    for (workload, before) in [&stage.good, &stage.server].into_iter().zip(before) {
        no_syn_again(workload, before?)?;
    }
    let held = held(stage)? - held_before;
    let times: Vec<_> = times.into_iter().map(ms).collect();
    let how = match held {
        0 => "the pair was proven before the first packet came".to_owned(),
        held => format!("{held} packets were held until it was proven"),
    };
    Ok(format!(
        "attached and connected at once, on a pair never seen: by the service's address, then \
         its IPv6 one, then directly: {}; {how}; 0 SYN retransmissions at client and server",
        times.join(", ")
    ))
}

fn wrong_client(stage: &mut Stage) -> anyhow::Result<String> {
    let bad = stage.n1.attach(&stage.bad, INDEX_BAD)?;
    stage.n1.identified("bad")?;
    let [v4, v6] = stage.server_addresses;
    let urls = [v4, v6, SERVICE[0], SERVICE[1]].map(url);
    let mut attempts = Vec::new();
    for url in &urls {
        attempts.push(stage.bad.place.spawn(
            "wrong-curl",
            &mut command("curl", &["-sS", "-g", "--noproxy", "*", "-m", "2", url]),
        )?);
    }
    for address in [v4, v6].map(|a| a.to_string()) {
        attempts.push(stage.bad.place.spawn(
            "wrong-ping",
            &mut command("ping", &["-c", "3", "-i", "0.3", "-W", "1", &address]),
        )?);
    }
    let count = attempts.len();
    for mut attempt in attempts {
        let status = attempt.wait(Duration::from_secs(8))?;
        ensure!(
            !status.success(),
            "{} of the wrong client got through",
            attempt.name()
        );
    }
    let arrived = wrong_arrivals(stage)?;
    ensure!(
        arrived == 0,
        "{arrived} packets of the wrong client reached the server's namespace"
    );
    let reasons = bad
        .iter()
        .map(|address| drop_reason(stage, *address))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(format!(
        "{count} attempts of curl and ping failed, 0 packets in the server's namespace; {}",
        reasons.join("; ")
    ))
}

fn pair_tables(stage: &mut Stage) -> anyhow::Result<String> {
    let (good, server) = (stage.id(&stage.good), stage.id(&stage.server));
    let one = find_pair(&stage.n1, &good, &server)?;
    let two = find_pair(&stage.n2, &server, &good)?;
    ensure!(
        one.peer == stage.n2.name() && two.peer == stage.n1.name(),
        "the pair is bound to other peers: {} and {}",
        one.peer,
        two.peer
    );
    let show = |node: &Node, pair: &Pair| {
        format!(
            "{}: {} with {} on {} (epoch {})",
            node.name(),
            path(&pair.local),
            path(&pair.remote),
            pair.peer,
            pair.epoch
        )
    };
    Ok(format!(
        "{}; {}",
        show(&stage.n1, &one),
        show(&stage.n2, &two)
    ))
}

fn protocols(stage: &mut Stage) -> anyhow::Result<String> {
    stage.apply_more_protocols()?;
    let server = stage.server.place.spawn(
        "iperf3-server",
        &mut command("iperf3", &["-s", "--forceflush"]),
    )?;
    stage.programs.push(server);
    let [v4, v6] = stage.server_addresses.map(|address| address.to_string());
    wait::until("iperf3's server", Duration::from_secs(5), || {
        let said = stage
            .programs
            .last()
            .map(Process::output)
            .unwrap_or_default();
        Ok(said.contains("listening").then_some(()))
    })?;
    let tcp = iperf(stage, &["-c", &v4, "-t", "2"])?;
    let tcp = tcp.received.context("iperf3 printed no received sum")?;
    let udp = iperf(
        stage,
        &["-c", &v6, "-u", "-b", "20M", "-l", "1000", "-t", "1"],
    )?;
    let udp = udp.sum.context("iperf3 printed no sum")?;
    let lost = udp.lost_percent.unwrap_or(100.0);
    ensure!(
        tcp.bits_per_second > 1e6,
        "TCP: only {:.0} bit/s",
        tcp.bits_per_second
    );
    ensure!(lost < 1.0, "UDP: {lost:.1} % of the datagrams were lost");
    for address in [&v4, &v6] {
        stage
            .good
            .place
            .run(
                &mut command("ping", &["-c", "5", "-i", "0.1", "-W", "1", address]),
                Duration::from_secs(5),
            )?
            .success("ping")?;
    }
    Ok(format!(
        "TCP {:.0} Mbit/s (IPv4), UDP {:.0} Mbit/s with {lost:.1} % lost (IPv6), \
         ping 5 of 5 on both families",
        tcp.bits_per_second / 1e6,
        udp.bits_per_second / 1e6
    ))
}

fn agent_restarts(stage: &mut Stage) -> anyhow::Result<String> {
    let flow = watch_download(stage)?;
    let download = download(stage, "download-restart")?;
    stage.programs.push(download);
    flowing(&flow, Duration::from_secs(5))?;
    let before = stage.n1.identified("good")?;
    let retransmissions = Retransmissions::read(&stage.good.ns)?;
    let pings = steady_ping(stage, "ping-restart")?;
    flow.with(|flow| flow.longest_gap = Duration::ZERO);
    for number in [1, 2] {
        let node = if number == 1 {
            &mut stage.n1
        } else {
            &mut stage.n2
        };
        node.agent()?.kill();
        let bytes = flow.with(|flow| flow.bytes);
        wait::pause(Duration::from_millis(700))?;
        let meanwhile = flow.with(|flow| flow.bytes) - bytes;
        ensure!(
            meanwhile > 500_000,
            "node {number}: the download stood still while the agent was dead"
        );
        node.run()?;
        flowing(&flow, Duration::from_secs(3))?;
    }
    let after = stage.n1.identified("good")?;
    ensure!(
        (after.id, &after.spiffe_id) == (before.id, &before.spiffe_id),
        "the endpoint was {before:?} and is {after:?}"
    );
    // Sessions have come again by themselves: the pair is proven in a successor.
    let (good, server) = (stage.id(&stage.good), stage.id(&stage.server));
    let pair = wait::until(
        "the pair after the restarts",
        Duration::from_secs(10),
        || Ok(find_pair(&stage.n1, &good, &server).ok()),
    )?;
    let fresh = fetch(&stage.good, SERVICE[0], &stage.secret)?;
    flowing(&flow, Duration::from_secs(3))?;
    no_syn_again(&stage.good, retransmissions)?;
    ensure!(running(stage), "curl ended its download");
    let gap = flow.with(|flow| flow.longest_gap);
    let (sent, received) = end_ping(pings)?;
    ensure!(
        received + 1 >= sent,
        "of {sent} pings during the restarts only {received} were answered"
    );
    Ok(format!(
        "kill -9 of both agents in turn: the same TCP connection went on, {received} of {sent} \
         pings beside it were answered, longest pause {}; endpoint {} is still {}; pair in epoch \
         {}; a new connect {}",
        ms(gap),
        after.id,
        path(after.spiffe_id.as_deref().unwrap_or_default()),
        pair.epoch,
        ms(fresh)
    ))
}

fn revocation(stage: &mut Stage) -> anyhow::Result<String> {
    let flow = watch_download(stage)?;
    flowing(&flow, Duration::from_secs(5))?;
    ensure!(running(stage), "the download is not running");
    // Beside the download, whose packets come in bursts: something every 10 ms.
    let _pings = steady_ping(stage, "ping-revoke")?;
    wait::pause(Duration::from_millis(200))?;
    let start = Instant::now();
    stage
        .authority
        .cli(&[
            "revoke",
            "--spiffe-id",
            &stage.id(&stage.good),
            "--reason",
            "demonstration",
        ])?
        .success("handfast revoke")?;
    let command_took = start.elapsed();
    wait::pause(Duration::from_millis(2500))?;
    let last = flow.with(|flow| flow.last).context("no packet was seen")?;
    let cut = last.saturating_duration_since(start);
    ensure!(
        cut <= CUT_WITHIN,
        "packets still arrived {} after the command was given",
        ms(cut)
    );
    let again = attempt(&stage.good, stage.server_addresses[0])?;
    ensure!(again.is_none(), "the revoked client could connect again");
    Ok(format!(
        "last packet delivered {} after the command was given (it took {}); \
         nothing in the 2 s after; a new connect fails",
        ms(cut),
        ms(command_took)
    ))
}

fn underlay(stage: &mut Stage) -> anyhow::Result<String> {
    let wrong = wrong_arrivals(stage)?;
    ensure!(
        wrong == 0,
        "{wrong} packets of the wrong client reached the server's namespace"
    );
    let lost = stage.wire.lost()?;
    stage.wire.with(|wire| {
        ensure!(
            wire.clear == 0,
            "{} packets in clear:\n{}",
            wire.clear,
            wire.describe_findings()
        );
        ensure!(
            wire.secrets == 0,
            "the page was seen {} times on the underlay",
            wire.secrets
        );
        ensure!(
            lost == 0,
            "the capture missed {lost} frames, so it proves nothing"
        );
        ensure!(
            wire.tunnelled > 1000,
            "only {} packets were seen in the tunnel",
            wire.tunnelled
        );
        Ok(format!(
            "{} frames captured from before the first agent to now, none missed: {} in the tunnel, \
             0 with a workload's address, 0 in an encapsulation, 0 with the page's text; \
             the wrong client's packets in the server's namespace all the while: 0",
            wire.frames, wire.tunnelled
        ))
    })
}
