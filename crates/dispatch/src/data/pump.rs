//! The loop of a data connection's task: frames in, frames out, one flush for all that is there.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use keydispatch_core::Escaped;
use keydispatch_core::message::Frame;

use super::activity::Activity;
use super::error::LaneError;
use super::outbox::Outbox;
use super::wire::{self, FrameError, Outgoing, kind};
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

/// What a turn of the pump read.
struct Read {
    /// A frame, at least.
    some: bool,
    /// More may have arrived than was read.
    more: bool,
    bytes: usize,
}

/// What a turn of the pump wrote.
struct Written {
    /// There may be more to write.
    more: bool,
    bytes: usize,
}

/// Runs one connection: [`poll`](Self::poll) reads, writes and flushes, and reads again as long as there is something to do.
///
/// Dropped, it leaves what was not sent in the outbox.
struct Pump<'a, F, T> {
    connection: &'a mut dyn Connection,
    taken: Taken<'a>,
    heard: &'a Activity,
    terms: Terms,
    on_frame: F,
    on_too_long: T,
    /// The outbox is closed, and all of it was taken.
    closed: bool,
    /// Bytes that had arrived at the last look.
    received: u64,
    /// Since when bytes arrived and nothing was said.
    unanswered: Option<u64>,
}

/// Runs until the outbox is closed and flushed (`Ok`), or the connection is gone (why). A frame that is longer than the
/// other side takes is not sent, but handed back.
pub(super) async fn pump(
    connection: &mut dyn Connection,
    outbox: &Outbox,
    heard: &Activity,
    terms: Terms,
    on_frame: impl FnMut(Frame) -> Result<(), FrameError>,
    on_too_long: impl FnMut(Outgoing),
) -> Result<(), LaneError> {
    let received = connection.meter().bytes();
    let mut pump = Pump {
        connection,
        taken: Taken {
            outbox,
            next_last: Vec::new(),
        },
        heard,
        terms,
        on_frame,
        on_too_long,
        closed: false,
        received,
        unanswered: None,
    };
    poll_fn(|cx| pump.poll(cx)).await
}

impl<F, T> Pump<'_, F, T>
where
    F: FnMut(Frame) -> Result<(), FrameError>,
    T: FnMut(Outgoing),
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let mut turn = 0;
        loop {
            // What is not looked at now is looked at once there is room.
            let mut busy = !self.has_room();
            let mut unread = false;
            if self.terms.reading == Reading::Always || self.has_room() {
                let read = self.poll_read(cx)?;
                unread = read.more;
                busy |= read.some;
                turn += read.bytes;
            }
            if self.has_room() && !self.closed {
                let written = self.poll_write(cx);
                busy |= written.more;
                turn += written.bytes;
            }
            if self.poll_flush(cx)?.is_pending()
                && !(unread && self.terms.reading == Reading::Always)
            {
                return Poll::Pending;
            }
            if self.closed && self.connection.buffered() == 0 {
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
    }

    fn has_room(&self) -> bool {
        self.connection.buffered() < WRITE_AHEAD_BYTES
    }

    /// Handles what has arrived, as much as others can wait for.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Read, LaneError> {
        let mut read = Read {
            some: false,
            more: true,
            bytes: 0,
        };
        for _ in 0..READ_BUDGET {
            if read.bytes >= READ_BUDGET_BYTES {
                break;
            }
            match self.connection.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    read.some = true;
                    read.bytes += frame.body.len();
                    if let Err(why) = (self.on_frame)(frame) {
                        let peer = self.connection.peer();
                        tracing::warn!(
                            peer = %Escaped(peer),
                            why = %Escaped(&why),
                            "closing a data connection: the peer sent a frame that does not decode"
                        );
                        return Err(why.into());
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    error.log_fault(self.connection.peer());
                    return Err(error.into());
                }
                Poll::Ready(None) => return Err(LaneError::ClosedByPeer),
                Poll::Pending => {
                    read.more = false;
                    break;
                }
            }
        }
        if self.connection.meter().bytes() != self.received {
            self.received = self.connection.meter().bytes();
            let now = self.heard.record_read();
            let since = *self.unanswered.get_or_insert(now);
            if self.terms.reading == Reading::WhileAnswersGo && now - since >= SIGN_OF_LIFE_MICROS {
                self.unanswered = None;
                self.connection.send(wire::empty(kind::PONG));
            }
        }
        Ok(read)
    }

    /// Hands the connection what is in the outbox, as much as is written ahead.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Written {
        // Rule: it does not wait before the outbox was asked and had nothing. After what was left of an earlier take
        // it was not: whatever came meanwhile woke nobody, and would lie there until a timer looks.
        let mut more = !self.taken.next_last.is_empty();
        if self.taken.next_last.is_empty()
            && let Poll::Ready(end) = self.taken.outbox.poll_take(cx, &mut self.taken.next_last)
        {
            self.closed = end;
            more |= !end;
            self.taken.next_last.reverse();
        }
        if !self.taken.next_last.is_empty() {
            self.heard.record_write();
            self.unanswered = None;
        }
        let mut bytes = 0;
        while self.has_room()
            && let Some(frame) = self.taken.next_last.pop()
        {
            bytes += frame.bytes();
            // With its kind.
            if frame.bytes() >= self.terms.frame_limit {
                (self.on_too_long)(frame);
            } else {
                self.connection.send_with(frame.frame, frame.rest);
            }
        }
        self.taken.outbox.sent(bytes);
        more |= !self.taken.next_last.is_empty();
        Written { more, bytes }
    }

    /// Hands the network what the connection holds; pending where it takes no more for now.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, LaneError> {
        if self.connection.buffered() == 0 {
            return Ok(Poll::Ready(()));
        }
        match self.connection.poll_flush(cx) {
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => Ok(Poll::Pending),
        }
    }
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
        assert!(matches!(ended, Ok(Ok(()))), "{ended:?}");
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
