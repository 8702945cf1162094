//! One peer: which of its associations are in the kernel, and which of them packets leave by.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::chain::{Chain, Direction};
use super::kernel::{Path, PolicyId, PolicyReading, Reading, SaId, WAYS, Way, Xfrm};
use super::options::IpsecOptions;
use super::ratchet::{Ratchet, Step};
use super::store::KeptPeer;
use crate::Error;

/// How long an association that is sent with no more stays: for packets that are being encrypted.
const LINGER_OUT: Duration = Duration::from_secs(2);
/// How long one that is received with no more stays: for packets on the way, and for a peer that is slow to
/// follow.
const LINGER_IN: Duration = Duration::from_secs(30);
/// Associations of a peer that may wait for their end: those of the session in use, those of the last one that has yet
/// to take over, and some that linger. A peer that opens session after session fills nothing else.
const LEAVING: usize = 32;

/// A peer, as the kernel has it.
pub(super) struct PeerState {
    pub(super) kept: KeptPeer,
    /// The keys of the session that was installed last; none after a restart, until the next one.
    session: Option<Session>,
    /// What outward policies name.
    sending: Option<SaId>,
    /// Associations that go when their time is over.
    leaving: Vec<(SaId, Instant)>,
    /// Those among them that the last session was received with, if it was superseded before it took over: the peer
    /// may have gone over to it all the same.
    unproven: Vec<SaId>,
}

struct Session {
    chain: Chain,
    fingerprint: [u8; 16],
    ratchet: Ratchet,
    /// Received with, by the key's number.
    inward: BTreeMap<u32, SaId>,
    /// The newest for sending, and since when.
    outward: SaId,
    since: Instant,
    /// A key could not be installed: this session gets no further ones.
    broken: bool,
}

/// What everything here is done with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) xfrm: &'a Xfrm,
    pub(super) options: &'a IpsecOptions,
}

impl PeerState {
    /// A peer of which nothing is in the kernel.
    pub(super) const fn new(kept: KeptPeer) -> Self {
        Self {
            kept,
            session: None,
            sending: None,
            leaving: Vec::new(),
            unproven: Vec::new(),
        }
    }

    /// A peer that an earlier agent left in the kernel: its associations serve until the next session's.
    pub(super) fn adopted(kept: KeptPeer, theirs: Vec<SaId>, sending: Option<SaId>) -> Self {
        let far = Instant::now() + Duration::from_secs(24 * 3600);
        Self {
            leaving: theirs.into_iter().map(|id| (id, far)).collect(),
            sending,
            ..Self::new(kept)
        }
    }

