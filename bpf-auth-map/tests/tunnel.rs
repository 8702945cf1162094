//! Both tunnel gates, packet by packet, in the kernel's own test run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use handfast_bpf::*;
use support::{packets::*, run::*};

/// A packet out of the endpoint, and one into it, of each family.
fn out(a: &Addresses, payload: &[u8], proto: u8) -> Vec<u8> {
    frame(&ip(a.me, a.them, proto, payload))
}

fn into(a: &Addresses, payload: &[u8], proto: u8) -> Vec<u8> {
    frame(&ip(a.them, a.me, proto, payload))
}

fn to_tunnel(node: &mut Node, a: &Addresses) -> Outcome {
    node.run("to_tunnel", GATED, &out(a, &tcp(40000, 80, SYN), TCP))
}

fn from_tunnel(node: &mut Node, a: &Addresses) -> Outcome {
    node.run(
        "from_tunnel",
        FORWARDED,
        &into(a, &tcp(50000, 80, SYN), TCP),
    )
}

#[test]
fn a_proven_pair_passes_both_ways() {
    let Some(mut node) = Node::new("proven") else {
        return;
    };
    for a in families() {
        assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
        assert_eq!(from_tunnel(&mut node, &a), Outcome::Pass(DECIDED));
        let echo = echo(a.me, 9);
        let proto = icmp_proto(a.me);
        assert_eq!(
            node.run("to_tunnel", GATED, &out(&a, &echo, proto)),
            Outcome::Pass(0)
        );
        assert_eq!(
            node.run("to_tunnel", GATED, &out(&a, &udp(5, 53), UDP)),
            Outcome::Pass(0)
        );
    }
    assert_eq!(node.tables().connections().unwrap().len(), 8);
}

