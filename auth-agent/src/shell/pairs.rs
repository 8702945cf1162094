//! Proven pairs for people and programs: between whom, by which proofs, for which rules.

use std::collections::{BTreeMap, BTreeSet};

use handfast_policies::{Authentication, PolicySet, Remote, RuleRef, Verdict, Workload};

use super::RunError;
use super::agent::{Agent, workload};
use super::gates::RecordedPair;
use super::report::{name, peer_name};
use crate::admin::{PairDetail, PairInfo, ProofInfo};
use crate::config::DefaultAuthentication;
use crate::core::{Identity, IdentityNumber, PeerNumber, View};

impl Agent {
    /// What the kernel enforces, not what the agent remembers: an agent that has just started has proven nothing
    /// yet, and the pairs go on counting.
    pub(super) fn pairs(&self) -> Result<Vec<PairInfo>, RunError> {
        let view = self.view();
        let recorded = self.recorded(&view)?;
        Ok(recorded.into_iter().map(|(_, info)| info).collect())
    }

    /// The same with proofs and rules.
    pub(super) fn pair_details(&self) -> Result<Vec<PairDetail>, RunError> {
        let view = self.view();
        let set = self.policy.set();
        let workloads: BTreeMap<IdentityNumber, Workload> = view
            .identities
            .iter()
            .filter_map(|(number, known)| Some((*number, workload(&known.identity).ok()?)))
            .collect();
        let recorded = self.recorded(&view)?;
        let details = recorded.into_iter().map(|(recorded, pair)| {
            let ends = (
                workloads.get(&recorded.local),
                workloads.get(&recorded.remote),
            );
            let rules = match ends {
                (Some(local), Some(remote)) => self.proof_rules(set, local, remote),
                _ => Vec::new(),
            };
            PairDetail {
                local_proof: self.proof_of(&view, &recorded, true),
                remote_proof: self.proof_of(&view, &recorded, false),
                pair,
                rules,
            }
        });
        Ok(details.collect())
    }

    fn recorded(&self, view: &View) -> Result<Vec<(RecordedPair, PairInfo)>, RunError> {
        let now = self.clock.now();
        let pairs = self.gates.pairs()?.into_iter().filter_map(|pair| {
            let left = pair.expires.checked_sub(now.boot)?;
            let counts = pair.peer == PeerNumber::LOCAL
                || view
                    .peers
                    .iter()
                    .find(|peer| peer.number == pair.peer)?
                    .session
                    .is_some_and(|session| {
                        (session.oldest..=session.current).contains(&pair.epoch)
                    });
            let info = || PairInfo {
                local: name(view, pair.local),
                remote: name(view, pair.remote),
                peer: peer_name(view, pair.peer),
                epoch: pair.epoch,
                expires_in_s: left.as_secs(),
            };
            counts.then(|| (pair, info()))
        });
        let mut pairs: Vec<(RecordedPair, PairInfo)> = pairs.collect();
        pairs.sort_by(|(_, a), (_, b)| {
            (&a.peer, &a.local, &a.remote).cmp(&(&b.peer, &b.local, &b.remote))
        });
        Ok(pairs)
    }

    /// The proof that one end of a pair rests on.
    fn proof_of(&self, view: &View, pair: &RecordedPair, ours: bool) -> Option<ProofInfo> {
        let number = if ours { pair.local } else { pair.remote };
        let known = view.identities.get(&number)?;
        let now = self.clock.now().boot;
        let serial = match pair.peer {
            PeerNumber::LOCAL => self.own_serial(&known.identity)?,
            peer => self.core.proof_serial(peer, number, ours)?,
        };
        Some(ProofInfo {
            serial: data_encoding::HEXLOWER.encode(serial),
            expires_in_s: known.valid_until.saturating_sub(now).as_secs(),
        })
    }

    fn own_serial(&self, identity: &Identity) -> Option<&[u8]> {
        let mut svids = self.svids.proofs().values();
        let svid = svids.find(|svid| svid.identity == *identity)?;
        Some(&svid.serial)
    }

    /// The rules of either end that let something pass between the two for this proof.
    fn proof_rules(&self, set: &PolicySet, local: &Workload, remote: &Workload) -> Vec<String> {
        let by_default = self.config.default_authentication == DefaultAuthentication::Required;
        let of = |at: &Workload, other: &Workload| {
            let entries = set
                .entries(at, &Remote::Workload(other.clone()))
                .into_iter();
            entries.filter_map(move |entry| {
                let needs = match entry.auth {
                    Some(auth) => auth == Authentication::Required,
                    None => by_default,
                };
                (entry.verdict == Verdict::Allow && needs).then_some(entry.rule)
            })
        };
        let rules: BTreeSet<RuleRef> = of(local, remote).chain(of(remote, local)).collect();
        let named = rules.into_iter().filter_map(|rule| set.rule(rule));
        named.map(ToString::to_string).collect()
    }
}
