//! A mesh in the lab: one authority, nodes with agents, workloads. Every step is a command a user would give.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::lab::{Host, Lab, Workload, underlay};
use super::process::{Finished, Process, command};
use super::wait;

/// The trust domain of every mesh here.
pub const TRUST_DOMAIN: &str = "demo.handfast";
/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(20);
/// WireGuard's ports (two devices).
pub const TUNNEL_PORTS: [u16; 2] = [51872, 51873];
const CA_HOST: u8 = 10;

/// The ranges that all nodes' prefixes come from.
pub fn ranges() -> Vec<IpNet> {
    PREFIX_RANGES
        .iter()
        .filter_map(|range| range.parse().ok())
        .collect()
}

const PREFIX_RANGES: [&str; 2] = ["10.77.0.0/16", "fd77::/48"];

/// The prefixes of node `number`.
fn prefixes(number: u8) -> [String; 2] {
    [
        format!("10.77.{number}.0/24"),
        format!("fd77:0:0:{number}::/64"),
    ]
}

/// The addresses of workload `index` of node `number`.
pub fn workload_addresses(number: u8, index: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 77, number, index]),
        IpAddr::from([0xfd77, 0, 0, u16::from(number), 0, 0, 0, u16::from(index)]),
    ]
}

/// The authority and what runs it.
#[derive(Debug)]
pub struct Authority {
    binary: PathBuf,
    host: Host,
    dir: PathBuf,
    socket: PathBuf,
    /// What it is served with beside what every mesh has.
    also: Vec<String>,
    server: Option<Process>,
}

impl Authority {
    /// Makes the authority's host and folder, and starts its server.
    pub fn start(lab: &Lab, binary: &Path) -> anyhow::Result<Self> {
        let host = lab.host("ca", CA_HOST)?;
        let mut authority = Self {
            binary: binary.to_owned(),
            dir: host.dir.join("data"),
            socket: host.dir.join("ca.sock"),
            host,
            also: Vec::new(),
            server: None,
        };
        let dir = authority.dir.display().to_string();
        let mut words = vec!["ca", "init", "--dir", &dir, "--trust-domain", TRUST_DOMAIN];
        for range in PREFIX_RANGES {
            words.extend(["--prefix-range", range]);
        }
        authority.cli(&words)?.success("handfast ca init")?;
        authority.serve()?;
        Ok(authority)
    }

    /// Starts the server, again after it was killed, and waits until it answers.
    pub fn serve(&mut self) -> anyhow::Result<()> {
        let server = self.host.place.spawn(
            "ca",
            command(&self.binary, &["ca", "serve"])
                .arg("--dir")
                .arg(&self.dir)
                .args(["--listen", &Self::address()])
                .arg("--admin-socket")
                .arg(&self.socket)
                .args(&self.also),
        )?;
        let server = self.server.insert(server);
        wait::until("the CA to answer", LIMIT, || {
            if !server.running() {
                bail!("handfast ca serve ended: {}", tail(&server.output(), 5));
            }
            let asked = self.host.place.run(
                command(&self.binary, &["node", "list"]).env("HANDFAST_CA_SOCKET", &self.socket),
                LIMIT,
            )?;
            Ok(asked.status.success().then_some(()))
        })
    }

    /// Serves with these words too, from the next start on.
    pub fn also(&mut self, words: &[&str]) {
        self.also
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// Where agents reach it.
    pub fn address() -> String {
        let [v4, _] = underlay(CA_HOST);
        format!("{v4}:7251")
    }

    /// The server, to be hurt.
    pub fn server(&mut self) -> anyhow::Result<&mut Process> {
        self.server.as_mut().context("the CA was never started")
    }

    /// Lets it run on when this value is gone.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        self.server()?.detach();
        Ok(())
    }

