//! Carries out what is wanted of the tunnel, in order and beside the agent's loop: a WireGuard daemon that hangs
//! may keep new sessions waiting, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use handfast_encrypt::{Peer, PublicKey, Status, Tunnel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::RunError;
use super::tunnels::TunnelKeys;
use crate::core::{ConnId, PeerNumber};

/// Installations that wait for the worker; one that finds no room has failed, and the core tries again.
const QUEUE: usize = 1024;
/// Outcomes that wait for the loop.
const OUTCOMES: usize = 64;
/// How often a removal that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long a person who asks for the state of things waits for the tunnel's.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// What has become of an order.
#[derive(Debug)]
pub(super) enum Outcome {
    Installed(ConnId),
    NotInstalled(ConnId, RunError),
    /// It is tried again.
    NotRemoved(PeerNumber, RunError),
}

enum Order {
    Install(ConnId, PeerNumber, Box<Peer>, OwnedSemaphorePermit),
    Remove(PeerNumber),
}

/// The agent's end.
pub(super) struct TunnelWorker {
    tunnel: Arc<dyn Tunnel>,
    /// Absent once it was stopped.
    orders: Option<mpsc::UnboundedSender<Order>>,
    room: Arc<Semaphore>,
    keys: watch::Receiver<BTreeMap<PeerNumber, PublicKey>>,
    task: JoinHandle<()>,
}

impl TunnelWorker {
    /// Starts the worker. Peers without a session (`standing`) lose their tunnels: an earlier run was to remove
    /// them and did not get to it.
    pub(super) fn start(
        tunnel: Arc<dyn Tunnel>,
        keys: TunnelKeys,
        standing: &BTreeSet<PeerNumber>,
    ) -> (Self, mpsc::Receiver<Outcome>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (outcomes, heard) = mpsc::channel(OUTCOMES);
        let published = watch::Sender::new(keys.all().clone());
        let watched = published.subscribe();
        let leaving = keys.all().keys().filter(|peer| !standing.contains(peer));
        let work = Work {
            leaving: leaving.copied().collect(),
            tunnel: Arc::clone(&tunnel),
            keys,
            published,
            outcomes,
        };
        let worker = Self {
            tunnel,
            orders: Some(orders),
            room: Arc::new(Semaphore::new(QUEUE)),
            keys: watched,
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
    ) -> Result<(), RunError> {
        let full = || RunError::Refused("too many tunnels wait to be installed".into());
        let permit = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| full())?;
        self.order(Order::Install(conn, number, Box::new(peer), permit))
    }

    /// Takes a peer out of the tunnel, after what was ordered before. There are no more of these than of
    /// installations, and none is refused.
    pub(super) fn remove(&self, peer: PeerNumber) -> Result<(), RunError> {
        self.order(Order::Remove(peer))
    }

    fn order(&self, order: Order) -> Result<(), RunError> {
        let stopped = || RunError::Refused("the tunnel's worker has stopped".into());
        let orders = self.orders.as_ref().ok_or_else(stopped)?;
        orders.send(order).map_err(|_| stopped())
    }

    /// The key of a peer that is in the tunnel, or is on its way in or out.
    pub(super) fn key(&self, peer: PeerNumber) -> Option<PublicKey> {
        self.keys.borrow().get(&peer).copied()
    }

    /// The tunnel as it is; nothing if it does not say so soon.
    pub(super) async fn status(&self) -> Option<Status> {
        let status = timeout(STATUS_PATIENCE, self.tunnel.status()).await;
        status.ok()?.ok()
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

struct Work {
    tunnel: Arc<dyn Tunnel>,
    keys: TunnelKeys,
    /// To be removed, and not removed yet.
    leaving: BTreeSet<PeerNumber>,
    published: watch::Sender<BTreeMap<PeerNumber, PublicKey>>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Work {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut again = interval(RETRY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.carry_out(order).await,
                    None => return,
                },
                _ = again.tick(), if !self.leaving.is_empty() => {
                    self.remove_leaving().await;
                    None
                }
            };
            self.published.send_if_modified(|published| {
                let changed = *published != *self.keys.all();
                published.clone_from(self.keys.all());
                changed
            });
            if let Some(outcome) = outcome
                && self.outcomes.send(outcome).await.is_err()
            {
                return;
            }
        }
    }

    async fn carry_out(&mut self, order: Order) -> Option<Outcome> {
        match order {
            Order::Install(conn, number, peer, _permit) => {
                Some(match self.install(number, *peer).await {
                    Ok(()) => Outcome::Installed(conn),
                    Err(error) => Outcome::NotInstalled(conn, error),
                })
            }
            Order::Remove(peer) => {
                self.leaving.insert(peer);
                let error = self.remove(peer).await.err()?;
                Some(Outcome::NotRemoved(peer, error))
            }
        }
    }

