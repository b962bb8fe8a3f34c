//! Frames on their way to one connection's task: bounded, and handed over all at once.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use keydispatch_core::message::Frame;

use super::wire::{Outgoing, kind};
use crate::backlog::Share;
use crate::mutex::Mutex;

/// Replies of so many bytes together are always taken.
///
/// Rule: a connection whose replies find no room is closed, since its peer does not read. Whoever reads must not be closed
/// because others do not.
const ALWAYS_BYTES: usize = 1024 * 1024;

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Full,
    Closed,
    /// The last that is new was sent already.
    Sealed,
}

#[derive(Debug, Default)]
struct OutboxInner {
    frames: Vec<Outgoing>,
    bytes: usize,
    closed: bool,
    /// Nothing that is new is taken any more; answers and the like are.
    sealed: bool,
    /// It counts as closed once it is empty.
    finishing: bool,
    /// The task that waits for frames; none while it is at work.
    waiting: Option<Waker>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    inner: Mutex<OutboxInner>,
    max_frames: usize,
    max_bytes: usize,
    /// Where its frames are counted until they are with the connection.
    share: Arc<Share>,
}

impl Outbox {
    pub(crate) fn new(max_frames: usize, max_bytes: usize, share: Arc<Share>) -> Self {
        Outbox {
            inner: Mutex::default(),
            max_frames,
            max_bytes,
            share,
        }
    }

    /// Takes a frame, unless it is full. One frame is always taken, however large, where the node has room for it.
    pub(crate) fn push(&self, frame: impl Into<Outgoing>) -> Result<(), PushError> {
        let frame = frame.into();
        let bytes = frame.bytes();
        let mut inner = self.lock();
        if inner.closed {
            return Err(PushError::Closed);
        }
        if inner.sealed && kind::is_new(frame.frame.kind) {
            return Err(PushError::Sealed);
        }
        let full = inner.frames.len() >= self.max_frames || inner.bytes + bytes > self.max_bytes;
        if full && !inner.frames.is_empty() {
            return Err(PushError::Full);
        }
        let always = match frame.frame.kind {
            kind::REPLY => inner.bytes + bytes <= ALWAYS_BYTES,
            other => !kind::is_new(other),
        };
        if always {
            self.share.force(bytes);
        } else if !self.share.add(bytes) {
            return Err(PushError::Full);
        }
        inner.bytes += bytes;
        inner.frames.push(frame);
        let waiting = inner.waiting.take();
        drop(inner);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        Ok(())
    }

