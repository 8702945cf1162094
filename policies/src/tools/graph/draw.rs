//! From policies and what was seen to nodes and edges.

use std::collections::BTreeMap;

use crate::entry::Remote;
use crate::model::Protocol;
use crate::set::PolicySet;
use crate::tools::classes::{Class, classes};
use crate::tools::diff::{deciding, outside};
use crate::tools::flow::{End, Flow, Outcome, decide};
use crate::tools::graph::{Edge, Graph, GraphNode, State};
use crate::tools::inventory::Inventory;
use crate::tools::observed::{Observed, Seen};
use crate::tools::span::{Sides, protocols, spans};

/// More edges than this are not drawn.
const MAX_EDGES: usize = 20_000;

/// Draws up what the policies allow among the known workloads (without any: among workloads as the selectors
/// describe them), and lays what was observed over it.
///
/// With `everything`, also what is open only because no policy closes it.
#[must_use]
pub fn graph(
    set: &PolicySet,
    inventory: &Inventory,
    observed: Option<&[Observed]>,
    everything: bool,
) -> Graph {
    let classes = classes(&[set], inventory);
    let mut graph = Graph {
        has_observed: observed.is_some(),
        ..Graph::default()
    };
    let mut ends: Vec<Class> = classes;
    ends.extend(outside(&[set]));
    for class in &ends {
        graph.node(set, &class.end, class.others);
    }
    let mut edges: BTreeMap<(usize, usize, State), Edge> = BTreeMap::new();
    let observed = observed.unwrap_or_default();
    let mut matched = vec![false; observed.len()];
    for (from, a) in ends.iter().enumerate() {
        for (to, b) in ends.iter().enumerate() {
            let both = a.end.workload().is_some() || b.end.workload().is_some();
            if (from == to && a.others == 0) || !both {
                continue;
            }
            let mut context = Between {
                set,
                graph: &graph,
                from: (from, a),
                to: (to, b),
                everything,
                inventory,
            };
            context.edges(observed, &mut matched, &mut edges);
        }
    }
    // What was seen between ends that no edge of the configuration has.
    for (flow, _) in observed
        .iter()
        .zip(&matched)
        .filter(|(_, matched)| !**matched)
    {
        let from = graph.end(&flow.from, set, inventory);
        let to = graph.end(&flow.to, set, inventory);
        let dropped = flow
            .seen
            .keys()
            .all(|seen| matches!(seen, Seen::Dropped | Seen::Held));
        let decision = decide(
            set,
            &Flow {
                from: flow.from.clone(),
                to: flow.to.clone(),
                protocol: flow.protocol,
                port: flow.port,
            },
        );
        let state = match (dropped, decision.outcome()) {
            (true, _) => State::Denied,
            (false, Outcome::Denied) => State::Unexpected,
            (false, Outcome::Audited) => State::AuditOnly,
            (false, Outcome::Proven) => State::Proven,
            (false, Outcome::Allowed) => State::Open,
        };
        let rule = deciding(set, &decision).map(|rule| rule.to_string());
        let edge = edges
            .entry((from, to, state))
            .or_insert_with(|| Edge::new(from, to, state));
        edge.add(traffic(flow.protocol, &flow.port.to_string()), rule);
        edge.see(flow);
    }
    part_of_the_world(&graph, &mut edges);
    graph.is_cut = edges.len() > MAX_EDGES;
    graph.edges = edges.into_values().take(MAX_EDGES).collect();
    graph.forget_lonely();
    graph
}

