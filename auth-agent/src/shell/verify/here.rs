//! How a flow stands on this node: who, session, tunnel, announcement, rule, pair.

use std::net::IpAddr;
use std::time::Duration;

use handfast_policies::{
    Authentication, Direction, Protocol, Remote, RuleRef, Ruling, Verdict, Workload,
};

use super::super::RunError;
use super::super::agent::{Agent, workload};
use crate::admin::{VerifyCheck, VerifyState};
use crate::config::DefaultAuthentication;
use crate::core::{
    AnnouncedState, ConnectionView, Identity, IdentityNumber, PeerNumber, PeerView, SessionState,
    View,
};
use crate::endpoint::Endpoint;

/// What policy is asked about.
#[derive(Clone, Copy)]
pub(super) struct FlowRules {
    /// The end on this node opens the flow.
    pub(super) outward: bool,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// Collects the chain.
pub(super) struct Checks(pub(super) Vec<VerifyCheck>);

impl Checks {
    pub(super) fn add(&mut self, what: &str, state: VerifyState, detail: impl Into<String>) {
        self.0.push(VerifyCheck {
            what: what.into(),
            state,
            detail: detail.into(),
        });
    }

    pub(super) fn holds(&mut self, what: &str, holds: bool, detail: impl Into<String>) {
        let state = if holds {
            VerifyState::Ok
        } else {
            VerifyState::Missing
        };
        self.add(what, state, detail);
    }
}

impl Agent {
    pub(super) fn check_near(
        &self,
        near: &Endpoint,
        role: &str,
        checks: &mut Checks,
    ) -> Option<Identity> {
        let identity = self.identity_of(near);
        match &identity {
            Some(identity) => {
                checks.holds(
                    role,
                    true,
                    format!("endpoint {} is {}", near.name, identity.spiffe_id),
                );
                let svid = self
                    .svids
                    .proofs()
                    .values()
                    .find(|svid| svid.identity == *identity);
                let ends = svid.map(|svid| (svid.not_after, self.clock.now().wall));
                let (valid, detail) = validity(ends);
                checks.holds("proof SVID", valid, detail);
            }
            None => checks.holds(role, false, unidentified(&near.name, self.ca_connected)),
        }
        identity
    }

    /// Session, tunnel and announcement toward the far end's node.
    pub(super) async fn check_peer(
        &self,
        near: &Endpoint,
        far: IpAddr,
        peer: &PeerView,
        checks: &mut Checks,
    ) {
        self.check_session(peer, checks);
        self.check_tunnel(peer, checks).await;
        let same_family = |address: &&IpAddr| address.is_ipv4() == far.is_ipv4();
        for address in near.addresses.iter().filter(same_family) {
            let state = peer
                .announced
                .iter()
                .find(|(announced, id, _)| announced == address && id.0 == near.id)
                .map(|(_, _, state)| *state);
            let anothers = |address: &IpAddr| {
                let mut announced = peer.announced.iter();
                announced.any(|(announced, id, _)| announced == address && id.0 != near.id)
            };
            checks.holds(
                "announcement",
                state == Some(AnnouncedState::Confirmed),
                match state {
                    Some(AnnouncedState::Confirmed) => {
                        format!("{} has confirmed {address}", peer.name)
                    }
                    Some(AnnouncedState::Sent) => {
                        format!("{} has not confirmed {address} yet", peer.name)
                    }
                    Some(AnnouncedState::Withdrawing) => {
                        format!("{address} is being withdrawn from {}", peer.name)
                    }
                    None if anothers(address) => format!(
                        "{} still knows {address} as another endpoint's, and has not confirmed that it is withdrawn",
                        peer.name
                    ),
                    None => format!("{address} is not announced to {}", peer.name),
                },
            );
        }
    }

    pub(super) fn check_session(&self, peer: &PeerView, checks: &mut Checks) {
        let now = self.clock.now().boot;
        let live = peer.connection == ConnectionView::Live;
        match peer.session.filter(|session| session.expires > now) {
            Some(session) => checks.holds(
                "session",
                session.state == SessionState::Ready,
                format!(
                    "with {} ({}): epoch {}, ends in {}{}",
                    peer.name,
                    peer.id,
                    session.current,
                    words((session.expires - now).as_secs()),
                    if live {
                        ""
                    } else {
                        "; its connection is down at the moment"
                    }
                ),
            ),
            None => checks.holds(
                "session",
                false,
                format!(
                    "none with {} ({}): {}",
                    peer.name,
                    peer.id,
                    peer.connection.word()
                ),
            ),
        }
    }

