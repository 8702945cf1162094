//! `handfast verify`: one flow, link by link, on this node and on the far end's. What cannot be seen is unknown.

mod ends;
mod here;
mod revoked;
mod there;

use handfast_policies::Protocol;

use super::RunError;
use super::agent::{Agent, workload};
use super::alarms::Topic;
use super::report::name;
use crate::admin::{VerifyReport, VerifyState};
use crate::core::{self, Event, HoldKey, PeerNumber};
use crate::endpoint::Endpoint;
use ends::Unresolved;
use here::{Checks, FlowRules};

pub(super) use there::Questions;

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
        let ends = self.ends(from, to)?;
        let (role, other) = match ends.outward {
            true => ("source", "destination"),
            false => ("destination", "source"),
        };
        let mut checks = Checks(Vec::new());
        let local = self.check_near(&ends.near, role, &mut checks);
        if let Some(local) = &local {
            self.check_revoked(local, &mut checks);
        }
        if let Some(why) = self.alarms.about(Topic::TurnedAway) {
            checks.holds("node", false, why);
        }
        let far = match self.far(ends.far) {
            Ok(far) => far,
            Err(Unresolved { ask, detail }) => {
                if let Some(address) = ask {
                    self.set_in_motion(&ends.near, address).await;
                }
                checks.add(other, VerifyState::Unknown, detail);
                self.check_revoked_named(ends.far, false, &mut checks);
                return Ok(report(from, to, port, checks));
            }
        };
        if !self.check_revoked_node(far.peer, &mut checks) {
            self.check_revoked_named(ends.far, far.identity.is_some(), &mut checks);
        }
        if far.peer != PeerNumber::LOCAL {
            self.set_in_motion(&ends.near, far.address).await;
        }
        let view = self.view();
        match far.identity {
            Some(identity) => checks.holds(
                other,
                true,
                format!("{} is {}", far.address, name(&view, identity)),
            ),
            None => checks.add(
                other,
                VerifyState::Unknown,
                format!("its node has not said who {} is", far.address),
            ),
        }
        let flow = FlowRules {
            outward: ends.outward,
            protocol,
            port,
        };
        let peer = view.peers.iter().find(|peer| peer.number == far.peer);
        if let Some(peer) = peer {
            self.check_peer(&ends.near, far.address, peer, &mut checks)
                .await;
        }
        if let (Some(local), Some(remote)) = (&local, far.identity)
            && let Some(known) = view.identities.get(&remote)
        {
            let remote_workload = workload(&known.identity)?;
            let needed = self.check_rules(local, &remote_workload, flow, &mut checks)?;
            match peer {
                Some(peer) => self.check_pair(&view, local, remote, peer, needed, &mut checks)?,
                None => {
                    let ends = (local, remote);
                    self.check_pair_with(&view, ends, far.peer, |_| true, needed, &mut checks)?;
                }
            }
        }
        self.check_wire(&mut checks)?;
        let mut addresses = ends.near.addresses.iter();
        let same_family = addresses.find(|near| near.is_ipv4() == far.address.is_ipv4());
        if let (Some(peer), Some(near)) = (peer, same_family) {
            let between = (*near, far.address);
            self.check_there(peer, between, flow, &mut checks).await;
        }
        Ok(report(from, to, port, checks))
    }

    /// What a first packet would set in motion: session, proofs, announcements, pair.
    async fn set_in_motion(&mut self, near: &Endpoint, remote: std::net::IpAddr) {
        self.feed(Event::Held(HoldKey {
            endpoint: core::EndpointId(near.id),
            direction: core::Direction::Egress,
            remote,
        }))
        .await;
    }

    fn check_wire(&self, checks: &mut Checks) -> Result<(), RunError> {
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
        Ok(())
    }
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

fn report(from: &str, to: &str, port: u16, checks: Checks) -> VerifyReport {
    VerifyReport {
        ok: checks.0.iter().all(|check| check.state == VerifyState::Ok),
        flow: format!("{from} -> {to} port {port}"),
        checks: checks.0,
    }
}
