//! The tunnel's worker, driven order by order, with tunnels that note what is done to them.

mod calls;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use handfast_encrypt::{
    Backend, Device, Error, Health, Losses, Peer, PeerStatus, PresharedKey, PublicKey, StaticKey,
    Status, Tunnel,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::tunnel_work::RETRY;
use super::tunnel_worker::{Devices, Outcome, QUEUE, Rotation, TunnelWorker};
use super::tunnels::{Slot, TunnelKeys};
use crate::core::{ConnId, PeerNumber};

/// What all devices of one lab share.
#[derive(Default)]
struct Log {
    done: Mutex<Vec<String>>,
    broken: Mutex<bool>,
    /// No peer answers.
    deaf: Mutex<bool>,
    /// Fresh keys that were made.
    made: Mutex<u8>,
}

/// A device that notes what is done to it, and fails or hangs when it is told to.
#[derive(Clone, Default)]
struct Fake {
    log: Arc<Log>,
    number: u32,
    key: u8,
    hangs: bool,
    /// Changes its keys in place.
    alone: bool,
    peers: Arc<Mutex<Vec<Peer>>>,
}

impl Fake {
    fn answer(&self, what: String) -> BoxFuture<'_, Result<(), Error>> {
        if self.hangs {
            return std::future::pending().boxed();
        }
        let broken = *self.log.broken.lock().unwrap();
        self.log
            .done
            .lock()
            .unwrap()
            .push(format!("{}{what}", self.number));
        let answer = if broken {
            Err(Error::DeviceLost("hf-wg0".into()))
        } else {
            Ok(())
        };
        std::future::ready(answer).boxed()
    }
}

impl Tunnel for Fake {
    fn public_key(&self) -> PublicKey {
        PublicKey::new([self.key; 32])
    }
    fn agree(&self, _: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        None
    }
    fn port(&self) -> u16 {
        51872 + u16::try_from(self.number).unwrap()
    }
    fn device(&self) -> Device {
        Device {
            name: format!("hf-wg{}", self.number),
            index: 10 + self.number,
            mtu: 1400,
            backend: Backend::Userspace,
            adopted: false,
        }
    }
    fn up(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.answer("up".into())
    }
    fn install(&self, peer: Peer) -> BoxFuture<'_, Result<(), Error>> {
        let name = format!("+{}", peer.public_key.as_bytes()[0]);
        self.peers.lock().unwrap().push(peer);
        self.answer(name)
    }
    fn beside(&self, key: StaticKey) -> BoxFuture<'_, Result<Option<Arc<dyn Tunnel>>, Error>> {
        if self.alone {
            return std::future::ready(Ok(None)).boxed();
        }
        let key = match key {
            StaticKey::Same => self.key,
            StaticKey::Fresh => {
                let mut made = self.log.made.lock().unwrap();
                *made += 1;
                100 + *made
            }
        };
        let second = Self {
            number: 1 - self.number,
            key,
            peers: Arc::default(),
            ..self.clone()
        };
        std::future::ready(Ok(Some(Arc::new(second) as Arc<dyn Tunnel>))).boxed()
    }
    fn shakes_hands(&self) -> bool {
        !self.alone
    }
    fn installed(&self, peer: PublicKey) -> BoxFuture<'_, Option<Peer>> {
        let peers = self.peers.lock().unwrap();
        let found = peers.iter().find(|there| there.public_key == peer);
        std::future::ready(found.cloned()).boxed()
    }
    fn rouse(&self, peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        self.answer(format!("!{}", peer.as_bytes()[0]))
    }
    fn activate(&self, peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        self.answer(format!("={}", peer.as_bytes()[0]))
    }
    fn rotate(&self) -> BoxFuture<'_, Result<Vec<PublicKey>, Error>> {
        std::future::ready(Ok(vec![PublicKey::new([12; 32])])).boxed()
    }
    fn remove(&self, key: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        self.answer(format!("-{}", key.as_bytes()[0]))
    }
    /// Every peer has answered, or none.
    fn status(&self) -> BoxFuture<'_, Result<Status, Error>> {
        if self.hangs {
            return std::future::pending().boxed();
        }
        let answered = !*self.log.deaf.lock().unwrap();
        let peers = self.peers.lock().unwrap();
        let peers = peers.iter().map(|peer| PeerStatus {
            public_key: peer.public_key,
            endpoint: Some(peer.endpoint),
            prefixes: Vec::new(),
            preshared: true,
            last_handshake: answered.then(SystemTime::now),
            received_bytes: 0,
            sent_bytes: 0,
            refused_packets: None,
        });
        let status = Status {
            device: self.device(),
            public_key: self.public_key(),
            port: self.port(),
            fwmark: 0,
            losses: Losses::default(),
            peers: peers.collect(),
        };
        std::future::ready(Ok(status)).boxed()
    }
    fn watch(&self) -> watch::Receiver<Health> {
        watch::Sender::new(Health::Good).subscribe()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.answer("detach".into())
    }
}

