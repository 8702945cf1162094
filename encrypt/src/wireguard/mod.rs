//! WireGuard as a tunnel: one device, made or adopted, kept as it was asked for.

mod control;
pub(crate) mod daemon;
mod kernel;
mod name;
mod supervise;
mod uapi;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Plain, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use rtnetlink::packet_route::link::InfoKind;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use self::control::{Allowed, Change, Control, PeerChange, PeerReading, Reading};
use self::daemon::Daemon;
pub use self::name::DeviceName;
use crate::netlink::{Link, Netlink};
use crate::{
    Device, Error, Health, Peer, PeerStatus, PresharedKey, PrivateKey, PublicKey, Status, Tunnel,
    mtu, probe,
};

/// Far from the mark bits of kube-proxy (0xC000), Cilium (the low 12) and handfast's own (0x3c).
pub(crate) const DEFAULT_FWMARK: u32 = 0x7250_0000;
/// How a device of the kernel is known to be ours.
const ALIAS: &str = "handfast tunnel";

/// How the device is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// `hf-wg0` by default.
    pub name: DeviceName,
    /// UDP port, 51872 by default.
    pub port: u16,
    /// Mark of the tunnel's own packets, so that they never enter our routing table; 0x72500000 by default.
    pub fwmark: u32,
    /// The agent's run directory; a daemon's socket and log live in its `wireguard` folder.
    pub run_dir: PathBuf,
    /// Underlay addresses, this node's or its peers', that the MTU is taken from. None: the default route.
    pub underlay: Vec<IpAddr>,
    /// An MTU that overrides the underlay's.
    pub mtu: Option<u32>,
    /// Who is to encrypt.
    pub choice: Choice,
    /// Userspace implementation: a name or a path. None: WG_USERSPACE_IMPLEMENTATION, then wireguard-go.
    pub implementation: Option<PathBuf>,
    /// Seconds between keepalives, for nodes behind a stateful firewall or NAT; none by default.
    pub keepalive: Option<u16>,
}

/// Who is to encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The kernel where it can, else a daemon.
    #[default]
    Auto,
    /// The kernel or an error.
    Kernel,
    /// A daemon.
    Userspace,
}

impl Options {
    /// The defaults, with the agent's run directory.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: DeviceName::first(),
            port: 51872,
            fwmark: DEFAULT_FWMARK,
            run_dir: run_dir.into(),
            underlay: Vec::new(),
            mtu: None,
            choice: Choice::Auto,
            implementation: None,
            keepalive: None,
        }
    }
}

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
    /// What the device is to hold; kept so that a device that was lost can be made again.
    state: Mutex<State>,
    device: Plain<Device>,
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
            state: Mutex::new(State {
                control: Arc::new(control),
                private_key,
                peers,
                detached: false,
            }),
            device: Plain::new(device),
            health: watch::Sender::new(Health::Good),
            options,
            netlink,
        });
        let supervisor = tokio::spawn(supervise::run(Arc::clone(&inner)));
        Ok(Self { inner, supervisor })
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

/// The device of an earlier agent, if there is one and it is ours.
async fn adopt(options: &Options, netlink: &Netlink) -> Result<Option<(Control, Link)>, Error> {
    let name = &options.name;
    let link = netlink.link(name.as_str()).await?;
    if let Some(daemon) = Daemon::adopt(&options.run_dir, name).await? {
        return match link {
            Some(link) => Ok(Some((Control::Userspace(daemon), link))),
            None => Err(Error::DaemonFailed {
                program: options.run_dir.clone(),
                reason: format!(
                    "a daemon answers for {name}, but the device is not in this network namespace; \
                     give each agent a run directory of its own"
                ),
            }),
        };
    }
    let Some(link) = link else { return Ok(None) };
    let foreign = |found: String| Error::ForeignDevice {
        name: name.to_string(),
        found,
    };
    if link.kind != Some(InfoKind::Wireguard) {
        return Err(foreign(match link.kind {
            Some(InfoKind::Tun) => {
                "a TUN device whose daemon has no control socket in our run directory".to_owned()
            }
            Some(kind) => format!("a device of kind {kind:?}"),
            None => "a device of no kind".to_owned(),
        }));
    }
    let control = Control::Kernel(name.clone());
    // An agent that was killed between making the device and naming it leaves it bare.
    let reading = control.read().await?;
    let bare = reading.private_key.is_none() && reading.peers.is_empty() && !link.up;
    if link.alias.as_deref() != Some(ALIAS) && !bare {
        return Err(foreign(
            "a WireGuard device that somebody else made".to_owned(),
        ));
    }
    Ok(Some((control, link)))
}