/// Takes out what is said of a prefix only because it is said of the whole world.
fn part_of_the_world(graph: &Graph, edges: &mut BTreeMap<(usize, usize, State), Edge>) {
    let world = End::World.to_string();
    let Some(world) = graph.nodes.iter().position(|node| node.name == world) else {
        return;
    };
    let is_prefix = |node: usize| {
        let node = graph.nodes.get(node).filter(|node| node.kind == "outside");
        node.is_some_and(|node| node.name != "world")
    };
    let repeated: Vec<_> = edges
        .iter()
        .filter(|((from, to, _), edge)| {
            let same = match (is_prefix(*from), is_prefix(*to)) {
                (true, false) => {
                    edges.range((world, *to, State::Denied)..=(world, *to, State::Open))
                }
                (false, true) => {
                    edges.range((*from, world, State::Denied)..=(*from, world, State::Open))
                }
                _ => return false,
            };
            let unseen = edge.seen.is_empty();
            let mut same = same;
            unseen
                && same.any(|(_, other)| other.traffic == edge.traffic && other.rules == edge.rules)
        })
        .map(|(key, _)| *key)
        .collect();
    for key in repeated {
        edges.remove(&key);
    }
}

/// Two ends, and everything that is needed to draw what is between them.
struct Between<'a> {
    set: &'a PolicySet,
    graph: &'a Graph,
    from: (usize, &'a Class),
    to: (usize, &'a Class),
    everything: bool,
    inventory: &'a Inventory,
}

impl Between<'_> {
    fn edges(
        &mut self,
        observed: &[Observed],
        matched: &mut [bool],
        edges: &mut BTreeMap<(usize, usize, State), Edge>,
    ) {
        let (from, to) = (self.from.0, self.to.0);
        let sides = Sides::new(self.set, &self.from.1.end, &self.to.1.end);
        let here: Vec<_> = observed
            .iter()
            .enumerate()
            .filter(|(_, flow)| {
                self.is_here(&flow.from, self.from.0) && self.is_here(&flow.to, self.to.0)
            })
            .collect();
        let named = protocols(&[&sides]);
        for protocol in named.iter().copied() {
            for ports in spans(&[&sides], protocol) {
                let decision = sides.decide(protocol, ports.first());
                let ruled = decision
                    .sent
                    .iter()
                    .chain(&decision.received)
                    .any(|r| r.entry().is_some());
                let configured = match decision.outcome() {
                    Outcome::Denied => continue,
                    _ if !ruled && !self.everything => continue,
                    Outcome::Proven => State::Proven,
                    Outcome::Audited => State::AuditOnly,
                    Outcome::Allowed => State::Open,
                };
                let flows: Vec<_> = here
                    .iter()
                    .filter(|(_, flow)| match protocol {
                        Protocol::Any => {
                            !named.contains(&flow.protocol) || flow.protocol == Protocol::Any
                        }
                        protocol => flow.protocol == protocol && ports.contains(flow.port),
                    })
                    .collect();
                let passed = |flow: &Observed| {
                    flow.seen
                        .keys()
                        .any(|seen| matches!(seen, Seen::Forwarded | Seen::Audit))
                };
                let dropped = |flow: &Observed| flow.seen.contains_key(&Seen::Dropped);
                let state = if flows.iter().any(|(_, flow)| dropped(flow) && !passed(flow)) {
                    State::Denied
                } else if self.graph.has_observed && flows.is_empty() {
                    State::NeverSeen
                } else if flows
                    .iter()
                    .any(|(_, flow)| flow.seen.contains_key(&Seen::Audit))
                {
                    State::AuditOnly
                } else {
                    configured
                };
                let rule = deciding(self.set, &decision);
                // That a pod's own node reaches it is so everywhere, and worth no line until it is seen.
                if rule.as_ref().is_some_and(|rule| rule.is_implied) && flows.is_empty() {
                    continue;
                }
                let rule = rule.map(|rule| rule.to_string());
                let edge = edges
                    .entry((from, to, state))
                    .or_insert_with(|| Edge::new(from, to, state));
                edge.add(traffic(protocol, &ports.to_string()), rule);
                for (index, flow) in flows {
                    edge.see(flow);
                    if let Some(matched) = matched.get_mut(*index) {
                        *matched = true;
                    }
                }
            }
        }
    }

    fn is_here(&self, end: &End, node: usize) -> bool {
        self.graph.find(end, self.set, self.inventory) == Some(node)
    }
}