/// The key of the device that is there at first.
const OWN: u8 = 99;

struct Lab {
    log: Arc<Log>,
    worker: TunnelWorker,
    heard: mpsc::Receiver<Outcome>,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(fake: Fake) -> Self {
        Self::again(fake, tempfile::tempdir().unwrap(), &[])
    }

    fn again(fake: Fake, dir: tempfile::TempDir, standing: &[u32]) -> Self {
        let log = Arc::clone(&fake.log);
        let keys = TunnelKeys::open(dir.path()).unwrap();
        let standing = standing.iter().map(|peer| PeerNumber(*peer)).collect();
        let tunnel: Arc<dyn Tunnel> = Arc::new(Fake { key: OWN, ..fake });
        let devices = Devices::from([(Slot::First, Arc::clone(&tunnel))]);
        let (worker, heard) = TunnelWorker::start(devices, tunnel, keys, &standing);
        Self {
            log,
            worker,
            heard,
            dir,
        }
    }

    fn install(&self, conn: u64, peer: u32, key: u8) {
        self.install_under(conn, peer, key, OWN);
    }

    fn install_under(&self, conn: u64, peer: u32, key: u8, own: u8) {
        let own = PublicKey::new([own; 32]);
        let ordered = self
            .worker
            .install(ConnId(conn), PeerNumber(peer), wanted(peer, key), own);
        ordered.unwrap();
    }

    /// The next outcome; gates are set at once, as the loop does.
    async fn hear(&mut self) -> Outcome {
        loop {
            let heard = timeout(Duration::from_secs(10), self.heard.recv()).await;
            match heard.unwrap().unwrap() {
                Outcome::Guard(device, done) => self.gate("guard", &device, done),
                Outcome::Unguard(device, done) => self.gate("unguard", &device, done),
                outcome => return outcome,
            }
        }
    }

    fn gate(&self, what: &str, device: &Device, done: super::tunnel_worker::Done) {
        let what = format!("{}{what}", device.index - 10);
        self.log.done.lock().unwrap().push(what);
        done.send(Ok(())).unwrap();
    }

    async fn installed(&mut self, conn: u64) {
        let heard = self.hear().await;
        assert!(
            matches!(heard, Outcome::Installed(ConnId(c)) if c == conn),
            "{heard:?}"
        );
    }

    /// Until one device is left; keys' time has to pass.
    async fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.worker.standing().devices.len() > 1 {
            assert!(Instant::now() < deadline);
            let _ = timeout(Duration::from_millis(100), self.hear()).await;
        }
    }

    fn key(&self, peer: u32) -> Option<(Slot, PublicKey)> {
        let places = self
            .worker
            .standing()
            .peers
            .get(&PeerNumber(peer))
            .copied()?;
        Some((places.active.slot, places.active.key()))
    }

    fn break_down(&self, broken: bool) {
        *self.log.broken.lock().unwrap() = broken;
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log.done.lock().unwrap())
    }

    async fn stop(mut self) -> tempfile::TempDir {
        self.worker.stop(Duration::from_secs(5)).await;
        self.dir
    }
}

fn wanted(peer: u32, key: u8) -> Peer {
    Peer {
        number: peer,
        public_key: PublicKey::new([key; 32]),
        preshared_key: PresharedKey::new(Zeroizing::new([9; 32])),
        endpoint: "192.0.2.1:1".parse().unwrap(),
        prefixes: Vec::new(),
    }
}

#[tokio::test]
async fn orders_are_carried_out_in_their_order() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.worker.remove(PeerNumber(1)).unwrap();
    lab.install(2, 1, 11);
    lab.worker.activate(PeerNumber(1)).unwrap();
    lab.install(3, 2, 12);
    for conn in [1, 2, 3] {
        lab.installed(conn).await;
    }
    assert_eq!(lab.take(), ["0+11", "0-11", "0+11", "0=11", "0+12"]);
    assert_eq!(lab.key(1), Some((Slot::First, PublicKey::new([11; 32]))));
}

