//! The steps of the demonstration, in their order. Each returns the facts it saw, or why they are not as claimed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::harness::capture::{Capture, FlowWatch};
use super::harness::counters::{Arrivals, Retransmissions};
use super::harness::lab::Workload;
use super::harness::mesh::{Node, Pair, tail};
use super::harness::process::{Process, command};
use super::harness::wait;
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
    let held = held(stage)?;
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
        "no WireGuard packet was seen on the underlay"
    );
    ensure!(
        clear == 0,
        "{clear} packets were seen in clear on the underlay"
    );
    let held = self::held(stage)? - held;
    Ok(format!(
        "first connect between two nodes that had no session yet {} ({held} packets held), \
         then IPv6 {}; 0 SYN retransmissions; {tunnelled} WireGuard packets, 0 in clear",
        ms(first),
        ms(second)
    ))
}

fn right_client(stage: &mut Stage) -> anyhow::Result<String> {
    stage.apply_example()?;
    // The instrument stands before the wrong client can send its first packet.
    let bad = super::harness::mesh::workload_addresses(1, INDEX_BAD);
    Arrivals::watch(&stage.server.place, &[("wrong", &bad)])?;
    let held = held(stage)?;
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
    let held = self::held(stage)? - held;
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

/// Packets that the gates of both nodes have held so far.
fn held(stage: &Stage) -> anyhow::Result<u64> {
    let mut sum = 0;
    for node in [&stage.n1, &stage.n2] {
        sum += stage.status(node)?.packets("held");
    }
    Ok(sum)
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
            "only {} WireGuard packets were seen",
            wire.tunnelled
        );
        Ok(format!(
            "{} frames captured from before the first agent to now, none missed: {} WireGuard, \
             0 with a workload's address, 0 in an encapsulation, 0 with the page's text; \
             the wrong client's packets in the server's namespace all the while: 0",
            wire.frames, wire.tunnelled
        ))
    })
}

/// Gets the page and checks it. Returns the time that the connect took.
fn fetch(client: &Workload, address: IpAddr, page: &str) -> anyhow::Result<Duration> {
    let got = attempt(client, address)?
        .with_context(|| format!("{} could not connect to {}", client.short, url(address)))?;
    ensure!(
        got.0 == page,
        "{} answered something else: {:?}",
        url(address),
        got.0
    );
    Ok(got.1)
}

/// Tries to get the page: what came, and the time that the connect took.
fn attempt(client: &Workload, address: IpAddr) -> anyhow::Result<Option<(String, Duration)>> {
    let url = url(address);
    let words = [
        "-sS",
        "-g",
        "--noproxy",
        "*",
        "-m",
        "5",
        "-w",
        "\n%{time_connect}",
        &url,
    ];
    let said = client
        .place
        .run(&mut command("curl", &words), Duration::from_secs(10))?;
    if !said.status.success() {
        return Ok(None);
    }
    let (page, time) = said
        .stdout
        .rsplit_once('\n')
        .context("curl printed no time")?;
    Ok(Some((
        page.to_owned(),
        Duration::from_secs_f64(time.parse()?),
    )))
}

/// Starts a download that will not end by itself; slow enough to leave the processors to others.
fn download(stage: &Stage, name: &str) -> anyhow::Result<Process> {
    let url = format!("{}big", url(SERVICE[0]));
    let words = [
        "-sS",
        "-g",
        "--noproxy",
        "*",
        "--limit-rate",
        "4M",
        "-o",
        "/dev/null",
        &url,
    ];
    stage.good.place.spawn(name, &mut command("curl", &words))
}

/// Starts a ping from the right client to the server, a hundred a second (IPv6).
fn steady_ping(stage: &Stage, name: &str) -> anyhow::Result<Process> {
    let [_, v6] = stage.server_addresses.map(|address| address.to_string());
    let words = ["-i", "0.01", "-W", "1", &v6];
    stage.good.place.spawn(name, &mut command("ping", &words))
}