/// Makes the device, down and without a key.
async fn create(options: &Options, netlink: &Netlink) -> Result<(Control, Link), Error> {
    let name = &options.name;
    check_port(options.port)?;
    // Before anything is made: an underlay that cannot carry a tunnel leaves nothing half set up.
    wanted_mtu(options, netlink).await?;
    let in_kernel = options.choice != Choice::Userspace
        && match netlink.add_wireguard(name.as_str()).await {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => false,
            Err(source) => {
                return Err(Error::Netlink {
                    doing: format!("making WireGuard device {name}"),
                    source,
                });
            }
        };
    let control = match (in_kernel, options.choice) {
        (true, _) => Control::Kernel(name.clone()),
        (false, Choice::Kernel) => return Err(Error::NoKernelWireGuard),
        (false, _) => {
            let program = daemon::implementation(options.implementation.as_deref())?;
            probe::tun()?;
            Control::Userspace(Daemon::start(&program, &options.run_dir, name).await?)
        }
    };
    match netlink.link(name.as_str()).await {
        Ok(Some(link)) => Ok((control, link)),
        outcome => {
            if let Control::Userspace(daemon) = &control {
                daemon.stop().await?;
            }
            outcome.and(Err(Error::DeviceLost(name.to_string())))
        }
    }
}

/// Takes a device away, with its daemon.
async fn discard(netlink: &Netlink, control: &Control, index: u32) -> Result<(), Error> {
    match control {
        // A daemon takes its device with it.
        Control::Userspace(daemon) => daemon.stop().await,
        Control::Kernel(_) => netlink.delete(index).await,
    }
}

/// Port and mark as asked; the key and peers that are there, or a fresh key.
async fn take_over(
    options: &Options,
    control: &Control,
    reading: Option<Reading>,
) -> Result<(PrivateKey, BTreeMap<PublicKey, Peer>), Error> {
    let reading = reading.unwrap_or_default();
    let mut change = Change {
        port: (reading.port != options.port).then_some(options.port),
        fwmark: (reading.fwmark != options.fwmark).then_some(options.fwmark),
        ..Change::default()
    };
    let mut peers = BTreeMap::new();
    let private_key = match reading.private_key {
        Some(key) => {
            for found in reading.peers {
                let key = found.public_key;
                match kept(found) {
                    Some(peer) => {
                        peers.insert(key, peer);
                    }
                    None => {
                        tracing::warn!(peer = %key, "removing a peer that no session of ours made");
                        change.peers.push(PeerChange::Remove(key));
                    }
                }
            }
            key
        }
        None => {
            let key = PrivateKey::generate();
            change.private_key = Some(key.clone());
            change.replace_peers = true;
            key
        }
    };
    control.apply(&change).await?;
    Ok((private_key, peers))
}

/// A peer as an earlier agent set it: every one of ours has a preshared key and an endpoint.
fn kept(found: PeerReading) -> Option<Peer> {
    Some(Peer {
        public_key: found.public_key,
        preshared_key: found.preshared_key?,
        endpoint: found.endpoint?,
        prefixes: found.prefixes,
    })
}

async fn configure(
    options: &Options,
    netlink: &Netlink,
    control: &Control,
    link: Link,
    adopted: bool,
) -> Result<Device, Error> {
    let mtu = wanted_mtu(options, netlink).await?;
    netlink.configure(link.index, mtu, ALIAS).await?;
    Ok(Device {
        name: options.name.to_string(),
        index: link.index,
        mtu,
        backend: control.backend(),
        adopted,
    })
}

async fn wanted_mtu(options: &Options, netlink: &Netlink) -> Result<u32, Error> {
    match options.mtu {
        Some(chosen) => mtu::chosen(chosen),
        None => mtu::fitting(netlink, &options.underlay, options.fwmark).await,
    }
}

/// A daemon finds out only when its device comes up, and tells nobody.
fn check_port(port: u16) -> Result<(), Error> {
    let addresses: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    for address in addresses {
        match UdpSocket::bind((address, port)) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                return Err(Error::PortInUse(port));
            }
            _ => {}
        }
    }
    Ok(())
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
        self.health.send_replace(Health::Good);
        Ok(())
    }

    async fn install(&self, peer: Peer) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let wanted = normal(&peer.prefixes);
        for (holder, other) in state
            .peers
            .iter()
            .filter(|(key, _)| **key != peer.public_key)
        {
            let taken = wanted
                .iter()
                .find(|prefix| other.prefixes.iter().any(|held| overlap(held, prefix)));
            if let Some(prefix) = taken {
                return Err(Error::PrefixTaken {
                    prefix: *prefix,
                    holder: *holder,
                });
            }
        }
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

    async fn rekey(&self, key: PublicKey, preshared: PresharedKey) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if !state.peers.contains_key(&key) {
            return Err(Error::UnknownPeer(key));
        }
        self.apply(&state, PeerChange::Rekey(key, preshared.clone()))
            .await?;
        if let Some(peer) = state.peers.get_mut(&key) {
            peer.preshared_key = preshared;
        }
        Ok(())
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
        let mut peers: Vec<PeerStatus> = reading.peers.into_iter().map(status_of).collect();
        peers.sort_by_key(|peer| peer.public_key);
        Ok(Status {
            device: self.device(),
            public_key: self.public_key,
            port: reading.port,
            fwmark: reading.fwmark,
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
    }
}

/// Network addresses only, sorted, each once.
fn normal(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut prefixes: Vec<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Tunnel for WireGuard {
    fn public_key(&self) -> PublicKey {
        self.inner.public_key
    }

    fn port(&self) -> u16 {
        self.inner.options.port
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

    fn rekey(&self, peer: PublicKey, key: PresharedKey) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.rekey(peer, key).boxed()
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
