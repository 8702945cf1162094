//! Policies by which nobody could log in to a machine any more.
//!
//! Asked of every kind of caller that the policies tell apart. It errs on one side: what is reported is certain, as far as
//! policies go; a caller whom only a SPIFFE ID admits may exist, so a rule for one is taken to admit somebody.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::document::Rule;
use crate::entry::{Remote, Workload};
use crate::model::{Direction, Protocol, Verdict};
use crate::selector::{Block, Peer, Peers, Selector};
use crate::set::PolicySet;
use crate::tools::check::{Finding, Level, whole};
use crate::tools::classes::imagined;
use crate::tools::flow::{End, Flow, Outcome, decide};
use crate::tools::inventory::{Inventory, Known};

/// Machines whose SSH server would be reached from nowhere.
pub(super) fn cut(set: &PolicySet, inventory: &Inventory) -> Vec<Finding> {
    let machines = inventory.workloads.iter().filter(|known| known.is_machine);
    let doors =
        machines.flat_map(|known| inventory.ssh_ports.iter().map(move |port| (known, *port)));
    doors
        .filter(|(known, port)| !is_reached(set, inventory, known, *port))
        .map(|(known, port)| {
            whole(
                Level::Refused,
                "cuts-ssh",
                format!(
                    "nobody could reach tcp/{port} of {}, which is a machine itself: whoever administers it by SSH over the \
                     mesh would be locked out. Add a rule that allows it; if the machine keeps the port open whatever policy says \
                     (`handfast endpoint list` there shows it as exempt), say so: --exempt tcp/{port}",
                    known.name
                ),
            )
        })
        .collect()
}

fn is_reached(set: &PolicySet, inventory: &Inventory, machine: &Known, port: u16) -> bool {
    let reaches = |from: End| {
        let flow = Flow {
            from,
            to: machine.end(),
            protocol: Protocol::Tcp,
            port,
        };
        decide(set, &flow).outcome() != Outcome::Denied
    };
    let mut known = inventory.workloads.iter().map(Known::end);
    if reaches(End::World) || reaches(End::Host) || known.any(reaches) {
        return true;
    }
    let mut rules = rules(set, &machine.workload);
    rules.any(|rule| {
        let somebody = rule.ids.is_some() && names(rule, &machine.workload, port);
        somebody || callers(&rule.peers).into_iter().any(reaches)
    })
}

/// Whether a rule speaks of a TCP port of a machine.
fn names(rule: &Rule, machine: &Workload, port: u16) -> bool {
    rule.ranges(machine, &Remote::World).any(|range| {
        matches!(range.protocol, Protocol::Any | Protocol::Tcp) && range.ports.contains(port)
    })
}

/// What may admit somebody to a machine.
fn rules<'a>(set: &'a PolicySet, machine: &'a Workload) -> impl Iterator<Item = &'a Rule> {
    let specs = set.documents().flat_map(|(_, document)| &document.specs);
    specs
        .filter(move |spec| spec.subject.matches(machine))
        .flat_map(|spec| &spec.rules)
        .filter(|rule| rule.direction == Direction::Ingress && rule.verdict == Verdict::Allow)
}

/// Somebody of each kind that a rule names.
fn callers(peers: &Peers) -> Vec<End> {
    match peers {
        Peers::Any => imagined(&Selector::default())
            .iter()
            .map(Known::end)
            .collect(),
        Peers::Of(peers) => peers.iter().filter_map(caller).collect(),
    }
}

fn caller(peer: &Peer) -> Option<End> {
    match peer {
        Peer::Workloads(selector) => imagined(selector).as_ref().map(Known::end),
        Peer::Host => Some(End::Host),
        Peer::World => Some(End::World),
        Peer::Block(block) => inside(block).map(End::Outside),
    }
}

