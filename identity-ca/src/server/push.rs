//! The stream of updates: each has what has changed since the last.
//!
//! A slow agent never queues: it gets the newest state when it is ready for it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::agents::admit;
use super::crls::Lists;
use super::listen::PeerNode;
use super::state::{Connected, State};
use super::stopped;
use crate::model::Node;
use crate::registry::{Difference, Revisions, Snapshot};
use crate::{now_ms, proto};

pub(super) type UpdateStream = ReceiverStream<Result<proto::Update, Status>>;

/// All agents together get 2,000 updates a second that are not urgent, and each no fewer than one.
const EACH: Duration = Duration::from_micros(500);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The differences that an agent understands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Understands {
    pub(super) entry_changes: bool,
    pub(super) node_changes: bool,
}

/// Starts a stream for a node that was admitted.
pub(super) fn start(
    state: &Arc<State>,
    peer: Arc<PeerNode>,
    connected: Connected,
    understands: Understands,
    stopping: watch::Receiver<bool>,
) -> UpdateStream {
    let (sender, updates) = mpsc::channel(1);
    let stream = Push {
        state: Arc::clone(state),
        snapshots: state.snapshot.subscribe(),
        crls: state.crls.subscribe(),
        servers: state.servers.subscribe(),
        set_back: state.set_back.subscribe(),
        understands,
        stopping,
        _connected: connected,
        peer,
        sender,
        sent: None,
        head_at_ms: 0,
    };
    tokio::spawn(stream.run());
    ReceiverStream::new(updates)
}

/// What follows an update.
enum Next {
    Update,
    /// Nobody listens any more, or nobody may.
    Over,
}

struct Push {
    state: Arc<State>,
    peer: Arc<PeerNode>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    crls: watch::Receiver<Lists>,
    servers: watch::Receiver<Arc<Vec<String>>>,
    set_back: watch::Receiver<u64>,
    understands: Understands,
    stopping: watch::Receiver<bool>,
    sender: mpsc::Sender<Result<proto::Update, Status>>,
    sent: Option<Revisions>,
    /// When the head of the audit log was signed that was sent last.
    head_at_ms: u64,
    _connected: Connected,
}

impl Push {
    async fn run(mut self) {
        let life = self.peer.svid.not_after.saturating_sub(now_ms() / 1000);
        let expiry = tokio::time::sleep(Duration::from_secs(life));
        tokio::pin!(expiry);
        loop {
            // Wait for the agent first, then send it what is newest.
            let permit = tokio::select! {
                permit = self.sender.clone().reserve_owned() => permit,
                () = stopped(self.stopping.clone()) => return,
            };
            let Ok(permit) = permit else { return };
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
            match admit(&snapshot, &self.peer) {
                Ok(node) => {
                    let sent = self.sent.replace(snapshot.revisions);
                    let mut update = update(&snapshot, node, sent, self.understands);
                    update.audit_heads = self.audit_head();
                    if self.state.recovery().is_some() {
                        // Ours may be older than what the agent has.
                        update.deny_list = None;
                        update.recovering = true;
                        if let Some(sent) = &mut self.sent {
                            // It is still to come.
                            sent.deny = 0;
                        }
                    }
                    if sent.is_none() || self.crls.has_changed().unwrap_or(false) {
                        let crls = self.crls.borrow_and_update().to_vec();
                        // None made yet: what the agent has stays good.
                        update.crls = Some(crls)
                            .filter(|crls| !crls.is_empty())
                            .map(|crls| proto::Crls { crls });
                    }
                    if sent.is_none() || self.servers.has_changed().unwrap_or(false) {
                        let addresses = self.servers.borrow_and_update().to_vec();
                        update.servers = Some(proto::Servers { addresses });
                    }
                    permit.send(Ok(update));
                }
                Err(refused) => {
                    permit.send(Err(refused));
                    return;
                }
            }
            let Next::Update = self.news(expiry.as_mut()).await else {
                return;
            };
        }
    }

    /// Waits until there is something to send. What this agent must know is sent at once; the rest gathers for a
    /// moment.
    async fn news(&mut self, mut expiry: Pin<&mut Sleep>) -> Next {
        let pause = tokio::time::sleep(self.pause());
        tokio::pin!(pause);
        let mut waits = false;
        loop {
            tokio::select! {
                changed = self.snapshots.changed() => match changed {
                    Ok(()) if self.is_urgent() => return Next::Update,
                    Ok(()) => waits = true,
                    Err(_) => return Next::Over,
                },
                () = &mut pause, if waits => return Next::Update,
                changed = self.crls.changed() => return match changed {
                    Ok(()) => {
                        // Seen only when it is sent, like the snapshots.
                        self.crls.mark_changed();
                        Next::Update
                    }
                    Err(_) => Next::Over,
                },
                changed = self.servers.changed() => return match changed {
                    Ok(()) => {
                        self.servers.mark_changed();
                        Next::Update
                    }
                    Err(_) => Next::Over,
                },
                // An update that has no more than the time.
                changed = self.set_back.changed() => return match changed {
                    Ok(()) => Next::Update,
                    Err(_) => Next::Over,
                },
                () = self.sender.closed() => return Next::Over,
                () = stopped(self.stopping.clone()) => return Next::Over,
                () = &mut expiry => {
                    let ended = Status::unauthenticated("this connection's certificate has expired; connect with the next one");
                    drop(self.sender.send(Err(ended)).await);
                    return Next::Over;
                }
            }
        }
    }