    /// Its administrative socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its data folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `handfast` on the authority's host.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<Finished> {
        let mut command = self.command(words);
        self.host.place.run(&mut command, LIMIT)
    }

    /// A registration entry for the workload in a namespace.
    pub fn entry(&self, path: &str, netns: &str, labels: &[&str]) -> anyhow::Result<()> {
        let id = spiffe_id(path);
        let selector = format!("netns:{netns}");
        let mut words = vec![
            "entry",
            "create",
            "--spiffe-id",
            &id,
            "--selector",
            &selector,
        ];
        for label in labels {
            words.extend(["--label", label]);
        }
        self.cli(&words)?.success("handfast entry create").map(drop)
    }

    /// Puts policies in force.
    pub fn apply(&self, path: &Path) -> anyhow::Result<()> {
        let path = path.display().to_string();
        self.cli(&["policy", "apply", &path])?
            .success("handfast policy apply")
            .map(drop)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command(&self.binary, words);
        command.env("HANDFAST_CA_SOCKET", &self.socket);
        command
    }
}

/// A node: its host, its folders, its agent.
#[derive(Debug)]
pub struct Node {
    binary: PathBuf,
    /// Its machine.
    pub host: Host,
    /// Its number in the lab: prefixes and underlay addresses follow from it.
    pub number: u8,
    bpf: PathBuf,
    /// What its agent is run with beside what every agent has.
    also: Vec<String>,
    agent: Option<Process>,
}

impl Node {
    /// Makes the node's host; nothing of handfast runs there yet.
    pub fn create(lab: &Lab, binary: &Path, number: u8) -> anyhow::Result<Self> {
        let short = format!("n{number}");
        let host = lab.host(&short, number)?;
        Ok(Self {
            binary: binary.to_owned(),
            bpf: lab.bpf().join(&short),
            host,
            number,
            also: Vec::new(),
            agent: None,
        })
    }

    /// Runs the agent with these words too, from the next start on.
    pub fn also(&mut self, words: &[&str]) {
        self.also
            .extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// Its name in the registry.
    pub fn name(&self) -> &str {
        &self.host.short
    }

    /// A token for it, from the authority.
    pub fn token(&self, authority: &Authority, file: &Path, ttl: &str) -> anyhow::Result<()> {
        let prefixes = prefixes(self.number);
        let [v4, v6] = underlay(self.number).map(|address| address.to_string());
        let file = file.display().to_string();
        let address = Authority::address();
        let mut words = vec!["token", "create", "--node", self.name(), "--ttl", ttl];
        for prefix in &prefixes {
            words.extend(["--prefix", prefix]);
        }
        words.extend(["--underlay", &v4, "--underlay", &v6]);
        words.extend(["--ca-address", &address, "--out", &file]);
        authority
            .cli(&words)?
            .success("handfast token create")
            .map(drop)
    }

    /// Makes it a member of the mesh.
    pub fn join(&self, authority: &Authority) -> anyhow::Result<()> {
        let file = self.host.dir.join("token.join");
        self.token(authority, &file, "10m")?;
        self.join_with(&file)?
            .success("handfast agent join")
            .map(drop)
    }

    /// Joins with a token that is there.
    pub fn join_with(&self, token: &Path) -> anyhow::Result<Finished> {
        let mut command = command(&self.binary, &["agent", "join"]);
        command.arg(token).arg("--data-dir").arg(self.data_dir());
        self.host.place.run(&mut command, LIMIT)
    }

    /// Starts the agent and waits until it answers.
    pub fn run(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.ready()
    }

    /// Starts the agent.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let agent = self.host.place.spawn(
            &format!("agent-{}", self.name()),
            command(&self.binary, &["agent", "run"])
                .arg("--data-dir")
                .arg(self.data_dir())
                .arg("--run-dir")
                .arg(self.run_dir())
                .arg("--bpf-dir")
                .arg(&self.bpf)
                .args(&self.also),
        )?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Waits until the agent answers and has heard from the CA.
    pub fn ready(&mut self) -> anyhow::Result<()> {
        let name = self.name().to_owned();
        wait::until(&format!("the agent of {name}"), LIMIT, || {
            let agent = self.agent.as_mut().context("no agent was started")?;
            if !agent.running() {
                bail!(
                    "handfast agent run ended on {name}: {}",
                    tail(&agent.output(), 5)
                );
            }
            let asked = self.cli(&["status", "--output", "json"])?;
            if !asked.status.success() {
                return Ok(None);
            }
            let status: Status = serde_json::from_str(&asked.stdout).context("read status")?;
            Ok(status.ca_connected.then_some(()))
        })
    }

    /// The agent, to be hurt.
    pub fn agent(&mut self) -> anyhow::Result<&mut Process> {
        self.agent.as_mut().context("no agent was started")
    }

