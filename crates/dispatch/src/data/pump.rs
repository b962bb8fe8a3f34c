//! The loop of a data connection's task: frames in, frames out, one flush for all that is there.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use keydispatch_core::Escaped;
use keydispatch_core::message::Frame;

use super::activity::Activity;
use super::outbox::Outbox;
use super::wire::{self, Outgoing, kind};
use crate::transport::Connection;

/// Frames read before others get their turn.
const READ_BUDGET: usize = 256;

/// Bytes read before others get their turn: large calls are answered while more of them arrive.
const READ_BUDGET_BYTES: usize = 256 * 1024;

/// Bytes on their way out beyond which nothing more is taken.
const WRITE_AHEAD_BYTES: usize = 1024 * 1024;

/// Bytes read and written before other tasks, and the sockets of theirs, get their turn: about half a millisecond of
/// encryption, which is what a frame of the control lane then waits for.
const TURN_BYTES: usize = 512 * 1024;

/// Rule: who answers says something at least this often while bytes arrive. Otherwise a caller whose link is slow would
/// hear nothing as long as its requests are on their way, with its pings behind them.
const SIGN_OF_LIFE_MICROS: u64 = 125_000;

/// Why a connection ended that the peer closed between two frames.
pub(super) const CLOSED_BY_PEER: &str = "closed by the peer";

/// Whether frames are read while many bytes are on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// By the calling side: replies lead to nothing more to send. If it waited, too, both sides could wait for the
    /// other to read.
    Always,
    /// By the answering side: a peer that does not read gets no more answered.
    WhileAnswersGo,
}

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) reading: Reading,
    /// The longest frame that the other side takes, without its length.
    pub(super) frame_limit: usize,
}

/// What was taken from an outbox and is not with the connection yet: the next frame is the last of them.
///
/// Rule: whatever ends the pump, another connection may take over, and what was not sent on this one comes first there.
struct Taken<'a> {
    outbox: &'a Outbox,
    next_last: Vec<Outgoing>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut frames = std::mem::take(&mut self.next_last);
        frames.reverse();
        self.outbox.put_back(frames);
    }
}

