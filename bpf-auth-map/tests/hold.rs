//! Holding and giving back, in namespaces, with real connections: direct and to a service address,
//! both families, reverse path filter on, offloaded packets too. A TUN device that the test reads
//! stands in for the tunnel.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use handfast_bpf::*;
use support::{
    Pins,
    lab::{Namespace, carry},
    run::*,
};

/// One node with two workloads, and another node's workload behind a tunnel.
struct Lab {
    node: Namespace,
    me: Namespace,
    neighbour: Namespace,
    them: Namespace,
    kernel: Arc<Kernel>,
    agent: Agent,
    runtime: tokio::runtime::Runtime,
    _pins: Pins,
}

/// Keeps what is held until it is told to give it back.
#[derive(Clone, Default)]
struct Agent {
    release: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    largest: Arc<AtomicUsize>,
    keys: Arc<Mutex<Vec<HoldKey>>>,
}

impl Lab {
    fn new(name: &str, clsact: bool) -> Option<Self> {
        let pins = Pins::new(name)?;
        if std::process::Command::new("nft")
            .arg("-v")
            .output()
            .is_err()
        {
            eprintln!("skipped: no nft for a service address");
            return None;
        }
        let [node, me, neighbour, them] = [(); 4].map(|()| Namespace::new());
        for (peer, link, v4, v6) in [
            (&me, "me", "10.1.0.7", "fd01::7"),
            (&neighbour, "other", "10.1.0.8", "fd01::8"),
        ] {
            node.sh(&format!(
                "ip link add {link} type veth peer name eth0 netns {}
                 ip link set {link} address 02:00:00:00:01:01 up
                 ip addr add 169.254.1.1/32 dev {link}
                 ip addr add fd99::1/128 dev {link} nodad
                 ip route add {v4} dev {link}
                 ip route add {v6} dev {link}",
                peer.path()
            ));
            peer.sh(&format!(
                "ip link set eth0 up
                 ip addr add {v4}/32 dev eth0
                 ip addr add {v6}/128 dev eth0 nodad
                 ip route add 169.254.1.1 dev eth0
                 ip route add default via 169.254.1.1
                 ip route add fd99::1 dev eth0
                 ip route add default via fd99::1"
            ));
        }
        let near = node.tun("hf-wg0");
        let far = them.tun("tun0");
        // Without link-local addresses, as a tunnel device has none: a slow machine would send solicitations.
        node.sh("ip link set hf-wg0 addrgenmode none
             ip link set hf-wg0 up
             ip route add 10.2.0.0/16 dev hf-wg0
             ip route add fd02::/16 dev hf-wg0
             nft add table inet t
             nft 'add chain inet t p { type nat hook prerouting priority -100; }'
             nft add rule inet t p ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.2.0.9:8080
             nft add rule inet t p ip6 daddr fd96::1 tcp dport 80 dnat ip6 to [fd02::9]:8080
             nft add rule inet t p ip daddr 10.96.0.2 tcp dport 80 dnat ip to 10.1.0.8:8080");
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        node.sysctl("ipv4/conf/all/rp_filter", "1");
        them.sh("ip link set tun0 addrgenmode none
             ip link set tun0 up
             ip addr add 10.2.0.9/32 dev tun0
             ip addr add fd02::9/128 dev tun0 nodad
             ip route add default dev tun0
             ip -6 route add default dev tun0");
        // A TUN device can only be read when it is up.
        carry(near.try_clone().unwrap(), far.try_clone().unwrap());
        carry(far, near);

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(1)
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        let directory = pins.path().to_owned();
        let links = [
            (ENDPOINT, node.ifindex("me")),
            (OTHER, node.ifindex("other")),
        ];
        let tunnel = node.ifindex("hf-wg0");
        let (kernel, device) = node.run(move || {
            let _context = handle.enter();
            let mut options = Options::new(directory);
            options.sizes = Sizes {
                connections: 1024,
                events: 1 << 16,
            };
            options.clsact = clsact;
            let kernel = Kernel::open(options).unwrap();
            let device = HoldDevice::open("hf-hold0").unwrap();
            kernel.attach_hold(device.ifindex()).unwrap();
            kernel.attach_tunnel(tunnel).unwrap();
            for (endpoint, ifindex) in links {
                let value = Endpoint {
                    ifindex,
                    identity: ME,
                    mac: [0; 6],
                    host_mac: [0; 6],
                };
                kernel.tables().set_endpoint(endpoint, &value).unwrap();
                kernel.attach_endpoint(endpoint, ifindex).unwrap();
            }
            (Arc::new(kernel), device)
        });
        fill(kernel.tables());
        let agent = Agent::default();
        runtime.spawn(agent.clone().run(device));
        Some(Self {
            node,
            me,
            neighbour,
            them,
            kernel,
            agent,
            runtime,
            _pins: pins,
        })
    }

    fn tables(&self) -> &Tables {
        self.kernel.tables()
    }

    /// Forgets the proof; after a while it is there again, and what is held comes back.
    fn prove_later(&self, key: PairKey, after: Duration) {
        self.agent.release.store(false, Ordering::SeqCst);
        self.tables().remove_pair(key).unwrap();
        let (kernel, release) = (Arc::clone(&self.kernel), Arc::clone(&self.agent.release));
        self.runtime.spawn(async move {
            tokio::time::sleep(after).await;
            kernel
                .tables()
                .set_pair(
                    key,
                    Pair {
                        expires: far(),
                        epoch: EPOCH,
                    },
                )
                .unwrap();
            release.store(true, Ordering::SeqCst);
        });
    }

    fn nothing_is_left_behind(&self) {
        let end = Instant::now() + Duration::from_secs(2);
        while self.tables().held_total().unwrap() != HoldCount::default() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.tables().held_total().unwrap(), HoldCount::default());
        for (reason, count) in self.tables().counters().unwrap() {
            let is_drop = reason as u16 >= 10 && !matches!(reason, Reason::HostMade);
            assert!(!is_drop || count == 0, "{count} packets: {}", reason.text());
        }
    }
}

impl Agent {
    async fn run(self, mut device: HoldDevice) {
        let mut waiting: Vec<Held> = Vec::new();
        loop {
            match tokio::time::timeout(Duration::from_millis(2), device.receive()).await {
                Ok(Ok(held)) => {
                    self.seen.fetch_add(1, Ordering::SeqCst);
                    self.largest.fetch_max(held.memory(), Ordering::SeqCst);
                    self.keys.lock().unwrap().push(held.key());
                    waiting.push(held);
                }
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            if self.release.load(Ordering::SeqCst) {
                for held in waiting.drain(..) {
                    device.give_back(&held).unwrap();
                }
            }
        }
    }
}

fn fill(tables: &Tables) {
    for prefix in ["10.1.0.0/16", "fd01::/16"] {
        tables
            .set_prefix(prefix.parse().unwrap(), PeerNumber::LOCAL)
            .unwrap();
    }
    for prefix in ["10.2.0.0/16", "fd02::/16"] {
        tables.set_prefix(prefix.parse().unwrap(), PEER).unwrap();
    }
    for identity in [ME, NEIGHBOUR, THEM] {
        tables
            .set_identity(
                identity,
                &Identity {
                    valid_until: far(),
                    revoked: false,
                },
            )
            .unwrap();
    }
    for a in families() {
        tables
            .set_local(
                a.me,
                Local {
                    endpoint: ENDPOINT,
                    identity: ME,
                },
            )
            .unwrap();
        tables
            .set_local(
                a.neighbour,
                Local {
                    endpoint: OTHER,
                    identity: NEIGHBOUR,
                },
            )
            .unwrap();
        tables.set_remote(a.them, &remote()).unwrap();
        tables.set_announced(a.me, PEER, &announced()).unwrap();
    }
    tables.set_session(PEER, &session()).unwrap();
    for endpoint in [ENDPOINT, OTHER] {
        let any = IdentityNumber::ANY;
        let entries: Vec<_> = [Direction::Ingress, Direction::Egress]
            .into_iter()
            .flat_map(|d| {
                let world = rule(d, any, Ports::Any, allow(Auth::Disabled));
                [ME, NEIGHBOUR, THEM]
                    .map(|identity| rule(d, identity, Ports::Any, allow(Auth::Required)))
                    .into_iter()
                    .chain([world])
            })
            .collect();
        tables.replace_policy(endpoint, &entries).unwrap();
    }
}

/// Listens there; each connection is sent back what it sends, until it ends.
fn serve(at: &Namespace, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = at.run(move || TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn connect(lab: &Lab, from: &Namespace, to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let stream = stream.unwrap_or_else(|error| {
        let mut counters = lab.tables().counters().unwrap();
        counters.retain(|(_, count)| *count != 0);
        panic!("{to}: {error}; {counters:?}")
    });
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8).collect()
}

fn exchange(stream: &mut TcpStream, sent: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    let mut back = vec![0; sent.len()];
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(sent).unwrap());
        stream.read_exact(&mut back).unwrap();
    });
    assert!(sent == back, "what came back is not what was sent");
}

