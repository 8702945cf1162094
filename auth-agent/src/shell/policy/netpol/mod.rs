//! Kubernetes' own end-to-end scenarios for NetworkPolicy, packet by packet through the gates.
//!
//! The maps hold what [`PolicyTable`] makes of the scenario's policies, and each packet runs through the programs in
//! the kernel's own test run, in the order in which it would meet them and with the mark that the one before has left.
//! Every pod exists twice under one identity, on this node and on a peer: so each pair of pods is asked about on one
//! node and across two, where the same maps serve as the sender's and as the receiver's, and in both families.

#[path = "../../../../../policies/tests/netpol/cluster.rs"]
mod cluster;
#[path = "../../../../../policies/tests/netpol/scenarios.rs"]
mod scenarios;
#[path = "../../../../../bpf-auth-map/tests/support/mod.rs"]
mod support;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use handfast_bpf as bpf;
use handfast_bpf::{IdentityNumber, Kernel, Options, PeerNumber, Reason, Sizes};
use handfast_policies::{PolicySet, Protocol, Source};

use self::cluster::{Pods, Way};
use self::support::packets::{SYN, TCP, UDP, frame, ip, tcp, udp};
use self::support::run::{Came, far, test_run};
use self::support::{OBJECT, Pins};
use super::{Change, PolicyTable};
use crate::config::DefaultAuthentication;

const PEER: PeerNumber = PeerNumber(5);
const EPOCH: bpf::Epoch = bpf::Epoch(3);
/// The identity of the first pod.
const FIRST: u32 = 256;
const CONNECTIONS: u32 = 4096;
const SCTP: u8 = 132;
/// The interface of every packet of a test run: the loopback.
const LINK: u32 = 1;
/// What programs say: go on, or drop.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

/// The gates of the node that all pods are on.
struct Judge {
    kernel: Kernel,
    table: PolicyTable,
    pods: Vec<String>,
    programs: Ebpf,
    source_port: u16,
    _pins: Pins,
}

/// Where a pod is.
#[derive(Clone, Copy)]
enum At {
    Here,
    There,
}

impl Judge {
    fn new(pods: &Pods) -> Option<Self> {
        static NEXT_ONE: AtomicU32 = AtomicU32::new(0);
        let pins = Pins::new(&format!(
            "netpol-{}",
            NEXT_ONE.fetch_add(1, Ordering::Relaxed)
        ))?;
        let mut options = Options::new(pins.path());
        options.sizes = Sizes {
            connections: CONNECTIONS,
            events: 1 << 16,
        };
        let kernel = Kernel::open(options).unwrap();
        let pods: Vec<String> = pods.keys().cloned().collect();
        let programs = EbpfLoader::new()
            .default_map_pin_directory(pins.path())
            .map_max_entries("connections", CONNECTIONS)
            .load(OBJECT)
            .unwrap();
        let judge = Self {
            kernel,
            table: PolicyTable::new(DefaultAuthentication::Background),
            pods,
            programs,
            source_port: 20_000,
            _pins: pins,
        };
        judge.connect();
        Some(judge)
    }

