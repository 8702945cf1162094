//! Single rules of the core, each driven by the few events it needs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    CloseReason, Config, ConnId, Connected, Core, DenyList, Direction, Effect, EndpointId, Event,
    HoldKey, Identity, Local, LocalIdentity, Now, Pairing, PeerNode, Policy, PolicyView,
    RemoteProof, SessionState,
};
use handfast_agent::wire::{BootId, Frame, Hello, LeafHash, TunnelKind};

const WALL: u64 = 1_800_000_000;

struct Everybody;

impl PolicyView for Everybody {
    fn pairing(&self, _: &Arc<Identity>, _: &Arc<Identity>) -> Pairing {
        Pairing {
            wanted: true,
            max_age: None,
        }
    }
}

fn identity(name: &str) -> Identity {
    Identity {
        spiffe_id: format!("spiffe://example.org/{name}"),
        labels: BTreeMap::new(),
    }
}

fn local() -> Local {
    Local {
        id: "spiffe://example.org/handfast/node/a".into(),
        name: "a".into(),
        boot_id: BootId([1; 16]),
        prefixes: vec!["10.0.0.0/24".parse().unwrap()],
        tunnel_kind: TunnelKind::WireGuard,
        tunnel_key: [100; 32],
        tunnel_port: 51872,
    }
}

fn at(millis: u64) -> Now {
    Now {
        boot: Duration::from_secs(10) + Duration::from_millis(millis),
        wall: WALL + millis / 1_000,
    }
}

fn new_core() -> Core {
    let mut core = Core::new(Config::new(1), local(), None);
    core.handle(at(0), Event::Policy(Policy(Arc::new(Everybody))));
    core.handle(at(0), Event::Settled);
    core
}

fn add(core: &mut Core, endpoint: u32, name: &str) -> Vec<Effect> {
    let address = IpAddr::from([10, 0, 0, u8::try_from(endpoint).unwrap()]);
    core.handle(
        at(0),
        Event::EndpointAdded {
            endpoint: EndpointId(endpoint),
            addresses: [address].into(),
            identity: Some(identity(name)),
        },
    )
}

fn ready(core: &mut Core, name: &str) -> Vec<Effect> {
    let svid = LocalIdentity {
        identity: identity(name),
        leaf_hash: LeafHash([200; 32]),
        not_after: WALL + 86_400,
        serial: vec![200],
    };
    core.handle(at(0), Event::IdentityReady(svid))
}

/// Node `n{index}` with 10.{index}.0.0/24 has dialled this one and says who it is.
fn greet(core: &mut Core, index: u8, key: [u8; 32]) -> Vec<Effect> {
    let id = format!("spiffe://example.org/handfast/node/n{index}");
    let conn = ConnId(u64::from(index));
    core.handle(
        at(1),
        Event::Connected(Connected {
            conn,
            node: PeerNode {
                id: id.clone(),
                name: format!("n{index}"),
                prefixes: vec![format!("10.{index}.0.0/24").parse().unwrap()],
                assignment: 1,
                not_after: WALL + 86_400,
                serial: vec![index],
            },
            dialled: false,
            address: IpAddr::from([192, 0, 2, index]),
            local_not_after: WALL + 86_400,
        }),
    );
    // It goes on with the session that stands.
    let peers = core.snapshot().peers;
    let lineage = peers.iter().find(|peer| peer.id == id);
    let hello = Hello {
        version: 1,
        oldest_version: 1,
        features: 0,
        node_id: id,
        boot_id: BootId([index; 16]),
        tunnel_kind: TunnelKind::WireGuard,
        tunnel_key: key,
        tunnel_port: 51872,
        deny_number: 0,
        endpoints: 1,
        lineage: lineage.map_or(0, |peer| peer.lineage),
    };
    say(core, index, Frame::Hello(hello))
}

fn say(core: &mut Core, index: u8, frame: Frame) -> Vec<Effect> {
    let conn = ConnId(u64::from(index));
    core.handle(at(1), Event::Frame { conn, frame })
}

fn closed(effects: &[Effect], expected: CloseReason) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Close { reason, .. } if *reason == expected))
}

fn held(endpoint: u32, remote: [u8; 4]) -> HoldKey {
    HoldKey {
        endpoint: EndpointId(endpoint),
        direction: Direction::Egress,
        remote: IpAddr::from(remote),
    }
}

