//! From counting to enforcing: may a policy's audited rules require proofs now, and the document that does.

mod require;

use serde::Serialize;

use crate::model::{Authentication, RuleInfo};

pub use self::require::require;

/// A node that has not reported for so long is not watched.
const SILENT_MS: u64 = 2 * 60 * 1000;

/// How well a node was watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its name.
    pub node: String,
    /// It has reported without a long pause since then, and last at (unix milliseconds); never, if absent.
    pub between_ms: Option<(u64, u64)>,
    /// What it saw and could not keep.
    pub lost: u64,
}

/// What was seen of one pair under one rule on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenPair {
    /// The node that saw it.
    pub node: String,
    /// The rule's place, such as `spec.ingress[0]`.
    pub field: String,
    /// Who opened.
    pub source: String,
    /// Toward whom.
    pub destination: String,
    /// Flows that were opened.
    pub flows: u64,
    /// How many of them without a proof: what `required` would have held or dropped.
    pub unproven: u64,
    /// Whether the pair had a proof when it was last seen.
    pub proven: bool,
    /// When it was last seen (unix milliseconds).
    pub seen_at_ms: u64,
}

/// What must be true before proofs are required.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// Now (unix milliseconds).
    pub now_ms: u64,
    /// What was seen before this does not count (unix milliseconds).
    pub since_ms: u64,
    /// When the policy became what it is (unix milliseconds).
    pub changed_at_ms: u64,
    /// So many flows must have been seen in all.
    pub least_flows: u64,
}

/// One audited rule, and what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditedRule {
    /// Its place, such as `spec.ingress[0]`.
    pub field: String,
    /// Its line in the document.
    pub line: usize,
    /// Flows that it let pass.
    pub flows: u64,
    /// Flows among them that had no proof when they were opened.
    pub unproven: u64,
    /// Pairs that have a proof.
    pub proven_pairs: usize,
    /// Pairs that have none: they would be cut.
    pub unproven_pairs: Vec<SeenPair>,
}

/// Whether a policy may require what it audits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Its audited rules.
    pub rules: Vec<AuditedRule>,
    /// What stands against it; empty if nothing does.
    pub obstacles: Vec<String>,
    /// Rules that no flow has exercised: nobody knows yet whom they would cut.
    pub unexercised: Vec<String>,
    /// What else should be known.
    pub warnings: Vec<String>,
}

/// Weighs what was seen of the audited rules among `rules`.
#[must_use]
pub fn judge<'a>(
    rules: impl Iterator<Item = &'a RuleInfo>,
    nodes: &[Watched],
    pairs: &[SeenPair],
    demands: Demands,
) -> Readiness {
    let recent = |pair: &&SeenPair| pair.seen_at_ms >= demands.since_ms;
    let audited = rules.filter(|rule| rule.authentication == Some(Authentication::Audit));
    let rules: Vec<AuditedRule> = audited
        .map(|rule| {
            let of_rule = |pair: &&SeenPair| pair.field == rule.field;
            let seen: Vec<&SeenPair> = pairs.iter().filter(recent).filter(of_rule).collect();
            let unproven: Vec<SeenPair> = seen
                .iter()
                .filter(|pair| !pair.proven)
                .map(|pair| (*pair).clone())
                .collect();
            AuditedRule {
                field: rule.field.clone(),
                line: rule.line,
                flows: seen.iter().map(|pair| pair.flows).sum(),
                unproven: seen.iter().map(|pair| pair.unproven).sum(),
                proven_pairs: seen.len() - unproven.len(),
                unproven_pairs: unproven,
            }
        })
        .collect();
    let mut readiness = Readiness {
        unexercised: rules
            .iter()
            .filter(|rule| rule.flows == 0 && rule.unproven_pairs.is_empty())
            .map(|rule| format!("{} (line {})", rule.field, rule.line))
            .collect(),
        obstacles: Vec::new(),
        warnings: Vec::new(),
        rules,
    };
    readiness.obstacles = obstacles(&readiness.rules, nodes, demands);
    for node in nodes.iter().filter(|node| node.lost > 0) {
        readiness.warnings.push(format!(
            "node {} saw {} events that it could not keep: pairs may be missing here",
            node.node, node.lost
        ));
    }
    readiness
}

