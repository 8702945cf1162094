//! Frames over a session's stream: bounded in size, in number and in time.
//!
//! Sending never waits: what does not fit the queue closes the connection, since a peer that does not read
//! may not hold anything up. Both ends of a connection fail together and with one reason: the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::TlsError;
use super::connection::Shared;
use crate::wire::{Frame, MAX_FRAME, Reason};

/// Frames that wait for a slow peer.
const QUEUE_FRAMES: usize = 1024;
/// Bytes that wait for a slow peer: the longest deny list, and as much as a quarter of that beside it.
const QUEUE_BYTES: usize = 5 * 1024 * 1024;
/// The longest that one frame may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest from a frame's first byte to its last.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that saying goodbye may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const LENGTH: usize = 4;
/// Bytes that are read at once.
const READ: usize = 4096;

/// Halves of one connection; the writer's task ends with the connection.
pub(super) fn split(stream: Shared) -> (FrameReader, FrameWriter) {
    let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
    let ended = watch::Sender::new(None);
    let waiting = Arc::new(AtomicUsize::new(0));
    let end = End(ended);
    tokio::spawn(write(stream.clone(), frames, waiting.clone(), end.clone()));
    let reader = FrameReader {
        stream,
        end: end.clone(),
        buffer: Vec::new(),
        begun: None,
    };
    (
        reader,
        FrameWriter {
            queue,
            waiting,
            end,
        },
    )
}

/// Why the connection ended, once it has.
#[derive(Clone, Debug)]
struct End(watch::Sender<Option<TlsError>>);

impl End {
    /// The first reason stands; returns it.
    fn with(&self, error: TlsError) -> TlsError {
        let mut reason = error;
        self.0.send_if_modified(|ended| match ended {
            Some(first) => {
                reason = first.clone();
                false
            }
            None => {
                *ended = Some(reason.clone());
                true
            }
        });
        reason
    }

    fn reason(&self) -> Option<TlsError> {
        self.0.borrow().clone()
    }

    async fn wait(&self) -> TlsError {
        let mut end = self.0.subscribe();
        let ended = end.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or(TlsError::Ended)
    }
}

/// Reads frames. Dropping it does not close the connection.
pub struct FrameReader {
    stream: Shared,
    end: End,
    buffer: Vec<u8>,
    /// Since when a frame is incomplete.
    begun: Option<Instant>,
}

