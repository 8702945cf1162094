//! What the kernel has refused to write is written again: soon at first, then less often, until it takes it.
//!
//! What a session carries is confirmed to the peer only once it is written, so its connection ends and a successor
//! says all of it anew. For all else here is one clock: when it is due, the kernel is told again everything that it
//! should know. That is rare, and costs no bookkeeping while all is well.

use std::time::Duration;

use super::types::PeerNumber;
use super::{CloseReason, Core, Effect, PairKey};

/// A cut that was refused must be done within a second.
const FIRST: Duration = Duration::from_millis(100);

/// When to write again.
#[derive(Debug)]
pub(super) struct Rewrite {
    pub at: Option<Duration>,
    wait: Duration,
}

impl Default for Rewrite {
    fn default() -> Self {
        Self {
            at: None,
            wait: FIRST,
        }
    }
}

impl Core {
    pub(super) fn not_written(&mut self, peer: Option<PeerNumber>) {
        let peers: Vec<PeerNumber> = match peer {
            Some(number) => vec![number],
            None => self.peers.keys().copied().collect(),
        };
        for number in peers {
            let now = self.now.boot;
            if let Some(peer) = self.peer_mut(number) {
                let since = peer.unsure.map_or(now, |(since, _)| since);
                peer.unsure = Some((since, None));
            }
            self.close_live(number, CloseReason::NotWritten);
        }
        if self.rewrite.at.is_none() {
            self.rewrite.at = Some(self.now.boot + self.rewrite.wait);
            self.rewrite.wait = (self.rewrite.wait * 2).min(self.config.times.retry);
        }
    }

    pub(super) fn run_rewrite(&mut self) {
        if self.rewrite.at.is_some_and(|at| at <= self.now.boot) {
            self.rewrite.at = None;
            self.count("rewrites");
            self.write_everything();
        }
    }

    /// Nothing has been refused since the last time: the next refusal is a new matter.
    pub(super) fn settle_rewrite(&mut self) {
        if self.rewrite.at.is_none() {
            self.rewrite.wait = FIRST;
        }
    }

    /// What forbids first, as after a restart.
    fn write_everything(&mut self) {
        let now = self.now.boot;
        for peer in self.peers.values_mut() {
            peer.unsure = peer.unsure.map(|(since, _)| (since, Some(now)));
        }
        self.cut_again();
        let locals: Vec<Effect> = self
            .locals
            .iter()
            .map(|(address, endpoint)| self.local_entry(*address, *endpoint))
            .collect();
        let prefixes = self.prefixes.iter();
        let prefixes = prefixes.map(|(prefix, peer)| Effect::SetPrefix {
            prefix: *prefix,
            peer: *peer,
        });
        let own: Vec<Effect> = locals.into_iter().chain(prefixes).collect();
        for effect in own {
            self.emit(effect);
        }
        self.write_local_session();
        self.write_again();
        let here = |key: &PairKey| key.peer == PeerNumber::LOCAL;
        let pairs: Vec<Effect> = self
            .pairs
            .iter()
            .filter(|(key, _)| here(key))
            .map(|(key, pair)| Effect::SetPair {
                pair: *key,
                expires: pair.expires,
                epoch: pair.epoch,
            })
            .collect();
        for effect in pairs {
            self.emit(effect);
        }
    }
}
