//! IPsec as a tunnel: ESP in tunnel mode with AES-256-GCM, on one XFRM device, keyed by sessions.
//!
//! # What an agent has to do
//!
//! The same as for WireGuard, and one thing more:
//!
//! 1. Hello carries [`Tunnel::public_key`]. It encrypts nothing here but is this node's name in this boot: part of
//!    every key's derivation, and a public key only so that a node can show that the name is its own
//!    ([`Tunnel::agree`]). [`Tunnel::port`] has no meaning for ESP and is that of IKE's NAT
//!    traversal, 4500, which nothing listens on. Both nodes of a session must have the same kind of tunnel; Hello
//!    has to say which, and another one's is refused by name.
//! 2. The session's exporter gives the secret, with both node IDs and both names as context: what is called the
//!    preshared key. [`Tunnel::install`] derives from it, for each direction and number, SPI and key. Nothing about
//!    SPIs or numbers has to be said between the nodes: both follow from the secret, and [`ratchet`](self::ratchet)
//!    keeps them together. A secret is good for one installation; the same peer with the same secret again is the
//!    same installation, and sets prefixes only.
//! 3. When both nodes have said that their tunnel is ready, the first session's packets pass: the source gate
//!    holds them until then. For a successor, [`Tunnel::activate`] has to be called when it has taken over (both
//!    nodes are ready, and the oldest epoch moves): only then packets leave under its keys, while everything that
//!    the peer still sends under the old ones is read for another 30 s.
//! 4. [`Peer::number`] becomes the request id of everything of this peer in the kernel, so that a gate can ask by
//!    which peer's association a packet came in (`bpf_skb_get_xfrm_state`).
//!    That gate has to ask before it holds a packet: what is held forgets its association. The kernel lets it pass
//!    by the gates' mark, [`IpsecOptions::marks`].
//! 5. Now and then [`Tunnel::stuck`]: these peers get new keys only by a new session.
//!
//! # Why nothing leaves in clear
//!
//! Packets get to the device by our routing table alone; behind each of its routes is a blackhole. The device
//! encrypts or drops: without a policy, and with a policy but no association, it gives an error. Outward policies
//! name the one association to be used. Inward, the kernel drops what came out of an association and does not
//! fit the policy of its source: another peer's prefix is not this one's to use, whatever it encrypts.
//!
//! # What the kernel can see
//!
//! Keys pass through netlink buffers that nobody wipes, and root can read them from the kernel (`ip xfrm state`),
//! as it can WireGuard's.

mod chain;
mod device;
mod kernel;
mod options;
mod peer;
mod ratchet;
mod spent;
mod store;
mod supervise;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Plain, PoisonError};

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use self::chain::{Chain, Direction};
use self::kernel::{SaId, Way, Xfrm};
pub(crate) use self::kernel::{association, policy};
pub use self::options::{IpsecOptions, Lifetime};
use self::peer::{Means, PeerState};
use self::spent::Spent;
use self::store::{KeptPeer, Store};
use crate::netlink::Netlink;
use crate::prefixes::{check_free, normal};
use crate::{Device, Error, Health, Peer, PresharedKey, PrivateKey, PublicKey};

/// For Hello, which wants a port.
const PORT: u16 = 4500;

/// The tunnel. Dropping it leaves device, associations and policies as they are: the next agent adopts them.
pub struct Ipsec {
    inner: Arc<Inner>,
    supervisor: JoinHandle<()>,
}

