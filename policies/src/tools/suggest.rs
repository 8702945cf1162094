//! From what was seen to the least that allows it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::entry::Workload;
use crate::model::{Direction, Protocol};
use crate::read::NAMESPACE;
use crate::tools::flow::End;
use crate::tools::inventory::Inventory;
use crate::tools::observed::{Observed, Seen};
use crate::tools::telling::Telling;
use crate::tools::written::{
    Metadata, Written, WrittenAuthentication, WrittenMessage, WrittenMessages, WrittenPort,
    WrittenPorts, WrittenRule, WrittenSelector, WrittenSpec,
};

/// What `handfast tunnel verify` sends to see a packet through the tunnel (RFC 863): nobody's traffic.
const PROBE: (Protocol, u16) = (Protocol::Udp, 9);

/// The most ports that one item of `toPorts` lists; more become a range.
const MAX_PORTS: usize = 40;

/// How suggested rules ask for proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proofs {
    /// Count what would be dropped.
    Audit,
    /// Drop what is not proven.
    Required,
}

/// Policies, and what they leave out.
#[derive(Clone, Debug, Default)]
pub struct Suggestion {
    /// HandfastPolicies, as one YAML text of several documents.
    pub yaml: String,
    /// How many documents there are.
    pub documents: usize,
    /// What was seen and is not allowed by them, or is allowed more widely than it was seen, and why.
    pub notes: Vec<String>,
}

/// The other end of some traffic, as a rule can name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Far {
    Workload(WrittenSelector, String),
    Address(IpNet),
    Host,
}

/// Some traffic, as a rule can name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Traffic {
    ports: BTreeMap<Protocol, BTreeSet<u16>>,
    echo: BTreeSet<Protocol>,
    everything: bool,
}

/// Suggests a policy for each known workload that was seen to send or receive.
///
/// # Errors
/// A document could not be written as YAML.
pub fn suggest(
    observed: &[Observed],
    inventory: &Inventory,
    proofs: Proofs,
) -> Result<Suggestion, serde_norway::Error> {
    let mut suggestion = Suggestion::default();
    let telling = Telling::new(inventory);
    let mut seen: BTreeMap<(String, Direction), BTreeMap<Far, Traffic>> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    let (probes, observed): (Vec<_>, Vec<_>) = observed
        .iter()
        .partition(|flow| (flow.protocol, flow.port) == PROBE);
    if !probes.is_empty() {
        suggestion.notes.push(format!(
            "{} flows to udp/9 are left out: `handfast tunnel verify` sends such to see a packet through the tunnel. \
             A workload that listens there needs a rule by hand",
            probes.len()
        ));
    }
    for flow in observed {
        let passed = |seen: &Seen| matches!(seen, Seen::Forwarded | Seen::Audit | Seen::Held);
        if !flow.seen.keys().any(passed) {
            suggestion.notes.push(format!(
                "{} -> {} {}/{} was only seen to be dropped ({}): not allowed",
                flow.from,
                flow.to,
                flow.protocol,
                flow.port,
                flow.reason.as_deref().unwrap_or("no reason given")
            ));
            continue;
        }
        for (near, far, direction) in [
            (&flow.from, &flow.to, Direction::Egress),
            (&flow.to, &flow.from, Direction::Ingress),
        ] {
            let End::Workload { workload, .. } = near else {
                continue;
            };
            let known = inventory.identified(&workload.spiffe_id.to_string());
            let Some(known) = known.filter(|known| !telling.labels(known).is_empty()) else {
                unknown.insert(workload.spiffe_id.to_string());
                continue;
            };
            let far = name(far, &known.workload, inventory, &telling);
            let traffic = seen.entry((known.name.clone(), direction)).or_default();
            traffic.entry(far).or_default().add(flow);
        }
    }
    for id in unknown {
        suggestion.notes.push(format!(
            "{id} is none of the workloads given, or has no labels that tell it from others: no policy is suggested \
             for it"
        ));
    }
    let names: BTreeSet<_> = seen.keys().map(|(name, _)| name.clone()).collect();
    let mut taken = BTreeSet::new();
    for name in names {
        let Some(known) = inventory.named(&name) else {
            continue;
        };
        let mut rules = |direction| {
            let traffic = seen.remove(&(name.clone(), direction)).unwrap_or_default();
            rules(&name, traffic, direction, proofs, &mut suggestion.notes)
        };
        let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
        let namespace = known.workload.labels.get(NAMESPACE).cloned();
        let mut policy = object_name(&name);
        while !taken.insert((namespace.clone(), policy.clone())) {
            policy.push_str("-2");
        }
        let document = Written {
            api_version: "handfast.io/v1alpha1",
            kind: "HandfastPolicy",
            metadata: Metadata {
                name: policy,
                namespace,
            },
            spec: WrittenSpec {
                description: format!("What {name} was seen to receive and send, and no more."),
                endpoint_selector: WrittenSelector {
                    match_labels: telling.labels(known),
                },
                ingress,
                egress,
            },
        };
        suggestion.yaml.push_str("---\n");
        suggestion
            .yaml
            .push_str(&serde_norway::to_string(&document)?);
        suggestion.documents += 1;
    }
    Ok(suggestion)
}

impl Traffic {
    fn add(&mut self, flow: &Observed) {
        match flow.protocol {
            Protocol::Any => self.everything = true,
            // What is written down of ICMP is the identifier of an echo, not its type.
            Protocol::Icmp | Protocol::Icmpv6 => {
                self.echo.insert(flow.protocol);
            }
            protocol => {
                self.ports.entry(protocol).or_default().insert(flow.port);
            }
        }
    }
}

