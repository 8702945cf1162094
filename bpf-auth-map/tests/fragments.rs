//! Fragments that a workload makes by hand so that the node, which reassembles them for its
//! connection tracking, fragments them anew: then they no longer say by which interface they came.
//! In namespaces, with the kernel's own fragmentation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::{
    net::{IpAddr, Ipv6Addr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use handfast_bpf::*;
use support::{Pins, lab::Namespace, packets::*, run::*};

const ME_AT: &str = "fd01::7";
const OTHER_AT: &str = "fd01::8";
const PORT: u16 = 5353;

/// One node, which tracks connections, and two workloads.
struct Lab {
    me: Namespace,
    neighbour: Namespace,
    kernel: Kernel,
    _node: Namespace,
    _pins: Pins,
}

impl Lab {
    fn new() -> Option<Self> {
        let pins = Pins::new("fragments")?;
        if std::process::Command::new("nft")
            .arg("-v")
            .output()
            .is_err()
        {
            eprintln!("skipped: no nft for connection tracking");
            return None;
        }
        let [node, me, neighbour] = [(); 3].map(|()| Namespace::new());
        node.sysctl("ipv6/conf/all/forwarding", "1");
        for (peer, link, at) in [(&me, "me", ME_AT), (&neighbour, "other", OTHER_AT)] {
            node.sh(&format!(
                "ip link add {link} type veth peer name eth0 netns {}
                 ip link set {link} up
                 ip addr add fd99::1/128 dev {link} nodad
                 ip route add {at} dev {link}
                 ip neigh add {at} lladdr 02:00:00:00:00:07 dev {link}",
                peer.path()
            ));
            peer.sh(&format!(
                "ip link set eth0 address 02:00:00:00:00:07 up
                 ip addr add {at}/128 dev eth0 nodad
                 ip route add fd99::1 dev eth0
                 ip route add default via fd99::1"
            ));
        }
        node.sh("nft add table inet t
             nft 'add chain inet t p { type filter hook prerouting priority 0; }'
             nft add rule inet t p ct state new accept");
        let links = [
            (ENDPOINT, ME, node.ifindex("me")),
            (OTHER, NEIGHBOUR, node.ifindex("other")),
        ];
        let directory = pins.path().to_owned();
        let kernel = node.run(move || {
            let mut options = Options::new(directory);
            options.sizes = Sizes {
                connections: 512,
                events: 1 << 16,
            };
            let kernel = Kernel::open(options).unwrap();
            for (endpoint, identity, ifindex) in links {
                let value = Endpoint {
                    ifindex,
                    identity,
                    mac: [0; 6],
                    host_mac: [0; 6],
                };
                kernel.tables().set_endpoint(endpoint, &value).unwrap();
                kernel.attach_endpoint(endpoint, ifindex).unwrap();
            }
            kernel
        });
        let tables = kernel.tables();
        tables
            .set_prefix("fd01::/16".parse().unwrap(), PeerNumber::LOCAL)
            .unwrap();
        for (at, endpoint, identity) in [(ME_AT, ENDPOINT, ME), (OTHER_AT, OTHER, NEIGHBOUR)] {
            let local = Local { endpoint, identity };
            tables.set_local(at.parse().unwrap(), local).unwrap();
        }
        let entries = everything();
        tables.replace_policy(ENDPOINT, &entries).unwrap();
        Some(Self {
            me,
            neighbour,
            kernel,
            _node: node,
            _pins: pins,
        })
    }

    fn counter(&self, reason: Reason) -> u64 {
        self.kernel.tables().counter(reason).unwrap()
    }

    fn send(&self, packets: Vec<Vec<u8>>) {
        self.me.run(move || packets.iter().for_each(|ip| send(ip)));
    }
}

fn everything() -> Vec<(PolicyKey, PolicyValue)> {
    [Direction::Ingress, Direction::Egress]
        .map(|direction| {
            let any = IdentityNumber::ANY;
            rule(direction, any, Ports::Any, allow(Auth::Disabled))
        })
        .into()
}

/// A datagram in two fragments. The first has a hop-by-hop header for which the second's buffer has
/// no room: that makes the kernel copy both into new buffers when it fragments again.
fn crafted(identification: u32) -> Vec<Vec<u8>> {
    let (src, dst): (Ipv6Addr, Ipv6Addr) = (ME_AT.parse().unwrap(), OTHER_AT.parse().unwrap());
    let mut datagram = vec![0; 1200];
    datagram[..2].copy_from_slice(&40000u16.to_be_bytes());
    datagram[2..4].copy_from_slice(&PORT.to_be_bytes());
    datagram[4..6].copy_from_slice(&1200u16.to_be_bytes());
    let sum = checksum(src, dst, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    let (one, two) = datagram.split_at(600);

    // 200 bytes: an option that nobody knows and everybody skips.
    let mut first = vec![44, 24, 0x1e, 196];
    first.resize(200, 0);
    let fragment = |field: u16| {
        let mut header = vec![UDP, 0];
        header.extend(field.to_be_bytes());
        header.extend(identification.to_be_bytes());
        header
    };
    first.extend(fragment(1));
    first.extend(one);
    let mut second = fragment(600);
    second.extend(two);
    let (src, dst) = (IpAddr::V6(src), IpAddr::V6(dst));
    vec![ip(src, dst, 0, &first), ip(src, dst, 44, &second)]
}

fn checksum(src: Ipv6Addr, dst: Ipv6Addr, datagram: &[u8]) -> u16 {
    let length = datagram.len() as u32;
    let mut bytes = [src.octets(), dst.octets()].concat();
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, UDP]);
    bytes.extend(datagram);
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends an IPv6 packet as it is.
fn send(ip: &[u8]) {
    // SAFETY: plain system calls; the descriptor is owned at once, the address is live and whole.
    unsafe {
        let fd = libc::socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut to: libc::sockaddr_in6 = std::mem::zeroed();
        to.sin6_family = libc::AF_INET6 as libc::sa_family_t;
        to.sin6_addr.s6_addr.copy_from_slice(&ip[24..40]);
        let sent = libc::sendto(
            fd.as_raw_fd(),
            ip.as_ptr().cast(),
            ip.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        );
        assert_eq!(
            sent,
            ip.len() as isize,
            "{}",
            std::io::Error::last_os_error()
        );
    }
}

#[test]
fn fragments_that_the_node_makes_anew_are_judged_like_any_other() {
    let Some(lab) = Lab::new() else {
        return;
    };
    let socket = lab.neighbour.run(|| {
        let socket = UdpSocket::bind(("::", PORT)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        socket
    });
    let mut buffer = [0; 2048];

    // Nothing lets it in.
    lab.send(crafted(1));
    assert!(socket.recv(&mut buffer).is_err());
    assert!(lab.counter(Reason::NoRule) > 0);

    // Allowed it arrives, and the fragments were made anew: as one flow, not as the node's own.
    let tables = lab.kernel.tables();
    tables.replace_policy(OTHER, &everything()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    lab.send(crafted(2));
    assert_eq!(socket.recv(&mut buffer).unwrap(), 1192);
    assert_eq!(tables.connections().unwrap().len(), 1);
    assert_eq!(lab.counter(Reason::Host), 0);
}
