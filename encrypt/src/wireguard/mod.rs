//! WireGuard as a tunnel: one device, made or adopted, kept as it was asked for.

mod control;
pub(crate) mod daemon;
mod device;
mod kernel;
mod mend;
mod name;
mod options;
mod place;
mod supervise;
mod uapi;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Plain, PoisonError};

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use self::control::{Allowed, Change, Control, PeerChange, PeerReading};
use self::device::{adopt, configure, create, discard, take_over};
pub use self::name::DeviceName;
pub(crate) use self::options::DEFAULT_FWMARK;
pub use self::options::{Choice, Options};
use crate::netlink::Netlink;
use crate::prefixes::{check_free, normal};
use crate::{
    Device, Error, Health, Peer, PeerStatus, PrivateKey, PublicKey, StaticKey, Status, Tunnel,
};

/// How many peers a daemon's answer names; none if it is refused.
pub(crate) fn peers(answer: &[u8]) -> Option<usize> {
    Some(uapi::reading(answer).ok()?.peers.len())
}

/// Seconds between keepalives where one is wanted at once.
const ROUSING: u16 = 25;

/// The tunnel. Dropping it leaves the device, its peers and its daemon as they are: the next agent adopts them.
pub struct WireGuard {
    inner: Arc<Inner>,
    supervisor: JoinHandle<()>,
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

struct Inner {
    options: Options,
    netlink: Netlink,
    public_key: PublicKey,
    /// The state has it too, but behind a lock that a device which hangs may hold.
    private_key: PrivateKey,
    /// What the device is to hold; kept so that a device that was lost can be made again.
    state: Mutex<State>,
    device: Plain<Device>,
    /// The device is to be up: its gates stand.
    raised: AtomicBool,
    health: watch::Sender<Health>,
}

struct State {
    control: Arc<Control>,
    private_key: PrivateKey,
    peers: BTreeMap<PublicKey, Peer>,
    detached: bool,
}

impl WireGuard {
    /// Makes the device, or adopts the one that an earlier agent left. A new device is down: attach the gates,
    /// then call [`Tunnel::up`].
    pub async fn open(options: Options) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let (control, link, reading) = match adopt(&options, &netlink).await? {
            Some((control, link)) => {
                let reading = control.read().await?;
                (control, link, Some(reading))
            }
            None => {
                let (control, link) = create(&options, &netlink).await?;
                (control, link, None)
            }
        };
        let index = link.index;
        let fresh = reading.is_none();
        let adopted = reading
            .as_ref()
            .is_some_and(|reading| reading.private_key.is_some());
        let set_up = async {
            let (private_key, peers) = take_over(&options, &control, reading).await?;
            let device = configure(&options, &netlink, &control, link, adopted).await?;
            Ok((private_key, peers, device))
        };
        let (private_key, peers, device) = match set_up.await {
            Ok(parts) => parts,
            Err(error) => {
                // What was made for nothing goes again; what was there stays as it was found.
                if fresh {
                    discard(&netlink, &control, index).await?;
                }
                return Err(error);
            }
        };
        let inner = Arc::new(Inner {
            public_key: private_key.public_key(),
            private_key: private_key.clone(),
            state: Mutex::new(State {
                control: Arc::new(control),
                private_key,
                peers,
                detached: false,
            }),
            device: Plain::new(device),
            raised: AtomicBool::new(false),
            health: watch::Sender::new(Health::Good),
            options,
            netlink,
        });
        let supervisor = tokio::spawn(supervise::run(Arc::clone(&inner)));
        Ok(Self { inner, supervisor })
    }

    /// The device that an earlier agent left, if there is one.
    pub async fn left_over(options: Options) -> Result<Option<Self>, Error> {
        let there = adopt(&options, &Netlink::open()?).await?.is_some();
        match there {
            true => Self::open(options).await.map(Some),
            false => Ok(None),
        }
    }

    /// Refuses where a device of somebody else has the name; changes nothing.
    pub async fn refuse_foreign(options: &Options) -> Result<(), Error> {
        adopt(options, &Netlink::open()?).await.map(drop)
    }

