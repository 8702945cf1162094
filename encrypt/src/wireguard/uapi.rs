//! The control socket's text protocol (wireguard.com/xplatform, "Cross-platform Userspace Implementation").
//!
//! Pure: bytes in, values out. Own code, since wireguard-control's userspace side knows one fixed folder only,
//! prints to standard output, and panics on an odd error number.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use zeroize::{Zeroize, Zeroizing};

use super::control::{Allowed, Change, PeerChange, PeerReading, Reading};
use crate::{Error, PresharedKey, PrivateKey, PublicKey};

/// Bytes of a key in hexadecimal.
const KEY_DIGITS: usize = 64;
/// Room for one peer with a few prefixes: growing a secret text would leave copies behind.
const ROOM_PER_PEER: usize = 512;
const ROOM_PER_PREFIX: usize = 64;

/// The request that reads everything.
pub(super) const GET: &str = "get=1\n\n";

/// The request that makes a change. Wiped when dropped.
pub(super) fn set(change: &Change) -> Zeroizing<String> {
    let prefixes: usize = change.peers.iter().map(|peer| peer.prefix_count()).sum();
    let room = ROOM_PER_PEER * (1 + change.peers.len()) + ROOM_PER_PREFIX * prefixes;
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str("set=1\n");
    if let Some(key) = &change.private_key {
        line_hex(&mut text, "private_key", key.secret());
    }
    if let Some(port) = change.port {
        line(&mut text, "listen_port", port);
    }
    if let Some(mark) = change.fwmark {
        line(&mut text, "fwmark", mark);
    }
    if change.replace_peers {
        line(&mut text, "replace_peers", true);
    }
    for peer in &change.peers {
        set_peer(&mut text, peer);
    }
    text.push('\n');
    text
}

fn set_peer(text: &mut String, change: &PeerChange) {
    match change {
        PeerChange::Remove(key) => {
            line_hex(text, "public_key", key.as_bytes());
            line(text, "remove", true);
        }
        PeerChange::Set {
            peer,
            keepalive,
            allowed,
        } => {
            line_hex(text, "public_key", peer.public_key.as_bytes());
            line_hex(text, "preshared_key", peer.preshared_key.secret());
            line(text, "endpoint", peer.endpoint);
            if let Some(seconds) = keepalive {
                line(text, "persistent_keepalive_interval", seconds);
            }
            if *allowed == Allowed::Replace {
                line(text, "replace_allowed_ips", true);
            }
            if *allowed != Allowed::Keep {
                for prefix in &peer.prefixes {
                    line(text, "allowed_ip", prefix.trunc());
                }
            }
        }
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{key}={value}");
}

fn line_hex(text: &mut String, key: &str, value: &[u8; 32]) {
    text.push_str(key);
    text.push('=');
    for byte in value {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
}

/// The outcome of a change: `errno=0`, or the daemon's error number.
pub(super) fn outcome(reply: &[u8]) -> Result<(), Error> {
    pairs(reply).try_fold((), |(), pair| match pair? {
        ("errno", number) => errno(number),
        _ => Ok(()),
    })
}

/// The answer to [`GET`]. Lines of a later protocol are skipped, as the specification wants.
pub(super) fn reading(reply: &[u8]) -> Result<Reading, Error> {
    let mut reading = Reading::default();
    let mut ended = false;
    for pair in pairs(reply) {
        let (key, value) = pair?;
        match key {
            "errno" => {
                errno(value)?;
                ended = true;
            }
            "private_key" => {
                let secret = key_bytes(value)?;
                if *secret != [0; 32] {
                    reading.private_key = Some(PrivateKey::new(secret));
                }
            }
            "listen_port" => reading.port = number(value)?,
            "fwmark" => reading.fwmark = number(value)?,
            "public_key" => reading
                .peers
                .push(PeerReading::new(PublicKey::new(*key_bytes(value)?))),
            _ => read_peer(reading.peers.last_mut(), key, value)?,
        }
    }
    if ended {
        Ok(reading)
    } else {
        Err(Error::Protocol("the answer broke off".to_owned()))
    }
}

fn read_peer(peer: Option<&mut PeerReading>, key: &str, value: &str) -> Result<(), Error> {
    // Unknown device keys come before the first peer.
    let Some(peer) = peer else { return Ok(()) };
    match key {
        "preshared_key" => {
            let secret = key_bytes(value)?;
            if *secret != [0; 32] {
                peer.preshared_key = Some(PresharedKey::new(secret));
            }
        }
        // A link-local address with a zone is no endpoint of ours.
        "endpoint" => peer.endpoint = value.parse().ok(),
        "allowed_ip" => {
            let prefix = value.parse().map_err(|_| odd("allowed_ip"))?;
            peer.prefixes.push(prefix);
        }
        "rx_bytes" => peer.received_bytes = number(value)?,
        "tx_bytes" => peer.sent_bytes = number(value)?,
        "last_handshake_time_sec" => {
            let seconds = number::<u64>(value)?;
            peer.last_handshake = (seconds > 0)
                .then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
                .flatten();
        }
        _ => {}
    }
    Ok(())
}

fn pairs(reply: &[u8]) -> impl Iterator<Item = Result<(&str, &str), Error>> {
    reply
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.split_once('='))
                .ok_or_else(|| odd("a line"))
        })
}