#[tokio::test]
async fn a_peers_new_key_is_hosted_beside_its_former_one_until_both_nodes_are_ready() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.install(2, 2, 12);
    lab.installed(1).await;
    lab.installed(2).await;
    lab.take();
    lab.install(3, 1, 21);
    lab.installed(3).await;
    // The gates before the device is up; and our node speaks first, since only it knows where.
    assert_eq!(lab.take(), ["1guard", "1up", "1+21", "1!21"]);
    assert_eq!(lab.key(1).unwrap().0, Slot::First, "until both are ready");
    lab.worker.activate(PeerNumber(1)).unwrap();
    assert!(matches!(lab.hear().await, Outcome::Moved));
    assert_eq!(lab.key(1), Some((Slot::Second, PublicKey::new([21; 32]))));
    assert_eq!(lab.take(), ["1=21"], "the former key stays for a while");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(lab.take(), ["0-11"]);
    // The other peer is where it was: two devices, until one is needed.
    assert_eq!(lab.worker.standing().devices.len(), 2);
    assert_eq!(lab.worker.current().port(), 51872);
}

#[tokio::test]
async fn a_move_that_one_agent_began_is_ended_by_the_next() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.installed(1).await;
    lab.install(2, 1, 21);
    lab.installed(2).await;
    let dir = lab.stop().await;
    let of = |number, key| -> Arc<dyn Tunnel> {
        let log = Arc::default();
        Arc::new(Fake {
            log,
            number,
            key,
            ..Fake::default()
        })
    };
    let devices = Devices::from([(Slot::First, of(0, OWN)), (Slot::Second, of(1, OWN))]);
    let keys = TunnelKeys::open(dir.path()).unwrap();
    let current = Arc::clone(&devices[&Slot::First]);
    let standing = [PeerNumber(1)].into();
    let (worker, mut heard) = TunnelWorker::start(devices, current, keys, &standing);
    worker.activate(PeerNumber(1)).unwrap();
    let moved = timeout(Duration::from_secs(10), heard.recv()).await;
    assert!(matches!(moved.unwrap(), Some(Outcome::Moved)));
    let places = worker.standing().peers[&PeerNumber(1)];
    assert_eq!(places.active.key(), PublicKey::new([21; 32]));
    assert_eq!(places.other.map(|former| former.slot), Some(Slot::First));
}

#[tokio::test]
async fn a_node_whose_own_key_changes_waits_for_its_peers_and_drops_the_empty_device() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.installed(1).await;
    lab.take();
    let begun = lab.worker.rotate().unwrap();
    let key = match lab.hear().await {
        Outcome::Key(key, 51873) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(begun.await.unwrap().unwrap(), Rotation::NewKey(key));
    let again = lab.worker.rotate().unwrap().await.unwrap().unwrap_err();
    assert!(again.to_string().contains("nothing was changed"), "{again}");
    lab.install_under(2, 1, 11, key.as_bytes()[0]);
    // It is the peer that speaks first.
    lab.installed(2).await;
    assert_eq!(lab.take(), ["1guard", "1up", "1+11"]);
    lab.worker.activate(PeerNumber(1)).unwrap();
    assert!(matches!(lab.hear().await, Outcome::Moved));
    lab.settle().await;
    assert_eq!(lab.take(), ["1=11", "0-11", "0detach", "0unguard"]);
    // What a session under the former key wants comes too late.
    lab.install(3, 1, 11);
    assert!(matches!(
        lab.hear().await,
        Outcome::NotInstalled(ConnId(3), _)
    ));
}

#[tokio::test]
async fn peers_gather_on_one_device_before_an_own_key_changes() {
    let mut lab = Lab::new(Fake::default());
    for (conn, peer, key) in [(1, 1, 11), (2, 2, 12), (3, 1, 21)] {
        lab.install(conn, peer, key);
        lab.installed(conn).await;
    }
    lab.worker.activate(PeerNumber(1)).unwrap();
    assert!(matches!(lab.hear().await, Outcome::Moved));
    let begun = lab.worker.rotate().unwrap();
    let key = loop {
        if let Outcome::Key(key, port) = lab.hear().await {
            assert_eq!(port, 51873);
            break key;
        }
    };
    assert_eq!(begun.await.unwrap().unwrap(), Rotation::NewKey(key));
    assert_eq!(lab.key(1), Some((Slot::First, PublicKey::new([21; 32]))));
    assert_eq!(lab.key(2), Some((Slot::First, PublicKey::new([12; 32]))));
    let done = lab.take().join(" ");
    assert!(done.ends_with("1-21 1detach 1unguard 1guard 1up"), "{done}");
}

