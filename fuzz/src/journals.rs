//! What an agent has stored for the next one.

use std::net::IpAddr;
use std::sync::Arc;

use handfast_agent::core::{
    Identity, IdentityNumber, IdentitySnapshot, Journal, PeerNumber, PeerSnapshot, RemoteSnapshot,
    Snapshot,
};
use handfast_agent::wire::BootId;

/// It is read and can be gone on from, or it is refused; what is read and written is read as the same.
pub fn run(data: &[u8]) {
    let Ok(read) = Journal::read(data) else {
        return;
    };
    let whole = Journal::whole(&read.snapshot).expect("a snapshot can be written");
    let again = Journal::read(&whole).expect("what was written is read");
    assert_eq!(again.snapshot, read.snapshot);
}

/// A file of an agent that has met a peer, and what it did next.
pub fn seeds() -> Vec<Vec<u8>> {
    let before = snapshot(1);
    let whole = Journal::whole(&before).expect("a line");
    let next = Journal::next(&before, &snapshot(3)).expect("a line");
    let file = [whole.clone(), next.expect("a later one")].concat();
    let back = Journal::next(&snapshot(3), &before).expect("a line");
    let longer = [file.clone(), back.expect("another")].concat();
    vec![whole, file, longer]
}

fn snapshot(size: u8) -> Snapshot {
    let identities = (0..size).map(|number| IdentitySnapshot {
        number: IdentityNumber(256 + u32::from(number)),
        identity: Arc::new(Identity {
            spiffe_id: format!("spiffe://example.org/w{number}"),
            labels: [("app".to_owned(), format!("w{number}"))].into(),
        }),
        not_after: 1_800_000_000,
        revoked: number == 2,
    });
    let address = |last| IpAddr::from([10, 109, 0, last]);
    let remotes = (0..size).map(|number| RemoteSnapshot {
        address: address(number),
        identity: IdentityNumber(256 + u32::from(number)),
        epoch: 1,
        generation: 7,
    });
    let peer = PeerSnapshot {
        number: PeerNumber(1),
        id: "spiffe://example.org/handfast/node/b".to_owned(),
        name: "b".to_owned(),
        prefixes: Vec::new(),
        assignment: 1,
        serial: vec![1, 2, 3],
        tunnel_key: Some([7; 32]),
        boot_ids: vec![BootId([2; 16])],
        last_epoch: u32::from(size),
        lineage: 9,
        session: None,
        announced: Arc::default(),
        remotes: Arc::new(remotes.collect()),
        rests_on: Arc::default(),
        seen: Arc::new(vec![(address(1), 7)]),
        seen_floor: 1,
    };
    Snapshot {
        version: 1,
        node: "spiffe://example.org/handfast/node/a".to_owned(),
        boot_id: BootId([1; 16]),
        next_identity: 300,
        next_peer: 2,
        generation: 9,
        identities: Arc::new(identities.collect()),
        peers: vec![Arc::new(peer)],
        removals: Default::default(),
        rests: Vec::new(),
    }
}
