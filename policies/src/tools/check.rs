//! What is odd about a set of policies that reads well, and what of it would cut handfast's own lifelines.

use std::fmt;

use serde::Serialize;

use crate::document::{Document, Rule, Spec};
use crate::model::{Direction, Verdict};
use crate::selector::{Peer, Peers, Selector};
use crate::set::PolicySet;
use crate::tools::cover;
use crate::tools::flow::{End, Flow, Outcome, decide};
use crate::tools::inventory::Inventory;
use crate::tools::ssh;

/// More rules than this for one direction are not compared with each other.
const MAX_COMPARED: usize = 4000;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The set is refused unless somebody insists.
    Refused,
    /// Something has no effect, or not the one that was meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// What was found at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// A word for programs: `cuts-lifeline`, `cuts-ssh`, `selects-nothing`, `unreachable`, `shadowed`, `name-service`, `note`.
    pub code: &'static str,
    /// The source's name; empty if the whole set is meant.
    pub file: String,
    /// The line, from 1; 0 if the whole set is meant.
    pub line: usize,
    /// The field path.
    pub field: String,
    /// What is odd, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.level)?;
        if !self.file.is_empty() {
            write!(f, "{}:{}: {}: ", self.file, self.line, self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is found, the worst first.
#[must_use]
pub fn check(set: &PolicySet, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = lifelines(set, inventory);
    findings.extend(ssh::cut(set, inventory));
    if !inventory.workloads.is_empty() {
        for (file, document) in set.documents() {
            for spec in &document.specs {
                selects_nothing(file, spec, inventory, &mut findings);
            }
        }
    }
    in_vain(set, &mut findings);
    name_service(set, inventory, &mut findings);
    findings.extend(set.notes().map(|note| Finding {
        level: Level::Note,
        code: "note",
        file: note.file.clone(),
        line: note.line,
        field: note.field.clone(),
        message: note.message.clone(),
    }));
    findings.sort_by(|a, b| (a.level, &a.file, a.line).cmp(&(b.level, &b.file, b.line)));
    findings
}

/// Flows that must go through without a proof.
fn lifelines(set: &PolicySet, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    for need in &inventory.needs {
        let ends = inventory
            .end(&need.from)
            .and_then(|from| Ok((from, inventory.end(&need.to)?)));
        let (from, to) = match ends {
            Ok(ends) => ends,
            Err(why) => {
                findings.push(whole(
                    Level::Warning,
                    "cuts-lifeline",
                    format!("{}: {why}", need.name),
                ));
                continue;
            }
        };
        let flow = Flow {
            from,
            to,
            protocol: need.protocol,
            port: need.port,
        };
        // Whoever runs beside the called one comes as the node itself, whoever runs elsewhere from outside the mesh.
        let callers = match flow.from {
            End::Host => vec![End::Host, End::World],
            _ => vec![flow.from.clone()],
        };
        for from in callers {
            let flow = Flow {
                from,
                ..flow.clone()
            };
            let decision = decide(set, &flow);
            let what = match decision.outcome() {
                Outcome::Allowed | Outcome::Audited => continue,
                Outcome::Denied => "is denied",
                Outcome::Proven => "needs a proof, which nobody can have without it",
            };
            let rulings = [&decision.sent, &decision.received];
            let rule = rulings
                .into_iter()
                .flatten()
                .find(|ruling| {
                    !ruling.is_allowed() || ruling.entry().is_some_and(|e| e.auth.is_some())
                })
                .and_then(|ruling| set.rule(ruling.entry()?.rule));
            let mut finding = whole(
                Level::Refused,
                "cuts-lifeline",
                format!("{}: {flow} {what}", need.name),
            );
            match rule {
                Some(rule) => {
                    finding.file.clone_from(&rule.file);
                    finding.line = rule.line;
                    finding.field.clone_from(&rule.field);
                }
                None => finding.message.push_str(
                    ", since a policy closes that direction and no rule allows it: add a rule that does",
                ),
            }
            findings.push(finding);
            break;
        }
    }
    findings
}

/// What is odd about the set as a whole.
pub(super) fn whole(level: Level, code: &'static str, message: String) -> Finding {
    Finding {
        level,
        code,
        file: String::new(),
        line: 0,
        field: String::new(),
        message,
    }
}

fn finds(selector: &Selector, inventory: &Inventory) -> bool {
    let mut workloads = inventory.workloads.iter();
    workloads.any(|known| selector.matches(&known.workload))
}

fn selects_nothing(file: &str, spec: &Spec, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let mut found = |line: usize, field: &str, message: &str| {
        findings.push(Finding {
            level: Level::Warning,
            code: "selects-nothing",
            file: file.to_owned(),
            line,
            field: field.to_owned(),
            message: message.to_owned(),
        });
    };
    if !finds(&spec.subject, inventory) {
        let message =
            "selects none of the known workloads, so the policy does nothing: check the labels";
        return found(spec.line, &spec.field, message);
    }
    for rule in &spec.rules {
        let Peers::Of(peers) = &rule.peers else {
            continue;
        };
        for (index, peer) in peers.iter().enumerate() {
            if let Peer::Workloads(selector) = peer
                && !finds(selector, inventory)
            {
                let field = format!("{} (peer {})", rule.field, index + 1);
                found(
                    rule.line,
                    &field,
                    "selects none of the known workloads: check the labels",
                );
            }
        }
        if let Some(ids) = &rule.ids {
            let mut workloads = inventory.workloads.iter();
            if !workloads.any(|known| ids.iter().any(|id| id.matches(&known.workload.spiffe_id))) {
                let field = format!("{}.authentication.peers", rule.field);
                found(
                    rule.line,
                    &field,
                    "matches the SPIFFE ID of none of the known workloads",
                );
            }
        }
    }
}

/// A rule with where it stands and whom it is for.
struct Placed<'a> {
    file: &'a str,
    document: &'a Document,
    spec: &'a Spec,
    rule: &'a Rule,
}

/// Rules that can never decide, and rules that others make superfluous.
fn in_vain(set: &PolicySet, findings: &mut Vec<Finding>) {
    for direction in [Direction::Ingress, Direction::Egress] {
        let placed: Vec<_> = set
            .documents()
            .flat_map(|(file, document)| {
                let specs = document.specs.iter();
                specs.flat_map(move |spec| {
                    spec.rules.iter().map(move |rule| Placed {
                        file,
                        document,
                        spec,
                        rule,
                    })
                })
            })
            .filter(|placed| placed.rule.direction == direction && !placed.rule.is_implied)
            .collect();
        if placed.len() > MAX_COMPARED {
            findings.push(whole(
                Level::Note,
                "note",
                format!(
                    "{} {direction} rules are too many to compare each with each ({MAX_COMPARED} is the most): \
                     superfluous ones are not searched for",
                    placed.len()
                ),
            ));
            continue;
        }
        for (index, inner) in placed.iter().enumerate() {
            let others = placed
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index);
            let mut denying = None;
            let mut same = None;
            for (other, outer) in others {
                let covers = cover::selector(&outer.spec.subject, &inner.spec.subject)
                    && cover::rule(outer.rule, inner.rule);
                if !covers {
                    continue;
                }
                match (outer.rule.verdict, inner.rule.verdict) {
                    (Verdict::Deny, Verdict::Allow) => denying = denying.or(Some(outer)),
                    (Verdict::Allow, Verdict::Deny) => {}
                    _ => {
                        // Of two that say the same, the later one is superfluous.
                        let back = cover::selector(&inner.spec.subject, &outer.spec.subject)
                            && cover::rule(inner.rule, outer.rule)
                            && cover::asks_nothing_new(inner.rule, outer.rule);
                        let first = !back || other < index;
                        if first && cover::asks_nothing_new(outer.rule, inner.rule) {
                            same = same.or(Some(outer));
                        }
                    }
                }
            }
            let place = |outer: &Placed<'_>| {
                format!(
                    "{} {} ({}:{})",
                    outer.document.name, outer.rule.field, outer.file, outer.rule.line
                )
            };
            let (code, message) = match (denying, same) {
                (Some(outer), _) => (
                    "unreachable",
                    format!("allows nothing: {} denies all that it allows", place(outer)),
                ),
                (None, Some(outer)) => (
                    "shadowed",
                    format!("changes nothing: {} says all of it", place(outer)),
                ),
                (None, None) => continue,
            };
            findings.push(Finding {
                level: Level::Warning,
                code,
                file: inner.file.to_owned(),
                line: inner.rule.line,
                field: inner.rule.field.clone(),
                message,
            });
        }
    }
}

/// Workloads that a policy keeps from every name server: often meant otherwise.
fn name_service(set: &PolicySet, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let servers: Vec<_> = inventory
        .needs
        .iter()
        .filter(|need| need.port == 53)
        .filter_map(|need| Some((need, inventory.end(&need.to).ok()?)))
        .collect();
    if servers.is_empty() {
        return;
    }
    let cut: Vec<_> = inventory
        .workloads
        .iter()
        .filter(|known| {
            servers.iter().all(|(need, server)| {
                let flow = Flow {
                    from: known.end(),
                    to: server.clone(),
                    protocol: need.protocol,
                    port: need.port,
                };
                flow.from != flow.to && !decide(set, &flow).is_allowed()
            })
        })
        .map(|known| known.name.as_str())
        .collect();
    if let [first, rest @ ..] = cut.as_slice() {
        let more = match rest.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        findings.push(whole(
            Level::Warning,
            "name-service",
            format!("{first}{more} cannot ask any of the name servers given: if they look names up, add a rule"),
        ));
    }
}