fn errno(value: &str) -> Result<(), Error> {
    match number::<i32>(value)? {
        0 => Ok(()),
        number => Err(Error::Refused(std::io::Error::from_raw_os_error(
            number.checked_abs().unwrap_or(libc::EIO),
        ))),
    }
}

fn number<N: std::str::FromStr>(value: &str) -> Result<N, Error> {
    value.parse().map_err(|_| odd("a number"))
}

fn key_bytes(digits: &str) -> Result<Zeroizing<[u8; 32]>, Error> {
    if digits.len() != KEY_DIGITS {
        return Err(odd("a key"));
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            let digit = char::from(*digit)
                .to_digit(16)
                .ok_or_else(|| odd("a key"))?;
            value = (value << 4) | digit;
        }
        *byte = u8::try_from(value).unwrap_or_default();
        value.zeroize();
    }
    Ok(bytes)
}

/// The offending text is not repeated: it may be a key.
fn odd(what: &str) -> Error {
    Error::Protocol(format!("{what} in the answer makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Peer;

    const KEY: &str = "188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52";

    fn peer() -> Peer {
        Peer {
            number: 5,
            public_key: PublicKey::new([0xab; 32]),
            preshared_key: PresharedKey::new(Zeroizing::new([0x5a; 32])),
            endpoint: "[2001:db8::1]:51872".parse().unwrap(),
            prefixes: vec!["10.1.2.3/16".parse().unwrap()],
        }
    }

    #[test]
    fn a_renewed_session_sends_a_peers_preshared_key_and_endpoint_only() {
        let change = Change {
            peers: vec![PeerChange::Set {
                peer: peer(),
                keepalive: None,
                allowed: Allowed::Keep,
            }],
            ..Change::default()
        };
        let (public, preshared) = ("ab".repeat(32), "5a".repeat(32));
        let endpoint = "endpoint=[2001:db8::1]:51872";
        assert_eq!(
            *set(&change),
            format!("set=1\npublic_key={public}\npreshared_key={preshared}\n{endpoint}\n\n")
        );
    }

    #[test]
    fn allowed_prefixes_are_left_alone_when_they_do_not_change() {
        let with = |allowed| {
            let change = Change {
                peers: vec![PeerChange::Set {
                    peer: peer(),
                    keepalive: None,
                    allowed,
                }],
                ..Change::default()
            };
            set(&change).to_string()
        };
        assert!(!with(Allowed::Keep).contains("allowed_ip"));
        assert!(with(Allowed::Add).contains("\nallowed_ip=10.1.0.0/16\n"));
        assert!(!with(Allowed::Add).contains("replace"));
        assert!(
            with(Allowed::Replace).contains("replace_allowed_ips=true\nallowed_ip=10.1.0.0/16\n")
        );
    }

    #[test]
    fn a_request_never_outgrows_its_first_allocation() {
        let mut wide = peer();
        wide.prefixes = vec![
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
                .parse()
                .unwrap();
            300
        ];
        let change = Change {
            private_key: Some(PrivateKey::generate()),
            port: Some(u16::MAX),
            fwmark: Some(u32::MAX),
            replace_peers: true,
            peers: vec![PeerChange::Set {
                peer: wide,
                keepalive: Some(u16::MAX),
                allowed: Allowed::Replace,
            }],
        };
        let room = ROOM_PER_PEER * 2 + ROOM_PER_PREFIX * 300;
        assert!(set(&change).len() <= room);
    }

    #[test]
    fn an_answer_is_read_with_its_peers() {
        let reply = format!(
            "private_key={KEY}\nlisten_port=51872\nfwmark=7\nfuture=x\npublic_key={KEY}\npreshared_key={KEY}\n\
             protocol_version=1\nendpoint=[2001:db8::1]:51872\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
             tx_bytes=10\nrx_bytes=20\nallowed_ip=10.1.0.0/16\nallowed_ip=fd00::/64\npublic_key={}\nerrno=0\n\n",
            "00".repeat(32)
        );
        let reading = reading(reply.as_bytes()).unwrap();
        assert!(reading.private_key.is_some());
        assert_eq!((reading.port, reading.fwmark), (51872, 7));
        let first = reading.peers.first().unwrap();
        assert!(first.preshared_key.is_some() && first.last_handshake.is_some());
        assert_eq!(
            (first.sent_bytes, first.received_bytes, first.prefixes.len()),
            (10, 20, 2)
        );
        assert_eq!(reading.peers.len(), 2);
    }

    #[test]
    fn a_refusal_carries_the_daemons_error_number() {
        let error = outcome(b"errno=-98\n\n").unwrap_err();
        assert!(
            matches!(error, Error::Refused(error) if error.raw_os_error() == Some(libc::EADDRINUSE))
        );
        outcome(b"errno=0\n\n").unwrap();
    }

    #[test]
    fn nonsense_is_an_error_that_does_not_repeat_it() {
        for nonsense in [
            "garbage\n\n",
            "private_key=zz\nerrno=0\n\n",
            "listen_port=99999\nerrno=0\n\n",
            "errno=99999999999999\n\n",
            &format!("public_key={KEY}\nallowed_ip=secret\nerrno=0\n\n"),
            "private_key=\u{fffd}\n\n",
            "",
        ] {
            let error = reading(nonsense.as_bytes()).unwrap_err().to_string();
            assert!(
                !error.contains("secret") && !error.contains("zz"),
                "{error}"
            );
        }
        assert!(reading(b"\xff\xfe=\n\n").is_err());
    }
}
