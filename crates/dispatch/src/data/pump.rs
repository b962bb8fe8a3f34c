//! The loop of a data connection's task: frames in, frames out, one flush for all that is there.

use std::future::poll_fn;
use std::task::Poll;

use keydispatch_core::message::Frame;

use super::Heard;
use super::outbox::Outbox;
use crate::transport::Connection;

/// Frames read before others get their turn.
const READ_BUDGET: usize = 256;

/// Bytes on their way out beyond which nothing more is taken or read: a peer that does not read gets no more to answer.
const WRITE_AHEAD_BYTES: usize = 1024 * 1024;

/// Runs until the outbox is closed and flushed (`Ok`), or the connection is gone (why).
pub(super) async fn pump(
    connection: &mut dyn Connection,
    outbox: &Outbox,
    heard: &Heard,
    mut on_frame: impl FnMut(Frame) -> Result<(), String>,
) -> Result<(), String> {
    let mut batch = Vec::new();
    let mut closed = false;
    poll_fn(|cx| {
        loop {
            let mut busy = false;
            if connection.buffered() < WRITE_AHEAD_BYTES {
                for _ in 0..READ_BUDGET {
                    match connection.poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            busy = true;
                            on_frame(frame)?;
                        }
                        Poll::Ready(Some(Err(error))) => {
                            return Poll::Ready(Err(error.to_string()));
                        }
                        Poll::Ready(None) => {
                            return Poll::Ready(Err("closed by the peer".to_owned()));
                        }
                        Poll::Pending => break,
                    }
                }
                if busy {
                    heard.now();
                }
                if !closed && let Poll::Ready(end) = outbox.poll_take(cx, &mut batch) {
                    closed = end;
                    busy |= !end;
                    if !batch.is_empty() {
                        heard.said();
                    }
                    for frame in batch.drain(..) {
                        connection.send(frame);
                    }
                }
            }
            if connection.buffered() > 0 {
                match connection.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if closed && connection.buffered() == 0 {
                return Poll::Ready(Ok(()));
            }
            if !busy {
                return Poll::Pending;
            }
        }
    })
    .await
}
