//! `tunnel verify`: probes from workloads here to workloads of peers, and a look at what leaves and comes in on the
//! underlay meanwhile. Encrypted packets must be seen; an address of a workload, or the probes' content, must not.

mod sight;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use self::sight::{Seen, Sight, Watched};
use super::RunError;
use super::agent::Agent;
use super::requests::to_value;
use crate::admin::{Answer, WireInfo, WireVerdict};
use crate::core::{AnnouncedState, PeerView};
use crate::endpoint::{self, NamespaceName};

/// Discard: nobody answers but with an ICMP error.
const DISCARD: u16 = 9;
const PROBES: u32 = 3;
const BETWEEN_PROBES: Duration = Duration::from_millis(100);
/// How long is looked after the last probe: it may have been held until its pair was proven.
const LOOK: Duration = Duration::from_millis(800);
/// What the probes carry: nothing else on the wire looks like it.
const CONTENT: usize = 48;

/// What is asked of one peer.
struct Question {
    name: String,
    kind: &'static str,
    from: Option<Origin>,
    watched: Watched,
}

/// Whence probes come, and where they go.
struct Origin {
    endpoint: String,
    netns: NamespaceName,
    from: IpAddr,
    to: IpAddr,
}

impl Agent {
    /// Looks beside the loop, which goes on.
    pub(super) fn verify_wire(&self, only: Option<String>, asker: oneshot::Sender<Answer>) {
        let questions = self.questions(only.as_deref());
        if questions.is_empty() {
            let nobody = match only {
                Some(name) => format!("no peer {name:?} has a tunnel (handfast tunnel status)"),
                None => "no peer has a tunnel (handfast tunnel status)".into(),
            };
            return drop(asker.send(Answer::Error(nobody)));
        }
        let interfaces = self.gates.wire_indexes();
        tokio::task::spawn_blocking(move || {
            let answer = look(questions, &interfaces).and_then(to_value);
            // The asker may have left.
            let _ = asker.send(match answer {
                Ok(value) => Answer::Value(value),
                Err(error) => Answer::Error(error.to_string()),
            });
        });
    }

    fn questions(&self, only: Option<&str>) -> Vec<Question> {
        let (view, standing) = (self.view(), self.tunnels.standing());
        let wanted =
            |peer: &&PeerView| only.is_none_or(|name| peer.name == name || peer.id == name);
        let asked = view.peers.iter().filter(wanted).filter_map(|peer| {
            let places = standing.peers.get(&peer.number)?;
            let nodes = self.knowledge.nodes.iter();
            let listed = nodes.filter(|node| node.spiffe_id == peer.id);
            Some(Question {
                name: peer.name.clone(),
                kind: self.tunnel_kind(),
                from: self.origin(peer),
                watched: Watched {
                    underlay: listed
                        .flat_map(|node| &node.underlay)
                        .map(|address| address.ip().to_canonical())
                        .collect(),
                    ports: standing
                        .devices
                        .values()
                        .map(|device| device.port())
                        .collect(),
                    ours: self.node.prefixes.clone(),
                    theirs: peer.prefixes.clone(),
                    content: rand::random::<[u8; CONTENT]>().to_vec(),
                    moving: places.other.is_some(),
                },
            })
        });
        asked.collect()
    }

    /// A workload here that the peer believes, and one of the peer's that we believe.
    fn origin(&self, peer: &PeerView) -> Option<Origin> {
        let confirmed = peer
            .announced
            .iter()
            .filter(|(_, _, state)| *state == AnnouncedState::Confirmed);
        let mut ways = confirmed.flat_map(|(from, id, _)| {
            let fits = |to: &&(IpAddr, _)| to.0.is_ipv4() == from.is_ipv4();
            let remotes = peer.remotes.iter().filter(fits);
            remotes.map(move |(to, _)| (*from, *id, *to))
        });
        ways.find_map(|(from, id, to)| {
            let endpoint = self.endpoint(id.0)?;
            Some(Origin {
                endpoint: endpoint.name.clone(),
                // From a workload of the node itself only its own sockets may send.
                netns: endpoint.netns.clone()?,
                from,
                to,
            })
        })
    }
}

fn look(questions: Vec<Question>, interfaces: &BTreeSet<u32>) -> Result<Vec<WireInfo>, RunError> {
    let sight = Sight::open().map_err(RunError::io("look at the wire (AF_PACKET)"))?;
    let mut told = Vec::new();
    for question in questions {
        sight.skip();
        let mut sent = 0;
        let mut problem = None;
        if let Some(origin) = &question.from {
            match send(origin, question.watched.content.clone()) {
                Ok(count) => sent = count,
                Err(error) => problem = Some(error.to_string()),
            }
        }
        let until = Instant::now() + LOOK;
        let seen = sight
            .watch(until, interfaces, &question.watched)
            .map_err(RunError::io("look at the wire"))?;
        told.push(judge(&question, sent, problem, &seen));
    }
    Ok(told)
}

/// Sends from within the workload's own namespace: a packet like any other of its.
fn send(origin: &Origin, content: Vec<u8>) -> Result<u32, RunError> {
    let (from, to) = (origin.from, SocketAddr::new(origin.to, DISCARD));
    let sent = endpoint::within(&origin.netns, move || {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
        let mut sent = 0;
        for _ in 0..PROBES {
            // An ICMP error for the probe before is reported here: the way is open all the same.
            match socket.send_to(&content, to) {
                Ok(_) => sent += 1,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
            std::thread::sleep(BETWEEN_PROBES);
        }
        Ok(sent)
    })?;
    sent.map_err(RunError::io("send probes from a workload's namespace"))
}

fn judge(question: &Question, probes: u32, problem: Option<String>, seen: &Seen) -> WireInfo {
    let (verdict, detail) = match (&question.from, problem) {
        _ if seen.readable > 0 => (
            WireVerdict::Failed,
            "packets between the two nodes' workloads can be read on the underlay".into(),
        ),
        (None, _) => (
            WireVerdict::Unknown,
            "no two workloads have been announced to each other: there is nobody to send a probe"
                .into(),
        ),
        (_, Some(problem)) => (WireVerdict::Unknown, problem),
        (Some(_), None) if seen.sent >= u64::from(probes) => (
            WireVerdict::Ok,
            match question.watched.moving {
                true => "encrypted, and nothing readable; keys are changing".into(),
                false => "encrypted, and nothing readable".into(),
            },
        ),
        (Some(origin), None) => (
            WireVerdict::Failed,
            format!(
                "{} of {probes} probes were seen encrypted; the gates may have refused them: \
                 handfast verify {} {} --protocol udp --port {DISCARD}",
                seen.sent, origin.from, origin.to
            ),
        ),
    };
    WireInfo {
        name: question.name.clone(),
        kind: question.kind.into(),
        verdict,
        probe: question.from.as_ref().map_or_else(String::new, |origin| {
            format!("{} ({}) to {}", origin.from, origin.endpoint, origin.to)
        }),
        probes,
        encrypted_sent: seen.sent,
        encrypted_received: seen.received,
        readable: seen.readable,
        detail,
    }
}