impl Drop for Ipsec {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

struct Inner {
    options: IpsecOptions,
    netlink: Netlink,
    xfrm: Xfrm,
    name: PrivateKey,
    public_key: PublicKey,
    state: Mutex<State>,
    device: Plain<Device>,
    /// The device is to be up: its gates stand.
    raised: AtomicBool,
    health: watch::Sender<Health>,
}

struct State {
    store: Store,
    peers: BTreeMap<PublicKey, PeerState>,
    /// Sessions whose keys were taken, removed peers' too. One of them again would be the same keys again.
    spent: Spent,
    detached: bool,
}

impl Ipsec {
    /// Makes the device, or adopts the one that an earlier agent left, with its peers. A new device is down:
    /// attach the gates, then call [`Tunnel::up`].
    pub async fn open(options: IpsecOptions) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let xfrm = Xfrm::open(options.interface, options.marks)?;
        let store = Store::open(&options.run_dir)?;
        let found = device::adopt(&options, &netlink).await?;
        let adopted = found.is_some();
        let link = match found {
            Some(link) => link,
            None => device::create(&options, &netlink).await?,
        };
        let set_up = async {
            probe_ciphers(&xfrm).await?;
            store.save()?;
            let peers = take_over(&xfrm, &store).await?;
            let device = device::configure(&options, &netlink, &link, adopted).await?;
            Ok((peers, device))
        };
        let (peers, device) = match set_up.await {
            Ok(parts) => parts,
            Err(error) => {
                if !adopted {
                    netlink.delete(link.index).await?;
                }
                return Err(error);
            }
        };
        let inner = Arc::new(Inner {
            public_key: store.kept.name.public_key(),
            name: store.kept.name.clone(),
            state: Mutex::new(State {
                store,
                peers,
                spent: Spent::default(),
                detached: false,
            }),
            device: Plain::new(device),
            raised: AtomicBool::new(false),
            health: watch::Sender::new(Health::Good),
            options,
            netlink,
            xfrm,
        });
        let supervisor = tokio::spawn(supervise::run(Arc::clone(&inner)));
        Ok(Self { inner, supervisor })
    }

    /// Refuses where a device of somebody else has the name; changes nothing.
    pub async fn refuse_foreign(options: &IpsecOptions) -> Result<(), Error> {
        device::adopt(options, &Netlink::open()?).await.map(drop)
    }