const WAIT: Duration = Duration::from_millis(60);

fn held_first_packets_connect(name: &str, clsact: bool) {
    let Some(lab) = Lab::new(name, clsact) else {
        return;
    };
    serve(&lab.them, "[::]:8080");
    serve(&lab.neighbour, "[::]:8080");
    serve(&lab.me, "[::]:8080");
    let cases: [(&str, &Namespace, &str, PairKey); 7] = [
        ("direct", &lab.me, "10.2.0.9:8080", pair()),
        ("direct", &lab.me, "[fd02::9]:8080", pair()),
        ("service", &lab.me, "10.96.0.1:80", pair()),
        ("service", &lab.me, "[fd96::1]:80", pair()),
        ("inbound", &lab.them, "10.1.0.7:8080", pair()),
        ("inbound", &lab.them, "[fd01::7]:8080", pair()),
        ("same node", &lab.me, "10.1.0.8:8080", local_pair()),
    ];
    for (what, from, to, key) in cases {
        let before = lab.agent.seen.load(Ordering::SeqCst);
        let start = Instant::now();
        lab.prove_later(key, WAIT);
        let mut stream = connect(&lab, from, to);
        let took = start.elapsed();
        assert!(took >= WAIT, "{what} {to}: {took:?}");
        assert!(
            lab.agent.seen.load(Ordering::SeqCst) > before,
            "{what} {to}: was not held"
        );
        exchange(&mut stream, &pattern(300_000));
        println!("{what} {to}: held, and connected after {took:?}");
    }
    for namespace in [&lab.me, &lab.them] {
        assert_eq!(namespace.netstat("TCPSynRetrans"), 0);
    }
    lab.nothing_is_left_behind();
}

