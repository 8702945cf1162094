//! Why a flow passes or not: the rule that decides at each end, and those that spoke in vain.

use serde::Serialize;

use crate::entry::Remote;
use crate::local::Ruling;
use crate::model::{Authentication, Direction, RuleInfo, RuleRef, Verdict};
use crate::set::PolicySet;
use crate::tools::flow::{Decision, End, Flow, Outcome, decide};

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The flow in words.
    pub flow: String,
    /// What becomes of it.
    pub outcome: Outcome,
    /// What is asked about authentication; `None` leaves it to the agent's default.
    pub authentication: Option<Authentication>,
    /// Each end that has a policy of its own.
    pub ends: Vec<EndExplanation>,
}

/// What one end makes of it.
#[derive(Clone, Debug, Serialize)]
pub struct EndExplanation {
    /// Who.
    pub end: String,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// `egress` of who opens the flow, `ingress` of who is called.
    pub direction: Direction,
    /// Whether it passes here.
    pub allowed: bool,
    /// Why, in a sentence.
    pub why: String,
    /// The rule that decides.
    pub rule: Option<RuleInfo>,
    /// Rules that speak of the two ends and did not decide, with the reason.
    pub others: Vec<Other>,
}

/// A rule that did not decide.
#[derive(Clone, Debug, Serialize)]
pub struct Other {
    /// The rule.
    pub rule: RuleInfo,
    /// Why it did not.
    pub why: &'static str,
}

/// Explains a flow.
#[must_use]
pub fn explain(set: &PolicySet, flow: &Flow) -> Explanation {
    let decision = decide(set, flow);
    let Decision { sent, received } = &decision;
    let ends = [
        end(set, flow, &flow.from, &flow.to, Direction::Egress, sent),
        end(
            set,
            flow,
            &flow.to,
            &flow.from,
            Direction::Ingress,
            received,
        ),
    ];
    Explanation {
        flow: flow.to_string(),
        outcome: decision.outcome(),
        authentication: decision.authentication(),
        ends: ends.into_iter().flatten().collect(),
    }
}

fn end(
    set: &PolicySet,
    flow: &Flow,
    local: &End,
    remote: &End,
    direction: Direction,
    ruling: &Option<Ruling>,
) -> Option<EndExplanation> {
    let (workload, ruling) = (local.workload()?, ruling.as_ref()?);
    let remote = remote.remote(set);
    let deciding = ruling.entry().map(|entry| entry.rule);
    let rule = deciding.and_then(|number| set.rule(number)).cloned();
    let why = match (ruling, &rule) {
        (Ruling::Open, _) => {
            "no policy closes this direction here, and no rule speaks of the flow".to_owned()
        }
        (Ruling::Closed, _) => {
            "a policy closes this direction here, and no rule allows the flow".to_owned()
        }
        (Ruling::Rule(entry), rule) => {
            let place = rule.as_ref().map_or_else(String::new, ToString::to_string);
            let asked = match entry.auth {
                Some(Authentication::Required) => ", both ends proven",
                Some(Authentication::Audit) => ", proof audited",
                Some(Authentication::Disabled) => ", without a proof",
                Some(Authentication::TestAlwaysFail) => ", and fails always, as a test",
                None => "",
            };
            match entry.verdict {
                Verdict::Allow => format!("allowed by {place}{asked}"),
                Verdict::Deny => format!("denied by {place}"),
            }
        }
    };
    Some(EndExplanation {
        end: local.to_string(),
        spiffe_id: workload.spiffe_id.to_string(),
        direction,
        allowed: ruling.is_allowed(),
        why,
        others: others(set, flow, local, &remote, direction, deciding),
        rule,
    })
}

fn others(
    set: &PolicySet,
    flow: &Flow,
    local: &End,
    remote: &Remote,
    direction: Direction,
    deciding: Option<RuleRef>,
) -> Vec<Other> {
    let Some(workload) = local.workload() else {
        return Vec::new();
    };
    let specs = set.documents().flat_map(|(_, document)| &document.specs);
    let rules = specs
        .filter(|spec| spec.subject.matches(workload))
        .flat_map(|spec| &spec.rules)
        .filter(|rule| rule.direction == direction && Some(rule.number) != deciding);
    let verdict = deciding
        .and_then(|number| set.rule(number))
        .map(|rule| rule.verdict);
    rules
        .filter_map(|rule| {
            let mut ranges = rule.ranges(workload, remote);
            let speaks_of_port = ranges.any(|range| range.covers(flow.protocol, flow.port));
            let why = match (rule.matches(workload, remote), speaks_of_port) {
                (false, false) => return None,
                (false, true) if rule.is_implied => return None,
                (false, true) => "it does not name the other end",
                (true, false) => "it does not name the port",
                (true, true) if verdict == Some(Verdict::Deny) => "a deny rule wins",
                (true, true) => "another rule speaks of the flow more closely",
            };
            let rule = set.rule(rule.number)?.clone();
            Some(Other { rule, why })
        })
        .collect()
}