    /// Moves everything into `into`, which is empty; pending where there is nothing, and true once it is closed. What was
    /// taken counts as waiting until it is [`sent`](Self::sent), or [put back](Self::put_back).
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, into: &mut Vec<Outgoing>) -> Poll<bool> {
        debug_assert!(into.is_empty());
        let mut inner = self.lock();
        if inner.frames.is_empty() {
            if inner.closed || inner.finishing {
                return Poll::Ready(true);
            }
            let same = inner
                .waiting
                .as_ref()
                .is_some_and(|waiting| waiting.will_wake(cx.waker()));
            if !same {
                inner.waiting = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut inner.frames, into);
        inner.bytes = 0;
        Poll::Ready(false)
    }

    /// So many bytes of what was taken are with the connection.
    pub(crate) fn sent(&self, bytes: usize) {
        self.share.give_back(bytes);
    }

    /// What was taken and not sent, in the order in which it was to be sent: it comes before everything else.
    pub(crate) fn put_back(&self, mut frames: Vec<Outgoing>) {
        if frames.is_empty() {
            return;
        }
        let bytes = frames.iter().map(Outgoing::bytes).sum();
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            return self.share.give_back(bytes);
        }
        frames.append(&mut inner.frames);
        inner.frames = frames;
        inner.bytes += bytes;
    }

    /// Rule: `last` goes out behind everything that is new, and nothing new behind it. Whether a frame came before is settled
    /// by the lock that both take.
    pub(crate) fn seal(&self, last: Option<Frame>) {
        let mut inner = self.lock();
        if inner.closed || std::mem::replace(&mut inner.sealed, true) {
            return;
        }
        if let Some(last) = last {
            self.share.force(last.body.len());
            inner.bytes += last.body.len();
            inner.frames.push(last.into());
        }
        let waiting = inner.waiting.take();
        drop(inner);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Ends once everything that is in it was handed over.
    pub(crate) fn finish(&self) {
        let waiting = {
            let mut inner = self.lock();
            inner.finishing = true;
            inner.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// True where something waits that starts something on the other side.
    pub(crate) fn has_new(&self) -> bool {
        let inner = self.lock();
        let mut frames = inner.frames.iter();
        frames.any(|outgoing| kind::is_new(outgoing.frame.kind))
    }

    /// The numbers of the calls that wait.
    pub(crate) fn calls(&self) -> HashSet<u64> {
        let inner = self.lock();
        let calls = inner.frames.iter().filter_map(Outgoing::as_call);
        calls.map(|header| header.number).collect()
    }

    /// Takes out what does not stay, in the order in which it came. What comes meanwhile waits for the end of it, so that
    /// it stays behind.
    pub(crate) fn take_out(&self, mut stays: impl FnMut(&Outgoing) -> bool) -> Vec<Outgoing> {
        let mut inner = self.lock();
        let out: Vec<Outgoing> = inner
            .frames
            .extract_if(.., |outgoing| !stays(outgoing))
            .collect();
        let before = inner.bytes;
        inner.bytes = inner.frames.iter().map(Outgoing::bytes).sum();
        self.share.give_back(before - inner.bytes);
        out
    }

    /// Takes out one call; false where it is not there any more, so that it may have been written.
    pub(crate) fn take_back(&self, number: u64) -> bool {
        let mut inner = self.lock();
        let is = |outgoing: &Outgoing| {
            let header = outgoing.as_call();
            header.is_some_and(|header| header.number == number)
        };
        let Some(at) = inner.frames.iter().position(is) else {
            return false;
        };
        // Those behind it do not move: many that wait for one peer give up one after the other.
        let nothing = Outgoing::from(super::wire::empty(kind::PONG));
        let before = std::mem::replace(&mut inner.frames[at], nothing);
        inner.bytes -= before.bytes();
        self.share.give_back(before.bytes());
        true
    }

    /// What was not taken.
    pub(crate) fn drain(&self) -> Vec<Outgoing> {
        let mut inner = self.lock();
        self.share.give_back(std::mem::take(&mut inner.bytes));
        std::mem::take(&mut inner.frames)
    }

    /// Takes no more; what is in it is still handed over.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.lock();
            inner.closed = true;
            inner.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().frames.len()
    }

    fn lock(&self) -> MutexGuard<'_, OutboxInner> {
        self.inner.lock()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog::Backlog;
    use crate::data::wire;

    fn unbounded() -> Arc<Share> {
        Backlog::new(usize::MAX).share()
    }

    fn large(kind: u8, bytes: usize) -> Frame {
        Frame {
            kind,
            body: vec![0; bytes].into(),
        }
    }

    #[test]
    fn what_is_in_it_counts_as_waiting_until_it_is_sent_however_it_leaves() {
        let backlog = Backlog::new(1_000);
        let outbox = Outbox::new(100, usize::MAX, backlog.share());
        assert_eq!(outbox.push(large(kind::CAST, 300)), Ok(()));
        assert_eq!(outbox.push(large(kind::CAST, 300)), Ok(()));
        assert_eq!(outbox.push(large(kind::CAST, 600)), Err(PushError::Full));
        // What has to be said is said.
        assert_eq!(outbox.push(large(kind::FAILURE, 600)), Ok(()));
        assert_eq!(backlog.waiting(), 1_200);
        let mut taken = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(outbox.poll_take(&mut cx, &mut taken), Poll::Ready(false));
        assert_eq!(backlog.waiting(), 1_200);
        outbox.sent(taken.remove(0).bytes());
        assert_eq!(backlog.waiting(), 900);
        assert_eq!(outbox.push(large(kind::REPLY, 7)), Ok(()));
        outbox.put_back(taken);
        let kinds = |frames: &[Outgoing]| -> Vec<u8> {
            frames.iter().map(|frame| frame.frame.kind).collect()
        };
        let out = outbox.take_out(|frame| frame.frame.kind != kind::CAST);
        assert_eq!(kinds(&out), [kind::CAST]);
        assert_eq!(backlog.waiting(), 607);
        assert_eq!(kinds(&outbox.drain()), [kind::FAILURE, kind::REPLY]);
        assert_eq!(backlog.waiting(), 0);
        outbox.push(large(kind::CAST, 300)).unwrap();
        drop(outbox);
        assert_eq!(backlog.waiting(), 0);
    }

    #[test]
    fn some_replies_are_taken_though_others_have_used_up_the_room() {
        let backlog = Backlog::new(1_000);
        let other = backlog.share();
        other.force(2_000);
        let outbox = Outbox::new(100, usize::MAX, backlog.share());
        assert_eq!(outbox.push(large(kind::CALL, 1)), Err(PushError::Full));
        assert_eq!(outbox.push(large(kind::REPLY, ALWAYS_BYTES)), Ok(()));
        assert_eq!(outbox.push(large(kind::REPLY, 1)), Err(PushError::Full));
    }

    #[test]
    fn a_full_outbox_refuses_and_an_empty_one_takes_any_frame() {
        let outbox = Outbox::new(2, 10, unbounded());
        let large = Frame {
            kind: 64,
            body: vec![0; 100].into(),
        };
        assert_eq!(outbox.push(large.clone()), Ok(()));
        assert_eq!(outbox.push(large), Err(PushError::Full));
        assert_eq!(outbox.drain().len(), 1);
        assert_eq!(outbox.push(wire::empty(65)), Ok(()));
        assert_eq!(outbox.push(wire::empty(65)), Ok(()));
        assert_eq!(outbox.push(wire::empty(65)), Err(PushError::Full));
        outbox.close();
        assert_eq!(outbox.push(wire::empty(65)), Err(PushError::Closed));
        assert_eq!(outbox.len(), 2);
    }

    #[test]
    fn nothing_new_goes_behind_the_last_and_answers_do() {
        let outbox = Outbox::new(10, 1_000, unbounded());
        outbox.push(wire::empty(kind::CALL)).unwrap();
        outbox.seal(Some(wire::empty(kind::GONE_AWAY)));
        outbox.seal(Some(wire::empty(kind::GONE_AWAY)));
        for new in [kind::CALL, kind::CAST, kind::BROADCAST] {
            assert_eq!(outbox.push(wire::empty(new)), Err(PushError::Sealed));
        }
        for other in [kind::CANCEL, kind::PING, kind::FENCED] {
            assert_eq!(outbox.push(wire::empty(other)), Ok(()));
        }
        let kinds: Vec<u8> = outbox
            .drain()
            .into_iter()
            .map(|outgoing| outgoing.frame.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                kind::CALL,
                kind::GONE_AWAY,
                kind::CANCEL,
                kind::PING,
                kind::FENCED
            ]
        );
    }
}
