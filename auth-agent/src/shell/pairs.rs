//! Proven pairs for people and programs: between whom, by which proofs, for which rules.

use std::collections::{BTreeMap, BTreeSet};

use handfast_policies::{
    Authentication, LocalPolicy, PolicySet, Remote, RuleRef, Verdict, Workload,
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::RunError;
use super::agent::{Agent, workload};
use super::gates::RecordedPair;
use super::report::{name, peer_name};
use crate::admin::{PairDetail, PairInfo, ProofInfo};
use crate::config::DefaultAuthentication;
use crate::core::{Identity, IdentityNumber, PeerNumber, View};

/// Pairs in one piece of an answer.
const PIECE: usize = 1024;

impl Agent {
    /// What the kernel enforces, not what the agent remembers: an agent that has just started has proven nothing
    /// yet, and the pairs go on counting.
    pub(super) fn pairs(&self) -> Result<Vec<PairInfo>, RunError> {
        let view = self.view();
        let recorded = self.recorded(&view)?;
        Ok(recorded.into_iter().map(|(_, info)| info).collect())
    }

    /// The same with proofs and rules. Of many thousands, so what they share is looked up once.
    pub(super) fn pair_details(&self) -> Result<Vec<PairDetail>, RunError> {
        let view = self.view();
        let set = self.policy.set();
        let known = view.identities.iter();
        let workloads: BTreeMap<IdentityNumber, Workload> = known
            .filter_map(|(number, known)| Some((*number, workload(&known.identity).ok()?)))
            .collect();
        let ends: BTreeMap<IdentityNumber, (LocalPolicy<'_>, Remote)> = workloads
            .iter()
            .map(|(number, workload)| {
                let remote = Remote::Workload(workload.clone());
                (*number, (set.of_workload(workload), remote))
            })
            .collect();
        let mut proofs = BTreeMap::new();
        let recorded = self.recorded(&view)?;
        let details = recorded.into_iter().map(|(recorded, pair)| {
            let rules = match (ends.get(&recorded.local), ends.get(&recorded.remote)) {
                (Some(local), Some(remote)) => self.proof_rules(set, local, remote),
                _ => Vec::new(),
            };
            let mut proof = |ours| {
                let number = if ours {
                    recorded.local
                } else {
                    recorded.remote
                };
                proofs
                    .entry((recorded.peer, number, ours))
                    .or_insert_with(|| self.proof_of(&view, recorded.peer, number, ours))
                    .clone()
            };
            PairDetail {
                local_proof: proof(true),
                remote_proof: proof(false),
                pair,
                rules,
            }
        });
        Ok(details.collect())
    }

    /// They go out in pieces, and are written by another task: the loop has packets to see to.
    pub(super) fn pair_pieces(&self) -> Result<mpsc::Receiver<Value>, RunError> {
        let details = self.pair_details()?;
        let (pieces, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let end = std::iter::once([].as_slice());
            for piece in details.chunks(PIECE).chain(end) {
                let Ok(piece) = serde_json::to_value(piece) else {
                    return;
                };
                // The asker may have left.
                if pieces.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
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

    /// The proof of an identity, ours or the peer's, that pairs with this peer rest on.
    fn proof_of(
        &self,
        view: &View,
        peer: PeerNumber,
        number: IdentityNumber,
        ours: bool,
    ) -> Option<ProofInfo> {
        let known = view.identities.get(&number)?;
        let now = self.clock.now().boot;
        let serial = match peer {
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
    fn proof_rules(
        &self,
        set: &PolicySet,
        (local, local_end): &(LocalPolicy<'_>, Remote),
        (remote, remote_end): &(LocalPolicy<'_>, Remote),
    ) -> Vec<String> {
        let by_default = self.config.default_authentication == DefaultAuthentication::Required;
        let of = |at: &LocalPolicy<'_>, other: &Remote| {
            let entries = at.entries(other).into_iter();
            entries.filter_map(move |entry| {
                let needs = match entry.auth {
                    Some(auth) => auth == Authentication::Required,
                    None => by_default,
                };
                (entry.verdict == Verdict::Allow && needs).then_some(entry.rule)
            })
        };
        let rules: BTreeSet<RuleRef> = of(local, remote_end).chain(of(remote, local_end)).collect();
        let named = rules.into_iter().filter_map(|rule| set.rule(rule));
        named.map(ToString::to_string).collect()
    }
}
