//! From what the store says to what a plan decides by; and when a rotation begins by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use super::journal::Rotation;
use super::plan::{NodeView, ServerView, What, World};
use crate::authority::{Authorities, Kind, Lifetimes, Record, Standing};
use crate::model::Node;

/// What is known at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) authorities: &'a Authorities,
    /// How far each server has taken in what it signs with.
    pub(crate) applied: &'a [(String, u64)],
    /// How long partners of a federation get (SPIFFE F-6).
    pub(crate) partners: Duration,
    /// How long tokens live at most.
    pub(crate) tokens: Duration,
}

/// Does a rotation wait for this node? Who is evicted or banned has nothing
/// until it attests again, and then begins with what is new.
pub(crate) fn counts(node: &Node) -> bool {
    node.joined_at_ms.is_some() && !node.evicted && !node.banned && !node.revoked
}

impl Rotation {
    /// The world as this rotation sees it.
    pub(crate) fn world(&self, facts: &Facts<'_>, waited: Duration) -> World {
        let nodes = facts.nodes.iter().filter(|node| counts(node));
        let servers = facts.authorities.servers();
        World {
            nodes: nodes
                .map(|node| NodeView {
                    name: node.name.clone(),
                    acknowledged: node.acknowledged,
                    in_use: node.authorities_in_use.iter().cloned().collect(),
                    problem: node.problem.clone(),
                })
                .collect(),
            servers: servers
                .into_iter()
                .map(|name| ServerView {
                    name: name.to_owned(),
                    ready: self.ready(facts.authorities, name),
                    applied: facts
                        .applied
                        .iter()
                        .find(|(server, _)| server == name)
                        .map_or(0, |(_, applied)| *applied),
                })
                .collect(),
            outgoing: self.outgoing(facts.authorities),
            waited,
            partners: facts.partners,
            tokens: facts.tokens,
        }
    }

    /// What agents report and may no longer hang on when this has ended.
    pub(crate) fn outgoing(&self, authorities: &Authorities) -> BTreeSet<String> {
        authorities
            .all()
            .iter()
            .filter(|record| record.kind != Kind::Root && self.replaces(record))
            .map(|record| record.id.clone())
            .collect()
    }

    /// Has a server what it signs with once this is activated?
    fn ready(&self, authorities: &Authorities, server: &str) -> bool {
        let mut prepared = authorities.of(Kind::Issuing, Standing::Prepared);
        match self.plan.what {
            What::Root => {
                prepared.any(|record| record.server == server && record.parent == self.incoming)
            }
            // Of one server, which has made it.
            What::Issuing => {
                server != self.server || prepared.any(|record| record.id == self.incoming)
            }
            What::Jwt => true,
        }
    }
}

/// What is to be rotated by now without anybody asking, and whether it takes
/// over from a plan that has not ended: what is out of its time cannot wait.
pub(crate) fn due(
    authorities: &Authorities,
    server: &str,
    lifetimes: &Lifetimes,
    has_root_key: bool,
    now_ms: u64,
) -> Vec<(What, bool)> {
    let mut due = Vec::new();
    if let Some(root) = authorities.active_root() {
        let quarter = lifetimes.root.saturating_mul(1000) / 4;
        let life = root.not_after_ms.saturating_sub(root.not_before_ms);
        if has_root_key && root.not_after_ms.saturating_sub(now_ms) < quarter.min(life / 4) {
            due.push((What::Root, false));
        }
    }
    for (kind, what) in [(Kind::Issuing, What::Issuing), (Kind::Jwt, What::Jwt)] {
        let Some(active) = authorities.active(kind, server) else {
            continue;
        };
        if past_half(active, now_ms) {
            due.push((what, active.not_after_ms <= now_ms));
        }
    }
    due
}

/// Counted from when it was made: issuing CAs are valid since their root is.
fn past_half(record: &Record, now_ms: u64) -> bool {
    let made = record.created_ms.min(record.not_after_ms);
    now_ms >= made + (record.not_after_ms - made) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn record(kind: Kind, created: u64, until: u64) -> Record {
        Record {
            id: format!("{kind:?}"),
            kind,
            server: if kind == Kind::Root { "" } else { "ca" }.to_owned(),
            standing: Standing::Active,
            parent: String::new(),
            der: vec![],
            cross_signed: None,
            endorsement: None,
            key: String::new(),
            not_before_ms: created,
            not_after_ms: until,
            created_ms: created,
            compromised: false,
        }
    }

    fn at(day: u64, has_root_key: bool) -> Vec<(What, bool)> {
        let authorities = Authorities::new(vec![
            record(Kind::Root, 0, 400 * DAY),
            record(Kind::Issuing, 0, 90 * DAY),
            record(Kind::Jwt, 0, 30 * DAY),
        ]);
        let lifetimes = Lifetimes {
            root: 400 * 86_400,
            ..Lifetimes::default()
        };
        due(&authorities, "ca", &lifetimes, has_root_key, day * DAY)
    }

    #[test]
    fn each_is_rotated_in_time_and_one_that_has_ended_takes_over() {
        assert_eq!(at(14, true), []);
        assert_eq!(at(15, true), [(What::Jwt, false)]);
        assert_eq!(at(45, true), [(What::Issuing, false), (What::Jwt, true)]);
        assert_eq!(
            at(301, true),
            [
                (What::Root, false),
                (What::Issuing, true),
                (What::Jwt, true)
            ]
        );
    }

    #[test]
    fn a_root_that_is_kept_offline_is_not_rotated_by_itself() {
        assert!(!at(399, false).iter().any(|(what, _)| *what == What::Root));
    }
}