    /// Whether an earlier agent left a device. Somebody else's is none.
    pub async fn there(options: &Options) -> Result<bool, Error> {
        match adopt(options, &Netlink::open()?).await {
            Ok(found) => Ok(found.is_some()),
            Err(Error::ForeignDevice { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets this device receive what the node answers by another one, whatever the reverse path filter says. To be
    /// called for both devices before routes move from one to the other.
    pub async fn receive_beside_another(&self) -> Result<(), Error> {
        let device = self.inner.device();
        let netlink = &self.inner.netlink;
        netlink.receive_loosely(&device.name, device.index).await
    }

    /// Takes away the device that an earlier agent left, without making one if there is none. Says whether
    /// there was one.
    pub async fn remove_left_over(options: &Options) -> Result<bool, Error> {
        let netlink = Netlink::open()?;
        match adopt(options, &netlink).await? {
            Some((control, link)) => {
                discard(&netlink, &control, link.index).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl Inner {
    fn device(&self) -> Device {
        self.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes device and peers anew after they were lost. The device is down until the gates are attached.
    async fn restore(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if state.detached {
            return Ok(());
        }
        let (control, link) = create(&self.options, &self.netlink).await?;
        let peers = state.peers.values().map(|peer| PeerChange::Set {
            peer: peer.clone(),
            keepalive: self.options.keepalive,
            allowed: Allowed::Replace,
        });
        let change = Change {
            private_key: Some(state.private_key.clone()),
            port: Some(self.options.port),
            fwmark: Some(self.options.fwmark),
            replace_peers: true,
            peers: peers.collect(),
        };
        let index = link.index;
        let set_up = async {
            control.apply(&change).await?;
            configure(&self.options, &self.netlink, &control, link, false).await
        };
        let device = match set_up.await {
            Ok(device) => device,
            Err(error) => {
                discard(&self.netlink, &control, index).await?;
                return Err(error);
            }
        };
        state.control = Arc::new(control);
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = device.clone();
        self.health.send_replace(Health::Replaced { device });
        Ok(())
    }

    async fn up(&self) -> Result<(), Error> {
        let index = self.device().index;
        let outcome = self.netlink.set_up(index).await;
        outcome.map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => Error::PortInUse(self.options.port),
            Some(libc::ENODEV) => Error::DeviceLost(self.options.name.to_string()),
            _ => Error::Netlink {
                doing: format!("bringing {} up", self.options.name),
                source: error,
            },
        })?;
        self.raised.store(true, Ordering::Relaxed);
        self.health.send_replace(Health::Good);
        Ok(())
    }

    async fn install(&self, peer: Peer) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let wanted = normal(&peer.prefixes);
        let others = state.peers.iter();
        let others = others.filter(|(key, _)| **key != peer.public_key);
        check_free(&wanted, others.map(|(key, peer)| (key, &*peer.prefixes)))?;
        let allowed = match state
            .peers
            .get(&peer.public_key)
            .map(|there| normal(&there.prefixes))
        {
            None => Allowed::Replace,
            Some(there) if there == wanted => Allowed::Keep,
            Some(there) if there.iter().all(|prefix| wanted.contains(prefix)) => Allowed::Add,
            Some(_) => Allowed::Replace,
        };
        let peer = Peer {
            prefixes: wanted,
            ..peer
        };
        let change = PeerChange::Set {
            peer: peer.clone(),
            keepalive: self.options.keepalive,
            allowed,
        };
        self.apply(&state, change).await?;
        state.peers.insert(peer.public_key, peer);
        Ok(())
    }

    /// Both devices receive from here on, whichever of them the node answers by.
    async fn beside(&self, key: StaticKey) -> Result<WireGuard, Error> {
        let options = Options {
            private_key: match key {
                StaticKey::Same => Some(self.private_key.clone()),
                StaticKey::Fresh => None,
            },
            ..self.options.beside()
        };
        let second = WireGuard::open(options).await?;
        let device = self.device();
        let loosely = async {
            let netlink = &self.netlink;
            netlink.receive_loosely(&device.name, device.index).await?;
            second.receive_beside_another().await
        };
        match loosely.await {
            Ok(()) => Ok(second),
            Err(error) => {
                second.detach().await?;
                Err(error)
            }
        }
    }

    /// A keepalive, sent at once, begins a handshake. Forgotten and installed again, so that one that was begun in
    /// vain does not keep the next one waiting.
    async fn rouse(&self, key: PublicKey) -> Result<(), Error> {
        let state = self.state.lock().await;
        let peer = state.peers.get(&key).ok_or(Error::UnknownPeer(key))?;
        let set = |keepalive, allowed| PeerChange::Set {
            peer: peer.clone(),
            keepalive: Some(keepalive),
            allowed,
        };
        self.apply(&state, PeerChange::Remove(key)).await?;
        self.apply(&state, set(ROUSING, Allowed::Replace)).await?;
        let usual = self.options.keepalive.unwrap_or(0);
        self.apply(&state, set(usual, Allowed::Keep)).await
    }

    async fn remove(&self, key: PublicKey) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        // First, so that a device that is being restored does not get it back.
        state.peers.remove(&key);
        self.apply(&state, PeerChange::Remove(key)).await
    }

    async fn apply(&self, state: &State, change: PeerChange) -> Result<(), Error> {
        let change = Change {
            peers: vec![change],
            ..Change::default()
        };
        state
            .control
            .apply(&change)
            .await
            .map_err(|error| self.gone(error))
    }

    /// A socket that does not answer is a daemon that has ended.
    fn gone(&self, error: Error) -> Error {
        match error {
            Error::Io { .. } => Error::DeviceLost(self.options.name.to_string()),
            error => error,
        }
    }

    async fn status(&self) -> Result<Status, Error> {
        let control = Arc::clone(&self.state.lock().await.control);
        let reading = control.read().await.map_err(|error| self.gone(error))?;
        let link = self.netlink.link_at(self.device().index).await?;
        let mut peers: Vec<PeerStatus> = reading.peers.into_iter().map(status_of).collect();
        peers.sort_by_key(|peer| peer.public_key);
        Ok(Status {
            device: self.device(),
            public_key: self.public_key,
            port: reading.port,
            fwmark: reading.fwmark,
            losses: link.map(|link| link.losses).unwrap_or_default(),
            peers,
        })
    }

    async fn detach(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        state.detached = true;
        state.peers.clear();
        // What is known, and what a restoration that was interrupted may have made.
        discard(&self.netlink, &state.control, self.device().index).await?;
        WireGuard::remove_left_over(&self.options).await?;
        Ok(())
    }
}

fn status_of(reading: PeerReading) -> PeerStatus {
    PeerStatus {
        public_key: reading.public_key,
        endpoint: reading.endpoint,
        prefixes: normal(&reading.prefixes),
        preshared: reading.preshared_key.is_some(),
        last_handshake: reading.last_handshake,
        received_bytes: reading.received_bytes,
        sent_bytes: reading.sent_bytes,
        refused_packets: None,
    }
}

impl Tunnel for WireGuard {
    fn public_key(&self) -> PublicKey {
        self.inner.public_key
    }

    fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        self.inner.private_key.agree(other)
    }

    fn port(&self) -> u16 {
        self.inner.options.port
    }

    fn beside(&self, key: StaticKey) -> BoxFuture<'_, Result<Option<Arc<dyn Tunnel>>, Error>> {
        let opened = self.inner.beside(key);
        opened
            .map_ok(|second| Some(Arc::new(second) as Arc<dyn Tunnel>))
            .boxed()
    }

    fn installed(&self, peer: PublicKey) -> BoxFuture<'_, Option<Peer>> {
        async move { self.inner.state.lock().await.peers.get(&peer).cloned() }.boxed()
    }

    fn shakes_hands(&self) -> bool {
        true
    }

    fn rouse(&self, peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.rouse(peer).boxed()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn up(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.up().boxed()
    }

    fn install(&self, peer: Peer) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.install(peer).boxed()
    }

    fn remove(&self, peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.remove(peer).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Error>> {
        self.inner.status().boxed()
    }

    fn watch(&self) -> watch::Receiver<Health> {
        self.inner.health.subscribe()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.supervisor.abort();
        self.inner.detach().boxed()
    }
}
