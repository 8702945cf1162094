//! What a packet costs each gate, in nanoseconds: by program test run, over as many flows as wanted.

use std::net::IpAddr;

use handfast_bpf::*;

use super::{
    driver::{self, Order, PEERS, Places},
    packets::{ACK, TCP, frame, ip, tcp},
    run::*,
};

/// Identities of the hundred workloads that flows go to.
const FIRST_PEER: u32 = 500;
/// Packets of one measurement.
pub const PACKETS: u32 = 200_000;

/// A way of a packet through one program.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The program.
    pub program: &'static str,
    pub came: Came,
    pub places: Places,
    pub outward: bool,
}

/// Where in an Ethernet frame around IPv4 and TCP the last byte of an address and a port stand.
const SOURCE_ADDRESS: u32 = 29;
const DESTINATION_ADDRESS: u32 = 33;
const SOURCE_PORT: u32 = 34;
const DESTINATION_PORT: u32 = 36;

const OUT: Places = Places {
    address: DESTINATION_ADDRESS,
    port: SOURCE_PORT,
};
const IN: Places = Places {
    address: SOURCE_ADDRESS,
    port: DESTINATION_PORT,
};

/// The four programs that a packet between two nodes meets, in this order.
pub const REMOTE: [Way; 4] = [
    Way {
        program: "from_endpoint",
        came: FORWARDED,
        places: OUT,
        outward: true,
    },
    Way {
        program: "to_tunnel",
        came: GATED,
        places: OUT,
        outward: true,
    },
    Way {
        program: "from_tunnel",
        came: FORWARDED,
        places: IN,
        outward: false,
    },
    Way {
        program: "to_endpoint",
        came: Came {
            mark: DECIDED << 2,
            by: 3,
        },
        places: IN,
        outward: false,
    },
];

/// A node with a hundred proven remote workloads, and room for as many flows.
pub fn node(name: &str, flows: u32) -> Option<Node> {
    // Gates of the other direction open flows of their own key: there is room for both.
    // All are one endpoint's, which would have half of the map otherwise.
    let node = Node::with_places(name, flows + 200_000, u32::MAX)?;
    let tables = node.tables();
    let mut settings = tables.settings().unwrap();
    settings.endpoint_connections = flows + 200_000;
    tables.set_settings(&settings).unwrap();
    let mut policy = Vec::new();
    for (number, byte) in PEERS.enumerate() {
        let identity = IdentityNumber(FIRST_PEER + number as u32);
        let valid = Identity {
            valid_until: far(),
            revoked: false,
        };
        tables.set_identity(identity, &valid).unwrap();
        let remote = Remote {
            identity,
            ..remote()
        };
        tables.set_remote(them(byte), &remote).unwrap();
        let key = PairKey {
            remote: identity,
            ..pair()
        };
        let proven = Pair {
            expires: far(),
            epoch: EPOCH,
        };
        tables.set_pair(key, proven).unwrap();
        policy.extend(
            [Direction::Ingress, Direction::Egress]
                .map(|direction| rule(direction, identity, Ports::Any, allow(Auth::Required))),
        );
    }
    tables.replace_policy(ENDPOINT, &policy).unwrap();
    Some(node)
}

fn them(byte: u8) -> IpAddr {
    IpAddr::from([10, 2, 0, byte])
}

/// Nanoseconds of a packet on its way through a program.
pub fn measure(node: &mut Node, way: &Way, order: Order, packets: u32) -> f64 {
    let me = families()[0].me;
    let (src, dst, ports) = match way.outward {
        true => (me, them(PEERS.start), (1024, 443)),
        false => (them(PEERS.start), me, (443, 1024)),
    };
    let bytes = frame(&ip(src, dst, TCP, &tcp(ports.0, ports.1, ACK)));
    let program = node.program(way.program);
    driver::cost(program, order, way.places, way.came, &bytes, packets).unwrap()
}

/// Nanoseconds of the first packet of each of so many flows, which are known afterwards.
pub fn open(node: &mut Node, way: &Way, flows: std::ops::Range<u32>) -> f64 {
    let known = node.tables().connections().unwrap().len();
    let count = flows.end - flows.start;
    let cost = measure(node, way, Order::Each(flows.start), count);
    let opened = node.tables().connections().unwrap().len() - known;
    assert_eq!(opened, count as usize, "flows opened");
    cost
}