/// An address of a prefix that is in none of its exceptions: exceptions leave room before or behind them.
fn inside(block: &Block) -> Option<IpAddr> {
    let excepted = |address: &IpAddr| block.except.iter().any(|net| net.contains(address));
    let behind = block.except.iter().filter_map(after);
    [block.net.network(), block.net.broadcast()]
        .into_iter()
        .chain(behind)
        .find(|address| block.net.contains(address) && !excepted(address))
}

/// The first address behind a prefix.
fn after(net: &IpNet) -> Option<IpAddr> {
    match net.broadcast() {
        IpAddr::V4(last) => u32::from(last)
            .checked_add(1)
            .map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(last) => u128::from(last)
            .checked_add(1)
            .map(|next| IpAddr::V6(next.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::Source;

    const MACHINES: &str = "
- {name: m1, spiffeId: spiffe://example.org/m1, labels: {app: machine}, selectors: ['endpoint:host']}
- {name: unit, spiffeId: spiffe://example.org/unit, labels: {app: unit}, selectors: ['systemd:id:billing.service']}
- {name: admin, spiffeId: spiffe://example.org/admin, labels: {app: admin}, selectors: ['netns:x']}
";

    fn source(text: String) -> Source {
        Source {
            name: "p.yaml".to_owned(),
            text,
        }
    }

    fn refused(spec: &str, port: u16) -> Vec<String> {
        let text = format!(
            "apiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {{name: p}}\nspec: {{{spec}}}\n"
        );
        let set = PolicySet::read(vec![source(text)]).unwrap();
        let mut inventory = Inventory::read(&source(MACHINES.to_owned())).unwrap();
        inventory.ssh_ports = vec![port];
        let found = cut(&set, &inventory);
        found
            .iter()
            .map(|finding| finding.message.clone())
            .collect()
    }

    #[test]
    fn a_machine_whose_ssh_nobody_could_reach_is_named_with_its_port_and_a_unit_is_none() {
        let refused = refused("endpointSelector: {}, ingress: [{}]", 2222);
        let [only] = refused.as_slice() else {
            panic!("{refused:?}")
        };
        assert!(
            only.contains("tcp/2222 of m1") && only.contains("--exempt tcp/2222"),
            "{only}"
        );
    }

    #[test]
    fn a_deny_cuts_as_well_as_a_missing_rule() {
        let all =
            "endpointSelector: {matchLabels: {app: machine}}, ingress: [{fromEntities: [all]}]";
        assert!(refused(all, 22).is_empty());
        let denied = format!(
            "{all}, ingressDeny: [{{toPorts: [{{ports: [{{port: 22, protocol: TCP}}]}}]}}]"
        );
        assert_eq!(refused(&denied, 22).len(), 1);
        assert!(refused(&denied, 2222).is_empty());
    }

    #[test]
    fn whoever_may_still_come_keeps_a_policy_from_being_refused() {
        for rule in [
            "fromEntities: [world]",
            "fromEntities: [host]",
            "fromEndpoints: [{matchLabels: {app: admin}}]",
            "fromEndpoints: [{matchLabels: {app: somebody-without-an-entry}}]",
            "fromCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.0/25]}]",
            "fromCIDR: [2001:db8::/32]",
            "fromEndpoints: [{}], authentication: {mode: required, peers: ['spiffe://example.org/people/*']}",
        ] {
            let spec = format!(
                "endpointSelector: {{matchLabels: {{app: machine}}}}, ingress: [{{{rule}, toPorts: [{{ports: [{{port: 22, protocol: TCP}}]}}]}}]"
            );
            assert!(refused(&spec, 22).is_empty(), "{rule}");
            assert_eq!(refused(&spec, 23).len(), 1, "{rule}");
        }
    }

    #[test]
    fn a_machine_that_no_policy_closes_is_left_alone() {
        assert!(
            refused(
                "endpointSelector: {matchLabels: {app: admin}}, ingress: [{}]",
                22
            )
            .is_empty()
        );
        assert!(refused("endpointSelector: {}, egress: [{}]", 22).is_empty());
    }
}
