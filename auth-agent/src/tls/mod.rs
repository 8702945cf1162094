//! Sessions as sockets see them: who may connect, how, and the stream of frames that comes of it.
//!
//! TLS 1.3 alone, mutual, X25519MLKEM768 alone, and nothing is ever resumed, since a resumed session skips the
//! certificate check. What a stranger can make us do before it has shown a certificate of ours is bounded in
//! number and time. A [`Connection`] is what is left when both ends are satisfied; when the session is live
//! (Hello both ways) is `core`'s business: a TLS client is done before the server has judged it.

mod config;
mod connection;
mod error;
mod frames;
mod judge;
mod limit;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use handfast_ca::verify::Verifier;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::SpiffeId;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use connection::{Connection, Exporter};
pub use error::TlsError;
pub use frames::{FrameReader, FrameWriter, Frames};

use judge::Judge;
use limit::Strangers;

/// Application protocol of sessions.
pub const ALPN: &[u8] = b"handfast/1";
/// From the first SYN, or from accept, to the end of the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes and takes sessions with this node's SVID. Share it in an `Arc`: credentials and verifier are
/// replaced while it runs, and every handshake uses those of its beginning, judged again by those of its end.
pub struct SessionTls {
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
    credentials: RwLock<Option<Arc<SingleCertAndKey>>>,
    verifier: RwLock<Option<Arc<Verifier>>>,
    strangers: Strangers,
    failures: Mutex<BTreeMap<&'static str, u64>>,
}

impl SessionTls {
    /// Without credentials and verifier every session is refused as [`TlsError::NotReady`].
    /// `clock` is wall time as PROTOCOL.md (Clocks) has it.
    pub fn new(clock: Arc<dyn TimeProvider>) -> Self {
        Self {
            provider: config::provider(),
            clock,
            credentials: RwLock::default(),
            verifier: RwLock::default(),
            strangers: Strangers::default(),
            failures: Mutex::default(),
        }
    }

    /// Sets or replaces the node SVID; sessions that exist keep theirs. `chain`: leaf first.
    ///
    /// # Errors
    /// [`TlsError::Credentials`] if key and certificate do not fit, [`TlsError::Peer`] if our own verifier
    /// would not accept it; the old one stays.
    pub fn set_credentials(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        if let Ok(verifier) = self.verifier() {
            let now = self
                .clock
                .current_time()
                .ok_or(TlsError::NotReady("clock"))?;
            verifier.node(&chain, now)?;
        }
        let key = CertifiedKey::from_der(chain, key, &self.provider)
            .map_err(|error| TlsError::Credentials(error.to_string()))?;
        *self
            .credentials
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(SingleCertAndKey::from(key)));
        Ok(())
    }

    /// Sets or replaces trust bundle and deny list; sessions that exist are `core`'s to end.
    pub fn set_verifier(&self, verifier: Verifier) {
        *self
            .verifier
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(verifier));
    }

    /// The verifier in use.
    ///
    /// # Errors
    /// [`TlsError::NotReady`] before the first was set.
    pub fn verifier(&self) -> Result<Arc<Verifier>, TlsError> {
        let verifier = self.verifier.read().unwrap_or_else(PoisonError::into_inner);
        verifier.clone().ok_or(TlsError::NotReady("trust bundle"))
    }

    /// Opens a session with the node `expected`, and with no other.
    ///
    /// # Errors
    /// [`TlsError`], counted under its reason.
    pub async fn dial(
        &self,
        address: SocketAddr,
        expected: &SpiffeId,
    ) -> Result<Connection, TlsError> {
        self.counted(within(self.connect(address, expected)).await)
    }

    /// Takes a session that a peer dialled. What strangers may cost is bounded here, so that every accepted
    /// socket can be handed over in a task of its own.
    ///
    /// # Errors
    /// [`TlsError`], counted under its reason; the socket is closed.
    pub async fn accept(&self, socket: TcpStream) -> Result<Connection, TlsError> {
        self.counted(within(self.answer(socket)).await)
    }

    /// How many sessions failed, by [`TlsError::reason`].
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn connect(
        &self,
        address: SocketAddr,
        expected: &SpiffeId,
    ) -> Result<Connection, TlsError> {
        let judge = Arc::new(Judge::new(self.verifier()?, Some(expected.clone())));
        let config = config::client(&self.provider, &self.clock, &judge, self.credentials()?)?;
        let socket = TcpStream::connect(address)
            .await
            .map_err(TlsError::connect)?;
        connection::tune(&socket);
        let handshake = TlsConnector::from(Arc::new(config)).connect(address.ip().into(), socket);
        let stream = handshake.await.map_err(|error| judge.explain(error))?;
        self.admit(&judge, address, stream.into())
    }

    async fn answer(&self, socket: TcpStream) -> Result<Connection, TlsError> {
        let mut address = socket.peer_addr().map_err(TlsError::connect)?;
        // A socket for both families shows IPv4 in IPv6's clothes.
        address.set_ip(address.ip().to_canonical());
        let _stranger = self.strangers.enter(address.ip())?;
        let judge = Arc::new(Judge::new(self.verifier()?, None));
        let config: ServerConfig =
            config::server(&self.provider, &self.clock, &judge, self.credentials()?)?;
        connection::tune(&socket);
        let handshake = TlsAcceptor::from(Arc::new(config)).accept(socket);
        let stream = handshake.await.map_err(|error| judge.explain(error))?;
        self.admit(&judge, address, stream.into())
    }

    /// The handshake is over: a verifier that came meanwhile has its say too.
    fn admit(
        &self,
        judge: &Judge,
        address: SocketAddr,
        stream: tokio_rustls::TlsStream<TcpStream>,
    ) -> Result<Connection, TlsError> {
        let (mut peer, chain) = judge.accepted()?;
        let verifier = self.verifier()?;
        if !Arc::ptr_eq(&verifier, judge.verifier()) {
            let now = self
                .clock
                .current_time()
                .ok_or(TlsError::NotReady("clock"))?;
            peer = verifier.node(&chain, now)?;
        }
        Connection::new(peer, chain, address, stream)
    }

    fn credentials(&self) -> Result<Arc<SingleCertAndKey>, TlsError> {
        let credentials = self
            .credentials
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        credentials.clone().ok_or(TlsError::NotReady("node SVID"))
    }

    fn counted<T>(&self, result: Result<T, TlsError>) -> Result<T, TlsError> {
        if let Err(error) = &result {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            *failures.entry(error.reason()).or_default() += 1;
        }
        result
    }
}

async fn within<T>(session: impl Future<Output = Result<T, TlsError>>) -> Result<T, TlsError> {
    timeout(HANDSHAKE_TIMEOUT, session)
        .await
        .unwrap_or(Err(TlsError::HandshakeTimeout))
}
