//! What the gates tell: verdicts for people, questions for the core.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use handfast_bpf::{Direction, EventKind, Hook, IdentityNumber, Reason};
use handfast_policies::RuleRef;

use super::agent::Agent;
use super::clock;
use crate::admin::{Observed, Tuple};
use crate::core::{self, Discarded, EndpointId, Event, HoldKey, PeerNumber};
use crate::metrics;

impl Agent {
    /// One event of the gates.
    pub(super) async fn hear_kernel(&mut self, event: handfast_bpf::Event) {
        let observed = self.observed(&event);
        self.note_audited(&event, &observed);
        self.history.record(observed);
        // A peer's workload that has not been announced: its node is asked who that is.
        if event.hook == Hook::FromTunnel
            && event.reason == Reason::RemoteUnknown
            && let (Some(peer), Some(endpoint)) = (event.peer, event.endpoint)
        {
            self.feed(Event::UnknownSource {
                peer: PeerNumber(peer.0),
                address: event.remote.0,
                endpoint: EndpointId(endpoint.0),
            })
            .await;
        }
    }

    fn observed(&self, event: &handfast_bpf::Event) -> Observed {
        let local = (event.local, event.local_identity);
        let remote = (event.remote, event.remote_identity);
        let (source, destination) = match event.direction {
            Direction::Egress => (local, remote),
            Direction::Ingress => (remote, local),
        };
        Observed {
            time: wall() - clock::boot().saturating_sub(event.time).as_secs_f64(),
            verdict: match event.kind {
                EventKind::Held => "held",
                EventKind::Dropped => "dropped",
                EventKind::Opened => "forwarded",
                EventKind::Audited => "audit",
            }
            .into(),
            reason: format!("{}: {}", event.reason.name(), event.reason.text()),
            gate: gate(event.hook).into(),
            direction: match event.direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            }
            .into(),
            tuple: Tuple {
                source: source.0.0,
                source_port: source.0.1,
                destination: destination.0.0,
                destination_port: destination.0.1,
                protocol: protocol(event.protocol),
            },
            from: source.1.and_then(|number| self.called(number)),
            to: destination.1.and_then(|number| self.called(number)),
            rule: event.rule.map(|rule| {
                self.policy
                    .set()
                    .rule(RuleRef(rule))
                    .map_or_else(|| format!("rule {rule}"), ToString::to_string)
            }),
        }
    }

    /// Packets that the core gave up; the gates only count them.
    pub(super) fn note_discarded(&mut self, key: HoldKey, reason: Discarded, packets: usize) {
        metrics::discarded(&reason.to_string(), packets);
        let local = self
            .endpoint(key.endpoint.0)
            .and_then(|endpoint| {
                let same = |address: &&IpAddr| address.is_ipv4() == key.remote.is_ipv4();
                endpoint.addresses.iter().find(same).copied()
            })
            .unwrap_or(match key.remote {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            });
        let workload = self
            .policy
            .workload(key.endpoint.0)
            .map(|workload| workload.spiffe_id.to_string());
        let ((source, from), (destination, to)) = match key.direction {
            core::Direction::Egress => ((local, workload), (key.remote, None)),
            core::Direction::Ingress => ((key.remote, None), (local, workload)),
        };
        self.history.record(Observed {
            time: wall(),
            verdict: "dropped".into(),
            reason: format!("discarded: {reason}"),
            gate: "hold".into(),
            direction: match key.direction {
                core::Direction::Ingress => "ingress",
                core::Direction::Egress => "egress",
            }
            .into(),
            tuple: Tuple {
                source,
                source_port: 0,
                destination,
                destination_port: 0,
                protocol: "any".into(),
            },
            from,
            to,
            rule: None,
        });
    }

    fn called(&self, number: IdentityNumber) -> Option<String> {
        match number {
            IdentityNumber::ANY => None,
            IdentityNumber::HOST => Some("host".into()),
            IdentityNumber::WORLD => Some("world".into()),
            IdentityNumber::UNKNOWN => Some("unknown".into()),
            number => self
                .policy
                .identity(number.0)
                .map(|workload| workload.spiffe_id.to_string()),
        }
    }
}

fn gate(hook: Hook) -> &'static str {
    match hook {
        Hook::FromEndpoint => "from-endpoint",
        Hook::ToTunnel => "to-tunnel",
        Hook::FromTunnel => "from-tunnel",
        Hook::ToEndpoint => "to-endpoint",
        Hook::ToHost => "to-host",
        Hook::FromHost => "from-host",
        Hook::HoldIngress | Hook::HoldEgress => "hold",
        Hook::WireIngress | Hook::WireEgress => "wire",
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

pub(super) fn wall() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