    async fn install(&mut self, number: PeerNumber, peer: Peer) -> Result<(), RunError> {
        let key = peer.public_key;
        if let Some(holder) = self.keys.holder(key, number) {
            return Err(RunError::Refused(format!(
                "peer {number} has the tunnel key {key} of peer {holder}"
            )));
        }
        // A prefix has one holder in the device: the key of the peer's former boot goes first. Running keys of a
        // session that was cut go before the same key comes again.
        let former = self.keys.get(number);
        if self.leaving.contains(&number) || former.is_some_and(|former| former != key) {
            self.remove(number).await?;
        }
        let renewal = self.keys.get(number).is_some();
        self.keys.set(number, key)?;
        let installed = self.tunnel.install(peer).await;
        if installed.is_err() && !renewal {
            // It may be in the device all the same.
            self.leaving.insert(number);
        }
        Ok(installed?)
    }

    /// Until one fails again, which the others would too, and orders wait.
    async fn remove_leaving(&mut self) {
        while let Some(peer) = self.leaving.first().copied() {
            if let Err(error) = self.remove(peer).await {
                tracing::warn!(%peer, %error, "a tunnel is still not removed");
                return;
            }
        }
    }

    async fn remove(&mut self, peer: PeerNumber) -> Result<(), RunError> {
        if let Some(key) = self.keys.get(peer) {
            self.tunnel.remove(key).await?;
            self.keys.remove(peer)?;
        }
        self.leaving.remove(&peer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use handfast_encrypt::{Backend, Device, Error, Health, PresharedKey};
    use zeroize::Zeroizing;

    use super::*;

    /// A tunnel that notes what is done to it, and fails or hangs when it is told to.
    #[derive(Default)]
    struct Fake {
        done: Mutex<Vec<String>>,
        broken: Mutex<bool>,
        hangs: bool,
    }

    impl Fake {
        fn answer(&self, what: String) -> BoxFuture<'_, Result<(), Error>> {
            if self.hangs {
                return std::future::pending().boxed();
            }
            let broken = *self.broken.lock().unwrap();
            self.done.lock().unwrap().push(what);
            let answer = if broken {
                Err(Error::DeviceLost("hf-wg0".into()))
            } else {
                Ok(())
            };
            std::future::ready(answer).boxed()
        }

        fn break_down(&self, broken: bool) {
            *self.broken.lock().unwrap() = broken;
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.done.lock().unwrap())
        }
    }