/// Ends it. Returns how many were sent and how many were answered.
fn end_ping(mut ping: Process) -> anyhow::Result<(u64, u64)> {
    ping.interrupt(Duration::from_secs(5))?;
    let output = ping.output();
    let numbers: Vec<u64> = output
        .lines()
        .rfind(|line| line.contains("packets transmitted"))
        .context("ping printed no statistics")?
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers.as_slice() {
        [sent, received, ..] => Ok((*sent, *received)),
        _ => bail!(
            "ping's statistics were not understood: {}",
            tail(&output, 3)
        ),
    }
}

/// True while the last program started, the download, runs.
fn running(stage: &mut Stage) -> bool {
    stage.programs.last_mut().is_some_and(Process::running)
}

/// Watches what comes into the right client's namespace from the server, by whatever address.
fn watch_download(stage: &Stage) -> anyhow::Result<Capture<FlowWatch>> {
    let sources = [SERVICE, stage.server_addresses].concat();
    Capture::start(&stage.good.ns, FlowWatch::new(&sources))
}

/// Waits for more of the download than any other traffic here amounts to.
fn flowing(flow: &Capture<FlowWatch>, limit: Duration) -> anyhow::Result<()> {
    let start = flow.with(|flow| flow.bytes);
    wait::until("the download to go on", limit, || {
        Ok((flow.with(|flow| flow.bytes) > start + 500_000).then_some(()))
    })
}

fn no_syn_again(workload: &Workload, before: Retransmissions) -> anyhow::Result<()> {
    let since = Retransmissions::read(&workload.ns)?.since(before);
    ensure!(
        since.syn == 0,
        "{}: {} SYN retransmissions",
        workload.short,
        since.syn
    );
    Ok(())
}

fn wrong_arrivals(stage: &Stage) -> anyhow::Result<u64> {
    Arrivals::again(&stage.server.place).packets("wrong")
}

/// Why packets from an address were dropped, as `handfast observe` of either node tells.
fn drop_reason(stage: &Stage, source: IpAddr) -> anyhow::Result<String> {
    let text = source.to_string();
    wait::until(
        "handfast observe to show the drop",
        Duration::from_secs(3),
        || {
            for node in [&stage.n2, &stage.n1] {
                let seen = node.observed(&["--verdict", "dropped", "--from", &text])?;
                if let Some(verdict) = seen.iter().rfind(|verdict| verdict.source == source) {
                    return Ok(Some(format!(
                        "{} says of {source} at {}: {}",
                        node.name(),
                        verdict.gate,
                        verdict.reason
                    )));
                }
            }
            Ok(None)
        },
    )
}

fn find_pair(node: &Node, local: &str, remote: &str) -> anyhow::Result<Pair> {
    let pairs: Vec<Pair> = node.json(&["pair", "list"])?;
    pairs
        .into_iter()
        .find(|pair| pair.local == local && pair.remote == remote)
        .with_context(|| format!("{} has no pair {local} with {remote}", node.name()))
}

/// What we read of `iperf3 -J`.
#[derive(Deserialize)]
struct Iperf {
    #[serde(rename = "sum_received")]
    received: Option<Sum>,
    sum: Option<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    bits_per_second: f64,
    lost_percent: Option<f64>,
}

#[derive(Deserialize)]
struct IperfOutput {
    end: Iperf,
}

fn iperf(stage: &Stage, words: &[&str]) -> anyhow::Result<Iperf> {
    let mut all = vec!["-J", "--connect-timeout", "3000"];
    all.extend(words);
    let said = stage
        .good
        .place
        .run(&mut command("iperf3", &all), Duration::from_secs(15))?
        .success("iperf3")?;
    let output: IperfOutput = serde_json::from_str(&said.stdout).context("read iperf3's output")?;
    Ok(output.end)
}

fn url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    }
}

fn path(spiffe_id: &str) -> &str {
    spiffe_id.rsplit('/').next().unwrap_or(spiffe_id)
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
