//! The shell of every node: feeds its core, carries out what it wants, and dies in between.

use std::collections::{BTreeSet, VecDeque};

use handfast_agent::core::{ConnId, Effect, Event, Journal, LocalIdentity, PeerNumber};
use handfast_agent::wire::Frame;

use super::links::Sent;
use super::tunnels::Tunnel;
use super::world::{Action, World};

impl World {
    /// One input, with what waited for the agent, and all that it brings about at once.
    pub fn feed(&mut self, index: usize, event: Event) {
        // In a step of its own, in the moment in which the SVID comes; what waits is looked at next.
        if matches!(event, Event::IdentityReady(_)) {
            self.feed_all(index, VecDeque::from([event]));
            return self.feed_waiting(index);
        }
        let mut events = VecDeque::from(std::mem::take(&mut self.nodes[index].inbox));
        events.push_back(event);
        self.feed_all(index, events);
    }

    /// What has come while the agent was busy.
    pub fn feed_waiting(&mut self, index: usize) {
        let waiting = std::mem::take(&mut self.nodes[index].inbox);
        self.feed_all(index, waiting.into());
    }

    fn feed_all(&mut self, index: usize, mut events: VecDeque<Event>) {
        while !events.is_empty() {
            // An agent that takes in what waits at once takes all of it.
            let count = if self.setup.batches { events.len() } else { 1 };
            let batch: Vec<Event> = events.drain(..count).collect();
            for event in &batch {
                match event {
                    Event::Disconnected { conn } => self.hung_up(index, *conn),
                    Event::Frame { conn, frame } => self.note_frame(index, *conn, frame),
                    // From here on it must cut.
                    Event::DenyList(list) => {
                        let known = &mut self.nodes[index].deny;
                        if known
                            .as_ref()
                            .is_none_or(|known| known.number < list.number)
                        {
                            *known = Some(list.clone());
                        }
                    }
                    _ => {}
                }
                if !matches!(event, Event::Tick) {
                    self.say(|| format!("node {index} <- {event:?}"));
                }
            }
            // Each by itself: the next one, in the same moment, may lift what this one says.
            let heard = batch.iter().filter_map(|event| match event {
                Event::DenyList(list) => Some(list.clone()),
                _ => None,
            });
            let heard: Vec<_> = heard.collect();
            let now = self.nodes[index].now(self.at);
            let Some(core) = self.nodes[index].core.as_mut() else {
                return;
            };
            let mut effects = core.handle_all(now, batch);
            if self.nodes[index].unstored && effects.first() != Some(&Effect::Persist) {
                effects.insert(0, Effect::Persist);
            }
            let mut refused = BTreeSet::new();
            for effect in effects {
                if self.dies_now(index) {
                    return;
                }
                if effect == Effect::Persist {
                    self.persist(index);
                    continue;
                }
                if self.nodes[index].unstored
                    && let Some(instead) = effect.unless_stored()
                {
                    self.say(|| format!("node {index}: not stored, so not {effect:?}"));
                    match &instead {
                        Event::Disconnected { conn } => self.close(index, *conn),
                        Event::NotWritten { peer } if !refused.insert(*peer) => continue,
                        _ => {}
                    }
                    events.push_back(instead);
                    continue;
                }
                if let Effect::SetSession { peer, session } = &effect {
                    self.note_epoch(index, *peer, *session);
                }
                if self.refuses(&effect)
                    && let Some(Event::NotWritten { peer }) = effect.refused()
                {
                    self.say(|| format!("node {index}: the kernel refuses {effect:?}"));
                    self.nodes[index].refused = Some(self.at);
                    refused.insert(peer);
                    events.push_back(Event::NotWritten { peer });
                    continue;
                }
                if !refused.is_empty() && self.must_not_confirm(index, &effect, &refused) {
                    continue;
                }
                self.check_before(index, &effect);
                self.say(|| format!("node {index} -> {effect:?}"));
                self.nodes[index].kernel.apply(&effect);
                self.check_after(index, &effect);
                self.carry_out(index, effect, &mut events);
            }
            for list in heard {
                self.drop_revoked(index, &list);
            }
        }
    }

