//! `handfast verify`: one flow, link by link, from what this node can see. What it cannot see is unknown.

use std::net::IpAddr;
use std::time::Duration;

use handfast_policies::{
    Authentication, Direction, Protocol, Remote, RuleRef, Ruling, Verdict, Workload,
};

use super::RunError;
use super::agent::{Agent, workload};
use super::report::name;
use crate::admin::{VerifyCheck, VerifyReport, VerifyState};
use crate::core::{
    self, AnnouncedState, ConnectionView, Event, HoldKey, Identity, IdentityNumber, PeerNumber,
    PeerView, SessionState, View,
};
use crate::endpoint::Endpoint;

/// The far end of a flow.
struct Far {
    address: IpAddr,
    peer: PeerNumber,
    /// Absent while nobody has said who the address is.
    identity: Option<IdentityNumber>,
}

/// Collects the chain.
struct Checks(Vec<VerifyCheck>);

impl Checks {
    fn add(&mut self, what: &str, state: VerifyState, detail: impl Into<String>) {
        self.0.push(VerifyCheck {
            what: what.into(),
            state,
            detail: detail.into(),
        });
    }

    fn holds(&mut self, what: &str, holds: bool, detail: impl Into<String>) {
        let state = if holds {
            VerifyState::Ok
        } else {
            VerifyState::Missing
        };
        self.add(what, state, detail);
    }
}

impl Agent {
    /// Looks at every link of the chain between two workloads, and asks the peer for what is missing, so that
    /// asking again a moment later shows the outcome.
    pub(super) async fn verify(
        &mut self,
        from: &str,
        to: &str,
        port: u16,
        protocol: &str,
    ) -> Result<VerifyReport, RunError> {
        let protocol = protocol_named(protocol)?;
        let near = self.near(from)?;
        let mut checks = Checks(Vec::new());
        let local = self.check_near(&near, &mut checks);
        let far = match self.far(to) {
            Ok(far) => far,
            Err(Unresolved { ask, detail }) => {
                if let Some(address) = ask {
                    self.ask(&near, address).await;
                }
                checks.add("destination", VerifyState::Unknown, detail);
                return Ok(report(&near, to, port, checks));
            }
        };
        if far.peer != PeerNumber::LOCAL {
            self.ask(&near, far.address).await;
        }
        let view = self.view();
        match far.identity {
            Some(identity) => checks.holds(
                "destination",
                true,
                format!("{} is {}", far.address, name(&view, identity)),
            ),
            None => checks.add(
                "destination",
                VerifyState::Unknown,
                format!("its node has not said who {} is", far.address),
            ),
        }
        if far.peer != PeerNumber::LOCAL
            && let Some(peer) = view.peers.iter().find(|peer| peer.number == far.peer)
        {
            self.check_peer(&near, &far, peer, &mut checks).await?;
        }
        if let (Some(local), Some(remote)) = (&local, far.identity)
            && let Some(remote_view) = view.identities.get(&remote)
        {
            let remote_workload = workload(&remote_view.identity)?;
            let needed = self.check_policy(local, &remote_workload, protocol, port, &mut checks)?;
            self.check_pair(&view, local, remote, far.peer, needed, &mut checks)?;
            if remote_view.revoked {
                checks.holds("revocation", false, "the destination's identity is revoked");
            }
        }
        let cleartext = self.gates.cleartext_drops()?;
        checks.holds(
            "wire",
            self.gates.wires() > 0,
            format!(
                "the tripwire watches {} underlay interfaces; {cleartext} cleartext packets between managed \
                 addresses were stopped",
                self.gates.wires()
            ),
        );
        Ok(report(&near, to, port, checks))
    }

    fn near(&self, from: &str) -> Result<Endpoint, RunError> {
        let address: Option<IpAddr> = from.parse().ok();
        let endpoints = self.endpoints.all();
        let named = endpoints.iter().find(|endpoint| {
            endpoint.name == from || address.is_some_and(|a| endpoint.addresses.contains(&a))
        });
        // The node's name stands for its only workload.
        let only = match endpoints {
            [only] if self.node.name.to_string() == from => Some(only),
            _ => None,
        };
        named.or(only).cloned().ok_or_else(|| {
            RunError::Refused(format!(
                "no endpoint {from} on this node; handfast endpoint list shows what there is \
                 (verify runs on the node of the flow's source)"
            ))
        })
    }

