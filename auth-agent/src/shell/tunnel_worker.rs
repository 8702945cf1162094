//! The agent's end of the tunnel. What is wanted of it is carried out by a task of its own ([`super::tunnel_work`]),
//! in order and beside the agent's loop: a WireGuard daemon that hangs may keep new sessions waiting, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use handfast_encrypt::{Device, Health, Peer, PublicKey, Status, Tunnel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::RunError;
use super::tunnel_work::Work;
use super::tunnels::{Places, Slot, TunnelKeys};
use crate::core::{ConnId, PeerNumber};

/// Installations that wait for the worker; one that finds no room has failed, and the core tries again.
pub(super) const QUEUE: usize = 1024;
/// Outcomes that wait for the loop.
const OUTCOMES: usize = 64;
/// How long a person who asks for the state of things waits for the tunnel's.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// What has become of an order, and what the worker needs of the loop.
#[derive(Debug)]
pub(super) enum Outcome {
    Installed(ConnId),
    NotInstalled(ConnId, RunError),
    /// It is tried again.
    NotRemoved(PeerNumber, RunError),
    /// Peers' packets go by other devices from now on: routes have to follow.
    Moved,
    /// A device is there and is down: the gates have to stand before it may pass anything.
    Guard(Device, Done),
    /// A device has no peers any more and goes.
    Unguard(Device, Done),
    /// Something has happened to a device.
    Health(Slot, Health),
    /// What Hello says of this node's tunnel has changed.
    Key(PublicKey, u16),
    /// Only new sessions give these peers new keys.
    Stuck(Vec<PeerNumber>),
    /// Something for a person to see.
    Trouble(RunError),
}

/// To be told when the loop has done what the worker waits for.
pub(super) type Done = oneshot::Sender<Result<(), RunError>>;

/// What has become of a wish for new keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rotation {
    /// This node has a new static key; peers get sessions under it now.
    NewKey(PublicKey),
    /// Keys were changed in place; these peers need a new session.
    InPlace(Vec<PeerNumber>),
}

pub(super) enum Order {
    Install(Box<Installation>),
    Call(PeerNumber),
    Activate(PeerNumber),
    Remove(PeerNumber),
    Rotate(oneshot::Sender<Result<Rotation, RunError>>),
}

pub(super) struct Installation {
    pub(super) conn: ConnId,
    pub(super) number: PeerNumber,
    pub(super) peer: Peer,
    /// The key that this node's Hello said on that connection.
    pub(super) own_key: PublicKey,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// Tunnel devices by their place.
pub(super) type Devices = BTreeMap<Slot, Arc<dyn Tunnel>>;

/// How things stand, as the worker last said.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) devices: Devices,
    pub(super) current: Arc<dyn Tunnel>,
    pub(super) peers: BTreeMap<PeerNumber, Places>,
}

/// The agent's end.
pub(super) struct TunnelWorker {
    /// Absent once it was stopped.
    orders: Option<mpsc::UnboundedSender<Order>>,
    room: Arc<Semaphore>,
    standing: watch::Receiver<Standing>,
    task: JoinHandle<()>,
}

impl TunnelWorker {
    /// Starts the worker with the devices that there are. Peers without a session (`standing`) lose their tunnels: an
    /// earlier run was to remove them and did not get to it.
    pub(super) fn start(
        devices: Devices,
        current: Arc<dyn Tunnel>,
        keys: TunnelKeys,
        standing: &BTreeSet<PeerNumber>,
    ) -> (Self, mpsc::Receiver<Outcome>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (outcomes, heard) = mpsc::channel(OUTCOMES);
        let first = Standing {
            devices,
            current,
            peers: keys.all().clone(),
        };
        let published = watch::Sender::new(first);
        let watched = published.subscribe();
        let work = Work::new(keys, standing, published, outcomes);
        let worker = Self {
            orders: Some(orders),
            room: Arc::new(Semaphore::new(QUEUE)),
            standing: watched,
            task: tokio::spawn(work.run(receiver)),
        };
        (worker, heard)
    }

    /// Makes a peer of the tunnel what is given. Never waits: the outcome comes later.
    pub(super) fn install(
        &self,
        conn: ConnId,
        number: PeerNumber,
        peer: Peer,
        own_key: PublicKey,
    ) -> Result<(), RunError> {
        let full = || RunError::Refused("too many tunnels wait to be installed".into());
        let permit = Arc::clone(&self.room).try_acquire_owned();
        self.order(Order::Install(Box::new(Installation {
            conn,
            number,
            peer,
            own_key,
            _permit: permit.map_err(|_| full())?,
        })))
    }

    /// The peer has its end: if this node is to speak first, it does so now.
    pub(super) fn call(&self, peer: PeerNumber) -> Result<(), RunError> {
        self.order(Order::Call(peer))
    }

    /// Both nodes have installed what the newest session gave: from now on packets go under its keys.
    pub(super) fn activate(&self, peer: PeerNumber) -> Result<(), RunError> {
        self.order(Order::Activate(peer))
    }

    /// Takes a peer out of the tunnel, after what was ordered before. There are no more of these than of
    /// installations, and none is refused.
    pub(super) fn remove(&self, peer: PeerNumber) -> Result<(), RunError> {
        self.order(Order::Remove(peer))
    }

    /// Begins to change this node's keys. The answer comes when that has begun.
    pub(super) fn rotate(&self) -> Result<oneshot::Receiver<Result<Rotation, RunError>>, RunError> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Rotate(reply))?;
        Ok(answer)
    }

    fn order(&self, order: Order) -> Result<(), RunError> {
        let stopped = || RunError::Refused("the tunnel's worker has stopped".into());
        let orders = self.orders.as_ref().ok_or_else(stopped)?;
        orders.send(order).map_err(|_| stopped())
    }

    /// How things stand.
    pub(super) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// The device whose key Hello says.
    pub(super) fn current(&self) -> Arc<dyn Tunnel> {
        Arc::clone(&self.standing.borrow().current)
    }

    /// A device with this key of ours.
    pub(super) fn with_key(&self, own: &PublicKey) -> Option<Arc<dyn Tunnel>> {
        let standing = self.standing.borrow();
        let mut devices = standing.devices.values();
        devices.find(|device| device.public_key() == *own).cloned()
    }

    /// Every device as it is; nothing of one that does not say so soon.
    pub(super) async fn statuses(&self) -> BTreeMap<Slot, Status> {
        let devices = self.standing().devices;
        let asked = devices.iter().map(|(slot, device)| async move {
            let status = timeout(STATUS_PATIENCE, device.status()).await;
            Some((*slot, status.ok()?.ok()?))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Ends the worker. What is ordered may take this long; the rest is left to the next run.
    pub(super) async fn stop(&mut self, patience: Duration) {
        if self.orders.take().is_none() {
            return;
        }
        if timeout(patience, &mut self.task).await.is_err() {
            self.task.abort();
            // Only when it is gone does it hold the tunnel no longer.
            let _ = (&mut self.task).await;
        }
    }
}