    async fn check_tunnel(&self, peer: &PeerView, checks: &mut Checks) {
        let statuses = self.tunnels.statuses().await;
        let place = self.tunnels.standing().peers.get(&peer.number).copied();
        let Some(place) = place.map(|places| places.active) else {
            return checks.holds("tunnel", false, format!("no tunnel to {}", peer.name));
        };
        let Some(status) = statuses.get(&place.slot) else {
            let detail = "the tunnel did not say in time how it stands";
            return checks.add("tunnel", VerifyState::Unknown, detail);
        };
        let wire = status.peers.iter().find(|p| p.public_key == place.key());
        checks.holds(
            "tunnel",
            wire.is_some_and(|wire| wire.preshared),
            match wire {
                Some(wire) => format!(
                    "{} ({}) to {}, keyed from the session, {} bytes sent, {} received",
                    status.device.name,
                    status.device.backend,
                    wire.endpoint
                        .map_or_else(|| "nowhere yet".into(), |e| e.to_string()),
                    wire.sent_bytes,
                    wire.received_bytes
                ),
                None => format!("{} has no tunnel to {}", status.device.name, peer.name),
            },
        );
    }

    /// Both ends' rules as this node has them. Tells whether a proof is needed.
    pub(super) fn check_rules(
        &self,
        local: &Identity,
        remote: &Workload,
        flow: FlowRules,
        checks: &mut Checks,
    ) -> Result<bool, RunError> {
        let here = self.check_rule(local, remote, flow, checks)?;
        let local = workload(local)?;
        let inverse = FlowRules {
            outward: !flow.outward,
            ..flow
        };
        let there = self.rule(remote, &local, inverse, checks);
        Ok(here || there)
    }

    /// The local end's rule. Tells whether it needs a proof.
    pub(super) fn check_rule(
        &self,
        local: &Identity,
        remote: &Workload,
        flow: FlowRules,
        checks: &mut Checks,
    ) -> Result<bool, RunError> {
        Ok(self.rule(&workload(local)?, remote, flow, checks))
    }

    fn rule(&self, at: &Workload, other: &Workload, flow: FlowRules, checks: &mut Checks) -> bool {
        let (what, direction) = match flow.outward {
            true => ("egress rule", Direction::Egress),
            false => ("ingress rule", Direction::Ingress),
        };
        let set = self.policy.set();
        let remote = Remote::Workload(other.clone());
        let of_end = set.of_workload(at);
        let ruling = of_end.ruling(&remote, direction, flow.protocol, flow.port);
        let by_default = self.config.default_authentication == DefaultAuthentication::Required;
        if ruling == Ruling::Open {
            let open = match by_default {
                true => {
                    "no policy closes this direction: allowed, authentication required by default"
                }
                false => "no policy closes this direction here: allowed by default",
            };
            checks.holds(what, true, open);
            return by_default;
        }
        let rule = |rule: RuleRef| {
            set.rule(rule)
                .map_or_else(|| format!("rule {}", rule.0), ToString::to_string)
        };
        match ruling.entry() {
            Some(entry) if entry.verdict == Verdict::Allow => {
                let (needed, auth) = match entry.auth {
                    Some(Authentication::Required) => (true, ", authentication required"),
                    Some(Authentication::Audit) => (false, ", authentication audited"),
                    Some(Authentication::TestAlwaysFail) => {
                        (false, ", authentication always fails")
                    }
                    Some(Authentication::Disabled) => (false, ""),
                    None if by_default => (true, ", authentication required by default"),
                    None => (false, ""),
                };
                let passes = entry.auth != Some(Authentication::TestAlwaysFail);
                checks.holds(
                    what,
                    passes,
                    format!("allowed by {}{auth}", rule(entry.rule)),
                );
                needed
            }
            Some(entry) => {
                checks.holds(what, false, format!("denied by {}", rule(entry.rule)));
                false
            }
            None => {
                let detail = format!(
                    "{} is selected by a policy, and no rule allows this flow",
                    at.spiffe_id
                );
                checks.holds(what, false, detail);
                false
            }
        }
    }