    /// Everything but policy is as it should be: a session with the peer, every address announced and known.
    fn connect(&self) {
        let tables = self.kernel.tables();
        let mut settings = tables.settings().unwrap();
        settings.hold = Some(1);
        settings.tunnel = Some(1);
        tables.set_settings(&settings).unwrap();
        for (prefixes, peer) in [
            (["10.1.0.0/16", "fd01::/16"], PeerNumber::LOCAL),
            (["10.2.0.0/16", "fd02::/16"], PEER),
        ] {
            for prefix in prefixes {
                tables.set_prefix(prefix.parse().unwrap(), peer).unwrap();
            }
        }
        let session = bpf::Session {
            oldest: EPOCH,
            current: EPOCH,
            expires: far(),
            state: bpf::SessionState::Ready,
        };
        tables.set_session(PEER, &session).unwrap();
        for place in 0..self.pods.len() {
            let (endpoint, identity) = numbers(place);
            let valid = bpf::Identity {
                valid_until: far(),
                revoked: false,
            };
            tables.set_identity(identity, &valid).unwrap();
            for family in [0, 1] {
                let local = bpf::Local { endpoint, identity };
                let here = address(At::Here, place, family);
                tables.set_local(here, local).unwrap();
                let announced = bpf::Announced {
                    endpoint,
                    epoch: EPOCH,
                    state: bpf::AnnouncedState::Confirmed,
                    generation: 1,
                };
                tables.set_announced(here, PEER, &announced).unwrap();
                let remote = bpf::Remote {
                    identity,
                    peer: PEER,
                    epoch: EPOCH,
                    generation: 1,
                    refused_until: None,
                };
                let there = address(At::There, place, family);
                tables.set_remote(there, &remote).unwrap();
            }
        }
    }

    /// As the agent does when policies or identities change: the difference goes into the maps.
    fn learn(&mut self, pods: &Pods, policies: Vec<Source>) {
        let mut changes = Vec::new();
        for (place, pod) in pods.values().enumerate() {
            let (endpoint, identity) = numbers(place);
            changes.extend(self.table.set_identity(identity.0, pod.clone()));
            changes.extend(self.table.set_endpoint(endpoint.0, Some(pod.clone())));
        }
        let set = self.table.set().updated(policies);
        let set: PolicySet = set.unwrap_or_else(|errors| panic!("{errors:#?}"));
        let before: Vec<_> = self.table.cidrs().collect();
        changes.extend(self.table.replace_set(set.into()));
        let tables = self.kernel.tables();
        for (prefix, _) in before {
            tables.remove_cidr(prefix).unwrap();
        }
        for (prefix, number) in self.table.cidrs() {
            tables.set_cidr(prefix, IdentityNumber(number)).unwrap();
        }
        for change in changes {
            match change {
                Change::Set(key, value) => tables
                    .add_policy(bpf::EndpointId(key.endpoint), &[(key.packets, value)])
                    .unwrap(),
                Change::Remove(key) => tables
                    .remove_policy_entry(bpf::EndpointId(key.endpoint), &key.packets)
                    .unwrap(),
            }
        }
        tables.policy_changed().unwrap();
    }

    /// A first packet of a flow, on one node and between two, in both families.
    fn ways(&mut self, from: &str, to: &str, protocol: Protocol, port: u16) -> Vec<Way> {
        let (from, to) = (self.place(from), self.place(to));
        let (sender, receiver) = (numbers(from).0.0, numbers(to).0.0);
        let mut ways = Vec::new();
        for family in [0, 1] {
            let near = [At::Here, At::Here].map(|at| (at, family));
            let packet = self.packet(from, to, near, protocol, port);
            ways.push(self.walk(
                &packet,
                &[("from_endpoint", sender), ("to_endpoint", receiver)],
            ));
            let away = [At::Here, At::There].map(|at| (at, family));
            let packet = self.packet(from, to, away, protocol, port);
            let sent = self.walk(&packet, &[("from_endpoint", sender), ("to_tunnel", 0)]);
            let home = [At::There, At::Here].map(|at| (at, family));
            let packet = self.packet(from, to, home, protocol, port);
            let received = self.walk(&packet, &[("from_tunnel", 0), ("to_endpoint", receiver)]);
            ways.push(Way {
                passes: sent.passes && received.passes,
                told: format!("sent: {}; received: {}", sent.told, received.told),
            });
        }
        ways
    }