/// One change to a node on which all is well, and what becomes of the first packet each way.
type Case = (&'static str, fn(&Tables, &Addresses), Outcome, Outcome);

#[test]
fn each_thing_that_is_missing_has_its_own_verdict() {
    use Outcome::{Drop, Hold, Pass};
    let cases: &[Case] = &[
        (
            "no session",
            |t, _| t.remove_session(PEER).unwrap(),
            Hold,
            Drop(Reason::NoSession),
        ),
        (
            "session pending",
            |t, _| {
                t.set_session(
                    PEER,
                    &Session {
                        state: SessionState::Pending,
                        ..session()
                    },
                )
                .unwrap()
            },
            Hold,
            Hold,
        ),
        (
            "session cut",
            |t, _| {
                t.set_session(
                    PEER,
                    &Session {
                        state: SessionState::Cut,
                        ..session()
                    },
                )
                .unwrap()
            },
            Hold,
            Drop(Reason::SessionCut),
        ),
        (
            "session expired",
            |t, _| {
                t.set_session(
                    PEER,
                    &Session {
                        expires: just_now(),
                        ..session()
                    },
                )
                .unwrap()
            },
            Hold,
            Drop(Reason::SessionExpired),
        ),
        (
            "nobody announced it",
            |t, a| t.remove_remote(a.them).unwrap(),
            Hold,
            Drop(Reason::RemoteUnknown),
        ),
        (
            "the peer refuses",
            |t, a| t.refuse_remote(a.them, PEER, far()).unwrap(),
            Drop(Reason::RemoteRefused),
            Drop(Reason::RemoteRefused),
        ),
        (
            "a refusal that is over",
            |t, a| t.refuse_remote(a.them, PEER, just_now()).unwrap(),
            Hold,
            Drop(Reason::RemoteUnknown),
        ),
        (
            "announced by another peer",
            |t, a| {
                t.set_remote(
                    a.them,
                    &Remote {
                        peer: PeerNumber(6),
                        ..remote()
                    },
                )
                .unwrap()
            },
            Hold,
            Drop(Reason::RemoteElsewhere),
        ),
        (
            "announced in an ended session",
            |t, a| {
                t.set_remote(
                    a.them,
                    &Remote {
                        epoch: Epoch(2),
                        ..remote()
                    },
                )
                .unwrap()
            },
            Hold,
            Drop(Reason::EpochStale),
        ),
        (
            "announced in a session that is to come",
            |t, a| {
                t.set_remote(
                    a.them,
                    &Remote {
                        epoch: Epoch(4),
                        ..remote()
                    },
                )
                .unwrap()
            },
            Hold,
            Hold,
        ),
        (
            "ours not announced",
            |t, a| t.remove_announced(a.me, PEER).unwrap(),
            Hold,
            Drop(Reason::NotAnnounced),
        ),
        (
            "ours announced in an ended session",
            |t, a| {
                t.set_announced(
                    a.me,
                    PEER,
                    &Announced {
                        epoch: Epoch(2),
                        ..announced()
                    },
                )
                .unwrap()
            },
            Hold,
            Drop(Reason::NotAnnounced),
        ),
        (
            "ours not confirmed",
            |t, a| {
                t.set_announced(
                    a.me,
                    PEER,
                    &Announced {
                        state: AnnouncedState::Sent,
                        ..announced()
                    },
                )
                .unwrap();
            },
            Hold,
            Hold,
        ),
        (
            "ours being withdrawn",
            |t, a| {
                let state = AnnouncedState::Withdrawing;
                t.set_announced(
                    a.me,
                    PEER,
                    &Announced {
                        state,
                        ..announced()
                    },
                )
                .unwrap();
            },
            Drop(Reason::Withdrawing),
            Drop(Reason::Withdrawing),
        ),
        (
            "announced for another endpoint",
            |t, a| {
                t.set_announced(
                    a.me,
                    PEER,
                    &Announced {
                        endpoint: OTHER,
                        ..announced()
                    },
                )
                .unwrap()
            },
            Drop(Reason::AnnouncedOther),
            Drop(Reason::AnnouncedOther),
        ),
        (
            "nobody's address any more",
            |t, a| t.remove_local(a.me).unwrap(),
            Drop(Reason::NoEndpoint),
            Drop(Reason::NoEndpoint),
        ),
        (
            "not in any prefix",
            |t, _| {
                t.remove_prefix("10.2.0.0/16".parse().unwrap()).unwrap();
                t.remove_prefix("fd02::/16".parse().unwrap()).unwrap();
            },
            Drop(Reason::NotManaged),
            Drop(Reason::NotManaged),
        ),
        ("no pair", |t, _| t.remove_pair(pair()).unwrap(), Hold, Hold),
        (
            "pair expired",
            |t, _| {
                t.set_pair(
                    pair(),
                    Pair {
                        expires: just_now(),
                        epoch: EPOCH,
                    },
                )
                .unwrap()
            },
            Hold,
            Hold,
        ),
        (
            "pair of an ended session",
            |t, _| {
                t.set_pair(
                    pair(),
                    Pair {
                        expires: far(),
                        epoch: Epoch(2),
                    },
                )
                .unwrap()
            },
            Hold,
            Hold,
        ),
        (
            "pair of another peer",
            |t, _| {
                t.remove_pair(pair()).unwrap();
                let peer = PeerNumber(6);
                t.set_pair(
                    PairKey { peer, ..pair() },
                    Pair {
                        expires: far(),
                        epoch: EPOCH,
                    },
                )
                .unwrap();
            },
            Hold,
            Hold,
        ),
        (
            "my identity expired",
            |t, _| {
                t.set_identity(
                    ME,
                    &Identity {
                        valid_until: just_now(),
                        revoked: false,
                    },
                )
                .unwrap()
            },
            Hold,
            Hold,
        ),
        (
            "their identity unknown",
            |t, _| t.remove_identity(THEM).unwrap(),
            Hold,
            Hold,
        ),
        (
            "my identity revoked",
            |t, _| {
                t.set_identity(
                    ME,
                    &Identity {
                        valid_until: far(),
                        revoked: true,
                    },
                )
                .unwrap()
            },
            Drop(Reason::IdentityRevoked),
            Drop(Reason::IdentityRevoked),
        ),
        (
            "their identity revoked",
            |t, _| {
                t.set_identity(
                    THEM,
                    &Identity {
                        valid_until: far(),
                        revoked: true,
                    },
                )
                .unwrap()
            },
            Drop(Reason::IdentityRevoked),
            Drop(Reason::IdentityRevoked),
        ),
        (
            "no policy",
            |t, _| t.remove_policy(ENDPOINT).unwrap(),
            Drop(Reason::NoRule),
            Drop(Reason::NoRule),
        ),
        (
            "a denial for all beside an allow for them",
            |t, _| {
                let any = IdentityNumber::ANY;
                let entries = [Direction::Ingress, Direction::Egress]
                    .map(|d| rule(d, any, Ports::Any, deny()));
                t.add_policy(ENDPOINT, &entries).unwrap();
            },
            Drop(Reason::Denied),
            Drop(Reason::Denied),
        ),
        (
            "a denial of one port",
            |t, _| {
                let port = Ports::Prefix {
                    protocol: TCP,
                    port: 80,
                    bits: 16,
                };
                t.add_policy(ENDPOINT, &[rule(Direction::Egress, THEM, port, deny())])
                    .unwrap();
            },
            Drop(Reason::Denied),
            Pass(DECIDED),
        ),
        (
            "a rule that always fails",
            |t, _| {
                let value = allow(Auth::TestAlwaysFail);
                t.add_policy(
                    ENDPOINT,
                    &[rule(Direction::Egress, THEM, Ports::Any, value)],
                )
                .unwrap();
            },
            Drop(Reason::TestFail),
            Pass(DECIDED),
        ),
        (
            "no hold device and no pair",
            |t, _| {
                t.remove_pair(pair()).unwrap();
                let settings = Settings {
                    hold: None,
                    ..t.settings().unwrap()
                };
                t.set_settings(&settings).unwrap();
            },
            Drop(Reason::HoldAway),
            Drop(Reason::HoldAway),
        ),
    ];
    for (index, (name, change, outward, inward)) in cases.iter().enumerate() {
        let Some(mut node) = Node::new(&format!("missing-{index}")) else {
            return;
        };
        for a in families() {
            change(node.tables(), &a);
            assert_eq!(&to_tunnel(&mut node, &a), outward, "out, {name}, {a:?}");
            assert_eq!(&from_tunnel(&mut node, &a), inward, "in, {name}, {a:?}");
        }
    }
}

/// One write that takes something away.
type Cut = (&'static str, fn(&Tables, &Addresses));

#[test]
fn an_open_flow_is_cut_by_every_single_write_that_cuts() {
    let cuts: &[Cut] = &[
        ("session", |t, _| {
            t.set_session(
                PEER,
                &Session {
                    state: SessionState::Cut,
                    ..session()
                },
            )
            .unwrap()
        }),
        ("expiry", |t, _| {
            t.set_session(
                PEER,
                &Session {
                    expires: just_now(),
                    ..session()
                },
            )
            .unwrap()
        }),
        ("epoch", |t, _| {
            t.set_session(
                PEER,
                &Session {
                    oldest: Epoch(4),
                    current: Epoch(4),
                    ..session()
                },
            )
            .unwrap();
        }),
        ("identity", |t, _| {
            t.set_identity(
                THEM,
                &Identity {
                    valid_until: far(),
                    revoked: true,
                },
            )
            .unwrap();
        }),
        ("own identity", |t, _| {
            t.set_identity(
                ME,
                &Identity {
                    valid_until: far(),
                    revoked: true,
                },
            )
            .unwrap();
        }),
        ("pair", |t, _| t.remove_pair(pair()).unwrap()),
        ("remote", |t, a| t.remove_remote(a.them).unwrap()),
        ("remote is another now", |t, a| {
            let identity = IdentityNumber(999);
            t.set_remote(
                a.them,
                &Remote {
                    identity,
                    ..remote()
                },
            )
            .unwrap();
            t.set_identity(
                identity,
                &Identity {
                    valid_until: far(),
                    revoked: false,
                },
            )
            .unwrap();
            let any = IdentityNumber::ANY;
            let entries =
                [Direction::Ingress, Direction::Egress].map(|d| rule(d, any, Ports::Any, deny()));
            t.add_policy(ENDPOINT, &entries).unwrap();
        }),
        ("address is another endpoint's now", |t, a| {
            t.set_local(
                a.me,
                Local {
                    endpoint: OTHER,
                    identity: NEIGHBOUR,
                },
            )
            .unwrap();
        }),
        ("withdrawal", |t, a| {
            let state = AnnouncedState::Withdrawing;
            t.set_announced(
                a.me,
                PEER,
                &Announced {
                    state,
                    ..announced()
                },
            )
            .unwrap();
        }),
        ("policy", |t, _| t.replace_policy(ENDPOINT, &[]).unwrap()),
    ];
    for (index, (name, cut)) in cuts.iter().enumerate() {
        let Some(mut node) = Node::new(&format!("cut-{index}")) else {
            return;
        };
        for a in families() {
            if index > 0 {
                node.tables().set_session(PEER, &session()).unwrap();
            }
            let reply = into(&a, &tcp(80, 40000, SYN | ACK), TCP);
            let data = out(&a, &tcp(40000, 80, ACK), TCP);
            if to_tunnel(&mut node, &a) != Outcome::Pass(0) {
                // What was cut for the first family is cut for the second.
                continue;
            }
            assert_eq!(
                node.run("from_tunnel", FORWARDED, &reply),
                Outcome::Pass(DECIDED)
            );
            assert_eq!(node.run("to_tunnel", GATED, &data), Outcome::Pass(0));
            cut(node.tables(), &a);
            let (there, back) = (
                node.run("to_tunnel", GATED, &data),
                node.run("from_tunnel", FORWARDED, &reply),
            );
            assert!(!matches!(there, Outcome::Pass(_)), "{name}: {there:?}");
            assert!(!matches!(back, Outcome::Pass(_)), "{name}, reply: {back:?}");
        }
    }
}

#[test]
fn an_open_flow_outlives_its_session_when_the_successor_proves_anew() {
    let Some(mut node) = Node::new("successor") else {
        return;
    };
    for a in families() {
        node.tables().set_session(PEER, &session()).unwrap();
        node.tables()
            .set_pair(
                pair(),
                Pair {
                    expires: far(),
                    epoch: EPOCH,
                },
            )
            .unwrap();
        node.tables().set_remote(a.them, &remote()).unwrap();
        node.tables()
            .set_announced(a.me, PEER, &announced())
            .unwrap();
        let data = out(&a, &tcp(40000, 80, ACK), TCP);
        assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
        let next = Epoch(4);
        let tables = node.tables();
        tables
            .set_session(
                PEER,
                &Session {
                    current: next,
                    ..session()
                },
            )
            .unwrap();
        tables
            .set_remote(
                a.them,
                &Remote {
                    epoch: next,
                    ..remote()
                },
            )
            .unwrap();
        tables
            .set_announced(
                a.me,
                PEER,
                &Announced {
                    epoch: next,
                    ..announced()
                },
            )
            .unwrap();
        assert_eq!(node.run("to_tunnel", GATED, &data), Outcome::Pass(0));
        let tables = node.tables();
        tables
            .set_pair(
                pair(),
                Pair {
                    expires: far(),
                    epoch: next,
                },
            )
            .unwrap();
        tables
            .set_session(
                PEER,
                &Session {
                    oldest: next,
                    current: next,
                    ..session()
                },
            )
            .unwrap();
        tables.sweep_epoch(PEER, next).unwrap();
        assert_eq!(node.run("to_tunnel", GATED, &data), Outcome::Pass(0));
    }
}

#[test]
fn a_reply_needs_no_rule_of_its_own_but_a_syn_does() {
    let Some(mut node) = Node::new("reply") else {
        return;
    };
    let port = Ports::Prefix {
        protocol: TCP,
        port: 80,
        bits: 16,
    };
    let entries = [rule(Direction::Egress, THEM, port, allow(Auth::Required))];
    node.tables().replace_policy(ENDPOINT, &entries).unwrap();
    for a in families() {
        let reply = into(&a, &tcp(80, 40000, SYN | ACK), TCP);
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &reply),
            Outcome::Drop(Reason::NoRule)
        );
        assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &reply),
            Outcome::Pass(DECIDED)
        );
        let syn = into(&a, &tcp(80, 40000, SYN), TCP);
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &syn),
            Outcome::Drop(Reason::NoRule)
        );
    }
}

