//! The Unix socket: anybody on the node may connect, and each connection knows who did.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::Peer;
use super::authority::Filtered;
use super::limits::{Ledger, Place};

/// After an accept that failed: descriptors may come back.
const PAUSE: Duration = Duration::from_millis(200);
/// Who connects and says nothing for so long gives its place to others.
const SILENCE: Duration = Duration::from_secs(10);

/// Makes the socket, for everybody (0666), in place of one that an earlier run left. It is never seen half made:
/// who connects meanwhile reaches the old one or the new one.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket is in its place; nothing was changed",
            ));
        }
        _ => {}
    }
    let fresh = beside(path);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o666))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    name.into()
}

/// As many descriptors as this process may have: each connection takes two.
pub(super) fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit of open files stays as it is");
    }
}

/// Connections as they come, each within its caller's bounds; the others are closed at once.
pub(super) fn connections(
    listener: UnixListener,
    ledger: Arc<Ledger>,
) -> impl Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((listener, ledger), |(listener, ledger)| async move {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => match Connection::new(socket, &ledger) {
                    Ok(connection) => return Some((Ok(connection), (listener, ledger))),
                    Err(error) => tracing::debug!(%error, "a Workload API connection was refused"),
                },
                Err(error) => {
                    tracing::warn!(%error, "the Workload API socket cannot accept");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// A caller's connection.
#[derive(Debug)]
pub(super) struct Connection {
    io: Filtered<UnixStream>,
    peer: Arc<Peer>,
    /// Runs until the first word.
    silence: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(socket: UnixStream, ledger: &Arc<Ledger>) -> io::Result<Self> {
        let peer = Peer::of(&socket)?;
        let place = ledger.connection(&peer).map_err(|full| {
            super::metrics::refused_connection();
            io::Error::other(format!(
                "{full} (process {}, user {})",
                peer.pid(),
                peer.uid()
            ))
        })?;
        Ok(Self {
            io: Filtered::new(socket),
            peer: Arc::new(peer),
            silence: Some(Box::pin(tokio::time::sleep(SILENCE))),
            _place: place,
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if read.is_ready() {
            self.silence = None;
        } else if let Some(silence) = &mut self.silence
            && silence.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
