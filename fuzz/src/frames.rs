//! Frames of a session: whatever is taken in is legal, and says the same when sent on.

use handfast_agent::wire::{BootId, Frame, Hello, LeafHash, MAX_FRAME, Reason, TunnelKind};

pub fn run(data: &[u8]) {
    let Ok(Some(frame)) = Frame::decode(data) else {
        return;
    };
    let bytes = frame.encode().expect("what was decoded can be encoded");
    assert!(bytes.len() <= MAX_FRAME + 4, "{} grew", frame.name());
    let body = &bytes[bytes.len() - body_len(&bytes)..];
    assert_eq!(Frame::decode(body), Ok(Some(frame)));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let leaf_hash = LeafHash([7; 32]);
    let boot_id = BootId([3; 16]);
    let reason = Reason::new("for no reason");
    let v4 = "10.99.1.7".parse().expect("an address");
    let v6 = "fd00:99:1::7".parse().expect("an address");
    let frames = [
        Frame::Hello(Hello {
            version: 1,
            oldest_version: 1,
            features: 0,
            node_id: "spiffe://example.org/handfast/node/n1".to_owned(),
            boot_id,
            tunnel_kind: TunnelKind::WireGuard,
            tunnel_key: [9; 32],
            tunnel_port: 51872,
            deny_number: 1_700_000_000_000,
            endpoints: 3,
            lineage: 9,
        }),
        Frame::Grant {
            requests: vec![[1; 32], [2; 32]],
        },
        Frame::Proof {
            authenticator: vec![11; 300],
            request: Some([1; 32]),
        },
        Frame::Proof {
            authenticator: vec![11; 300],
            request: None,
        },
        Frame::ProofAccepted { leaf_hash },
        Frame::TunnelKey { tag: [5; 32] },
        Frame::Ask {
            id: 1,
            question: vec![1; 9],
        },
        Frame::Answer {
            id: 1,
            answer: vec![2; 9],
        },
        Frame::ProofRefused {
            leaf_hash: Some(leaf_hash),
            reason: reason.clone(),
        },
        Frame::Announce {
            address: v4,
            leaf_hash,
            generation: 1,
            boot_id,
        },
        Frame::Announced {
            address: v6,
            generation: 1,
        },
        Frame::AnnounceRefused {
            address: v6,
            generation: 1,
            reason: reason.clone(),
        },
        Frame::Withdraw {
            address: v4,
            generation: u64::MAX,
        },
        Frame::Withdrawn {
            address: v4,
            generation: 2,
        },
        Frame::Resolve {
            address: v6,
            leaf_hash,
        },
        Frame::ResolveRefused { address: v4 },
        Frame::TunnelReady,
        Frame::Ready,
        Frame::DenyList {
            bytes: vec![5; 100],
            more: true,
        },
        Frame::Ping,
        Frame::Pong,
        Frame::Goodbye { reason },
    ];
    frames
        .iter()
        .map(|frame| {
            let bytes = frame.encode().expect("a legal frame");
            bytes[bytes.len() - body_len(&bytes)..].to_vec()
        })
        .collect()
}

/// Length of what follows the prefix of four bytes.
fn body_len(bytes: &[u8]) -> usize {
    let prefix: [u8; 4] = bytes[..4].try_into().expect("four bytes of length");
    u32::from_be_bytes(prefix) as usize
}
