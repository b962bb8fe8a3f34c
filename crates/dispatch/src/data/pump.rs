//! The loop of a data connection's task: frames in, frames out, one flush for all that is there.

use std::future::poll_fn;
use std::task::Poll;

use keydispatch_core::message::Frame;

use super::Heard;
use super::outbox::Outbox;
use crate::transport::Connection;

/// Frames read before others get their turn.
const READ_BUDGET: usize = 256;

/// Bytes read before others get their turn: large calls are answered while more of them arrive.
const READ_BUDGET_BYTES: usize = 256 * 1024;

/// Bytes on their way out beyond which nothing more is taken.
const WRITE_AHEAD_BYTES: usize = 1024 * 1024;

/// Whether frames are read while many bytes are on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// By the calling side: replies lead to nothing more to send. If it waited, too, both sides could wait for the
    /// other to read.
    Always,
    /// By the answering side: a peer that does not read gets no more answered.
    WhileAnswersGo,
}

/// Runs until the outbox is closed and flushed (`Ok`), or the connection is gone (why).
pub(super) async fn pump(
    connection: &mut dyn Connection,
    outbox: &Outbox,
    heard: &Heard,
    reading: Reading,
    mut on_frame: impl FnMut(Frame) -> Result<(), String>,
) -> Result<(), String> {
    let mut batch = Vec::new();
    let mut closed = false;
    poll_fn(|cx| {
        loop {
            // What is not looked at now is looked at once there is room.
            let mut busy = connection.buffered() >= WRITE_AHEAD_BYTES;
            // More may have arrived than was read.
            let mut unread = false;
            if reading == Reading::Always || connection.buffered() < WRITE_AHEAD_BYTES {
                unread = true;
                let mut heard_some = false;
                let mut bytes = 0;
                for _ in 0..READ_BUDGET {
                    if bytes >= READ_BUDGET_BYTES {
                        break;
                    }
                    match connection.poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            heard_some = true;
                            bytes += frame.body.len();
                            if let Err(why) = on_frame(frame) {
                                let peer = connection.peer();
                                tracing::warn!(
                                    peer,
                                    why,
                                    "closing a data connection: the peer sent a frame that does not decode"
                                );
                                return Poll::Ready(Err(why));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            error.complain(connection.peer());
                            return Poll::Ready(Err(error.to_string()));
                        }
                        Poll::Ready(None) => {
                            return Poll::Ready(Err("closed by the peer".to_owned()));
                        }
                        Poll::Pending => {
                            unread = false;
                            break;
                        }
                    }
                }
                if heard_some {
                    heard.now();
                }
                busy |= heard_some;
            }
            if connection.buffered() < WRITE_AHEAD_BYTES
                && !closed
                && let Poll::Ready(end) = outbox.poll_take(cx, &mut batch)
            {
                closed = end;
                busy |= !end;
                if !batch.is_empty() {
                    heard.said();
                }
                for frame in batch.drain(..) {
                    connection.send(frame);
                }
            }
            if connection.buffered() > 0 {
                match connection.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                    Poll::Pending if unread && reading == Reading::Always => {}
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keydispatch_core::message::Address;

    use super::*;
    use crate::transport::Transport;
    use crate::transport::tcp::TcpTransport;

    #[tokio::test]
    async fn many_large_frames_both_ways_never_wait_for_each_other() {
        const FRAMES: usize = 64;
        let transport = TcpTransport::plaintext("127.0.0.1:0").unwrap();
        let address: Address = transport.local_address();
        let (near, far) = tokio::join!(transport.dial(&address), transport.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.set_frame_limit(1 << 20);
        far.set_frame_limit(1 << 20);
        let (calls, replies) = (Outbox::new(1_000, 1 << 30), Outbox::new(1_000, 1 << 30));
        let (heard_near, heard_far) = (Heard::default(), Heard::default());
        for _ in 0..FRAMES {
            let body = vec![7; 512 * 1024].into();
            calls.push(Frame { kind: 64, body }).unwrap();
        }
        let mut replied = 0;
        let calling = pump(&mut *near, &calls, &heard_near, Reading::Always, |_| {
            replied += 1;
            if replied == FRAMES {
                calls.close();
            }
            Ok(())
        });
        let answering = pump(
            &mut *far,
            &replies,
            &heard_far,
            Reading::WhileAnswersGo,
            |frame| {
                replies.push(frame).unwrap();
                Ok(())
            },
        );
        let both = async {
            tokio::select! { ended = calling => ended, ended = answering => ended }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
        assert_eq!(ended.ok(), Some(Ok(())));
        assert_eq!(replied, FRAMES);
    }
}
