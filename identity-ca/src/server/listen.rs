//! Sockets: TLS for agents with everything bounded, a private Unix socket for operators.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::server::Connected;

use super::connections::Open;
use super::handshakes::Handshakes;
use super::quota::{Place, Quota, source};
use super::state::State;
use crate::registry::Snapshot;
use crate::tls::{ALPN, Signatures, provider, refusal};
use crate::verify::{NodeSvid, Rejection, Verifier, WorkloadSvid};
use crate::{Error, metrics};

const HANDSHAKE: Duration = Duration::from_secs(10);
const LINGER: Duration = Duration::from_secs(1);
/// Who has no certificate has come to join, or to ask the time: a claim, a wait for a place, a change of the store.
const ANONYMOUS: Duration = Duration::from_secs(30);
/// Of those who have shown a certificate. Whoever has not yet, or will not, takes none of their places.
const MAX_CONNECTIONS: usize = 4096;
const MAX_ANONYMOUS: usize = 128;
/// Of one source. Many nodes may stand behind one address: who is refused comes again.
const MAX_STRANGERS: usize = 16;
/// Of one node or operator: an agent has one, two while it changes its certificate, and those that a broken network
/// has left half open for 30 s.
const MAX_KNOWN: usize = 16;
/// A node that was off may ask for its next certificate for so long (seconds).
const REATTEST: u64 = 30 * 24 * 3600;

pub(super) async fn tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen {
        address: address.to_string(),
        hint: match source.kind() {
            io::ErrorKind::AddrInUse => "; another program listens there (see `ss -ltnp`): stop it, or choose another port with --listen",
            io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address: choose another with --listen",
            _ => "",
        },
        source,
    })
}

/// Removes the socket when the server ends.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds the operators' socket; a dead one is replaced, a living one is not.
pub(super) async fn unix(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let refuse = |hint| Error::Listen {
        address: path.display().to_string(),
        source: io::Error::from(io::ErrorKind::AddrInUse),
        hint,
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent).map_err(Error::io("cannot create", parent))?;
    }
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(refuse(
                "; it is a file that is no socket: choose another with --admin-socket",
            ));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(refuse(
                "; another CA serves there: stop it, or choose another with --admin-socket",
            ));
        }
        fs::remove_file(path).map_err(Error::io("cannot replace", path))?;
    }
    let listener = UnixListener::bind(path).map_err(Error::io("cannot listen on", path))?;
    let socket = SocketFile(path.to_owned());
    // Who slips in before this is refused by his uid.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(Error::io("cannot protect", path))?;
    Ok((listener, socket))
}

pub(super) fn operators(listener: UnixListener) -> UnixListenerStream {
    UnixListenerStream::new(listener)
}

/// Accepts agents: handshakes run beside each other, none for ever.
pub(super) fn agents(
    listener: TcpListener,
    state: Arc<State>,
) -> Result<impl Stream<Item = io::Result<AgentStream>>, Error> {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&state)?));
    let (ready, accepted) = mpsc::channel(16);
    let gate = Gate {
        acceptor,
        state,
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        anonymous: Arc::new(Semaphore::new(MAX_ANONYMOUS)),
        handshakes: Handshakes::default(),
        strangers: Quota::new(MAX_STRANGERS),
        known: Quota::new(MAX_KNOWN),
    };
    tokio::spawn(accept(listener, gate, ready));
    Ok(ReceiverStream::new(accepted))
}

#[derive(Clone)]
struct Gate {
    acceptor: TlsAcceptor,
    state: Arc<State>,
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    handshakes: Handshakes,
    /// Connections of one source that have shown no certificate.
    strangers: Quota<IpAddr>,
    /// Connections of one node or operator.
    known: Quota<SpiffeId>,
}