#[test]
fn held_first_packets_connect_through_tcx() {
    held_first_packets_connect("hold-tcx", false);
}

#[test]
fn held_first_packets_connect_through_clsact() {
    held_first_packets_connect("hold-clsact", true);
}

#[test]
fn a_service_on_this_node_connects_with_one_conntrack_entry() {
    let Some(lab) = Lab::new("hold-service", false) else {
        return;
    };
    serve(&lab.neighbour, "[::]:8080");
    lab.prove_later(local_pair(), WAIT);
    let mut stream = connect(&lab, &lab.me, "10.96.0.2:80");
    exchange(&mut stream, &pattern(100_000));
    assert_eq!(lab.me.netstat("TCPSynRetrans"), 0);
    let entries = lab
        .node
        .run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap());
    assert_eq!(entries.trim(), "1");
    lab.nothing_is_left_behind();
}

#[test]
fn offloaded_packets_are_held_whole_and_nothing_is_lost() {
    let Some(lab) = Lab::new("hold-gso", false) else {
        return;
    };
    serve(&lab.them, "[::]:8080");
    lab.tables()
        .set_pair(
            pair(),
            Pair {
                expires: far(),
                epoch: EPOCH,
            },
        )
        .unwrap();
    let mut settings = lab.tables().settings().unwrap();
    settings.hold_pair = (4096, 8 << 20);
    settings.hold_total = (32_768, 64 << 20);
    lab.tables().set_settings(&settings).unwrap();
    let data = pattern(1_000_000);
    for to in ["10.96.0.1:80", "[fd96::1]:80"] {
        let mut stream = connect(&lab, &lab.me, to);
        exchange(&mut stream, &data);
        lab.agent.largest.store(0, Ordering::SeqCst);
        lab.prove_later(pair(), WAIT);
        exchange(&mut stream, &data);
        let largest = lab.agent.largest.load(Ordering::SeqCst);
        assert!(
            largest > 2000,
            "{to}: the largest held packet had {largest} bytes"
        );
    }
    lab.nothing_is_left_behind();
}