    /// Whether it confirms something to a peer of whose entries one has just been refused.
    fn must_not_confirm(
        &self,
        index: usize,
        effect: &Effect,
        refused: &BTreeSet<Option<PeerNumber>>,
    ) -> bool {
        let core = self.nodes[index].core.as_ref();
        let peer = |conn| core.and_then(|core| core.peer_of_connection(conn));
        effect
            .confirms()
            .is_some_and(|conn| refused.contains(&None) || refused.contains(&peer(conn)))
    }

    /// Any write may be refused by a kernel that is short of memory; taking something out never is, but for this one.
    fn refuses(&mut self, effect: &Effect) -> bool {
        let may = matches!(
            effect,
            Effect::SetRemote { .. }
                | Effect::RemoveRemote { .. }
                | Effect::SetAnnounced { .. }
                | Effect::SetIdentity { .. }
                | Effect::SetSession { .. }
                | Effect::SetPair { .. }
                | Effect::SetLocal { .. }
                | Effect::SetPrefix { .. }
        );
        may && self.rng.chance(self.faults.refuse_percent)
    }

    /// An agent may die between any two effects.
    fn dies_now(&mut self, index: usize) -> bool {
        if self.rng.permille(self.faults.crash_permille) {
            let down = self.millis(10, 4_000);
            self.crash(index, down);
            return true;
        }
        match &mut self.crash_after {
            Some((node, 0)) if *node == index => {
                self.crash_after = None;
                self.crash(index, std::time::Duration::from_millis(100));
                true
            }
            Some((node, left)) if *node == index => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::Dial { peer, id, .. } => self.dial(index, peer, &id),
            Effect::Close { conn, .. } => self.close(index, conn),
            Effect::Send { conn, frame } => self.say_on(index, conn, frame),
            Effect::MakeGrant { conn, count } => {
                let requests = (0..count).map(|_| self.fresh()).collect();
                events.push_back(Event::GrantMade { conn, requests });
            }
            Effect::SendProof {
                conn,
                identity,
                leaf_hash,
                request,
            } => {
                let svid = self.nodes[index].svids.get(identity.as_ref()).cloned();
                let open = self.links.contains_key(&conn.0);
                let fits = |svid: &LocalIdentity| open && svid.leaf_hash == leaf_hash;
                match svid.filter(fits) {
                    Some(svid) => {
                        let authenticator = self.authenticator(index, conn.0, &svid, request);
                        let frame = Frame::Proof {
                            authenticator,
                            request,
                        };
                        self.say_on(index, conn, frame);
                    }
                    None => events.push_back(Event::ProofFailed { conn, leaf_hash }),
                }
            }
            Effect::VerifyProof {
                conn,
                authenticator,
                request,
            } => events.push_back(self.verdict(index, conn, &authenticator, request)),
            Effect::VerifyDenyList { signed, .. } => {
                // What the CA has signed can be told from anything else.
                let number = signed.as_slice().try_into().map(u64::from_be_bytes);
                let list = number.ok().and_then(|number| self.ca.lists.get(&number));
                let known = self.nodes[index].deny.as_ref().map_or(0, |d| d.number);
                if let Some(list) = list.filter(|list| list.number > known).cloned() {
                    events.push_back(Event::DenyList(list));
                }
            }
            Effect::SendTunnelKey {
                conn,
                own_key,
                peer_key,
                ..
            } => {
                let tag = tag(conn, own_key, peer_key);
                self.say_on(index, conn, Frame::TunnelKey { tag });
            }
            Effect::VerifyTunnelKey {
                conn,
                own_key,
                peer_key,
                tag: shown,
                ..
            } => {
                let held = shown == tag(conn, peer_key, own_key);
                events.push_back(Event::TunnelKeyChecked { conn, held });
            }
            Effect::InstallTunnel {
                peer,
                id,
                conn,
                own_key,
                peer_key,
                prefixes,
                ..
            } => {
                let (delay, order) = (self.millis(1, 20), self.number());
                let tunnel = Tunnel {
                    id,
                    own: own_key,
                    key: peer_key,
                    prefixes,
                    instance: order,
                    session: conn.0,
                    handshakes: Vec::new(),
                    unanswered: None,
                };
                self.note_keys(index, peer, conn.0);
                self.nodes[index].installing.insert(peer, order);
                self.later(delay, Action::Installed(index, order, peer, conn, tunnel));
            }
            Effect::ActivateTunnel { peer } => {
                let at = self.at;
                self.nodes[index].kernel.activate_tunnel(peer, at);
            }
            Effect::Asked { conn, id, .. } => {
                let answer = vec![1];
                events.push_back(Event::AnswerGiven { conn, id, answer });
            }
            Effect::RemoveTunnel { peer } => {
                // The worker does one thing after the other: what was ordered before is gone too.
                let node = &mut self.nodes[index];
                node.installing.remove(&peer);
                if node.unstored {
                    node.facts.cut_unstored(peer);
                }
            }
            Effect::Discard { key, .. } => self.discard(index, key),
            Effect::Release { key } => self.release(index, key),
            _ => {}
        }
    }

