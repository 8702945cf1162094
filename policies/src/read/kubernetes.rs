//! The NetworkPolicy of Kubernetes (networking.k8s.io/v1).
//!
//! Its words look like Cilium's and mean something else: `ingress: []` closes a direction and `ingress: [{}]` opens
//! it, an empty `from` is everybody, and ports are TCP's unless another protocol is written. The node that a pod
//! runs on always reaches it.

use ipnet::IpNet;

use crate::document::{Denies, NamedPort, PortMatch, PortRange, Rule, Spec};
use crate::model::{Direction, Protocol, RuleRef, Verdict};
use crate::ports::Ports;
use crate::read::cursor::{Cursor, Fields};
use crate::read::selector::{self, Scope};
use crate::read::shape::{Item, Schema, Shape, field};
use crate::read::{peers, ports};
use crate::selector::{Peer, Peers};

pub(crate) static SPEC: Schema = Schema {
    about: "Some pods, and what they may receive and send.",
    known: &[
        field(
            "podSelector",
            Shape::Map(&selector::SELECTOR),
            "The pods that the rules are for; {}, or nothing, selects every one of the namespace.",
        ),
        field(
            "policyTypes",
            Shape::List(Item::Choice(&["Ingress", "Egress"]), 0, 2),
            "The directions that the policy closes; unsaid, Ingress, and Egress if egress has a rule.",
        ),
        field(
            "ingress",
            Shape::List(Item::Map(&INGRESS), 0, usize::MAX),
            "What the pods may receive; an empty rule allows everything.",
        ),
        field(
            "egress",
            Shape::List(Item::Map(&EGRESS), 0, usize::MAX),
            "What the pods may send; an empty rule allows everything.",
        ),
    ],
    refused: &[
        ("endpointSelector", "write podSelector"),
        (
            "ingressDeny",
            "a NetworkPolicy only allows: write a HandfastPolicy",
        ),
        (
            "egressDeny",
            "a NetworkPolicy only allows: write a HandfastPolicy",
        ),
        ("authentication", "write a HandfastPolicy"),
    ],
};

const ELSEWHERE: &str = "a NetworkPolicy has no such field: write a HandfastPolicy";

static INGRESS: Schema = Schema {
    about: "Who may reach the pods, and on which ports.",
    known: &[
        field(
            "from",
            Shape::List(Item::Map(&PEER), 0, usize::MAX),
            "Any of these; none is everybody.",
        ),
        PORTS,
    ],
    refused: &[
        ("fromEndpoints", "write from"),
        ("fromCIDR", "write from with ipBlock"),
        ("toPorts", "write ports"),
        ("to", "in an ingress rule write from"),
        ("authentication", ELSEWHERE),
    ],
};

static EGRESS: Schema = Schema {
    about: "Whom the pods may reach, and on which ports.",
    known: &[
        field(
            "to",
            Shape::List(Item::Map(&PEER), 0, usize::MAX),
            "Any of these; none is everybody.",
        ),
        PORTS,
    ],
    refused: &[
        ("toEndpoints", "write to"),
        ("toCIDR", "write to with ipBlock"),
        ("toPorts", "write ports"),
        ("from", "in an egress rule write to"),
        ("authentication", ELSEWHERE),
    ],
};

const PORTS: crate::read::shape::Field = field(
    "ports",
    Shape::List(Item::Map(&PORT), 0, usize::MAX),
    "Any of these; none is every protocol and port.",
);

static PEER: Schema = Schema {
    about: "Some far ends.",
    known: &[
        field(
            "podSelector",
            Shape::Map(&selector::SELECTOR),
            "Pods of the policy's namespace, or of those that namespaceSelector finds.",
        ),
        field(
            "namespaceSelector",
            Shape::Map(&selector::SELECTOR),
            "Namespaces by their labels; {} is every one.",
        ),
        field(
            "ipBlock",
            Shape::Map(&peers::BLOCK),
            "Addresses outside the mesh.",
        ),
    ],
    refused: &[],
};

static PORT: Schema = Schema {
    about: "A port, a range of ports, or a port by its name.",
    known: &[
        field(
            "protocol",
            Shape::Choice(&["TCP", "UDP", "SCTP"]),
            "TCP unless it is said.",
        ),
        field(
            "port",
            Shape::NumberOrWord,
            "A number, or the name that the called pod gives it; unsaid, every port of the protocol.",
        ),
        field(
            "endPort",
            Shape::Number(1, 65_535),
            "The last port of a range that begins with port.",
        ),
    ],
    refused: &[],
};

/// Reads the spec.
pub(crate) fn spec(cursor: &Cursor<'_>, scope: &Scope) -> Option<Spec> {
    let fields = cursor.fields(&SPEC)?;
    let (subject, at) = match fields.get("podSelector") {
        Some(pods) => (selector::pods(&pods, scope), pods),
        None => (Some(selector::every_pod(scope)), cursor.clone()),
    };
    let ingress = rules(&fields, scope, Direction::Ingress);
    let egress = rules(&fields, scope, Direction::Egress);
    let denies = types(&fields);
    let (subject, denies) = (subject?, denies?);
    let mut all = Vec::new();
    for (name, is_meant, rules) in [
        ("ingress", denies.ingress, ingress?),
        ("egress", denies.egress, egress?),
    ] {
        match fields.get(name) {
            Some(list) if !is_meant && !rules.is_empty() => {
                list.note("policyTypes does not name this direction, so these rules do nothing");
            }
            _ => all.extend(rules),
        }
    }
    if denies.ingress {
        all.push(from_its_node(cursor));
    }
    Some(Spec {
        subject,
        rules: all,
        denies,
        field: at.path.clone(),
        line: at.node.at.line,
    })
}