fn name(end: &End, near: &Workload, inventory: &Inventory, telling: &Telling<'_>) -> Far {
    match end {
        End::Workload { workload, .. } => {
            let id = workload.spiffe_id.to_string();
            let known = inventory.identified(&id);
            let mut labels = known.map(|known| telling.labels(known)).unwrap_or_default();
            let theirs = workload.labels.get(NAMESPACE);
            if let (Some(namespace), true) = (theirs, theirs != near.labels.get(NAMESPACE)) {
                labels.insert(NAMESPACE.to_owned(), namespace.clone());
            }
            let selector = WrittenSelector {
                match_labels: labels,
            };
            Far::Workload(selector, id)
        }
        End::Outside(address) => Far::Address(IpNet::from(*address)),
        End::Host => Far::Host,
        End::World => Far::Address(IpNet::V4(ipnet::Ipv4Net::default())),
    }
}

/// One rule for all far ends of one kind that have the same traffic.
fn rules(
    name: &str,
    traffic: BTreeMap<Far, Traffic>,
    direction: Direction,
    proofs: Proofs,
    notes: &mut Vec<String>,
) -> Vec<WrittenRule> {
    let mut by_traffic: BTreeMap<(u8, Traffic), Vec<Far>> = BTreeMap::new();
    for (far, traffic) in traffic {
        let kind = match far {
            Far::Workload(..) => 0,
            Far::Address(_) => 1,
            Far::Host => 2,
        };
        by_traffic.entry((kind, traffic)).or_default().push(far);
    }
    let mut rules = Vec::new();
    for ((_, traffic), fars) in by_traffic {
        let who = rule(&fars, direction, proofs);
        let Traffic {
            ports,
            echo,
            everything,
        } = traffic;
        if everything {
            notes.push(format!(
                "{name}: a protocol without ports was seen, which no rule can name alone: the rule allows every protocol"
            ));
            rules.push(who);
            continue;
        }
        if !ports.is_empty() {
            let items: Vec<_> = ports
                .iter()
                .flat_map(|(protocol, numbers)| written_ports(name, *protocol, numbers, notes))
                .collect();
            let chunk = |ports: &[WrittenPort]| WrittenPorts {
                ports: ports.to_vec(),
            };
            rules.push(WrittenRule {
                to_ports: items.chunks(MAX_PORTS).map(chunk).collect(),
                ..who.clone()
            });
        }
        if !echo.is_empty() {
            let message = |protocol: &Protocol| WrittenMessage {
                family: match protocol {
                    Protocol::Icmpv6 => "IPv6",
                    _ => "IPv4",
                },
                kind: "EchoRequest",
            };
            rules.push(WrittenRule {
                icmps: vec![WrittenMessages {
                    fields: echo.iter().map(message).collect(),
                }],
                ..who
            });
        }
    }
    rules
}

fn rule(fars: &[Far], direction: Direction, proofs: Proofs) -> WrittenRule {
    let mut rule = WrittenRule::default();
    let mut ids = Vec::new();
    for far in fars {
        let (endpoints, cidr, entities) = match direction {
            Direction::Ingress => (
                &mut rule.from_endpoints,
                &mut rule.from_cidr,
                &mut rule.from_entities,
            ),
            Direction::Egress => (
                &mut rule.to_endpoints,
                &mut rule.to_cidr,
                &mut rule.to_entities,
            ),
        };
        match far {
            Far::Workload(selector, id) => {
                // Nothing but its SPIFFE ID tells one without labels from others.
                if !selector.match_labels.is_empty() && !endpoints.contains(selector) {
                    endpoints.push(selector.clone());
                }
                ids.push(id.clone());
            }
            Far::Address(net) => cidr.push(net.to_string()),
            Far::Host => entities.push("host"),
        }
    }
    // A selector beside IDs narrows them: with one of them missing, the IDs alone must do.
    let unlabelled = |far: &Far| matches!(far, Far::Workload(s, _) if s.match_labels.is_empty());
    if fars.iter().any(unlabelled) {
        rule.from_endpoints.clear();
        rule.to_endpoints.clear();
    }
    if !ids.is_empty() {
        rule.authentication = Some(WrittenAuthentication {
            mode: match proofs {
                Proofs::Audit => "audit",
                Proofs::Required => "required",
            },
            peers: ids,
        });
    }
    rule
}

fn written_ports(
    name: &str,
    protocol: Protocol,
    numbers: &BTreeSet<u16>,
    notes: &mut Vec<String>,
) -> Vec<WrittenPort> {
    let written = |first: u16, last: Option<u16>| WrittenPort {
        port: first.to_string(),
        end_port: last,
        protocol: protocol.to_string().to_uppercase(),
    };
    match (numbers.first(), numbers.last()) {
        (Some(first), Some(last)) if numbers.len() > MAX_PORTS => {
            notes.push(format!(
                "{name}: {} {protocol} ports were seen: the rule allows all from {first} to {last}",
                numbers.len()
            ));
            vec![written(*first, Some(*last))]
        }
        _ => numbers.iter().map(|port| written(*port, None)).collect(),
    }
}

/// A name that Kubernetes takes.
fn object_name(name: &str) -> String {
    let good = |c: char| {
        let lower = c.to_ascii_lowercase();
        if lower.is_ascii_alphanumeric() {
            lower
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(good).take(200).collect();
    match name.trim_matches('-') {
        "" => "workload".to_owned(),
        name => name.to_owned(),
    }
}