impl Edge {
    fn new(from: usize, to: usize, state: State) -> Self {
        Self {
            from,
            to,
            state,
            traffic: Vec::new(),
            rules: Vec::new(),
            seen: BTreeMap::new(),
            reason: None,
        }
    }

    fn add(&mut self, traffic: String, rule: Option<String>) {
        if !self.traffic.contains(&traffic) {
            self.traffic.push(traffic);
        }
        if let Some(rule) = rule
            && !self.rules.contains(&rule)
        {
            self.rules.push(rule);
        }
    }

    fn see(&mut self, flow: &Observed) {
        for (seen, count) in &flow.seen {
            *self.seen.entry(*seen).or_default() += count;
        }
        if flow.reason.is_some() {
            self.reason.clone_from(&flow.reason);
        }
    }
}

/// What an end is called: an address outside by the prefix that policies know it by.
fn name(set: &PolicySet, end: &End) -> String {
    let End::Outside(address) = end else {
        return end.to_string();
    };
    match set.outside(*address) {
        Remote::Cidr(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
        Remote::Cidr(net) => net.to_string(),
        _ => End::World.to_string(),
    }
}

fn traffic(protocol: Protocol, ports: &str) -> String {
    match (protocol, ports) {
        (Protocol::Any, _) => "any".to_owned(),
        (protocol, "any") => protocol.to_string(),
        (protocol, ports) => format!("{protocol}/{ports}"),
    }
}

impl Graph {
    fn node(&mut self, set: &PolicySet, end: &End, alike: usize) -> usize {
        let name = name(set, end);
        let known = self.nodes.iter().position(|node| node.name == name);
        known.unwrap_or_else(|| {
            let workload = end.workload();
            let labels = workload.map(|workload| &workload.labels);
            self.nodes.push(GraphNode {
                name,
                kind: match end {
                    End::Workload { .. } => "workload",
                    End::Host => "host",
                    End::Outside(_) | End::World => "outside",
                },
                namespace: labels.and_then(|l| l.get(crate::read::NAMESPACE).cloned()),
                spiffe_id: workload.map(|workload| workload.spiffe_id.to_string()),
                labels: labels
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect(),
                alike,
            });
            self.nodes.len() - 1
        })
    }

    /// The node that an observed end belongs to.
    fn find(&self, end: &End, set: &PolicySet, inventory: &Inventory) -> Option<usize> {
        let name = match end {
            // Of several workloads that no policy tells apart, one stands for all.
            End::Workload { workload, .. } => {
                let known = inventory.identified(&workload.spiffe_id.to_string());
                known.map_or_else(|| end.to_string(), |known| known.name.clone())
            }
            other => name(set, other),
        };
        self.nodes.iter().position(|node| node.name == name)
    }

    fn end(&mut self, end: &End, set: &PolicySet, inventory: &Inventory) -> usize {
        match self.find(end, set, inventory) {
            Some(node) => node,
            None => self.node(set, end, 0),
        }
    }

    /// Takes out nodes that no edge has, but workloads: that nothing reaches them is worth seeing.
    fn forget_lonely(&mut self) {
        let used = |index: usize| {
            let mut edges = self.edges.iter();
            edges.any(|edge| edge.from == index || edge.to == index)
        };
        let keep: Vec<bool> = (0..self.nodes.len())
            .map(|index| {
                used(index)
                    || self
                        .nodes
                        .get(index)
                        .is_some_and(|node| node.kind == "workload")
            })
            .collect();
        let mut places = Vec::with_capacity(keep.len());
        let mut next = 0;
        for kept in &keep {
            places.push(next);
            next += usize::from(*kept);
        }
        let mut kept = keep.iter();
        self.nodes.retain(|_| kept.next().copied().unwrap_or(true));
        for edge in &mut self.edges {
            edge.from = places.get(edge.from).copied().unwrap_or_default();
            edge.to = places.get(edge.to).copied().unwrap_or_default();
        }
    }
}
