//! Two sets of policies: the flows of which they say different things.

use serde::Serialize;

use crate::local::Ruling;
use crate::model::{Protocol, RuleInfo};
use crate::ports::Ports;
use crate::set::PolicySet;
use crate::tools::classes::{Class, classes};
use crate::tools::flow::{Decision, End, Outcome};
use crate::tools::inventory::Inventory;
use crate::tools::span::{Sides, protocols, spans};

/// One span of flows whose verdict is different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Who opens the flow.
    pub from: String,
    /// Toward whom.
    pub to: String,
    /// The protocol, `any`, or `other than` some.
    pub protocol: String,
    /// The ports, or `any`.
    pub ports: String,
    /// What becomes of it by the first set.
    pub before: Outcome,
    /// What becomes of it by the second set.
    pub after: Outcome,
    /// The rule that decides in the first set, if one does.
    pub rule_before: Option<RuleInfo>,
    /// The rule that decides in the second set, if one does.
    pub rule_after: Option<RuleInfo>,
}

impl Change {
    /// Whether flows pass now that did not, or with less proof than before.
    #[must_use]
    pub fn widens(&self) -> bool {
        self.after > self.before
    }
}

/// Every difference between the sets, among the known workloads, or without any among workloads as the selectors
/// describe them; with the node, and with one address of each prefix that either set names.
#[must_use]
pub fn diff(before: &PolicySet, after: &PolicySet, inventory: &Inventory) -> Vec<Change> {
    let classes = classes(&[before, after], inventory);
    let outside = outside(&[before, after]);
    let mut changes = Vec::new();
    for class in &classes {
        for other in &classes {
            if class.end != other.end || class.others > 0 {
                between(before, after, class, other, &mut changes);
            }
        }
        for other in &outside {
            between(before, after, class, other, &mut changes);
            between(before, after, other, class, &mut changes);
        }
    }
    changes
}

/// The far ends that are no workloads.
pub(super) fn outside(sets: &[&PolicySet]) -> Vec<Class> {
    let prefixes: std::collections::BTreeSet<_> = sets.iter().flat_map(|set| set.cidrs()).collect();
    let addresses = prefixes.into_iter().map(|net| End::Outside(net.addr()));
    [End::Host, End::World]
        .into_iter()
        .chain(addresses)
        .map(|end| Class { end, others: 0 })
        .collect()
}

fn between(
    before: &PolicySet,
    after: &PolicySet,
    from: &Class,
    to: &Class,
    changes: &mut Vec<Change>,
) {
    let old = Sides::new(before, &from.end, &to.end);
    let new = Sides::new(after, &from.end, &to.end);
    let sides = [&old, &new];
    let pair = |protocol, port| (old.decide(protocol, port), new.decide(protocol, port));
    let outcomes = |protocol, port| {
        let (was, is) = pair(protocol, port);
        (was.outcome(), is.outcome())
    };
    let rest = outcomes(Protocol::Any, 0);
    // Those of which something else is said than of the rest are listed by themselves.
    let is_special = |protocol: &Protocol| {
        let mut spans = spans(&sides, *protocol).into_iter();
        spans.any(|ports| outcomes(*protocol, ports.first()) != rest)
    };
    let named = protocols(&sides).into_iter().skip(1);
    let own: Vec<_> = named.filter(is_special).collect();
    for protocol in std::iter::once(Protocol::Any).chain(own.iter().copied()) {
        let mut last: Option<(Ports, Change)> = None;
        for ports in spans(&sides, protocol) {
            let (was, is) = pair(protocol, ports.first());
            let change = Change {
                from: from.to_string(),
                to: to.to_string(),
                protocol: match (protocol, own.as_slice()) {
                    (Protocol::Any, [_, ..]) => {
                        let names: Vec<_> = own.iter().map(ToString::to_string).collect();
                        format!("other than {}", names.join(", "))
                    }
                    (protocol, _) => protocol.to_string(),
                },
                ports: String::new(),
                before: was.outcome(),
                after: is.outcome(),
                rule_before: deciding(before, &was),
                rule_after: deciding(after, &is),
            };
            last = match last.take() {
                Some((span, same)) if same == change => {
                    Some((Ports::new(span.first(), ports.last()).unwrap_or(span), same))
                }
                earlier => {
                    push(changes, earlier);
                    (change.before != change.after).then_some((ports, change))
                }
            };
        }
        push(changes, last);
    }
}

fn push(changes: &mut Vec<Change>, change: Option<(Ports, Change)>) {
    if let Some((ports, mut change)) = change {
        change.ports = ports.to_string();
        changes.push(change);
    }
}

/// The rule behind a decision: where it is denied, of the end that denies it.
pub(super) fn deciding(set: &PolicySet, decision: &Decision) -> Option<RuleInfo> {
    let rulings = [&decision.sent, &decision.received];
    let rulings = rulings.into_iter().flatten();
    let denying = rulings.clone().find(|ruling| !ruling.is_allowed());
    let strictest = || {
        rulings
            .clone()
            .filter_map(Ruling::entry)
            .max_by_key(|entry| entry.auth)
    };
    let entry = match denying {
        Some(ruling) => ruling.entry()?,
        None => strictest()?,
    };
    set.rule(entry.rule).cloned()
}