    /// Lets it run on when this value is gone.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        self.agent()?.detach();
        Ok(())
    }

    /// Attaches a workload with the addresses of `index`.
    pub fn attach(&self, workload: &Workload, index: u8) -> anyhow::Result<[IpAddr; 2]> {
        let addresses = workload_addresses(self.number, index);
        let [v4, v6] = addresses.map(|address| address.to_string());
        self.cli(&[
            "endpoint",
            "add",
            "--netns",
            workload.ns.name(),
            "--name",
            &workload.short,
            "--address",
            &v4,
            "--address",
            &v6,
        ])?
        .success("handfast endpoint add")?;
        Ok(addresses)
    }

    /// Waits until the workload has its identity.
    pub fn identified(&self, name: &str) -> anyhow::Result<Endpoint> {
        wait::until(&format!("the identity of {name}"), LIMIT, || {
            let endpoints: Vec<Endpoint> = self.json(&["endpoint", "list"])?;
            Ok(endpoints
                .into_iter()
                .find(|endpoint| endpoint.name == name && endpoint.spiffe_id.is_some()))
        })
    }

    /// Runs `handfast` on this node.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<Finished> {
        self.host.place.run(&mut self.command(words), LIMIT)
    }

    /// `handfast` with these words, for this node's agent.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = command(&self.binary, words);
        command.env("HANDFAST_ADMIN_SOCKET", self.socket());
        command
    }

    /// Runs a listing and reads it.
    pub fn json<T: DeserializeOwned>(&self, words: &[&str]) -> anyhow::Result<T> {
        let what = format!("handfast {} on {}", words.join(" "), self.name());
        let mut words = words.to_vec();
        words.extend(["--output", "json"]);
        let answer = self.cli(&words)?.success(&what)?;
        serde_json::from_str(&answer.stdout)
            .with_context(|| format!("{what} printed {:?}", answer.stdout))
    }

    /// Runs an observation and reads it: one document a line.
    pub fn observed(&self, words: &[&str]) -> anyhow::Result<Vec<Verdict>> {
        let mut all = vec!["observe", "--output", "json"];
        all.extend(words);
        let answer = self.cli(&all)?.success("handfast observe")?;
        answer
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("read {line:?}")))
            .collect()
    }

    /// The agent's administrative socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("admin.sock")
    }

    /// Its pins.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.host.dir.join("data")
    }

    /// Its run folder.
    pub fn run_dir(&self) -> PathBuf {
        self.host.dir.join("run")
    }
}

/// The SPIFFE ID of a path.
pub fn spiffe_id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{path}")
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..)
        .unwrap_or_default()
        .join("\n")
}

/// What we read of `handfast status`.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// The stream from the CA is open.
    pub ca_connected: bool,
    /// The policies in force.
    pub policy_version: u64,
    /// The tunnel's kind.
    pub tunnel: String,
    /// Packets by verdict and reason.
    pub counters: std::collections::BTreeMap<String, u64>,
    /// What deserves a person's attention.
    pub alarms: Vec<Alarm>,
}

/// What we read of an alarm.
#[derive(Clone, Debug, Deserialize)]
pub struct Alarm {
    /// What is the matter.
    pub text: String,
}

impl Status {
    /// Packets that the gates counted under a verdict or reason.
    pub fn packets(&self, reason: &str) -> u64 {
        let name = format!("packets: {reason}");
        self.counters.get(&name).copied().unwrap_or_default()
    }
}

/// What we read of `handfast endpoint list`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Endpoint {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub spiffe_id: Option<String>,
    /// Peers that have confirmed its addresses.
    pub announced_to: Vec<String>,
}

/// What we read of `handfast pair list`.
#[derive(Clone, Debug, Deserialize)]
pub struct Pair {
    /// The identity on this node.
    pub local: String,
    /// The identity on the peer.
    pub remote: String,
    /// The peer.
    pub peer: String,
    /// The session's epoch.
    pub epoch: u32,
}

/// What we read of `handfast observe`.
#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    /// What happened.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// Who decided.
    pub gate: String,
    /// The source.
    pub source: IpAddr,
    /// The destination.
    pub destination: IpAddr,
}
