//! A connection whose reader sees the rewritten bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Rewriter;

/// Read at once; a call of this API is shorter.
const PIECE: usize = 4096;

/// A connection with a [`Rewriter`] in what is read; what is written passes.
#[derive(Debug)]
pub struct Filtered<S> {
    inner: S,
    rewriter: Rewriter,
    /// Rewritten, not read yet from here on.
    ready: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<S> Filtered<S> {
    pub(in super::super) fn new(inner: S) -> Self {
        Self {
            inner,
            rewriter: Rewriter::default(),
            ready: Vec::new(),
            read: 0,
            ended: false,
        }
    }

    /// Gives of what is ready. False: nothing is.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let waiting = self.ready.get(self.read..).unwrap_or_default();
        let length = waiting.len().min(buffer.remaining());
        let given = waiting.get(..length).unwrap_or_default();
        buffer.put_slice(given);
        self.read += length;
        if self.read == self.ready.len() {
            self.ready.clear();
            self.read = 0;
        }
        length > 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.give(buffer) || this.ended || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut piece))?;
            if piece.filled().is_empty() {
                this.ended = true;
                this.rewriter.finish(&mut this.ready);
            } else {
                this.rewriter.feed(piece.filled(), &mut this.ready);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_reader_with_little_room_gets_everything_and_then_the_end() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut filtered = Filtered::new(server);
        let sent = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            b"\0\0\x12\x01\x04\0\0\0\x01\x41\x0f/run/agent.sock\x82",
        ]
        .concat();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            let mut answer = [0; 5];
            client.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut got = Vec::new();
        let mut piece = [0; 3];
        while got.len() < 24 + 9 + 4 {
            let length = filtered.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..length]);
        }
        assert!(got.ends_with(b"\0\0\x04\x01\x04\0\0\0\x01\x41\x01_\x82"));
        filtered.write_all(b"hello").await.unwrap();
        assert_eq!(&writer.await.unwrap(), b"hello");
        assert_eq!(filtered.read(&mut piece).await.unwrap(), 0);
    }
}
