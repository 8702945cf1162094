//! A session's TLS connection, taken apart: who, what proofs need, and frames in both directions.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use handfast_ca::verify::NodeSvid;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::frames::{self, FrameReader, FrameWriter};
use super::{ALPN, TlsError};
use crate::proof::{Export, ProofContext, ProofError};

/// A TLS connection that both ends are satisfied with.
#[derive(Debug)]
pub struct Connection {
    /// The peer, as its certificate says and the verifier confirmed.
    pub peer: NodeSvid,
    /// The peer's certificates, leaf first: to be judged again when bundle or deny list change.
    pub chain: Vec<CertificateDer<'static>>,
    /// The peer's end of the connection.
    pub address: SocketAddr,
    /// For making and verifying proofs; its role says who dialled.
    pub proofs: Arc<ProofContext>,
    /// For the tunnel's keys.
    pub exporter: Exporter,
    /// Frames from the peer.
    pub reader: FrameReader,
    /// Frames to the peer.
    pub writer: FrameWriter,
}

impl Connection {
    pub(super) fn new(
        peer: NodeSvid,
        chain: Vec<CertificateDer<'static>>,
        address: SocketAddr,
        stream: TlsStream<TcpStream>,
    ) -> Result<Self, TlsError> {
        // Without this check a peer that names no protocol at all would pass.
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(TlsError::Handshake(
                "peer named no application protocol".into(),
            ));
        }
        let proofs = Arc::new(match &stream {
            TlsStream::Client(client) => ProofContext::from_client(client.get_ref().1)?,
            TlsStream::Server(server) => ProofContext::from_server(server.get_ref().1)?,
        });
        let stream = Shared(Arc::new(Mutex::new(stream)));
        let exporter = Exporter(stream.clone());
        let (reader, writer) = frames::split(stream);
        Ok(Self {
            peer,
            chain,
            address,
            proofs,
            exporter,
            reader,
            writer,
        })
    }
}

/// Exports keys from a session for as long as it lives; keeps nothing.
#[derive(Clone)]
pub struct Exporter(Shared);

impl Export for Exporter {
    fn export(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ProofError> {
        match &*self.0.lock() {
            TlsStream::Client(client) => client.get_ref().1.export(output, label, context),
            TlsStream::Server(server) => server.get_ref().1.export(output, label, context),
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

/// One stream for a reader, a writer and the exporter. The lock is held for one poll, never across one.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<TlsStream<TcpStream>>>);

impl Shared {
    /// Ends TCP in both directions, whoever else still holds the stream.
    pub(super) fn cut(&self) {
        let stream = self.lock();
        // It fails only where the connection is gone already.
        let _ = shutdown(stream.get_ref().0.as_raw_fd(), Shutdown::Both);
    }

    fn lock(&self) -> MutexGuard<'_, TlsStream<TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

/// Small frames leave at once, and a peer that is gone is noticed within half a minute without any frame.
/// A kernel that refuses an option costs only that.
pub(super) fn tune(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let _ = setsockopt(socket, sockopt::KeepAlive, &true);
    let _ = setsockopt(socket, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(socket, sockopt::TcpKeepInterval, &5);
    let _ = setsockopt(socket, sockopt::TcpKeepCount, &3);
    let _ = setsockopt(socket, sockopt::TcpUserTimeout, &30_000);
}
