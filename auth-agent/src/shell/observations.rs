//! What flows under rules in audit mode did: collected from the gates' events, reported to the CA.
//!
//! `policy enforce` asks there whom `required` would cut. The CA adds reports up, so that nothing need be remembered
//! here once it is told; what could not be told waits, within bounds, and what does not fit is counted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handfast_bpf::EventKind;
use handfast_ca::model::ObservedPair;
use handfast_policies::{Authentication, RuleRef};

use super::agent::Agent;
use super::clock;
use super::kernel_events::wall;
use crate::admin::{Observed, PairInfo};

/// Pairs that wait to be reported.
const MAX_WAITING: usize = 4096;
/// Pairs in one report; the CA takes no more.
const IN_A_REPORT: usize = 1024;
/// Between two reports.
const EVERY: Duration = Duration::from_secs(10);

/// One pair under one rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    policy: String,
    version: u64,
    field: String,
    source: String,
    destination: String,
}

/// What was seen of it and not yet told.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    flows: u64,
    unproven: u64,
    proven_at_ms: Option<u64>,
    unproven_at_ms: Option<u64>,
}

/// What waits to be reported.
#[derive(Debug, Default)]
struct Waiting {
    pairs: HashMap<Key, Seen>,
    lost: u64,
}

impl Waiting {
    fn add(&mut self, key: Key, seen: Seen) {
        if self.pairs.len() >= MAX_WAITING && !self.pairs.contains_key(&key) {
            self.lost = self.lost.saturating_add(seen.flows.max(seen.unproven));
            return;
        }
        let sum = self.pairs.entry(key).or_default();
        sum.flows += seen.flows;
        sum.unproven += seen.unproven;
        sum.proven_at_ms = sum.proven_at_ms.max(seen.proven_at_ms);
        sum.unproven_at_ms = sum.unproven_at_ms.max(seen.unproven_at_ms);
    }

    /// As many as one report takes.
    fn take(&mut self) -> (Vec<(Key, Seen)>, u64) {
        let pairs = self.pairs.extract_if(|_, _| true).take(IN_A_REPORT);
        (pairs.collect(), std::mem::take(&mut self.lost))
    }

    /// Pairs that were opened without a proof and have one now are proven now.
    fn prove(&mut self, pairs: &[PairInfo], now_ms: u64) {
        let proven: HashSet<(&str, &str)> = pairs
            .iter()
            .flat_map(|PairInfo { local, remote, .. }| {
                let (local, remote) = (local.as_str(), remote.as_str());
                [(local, remote), (remote, local)]
            })
            .collect();
        for (key, seen) in &mut self.pairs {
            if proven.contains(&(key.source.as_str(), key.destination.as_str())) {
                seen.proven_at_ms = Some(now_ms);
            }
        }
    }

    fn has_unproven(&self) -> bool {
        self.pairs
            .values()
            .any(|seen| seen.unproven_at_ms >= seen.proven_at_ms)
    }
}

/// The collection, and when it was last told.
#[derive(Debug, Default)]
pub(super) struct Observations {
    waiting: Arc<Mutex<Waiting>>,
    reported: Option<Duration>,
    /// Events that the gates could not tell, as counted at the last report.
    events_lost: u64,
}

impl Observations {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// Takes an event in, if the rule that decided is in audit mode and from the CA.
    pub(super) fn note_audited(&mut self, event: &handfast_bpf::Event, observed: &Observed) {
        let unproven = match event.kind {
            EventKind::Opened => false,
            EventKind::Audited => true,
            EventKind::Held | EventKind::Dropped => return,
        };
        let rule = event
            .rule
            .and_then(|rule| self.policy.set().rule(RuleRef(rule)))
            .filter(|rule| rule.authentication == Some(Authentication::Audit));
        let Some(rule) = rule else {
            return;
        };
        let from_the_ca = |known: &&crate::identity::KnownPolicy| known.name == rule.file;
        let Some(document) = self.knowledge.policies.iter().find(from_the_ca) else {
            return;
        };
        let end = |identity: &Option<String>| identity.clone().unwrap_or_else(|| "unknown".into());
        let key = Key {
            policy: document.name.clone(),
            version: document.version,
            field: rule.field.clone(),
            source: end(&observed.from),
            destination: end(&observed.to),
        };
        let at = Some(milliseconds(observed.time));
        let seen = if unproven {
            Seen {
                unproven: 1,
                unproven_at_ms: at,
                ..Seen::default()
            }
        } else {
            Seen {
                flows: 1,
                proven_at_ms: at,
                ..Seen::default()
            }
        };
        self.observations.waiting().add(key, seen);
    }

