//! IPsec as the agent sees it: one kind of [`Tunnel`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::kernel::{Reading, SaId};
use super::peer::PeerState;
use super::{Inner, Ipsec, PORT};
use crate::{Device, Error, Health, Peer, PeerStatus, PublicKey, Status, Tunnel};

impl Tunnel for Ipsec {
    fn public_key(&self) -> PublicKey {
        self.inner.public_key
    }

    fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        self.inner.name.agree(other)
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn rotate(&self) -> BoxFuture<'_, Result<Vec<PublicKey>, Error>> {
        self.inner.tend(true).boxed()
    }

    fn stuck(&self) -> BoxFuture<'_, Result<Vec<PublicKey>, Error>> {
        self.inner.stuck().boxed()
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

    fn activate(&self, peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        self.inner.activate(peer).boxed()
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

impl Inner {
    async fn status(&self) -> Result<Status, Error> {
        let state = self.state.lock().await;
        let readings = self.xfrm.associations().await?;
        let link = self.netlink.link_at(self.device().index).await?;
        let peers = state.peers.values();
        Ok(Status {
            device: self.device(),
            public_key: self.public_key,
            port: PORT,
            fwmark: self.options.fwmark,
            losses: link.map(|link| link.losses).unwrap_or_default(),
            peers: peers.map(|peer| status_of(peer, &readings)).collect(),
        })
    }
}

fn status_of(peer: &PeerState, readings: &BTreeMap<SaId, Reading>) -> PeerStatus {
    let kept = &peer.kept;
    let theirs = readings.iter();
    let theirs: Vec<_> = theirs
        .filter(|(_, reading)| reading.number == kept.number)
        .collect();
    let bytes = |inward: bool| {
        let ways = theirs.iter();
        let ways = ways.filter(|(id, _)| (id.destination == kept.local) == inward);
        ways.map(|(_, reading)| reading.bytes).sum()
    };
    let made = peer
        .since()
        .and_then(|since| SystemTime::now().checked_sub(since.elapsed()));
    let heard = theirs.iter().filter_map(|(id, reading)| {
        let inward = id.destination == kept.local;
        reading.used.filter(|_| inward).map(Duration::from_secs)
    });
    PeerStatus {
        public_key: kept.public_key(),
        endpoint: Some(SocketAddr::new(kept.remote, PORT)),
        prefixes: kept.prefixes.clone(),
        preshared: !theirs.is_empty(),
        // Keys that nothing was received under yet are as good as none.
        last_handshake: made.filter(|_| heard.max().is_some()),
        received_bytes: bytes(true),
        sent_bytes: bytes(false),
        refused_packets: Some(
            theirs
                .iter()
                .map(|(_, reading)| reading.replayed + reading.forged)
                .sum(),
        ),
    }
}