    /// Whether this secret's keys are the ones in use.
    pub(super) fn has(&self, fingerprint: &[u8; 16]) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.fingerprint == *fingerprint)
    }

    /// Installs a session's first keys: two to receive with, one to send with. Nothing is sent with it yet
    /// where a session before goes on; see [`Self::activate`]. What cannot be installed is burned: this session
    /// gets nothing else.
    pub(super) async fn install(
        &mut self,
        means: Means<'_>,
        mut chain: Chain,
    ) -> Result<(), Error> {
        let fingerprint = chain.fingerprint()?;
        let path = self.kept.path();
        let mut made = Vec::new();
        let mut inward = BTreeMap::new();
        let mut outcome = Ok(());
        for direction in [Direction::In, Direction::In, Direction::Out] {
            match add(means, path, &mut chain, direction).await {
                Ok((counter, id)) => {
                    made.push(id);
                    if direction == Direction::In {
                        inward.insert(counter, id);
                    }
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let outward = match (outcome, made.last()) {
            (Ok(()), Some(outward)) => *outward,
            (outcome, _) => {
                for id in made {
                    means.xfrm.delete(id).await?;
                }
                return outcome;
            }
        };
        // A session that never took over leaves, the one before it goes on.
        self.supersede();
        self.session = Some(Session {
            chain,
            fingerprint,
            ratchet: Ratchet::new(),
            inward,
            outward,
            since: Instant::now(),
            broken: false,
        });
        self.collect(means).await
    }

    /// Policies as the peer's prefixes want them. Prefixes that it has no more lose theirs.
    pub(super) async fn set_policies(&mut self, means: Means<'_>) -> Result<(), Error> {
        let sending = match (self.sending, &self.session) {
            (Some(sending), _) => sending,
            (None, Some(session)) => session.outward,
            (None, None) => return Ok(()),
        };
        let present = means.xfrm.policies().await?;
        let path = self.kept.path();
        for prefix in &self.kept.prefixes {
            for way in WAYS {
                let id = PolicyId {
                    prefix: *prefix,
                    way,
                };
                let spi = if way == Way::Out { sending.spi } else { 0 };
                means.xfrm.set_policy(id, path, spi).await?;
            }
        }
        self.sending = Some(sending);
        let number = self.kept.number;
        let mine = present.into_iter().filter(|(_, of)| of.number == number);
        for (id, _) in mine {
            if !self.kept.prefixes.contains(&id.prefix) {
                means.xfrm.delete_policy(id).await?;
            }
        }
        Ok(())
    }

    /// Whether the kernel has this peer's policies as they were set.
    pub(super) fn has_policies(&self, present: &BTreeMap<PolicyId, PolicyReading>) -> bool {
        let Some(sending) = self.sending else {
            return true;
        };
        let ways = |prefix: IpNet| WAYS.map(|way| PolicyId { prefix, way });
        let mut wanted = self.kept.prefixes.iter().flat_map(|prefix| ways(*prefix));
        wanted.all(|id| {
            let spi = if id.way == Way::Out { sending.spi } else { 0 };
            let there = present.get(&id);
            there.is_some_and(|there| there.number == self.kept.number && there.spi == spi)
        })
    }

    /// Sends with the newest key from now on; what was sent with before leaves.
    pub(super) async fn activate(&mut self, means: Means<'_>) -> Result<(), Error> {
        let Some(outward) = self.session.as_ref().map(|session| session.outward) else {
            return Ok(());
        };
        if self.sending == Some(outward) {
            return Ok(());
        }
        let former = self.sending.replace(outward);
        let set = self.point_at(means, outward).await;
        if set.is_err() {
            self.sending = former;
            return set;
        }
        let now = Instant::now();
        self.unproven.clear();
        // What stayed for this alone has its end now.
        for (id, end) in &mut self.leaving {
            let linger = match former {
                Some(former) if former == *id => LINGER_OUT,
                _ => LINGER_IN,
            };
            *end = (*end).min(now + linger);
        }
        if let Some(former) = former {
            self.leave(former, LINGER_OUT);
        }
        Ok(())
    }

    async fn point_at(&self, means: Means<'_>, outward: SaId) -> Result<(), Error> {
        for prefix in &self.kept.prefixes {
            let id = PolicyId {
                prefix: *prefix,
                way: Way::Out,
            };
            means
                .xfrm
                .set_policy(id, self.kept.path(), outward.spi)
                .await?;
        }
        Ok(())
    }

    /// Takes the steps that are due, `now` that the kernel has said how keys are used.
    pub(super) async fn tend(
        &mut self,
        means: Means<'_>,
        readings: &BTreeMap<SaId, Reading>,
        forced: bool,
    ) -> Result<(), Error> {
        self.collect(means).await?;
        let life = means.options.life;
        let Some(session) = self.session.as_mut() else {
            return Ok(());
        };
        let active = self.sending == Some(session.outward);
        for (counter, id) in &session.inward {
            if readings.get(id).is_some_and(|reading| reading.packets > 0) {
                session.ratchet.heard(*counter);
            }
        }
        let carried = readings.get(&session.outward);
        let worn = carried.is_some_and(|reading| {
            reading.packets >= life.packets / 2 || reading.bytes >= life.bytes / 2
        });
        let mut due = forced || worn || session.since.elapsed() >= life.rekey;
        // Until it has taken over, a session has only what it began with.
        while active && let Some(step) = self.session.as_mut().and_then(|s| s.advance(due)) {
            due &= step != Step::Send;
            let taken = self.take(means, step).await;
            if let Err(error) = taken {
                if let Some(session) = self.session.as_mut() {
                    session.broken = true;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn take(&mut self, means: Means<'_>, step: Step) -> Result<(), Error> {
        let path = self.kept.path();
        let Some(session) = self.session.as_mut() else {
            return Ok(());
        };
        match step {
            Step::Receive => {
                let (counter, id) = add(means, path, &mut session.chain, Direction::In).await?;
                session.inward.insert(counter, id);
            }
            Step::Send => {
                let (_, id) = add(means, path, &mut session.chain, Direction::Out).await?;
                session.outward = id;
                session.since = Instant::now();
                self.activate(means).await?;
            }
            Step::Retire(below) => {
                let kept = session.inward.split_off(&below);
                let retired = std::mem::replace(&mut session.inward, kept);
                for id in retired.into_values() {
                    self.leave(id, LINGER_IN);
                }
            }
        }
        Ok(())
    }

    /// Whether keys can change on request: the peer is known to hold the next ones.
    pub(super) fn may_rotate(&self) -> bool {
        let session = self.session.as_ref();
        session
            .is_some_and(|s| !s.broken && s.ratchet.may_move() && self.sending == Some(s.outward))
    }

    /// Whether only a new session can give this peer new keys.
    pub(super) fn is_stuck(&self, means: Means<'_>, readings: &BTreeMap<SaId, Reading>) -> bool {
        let life = means.options.life;
        self.session.as_ref().is_some_and(|session| {
            // What the kernel does not have any more has come to its end.
            let worn = readings.get(&session.outward).is_none_or(|reading| {
                reading.packets >= life.packets / 4 * 3 || reading.bytes >= life.bytes / 4 * 3
            });
            session.broken || worn || session.since.elapsed() >= life.rekey * 2
        })
    }

    /// Since when the key sent with is in use.
    pub(super) fn since(&self) -> Option<Instant> {
        self.session.as_ref().map(|session| session.since)
    }

    /// Every association of this peer that may be in the kernel.
    pub(super) fn associations(&self) -> Vec<SaId> {
        let mut all: Vec<SaId> = self.leaving.iter().map(|(id, _)| *id).collect();
        if let Some(session) = &self.session {
            all.extend(session.inward.values());
            all.push(session.outward);
        }
        all.extend(self.sending);
        all
    }

    /// Takes everything of the peer out of the kernel: first what decrypts and encrypts.
    pub(super) async fn remove(&self, means: Means<'_>) -> Result<(), Error> {
        let mut ours = self.associations();
        let number = self.kept.number;
        let listed = means.xfrm.associations().await?;
        let more = listed
            .iter()
            .filter(|(_, reading)| reading.number == number);
        ours.extend(more.map(|(id, _)| *id));
        for id in ours {
            means.xfrm.delete(id).await?;
        }
        for (id, of) in means.xfrm.policies().await? {
            if of.number == number {
                means.xfrm.delete_policy(id).await?;
            }
        }
        Ok(())
    }

    /// The session before this one: its keys for receiving stay until the next one has taken over, and long
    /// enough; the key that is sent with until it is not. Of sessions that never took over only the last one's stay.
    fn supersede(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let far = Duration::from_secs(24 * 3600);
        let inward: Vec<SaId> = session.inward.into_values().collect();
        for id in &inward {
            self.leave(*id, far);
        }
        if self.sending != Some(session.outward) {
            self.leave(session.outward, LINGER_OUT);
            for id in std::mem::replace(&mut self.unproven, inward) {
                self.leave(id, LINGER_IN);
            }
        }
        self.bound_leaving();
    }

    /// Ends the time of those that would go soonest, if there are too many.
    fn bound_leaving(&mut self) {
        let now = Instant::now();
        let sending = self.sending;
        self.leaving.sort_by_key(|(_, end)| std::cmp::Reverse(*end));
        for (id, end) in self.leaving.iter_mut().skip(LEAVING) {
            if Some(*id) != sending {
                *end = now;
            }
        }
    }

    fn leave(&mut self, id: SaId, linger: Duration) {
        let end = Instant::now() + linger;
        match self.leaving.iter_mut().find(|(leaving, _)| *leaving == id) {
            Some((_, until)) => *until = (*until).min(end),
            None => self.leaving.push((id, end)),
        }
    }

    async fn collect(&mut self, means: Means<'_>) -> Result<(), Error> {
        let now = Instant::now();
        let over: Vec<SaId> = self
            .leaving
            .iter()
            .filter(|(id, end)| *end <= now && self.sending != Some(*id))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            means.xfrm.delete(id).await?;
            self.leaving.retain(|(leaving, _)| *leaving != id);
        }
        Ok(())
    }
}

impl Session {
    fn advance(&mut self, due: bool) -> Option<Step> {
        if self.broken {
            return None;
        }
        self.ratchet.step(due)
    }
}

/// Takes the next key and installs it. Whatever comes of it, the key is used up.
async fn add(
    means: Means<'_>,
    path: Path,
    chain: &mut Chain,
    direction: Direction,
) -> Result<(u32, SaId), Error> {
    let material = chain.next(direction)?;
    let (source, destination) = match direction {
        Direction::In => (path.remote, path.local),
        Direction::Out => (path.local, path.remote),
    };
    let id = SaId {
        source,
        destination,
        spi: material.spi,
    };
    let counter = material.counter;
    let life = means.options.life;
    means
        .xfrm
        .add(id, path.number, material, life, means.options.fwmark)
        .await?;
    Ok((counter, id))
}