    /// A disk that is full is so for a while.
    fn disk_refuses(&mut self, index: usize) -> bool {
        if self.rng.chance(self.faults.disk_percent) {
            self.nodes[index].disk_full_until = self.at + self.millis(0, 2_000);
        }
        self.faults.disk_percent > 0
            && self.liar != Some(index)
            && self.at < self.nodes[index].disk_full_until
    }

    /// As the file has it; that the file can be read again is looked at now and then.
    fn persist(&mut self, index: usize) {
        let refused = self.disk_refuses(index);
        self.nodes[index].unstored = refused;
        if refused {
            return self.say(|| format!("node {index}: the disk refuses the snapshot"));
        }
        self.say(|| format!("node {index} -> Persist"));
        let snapshot = self.nodes[index].core.as_ref().map(|core| core.snapshot());
        self.stores += 1;
        let before = self.nodes[index].stored.as_ref();
        if self.stores.is_multiple_of(64)
            && let (Some(before), Some(now)) = (before, &snapshot)
            && let Some(next) = Journal::next(before, now).unwrap()
        {
            let file = [Journal::whole(before).unwrap(), next].concat();
            assert_eq!(Journal::read(&file).unwrap().snapshot, *now);
        }
        self.nodes[index].stored = snapshot;
        self.nodes[index].facts.all_stored();
    }

    /// 32 bytes that come once.
    fn fresh(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.number().to_be_bytes());
        bytes
    }

    fn verdict(
        &mut self,
        index: usize,
        conn: ConnId,
        authenticator: &[u8],
        request: Option<[u8; 32]>,
    ) -> Event {
        match self.judge(index, conn.0, authenticator, request) {
            Ok(proof) => {
                if let Some(peer) = self.other_end(index, conn.0) {
                    self.note_proof(index, peer, &proof);
                }
                Event::ProofVerified { conn, proof }
            }
            Err(reason) => Event::ProofInvalid {
                conn,
                leaf_hash: None,
                reason,
            },
        }
    }

    pub fn installed(
        &mut self,
        index: usize,
        order: u64,
        peer: PeerNumber,
        conn: ConnId,
        tunnel: Tunnel,
    ) {
        if self.nodes[index].installing.get(&peer) != Some(&order) {
            return;
        }
        self.nodes[index].installing.remove(&peer);
        if self.rng.chance(self.faults.tunnel_percent) {
            return self.feed(index, Event::TunnelFailed { conn });
        }
        if let Some(there) = self.index_of(index, peer) {
            let of_there = usize::from(tunnel.key[0]) == there;
            let ours = self.nodes[index].has_had_key(tunnel.own);
            if !(of_there && ours) && self.liar != Some(index) {
                self.fail("property 2: a tunnel with the key of another node");
            }
        }
        self.nodes[index].kernel.install_tunnel(peer, tunnel);
        if let Some(there) = self.index_of(index, peer) {
            self.check_between(index, there);
            self.check_between(there, index);
        }
        self.feed(index, Event::TunnelInstalled { conn });
    }

    /// A frame on its way; a liar's may become another.
    fn say_on(&mut self, index: usize, conn: ConnId, frame: Frame) {
        if self.liar == Some(index) && self.rng.chance(self.faults.lie_percent) {
            return self.lie(index, conn, frame);
        }
        self.transmit(index, conn, Sent::Frame(frame));
    }
}

/// Stands for what only the holders of these two private keys can make for this connection. A liar makes it with its
/// own key, or hands on what others have made.
pub fn tag(conn: ConnId, maker: [u8; 32], other: [u8; 32]) -> [u8; 32] {
    let mut tag = [0; 32];
    tag[..8].copy_from_slice(&conn.0.to_be_bytes());
    tag[8..20].copy_from_slice(&maker[..12]);
    tag[20..].copy_from_slice(&other[..12]);
    tag
}