    /// The pair in this node's kernel, and the far end's proof.
    pub(super) fn check_pair(
        &self,
        view: &View,
        local: &Identity,
        remote: IdentityNumber,
        peer: &PeerView,
        needed: bool,
        checks: &mut Checks,
    ) -> Result<(), RunError> {
        let epochs = peer.session.map(|session| session.oldest..=session.current);
        let counts = |epoch| {
            epochs
                .as_ref()
                .is_some_and(|epochs| epochs.contains(&epoch))
        };
        self.check_pair_with(view, (local, remote), peer.number, counts, needed, checks)
    }

    /// The same, with what tells whether an epoch still counts.
    pub(super) fn check_pair_with(
        &self,
        view: &View,
        (local, remote): (&Identity, IdentityNumber),
        peer: PeerNumber,
        counts: impl Fn(u32) -> bool,
        needed: bool,
        checks: &mut Checks,
    ) -> Result<(), RunError> {
        let now = self.clock.now().boot;
        if let Some(known) = view.identities.get(&remote) {
            let left = known.valid_until.checked_sub(now);
            let id = &known.identity.spiffe_id;
            match (known.revoked, left) {
                (true, _) => checks.holds("proof", false, format!("{id} is revoked")),
                (false, Some(left)) => {
                    let detail = format!("of {id}: ends in {}", words(left.as_secs()));
                    checks.holds("proof", true, detail);
                }
                (false, None) => {
                    checks.holds("proof", !needed, format!("of {id}: none that still counts"));
                }
            }
        }
        let local_number = view
            .identities
            .iter()
            .find(|(_, known)| *known.identity == *local)
            .map(|(number, _)| *number);
        let pair = self.gates.pairs()?.into_iter().find(|pair| {
            let ends = (Some(pair.local), pair.remote);
            let turned = (Some(pair.remote), pair.local);
            pair.peer == peer
                && counts(pair.epoch)
                && (ends == (local_number, remote)
                    || (peer == PeerNumber::LOCAL && turned == (local_number, remote)))
        });
        let left = pair.and_then(|pair| pair.expires.checked_sub(now));
        let detail = match (left, needed) {
            (Some(left), true) => format!("proven, ends in {}", words(left.as_secs())),
            (Some(left), false) => {
                format!("proven (not required), ends in {}", words(left.as_secs()))
            }
            (None, true) => "required, and not proven".into(),
            (None, false) => "not proven yet, and not required".into(),
        };
        checks.holds("pair", left.is_some() || !needed, detail);
        Ok(())
    }
}

/// Why an endpoint has no identity, as far as this node can know.
fn unidentified(name: &str, ca_connected: bool) -> String {
    match ca_connected {
        true => format!("endpoint {name} has no identity: no entry's selectors match it"),
        false => format!(
            "endpoint {name} has no identity: no entry that this node has heard of matches it, and the CA is not \
             reached, which may have one"
        ),
    }
}

/// How long a proof SVID still counts, of its end and now (unix seconds).
fn validity(ends: Option<(u64, u64)>) -> (bool, String) {
    match ends {
        None => (false, "the CA has not issued it yet".to_owned()),
        Some((end, now)) if end > now => (true, format!("ends in {}", words(end - now))),
        Some((end, now)) => {
            let detail = format!(
                "ended {} ago, and the CA has issued no other: is it reached?",
                words(now - end)
            );
            (false, detail)
        }
    }
}

fn words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", Duration::from_secs(seconds).as_secs() / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_ca_may_have_is_not_guessed_while_it_is_away() {
        assert!(unidentified("web", true).ends_with("no entry's selectors match it"));
        assert!(unidentified("web", false).contains("the CA is not reached"));
    }

    #[test]
    fn an_svid_that_has_ended_proves_nothing_and_it_is_said_since_when() {
        let (valid, detail) = validity(Some((1000, 999)));
        assert!(valid && detail == "ends in 1 s", "{detail}");
        for (now, since) in [(1000, "ended 0 s ago"), (1600, "ended 10 min ago")] {
            let (valid, detail) = validity(Some((1000, now)));
            assert!(!valid && detail.starts_with(since), "{detail}");
        }
        assert!(!validity(None).0);
    }
}