/// The node shows a tag for its tunnel key, and the shell says whether it is right.
fn show_key(core: &mut Core, index: u8, held: bool) -> Vec<Effect> {
    let mut effects = say(core, index, Frame::TunnelKey { tag: [index; 32] });
    let conn = ConnId(u64::from(index));
    effects.extend(core.handle(at(1), Event::TunnelKeyChecked { conn, held }));
    effects
}

fn installs(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::InstallTunnel { .. }))
}

#[test]
fn a_peer_may_not_claim_a_tunnel_key_that_another_has_shown_or_ours() {
    let mut core = new_core();
    greet(&mut core, 1, [1; 32]);
    assert!(installs(&show_key(&mut core, 1, true)));
    let other = greet(&mut core, 2, [1; 32]);
    assert!(closed(&other, CloseReason::TunnelKeyTaken), "{other:?}");
    let ours = greet(&mut core, 3, [100; 32]);
    assert!(closed(&ours, CloseReason::TunnelKeyTaken), "{ours:?}");
    let id = "spiffe://example.org/handfast/node/n2";
    let view = core.view();
    let peer = view.peers.iter().find(|peer| peer.id == id).unwrap();
    assert!(peer.session.is_none());
    // The holder itself keeps it, and need not show it again.
    let again = greet(&mut core, 1, [1; 32]);
    assert!(installs(&again), "{again:?}");
}

#[test]
fn a_claim_alone_installs_no_tunnel_and_keeps_nobody_out() {
    let mut core = new_core();
    let claimed = greet(&mut core, 1, [2; 32]);
    assert!(!installs(&claimed), "{claimed:?}");
    let holder = greet(&mut core, 2, [2; 32]);
    assert!(!closed(&holder, CloseReason::TunnelKeyTaken), "{holder:?}");
    assert!(installs(&show_key(&mut core, 2, true)));
    let liar = show_key(&mut core, 1, false);
    assert!(closed(&liar, CloseReason::TunnelKeyNotHeld), "{liar:?}");
}

#[test]
fn of_two_that_show_the_same_tunnel_key_the_first_keeps_it() {
    let mut core = new_core();
    greet(&mut core, 1, [3; 32]);
    greet(&mut core, 2, [3; 32]);
    assert!(installs(&show_key(&mut core, 1, true)));
    let second = show_key(&mut core, 2, true);
    assert!(closed(&second, CloseReason::TunnelKeyTaken), "{second:?}");
}

#[test]
fn an_endpoint_that_comes_after_its_identity_was_revoked_is_written_as_revoked() {
    let mut core = new_core();
    let list = DenyList {
        number: 1,
        identities: BTreeSet::from([identity("w").spiffe_id]),
        ..DenyList::default()
    };
    core.handle(at(0), Event::DenyList(Arc::new(list)));
    let effects = add(&mut core, 1, "w");
    let named = effects
        .iter()
        .position(|e| matches!(e, Effect::Identity { .. }));
    let cut = effects
        .iter()
        .position(|e| matches!(e, Effect::SetIdentity { revoked: true, .. }));
    assert_eq!(cut, named.map(|at| at + 1), "{effects:?}");
}

#[test]
fn a_wall_clock_that_jumps_after_a_restart_cuts_no_identity_before_its_certificate_ends() {
    let mut core = new_core();
    add(&mut core, 1, "w");
    ready(&mut core, "w");
    let mut core = Core::new(Config::new(1), local(), Some(core.snapshot()));
    // The clock is behind until the CA is heard; the SVID is not here yet.
    core.handle(at(1_000), Event::Settled);
    let later = Now {
        wall: at(2_000).wall + 3_600,
        ..at(2_000)
    };
    let effects = core.handle(later, Event::Tick);
    let end = effects.iter().find_map(|effect| match effect {
        Effect::SetIdentity { valid_until, .. } => Some(*valid_until),
        _ => None,
    });
    let left = Duration::from_secs(86_400 - 3_600 - 2);
    assert_eq!(end, Some(later.boot + left), "{effects:?}");
}

#[test]
fn a_withdrawal_discards_nothing_that_waits_for_another_peer() {
    let mut core = new_core();
    add(&mut core, 1, "w");
    greet(&mut core, 1, [1; 32]);
    greet(&mut core, 2, [2; 32]);
    let key = held(1, [10, 2, 0, 1]);
    core.handle(at(1), Event::Held(key));
    let withdraw = Frame::Withdraw {
        address: key.remote,
        generation: 7,
    };
    let effects = say(&mut core, 1, withdraw);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Discard { .. } | Effect::RemoveRemote { .. })),
        "{effects:?}"
    );
    assert!(core.view().holds.contains(&key));
}