/// Runs until the outbox is closed and flushed (`Ok`), or the connection is gone (why). A frame that is longer than the
/// other side takes is not sent, but handed back.
pub(super) async fn pump(
    connection: &mut dyn Connection,
    outbox: &Outbox,
    heard: &Activity,
    terms: Terms,
    mut on_frame: impl FnMut(Frame) -> Result<(), String>,
    mut on_too_long: impl FnMut(Outgoing),
) -> Result<(), String> {
    let Terms {
        reading,
        frame_limit,
    } = terms;
    let mut taken = Taken {
        outbox,
        next_last: Vec::new(),
    };
    let mut closed = false;
    let mut received = connection.meter().bytes();
    // Since when bytes arrived and nothing was said.
    let mut unanswered = None;
    poll_fn(|cx| {
        let mut turn = 0;
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
                                    peer = %Escaped(peer),
                                    why = %Escaped(&why),
                                    "closing a data connection: the peer sent a frame that does not decode"
                                );
                                return Poll::Ready(Err(why));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            error.log_fault(connection.peer());
                            return Poll::Ready(Err(error.to_string()));
                        }
                        Poll::Ready(None) => {
                            return Poll::Ready(Err(CLOSED_BY_PEER.to_owned()));
                        }
                        Poll::Pending => {
                            unread = false;
                            break;
                        }
                    }
                }
                busy |= heard_some;
                turn += bytes;
                if connection.meter().bytes() != received {
                    received = connection.meter().bytes();
                    let now = heard.record_read();
                    let since = *unanswered.get_or_insert(now);
                    if reading == Reading::WhileAnswersGo && now - since >= SIGN_OF_LIFE_MICROS {
                        unanswered = None;
                        connection.send(wire::empty(kind::PONG));
                    }
                }
            }
            if connection.buffered() < WRITE_AHEAD_BYTES && !closed {
                // Rule: it does not wait before the outbox was asked and had nothing. After what was left of an earlier take
                // it was not: whatever came meanwhile woke nobody, and would lie there until a timer looks.
                busy |= !taken.next_last.is_empty();
                if taken.next_last.is_empty()
                    && let Poll::Ready(end) = outbox.poll_take(cx, &mut taken.next_last)
                {
                    closed = end;
                    busy |= !end;
                    taken.next_last.reverse();
                }
                if !taken.next_last.is_empty() {
                    heard.record_write();
                    unanswered = None;
                }
                let mut sent = 0;
                while connection.buffered() < WRITE_AHEAD_BYTES
                    && let Some(frame) = taken.next_last.pop()
                {
                    sent += frame.bytes();
                    // With its kind.
                    if frame.bytes() >= frame_limit {
                        on_too_long(frame);
                    } else {
                        connection.send_with(frame.frame, frame.rest);
                    }
                }
                outbox.sent(sent);
                turn += sent;
                busy |= !taken.next_last.is_empty();
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
            // Unlike a mere wake, it lets the runtime look at the sockets before this task is polled again.
            if turn >= TURN_BYTES && pin!(tokio::task::yield_now()).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use keydispatch_core::message::Address;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::backlog::Backlog;
    use crate::transport::Transport;
    use crate::transport::tcp::TcpTransport;

    fn outbox() -> Outbox {
        Outbox::new(1_000, 1 << 30, Backlog::new(1 << 30).share())
    }

    fn terms(reading: Reading) -> Terms {
        Terms {
            reading,
            frame_limit: 1 << 20,
        }
    }

    #[tokio::test]
    async fn many_large_frames_both_ways_never_wait_for_each_other() {
        const FRAMES: usize = 64;
        let transport = TcpTransport::plaintext("127.0.0.1:0").unwrap();
        let address: Address = transport.local_address();
        let (near, far) = tokio::join!(transport.dial(&address), transport.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.set_frame_limit(1 << 20);
        far.set_frame_limit(1 << 20);
        let (calls, replies) = (outbox(), outbox());
        let (heard_near, heard_far) = (Activity::default(), Activity::default());
        for _ in 0..FRAMES {
            let body = vec![7; 512 * 1024].into();
            calls.push(Frame { kind: 64, body }).unwrap();
        }
        let mut replied = 0;
        let count = |_| {
            replied += 1;
            if replied == FRAMES {
                calls.close();
            }
            Ok(())
        };
        let calling = pump(
            &mut *near,
            &calls,
            &heard_near,
            terms(Reading::Always),
            count,
            |_| {},
        );
        let answering = pump(
            &mut *far,
            &replies,
            &heard_far,
            terms(Reading::WhileAnswersGo),
            |frame| {
                replies.push(frame).unwrap();
                Ok(())
            },
            |_| {},
        );
        let both = async {
            tokio::select! { ended = calling => ended, ended = answering => ended }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
        assert_eq!(ended.ok(), Some(Ok(())));
        assert_eq!(replied, FRAMES);
    }

    #[tokio::test]
    async fn what_comes_after_more_than_is_written_ahead_is_sent_at_once() {
        let transport = TcpTransport::plaintext("127.0.0.1:0").unwrap();
        let address: Address = transport.local_address();
        let (near, far) = tokio::join!(transport.dial(&address), transport.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        far.set_frame_limit(1 << 20);
        let calls = Arc::new(outbox());
        let call = |bytes: usize| {
            let body = vec![7; bytes].into();
            calls.push(Frame { kind: 64, body }).unwrap();
        };
        // One of them is left when as much as is written ahead was taken.
        for _ in 0..4 {
            call(400 * 1024);
        }
        // A task of its own, which nothing wakes but its outbox and its socket.
        let sent = Arc::clone(&calls);
        let calling = tokio::spawn(async move {
            let (on_frame, heard) = (|_| Ok(()), Activity::default());
            pump(
                &mut *near,
                &sent,
                &heard,
                terms(Reading::Always),
                on_frame,
                |_| {},
            )
            .await
        });
        let reading = async {
            for number in 0..8 {
                let frame = poll_fn(|cx| far.poll_frame(cx)).await;
                assert!(frame.is_some_and(|frame| frame.is_ok()));
                if number >= 3 {
                    call(10);
                }
            }
        };
        let all = tokio::time::timeout(Duration::from_secs(20), reading).await;
        assert!(all.is_ok());
        calling.abort();
    }

    #[tokio::test]
    async fn on_a_slow_link_parts_of_frames_are_heard_and_answered_with_signs_of_life() {
        const FRAME_BYTES: u32 = 1 << 20;
        let transport = TcpTransport::plaintext("127.0.0.1:0").unwrap();
        let address: Address = transport.local_address();
        let dialled = tokio::net::TcpStream::connect(address.as_str());
        let (slow, far) = tokio::join!(dialled, transport.accept());
        let (mut slow, mut far) = (slow.unwrap(), far.unwrap());
        far.set_frame_limit(2 << 20);
        let (replies, heard) = (outbox(), Activity::default());
        let answering = pump(
            &mut *far,
            &replies,
            &heard,
            terms(Reading::WhileAnswersGo),
            |_| panic!("the frame never comes to its end"),
            |_| {},
        );
        // A few bytes of one large frame now and then, until the other side says that it hears them.
        let sending = async {
            slow.write_all(&FRAME_BYTES.to_le_bytes()).await.unwrap();
            let mut sign = [0; 5];
            loop {
                slow.write_all(&[7; 64]).await.unwrap();
                let answer = slow.read_exact(&mut sign);
                if let Ok(read) = tokio::time::timeout(Duration::from_millis(20), answer).await {
                    read.unwrap();
                    return sign;
                }
            }
        };
        let both = async {
            tokio::select! { sign = sending => sign, _ = answering => panic!("it ended") }
        };
        let sign = tokio::time::timeout(Duration::from_secs(20), both).await;
        assert_eq!(sign.ok(), Some([1, 0, 0, 0, kind::PONG]));
        // No frame has arrived as a whole.
        assert_ne!(heard.last_read(), keydispatch_core::Instant::ZERO);
    }
}
