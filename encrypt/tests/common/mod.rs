//! Two hosts for a test: network namespaces with an underlay between them, and an agent process in each.
//! Whatever happens, nothing of it stays: namespaces, processes and folders go when the guard does.
#![allow(dead_code)] // Each test file uses its part.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

pub mod agent;
pub mod wire;

/// What the names of our namespaces begin with; the process number follows.
const PREFIX: &str = "hfe-";
/// A daemon's start, with the machine busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the tests cannot run here, if they cannot.
pub fn skipped() -> bool {
    let reason = if !is_root() {
        Some("needs root")
    } else if handfast_encrypt::probe::tun().is_err() {
        Some("no /dev/net/tun")
    } else if handfast_encrypt::probe::implementation(None).is_err() {
        Some("no wireguard-go")
    } else if handfast_encrypt::probe::nft().is_err() {
        Some("no nft")
    } else {
        None
    };
    if let Some(reason) = reason {
        println!("skipped: {reason}");
    }
    reason.is_some()
}

/// The same for tests of IPsec.
pub fn skipped_without_ipsec() -> bool {
    if !is_root() {
        println!("skipped: needs root");
        return true;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(handfast_encrypt::probe::ipsec()) {
        Ok(()) => false,
        Err(error @ handfast_encrypt::Error::NoIpsec(_)) => {
            println!("skipped: {error}");
            true
        }
        Err(error) => panic!("{error}"),
    }
}

fn is_root() -> bool {
    Path::new("/proc/self/ns/net").exists() && run("id", &["-u"]).trim() == "0"
}

/// One host.
pub struct Node {
    pub name: String,
    /// Its underlay address.
    pub underlay: &'static str,
    /// A workload's addresses, on the loopback device, IPv4 and IPv6.
    pub inside: [&'static str; 2],
    /// Its prefixes, as its node SVID would carry them.
    pub prefixes: &'static str,
    folder: tempfile::TempDir,
}

impl Node {
    fn new(
        letter: char,
        underlay: &'static str,
        inside: [&'static str; 2],
        prefixes: &'static str,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{count}{letter}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let node = Self {
            name,
            underlay,
            inside,
            prefixes,
            folder: tempfile::tempdir().unwrap(),
        };
        node.run("ip link set lo up");
        for (address, bits) in node.inside.iter().zip(["32", "128"]) {
            node.run(&format!("ip addr add {address}/{bits} dev lo"));
        }
        node
    }

    /// Brings the underlay up.
    fn wire(&self) {
        self.run(&format!("ip addr add {}/24 dev up0", self.underlay));
        self.run("ip link set up0 up");
        self.run("ip route add default dev up0");
    }

    /// A run directory whose socket path would not fit an address.
    pub fn run_dir(&self) -> PathBuf {
        self.folder
            .path()
            .join("a-run-directory-with-a-long-name-".repeat(3))
    }

    pub fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(&mut words);
        command
    }

    /// Runs and wants success.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn try_run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub fn nft(&self, script: &str) {
        let mut child = self
            .command("nft -f -")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success(), "{script}");
    }

    /// Whether the other node's workload answers, from this one's; both families.
    pub fn reaches(&self, other: &Self) -> bool {
        (0..2).all(|family| {
            let line = format!(
                "ping -c 3 -i 0.2 -W 1 -I {} {}",
                self.inside[family], other.inside[family]
            );
            let output = String::from_utf8(self.try_run(&line).stdout).unwrap();
            output.contains(" 0% packet loss")
        })
    }

    /// Process numbers of programs of that name in this namespace.
    pub fn processes(&self, program: &str) -> Vec<String> {
        run("ip", &["netns", "pids", &self.name])
            .split_whitespace()
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == program)
            })
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        remove_namespace(&self.name);
    }
}