    /// Tells the CA now and then, while any rule is in audit mode.
    pub(super) fn report_observations(&mut self) {
        let now = clock::boot();
        let due = self
            .observations
            .reported
            .is_none_or(|last| now.saturating_sub(last) >= EVERY);
        if !due || !self.ca_connected || !self.policy.set().audits() {
            return;
        }
        self.observations.reported = Some(now);
        let lost_events = self.gates.events_lost().unwrap_or_default();
        let newly_lost = lost_events.saturating_sub(self.observations.events_lost);
        self.observations.events_lost = lost_events;
        let pairs = match self.observations.waiting().has_unproven() {
            true => self.pairs().unwrap_or_default(),
            false => Vec::new(),
        };
        let mut waiting = self.observations.waiting();
        waiting.lost = waiting.lost.saturating_add(newly_lost);
        waiting.prove(&pairs, milliseconds(wall()));
        let (pairs, lost) = waiting.take();
        drop(waiting);
        let (link, back) = (self.ca.clone(), Arc::clone(&self.observations.waiting));
        tokio::spawn(async move {
            let report = pairs.iter().map(|(key, seen)| observed(key, seen));
            if let Err(reason) = link.observe(report.collect(), lost).await {
                tracing::debug!(%reason, "observations are not reported yet");
                let mut waiting = back.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.lost = waiting.lost.saturating_add(lost);
                for (key, seen) in pairs {
                    waiting.add(key, seen);
                }
            }
        });
    }
}

fn observed(key: &Key, seen: &Seen) -> ObservedPair {
    ObservedPair {
        policy: key.policy.clone(),
        version: key.version,
        field: key.field.clone(),
        source: key.source.clone(),
        destination: key.destination.clone(),
        flows: seen.flows,
        unproven: seen.unproven,
        proven_at_ms: seen.proven_at_ms,
        unproven_at_ms: seen.unproven_at_ms,
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of this era, bounded below"
)]
fn milliseconds(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(destination: &str) -> Key {
        Key {
            policy: "HandfastPolicy/shop/db".into(),
            version: 3,
            field: "spec.ingress[0]".into(),
            source: "spiffe://td/web".into(),
            destination: destination.into(),
        }
    }

    const OPENED: Seen = Seen {
        flows: 1,
        unproven: 0,
        proven_at_ms: Some(5),
        unproven_at_ms: None,
    };

    #[test]
    fn a_flow_that_opens_and_is_audited_at_once_is_not_proven() {
        let mut waiting = Waiting::default();
        waiting.add(key("db"), OPENED);
        let audited = Seen {
            unproven: 1,
            unproven_at_ms: Some(5),
            ..Seen::default()
        };
        waiting.add(key("db"), audited);
        assert!(waiting.has_unproven());
        let (pairs, _) = waiting.take();
        let [(key, seen)] = pairs.as_slice() else {
            panic!("{pairs:?}")
        };
        let pair = observed(key, seen);
        assert!(!pair.is_proven());
        assert_eq!((pair.flows, pair.unproven), (1, 1));
    }

    #[test]
    fn a_pair_that_the_kernel_has_meanwhile_is_proven_whichever_end_is_here() {
        let mut waiting = Waiting::default();
        let unproven = Seen {
            unproven: 1,
            unproven_at_ms: Some(5),
            ..OPENED
        };
        waiting.add(key("spiffe://td/db"), unproven);
        let pair = |local: &str, remote: &str| PairInfo {
            local: local.into(),
            remote: remote.into(),
            peer: "n2".into(),
            epoch: 1,
            expires_in_s: 9,
        };
        waiting.prove(&[pair("spiffe://td/db", "spiffe://td/other")], 7);
        assert!(waiting.has_unproven());
        waiting.prove(&[pair("spiffe://td/db", "spiffe://td/web")], 7);
        assert!(!waiting.has_unproven());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_a_report_is_bounded() {
        let mut waiting = Waiting::default();
        for number in 0..MAX_WAITING + 3 {
            waiting.add(key(&number.to_string()), OPENED);
        }
        let (pairs, lost) = waiting.take();
        assert_eq!((pairs.len(), lost), (IN_A_REPORT, 3));
        assert_eq!(waiting.pairs.len(), MAX_WAITING - IN_A_REPORT);
    }
}
