//! Sessions' connections: dialled, accepted, read; each known to the core by a number.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use spiffe::SpiffeId;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::core::{CloseReason, ConnId, PeerNumber};
use crate::metrics;
use crate::proof::ProofContext;
use crate::tls::{Connection, Exporter, FrameReader, FrameWriter, Frames, SessionTls, TlsError};
use crate::wire::{Frame, Reason};

/// Events that wait for the agent's loop; a full queue makes readers wait, and with them their peers.
const QUEUE: usize = 1024;
/// Frames that a peer may send at once: all of a large node's announcements after a reconnect, twice over.
const BURST: u32 = 20_000;
/// Frames a second that it may go on with.
const RATE: u32 = 2_000;

/// Frames of one connection that are taken in together at most.
const AT_ONCE: usize = 32;
/// Bytes of frames that leave together at most: a peer has so long for them as it has for one.
const TOGETHER: usize = 64 * 1024;

/// What happens on the network.
#[derive(Debug)]
pub(super) enum FromNet {
    Connected(Box<Connection>, Dialled),
    DialFailed(PeerNumber, String),
    /// In their order; those that came together.
    Frames(ConnId, Vec<Frame>),
    Ended(ConnId, TlsError),
}

impl FromNet {
    /// How many inputs it is.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Frames(_, frames) => frames.len(),
            _ => 1,
        }
    }
}

/// Which side opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialled {
    ByUs(PeerNumber),
    ByPeer,
}

/// All connections of this node.
pub(super) struct Net {
    tls: Arc<SessionTls>,
    events: mpsc::Sender<FromNet>,
    open: HashMap<ConnId, Open>,
    /// Connections on which something is to leave.
    unsent: Vec<ConnId>,
    next: u64,
}

/// What is kept of a connection beside its reader, which has a task of its own.
#[derive(Debug)]
pub(super) struct Open {
    writer: FrameWriter,
    unsent: Frames,
    pub(super) proofs: Arc<ProofContext>,
    pub(super) exporter: Exporter,
    reader: tokio::task::AbortHandle,
}

impl Net {
    pub(super) fn new(tls: Arc<SessionTls>) -> (Self, mpsc::Receiver<FromNet>) {
        let (events, receiver) = mpsc::channel(QUEUE);
        let net = Self {
            tls,
            events,
            open: HashMap::new(),
            unsent: Vec::new(),
            next: 1,
        };
        (net, receiver)
    }

    /// Listens for peers on every address of this node, IPv6 and IPv4.
    pub(super) fn listen(&self, port: u16) -> std::io::Result<()> {
        let listener = bind(port)?;
        let (tls, events) = (Arc::clone(&self.tls), self.events.clone());
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, from)) => {
                        let (tls, events) = (Arc::clone(&tls), events.clone());
                        tokio::spawn(async move {
                            let start = Instant::now();
                            match tls.accept(socket).await {
                                Ok(connection) => {
                                    metrics::handshaken("peer", start.elapsed());
                                    let event =
                                        FromNet::Connected(Box::new(connection), Dialled::ByPeer);
                                    let _ = events.send(event).await;
                                }
                                Err(error) => tracing::info!(%from, %error, "no session"),
                            }
                        });
                    }
                    Err(error) => {
                        // Out of descriptors: wait for some to come free.
                        tracing::warn!(%error, "cannot accept sessions");
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                    }
                }
            }
        });
        Ok(())
    }

    /// Tries a peer's addresses in turn; the outcome comes as an event.
    pub(super) fn dial(&self, peer: PeerNumber, id: &str, addresses: Vec<SocketAddr>) {
        let (tls, events) = (Arc::clone(&self.tls), self.events.clone());
        let expected = SpiffeId::new(id);
        tokio::spawn(async move {
            let event = match expected {
                Ok(expected) => match try_all(&tls, &expected, addresses).await {
                    Ok(connection) => FromNet::Connected(Box::new(connection), Dialled::ByUs(peer)),
                    Err(reason) => FromNet::DialFailed(peer, reason),
                },
                Err(error) => FromNet::DialFailed(peer, error.to_string()),
            };
            let _ = events.send(event).await;
        });
    }

    /// Gives a connection its number and begins to read it.
    pub(super) fn register(
        &mut self,
        reader: FrameReader,
        writer: FrameWriter,
        proofs: Arc<ProofContext>,
        exporter: Exporter,
    ) -> ConnId {
        let conn = ConnId(self.next);
        self.next += 1;
        let task = tokio::spawn(read(conn, reader, self.events.clone()));
        let open = Open {
            writer,
            unsent: Frames::default(),
            proofs,
            exporter,
            reader: task.abort_handle(),
        };
        self.open.insert(conn, open);
        conn
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&Open> {
        self.open.get(&conn)
    }

    /// Adds a frame to those that leave with the next [`Self::flush`].
    pub(super) fn send(&mut self, conn: ConnId, frame: &Frame) {
        let Some(open) = self.open.get_mut(&conn) else {
            return;
        };
        if open.unsent.is_empty() {
            self.unsent.push(conn);
        }
        if let Err(error) = open.unsent.push(frame) {
            tracing::debug!(?conn, %error, "a frame was not sent");
        }
        if open.unsent.len() >= TOGETHER {
            open.flush(conn);
        }
    }

    /// What was said leaves. A connection that cannot take it ends, which its reader reports.
    pub(super) fn flush(&mut self) {
        for conn in self.unsent.drain(..) {
            if let Some(open) = self.open.get_mut(&conn) {
                open.flush(conn);
            }
        }
    }

    /// Says goodbye and forgets the connection.
    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if let Some(mut open) = self.open.remove(&conn) {
            open.flush(conn);
            open.reader.abort();
            open.writer.close(Reason::new(&reason.to_string()));
        }
    }

    /// Forgets a connection that has ended.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.open.remove(&conn);
    }
}