#[test]
fn sixty_four_refused_announcements_in_one_session_end_its_connection() {
    let mut core = new_core();
    greet(&mut core, 1, [1; 32]);
    for generation in 1..=64 {
        let announce = Frame::Announce {
            address: IpAddr::from([10, 1, 0, 1]),
            leaf_hash: LeafHash([9; 32]),
            generation,
            boot_id: BootId([1; 16]),
        };
        let effects = say(&mut core, 1, announce);
        let ended = closed(&effects, CloseReason::TooManyRefused);
        assert_eq!(ended, generation == 64, "{generation}: {effects:?}");
    }
}

#[test]
fn a_hold_is_released_however_often_new_packets_join_it() {
    let mut core = new_core();
    for (endpoint, name) in [(1, "one"), (2, "two")] {
        add(&mut core, endpoint, name);
        ready(&mut core, name);
    }
    let key = held(1, [10, 0, 0, 2]);
    for _ in 0..50 {
        let effects = core.handle(at(2), Event::Held(key));
        assert!(effects.contains(&Effect::Release { key }), "{effects:?}");
    }
}

#[test]
fn an_announcement_without_an_answer_is_said_again_as_it_was() {
    let mut core = new_core();
    add(&mut core, 1, "w");
    ready(&mut core, "w");
    greet(&mut core, 1, [1; 32]);
    let request = [5; 32];
    let conn = ConnId(1);
    core.handle(
        at(1),
        Event::GrantMade {
            conn,
            requests: vec![request],
        },
    );
    let proof = Frame::Proof {
        authenticator: vec![1],
        request: Some(request),
    };
    say(&mut core, 1, proof);
    let proof = RemoteProof {
        identity: identity("there"),
        node: "n1".into(),
        leaf_hash: LeafHash([9; 32]),
        not_after: WALL + 86_400,
        serial: vec![9],
    };
    let announcements = |effects: &[Effect]| -> Vec<Frame> {
        let frames = effects.iter().filter_map(|effect| match effect {
            Effect::Send { frame, .. } => Some(frame.clone()),
            _ => None,
        });
        frames
            .filter(|frame| matches!(frame, Frame::Announce { .. }))
            .collect()
    };
    let first = announcements(&core.handle(at(1), Event::ProofVerified { conn, proof }));
    assert_eq!(first.len(), 1);
    assert!(announcements(&core.handle(at(4_000), Event::Tick)).is_empty());
    assert_eq!(announcements(&core.handle(at(5_100), Event::Tick)), first);
}

#[test]
fn revoking_nodes_cuts_all_their_sessions_before_anything_else() {
    let mut core = new_core();
    greet(&mut core, 1, [1; 32]);
    greet(&mut core, 2, [2; 32]);
    let node = |index| format!("spiffe://example.org/handfast/node/n{index}");
    let list = DenyList {
        number: 1,
        nodes: BTreeSet::from([node(1), node(2)]),
        ..DenyList::default()
    };
    let effects = core.handle(at(2), Event::DenyList(Arc::new(list)));
    assert_eq!(effects[0], Effect::Persist);
    for effect in &effects[1..=2] {
        let cut = matches!(effect, Effect::SetSession { session, .. } if session.state == SessionState::Cut);
        assert!(cut, "{effects:?}");
    }
}

#[test]
fn a_refusal_that_has_expired_leaves_the_kernel() {
    let mut core = new_core();
    add(&mut core, 1, "w");
    ready(&mut core, "w");
    greet(&mut core, 1, [1; 32]);
    let key = held(1, [10, 1, 0, 1]);
    let address = key.remote;
    core.handle(at(1), Event::Held(key));
    let effects = say(&mut core, 1, Frame::ResolveRefused { address });
    let negative = |effect: &Effect| matches!(effect, Effect::SetNegative { .. });
    assert!(effects.iter().any(negative), "{effects:?}");
    let effects = core.handle(at(10_100), Event::Tick);
    let gone = Effect::RemoveRemote { address };
    assert!(effects.contains(&gone), "{effects:?}");
}
