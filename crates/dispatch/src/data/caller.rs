//! Whoever is on the other side of a connection that it opened, and what it is sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use keydispatch_core::message::Frame;
use keydispatch_core::{Codec, NodeName};
use serde::Serialize;

use super::outbox::{Outbox, PushError};
use super::wire::{self, Outgoing, kind};
use crate::backlog::Share;
use crate::call::Failure;
use crate::codec::EncodeError;
use crate::mutex::Mutex;
use crate::trace::TraceParent;

/// Replies that a peer may leave unread before its connection is closed.
const MAX_REPLIES: usize = 1 << 20;
/// Bytes of them.
const MAX_REPLY_BYTES: usize = 256 * 1024 * 1024;

/// Calls that were cancelled before they were started; more than these are started in vain.
const MAX_CANCELLED: usize = 4_096;

/// Calls that were not started yet whose spans have a parent elsewhere; those of more begin traces of their own.
const MAX_TRACES: usize = 4_096;

/// Whoever is on the other side of a connection that it opened.
#[derive(Debug)]
pub(crate) struct Caller {
    /// The node, as its connection has proven it.
    peer: NodeName,
    pub(super) outbox: Outbox,
    /// What waits here because of it: what it sent, and what it has not read.
    share: Arc<Share>,
    /// The longest reply, in bytes.
    max_payload_bytes: usize,
    cancelled: Mutex<HashSet<u64>>,
    /// How many are in `cancelled`, to be read without its lock.
    cancelled_count: AtomicUsize,
    /// Whose children the spans of calls are that have not been started.
    traces: Mutex<HashMap<u64, TraceParent>>,
    /// How many are in `traces`, to be read without its lock.
    traces_count: AtomicUsize,
    /// It does not know `GO_AWAY` and `FENCE`.
    old: bool,
    /// It has sent the last that is new.
    gone: AtomicBool,
    /// The last fence that it has passed.
    fence: AtomicU64,
}

impl Caller {
    pub(crate) fn new(
        peer: NodeName,
        share: Arc<Share>,
        max_payload_bytes: usize,
        old: bool,
    ) -> Arc<Self> {
        Arc::new(Caller {
            peer,
            outbox: Outbox::new(MAX_REPLIES, MAX_REPLY_BYTES, Arc::clone(&share)),
            share,
            max_payload_bytes,
            cancelled: Mutex::default(),
            cancelled_count: AtomicUsize::new(0),
            traces: Mutex::default(),
            traces_count: AtomicUsize::new(0),
            old,
            gone: AtomicBool::new(false),
            fence: AtomicU64::new(0),
        })
    }

    pub(super) fn is_old(&self) -> bool {
        self.old
    }

    /// The longest reply that it takes, in bytes.
    pub(super) fn max_payload_bytes(&self) -> usize {
        self.max_payload_bytes
    }

    /// It has sent the last that is new.
    pub(super) fn goes(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// It has passed a fence.
    pub(super) fn passes(&self, fence: u64) {
        self.fence.fetch_max(fence, Ordering::AcqRel);
    }

    /// Nothing is sent to it any more, and what waits for it goes nowhere.
    pub(super) fn end(&self) {
        self.outbox.close();
        self.outbox.drain();
    }

    pub(super) fn has_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(super) fn has_passed(&self, fence: u64) -> bool {
        self.fence.load(Ordering::Acquire) >= fence
    }

    /// True once nothing is sent to it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    /// Ends the connection once it has what waits for it.
    pub(super) fn finish(&self) {
        self.outbox.close();
    }

    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// The node that it is on.
    pub(crate) fn peer(&self) -> &NodeName {
        &self.peer
    }

    pub(crate) fn reply<R: Serialize + 'static>(&self, number: u64, codec: Codec, reply: &R) {
        self.answer(kind::REPLY, &number, number, codec, reply);
    }

    /// Replies, and tells what waits here.
    pub(crate) fn reply_told<R: Serialize + 'static>(
        &self,
        number: u64,
        depth: u8,
        codec: Codec,
        reply: &R,
    ) {
        self.answer(kind::TOLD, &(number, depth), number, codec, reply);
    }

    /// Refuses a call by what waits here.
    pub(crate) fn refuse(&self, number: u64, depth: u8) {
        let body = postcard::to_allocvec(&(number, depth)).unwrap_or_default();
        self.push(Frame {
            kind: kind::REFUSED,
            body: body.into(),
        });
    }

    fn answer<H: Serialize, R: Serialize + 'static>(
        &self,
        kind: u8,
        header: &H,
        number: u64,
        codec: Codec,
        reply: &R,
    ) {
        match wire::encode(kind, header, codec, reply, self.max_payload_bytes) {
            Ok(frame) => self.push(frame),
            Err(EncodeError::TooLarge) => self.fail(
                number,
                &Failure::ReplyTooLarge {
                    limit: self.max_payload_bytes as u64,
                },
            ),
            Err(EncodeError::Unfit(cause)) => self.fail(number, &Failure::ReplyEncode { cause }),
        }
    }

    pub(crate) fn fail(&self, number: u64, failure: &Failure) {
        self.push(wire::failure(number, failure));
    }

    /// True where the call was cancelled; forgets that it was.
    pub(crate) fn has_cancelled(&self, number: u64) -> bool {
        if self.cancelled_count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut cancelled = self.cancelled.lock();
        let was = cancelled.remove(&number);
        self.cancelled_count
            .store(cancelled.len(), Ordering::Relaxed);
        was
    }

    pub(super) fn cancel(&self, number: u64) {
        let mut cancelled = self.cancelled.lock();
        if cancelled.len() >= MAX_CANCELLED {
            // Those that are still there were answered before they could be cancelled.
            cancelled.clear();
        }
        cancelled.insert(number);
        self.cancelled_count
            .store(cancelled.len(), Ordering::Relaxed);
    }

    /// The span whose child that of this call is; forgets it.
    pub(crate) fn trace_of(&self, number: u64) -> Option<TraceParent> {
        if self.traces_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut traces = self.traces.lock();
        let trace = traces.remove(&number);
        self.traces_count.store(traces.len(), Ordering::Relaxed);
        trace
    }

    pub(super) fn note_trace(&self, number: u64, parent: TraceParent) {
        let mut traces = self.traces.lock();
        if traces.len() >= MAX_TRACES {
            // Those of calls that were refused, for the most part: nobody asks for them.
            traces.clear();
        }
        traces.insert(number, parent);
        self.traces_count.store(traces.len(), Ordering::Relaxed);
    }

    pub(super) fn push(&self, frame: impl Into<Outgoing>) {
        if self.outbox.push(frame) == Err(PushError::Full) {
            // The peer does not read: its connection is closed, and it knows that replies are lost.
            self.outbox.close();
        }
    }
}