#[test]
fn only_what_came_through_its_endpoints_gate_may_enter_the_tunnel() {
    let Some(mut node) = Node::new("provenance") else {
        return;
    };
    for a in families() {
        let packet = out(&a, &tcp(40000, 80, SYN), TCP);
        assert_eq!(
            node.run("to_tunnel", FORWARDED, &packet),
            Outcome::Drop(Reason::Ungated)
        );
        let forged = Came {
            mark: GATED.mark,
            by: 0,
        };
        assert_eq!(
            node.run("to_tunnel", forged, &packet),
            Outcome::Drop(Reason::HostMade)
        );
        let spoofed = frame(&ip(a.world, a.them, TCP, &tcp(40000, 80, SYN)));
        assert_eq!(
            node.run("to_tunnel", GATED, &spoofed),
            Outcome::Drop(Reason::NoEndpoint)
        );
        let home = frame(&ip(a.me, a.neighbour, TCP, &tcp(40000, 80, SYN)));
        assert_eq!(
            node.run("to_tunnel", GATED, &home),
            Outcome::Drop(Reason::NotManaged)
        );
    }
}

#[test]
fn an_icmp_error_follows_the_flow_that_it_is_about() {
    let Some(mut node) = Node::new("icmp") else {
        return;
    };
    for a in families() {
        let proto = icmp_proto(a.me);
        let mine = ip(a.me, a.them, TCP, &tcp(40000, 80, SYN));
        let theirs = ip(a.them, a.me, TCP, &tcp(80, 40000, ACK));
        let error_in = into(&a, &unreachable(&mine), proto);
        let error_out = out(&a, &unreachable(&theirs), proto);
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &error_in),
            Outcome::Drop(Reason::IcmpNoFlow)
        );
        assert_eq!(
            node.run("to_tunnel", GATED, &error_out),
            Outcome::Drop(Reason::IcmpNoFlow)
        );
        assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &error_in),
            Outcome::Pass(DECIDED)
        );
        assert_eq!(node.run("to_tunnel", GATED, &error_out), Outcome::Pass(0));
        // About somebody else's flow, and about one that went the other way.
        let elsewhere = ip(a.me, a.stranger, TCP, &tcp(40000, 80, SYN));
        let lie = into(&a, &unreachable(&elsewhere), proto);
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &lie),
            Outcome::Drop(Reason::IcmpNoFlow)
        );
        let turned = into(&a, &unreachable(&theirs), proto);
        assert_eq!(
            node.run("from_tunnel", FORWARDED, &turned),
            Outcome::Drop(Reason::IcmpNoFlow)
        );
    }
}

