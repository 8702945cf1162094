//! Frames survive the wire, and nothing else does.

use std::net::IpAddr;

use proptest::prelude::*;
use prost::Message;

use super::message::{Address, Envelope};
use super::*;

const ANNOUNCED: u32 = 7;

fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
    prop_oneof![v4, v6].prop_filter("legal", |address| {
        let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        let nowhere = address.is_unspecified() || address.is_multicast() || address.is_loopback();
        !mapped && !nowhere && *address != IpAddr::from([255, 255, 255, 255])
    })
}

fn reason() -> impl Strategy<Value = Reason> {
    any::<String>().prop_map(|text| Reason::new(&text))
}

fn leaf_hash() -> impl Strategy<Value = LeafHash> {
    any::<[u8; 32]>().prop_map(LeafHash)
}

prop_compose! {
    fn hello()(
        (version, oldest_version, features, kind) in (any::<(u32, u32, u64)>(), 1..=u32::MAX)
            .prop_map(|((version, oldest, features), kind)| (version, oldest, features, kind)),
        name in "[a-z0-9._-]{1,40}[a-z]",
        boot_id in any::<[u8; 16]>(),
        tunnel_key in any::<[u8; 32]>(),
        tunnel_port in 1..=u16::MAX,
        (deny_number, endpoints, lineage) in any::<(u64, u32, u64)>(),
    ) -> Frame {
        let node_id = format!("spiffe://example.org/handfast/node/{name}");
        let boot_id = BootId(boot_id);
        let tunnel_kind = types::TunnelKind::from_wire(kind).unwrap();
        Frame::Hello(Hello {
            version, oldest_version, features, node_id, boot_id, tunnel_kind, tunnel_key,
            tunnel_port, deny_number, endpoints, lineage,
        })
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let numbered = || (address(), any::<u64>());
    let bytes = |most| prop::collection::vec(any::<u8>(), 1..most);
    prop_oneof![
        hello(),
        prop::collection::vec(any::<[u8; 32]>(), 1..=MAX_REQUESTS)
            .prop_map(|requests| Frame::Grant { requests }),
        (bytes(2000), any::<Option<[u8; 32]>>()).prop_map(|(authenticator, request)| {
            Frame::Proof {
                authenticator,
                request,
            }
        }),
        leaf_hash().prop_map(|leaf_hash| Frame::ProofAccepted { leaf_hash }),
        (prop::option::of(leaf_hash()), reason())
            .prop_map(|(leaf_hash, reason)| Frame::ProofRefused { leaf_hash, reason }),
        (numbered(), leaf_hash(), any::<[u8; 16]>()).prop_map(
            |((address, generation), leaf_hash, boot)| {
                Frame::Announce {
                    address,
                    leaf_hash,
                    generation,
                    boot_id: BootId(boot),
                }
            }
        ),
        any::<[u8; 32]>().prop_map(|tag| Frame::TunnelKey { tag }),
        numbered().prop_map(|(address, generation)| Frame::Announced {
            address,
            generation
        }),
        (numbered(), reason()).prop_map(|((address, generation), reason)| {
            Frame::AnnounceRefused {
                address,
                generation,
                reason,
            }
        }),
        numbered().prop_map(|(address, generation)| Frame::Withdraw {
            address,
            generation
        }),
        numbered().prop_map(|(address, generation)| Frame::Withdrawn {
            address,
            generation
        }),
        (address(), leaf_hash())
            .prop_map(|(address, leaf_hash)| Frame::Resolve { address, leaf_hash }),
        address().prop_map(|address| Frame::ResolveRefused { address }),
        (bytes(4000), any::<bool>()).prop_map(|(bytes, more)| Frame::DenyList { bytes, more }),
        reason().prop_map(|reason| Frame::Goodbye { reason }),
        (any::<u64>(), bytes(MAX_QUESTION)).prop_map(|(id, question)| Frame::Ask { id, question }),
        (any::<u64>(), bytes(MAX_ANSWER)).prop_map(|(id, answer)| Frame::Answer { id, answer }),
        Just(Frame::TunnelReady),
        Just(Frame::Ready),
        Just(Frame::Ping),
        Just(Frame::Pong),
    ]
}

proptest! {
    #[test]
    fn what_is_sent_is_what_arrives(frame in frame()) {
        let bytes = frame.encode().unwrap();
        let (length, body) = bytes.split_first_chunk::<4>().unwrap();
        prop_assert_eq!(u32::from_be_bytes(*length) as usize, body.len());
        prop_assert_eq!(Frame::decode(body), Ok(Some(frame)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn arbitrary_bodies_never_panic_and_what_is_read_can_be_sent(
        kind in 0..24u32,
        optional: bool,
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let read = Frame::decode(&Envelope { kind, optional, body }.encode_to_vec());
        if let Ok(Some(frame)) = read {
            prop_assert!(frame.encode().is_ok());
        }
    }

    #[test]
    fn damaged_frames_are_refused_or_are_other_legal_frames(
        frame in frame(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let mut bytes = frame.encode().unwrap().split_off(4);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(Some(frame)) = Frame::decode(&bytes) {
            prop_assert!(frame.encode().is_ok());
        }
    }
}

fn with_address(address: &[u8]) -> Result<Option<Frame>, FrameError> {
    let body = Address {
        address: address.to_vec(),
        generation: 1,
        ..Default::default()
    };
    let body = body.encode_to_vec();
    Frame::decode(
        &Envelope {
            kind: ANNOUNCED,
            optional: false,
            body,
        }
        .encode_to_vec(),
    )
}

#[test]
fn addresses_that_no_workload_can_have_are_refused_both_ways() {
    assert!(with_address(&[10, 0, 0, 1]).is_ok());
    for bad in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "::ffff:10.0.0.1",
    ] {
        let address: IpAddr = bad.parse().unwrap();
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        assert!(
            matches!(with_address(&bytes), Err(FrameError::Field { .. })),
            "{bad}"
        );
        assert!(Frame::ResolveRefused { address }.encode().is_err(), "{bad}");
    }
    for length in [0, 3, 5, 15, 17] {
        assert!(with_address(&vec![10; length]).is_err(), "{length} bytes");
    }
}

#[test]
fn an_unknown_kind_is_skipped_only_if_its_sender_marked_it_optional() {
    let unknown = |optional| {
        Envelope {
            kind: 999,
            optional,
            body: vec![1, 2, 3],
        }
        .encode_to_vec()
    };
    assert_eq!(Frame::decode(&unknown(true)), Ok(None));
    assert_eq!(
        Frame::decode(&unknown(false)),
        Err(FrameError::UnknownKind(999))
    );
}

#[test]
fn sizes_are_bounded() {
    let proof = |length| Frame::Proof {
        authenticator: vec![0; length],
        request: None,
    };
    assert!(proof(MAX_AUTHENTICATOR).encode().is_ok());
    assert!(proof(MAX_AUTHENTICATOR + 1).encode().is_err());
    assert!(proof(0).encode().is_err());
    assert!(
        Frame::Grant {
            requests: vec![[0; 32]; MAX_REQUESTS + 1]
        }
        .encode()
        .is_err()
    );
    assert!(
        Frame::DenyList {
            bytes: vec![0; MAX_DENY_LIST],
            more: true
        }
        .encode()
        .is_ok()
    );
    assert!(
        Frame::DenyList {
            bytes: vec![0; MAX_DENY_LIST + 1],
            more: false
        }
        .encode()
        .is_err()
    );
    let large = vec![0; MAX_FRAME + 1];
    assert_eq!(
        Frame::decode(&large),
        Err(FrameError::TooLarge(MAX_FRAME + 1))
    );
}

#[test]
fn a_reason_is_short_and_printable() {
    let long = "ä".repeat(MAX_REASON);
    assert_eq!(Reason::new(&long).as_str().len(), MAX_REASON);
    assert_eq!(Reason::new("a\nb\u{1b}[0m").as_str(), "a?b?[0m");
    assert_eq!(Reason::parse("a\nb".into()), None);
    assert_eq!(Reason::parse("a".repeat(MAX_REASON + 1)), None);
}

#[test]
fn a_node_id_has_one_spelling() {
    let hello = |node_id: &str| {
        Frame::Hello(Hello {
            version: 1,
            oldest_version: 1,
            features: 0,
            node_id: node_id.into(),
            boot_id: BootId([0; 16]),
            tunnel_kind: TunnelKind::WireGuard,
            tunnel_key: [0; 32],
            tunnel_port: 1,
            deny_number: 0,
            endpoints: 0,
            lineage: 0,
        })
    };
    assert!(
        hello("spiffe://example.org/handfast/node/a")
            .encode()
            .is_ok()
    );
    for bad in [
        "",
        "a",
        "spiffe://Example.org/a",
        "spiffe://example.org/a/",
        "spiffe:///a",
    ] {
        assert!(hello(bad).encode().is_err(), "{bad}");
    }
}