fn obstacles(rules: &[AuditedRule], nodes: &[Watched], demands: Demands) -> Vec<String> {
    let mut found = Vec::new();
    if demands.changed_at_ms > demands.since_ms {
        found.push(format!(
            "the policy has been what it is for {} only, and {} are asked for",
            span(demands.now_ms, demands.changed_at_ms),
            span(demands.now_ms, demands.since_ms)
        ));
    }
    for node in nodes {
        match node.between_ms {
            None => found.push(format!(
                "node {} has reported nothing: is its agent running, and does it reach the CA?",
                node.node
            )),
            Some((_, heard)) if heard + SILENT_MS < demands.now_ms => found.push(format!(
                "node {} was last heard {} ago: is its agent running, and does it reach the CA?",
                node.node,
                span(demands.now_ms, heard)
            )),
            Some((since, _)) if since > demands.since_ms => found.push(format!(
                "node {} has been watched for {} only, and {} are asked for",
                node.node,
                span(demands.now_ms, since),
                span(demands.now_ms, demands.since_ms)
            )),
            Some(_) => {}
        }
    }
    for pair in rules.iter().flat_map(|rule| &rule.unproven_pairs) {
        found.push(format!(
            "{}: {} -> {} has no proof on node {} (`handfast verify` there says what is missing)",
            pair.field, pair.source, pair.destination, pair.node
        ));
    }
    let flows: u64 = rules.iter().map(|rule| rule.flows).sum();
    if flows < demands.least_flows {
        found.push(format!(
            "{flows} flows were seen, and {} are asked for",
            demands.least_flows
        ));
    }
    found
}

/// A duration for people, to the second.
fn span(now_ms: u64, then_ms: u64) -> humantime::FormattedDuration {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    humantime::format_duration(std::time::Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{PolicySet, Source};

    pub(super) const POLICY: &str = r#"# the shop's database
apiVersion: handfast.io/v1alpha1
kind: HandfastPolicy
metadata: {name: db, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db, mode: audit}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: web}}]
      authentication:
        mode: audit   # since spring
    - fromEndpoints: [{matchLabels: {app: é}}, {matchLabels: {authentication: audit}}]
      authentication: {maxAge: 1h, mode: "audit"}
    - fromEndpoints: [{matchLabels: {app: job}}]
      authentication: {mode: disabled}
"#;

    pub(super) fn source(text: &str) -> Source {
        Source {
            name: "HandfastPolicy/shop/db".into(),
            text: text.into(),
        }
    }

    fn rules(set: &PolicySet) -> impl Iterator<Item = &RuleInfo> {
        set.rules().map(|(_, rule)| rule)
    }

    const NOW: u64 = 1_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn demands() -> Demands {
        Demands {
            now_ms: NOW,
            since_ms: NOW - 24 * HOUR,
            changed_at_ms: NOW - 48 * HOUR,
            least_flows: 10,
        }
    }

    fn node(since_hours: u64) -> Watched {
        Watched {
            node: "n1".into(),
            between_ms: Some((NOW - since_hours * HOUR, NOW - 1000)),
            lost: 0,
        }
    }

    fn pair(field: &str, proven: bool) -> SeenPair {
        SeenPair {
            node: "n1".into(),
            field: field.into(),
            source: "spiffe://td/web".into(),
            destination: "spiffe://td/db".into(),
            flows: 20,
            unproven: 1,
            proven,
            seen_at_ms: NOW - HOUR,
        }
    }

    fn weigh(nodes: &[Watched], pairs: &[SeenPair], demands: Demands) -> Readiness {
        let set = PolicySet::read(vec![source(&POLICY.replace('é', "e"))]).unwrap();
        judge(rules(&set), nodes, pairs, demands)
    }

    #[test]
    fn proven_pairs_on_watched_nodes_are_ready_and_the_rule_nobody_used_is_named() {
        let ready = weigh(&[node(30)], &[pair("spec.ingress[0]", true)], demands());
        assert!(ready.obstacles.is_empty(), "{:?}", ready.obstacles);
        assert_eq!(ready.rules.len(), 2);
        assert_eq!(ready.unexercised, ["spec.ingress[1] (line 11)"]);
    }

    #[test]
    fn each_thing_that_is_missing_is_said() {
        let says = |ready: &Readiness, words: &str| {
            assert!(
                ready.obstacles.iter().any(|line| line.contains(words)),
                "no {words:?} in {:?}",
                ready.obstacles
            );
        };
        let seen = [pair("spec.ingress[0]", true)];
        says(&weigh(&[node(3)], &seen, demands()), "watched for 3h");
        let unproven = [pair("spec.ingress[1]", false)];
        says(
            &weigh(&[node(30)], &unproven, demands()),
            "has no proof on node n1",
        );
        let never = Watched {
            between_ms: None,
            ..node(0)
        };
        says(&weigh(&[never], &seen, demands()), "reported nothing");
        let silent = Watched {
            between_ms: Some((0, NOW - HOUR)),
            ..node(0)
        };
        says(&weigh(&[silent], &seen, demands()), "last heard 1h ago");
        let young = Demands {
            changed_at_ms: NOW - HOUR,
            ..demands()
        };
        says(
            &weigh(&[node(30)], &seen, young),
            "has been what it is for 1h",
        );
        let many = Demands {
            least_flows: 21,
            ..demands()
        };
        says(&weigh(&[node(30)], &seen, many), "20 flows were seen");
    }

    #[test]
    fn what_was_seen_before_the_window_does_not_count() {
        let old = SeenPair {
            seen_at_ms: NOW - 25 * HOUR,
            ..pair("spec.ingress[0]", false)
        };
        let ready = weigh(&[node(30)], &[old], demands());
        assert_eq!(ready.obstacles, ["0 flows were seen, and 10 are asked for"]);
    }
}