    /// How long this agent may wait for what is not urgent, after its last update: the more agents there are, the
    /// more changes go into one.
    fn pause(&self) -> Duration {
        let agents = u32::try_from(self.state.nodes_connected()).unwrap_or(u32::MAX);
        EACH.saturating_mul(agents).min(MAX_PAUSE)
    }

    /// Is there news that does not wait: what cuts, what this agent's SVIDs hang on, its entries, policies?
    fn is_urgent(&self) -> bool {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let (Some(sent), now) = (self.sent, snapshot.revisions) else {
            return true;
        };
        let of = |of: &Revisions| (of.deny, of.bundle, of.retired, of.policies);
        if of(&sent) != of(&now) {
            return true;
        }
        match snapshot.admitted(&self.peer) {
            Ok(node) if sent.entries != now.entries => {
                let difference = snapshot.entries.since(node, sent.entries, now_ms());
                difference.is_none_or(|difference| !difference.is_empty())
            }
            Ok(_) => false,
            Err(_) => true,
        }
    }

    /// The head of the audit log, if the agent has not seen it yet: it verifies each.
    fn audit_head(&mut self) -> Option<proto::AuditHeads> {
        let head = self.state.audit_head()?;
        let news = head.at_ms != self.head_at_ms;
        self.head_at_ms = head.at_ms;
        news.then(|| proto::AuditHeads { heads: vec![head] })
    }
}

fn update(
    snapshot: &Snapshot,
    node: &Node,
    sent: Option<Revisions>,
    understands: Understands,
) -> proto::Update {
    let now = snapshot.revisions;
    let changed = |of: fn(&Revisions) -> u64| sent.is_none_or(|sent| of(&sent) != of(&now));
    let nodes = || proto::Nodes {
        nodes: snapshot.nodes.all().filter_map(as_peers_see).collect(),
    };
    let entries = || proto::Entries {
        entries: snapshot
            .entries_of(node)
            .iter()
            .map(|entry| proto::Entry::from(&**entry))
            .collect(),
    };
    let nodes_moved = changed(|r| r.nodes) || changed(|r| r.deny);
    let node_changes = sent
        .filter(|_| understands.node_changes && nodes_moved)
        .and_then(|sent| snapshot.nodes.since(sent.last))
        .map(|changed| changed.into_iter().filter_map(as_peers_see).collect());
    let difference = sent
        .filter(|sent| understands.entry_changes && sent.entries != now.entries)
        .and_then(|sent| snapshot.entries.since(node, sent.entries, now_ms()));
    let policies = || proto::Policies {
        policies: snapshot.policies.iter().map(proto::Policy::from).collect(),
    };
    let signed = || Some(snapshot.deny.bytes()).filter(|bytes| !bytes.is_empty());
    let deny = || prost::Message::decode(signed()?).ok();
    proto::Update {
        sequence: now.last,
        now_ms: now_ms(),
        bundle: changed(|r| r.bundle).then(|| proto::Bundle::from(&*snapshot.bundle)),
        nodes: (node_changes.is_none() && nodes_moved).then(nodes),
        node_changes: node_changes
            .filter(|changed: &Vec<_>| !changed.is_empty())
            .map(|nodes| proto::Nodes { nodes }),
        entries: (difference.is_none() && changed(|r| r.entries)).then(entries),
        entry_changes: difference.filter(|one| !one.is_empty()).map(wire_changes),
        policies: changed(|r| r.policies).then(policies),
        deny_list: if changed(|r| r.deny) { deny() } else { None },
        federated: (changed(|r| r.federation) || changed(|r| r.entries))
            .then(|| federated(snapshot, node)),
        retired: changed(|r| r.retired).then(|| proto::Retired {
            authorities: snapshot.retired.iter().cloned().collect(),
        }),
        ..Default::default()
    }
}

/// The bundles of the trust domains that this node's entries federate with.
fn federated(snapshot: &Snapshot, node: &Node) -> proto::Bundles {
    let entries = snapshot.entries_of(node);
    let wanted: BTreeSet<_> = entries
        .iter()
        .flat_map(|entry| &entry.federates_with)
        .collect();
    let bundles = wanted
        .into_iter()
        .filter_map(|domain| snapshot.federations.get(domain)?.bundle.as_deref())
        .map(proto::Bundle::from)
        .collect();
    proto::Bundles { bundles }
}

fn wire_changes(difference: Difference) -> proto::EntryChanges {
    let changed = difference.changed.iter();
    proto::EntryChanges {
        changed: changed.map(|entry| proto::Entry::from(&**entry)).collect(),
        removed: difference.removed,
    }
}

/// What other nodes need to know of a node; nothing before it has joined.
fn as_peers_see(node: &Node) -> Option<proto::Node> {
    node.joined_at_ms?;
    Some(proto::Node {
        acknowledged: 0,
        problem: String::new(),
        seen_at_ms: 0,
        attestation: String::new(),
        authorities_in_use: Vec::new(),
        ..proto::Node::from(node)
    })
}