#[tokio::test]
async fn when_everybody_has_moved_that_device_is_the_tunnel() {
    let mut lab = Lab::new(Fake::default());
    for (conn, key) in [(1, 11), (2, 21)] {
        lab.install(conn, 1, key);
        lab.installed(conn).await;
    }
    lab.worker.activate(PeerNumber(1)).unwrap();
    lab.settle().await;
    assert_eq!(lab.worker.current().port(), 51873);
    assert_eq!(lab.worker.current().public_key(), PublicKey::new([OWN; 32]));
    lab.install(3, 2, 12);
    lab.installed(3).await;
    assert_eq!(lab.key(2).unwrap().0, Slot::Second);
}

#[tokio::test]
async fn a_kind_that_changes_keys_in_place_has_a_session_opened_where_it_cannot() {
    let mut lab = Lab::new(Fake {
        alone: true,
        ..Fake::default()
    });
    for (conn, peer, key) in [(1, 1, 11), (2, 2, 12)] {
        lab.install(conn, peer, key);
        lab.installed(conn).await;
    }
    let begun = lab.worker.rotate().unwrap().await.unwrap().unwrap();
    assert_eq!(begun, Rotation::InPlace(vec![PeerNumber(2)]));
    assert!(matches!(lab.hear().await, Outcome::Stuck(peers) if peers == [PeerNumber(2)]));
    lab.take();
    lab.install(3, 1, 31);
    lab.installed(3).await;
    assert_eq!(lab.take(), ["0-11", "0+31"], "it has no second device");
}

#[tokio::test]
async fn a_device_that_hangs_stalls_nobody_else() {
    let mut lab = Lab::new(Fake {
        hangs: true,
        ..Fake::default()
    });
    lab.install(1, 1, 11);
    lab.worker.remove(PeerNumber(1)).unwrap();
    let asked = Instant::now();
    assert!(lab.worker.statuses().await.is_empty());
    lab.worker.stop(Duration::ZERO).await;
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert!(lab.worker.remove(PeerNumber(1)).is_err(), "it has stopped");
}

#[tokio::test]
async fn more_than_fits_the_queue_fails_at_once() {
    let lab = Lab::new(Fake {
        hangs: true,
        ..Fake::default()
    });
    for conn in 0..QUEUE as u64 {
        lab.install(conn, 1, 11);
    }
    let own = PublicKey::new([OWN; 32]);
    let refused = lab
        .worker
        .install(ConnId(5), PeerNumber(2), wanted(2, 12), own);
    assert!(refused.is_err());
    lab.worker.remove(PeerNumber(1)).unwrap();
}

#[tokio::test]
async fn a_key_of_another_peer_is_refused() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.install(2, 2, 11);
    lab.installed(1).await;
    assert!(matches!(
        lab.hear().await,
        Outcome::NotInstalled(ConnId(2), _)
    ));
    assert_eq!(lab.take(), ["0+11"]);
}

#[tokio::test]
async fn a_removal_that_failed_is_made_up_for_before_the_key_comes_again() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.hear().await;
    lab.break_down(true);
    lab.worker.remove(PeerNumber(1)).unwrap();
    assert!(matches!(lab.hear().await, Outcome::NotRemoved(..)));
    lab.break_down(false);
    lab.take();
    lab.install(2, 1, 11);
    lab.installed(2).await;
    assert_eq!(lab.take(), ["0-11", "0+11"]);
}

#[tokio::test]
async fn a_removal_that_failed_is_tried_again_by_itself() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.hear().await;
    lab.break_down(true);
    lab.worker.remove(PeerNumber(1)).unwrap();
    lab.hear().await;
    lab.break_down(false);
    tokio::time::sleep(RETRY + Duration::from_millis(500)).await;
    assert_eq!(lab.key(1), None);
}

#[tokio::test]
async fn a_takeover_that_failed_is_tried_again_by_itself() {
    let mut lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.installed(1).await;
    lab.break_down(true);
    lab.worker.activate(PeerNumber(1)).unwrap();
    assert!(matches!(lab.hear().await, Outcome::Trouble(_)));
    lab.break_down(false);
    lab.take();
    let again = async {
        while !lab.take().contains(&"0=11".to_owned()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(20 * RETRY, again).await.unwrap();
}

#[tokio::test]
async fn the_next_run_removes_what_has_no_session() {
    let lab = Lab::new(Fake::default());
    lab.install(1, 1, 11);
    lab.install(2, 2, 12);
    let dir = lab.stop().await;
    let lab = Lab::again(Fake::default(), dir, &[2]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.take(), ["0-11"]);
    assert_eq!((lab.key(1), lab.key(2).is_some()), (None, true));
}