#[test]
fn later_fragments_follow_the_first() {
    let Some(mut node) = Node::new("fragments") else {
        return;
    };
    let entries = [rule(
        Direction::Egress,
        THEM,
        Ports::Prefix {
            protocol: UDP,
            port: 53,
            bits: 16,
        },
        allow(Auth::Required),
    )];
    node.tables().replace_policy(ENDPOINT, &entries).unwrap();
    for a in families() {
        let first = frame(&fragment(a.me, a.them, UDP, 0, true, &udp(5000, 53)));
        let later = frame(&fragment(a.me, a.them, UDP, 1, false, &[0; 8]));
        assert_eq!(
            node.run("to_tunnel", GATED, &later),
            Outcome::Drop(Reason::Fragment)
        );
        assert_eq!(node.run("to_tunnel", GATED, &first), Outcome::Pass(0));
        assert_eq!(node.run("to_tunnel", GATED, &later), Outcome::Pass(0));
        let cut_off = frame(&fragment(a.me, a.them, UDP, 0, true, &[0; 4]));
        assert_eq!(
            node.run("to_tunnel", GATED, &cut_off),
            Outcome::Drop(Reason::Malformed)
        );
    }
}

#[test]
fn hostile_headers_are_dropped_by_name() {
    let Some(mut node) = Node::new("hostile") else {
        return;
    };
    let [v4, v6] = families();
    let whole = |a: &Addresses| ip(a.me, a.them, TCP, &tcp(40000, 80, SYN));
    for a in [&v4, &v6] {
        let whole = whole(a);
        // TCP's flags are at 13: from there on the headers are whole.
        let needed = whole.len() - 20 + 14;
        // The kernel runs no program on less than an IP header; the parser's own tests do.
        for length in whole.len() - 20..needed {
            let outcome = node.run("to_tunnel", GATED, &frame(&whole)[..14 + length]);
            assert_eq!(
                outcome,
                Outcome::Drop(Reason::Malformed),
                "{length} bytes of {a:?}"
            );
        }
    }
    let mut options = whole(&v4);
    options[0] = 0x46;
    assert_eq!(
        node.run("to_tunnel", GATED, &frame(&options)),
        Outcome::Drop(Reason::Options)
    );
    let mut short = whole(&v4);
    short[0] = 0x44;
    assert_eq!(
        node.run("to_tunnel", GATED, &frame(&short)),
        Outcome::Drop(Reason::Malformed)
    );
    let mut lying = link(0x0800, &whole(&v6));
    assert_eq!(
        node.run("to_tunnel", GATED, &lying),
        Outcome::Drop(Reason::Malformed)
    );
    lying[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    assert_eq!(
        node.run("to_tunnel", GATED, &lying),
        Outcome::Drop(Reason::NotIp)
    );

    // Seven extension headers, a routing header with segments left, two fragment headers, and an
    // IPv4 address in an IPv6 header.
    let tcp_after = |headers: &[u8]| {
        let mut payload = headers.to_vec();
        payload.extend(tcp(40000, 80, SYN));
        payload
    };
    let mut chain = Vec::new();
    for next in [60, 60, 60, 60, 60, 60, TCP] {
        chain.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    let long = frame(&ip(v6.me, v6.them, 60, &tcp_after(&chain)));
    assert_eq!(
        node.run("to_tunnel", GATED, &long),
        Outcome::Drop(Reason::Malformed)
    );
    let short = frame(&ip(v6.me, v6.them, 60, &tcp_after(&chain[16..])));
    assert_eq!(node.run("to_tunnel", GATED, &short), Outcome::Pass(0));
    let routed = frame(&ip(
        v6.me,
        v6.them,
        43,
        &tcp_after(&[TCP, 0, 4, 1, 0, 0, 0, 0]),
    ));
    assert_eq!(
        node.run("to_tunnel", GATED, &routed),
        Outcome::Drop(Reason::Options)
    );
    let twice = [44, 0, 0, 1, 0, 0, 0, 1, TCP, 0, 0, 8, 0, 0, 0, 1];
    let twice = frame(&ip(v6.me, v6.them, 44, &tcp_after(&twice)));
    assert_eq!(
        node.run("to_tunnel", GATED, &twice),
        Outcome::Drop(Reason::Malformed)
    );
    let mut mapped = ip(v6.me, v6.them, TCP, &tcp(40000, 80, SYN));
    mapped[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 7]);
    assert_eq!(
        node.run("to_tunnel", GATED, &frame(&mapped)),
        Outcome::Drop(Reason::Malformed)
    );
}

#[test]
fn holding_is_bounded_for_a_pair_an_endpoint_a_peer_and_in_all() {
    let Some(mut node) = Node::new("quota") else {
        return;
    };
    let [a, _] = families();
    let limit = |pair: (u32, u32), total: (u32, u32), node: &Node| {
        let settings = Settings {
            hold_pair: pair,
            hold_total: total,
            ..node.tables().settings().unwrap()
        };
        node.reset_holds();
        node.tables().set_settings(&settings).unwrap();
    };
    node.tables().remove_pair(pair()).unwrap();
    let key = HoldKey {
        endpoint: ENDPOINT,
        direction: Direction::Egress,
        remote: a.them,
    };

    limit((2, 1 << 20), (1000, 1 << 20), &node);
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    assert_eq!(
        to_tunnel(&mut node, &a),
        Outcome::Drop(Reason::HoldPairFull)
    );
    assert_eq!(node.tables().held(&key).unwrap().packets, 2);
    assert_eq!(
        node.tables().held_total().unwrap(),
        node.tables().held(&key).unwrap()
    );

    limit((64, 60), (1000, 1 << 20), &node);
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    assert_eq!(
        to_tunnel(&mut node, &a),
        Outcome::Drop(Reason::HoldPairFull)
    );

    // An endpoint has a sixteenth of all, a peer an eighth: here one packet and two.
    limit((64, 1 << 20), (16, 1 << 20), &node);
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    assert_eq!(
        from_tunnel(&mut node, &a),
        Outcome::Drop(Reason::HoldEndpointFull)
    );

    // Other endpoints, of the same peer.
    let another = "10.1.0.10".parse().unwrap();
    for (endpoint, address, outcome) in [
        (OTHER, a.neighbour, Outcome::Hold),
        (EndpointId(9), another, Outcome::Drop(Reason::HoldPeerFull)),
    ] {
        let local = Local {
            endpoint,
            identity: NEIGHBOUR,
        };
        node.tables().set_local(address, local).unwrap();
        let announced = Announced {
            endpoint,
            ..announced()
        };
        node.tables()
            .set_announced(address, PEER, &announced)
            .unwrap();
        let any = IdentityNumber::ANY;
        let entry = rule(Direction::Egress, any, Ports::Any, allow(Auth::Required));
        node.tables().replace_policy(endpoint, &[entry]).unwrap();
        let packet = frame(&ip(address, a.them, TCP, &tcp(40000, 80, SYN)));
        assert_eq!(node.run("to_tunnel", GATED, &packet), outcome);
    }

    limit((64, 1 << 20), (0, 1 << 20), &node);
    assert_eq!(
        to_tunnel(&mut node, &a),
        Outcome::Drop(Reason::HoldTotalFull)
    );
    assert_eq!(node.tables().held_total().unwrap(), HoldCount::default());
}

#[test]
fn while_a_pair_drains_only_what_is_given_back_passes() {
    let Some(mut node) = Node::new("order") else {
        return;
    };
    let [a, _] = families();
    node.tables().remove_pair(pair()).unwrap();
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    node.tables()
        .set_pair(
            pair(),
            Pair {
                expires: far(),
                epoch: EPOCH,
            },
        )
        .unwrap();
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    let returned = Came {
        mark: (SOURCE | RETURNED) << 2,
        by: 3,
    };
    let packet = out(&a, &tcp(40000, 80, SYN), TCP);
    assert_eq!(node.run("to_tunnel", returned, &packet), Outcome::Pass(0));
    // The other direction, and another address, are other keys.
    assert_eq!(from_tunnel(&mut node, &a), Outcome::Pass(DECIDED));
    node.reset_holds();
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
    node.tables().remove_pair(pair()).unwrap();
    assert_eq!(
        node.run("to_tunnel", returned, &packet),
        Outcome::Drop(Reason::HoldAgain)
    );
}

#[test]
fn a_count_below_nothing_holds_nobody_up_and_is_tidied_away() {
    let Some(mut node) = Node::new("below") else {
        return;
    };
    let [a, b] = families();
    // Something else is held, so that the counts are looked at.
    node.tables().remove_pair(pair()).unwrap();
    assert_eq!(to_tunnel(&mut node, &b), Outcome::Hold);
    let proven = Pair {
        expires: far(),
        epoch: EPOCH,
    };
    node.tables().set_pair(pair(), proven).unwrap();
    node.set_held(a.them, 1);
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    let key = HoldKey {
        endpoint: ENDPOINT,
        direction: Direction::Egress,
        remote: a.them,
    };
    for below in [0, -1, i64::MIN] {
        node.set_held(a.them, below);
        assert_eq!(node.tables().held(&key).unwrap(), HoldCount::default());
        assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0), "{below}");
    }
    // What is held next is within the bounds.
    node.set_held(a.them, -1);
    node.tables().remove_pair(pair()).unwrap();
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Hold);
    node.tables().set_pair(pair(), proven).unwrap();

    node.set_held(a.them, -1);
    let before = node.hold_entries();
    node.tables().tidy_holds().unwrap();
    assert_eq!(node.hold_entries(), before - 1);
    // What counts something stays: the other address, the endpoint, the peer.
    node.tables().tidy_holds().unwrap();
    assert_eq!(node.hold_entries(), 3);
}