/// The kubelet probes pods, so Kubernetes lets their own node through whatever a policy says.
fn from_its_node(cursor: &Cursor<'_>) -> Rule {
    Rule {
        direction: Direction::Ingress,
        verdict: Verdict::Allow,
        peers: Peers::Of(vec![Peer::Host]),
        ids: None,
        ports: vec![PortMatch::Range(PortRange::ALL)],
        auth: None,
        max_age: None,
        encryption: None,
        field: format!("{} (the pod's own node)", cursor.path),
        line: cursor.node.at.line,
        is_implied: true,
        number: RuleRef(0),
    }
}

/// The directions that are closed.
fn types(fields: &Fields<'_>) -> Option<Denies> {
    let said = match fields.get("policyTypes") {
        Some(types) => types.each(|item| {
            item.choice(
                "policy type",
                &[
                    ("Ingress", Direction::Ingress),
                    ("Egress", Direction::Egress),
                ],
            )
        })?,
        None => Vec::new(),
    };
    let has_egress = match fields.get("egress") {
        Some(egress) => !egress.items()?.is_empty(),
        None => false,
    };
    Some(match said.as_slice() {
        [] => Denies {
            ingress: true,
            egress: has_egress,
        },
        said => Denies {
            ingress: said.contains(&Direction::Ingress),
            egress: said.contains(&Direction::Egress),
        },
    })
}

fn rules(fields: &Fields<'_>, scope: &Scope, direction: Direction) -> Option<Vec<Rule>> {
    let (list, schema, side) = match direction {
        Direction::Ingress => ("ingress", &INGRESS, "from"),
        Direction::Egress => ("egress", &EGRESS, "to"),
    };
    let Some(list) = fields.get(list) else {
        return Some(Vec::new());
    };
    list.each(|item| {
        let fields = item.fields(schema)?;
        let peers = match fields.get(side) {
            Some(list) if !list.items()?.is_empty() => {
                list.each(|item| peer(item, scope)).map(Peers::Of)
            }
            _ => Some(Peers::Any),
        };
        let ports = match fields.get("ports") {
            Some(list) if !list.items()?.is_empty() => list.each(port),
            _ => Some(vec![PortMatch::Range(PortRange::ALL)]),
        };
        Some(Rule {
            direction,
            verdict: Verdict::Allow,
            peers: peers?,
            ids: None,
            ports: ports?,
            auth: None,
            max_age: None,
            encryption: None,
            field: item.path.clone(),
            line: item.node.at.line,
            is_implied: false,
            number: RuleRef(0),
        })
    })
}

/// Whether somebody may have meant pods by a prefix: everything, or where clusters have their pods' addresses.
fn may_mean_pods(net: &IpNet) -> bool {
    let private = match net {
        IpNet::V4(net) => net.addr().is_private(),
        IpNet::V6(net) => net.addr().is_unique_local(),
    };
    net.prefix_len() == 0 || private
}

fn peer(cursor: &Cursor<'_>, scope: &Scope) -> Option<Peer> {
    let fields = cursor.fields(&PEER)?;
    let parts = (
        fields.get("podSelector"),
        fields.get("namespaceSelector"),
        fields.get("ipBlock"),
    );
    match parts {
        (None, None, Some(written)) => {
            let block = peers::block(&written)?;
            if may_mean_pods(&block.net) {
                written.note(
                    "ipBlock means addresses outside the mesh and never a pod's, whatever its address: to speak of pods too, \
                     add an item with podSelector, namespaceSelector, or namespaceSelector: {} for all",
                );
            }
            Some(Peer::Block(block))
        }
        (Some(_), _, Some(block)) | (_, Some(_), Some(block)) => {
            block.error("ipBlock stands alone: write an item of its own for each");
            None
        }
        (Some(pods), None, None) => selector::pods(&pods, scope).map(Peer::Workloads),
        (pods, Some(namespaces), None) => {
            selector::pods_of_namespaces(&namespaces, pods.as_ref()).map(Peer::Workloads)
        }
        (None, None, None) => {
            fields
                .lacking("it names nobody: write podSelector, namespaceSelector, both, or ipBlock");
            None
        }
    }
}

fn port(cursor: &Cursor<'_>) -> Option<PortMatch> {
    let fields = cursor.fields(&PORT)?;
    let protocol = match fields.get("protocol") {
        Some(protocol) => protocol.choice(
            "protocol",
            &[
                ("TCP", Protocol::Tcp),
                ("UDP", Protocol::Udp),
                ("SCTP", Protocol::Sctp),
            ],
        )?,
        None => Protocol::Tcp,
    };
    let end = fields.get("endPort");
    let Some(first) = fields.get("port") else {
        if let Some(end) = end {
            end.error("there is no port that the range begins with: write port");
            return None;
        }
        let ports = Ports::ANY;
        return Some(PortMatch::Range(PortRange { protocol, ports }));
    };
    let number = match ports::number_or_name(&first)? {
        Ok(number) => number,
        Err(name) => {
            if let Some(end) = end {
                end.error(
                    "a port with a name begins no range: remove endPort, or write the number",
                );
                return None;
            }
            let protocol = Some(protocol);
            return Some(PortMatch::Named(NamedPort { name, protocol }));
        }
    };
    if number == 0 {
        first.error(
            "not a port: write a number from 1 to 65535, or leave port out to mean every one",
        );
        return None;
    }
    let last = match &end {
        Some(end) => ports::number(end)?,
        None => number,
    };
    let ports = ports::range(end.as_ref().unwrap_or(&first), number, last)?;
    Some(PortMatch::Range(PortRange { protocol, ports }))
}