    /// A first packet to an address outside the mesh, as far as the underlay's wire.
    fn outside(&mut self, from: &str, to: IpAddr, port: u16) -> Way {
        let from = self.place(from);
        let source = address(At::Here, from, usize::from(to.is_ipv6()));
        self.source_port += 1;
        let payload = tcp(self.source_port, port, SYN);
        let packet = frame(&ip(source, to, TCP, &payload));
        self.walk(
            &packet,
            &[("from_endpoint", numbers(from).0.0), ("wire_egress", 0)],
        )
    }

    fn place(&self, pod: &str) -> usize {
        self.pods.iter().position(|known| known == pod).unwrap()
    }

    fn packet(
        &mut self,
        from: usize,
        to: usize,
        at: [(At, usize); 2],
        protocol: Protocol,
        port: u16,
    ) -> Vec<u8> {
        // A flow of its own: none that was judged before says anything of it.
        self.source_port += 1;
        let source_port = self.source_port;
        let (number, payload) = match protocol {
            Protocol::Udp => (UDP, udp(source_port, port)),
            Protocol::Sctp => (SCTP, sctp(source_port, port)),
            _ => (TCP, tcp(source_port, port, SYN)),
        };
        let [(here, family), (there, _)] = at;
        frame(&ip(
            address(here, from, family),
            address(there, to, family),
            number,
            &payload,
        ))
    }

    /// Through these programs one after the other, each on the link of its endpoint (0 for a link that is nobody's).
    /// Whatever drops must be policy.
    fn walk(&mut self, packet: &[u8], programs: &[(&'static str, u32)]) -> Way {
        let mut mark = 0;
        let before = self.kernel.tables().counters().unwrap();
        for (name, endpoint) in programs {
            let tables = self.kernel.tables();
            match *endpoint {
                0 => tables.remove_interface(LINK).unwrap(),
                endpoint => tables
                    .set_interface(LINK, bpf::EndpointId(endpoint))
                    .unwrap(),
            }
            let program = self.program(name);
            let done = test_run(program, Came { mark, by: 3 }, packet, 1);
            match done.verdict {
                NEXT => mark = done.mark,
                DROP => {
                    let after = self.kernel.tables().counters().unwrap();
                    let rose = before.iter().zip(&after);
                    let rose = rose.filter(|(before, after)| after.1 > before.1);
                    let reasons: Vec<Reason> = rose.map(|(before, _)| before.0).collect();
                    let by_policy =
                        |reason: &Reason| matches!(reason, Reason::NoRule | Reason::Denied);
                    assert!(
                        reasons.iter().any(by_policy) || *name == "wire_egress",
                        "{name} drops for {reasons:?}"
                    );
                    return Way {
                        passes: false,
                        told: format!("{name} drops it: {reasons:?}"),
                    };
                }
                other => panic!("{name} neither lets it through nor drops it: {other}"),
            }
        }
        Way {
            passes: true,
            told: "every gate lets it through".into(),
        }
    }

    /// A program's descriptor; it is loaded when first asked for.
    fn program(&mut self, name: &str) -> RawFd {
        let program = self.programs.program_mut(name).unwrap();
        let program: &mut SchedClassifier = program.try_into().unwrap();
        if program.fd().is_err() {
            program.load().unwrap();
        }
        program.fd().unwrap().as_fd().as_raw_fd()
    }
}

/// The endpoint and the identity of the pod in this place.
fn numbers(place: usize) -> (bpf::EndpointId, IdentityNumber) {
    let place = u32::try_from(place).unwrap();
    (bpf::EndpointId(place + 1), IdentityNumber(FIRST + place))
}

fn address(at: At, place: usize, family: usize) -> IpAddr {
    let node = match at {
        At::Here => 1,
        At::There => 2,
    };
    let last = place + 10;
    let text = match family {
        0 => format!("10.{node}.0.{last}"),
        _ => format!("fd0{node}::{last}"),
    };
    text.parse().unwrap()
}

/// The common header, and an INIT chunk's first bytes (RFC 9260, section 3).
fn sctp(source_port: u16, port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 20]);
    bytes.extend([0; 16]);
    bytes
}