async fn accept(listener: TcpListener, gate: Gate, ready: mpsc::Sender<io::Result<AgentStream>>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((tcp, from)) => {
                let source = source(from.ip());
                let Some(mut handshake) = gate.handshakes.begin(source, Instant::now()) else {
                    refused("handshakes", format!("{source} has too many under way"));
                    continue;
                };
                let (gate, ready) = (gate.clone(), ready.clone());
                tokio::spawn(async move {
                    let done = handshake.hold(gate.shake_hands(tcp, from)).await;
                    drop(handshake);
                    match done {
                        Some(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                        Some(Err(problem)) => {
                            tracing::debug!(%from, %problem, "connection refused");
                        }
                        None => {
                            refused("handshakes", format!("{source} was slow, others wait"));
                        }
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Gate {
    async fn shake_hands(&self, tcp: TcpStream, from: SocketAddr) -> Result<AgentStream, String> {
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let handshake = timeout(HANDSHAKE, self.acceptor.accept(tcp).into_fallible()).await;
        let tls = match handshake.map_err(|_| "no handshake within 10 s".to_owned())? {
            Ok(tls) => tls,
            Err((error, tcp)) => {
                linger(tcp).await;
                return Err(error.to_string());
            }
        };
        let (mut node, mut operator, mut open) = (None, None, None);
        let place = match tls.get_ref().1.peer_certificates() {
            Some(chain) => {
                let now = self.state.now();
                let shown = recognise(&now, chain, crate::now());
                let shown = shown.map_err(|rejection| rejection.to_string())?;
                let place = self.place_of(&shown.spiffe_id())?;
                open = Some(self.state.keep_judging(chain, &shown, &now)?);
                match shown {
                    Shown::Node(shown) => node = Some(shown),
                    Shown::Operator(shown) => operator = Some(shown),
                }
                place
            }
            None => self.place_of_a_stranger(source(from.ip()))?,
        };
        Ok(AgentStream {
            tls,
            peer: Peer {
                from,
                node,
                operator,
            },
            open,
            place,
        })
    }

    fn place_of(&self, who: &SpiffeId) -> Result<Room, String> {
        let place = self.known.take(who.clone()).ok_or_else(|| {
            refused(
                "connections",
                format!("{who} has {MAX_KNOWN} connections open"),
            )
        })?;
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        let permit = permit.map_err(|_| {
            refused(
                "connections",
                format!("{who} would be one more than {MAX_CONNECTIONS}"),
            )
        })?;
        Ok(Room::Known {
            _place: place,
            _permit: permit,
        })
    }

    fn place_of_a_stranger(&self, source: IpAddr) -> Result<Room, String> {
        let permit = Arc::clone(&self.anonymous).try_acquire_owned();
        let (Ok(permit), Some(place)) = (permit, self.strangers.take(source)) else {
            return Err(refused(
                "strangers",
                format!("{source} is one too many of those who have not joined"),
            ));
        };
        Ok(Room::Stranger {
            over: Box::pin(sleep(ANONYMOUS)),
            _place: place,
            _permit: permit,
        })
    }
}

/// Who was refused, and why: counted, and named in the log.
fn refused(what: &'static str, problem: String) -> String {
    metrics::connection_refused(what);
    tracing::warn!(%problem, "a connection is refused");
    problem
}

/// Reads what is under way before closing: a reset would destroy the alert
/// that tells the other side what was wrong.
async fn linger(mut tcp: TcpStream) {
    let drain = async {
        let mut rest = [0; 4096];
        if tcp.shutdown().await.is_ok() {
            for _ in 0..16 {
                match tcp.read(&mut rest).await {
                    Ok(read) if read > 0 => {}
                    _ => return,
                }
            }
        }
    };
    drop(timeout(LINGER, drain).await);
}

/// Who is at the other end of an agent's connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) from: SocketAddr,
    /// None for who has shown no node's certificate.
    pub(super) node: Option<Arc<PeerNode>>,
    /// The SVID of an operator who calls from afar.
    pub(super) operator: Option<Arc<WorkloadSvid>>,
}

/// What the certificate says that was shown.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    Node(Arc<PeerNode>),
    Operator(Arc<WorkloadSvid>),
}

impl Shown {
    fn spiffe_id(&self) -> SpiffeId {
        match self {
            Self::Node(node) => node.svid.spiffe_id.clone(),
            Self::Operator(svid) => svid.spiffe_id.clone(),
        }
    }
}

/// A node that has shown its certificate.
#[derive(Debug)]
pub(super) struct PeerNode {
    pub(super) svid: NodeSvid,
    /// SHA-256 of its public key.
    pub(super) key_hash: [u8; 32],
    /// Its certificate hangs on a root that has left the bundle.
    pub(super) former: bool,
}

/// Judges a certificate: a node's, or that of a workload that is an operator.
pub(super) fn recognise(
    snapshot: &Snapshot,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Shown, Rejection> {
    let rejection = match recognise_node(snapshot, chain, now) {
        Ok(node) => return Ok(Shown::Node(Arc::new(node))),
        Err(rejection) => rejection,
    };
    match snapshot.verifier.workload(chain, now) {
        Ok(svid) if snapshot.operators.knows(&svid.spiffe_id) => {
            Ok(Shown::Operator(Arc::new(svid)))
        }
        _ => Err(rejection),
    }
}

/// Judges a node's certificate. One that has expired lately is accepted here,
/// for the one call that asks for the next.
fn recognise_node(
    snapshot: &Snapshot,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<PeerNode, Rejection> {
    let judge = |verifier: &Verifier| match verifier.node(chain, now) {
        Err(Rejection::Time { not_after, now, .. })
            if now > not_after && now - not_after < REATTEST =>
        {
            let then = UnixTime::since_unix_epoch(Duration::from_secs(not_after));
            verifier.node(chain, then)
        }
        judged => judged,
    };
    let (svid, former) = match judge(&snapshot.verifier) {
        // It slept through a rotation, perhaps.
        Err(Rejection::Path(_)) => (judge(&snapshot.remembering)?, true),
        judged => (judged?, false),
    };
    let leaf = chain.first().ok_or(Rejection::Chain(0))?;
    let key_hash = crate::certificate::key_hash(leaf).ok_or(Rejection::Malformed)?;
    Ok(PeerNode {
        svid,
        key_hash,
        former,
    })
}

/// An agent's connection.
pub(super) struct AgentStream {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    /// Tells when what was shown is no longer good enough.
    open: Option<Open>,
    place: Room,
}

/// What a connection takes of what there is for all.
enum Room {
    Known {
        _place: Place<SpiffeId>,
        _permit: OwnedSemaphorePermit,
    },
    Stranger {
        /// Ends who never shows a certificate.
        over: Pin<Box<Sleep>>,
        _place: Place<IpAddr>,
        _permit: OwnedSemaphorePermit,
    },
}

impl Connected for AgentStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(open) = &mut self.open {
            open.poll_ended(context)?;
        }
        if let Poll::Ready(read) = Pin::new(&mut self.tls).poll_read(context, buffer) {
            return Poll::Ready(read);
        }
        match &mut self.place {
            Room::Stranger { over, .. } => {
                ready!(over.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Room::Known { .. } => Poll::Pending,
        }
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

fn server_config(state: &State) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = Arc::new(AgentVerifier {
        snapshot: state.snapshot.subscribe(),
        signatures: Signatures::of(&provider),
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Crypto(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::<super::state::OwnCertificate>::clone(
            &state.certificate,
        ));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

#[derive(Debug)]
struct AgentVerifier {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    signatures: Signatures,
}

impl ClientCertVerifier for AgentVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .collect();
        let snapshot = Arc::clone(&self.snapshot.borrow());
        recognise(&snapshot, &chain, crate::now())
            .map(|_| ClientCertVerified::assertion())
            .map_err(|rejection| refusal(&rejection))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Signatures::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Signatures::schemes()
    }
}