/// The processes are those of our own namespace and nobody else's.
fn remove_namespace(name: &str) {
    for pid in run("ip", &["netns", "pids", name]).split_whitespace() {
        let _ = Command::new("kill").args(["-9", pid]).output();
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Two hosts on one wire.
pub struct Pair {
    pub a: Node,
    pub b: Node,
}

/// Three hosts on one wire: a bridge that is nobody's.
pub struct Three {
    pub a: Node,
    pub b: Node,
    pub c: Node,
    _wire: Node,
}

impl Three {
    pub fn new() -> Self {
        let Pair { a, b } = Pair::new();
        let c = Node::new(
            'c',
            "192.0.2.3",
            ["10.71.3.1", "fd71:3::1"],
            "10.71.3.0/24,fd71:3::/64",
        );
        let wire = Node::new(
            'w',
            "192.0.2.254",
            ["10.71.254.1", "fd71:fe::1"],
            "10.71.254.0/24",
        );
        a.run("ip link del up0");
        wire.run("ip link add br0 type bridge");
        wire.run("ip link set br0 up");
        for (node, port) in [(&a, "pa"), (&b, "pb"), (&c, "pc")] {
            run(
                "ip",
                &[
                    "link", "add", "up0", "netns", &node.name, "type", "veth", "peer", port,
                    "netns", &wire.name,
                ],
            );
            wire.run(&format!("ip link set {port} master br0 up"));
            node.wire();
        }
        Self {
            a,
            b,
            c,
            _wire: wire,
        }
    }
}

impl Pair {
    pub fn new() -> Self {
        sweep();
        let a = Node::new(
            'a',
            "192.0.2.1",
            ["10.71.1.1", "fd71:1::1"],
            "10.71.1.0/24,fd71:1::/64",
        );
        let b = Node::new(
            'b',
            "192.0.2.2",
            ["10.71.2.1", "fd71:2::1"],
            "10.71.2.0/24,fd71:2::/64",
        );
        run(
            "ip",
            &[
                "link", "add", "up0", "netns", &a.name, "type", "veth", "peer", "up0", "netns",
                &b.name,
            ],
        );
        for node in [&a, &b] {
            node.wire();
        }
        Self { a, b }
    }
}

/// Namespaces of a test run that was killed.
fn sweep() {
    for name in run("ip", &["netns", "list"])
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_namespace(name);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// An agent process in a node's namespace, told what to do line by line.
pub struct Agent {
    process: Child,
    input: ChildStdin,
    replies: Receiver<String>,
    events: Receiver<String>,
}

impl Agent {
    pub fn start(node: &Node) -> Self {
        Self::start_with(node, &[])
    }

    pub fn start_with(node: &Node, environment: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().unwrap();
        let line = format!(
            "{} agent_process --exact --ignored --nocapture --test-threads=1",
            program.display()
        );
        let mut process = node
            .command(&line)
            .env(agent::RUN_DIR, node.run_dir())
            .env(agent::UNDERLAY, node.underlay)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let ((reply, replies), (event, events)) = (mpsc::channel(), mpsc::channel());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix(agent::REPLY) {
                    let _ = reply.send(line.to_owned());
                } else if let Some(line) = line.strip_prefix(agent::EVENT) {
                    let _ = event.send(line.to_owned());
                }
            }
        });
        Self {
            input: process.stdin.take().unwrap(),
            process,
            replies,
            events,
        }
    }

    /// The agent's answer: `ok ...` or `error ...`.
    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.replies
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("no answer to {line}"))
    }

    /// Asks and wants success.
    pub fn tell(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        let result = answer
            .strip_prefix("ok")
            .unwrap_or_else(|| panic!("{line}: {answer}"));
        result.trim().to_owned()
    }

    /// Waits for an event that begins so.
    pub fn event(&self, start: &str) -> String {
        loop {
            let event = self
                .events
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no event {start}"));
            if event.starts_with(start) {
                return event;
            }
        }
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Two agents with their tunnel up and each other as a peer; by the kernel where it can.
pub fn connect(pair: &Pair, key_of_a: &str, key_of_b: &str) -> (Agent, Agent) {
    join(
        pair,
        [Agent::start(&pair.a), Agent::start(&pair.b)],
        key_of_a,
        key_of_b,
    )
}

/// The same with daemons, whatever the kernel has.
pub fn connect_by_daemons(pair: &Pair) -> (Agent, Agent) {
    let (mut a, mut b) = (Agent::start(&pair.a), Agent::start(&pair.b));
    a.tell("userspace");
    b.tell("userspace");
    join(pair, [a, b], "same", "same")
}

/// Two agents with IPsec up and each other as a peer.
pub fn connect_by_ipsec(pair: &Pair, secret: &str) -> (Agent, Agent) {
    let (mut a, mut b) = (Agent::start(&pair.a), Agent::start(&pair.b));
    let (name_a, name_b) = (a.tell("open-ipsec"), b.tell("open-ipsec"));
    for (agent, other) in [(&mut a, &pair.b), (&mut b, &pair.a)] {
        agent.tell("up");
        agent.tell(&format!("routes {}", other.prefixes));
    }
    a.tell(&install(&name_b, secret, &pair.b));
    b.tell(&install(&name_a, secret, &pair.a));
    (a, b)
}

fn join(pair: &Pair, agents: [Agent; 2], key_of_a: &str, key_of_b: &str) -> (Agent, Agent) {
    let [mut a, mut b] = agents;
    let (public_a, public_b) = (a.tell("open"), b.tell("open"));
    for (agent, other) in [(&mut a, &pair.b), (&mut b, &pair.a)] {
        agent.tell("up");
        agent.tell(&format!("routes {}", other.prefixes));
    }
    a.tell(&install(&public_b, key_of_a, &pair.b));
    b.tell(&install(&public_a, key_of_b, &pair.a));
    (a, b)
}

pub fn install(public_key: &str, preshared: &str, node: &Node) -> String {
    format!(
        "install {public_key} {preshared} {}:51872 {}",
        node.underlay, node.prefixes
    )
}
