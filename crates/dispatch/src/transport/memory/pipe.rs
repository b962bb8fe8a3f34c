//! What a connection inside this process consists of: two pipes, each of which can be cut and reset.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mutex::Mutex;

/// Bytes that one direction of a connection takes before its writer has to wait, as a socket's buffers do.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

/// One direction of a connection.
pub(super) struct Pipe {
    pub(super) from: String,
    pub(super) to: String,
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    bytes: BytesMut,
    cut: bool,
    /// The writer is gone.
    ended: bool,
    /// The reader is gone.
    unread: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl PipeState {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

impl Pipe {
    pub(super) fn new(from: &str, to: &str, cut: bool) -> Arc<Self> {
        Arc::new(Pipe {
            from: from.to_owned(),
            to: to.to_owned(),
            state: Mutex::new(PipeState {
                cut,
                ..PipeState::default()
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock()
    }

    pub(super) fn set_cut(&self, cut: bool) {
        let mut state = self.lock();
        state.cut = cut;
        state.wake();
    }

    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.reset = true;
        state.wake();
    }
}

/// The two directions as one side of a connection holds them.
pub(super) struct Ends {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
}

impl Ends {
    pub(super) fn new(incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>) -> Self {
        Ends {
            incoming: Arc::clone(incoming),
            outgoing: Arc::clone(outgoing),
        }
    }
}

impl AsyncRead for Ends {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.incoming.lock();
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !state.cut {
            let length = state.bytes.len().min(buffer.remaining());
            if length > 0 {
                buffer.put_slice(&state.bytes[..length]);
                state.bytes.advance(length);
                if let Some(writer) = state.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(()));
            }
            if state.ended {
                return Poll::Ready(Ok(()));
            }
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Ends {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.outgoing.lock();
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        // While the link is cut, nobody hears that the other side is gone.
        if state.unread && !state.cut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes
            .len()
            .min(PIPE_BYTES.saturating_sub(state.bytes.len()));
        if length == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes.extend_from_slice(&bytes[..length]);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.outgoing.lock();
        state.ended = true;
        state.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut state = self.outgoing.lock();
        state.ended = true;
        state.wake();
        drop(state);
        let mut state = self.incoming.lock();
        state.unread = true;
        state.wake();
    }
}