    /// Whether an earlier agent left a device. Somebody else's is none.
    pub async fn there(options: &IpsecOptions) -> Result<bool, Error> {
        match device::adopt(options, &Netlink::open()?).await {
            Ok(found) => Ok(found.is_some()),
            Err(Error::ForeignDevice { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes away what an earlier agent left, without making a device if there is none. Says whether there was
    /// one.
    pub async fn remove_left_over(options: &IpsecOptions) -> Result<bool, Error> {
        let netlink = Netlink::open()?;
        clear(&Xfrm::open(options.interface, options.marks)?).await?;
        let found = device::adopt(options, &netlink).await?;
        if let Some(link) = &found {
            netlink.delete(link.index).await?;
        }
        Store::delete(&options.run_dir)?;
        Ok(found.is_some())
    }
}

/// Removes every association and policy of ours.
async fn clear(xfrm: &Xfrm) -> Result<(), Error> {
    for id in xfrm.associations().await?.into_keys() {
        xfrm.delete(id).await?;
    }
    for id in xfrm.policies().await?.into_keys() {
        xfrm.delete_policy(id).await?;
    }
    Ok(())
}

/// Whether the kernel has ESP and its cipher, found by an association that is removed at once and leads
/// nowhere (RFC 5737).
async fn probe_ciphers(xfrm: &Xfrm) -> Result<(), Error> {
    let mut secret = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(secret.as_mut()).map_err(|_| Error::Derivation)?;
    let nobody = PublicKey::new([0; 32]);
    let mut chain = Chain::new(PresharedKey::new(secret), nobody, nobody);
    for addresses in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
        let [Ok(source), Ok(destination)] = addresses.map(str::parse) else {
            continue;
        };
        let material = chain.next(Direction::Out)?;
        let id = SaId {
            source,
            destination,
            spi: material.spi,
        };
        xfrm.add(id, 1, material, Lifetime::default(), 1).await?;
        xfrm.delete(id).await?;
    }
    Ok(())
}

/// For [`crate::probe`].
pub(crate) async fn probe(netlink: &Netlink, trial: &str) -> Result<(), Error> {
    let mut options = IpsecOptions::new("");
    // Somebody's own device must not be in the way, nor this one in anybody's.
    options.interface = 0x6866_7072;
    options.name = trial.parse()?;
    options.mtu = Some(1280);
    let link = match device::create(&options, netlink).await {
        Err(Error::Occupied { .. }) => netlink
            .link(trial)
            .await?
            .ok_or(Error::DeviceLost(trial.into()))?,
        made => made?,
    };
    let probed = probe_ciphers(&Xfrm::open(options.interface, options.marks)?).await;
    netlink.delete(link.index).await?;
    probed
}

/// Peers that an earlier agent left in the kernel; whatever else is there under our interface id goes.
async fn take_over(xfrm: &Xfrm, store: &Store) -> Result<BTreeMap<PublicKey, PeerState>, Error> {
    let associations = xfrm.associations().await?;
    let policies = xfrm.policies().await?;
    let mut peers = BTreeMap::new();
    for kept in &store.kept.peers {
        let theirs = associations.iter();
        let theirs = theirs.filter(|(_, reading)| reading.number == kept.number);
        let theirs: Vec<SaId> = theirs.map(|(id, _)| *id).collect();
        let out = policies.iter().find(|(id, policy)| {
            id.way == Way::Out && policy.number == kept.number && policy.spi != 0
        });
        let sending = out.map(|(_, policy)| SaId {
            source: kept.local,
            destination: kept.remote,
            spi: policy.spi,
        });
        peers.insert(
            kept.public_key(),
            PeerState::adopted(kept.clone(), theirs, sending),
        );
    }
    let known = |number: u32| {
        peers
            .values()
            .any(|peer: &PeerState| peer.kept.number == number)
    };
    for (id, reading) in associations {
        if !known(reading.number) {
            tracing::warn!(
                spi = id.spi,
                "removing a security association that no session of ours made"
            );
            xfrm.delete(id).await?;
        }
    }
    for (id, policy) in policies {
        if !known(policy.number) {
            tracing::warn!(prefix = %id.prefix, "removing a policy that no session of ours made");
            xfrm.delete_policy(id).await?;
        }
    }
    Ok(peers)
}

impl Inner {
    const fn means(&self) -> Means<'_> {
        Means {
            xfrm: &self.xfrm,
            options: &self.options,
        }
    }

    fn device(&self) -> Device {
        self.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes the device anew after it was deleted. Associations and policies outlive it.
    async fn restore(&self) -> Result<(), Error> {
        let state = self.state.lock().await;
        if state.detached {
            return Ok(());
        }
        let link = device::create(&self.options, &self.netlink).await?;
        let device = match device::configure(&self.options, &self.netlink, &link, false).await {
            Ok(device) => device,
            Err(error) => {
                self.netlink.delete(link.index).await?;
                return Err(error);
            }
        };
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = device.clone();
        self.health.send_replace(Health::Replaced { device });
        Ok(())
    }

    async fn up(&self) -> Result<(), Error> {
        let outcome = self.netlink.set_up(self.device().index).await;
        outcome.map_err(|error| match error.raw_os_error() {
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

    /// Takes away what somebody else has put under our interface id, and puts back policies of ours that are gone or
    /// changed. Says what that was. Associations that are gone come again with new keys only.
    async fn mend(&self) -> Result<Vec<String>, Error> {
        let mut state = self.state.lock().await;
        if state.detached {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let numbers: BTreeSet<u32> = state.peers.values().map(|peer| peer.kept.number).collect();
        for (id, reading) in self.xfrm.associations().await? {
            if !numbers.contains(&reading.number) {
                let spi = id.spi;
                found.push(format!(
                    "security association {spi:#010x}, which no session of ours made, is removed"
                ));
                self.xfrm.delete(id).await?;
            }
        }
        let policies = self.xfrm.policies().await?;
        for (id, policy) in &policies {
            if !numbers.contains(&policy.number) {
                let prefix = id.prefix;
                found.push(format!(
                    "a policy for {prefix}, which no session of ours made, is removed"
                ));
                self.xfrm.delete_policy(*id).await?;
            }
        }
        for peer in state.peers.values_mut() {
            if !peer.has_policies(&policies) {
                let key = peer.kept.public_key();
                found.push(format!(
                    "policies of peer {key} were removed or changed, and are ours again"
                ));
                peer.set_policies(self.means()).await?;
            }
        }
        let device = self.device();
        let link = self.netlink.link_at(device.index).await?;
        if let Some(link) = link.filter(|link| link.mtu != device.mtu) {
            found.push(format!(
                "its MTU was {}, and is {} again",
                link.mtu, device.mtu
            ));
            device::configure(&self.options, &self.netlink, &link, false).await?;
        }
        Ok(found)
    }

    async fn install(&self, peer: Peer) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let key = peer.public_key;
        let prefixes = normal(&peer.prefixes);
        let others = state.peers.iter().filter(|(other, _)| **other != key);
        check_free(
            &prefixes,
            others.map(|(key, other)| (key, &*other.kept.prefixes)),
        )?;
        let mut others = state.peers.iter().filter(|(other, _)| **other != key);
        if let Some((holder, _)) = others.find(|(_, other)| other.kept.number == peer.number) {
            return Err(Error::NumberTaken {
                number: peer.number,
                holder: *holder,
            });
        }
        let remote = peer.endpoint.ip();
        let kept = KeptPeer {
            key: *key.as_bytes(),
            number: peer.number,
            local: self.netlink.source(remote, self.options.fwmark).await?,
            remote,
            prefixes,
        };
        let former = state.peers.get(&key).map(|there| there.kept.path());
        if former.is_some_and(|former| former != kept.path()) {
            // Another address of the peer, or of ours: nothing that was installed fits it.
            self.remove_from(&mut state, key).await?;
        }
        self.set_up(&mut state, kept, peer.preshared_key).await
    }

    async fn set_up(
        &self,
        state: &mut State,
        kept: KeptPeer,
        secret: PresharedKey,
    ) -> Result<(), Error> {
        let key = kept.public_key();
        let chain = Chain::new(secret, self.public_key, key);
        let fingerprint = chain.fingerprint()?;
        state.store.set(kept.clone())?;
        let there = state
            .peers
            .entry(key)
            .or_insert_with(|| PeerState::new(kept.clone()));
        there.kept = kept;
        if !there.has(&fingerprint) {
            if !state.spent.take(fingerprint) {
                return Err(Error::SecretSpent);
            }
            there.install(self.means(), chain).await?;
        }
        there.set_policies(self.means()).await
    }

    async fn activate(&self, key: PublicKey) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        match state.peers.get_mut(&key) {
            Some(peer) => peer.activate(self.means()).await,
            None => Err(Error::UnknownPeer(key)),
        }
    }

    async fn remove(&self, key: PublicKey) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        self.remove_from(&mut state, key).await
    }

    async fn remove_from(&self, state: &mut State, key: PublicKey) -> Result<(), Error> {
        if let Some(peer) = state.peers.get(&key) {
            peer.remove(self.means()).await?;
            state.peers.remove(&key);
        }
        state.store.remove(key)
    }

    /// Has every peer's keys change that are to. Says which do not although they were to be `forced`.
    async fn tend(&self, forced: bool) -> Result<Vec<PublicKey>, Error> {
        let mut state = self.state.lock().await;
        let readings = self.xfrm.associations().await?;
        let mut unable = Vec::new();
        let mut outcome = Ok(());
        for (key, peer) in &mut state.peers {
            // What was heard is taken in first, so that the answer is that of this moment.
            let mut tended = peer.tend(self.means(), &readings, false).await;
            if forced && tended.is_ok() && peer.may_rotate() {
                tended = peer.tend(self.means(), &readings, true).await;
            } else if forced {
                unable.push(*key);
            }
            // One peer's trouble is not the others'.
            outcome = outcome.and(tended);
        }
        outcome.map(|()| unable)
    }

    /// Peers that are silent, or a key of theirs could not be installed.
    async fn stuck(&self) -> Result<Vec<PublicKey>, Error> {
        let state = self.state.lock().await;
        let readings = self.xfrm.associations().await?;
        let stuck = state.peers.iter();
        let stuck = stuck.filter(|(_, peer)| peer.is_stuck(self.means(), &readings));
        Ok(stuck.map(|(key, _)| *key).collect())
    }

    async fn detach(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        state.detached = true;
        state.peers.clear();
        Ipsec::remove_left_over(&self.options).await?;
        Ok(())
    }
}