    fn check_near(&self, near: &Endpoint, checks: &mut Checks) -> Option<Identity> {
        let identity = self.identity_of(near);
        match &identity {
            Some(identity) => {
                checks.holds(
                    "source",
                    true,
                    format!("endpoint {} is {}", near.name, identity.spiffe_id),
                );
                let svid = self
                    .svids
                    .proofs()
                    .values()
                    .find(|svid| svid.identity == *identity);
                checks.holds(
                    "proof SVID",
                    svid.is_some(),
                    match svid {
                        Some(svid) => format!(
                            "ends in {}",
                            words(svid.not_after.saturating_sub(self.clock.now().wall))
                        ),
                        None => "the CA has not issued it yet".into(),
                    },
                );
            }
            None => checks.holds(
                "source",
                false,
                format!(
                    "endpoint {} has no identity: no entry's selectors match it",
                    near.name
                ),
            ),
        }
        identity
    }

    fn far(&self, to: &str) -> Result<Far, Unresolved> {
        let view = self.view();
        let remotes = || {
            view.peers.iter().flat_map(|peer| {
                let number = peer.number;
                peer.remotes
                    .iter()
                    .map(move |(address, identity)| (number, *address, *identity))
            })
        };
        if let Ok(address) = to.parse::<IpAddr>() {
            if let Some((peer, address, identity)) = remotes().find(|(_, a, _)| *a == address) {
                return Ok(Far {
                    address,
                    peer,
                    identity: Some(identity),
                });
            }
            let here = view
                .endpoints
                .iter()
                .find(|e| e.addresses.contains(&address));
            if let Some(endpoint) = here {
                return Ok(Far {
                    address,
                    peer: PeerNumber::LOCAL,
                    identity: endpoint.identity,
                });
            }
            let holder = view
                .peers
                .iter()
                .find(|peer| peer.prefixes.iter().any(|prefix| prefix.contains(&address)));
            return match holder {
                Some(peer) => Ok(Far {
                    address,
                    peer: peer.number,
                    identity: None,
                }),
                None => Err(Unresolved {
                    ask: None,
                    detail: format!("{address} lies in no node's prefixes: not a managed address"),
                }),
            };
        }
        let means = |identity: &IdentityNumber| {
            let id = name(&view, *identity);
            id == to || id.rsplit('/').next() == Some(to)
        };
        let mut named: Vec<Far> = remotes()
            .filter(|(_, _, identity)| means(identity))
            .map(|(peer, address, identity)| Far {
                address,
                peer,
                identity: Some(identity),
            })
            .collect();
        for endpoint in self.endpoints.all().iter().filter(|e| e.name == to) {
            let known = view
                .endpoints
                .iter()
                .find(|known| known.endpoint.0 == endpoint.id);
            if let (Some(known), Some(address)) = (known, endpoint.addresses.first()) {
                named.push(Far {
                    address: *address,
                    peer: PeerNumber::LOCAL,
                    identity: known.identity,
                });
            }
        }
        if named.is_empty()
            && let Some(peer) = view.peers.iter().find(|peer| peer.name == to)
        {
            return self.far_on_node(peer, to);
        }
        named.into_iter().next().ok_or_else(|| Unresolved {
            ask: None,
            detail: format!(
                "nothing that this node knows is called {to:?}; name an address, a SPIFFE ID or a node"
            ),
        })
    }

    /// A node's name stands for its workload, if it has announced but one identity here.
    fn far_on_node(&self, peer: &PeerView, to: &str) -> Result<Far, Unresolved> {
        let mut remotes = peer.remotes.iter();
        match (
            remotes.next(),
            remotes
                .clone()
                .all(|(_, id)| peer.remotes.first().map(|r| r.1) == Some(*id)),
        ) {
            (Some((address, identity)), true) => Ok(Far {
                address: *address,
                peer: peer.number,
                identity: Some(*identity),
            }),
            (Some(_), false) => Err(Unresolved {
                ask: None,
                detail: format!(
                    "node {to} has several workloads; name one by address or SPIFFE ID"
                ),
            }),
            (None, _) => Err(Unresolved {
                ask: peer.prefixes.first().map(|prefix| prefix.addr()),
                detail: format!(
                    "node {to} has announced no workload here that policy pairs with the source"
                ),
            }),
        }
    }

    /// What a first packet would set in motion: session, proofs, announcements, pair.
    async fn ask(&mut self, near: &Endpoint, remote: IpAddr) {
        self.feed(Event::Held(HoldKey {
            endpoint: core::EndpointId(near.id),
            direction: core::Direction::Egress,
            remote,
        }))
        .await;
    }

