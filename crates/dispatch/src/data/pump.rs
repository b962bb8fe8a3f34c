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

/// Who opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// This node: what it reads are replies, which it asked for, and which make it send nothing.
    Dialled,
    /// The peer: what is read makes this node answer.
    Accepted,
}

/// Runs until the outbox is closed and flushed (`Ok`), or the connection is gone (why).
///
/// Rule: the side that dialled always reads. If both sides waited for the other one to read first, a large message that
/// meets a large reply would stop both for ever.
pub(super) async fn pump(
    connection: &mut dyn Connection,
    side: Side,
    outbox: &Outbox,
    heard: &Heard,
    mut on_frame: impl FnMut(Frame) -> Result<(), String>,
) -> Result<(), String> {
    let mut batch = Vec::new();
    let mut closed = false;
    poll_fn(|cx| {
        loop {
            let mut busy = false;
            let has_room = connection.buffered() < WRITE_AHEAD_BYTES;
            if has_room || side == Side::Dialled {
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
            }
            if has_room
                && !closed
                && let Poll::Ready(end) = outbox.poll_take(cx, &mut batch)
            {
                closed = end;
                busy |= !end;
                for frame in batch.drain(..) {
                    connection.send(frame);
                }
            }
            if connection.buffered() > 0 {
                match connection.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                    // There may be more to read, and then nothing wakes this task for it.
                    Poll::Pending if busy => continue,
                    Poll::Pending => return Poll::Pending,
                }
            }
            if closed && connection.buffered() == 0 {
                return Poll::Ready(Ok(()));
            }
            // Without room nobody was asked for more, so nothing wakes this task for it: they are asked now.
            if has_room && !busy {
                return Poll::Pending;
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::{Context, Waker};

    use keydispatch_core::hello::Credentials;

    use super::*;
    use crate::data::wire;
    use crate::transport::ConnectionError;

    /// A connection whose peer is moved by hand.
    #[derive(Default)]
    struct Scripted {
        arriving: VecDeque<Frame>,
        queued: usize,
        is_full: bool,
        /// Who waits to read, as a socket remembers it.
        reader: Option<Waker>,
    }

    impl Connection for Scripted {
        fn credentials(&self) -> &Credentials {
            &Credentials::Unchecked
        }

        fn peer(&self) -> &str {
            "scripted"
        }

        fn set_frame_limit(&mut self, _: usize) {}

        fn poll_frame(
            &mut self,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame, ConnectionError>>> {
            match self.arriving.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => {
                    self.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }

        fn send(&mut self, frame: Frame) {
            self.queued += frame.body.len();
        }

        fn buffered(&self) -> usize {
            self.queued
        }

        fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
            if self.is_full {
                return Poll::Pending;
            }
            self.queued = 0;
            Poll::Ready(Ok(()))
        }
    }

    /// Polls a pump of that connection once, as a task that was woken is; returns how many frames it read.
    fn turn(connection: &mut Scripted, side: Side, outbox: &Outbox) -> usize {
        let mut read = 0;
        let heard = Heard::default();
        let mut pumping = Box::pin(pump(connection, side, outbox, &heard, |_| {
            read += 1;
            Ok(())
        }));
        let polled = pumping
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        drop(pumping);
        read
    }

    fn large() -> Frame {
        Frame {
            kind: wire::kind::REPLY,
            body: vec![0; 2 * WRITE_AHEAD_BYTES].into(),
        }
    }

    #[test]
    fn what_arrived_while_there_was_too_much_to_write_is_read_once_that_is_written() {
        for side in [Side::Dialled, Side::Accepted] {
            let outbox = Outbox::new(10, usize::MAX);
            outbox.push(large()).unwrap();
            let mut connection = Scripted {
                is_full: true,
                ..Scripted::default()
            };
            assert_eq!(turn(&mut connection, side, &outbox), 0);
            assert!(connection.buffered() > WRITE_AHEAD_BYTES);
            connection.is_full = false;
            connection.reader = None;
            connection
                .arriving
                .push_back(wire::empty(wire::kind::REPLY));
            assert_eq!(turn(&mut connection, side, &outbox), 1, "{side:?}");
            // And whatever comes next wakes it.
            assert!(connection.reader.is_some(), "{side:?}");
        }
    }

    #[test]
    fn the_side_that_dialled_reads_whatever_it_has_to_write_and_the_other_does_not() {
        for (side, expected) in [(Side::Dialled, 1_000), (Side::Accepted, 0)] {
            let outbox = Outbox::new(10, usize::MAX);
            let mut connection = Scripted {
                is_full: true,
                queued: 2 * WRITE_AHEAD_BYTES,
                ..Scripted::default()
            };
            for _ in 0..1_000 {
                connection
                    .arriving
                    .push_back(wire::empty(wire::kind::REPLY));
            }
            assert_eq!(turn(&mut connection, side, &outbox), expected, "{side:?}");
        }
    }
}
