//! Two nodes and a workload on each, joined by plain links: with gates on all of them, or without.
//!
//! The link between the nodes stands where a tunnel would, so that what is measured is what gates cost, and not
//! encryption. Links have permanent neighbours: nothing but the traffic crosses them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use handfast_bpf::*;

use super::{Pins, lab::Namespace, run::*};

const IPERF: u16 = 5201;
const ECHO: u16 = 7000;
const GREET: u16 = 7001;
const FAR: &str = "10.2.0.9";

/// One of the two nodes, with its datapath.
struct Side {
    node: Arc<Namespace>,
    kernel: Arc<Kernel>,
    workload: u32,
    tunnel: u32,
    _pins: Pins,
}

/// The whole of it.
pub struct Lane {
    near: Namespace,
    _far: Namespace,
    sides: [Side; 2],
    servers: Vec<Child>,
    stop: Arc<AtomicBool>,
}

impl Lane {
    /// Without gates at first; nothing where it cannot run.
    pub fn new() -> Option<Self> {
        let [near, far] = [(); 2].map(|()| Namespace::new());
        let nodes = [(); 2].map(|()| Arc::new(Namespace::new()));
        connect(&nodes);
        attach(&nodes[0], &near, "10.1.0.7", "10.2.0.0/16", "169.254.2.2");
        attach(&nodes[1], &far, FAR, "10.1.0.0/16", "169.254.2.1");
        let [first, second] = &nodes;
        let sides = [
            Side::new(
                "lane-near",
                first,
                ("10.1.0.7", "10.1.0.0/16"),
                (FAR, "10.2.0.0/16"),
            )?,
            Side::new(
                "lane-far",
                second,
                (FAR, "10.2.0.0/16"),
                ("10.1.0.7", "10.1.0.0/16"),
            )?,
        ];
        for end in [&near, &far] {
            // A port is free again at once: what is counted is how fast connections are made, not remembered.
            end.sysctl("ipv4/tcp_max_tw_buckets", "64");
            end.sysctl("ipv4/ip_local_port_range", "1024 65000");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let iperf = far.run(|| {
            Command::new("iperf3")
                .args(["-s", "-p", &IPERF.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        let Ok(iperf) = iperf else {
            eprintln!("skipped: no iperf3");
            return None;
        };
        for (port, serve) in [(ECHO, echo as fn(TcpStream)), (GREET, greet)] {
            let listener = far.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
            thread::spawn(move || listener.incoming().flatten().for_each(serve));
        }
        collect(&sides, &stop);
        Some(Self {
            near,
            _far: far,
            sides,
            servers: vec![iperf],
            stop,
        })
    }

    /// Puts gates on every link of both nodes, or takes them away.
    pub fn set_gates(&self, on: bool) {
        self.sides.iter().for_each(|side| side.set_gates(on));
        // The kernel lets go of a link some time after its pin is gone.
        thread::sleep(Duration::from_millis(150));
    }

    /// How many packets gates have let through so far.
    pub fn passed(&self) -> u64 {
        let passed = |side: &Side| side.kernel.tables().counter(Reason::Passed).unwrap();
        self.sides.iter().map(passed).sum()
    }

    /// Why gates have dropped packets, and how many.
    pub fn drops(&self) -> Vec<(Reason, u64)> {
        let counters = self
            .sides
            .iter()
            .map(|side| side.kernel.tables().counters());
        counters
            .flat_map(Result::unwrap)
            .filter(|(reason, count)| *reason as u16 >= 10 && *count > 0)
            .collect()
    }

    /// Megabits of TCP in a second, as the far end received them.
    pub fn throughput(&self, length: Duration) -> f64 {
        let seconds = length.as_secs_f64().to_string();
        let port = IPERF.to_string();
        let run = move || {
            let command = &mut Command::new("iperf3");
            let command = command.args(["-c", FAR, "-p", &port, "-t", &seconds, "-J"]);
            // It may not listen yet.
            (0..50)
                .map(|_| String::from_utf8(command.output().unwrap().stdout).unwrap())
                .inspect(|_| thread::sleep(Duration::from_millis(50)))
                .find(|text| text.contains("\"sum_received\""))
        };
        let text = self.near.run(run).expect("iperf3 answers");
        let received = text
            .split("\"sum_received\"")
            .nth(1)
            .unwrap_or_else(|| panic!("iperf3: {text}"));
        let rate = received.split("\"bits_per_second\":").nth(1).unwrap();
        let digits: String = rate
            .trim()
            .chars()
            .take_while(|c| c.is_ascii_digit() || ".e+".contains(*c))
            .collect();
        digits.parse::<f64>().unwrap() / 1e6
    }

    /// New connections in a second, one after the other: opened, a byte received, closed.
    pub fn connections(&self, length: Duration) -> f64 {
        self.near.run(move || {
            let to: SocketAddr = format!("{FAR}:{GREET}").parse().unwrap();
            let start = Instant::now();
            let mut made = 0u32;
            while start.elapsed() < length {
                let mut stream = TcpStream::connect(to).unwrap();
                let mut byte = [0; 1];
                stream.read_exact(&mut byte).unwrap();
                made += 1;
            }
            f64::from(made) / start.elapsed().as_secs_f64()
        })
    }

    /// How long each of so many exchanges on one connection takes, in microseconds, sorted.
    pub fn exchanges(&self, count: usize) -> Vec<f64> {
        self.near.run(move || {
            let mut stream = TcpStream::connect(format!("{FAR}:{ECHO}")).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut bytes = [7; 100];
            let mut taken: Vec<f64> = (0..count)
                .map(|_| {
                    let start = Instant::now();
                    stream.write_all(&bytes).unwrap();
                    stream.read_exact(&mut bytes).unwrap();
                    start.elapsed().as_secs_f64() * 1e6
                })
                .collect();
            taken.sort_by(f64::total_cmp);
            taken
        })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        self.set_gates(false);
    }
}

impl Side {
    fn new(
        name: &str,
        node: &Arc<Namespace>,
        (own, prefix): (&'static str, &'static str),
        (other, behind): (&'static str, &'static str),
    ) -> Option<Self> {
        let pins = Pins::new(name)?;
        let directory = pins.path().to_owned();
        let kernel = node.run(move || Kernel::open(Options::new(directory)).unwrap());
        let tables = kernel.tables();
        tables
            .set_prefix(prefix.parse().unwrap(), PeerNumber::LOCAL)
            .unwrap();
        tables.set_prefix(behind.parse().unwrap(), PEER).unwrap();
        for identity in [ME, THEM] {
            let valid = Identity {
                valid_until: far(),
                revoked: false,
            };
            tables.set_identity(identity, &valid).unwrap();
        }
        let (own, other) = (own.parse().unwrap(), other.parse().unwrap());
        let local = Local {
            endpoint: ENDPOINT,
            identity: ME,
        };
        tables.set_local(own, local).unwrap();
        tables.set_remote(other, &remote()).unwrap();
        tables.set_announced(own, PEER, &announced()).unwrap();
        tables.set_session(PEER, &session()).unwrap();
        let proven = Pair {
            expires: far(),
            epoch: EPOCH,
        };
        tables.set_pair(pair(), proven).unwrap();
        let policy = [Direction::Ingress, Direction::Egress]
            .map(|direction| rule(direction, THEM, Ports::Any, allow(Auth::Required)));
        tables.replace_policy(ENDPOINT, &policy).unwrap();
        Some(Self {
            workload: node.ifindex("workload"),
            tunnel: node.ifindex("tunnel"),
            node: Arc::clone(node),
            kernel: Arc::new(kernel),
            _pins: pins,
        })
    }

    fn set_gates(&self, on: bool) {
        let (kernel, workload, tunnel) = (Arc::clone(&self.kernel), self.workload, self.tunnel);
        self.node.run(move || match on {
            true => {
                kernel.attach_tunnel(tunnel).unwrap();
                kernel.attach_endpoint(ENDPOINT, workload).unwrap();
            }
            false => {
                kernel.detach_endpoint(ENDPOINT).unwrap();
                kernel.detach_tunnel(tunnel).unwrap();
            }
        });
    }
}

/// The link between the nodes.
fn connect([first, second]: &[Arc<Namespace>; 2]) {
    first.sh(&format!(
        "ip link add tunnel type veth peer name tunnel netns {}",
        second.path()
    ));
    for (node, own, other, own_mac, other_mac) in [
        (
            first,
            "169.254.2.1",
            "169.254.2.2",
            "02:00:00:00:02:01",
            "02:00:00:00:02:02",
        ),
        (
            second,
            "169.254.2.2",
            "169.254.2.1",
            "02:00:00:00:02:02",
            "02:00:00:00:02:01",
        ),
    ] {
        node.sh(&format!(
            "ip link set tunnel address {own_mac} addrgenmode none
             ip link set tunnel up
             ip addr add {own}/24 dev tunnel
             ip neigh add {other} lladdr {other_mac} dev tunnel nud permanent"
        ));
        node.sysctl("ipv4/ip_forward", "1");
    }
}

/// A workload's link.
fn attach(node: &Namespace, workload: &Namespace, own: &str, behind: &str, via: &str) {
    node.sh(&format!(
        "ip link add workload type veth peer name eth0 netns {}
         ip link set workload address 02:00:00:00:01:01 addrgenmode none
         ip link set workload up
         ip route add {own} dev workload
         ip neigh add {own} lladdr 02:00:00:00:01:02 dev workload nud permanent
         ip route add {behind} via {via}",
        workload.path()
    ));
    workload.sh(&format!(
        "ip link set eth0 address 02:00:00:00:01:02 addrgenmode none
         ip link set eth0 up
         ip addr add {own}/32 dev eth0
         ip route add 169.254.1.1 dev eth0
         ip route add default via 169.254.1.1
         ip neigh add 169.254.1.1 lladdr 02:00:00:00:01:01 dev eth0 nud permanent"
    ));
}

/// Tidies flows away as an agent does, until told to stop.
fn collect(sides: &[Side; 2], stop: &Arc<AtomicBool>) {
    for side in sides {
        let (kernel, stop) = (Arc::clone(&side.kernel), Arc::clone(stop));
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let _ = kernel.tables().collect(boot_time());
                thread::sleep(Duration::from_secs(5));
            }
        });
    }
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut bytes = [0; 100];
    while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
}

fn greet(mut stream: TcpStream) {
    let _ = stream.write_all(&[1]);
}