impl Open {
    fn flush(&mut self, conn: ConnId) {
        let frames = std::mem::take(&mut self.unsent);
        if !frames.is_empty()
            && let Err(error) = self.writer.send_all(frames)
        {
            tracing::debug!(?conn, %error, "frames were not sent");
        }
    }
}

/// A peer that sends faster than it may is read no faster: it waits, and nobody else does.
async fn read(conn: ConnId, mut reader: FrameReader, events: mpsc::Sender<FromNet>) {
    let mut pace = Pace::new(Instant::now());
    let mut count = 1;
    loop {
        let pauses = (0..count).filter_map(|_| pace.take(Instant::now()));
        if let Some(pause) = pauses.last() {
            tokio::time::sleep(pause).await;
        }
        let event = match reader.next().await {
            Ok(frame) => {
                let mut frames = vec![frame];
                frames.append(&mut reader.come(AT_ONCE - 1));
                count = frames.len();
                FromNet::Frames(conn, frames)
            }
            Err(error) => FromNet::Ended(conn, error),
        };
        let ended = matches!(event, FromNet::Ended(..));
        if events.send(event).await.is_err() || ended {
            return;
        }
    }
}

/// A token bucket: [`BURST`] frames at once, [`RATE`] a second after that.
#[derive(Debug)]
struct Pace {
    /// When the bucket would be full again, if nothing more were taken.
    full_at: Instant,
}

impl Pace {
    const EACH: Duration = Duration::from_nanos(1_000_000_000 / RATE as u64);

    fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one token; says how long to wait before it may be used.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        self.full_at = self.full_at.max(now) + Self::EACH;
        let empty_at = now + Self::EACH * BURST;
        self.full_at
            .checked_duration_since(empty_at)
            .filter(|pause| !pause.is_zero())
    }
}

async fn try_all(
    tls: &SessionTls,
    expected: &SpiffeId,
    addresses: Vec<SocketAddr>,
) -> Result<Connection, String> {
    let mut reasons = Vec::new();
    for address in addresses {
        let start = Instant::now();
        match tls.dial(address, expected).await {
            Ok(connection) => {
                metrics::handshaken("us", start.elapsed());
                return Ok(connection);
            }
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    if reasons.is_empty() {
        reasons.push("the CA lists no underlay address for it".into());
    }
    Err(reasons.join("; "))
}

/// One socket for both families; IPv4 alone where the kernel has no IPv6.
fn bind(port: u16) -> std::io::Result<TcpListener> {
    let socket = match TcpSocket::new_v6() {
        Ok(socket) => {
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
            socket
        }
        Err(_) => {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
            socket
        }
    };
    socket.listen(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_announcements_pass_at_once() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!((0..BURST).all(|_| pace.take(now).is_none()));
    }

    #[test]
    fn a_flood_is_read_at_the_rate_and_no_faster() {
        let start = Instant::now();
        let (mut now, mut pace) = (start, Pace::new(start));
        for _ in 0..BURST + 10 * RATE {
            now += pace.take(now).unwrap_or_default();
        }
        let took = (now - start).as_secs_f64();
        assert!((9.9..10.1).contains(&took), "{took} s");
    }

    #[test]
    fn who_pauses_may_burst_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..BURST {
            assert_eq!(pace.take(start), None);
        }
        assert!(pace.take(start).is_some());
        let later = start + Duration::from_secs(11);
        assert!((0..BURST).all(|_| pace.take(later).is_none()));
    }
}
