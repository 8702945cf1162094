//! What can be seen on the underlay of packets to and from one peer. A packet socket, and a small reader of its own:
//! a mistake in the gates' parser must not be repeated here.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};

const UDP: u8 = 17;
const ESP: u8 = 50;
/// ESP in UDP, where a NAT lies between.
const NAT_TRAVERSAL: u16 = 4500;
/// What may wait to be looked at.
const ROOM: usize = 4 << 20;

/// What is looked for.
pub(super) struct Watched {
    /// Where the peer's tunnel is.
    pub(super) underlay: Vec<IpAddr>,
    /// The tunnel's UDP ports.
    pub(super) ports: Vec<u16>,
    /// Prefixes of workloads here.
    pub(super) ours: Vec<IpNet>,
    /// Prefixes of the peer's.
    pub(super) theirs: Vec<IpNet>,
    /// What must not be readable.
    pub(super) content: Vec<u8>,
    /// The peer is between two devices.
    pub(super) moving: bool,
}

/// What was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Encrypted, to the peer.
    pub(super) sent: u64,
    /// Encrypted, from it.
    pub(super) received: u64,
    /// Readable.
    pub(super) readable: u64,
}

/// A socket that gets a copy of every packet, without its link header.
pub(super) struct Sight(OwnedFd);

impl Sight {
    pub(super) fn open() -> io::Result<Self> {
        let (kind, flags) = (
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        );
        let socket = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        Ok(Self(socket))
    }

    /// Forgets what has come so far.
    pub(super) fn skip(&self) {
        let mut buffer = [0; 1];
        while recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buffer).is_ok() {}
    }

    /// Looks at what comes by these interfaces.
    pub(super) fn watch(
        &self,
        until: Instant,
        interfaces: &BTreeSet<u32>,
        watched: &Watched,
    ) -> io::Result<Seen> {
        let mut seen = Seen::default();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(seen);
            }
            let step = left.min(Duration::from_millis(100));
            let mut waits = [PollFd::new(
                std::os::fd::AsFd::as_fd(&self.0),
                PollFlags::POLLIN,
            )];
            poll(
                &mut waits,
                PollTimeout::try_from(step).unwrap_or(PollTimeout::ZERO),
            )?;
            while let Ok((length, from)) = recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                let by = from.and_then(|from| u32::try_from(from.ifindex()).ok());
                let packet = buffer.get(..length).unwrap_or_default();
                if by.is_some_and(|by| interfaces.contains(&by)) {
                    seen.note(packet, watched);
                }
            }
        }
    }
}

impl Seen {
    fn note(&mut self, packet: &[u8], watched: &Watched) {
        let between = |prefixes: &[IpNet], address: &IpAddr| {
            prefixes.iter().any(|prefix| prefix.contains(address))
        };
        let header = Header::read(packet);
        let bare = header.as_ref().is_some_and(|header| {
            let (source, destination) = (&header.source, &header.destination);
            between(&watched.ours, source) && between(&watched.theirs, destination)
                || between(&watched.theirs, source) && between(&watched.ours, destination)
        });
        // Whatever it is wrapped in, the content is there to be found.
        let content = &watched.content;
        let told = !content.is_empty() && packet.windows(content.len()).any(|part| part == content);
        if bare || told {
            self.readable += 1;
            return;
        }
        let Some(header) = header.filter(|header| header.encrypted(&watched.ports)) else {
            return;
        };
        if watched.underlay.contains(&header.destination) {
            self.sent += 1;
        } else if watched.underlay.contains(&header.source) {
            self.received += 1;
        }
    }
}

/// As much of an IP packet as is looked at.
struct Header<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

impl<'a> Header<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let four = |at: usize| packet.get(at..at + 4)?.try_into().ok();
        let sixteen = |at: usize| packet.get(at..at + 16)?.try_into().ok();
        match packet.first()? >> 4 {
            4 => Some(Self {
                source: Ipv4Addr::from(four(12).map(|bytes: [u8; 4]| bytes)?).into(),
                destination: Ipv4Addr::from(four(16).map(|bytes: [u8; 4]| bytes)?).into(),
                protocol: *packet.get(9)?,
                payload: packet.get(usize::from(packet.first()? & 15) * 4..)?,
            }),
            6 => Some(Self {
                source: Ipv6Addr::from(sixteen(8).map(|bytes: [u8; 16]| bytes)?).into(),
                destination: Ipv6Addr::from(sixteen(24).map(|bytes: [u8; 16]| bytes)?).into(),
                protocol: *packet.get(6)?,
                payload: packet.get(40..)?,
            }),
            _ => None,
        }
    }

    /// WireGuard's data, or ESP. Handshakes are not counted: they carry nothing of a workload's.
    fn encrypted(&self, ports: &[u16]) -> bool {
        let port = |at: usize| {
            let bytes = self.payload.get(at..at + 2)?.try_into().ok()?;
            Some(u16::from_be_bytes(bytes))
        };
        match self.protocol {
            ESP => true,
            UDP => {
                let either = [port(0), port(2)];
                let ours = |port: Option<u16>| port.is_some_and(|port| ports.contains(&port));
                let data = self.payload.get(8..12) == Some(&[4, 0, 0, 0]);
                either.into_iter().any(ours) && data || either == [Some(NAT_TRAVERSAL); 2]
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Watched {
        Watched {
            underlay: vec!["192.0.2.2".parse().unwrap()],
            ports: vec![51872],
            ours: vec!["10.1.0.0/16".parse().unwrap()],
            theirs: vec!["10.2.0.0/16".parse().unwrap()],
            content: b"not to be read".to_vec(),
            moving: false,
        }
    }

    fn packet(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        packet
    }

    fn seen(packet: &[u8]) -> Seen {
        let mut seen = Seen::default();
        seen.note(packet, &watched());
        seen
    }

    const HERE: [u8; 4] = [192, 0, 2, 1];
    const THERE: [u8; 4] = [192, 0, 2, 2];

    #[test]
    fn encrypted_packets_count_by_their_direction() {
        let mut data = vec![0xca, 0xa0, 0xca, 0xa0, 0, 0, 0, 0, 4, 0, 0, 0];
        let sent = Seen {
            sent: 1,
            ..Seen::default()
        };
        assert_eq!(seen(&packet(HERE, THERE, UDP, &data)), sent);
        assert_eq!(seen(&packet(HERE, THERE, ESP, &[1; 40])), sent);
        assert_eq!(seen(&packet(THERE, HERE, ESP, &[1; 40])).received, 1);
        // A handshake, another port, another node.
        data[8] = 1;
        assert_eq!(seen(&packet(HERE, THERE, UDP, &data)), Seen::default());
        assert_eq!(
            seen(&packet(HERE, [192, 0, 2, 9], ESP, &[1; 40])),
            Seen::default()
        );
    }

    #[test]
    fn what_can_be_read_is_found_bare_and_in_whatever_it_is_wrapped() {
        let bare = packet([10, 1, 0, 5], [10, 2, 0, 5], UDP, &[0; 8]);
        assert_eq!(seen(&bare).readable, 1);
        let wrapped = packet(HERE, THERE, 47, b"....not to be read...");
        assert_eq!(seen(&wrapped).readable, 1);
        // Somebody else's traffic is none of this peer's.
        let other = packet([10, 1, 0, 5], [10, 3, 0, 5], UDP, &[0; 8]);
        assert_eq!(seen(&other), Seen::default());
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        let whole = packet(HERE, THERE, UDP, &[0xca, 0xa0, 0, 0]);
        for length in 0..whole.len() {
            assert_eq!(seen(&whole[..length]), Seen::default());
        }
    }
}