#[test]
fn audit_lets_through_and_counts() {
    let Some(mut node) = Node::new("audit") else {
        return;
    };
    let [a, _] = families();
    let entries = [rule(
        Direction::Egress,
        THEM,
        Ports::Any,
        allow(Auth::Audit),
    )];
    node.tables().replace_policy(ENDPOINT, &entries).unwrap();
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
    assert_eq!(node.tables().counter(Reason::Audited).unwrap(), 0);
    node.tables().remove_pair(pair()).unwrap();
    assert_eq!(to_tunnel(&mut node, &a), Outcome::Pass(0));
    assert_eq!(node.tables().counter(Reason::Audited).unwrap(), 1);
}

#[test]
fn flows_are_bounded_and_live_ones_are_never_pushed_out() {
    // As if more were free than there are places: the map itself is full first.
    let Some(mut node) = Node::with_places("bounds", 512, 5000) else {
        return;
    };
    let [a, _] = families();
    let flow = |port: u16| out(&a, &tcp(port, 80, SYN), TCP);
    let settings = Settings {
        endpoint_connections: 3,
        ..node.tables().settings().unwrap()
    };
    node.tables().set_settings(&settings).unwrap();
    for port in 1..=3 {
        assert_eq!(node.run("to_tunnel", GATED, &flow(port)), Outcome::Pass(0));
    }
    assert_eq!(
        node.run("to_tunnel", GATED, &flow(4)),
        Outcome::Drop(Reason::EndpointFull)
    );
    assert_eq!(node.run("to_tunnel", GATED, &flow(1)), Outcome::Pass(0));
    // Time passes, the collector comes, and there is room again.
    let later = boot_time() + Duration::from_secs(100);
    assert_eq!(
        node.tables().collect(later).unwrap(),
        Collected {
            left: 0,
            removed: 3
        }
    );
    assert_eq!(node.run("to_tunnel", GATED, &flow(4)), Outcome::Pass(0));

    let settings = Settings {
        endpoint_connections: 10_000,
        ..node.tables().settings().unwrap()
    };
    node.tables().set_settings(&settings).unwrap();
    let full = (5..1000).find(|port| {
        node.run("to_tunnel", GATED, &flow(*port)) == Outcome::Drop(Reason::ConnectionsFull)
    });
    assert!(full.is_some_and(|port| port > 500));
    assert_eq!(node.run("to_tunnel", GATED, &flow(4)), Outcome::Pass(0));
}