#[test]
fn what_is_discarded_is_uncounted_and_never_arrives() {
    let Some(lab) = Lab::new("hold-discard", false) else {
        return;
    };
    let handle = lab.runtime.handle().clone();
    let mut device = lab.node.run(move || {
        let _context = handle.enter();
        HoldDevice::open("hf-hold1").unwrap()
    });
    let (kernel, index) = (Arc::clone(&lab.kernel), device.ifindex());
    lab.node.run(move || kernel.attach_hold(index).unwrap());
    let to: SocketAddr = "10.2.0.9:8080".parse().unwrap();
    let client = thread::spawn({
        let path = lab.me.path().to_owned();
        move || {
            let file = std::fs::File::open(path).unwrap();
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err()
        }
    });
    let held = lab.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(2), device.receive())
            .await
            .unwrap()
            .unwrap()
    });
    let key = HoldKey {
        endpoint: ENDPOINT,
        direction: Direction::Egress,
        remote: "10.2.0.9".parse().unwrap(),
    };
    assert_eq!((held.key(), held.hook()), (key, Hook::ToTunnel));
    assert_eq!(lab.tables().held(&key).unwrap().packets, 1);
    device.discard(&held).unwrap();
    assert_eq!(lab.tables().held_total().unwrap(), HoldCount::default());
    assert_eq!(lab.tables().counter(Reason::Discarded).unwrap(), 1);
    // Its ticket is used up: giving the frame back now does nothing.
    lab.tables()
        .set_pair(
            pair(),
            Pair {
                expires: far(),
                epoch: EPOCH,
            },
        )
        .unwrap();
    device.give_back(&held).unwrap();
    assert_eq!(lab.tables().counter(Reason::HoldStray).unwrap(), 1);
    assert_eq!(lab.tables().counter(Reason::Returned).unwrap(), 0);
    assert!(client.join().unwrap());
}

#[test]
fn gates_outlive_their_agent_and_are_adopted() {
    let Some(lab) = Lab::new("adopt", false) else {
        return;
    };
    serve(&lab.them, "[::]:8080");
    lab.tables()
        .set_pair(
            pair(),
            Pair {
                expires: far(),
                epoch: EPOCH,
            },
        )
        .unwrap();
    let mut stream = connect(&lab, &lab.me, "10.2.0.9:8080");
    exchange(&mut stream, &pattern(1000));
    let Lab {
        node,
        me,
        neighbour,
        them,
        kernel,
        agent,
        runtime,
        _pins: pins,
    } = lab;
    // As if the agent were killed: its device's descriptor and its maps are closed.
    runtime.shutdown_background();
    drop((kernel, agent));
    thread::sleep(Duration::from_millis(50));
    exchange(&mut stream, &pattern(1000));

    let directory = pins.path().to_owned();
    let tunnel = node.ifindex("hf-wg0");
    let endpoint = node.ifindex("me");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(1)
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let (kernel, hold, device) = node.run(move || {
        let _context = handle.enter();
        let kernel = Kernel::open(Options::new(directory)).unwrap();
        let before = nix::net::if_::if_nametoindex("hf-hold0").unwrap();
        let device = HoldDevice::open("hf-hold0").unwrap();
        kernel.tables().reset_holds().unwrap();
        kernel.attach_hold(device.ifindex()).unwrap();
        kernel.attach_tunnel(tunnel).unwrap();
        kernel.attach_endpoint(ENDPOINT, endpoint).unwrap();
        (kernel, before, device)
    });
    assert!(kernel.adopted());
    assert_eq!(device.ifindex(), hold);
    assert_eq!(kernel.attached().unwrap().len(), 8);
    assert_eq!(kernel.tables().connections().unwrap().len(), 1);
    exchange(&mut stream, &pattern(1000));

    let said = node.run(move || {
        kernel.detach_endpoint(ENDPOINT).unwrap();
        assert_eq!(kernel.attached().unwrap().len(), 6);
        kernel.detach_all().unwrap()
    });
    assert_eq!(said.len(), 7);
    assert!(!pins.path().exists());
    exchange(&mut stream, &pattern(1000));
    drop((me, neighbour, them));
}
