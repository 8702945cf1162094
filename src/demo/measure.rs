//! How the steps measure: with programs that know nothing of handfast, and with the kernel's counters.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::harness::capture::{Capture, FlowWatch};
use super::harness::counters::{Arrivals, Retransmissions};
use super::harness::lab::Workload;
use super::harness::mesh::{Node, Pair, tail};
use super::harness::process::{Process, command};
use super::harness::wait;
use super::stage::{SERVICE, Stage};

/// Packets that the gates of both nodes have held so far.
pub fn held(stage: &Stage) -> anyhow::Result<u64> {
    let mut sum = 0;
    for node in [&stage.n1, &stage.n2] {
        sum += stage.status(node)?.packets("held");
    }
    Ok(sum)
}

/// Gets the page and checks it. Returns the time that the connect took.
pub fn fetch(client: &Workload, address: IpAddr, page: &str) -> anyhow::Result<Duration> {
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
pub fn attempt(client: &Workload, address: IpAddr) -> anyhow::Result<Option<(String, Duration)>> {
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
pub fn download(stage: &Stage, name: &str) -> anyhow::Result<Process> {
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
pub fn steady_ping(stage: &Stage, name: &str) -> anyhow::Result<Process> {
    let [_, v6] = stage.server_addresses.map(|address| address.to_string());
    let words = ["-i", "0.01", "-W", "1", &v6];
    stage.good.place.spawn(name, &mut command("ping", &words))
}

/// Ends it. Returns how many were sent and how many were answered.
pub fn end_ping(mut ping: Process) -> anyhow::Result<(u64, u64)> {
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
pub fn running(stage: &mut Stage) -> bool {
    stage.programs.last_mut().is_some_and(Process::running)
}

/// Watches what comes into the right client's namespace from the server, by whatever address.
pub fn watch_download(stage: &Stage) -> anyhow::Result<Capture<FlowWatch>> {
    let sources = [SERVICE, stage.server_addresses].concat();
    Capture::start(&stage.good.ns, FlowWatch::new(&sources))
}

/// Waits for more of the download than any other traffic here amounts to.
pub fn flowing(flow: &Capture<FlowWatch>, limit: Duration) -> anyhow::Result<()> {
    let start = flow.with(|flow| flow.bytes);
    wait::until("the download to go on", limit, || {
        Ok((flow.with(|flow| flow.bytes) > start + 500_000).then_some(()))
    })
}

/// Fails if the workload has sent a SYN twice since.
pub fn no_syn_again(workload: &Workload, before: Retransmissions) -> anyhow::Result<()> {
    let since = Retransmissions::read(&workload.ns)?.since(before);
    ensure!(
        since.syn == 0,
        "{}: {} SYN retransmissions",
        workload.short,
        since.syn
    );
    Ok(())
}

/// The wrong client's packets that have come into the server's namespace.
pub fn wrong_arrivals(stage: &Stage) -> anyhow::Result<u64> {
    Arrivals::again(&stage.server.place).packets("wrong")
}

/// Why packets from an address were dropped, as `handfast observe` of either node tells.
pub fn drop_reason(stage: &Stage, source: IpAddr) -> anyhow::Result<String> {
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

/// The pair of two identities in a node's table.
pub fn find_pair(node: &Node, local: &str, remote: &str) -> anyhow::Result<Pair> {
    let pairs: Vec<Pair> = node.json(&["pair", "list"])?;
    pairs
        .into_iter()
        .find(|pair| pair.local == local && pair.remote == remote)
        .with_context(|| format!("{} has no pair {local} with {remote}", node.name()))
}

/// What we read of `iperf3 -J`.
#[derive(Deserialize)]
pub struct Iperf {
    #[serde(rename = "sum_received")]
    /// What the other end received.
    pub received: Option<Sum>,
    /// Of datagrams, the sum.
    pub sum: Option<Sum>,
}

/// One of iperf3's sums.
#[derive(Deserialize)]
pub struct Sum {
    /// The rate.
    pub bits_per_second: f64,
    /// What was lost, of datagrams.
    pub lost_percent: Option<f64>,
}

#[derive(Deserialize)]
struct IperfOutput {
    end: Iperf,
}

/// Runs an iperf3 client as the right client.
pub fn iperf(stage: &Stage, words: &[&str]) -> anyhow::Result<Iperf> {
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

/// The URL of an address.
pub fn url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    }
}

/// The last part of a SPIFFE ID.
pub fn path(spiffe_id: &str) -> &str {
    spiffe_id.rsplit('/').next().unwrap_or(spiffe_id)
}

/// Milliseconds, for people.
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