impl FrameReader {
    /// The next frame that we know; unknown optional ones are skipped. May be cancelled and called again.
    ///
    /// # Errors
    /// [`TlsError`] when the connection has ended, by whichever side; after a bad frame it is closed.
    pub async fn next(&mut self) -> Result<Frame, TlsError> {
        loop {
            if let Some(ended) = self.end.reason() {
                return Err(ended);
            }
            match self.buffered() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(self.end.with(error)),
            }
            self.fill().await.map_err(|error| self.end.with(error))?;
        }
    }

    /// The frames that have come with the last one, without waiting: this many at most. What is wrong with one that
    /// follows is said by [`Self::next`].
    pub fn come(&mut self, at_most: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        while frames.len() < at_most {
            match self.buffered() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    self.end.with(error);
                    break;
                }
            }
        }
        frames
    }

    /// Takes a whole frame out of the buffer, if there is one.
    fn buffered(&mut self) -> Result<Option<Frame>, TlsError> {
        loop {
            let Some((length, rest)) = self.buffer.split_first_chunk::<LENGTH>() else {
                return Ok(None);
            };
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            if length > MAX_FRAME {
                return Err(crate::wire::FrameError::TooLarge(length).into());
            }
            let Some(body) = rest.get(..length) else {
                return Ok(None);
            };
            let frame = Frame::decode(body)?;
            self.buffer.drain(..LENGTH + length);
            self.begun = None;
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// Waits for more bytes. The buffer never grows far beyond one frame.
    async fn fill(&mut self) -> Result<(), TlsError> {
        if self.buffer.is_empty() {
            self.begun = None;
        } else {
            self.begun.get_or_insert_with(Instant::now);
        }
        // A proof comes in one piece, and with it what was said with it.
        self.buffer.reserve(READ);
        let begun = self.begun;
        let late = async {
            match begun {
                Some(begun) => sleep_until(begun + FRAME_TIMEOUT).await,
                None => std::future::pending().await,
            }
        };
        let read = tokio::select! {
            ended = self.end.wait() => return Err(ended),
            read = self.stream.read_buf(&mut self.buffer) => read,
            () = late => return Err(TlsError::SlowFrame),
        };
        match read {
            Ok(0) => Err(TlsError::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(TlsError::lost(&error)),
        }
    }
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

/// Frames that are to leave together, in their order.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Adds one.
    ///
    /// # Errors
    /// [`TlsError::Frame`] for a frame that must not be sent; those before it stay.
    pub fn push(&mut self, frame: &Frame) -> Result<(), TlsError> {
        self.0.append(&mut frame.encode()?);
        Ok(())
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Queues frames. When the last clone is dropped, what is queued is still sent and the connection closed.
#[derive(Clone, Debug)]
pub struct FrameWriter {
    queue: mpsc::Sender<Outgoing>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
    end: End,
}

#[derive(Debug)]
enum Outgoing {
    Frames(Vec<u8>),
    Close,
}

impl FrameWriter {
    /// Queues a frame; it leaves in order.
    ///
    /// # Errors
    /// [`TlsError::Frame`] for a frame that must not be sent, and the connection stays. [`TlsError::SlowPeer`]
    /// if the queue is full, and the connection ends. Otherwise why it has ended before.
    pub fn send(&self, frame: &Frame) -> Result<(), TlsError> {
        let mut frames = Frames::default();
        frames.push(frame)?;
        self.send_all(frames)
    }

    /// Queues several frames, which leave together: each by itself would wake the writer, and the peer, for itself.
    ///
    /// # Errors
    /// As of [`Self::send`].
    pub fn send_all(&self, Frames(bytes): Frames) -> Result<(), TlsError> {
        if let Some(ended) = self.end.reason() {
            return Err(ended);
        }
        let length = bytes.len();
        if self.waiting.fetch_add(length, Ordering::Relaxed) + length > QUEUE_BYTES {
            return Err(self
                .end
                .with(TlsError::SlowPeer("too many bytes wait for it")));
        }
        self.push(Outgoing::Frames(bytes))
    }

    /// Says goodbye after everything that is queued, and closes. Later frames are refused.
    pub fn close(&self, reason: Reason) {
        // A queue that is full or closed has ended the connection already.
        if self.send(&Frame::Goodbye { reason }).is_ok() {
            let _ = self.push(Outgoing::Close);
        }
    }

    fn push(&self, outgoing: Outgoing) -> Result<(), TlsError> {
        self.queue.try_send(outgoing).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => self
                .end
                .with(TlsError::SlowPeer("too many frames wait for it")),
            mpsc::error::TrySendError::Closed(_) => self.end.with(TlsError::Ended),
        })
    }
}

/// The writer's task: writes until told to end, or until the connection fails on either side.
async fn write(
    mut stream: Shared,
    mut frames: mpsc::Receiver<Outgoing>,
    waiting: Arc<AtomicUsize>,
    end: End,
) {
    let mut whole = true;
    let reason = loop {
        let outgoing = tokio::select! {
            biased;
            reason = end.wait() => break reason,
            outgoing = frames.recv() => outgoing,
        };
        let Some(Outgoing::Frames(bytes)) = outgoing else {
            break end.with(TlsError::Ended);
        };
        whole = false;
        let written = tokio::select! {
            reason = end.wait() => break reason,
            written = timeout(WRITE_TIMEOUT, write_one(&mut stream, &bytes)) => written,
        };
        waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        match written {
            Ok(Ok(())) => whole = true,
            Ok(Err(error)) => break end.with(TlsError::lost(&error)),
            Err(_) => break end.with(TlsError::SlowPeer("a frame did not leave in time")),
        }
    };
    if whole {
        let _ = timeout(GOODBYE_TIMEOUT, say_goodbye(&mut stream, &reason)).await;
    }
    stream.cut();
}

async fn write_one(stream: &mut Shared, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// A peer that sent nonsense is told so; then TLS is closed. Only between frames: a goodbye in the middle of
/// another frame would be nonsense of ours.
async fn say_goodbye(stream: &mut Shared, reason: &TlsError) -> std::io::Result<()> {
    if matches!(reason, TlsError::Frame(_) | TlsError::SlowFrame) {
        let goodbye = Frame::Goodbye {
            reason: Reason::new(&reason.to_string()),
        };
        if let Ok(bytes) = goodbye.encode() {
            write_one(stream, &bytes).await?;
        }
    }
    stream.shutdown().await
}