    async fn check_peer(
        &self,
        near: &Endpoint,
        far: &Far,
        peer: &PeerView,
        checks: &mut Checks,
    ) -> Result<(), RunError> {
        let now = self.clock.now().boot;
        let session = peer.session.filter(|session| session.expires > now);
        let live = peer.connection == ConnectionView::Live;
        match session {
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
        self.check_tunnel(peer, checks).await;
        let same_family = |address: &IpAddr| address.is_ipv4() == far.address.is_ipv4();
        for address in near.addresses.iter().filter(|a| same_family(a)) {
            let state = peer
                .announced
                .iter()
                .find(|(announced, id, _)| announced == address && id.0 == near.id)
                .map(|(_, _, state)| *state);
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
                    None => format!("{address} is not announced to {}", peer.name),
                },
            );
        }
        Ok(())
    }

    async fn check_tunnel(&self, peer: &PeerView, checks: &mut Checks) {
        let Some(status) = self.tunnels.status().await else {
            let detail = "the tunnel did not say in time how it stands";
            return checks.add("tunnel", VerifyState::Unknown, detail);
        };
        let key = self.tunnels.key(peer.number);
        let wire = key.and_then(|key| status.peers.iter().find(|p| p.public_key == key));
        checks.holds(
            "tunnel",
            wire.is_some_and(|wire| wire.preshared),
            match wire {
                Some(wire) => format!(
                    "WireGuard ({}) to {}, preshared key from the session, {} bytes sent, {} received",
                    status.device.backend,
                    wire.endpoint.map_or_else(|| "nowhere yet".into(), |e| e.to_string()),
                    wire.sent_bytes,
                    wire.received_bytes
                ),
                None => format!("no tunnel to {}", peer.name),
            },
        );
    }

    /// Both ends' rules; policies are the same on every node. Tells whether a proof is needed.
    fn check_policy(
        &self,
        local: &Identity,
        remote: &Workload,
        protocol: Protocol,
        port: u16,
        checks: &mut Checks,
    ) -> Result<bool, RunError> {
        let local = workload(local)?;
        let set = self.policy.set();
        let mut needed = false;
        for (what, at, other, direction) in [
            ("egress rule", &local, remote, Direction::Egress),
            ("ingress rule", remote, &local, Direction::Ingress),
        ] {
            let remote = Remote::Workload(other.clone());
            let ruling = set
                .of_workload(at)
                .ruling(&remote, direction, protocol, port);
            if ruling == Ruling::Open {
                let open = "no policy closes this direction here: allowed by default";
                checks.holds(what, true, open);
                continue;
            }
            let entry = ruling.entry();
            let rule = |rule: RuleRef| {
                set.rule(rule)
                    .map_or_else(|| format!("rule {}", rule.0), ToString::to_string)
            };
            match entry {
                Some(entry) if entry.verdict == Verdict::Allow => {
                    needed |= entry.auth == Some(Authentication::Required);
                    let auth = match entry.auth {
                        Some(Authentication::Required) => ", authentication required",
                        Some(Authentication::Audit) => ", authentication audited",
                        Some(Authentication::TestAlwaysFail) => ", authentication always fails",
                        Some(Authentication::Disabled) | None => "",
                    };
                    let passes = entry.auth != Some(Authentication::TestAlwaysFail);
                    checks.holds(
                        what,
                        passes,
                        format!("allowed by {}{auth}", rule(entry.rule)),
                    );
                }
                Some(entry) => checks.holds(what, false, format!("denied by {}", rule(entry.rule))),
                None => checks.holds(
                    what,
                    false,
                    format!(
                        "{} is selected by a policy, and no rule allows this flow",
                        at.spiffe_id
                    ),
                ),
            }
        }
        Ok(needed)
    }

    fn check_pair(
        &self,
        view: &View,
        local: &Identity,
        remote: IdentityNumber,
        peer: PeerNumber,
        needed: bool,
        checks: &mut Checks,
    ) -> Result<(), RunError> {
        let local_number = view
            .identities
            .iter()
            .find(|(_, known)| *known.identity == *local)
            .map(|(number, _)| *number);
        let pair = self.gates.pairs()?.into_iter().find(|pair| {
            let ends = (Some(pair.local), pair.remote);
            let turned = (Some(pair.remote), pair.local);
            pair.peer == peer
                && (ends == (local_number, remote)
                    || (peer == PeerNumber::LOCAL && turned == (local_number, remote)))
        });
        let left = pair.and_then(|pair| pair.expires.checked_sub(self.clock.now().boot));
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

/// A destination that is no address yet, and an address that can be asked about to learn more.
struct Unresolved {
    ask: Option<IpAddr>,
    detail: String,
}

fn protocol_named(name: &str) -> Result<Protocol, RunError> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        // The port is the type of the message that opens the flow.
        "icmp" => Ok(Protocol::Icmp),
        "icmpv6" => Ok(Protocol::Icmpv6),
        _ => Err(RunError::Refused(format!(
            "{name:?} is no protocol that can be verified: tcp, udp, sctp, icmp or icmpv6"
        ))),
    }
}

fn words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", Duration::from_secs(seconds).as_secs() / 3600),
    }
}

fn report(near: &Endpoint, to: &str, port: u16, checks: Checks) -> VerifyReport {
    VerifyReport {
        ok: checks.0.iter().all(|check| check.state == VerifyState::Ok),
        flow: format!("{} -> {to} port {port}", near.name),
        checks: checks.0,
    }
}