    impl Tunnel for Fake {
        fn public_key(&self) -> PublicKey {
            PublicKey::new([0; 32])
        }
        fn port(&self) -> u16 {
            1
        }
        fn device(&self) -> Device {
            Device {
                name: "hf-wg0".into(),
                index: 1,
                mtu: 1400,
                backend: Backend::Userspace,
                adopted: false,
            }
        }
        fn up(&self) -> BoxFuture<'_, Result<(), Error>> {
            self.answer("up".into())
        }
        fn install(&self, peer: Peer) -> BoxFuture<'_, Result<(), Error>> {
            self.answer(format!("+{}", peer.public_key.as_bytes()[0]))
        }
        fn rekey(&self, _: PublicKey, _: PresharedKey) -> BoxFuture<'_, Result<(), Error>> {
            self.answer("rekey".into())
        }
        fn remove(&self, key: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
            self.answer(format!("-{}", key.as_bytes()[0]))
        }
        fn status(&self) -> BoxFuture<'_, Result<Status, Error>> {
            std::future::pending().boxed()
        }
        fn watch(&self) -> watch::Receiver<Health> {
            watch::Sender::new(Health::Good).subscribe()
        }
        fn detach(&self) -> BoxFuture<'_, Result<(), Error>> {
            self.answer("detach".into())
        }
    }

    struct Lab {
        fake: Arc<Fake>,
        worker: TunnelWorker,
        heard: mpsc::Receiver<Outcome>,
        dir: tempfile::TempDir,
    }

    impl Lab {
        fn new(fake: Fake) -> Self {
            Self::again(fake, tempfile::tempdir().unwrap(), &[])
        }

        fn again(fake: Fake, dir: tempfile::TempDir, standing: &[u32]) -> Self {
            let fake = Arc::new(fake);
            let keys = TunnelKeys::open(dir.path()).unwrap();
            let standing = standing.iter().map(|peer| PeerNumber(*peer)).collect();
            let tunnel = Arc::clone(&fake) as Arc<dyn Tunnel>;
            let (worker, heard) = TunnelWorker::start(tunnel, keys, &standing);
            Self {
                fake,
                worker,
                heard,
                dir,
            }
        }

        fn install(&self, conn: u64, peer: u32, key: u8) {
            let wanted = Peer {
                number: peer,
                public_key: PublicKey::new([key; 32]),
                preshared_key: PresharedKey::new(Zeroizing::new([9; 32])),
                endpoint: "192.0.2.1:1".parse().unwrap(),
                prefixes: Vec::new(),
            };
            let ordered = self.worker.install(ConnId(conn), PeerNumber(peer), wanted);
            ordered.unwrap();
        }

        async fn hear(&mut self) -> Outcome {
            let heard = timeout(Duration::from_secs(5), self.heard.recv()).await;
            heard.unwrap().unwrap()
        }

        async fn stop(mut self) -> tempfile::TempDir {
            self.worker.stop(Duration::from_secs(5)).await;
            self.dir
        }
    }

    #[tokio::test]
    async fn orders_are_carried_out_in_their_order() {
        let mut lab = Lab::new(Fake::default());
        lab.install(1, 1, 11);
        lab.worker.remove(PeerNumber(1)).unwrap();
        lab.install(2, 1, 11);
        lab.install(3, 1, 12);
        for conn in [1, 2, 3] {
            assert!(matches!(lab.hear().await, Outcome::Installed(ConnId(c)) if c == conn));
        }
        assert_eq!(lab.fake.take(), ["+11", "-11", "+11", "-11", "+12"]);
        assert_eq!(
            lab.worker.key(PeerNumber(1)),
            Some(PublicKey::new([12; 32]))
        );
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_stalls_nobody_else() {
        let hung = Fake {
            hangs: true,
            ..Fake::default()
        };
        let mut lab = Lab::new(hung);
        lab.install(1, 1, 11);
        lab.worker.remove(PeerNumber(1)).unwrap();
        let asked = tokio::time::Instant::now();
        assert!(lab.worker.status().await.is_none());
        lab.worker.stop(Duration::ZERO).await;
        assert!(asked.elapsed() < Duration::from_secs(2));
        assert!(lab.worker.remove(PeerNumber(1)).is_err(), "it has stopped");
    }

    #[tokio::test]
    async fn more_than_fits_the_queue_fails_at_once() {
        let hung = Fake {
            hangs: true,
            ..Fake::default()
        };
        let lab = Lab::new(hung);
        for conn in 0..QUEUE as u64 {
            lab.install(conn, 1, 11);
        }
        let wanted = Peer {
            number: 2,
            public_key: PublicKey::new([12; 32]),
            preshared_key: PresharedKey::new(Zeroizing::new([9; 32])),
            endpoint: "192.0.2.1:1".parse().unwrap(),
            prefixes: Vec::new(),
        };
        let refused = lab.worker.install(ConnId(5), PeerNumber(2), wanted);
        assert!(refused.is_err());
        lab.worker.remove(PeerNumber(1)).unwrap();
    }

    #[tokio::test]
    async fn a_key_of_another_peer_is_refused() {
        let mut lab = Lab::new(Fake::default());
        lab.install(1, 1, 11);
        lab.install(2, 2, 11);
        assert!(matches!(lab.hear().await, Outcome::Installed(ConnId(1))));
        assert!(matches!(
            lab.hear().await,
            Outcome::NotInstalled(ConnId(2), _)
        ));
        assert_eq!(lab.fake.take(), ["+11"]);
    }

    #[tokio::test]
    async fn a_removal_that_failed_is_made_up_for_before_the_key_comes_again() {
        let mut lab = Lab::new(Fake::default());
        lab.install(1, 1, 11);
        lab.hear().await;
        lab.fake.break_down(true);
        lab.worker.remove(PeerNumber(1)).unwrap();
        assert!(matches!(lab.hear().await, Outcome::NotRemoved(..)));
        lab.fake.break_down(false);
        lab.fake.take();
        lab.install(2, 1, 11);
        assert!(matches!(lab.hear().await, Outcome::Installed(ConnId(2))));
        assert_eq!(lab.fake.take(), ["-11", "+11"]);
    }

    #[tokio::test]
    async fn a_removal_that_failed_is_tried_again_by_itself() {
        let mut lab = Lab::new(Fake::default());
        lab.install(1, 1, 11);
        lab.hear().await;
        lab.fake.break_down(true);
        lab.worker.remove(PeerNumber(1)).unwrap();
        lab.hear().await;
        lab.fake.break_down(false);
        let mut keys = lab.worker.keys.clone();
        let gone = keys.wait_for(BTreeMap::is_empty);
        timeout(3 * RETRY, gone).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_next_run_removes_what_has_no_session() {
        let lab = Lab::new(Fake::default());
        lab.install(1, 1, 11);
        lab.install(2, 2, 12);
        let dir = lab.stop().await;
        let lab = Lab::again(Fake::default(), dir, &[2]);
        let mut keys = lab.worker.keys.clone();
        let gone = keys.wait_for(|keys| keys.len() == 1);
        timeout(RETRY, gone).await.unwrap().unwrap();
        assert_eq!(lab.fake.take(), ["-11"]);
        assert!(lab.worker.key(PeerNumber(2)).is_some());
    }
}
