//! ICMP by its types: a rule names the type of the packet that opens a flow, its reply belongs to it, and no
//! other type passes on its account.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::net::IpAddr;

use handfast_bpf::*;
use support::{packets::*, run::*};

/// Echo request, its reply, and a request of another kind with an identifier (timestamp), or in IPv6, which has
/// no other such, a message without one (router solicitation through a tunnel is nobody's, but a packet).
fn types(address: IpAddr) -> (u8, u8, u8) {
    match address {
        IpAddr::V4(_) => (8, 0, 13),
        IpAddr::V6(_) => (128, 129, 139),
    }
}

fn message(kind: u8, identifier: u16) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(identifier.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

fn only(address: IpAddr, kind: u8) -> Ports {
    Ports::Prefix {
        protocol: icmp_proto(address),
        port: u16::from(kind),
        bits: 16,
    }
}

fn into(node: &mut Node, a: &Addresses, payload: &[u8]) -> Outcome {
    let bytes = frame(&ip(a.them, a.me, icmp_proto(a.me), payload));
    node.run("from_tunnel", FORWARDED, &bytes)
}

fn out(node: &mut Node, a: &Addresses, payload: &[u8]) -> Outcome {
    let bytes = frame(&ip(a.me, a.them, icmp_proto(a.me), payload));
    node.run("to_tunnel", GATED, &bytes)
}

/// A node whose one rule is about what enters endpoint 7 from the other node's workload.
fn with_rules(
    name: &str,
    rules: impl Fn(IpAddr) -> Vec<(Ports, PolicyValue)>,
) -> impl Iterator<Item = (Node, Addresses)> {
    families().into_iter().filter_map(move |a| {
        let node = Node::new(&format!("{name}-{}", icmp_proto(a.me)))?;
        let entries: Vec<_> = rules(a.me)
            .into_iter()
            .map(|(ports, value)| rule(Direction::Ingress, THEM, ports, value))
            .collect();
        node.tables().replace_policy(ENDPOINT, &entries).unwrap();
        Some((node, a))
    })
}

#[test]
fn a_rule_for_requests_lets_requests_in_and_their_replies_out_and_nothing_else() {
    let rules = |a| {
        let (request, ..) = types(a);
        vec![(only(a, request), allow(Auth::Required))]
    };
    for (mut node, a) in with_rules("icmp-request", rules) {
        let (request, reply, other) = types(a.me);
        // Before the request there is nothing to reply to, and no rule lets one out.
        let unasked = out(&mut node, &a, &message(reply, 9));
        assert_eq!(unasked, Outcome::Drop(Reason::NoRule));
        assert_eq!(
            into(&mut node, &a, &message(request, 9)),
            Outcome::Pass(DECIDED)
        );
        assert_eq!(out(&mut node, &a, &message(reply, 9)), Outcome::Pass(0));
        // The identifier of a flow that is known opens nothing for other types, nor for requests of ours.
        for kind in [reply, other] {
            let outcome = into(&mut node, &a, &message(kind, 9));
            assert_eq!(outcome, Outcome::Drop(Reason::NoRule), "type {kind} in");
        }
        for kind in [request, other] {
            let outcome = out(&mut node, &a, &message(kind, 9));
            assert_eq!(outcome, Outcome::Drop(Reason::NoRule), "type {kind} out");
        }
        // Nor is the flow forgotten by such attempts.
        assert_eq!(
            into(&mut node, &a, &message(request, 9)),
            Outcome::Pass(DECIDED)
        );
        assert_eq!(out(&mut node, &a, &message(reply, 9)), Outcome::Pass(0));
        assert_eq!(node.tables().connections().unwrap().len(), 1);
    }
}

#[test]
fn a_rule_for_replies_lets_no_requests_in() {
    let rules = |a| {
        let (_, reply, _) = types(a);
        vec![(only(a, reply), allow(Auth::Required))]
    };
    for (mut node, a) in with_rules("icmp-reply", rules) {
        let (request, reply, _) = types(a.me);
        assert_eq!(
            into(&mut node, &a, &message(reply, 9)),
            Outcome::Pass(DECIDED)
        );
        let asked = into(&mut node, &a, &message(request, 9));
        assert_eq!(asked, Outcome::Drop(Reason::NoRule));
        let answered = out(&mut node, &a, &message(request, 9));
        assert_eq!(answered, Outcome::Drop(Reason::NoRule));
    }
}

#[test]
fn a_denied_type_is_denied_under_a_rule_that_allows_every_protocol() {
    let rules = |a| {
        let (request, ..) = types(a);
        vec![
            (Ports::Any, allow(Auth::Required)),
            (only(a, request), deny()),
        ]
    };
    for (mut node, a) in with_rules("icmp-deny", rules) {
        let (request, _, other) = types(a.me);
        let denied = into(&mut node, &a, &message(request, 9));
        assert_eq!(denied, Outcome::Drop(Reason::Denied));
        assert_eq!(
            into(&mut node, &a, &message(other, 9)),
            Outcome::Pass(DECIDED)
        );
    }
}

#[test]
fn policy_that_changes_is_asked_about_the_type_that_opened_the_flow() {
    let rules = |_| vec![(Ports::Any, allow(Auth::Required))];
    for (mut node, a) in with_rules("icmp-change", rules) {
        let (request, reply, other) = types(a.me);
        assert_eq!(
            into(&mut node, &a, &message(request, 9)),
            Outcome::Pass(DECIDED)
        );
        let change = |node: &Node, kind| {
            let entries = [rule(
                Direction::Ingress,
                THEM,
                only(a.me, kind),
                allow(Auth::Required),
            )];
            node.tables().replace_policy(ENDPOINT, &entries).unwrap();
        };
        change(&node, request);
        assert_eq!(out(&mut node, &a, &message(reply, 9)), Outcome::Pass(0));
        change(&node, other);
        let late = out(&mut node, &a, &message(reply, 9));
        assert_eq!(late, Outcome::Drop(Reason::NoRule));
    }
}

#[test]
fn an_error_about_an_echo_follows_that_echo_and_no_other_flow() {
    let rules = |_| vec![(Ports::Any, allow(Auth::Required))];
    for (mut node, a) in with_rules("icmp-error", rules) {
        let (request, _, other) = types(a.me);
        let entries = [rule(
            Direction::Egress,
            THEM,
            Ports::Any,
            allow(Auth::Required),
        )];
        node.tables().replace_policy(ENDPOINT, &entries).unwrap();
        assert_eq!(out(&mut node, &a, &message(request, 9)), Outcome::Pass(0));
        let about = |kind| unreachable(&ip(a.me, a.them, icmp_proto(a.me), &message(kind, 9)));
        assert_eq!(into(&mut node, &a, &about(request)), Outcome::Pass(DECIDED));
        // A timestamp with the same identifier is another flow; in IPv6 nothing else can be told from others.
        let wrong = match a.me {
            IpAddr::V4(_) => Reason::IcmpNoFlow,
            IpAddr::V6(_) => Reason::Malformed,
        };
        assert_eq!(into(&mut node, &a, &about(other)), Outcome::Drop(wrong));
    }
}

#[test]
fn fragments_of_an_echo_follow_its_type() {
    let rules = |a| {
        let (request, ..) = types(a);
        vec![(only(a, request), allow(Auth::Required))]
    };
    for (mut node, a) in with_rules("icmp-fragments", rules) {
        let (request, _, other) = types(a.me);
        let proto = icmp_proto(a.me);
        let mut send = |kind, offset, more, payload: &[u8]| {
            let mut bytes = message(kind, 9);
            bytes.extend(payload);
            let part: &[u8] = if offset == 0 { &bytes } else { payload };
            let bytes = frame(&fragment(a.them, a.me, proto, offset, more, part));
            node.run("from_tunnel", FORWARDED, &bytes)
        };
        assert_eq!(send(request, 0, true, &[0; 16]), Outcome::Pass(DECIDED));
        assert_eq!(send(request, 3, false, &[0; 16]), Outcome::Pass(DECIDED));
        // The first fragment of another type takes the later ones with it.
        let first = send(other, 0, true, &[0; 16]);
        assert_eq!(first, Outcome::Drop(Reason::NoRule));
        let later = send(other, 3, false, &[0; 16]);
        assert_eq!(later, Outcome::Drop(Reason::NoRule));
    }
}
