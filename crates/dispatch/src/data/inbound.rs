//! The answering side of one data connection.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use keydispatch_core::Escaped;
use keydispatch_core::message::Frame;
use keydispatch_core::{Codec, KeyBytes, MAX_KEY_BYTES, NodeId, NodeName};
use serde::Serialize;

use super::leaving::Admitted;
use super::outbox::{Outbox, Rejected};
use super::places::Inbound;
use super::pump::{self, Reading, Terms};
use super::wire::{self, BoundedHeader, CallHeader, CastHeader, KeyedHeader, Outgoing, kind};
use super::{DataPlane, Heard};
use crate::backlog::Share;
use crate::call::Failure;
use crate::codec::EncodeError;
use crate::deadline;
use crate::mailbox::letter::{Letter, Reach};
use crate::trace::{self, TraceParent};
use crate::transport::Connection;

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
    outbox: Outbox,
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
        let mut cancelled = self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let was = cancelled.remove(&number);
        self.cancelled_count
            .store(cancelled.len(), Ordering::Relaxed);
        was
    }

    fn cancel(&self, number: u64) {
        let mut cancelled = self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        let trace = traces.remove(&number);
        self.traces_count.store(traces.len(), Ordering::Relaxed);
        trace
    }

    fn note_trace(&self, number: u64, parent: TraceParent) {
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        if traces.len() >= MAX_TRACES {
            // Those of calls that were refused, for the most part: nobody asks for them.
            traces.clear();
        }
        traces.insert(number, parent);
        self.traces_count.store(traces.len(), Ordering::Relaxed);
    }

    pub(super) fn push(&self, frame: impl Into<Outgoing>) {
        if self.outbox.push(frame) == Err(Rejected::Full) {
            // The peer does not read: its connection is closed, and it knows that replies are lost.
            self.outbox.close();
        }
    }
}

/// A connection that a peer opened, while it is served.
pub(super) struct Serving {
    caller: Arc<Caller>,
    inbound: Arc<Inbound>,
    plane: Arc<DataPlane>,
    /// Whoever leaves waits for it until it is dropped.
    _admitted: Admitted,
}

/// Rule: however the task ends, also by a panic, the connection is not counted any more, and what is still replied goes
/// nowhere instead of piling up.
impl Drop for Serving {
    fn drop(&mut self) {
        self.caller.outbox.close();
        self.caller.outbox.drain();
        self.plane.places.remove(&self.inbound);
    }
}

impl Serving {
    pub(super) fn new(
        caller: Arc<Caller>,
        inbound: Arc<Inbound>,
        admitted: Admitted,
        plane: Arc<DataPlane>,
    ) -> Self {
        Serving {
            caller,
            inbound,
            plane,
            _admitted: admitted,
        }
    }

    /// Serves it until the peer closes it or is gone, a later connection has taken its place, or the node stops.
    pub(super) async fn run(self, mut connection: Box<dyn Connection>) {
        let Serving {
            caller,
            inbound,
            plane,
            _admitted: _,
        } = &self;
        let peer = &inbound.peer.name;
        connection.set_frame_limit(wire::max_frame_bytes(plane.max_payload_bytes));
        let heard = Heard::default();
        let serving = pump::pump(
            &mut *connection,
            &caller.outbox,
            &heard,
            Terms {
                reading: Reading::WhileAnswersGo,
                frame_limit: wire::max_frame_bytes(caller.max_payload_bytes),
            },
            |frame| {
                inbound.handle(&plane.places, || {
                    handle(frame, &inbound.peer, caller, plane)
                })
            },
            // Replies are encoded with that limit, and everything else is short.
            |_| {},
        );
        let why = tokio::select! {
            ended = serving => match ended {
                Ok(()) => return,
                Err(why) => why,
            },
            () = inbound.replaced() => "a later one has taken its place".to_owned(),
            () = inbound.forsaken(&heard, |node| plane.is_up_as(node)) => {
                "nothing was heard on it for long".to_owned()
            }
        };
        tracing::debug!(%peer, why = %Escaped(why), "a data connection from a peer is gone");
    }
}

fn handle(
    frame: Frame,
    peer: &NodeId,
    caller: &Arc<Caller>,
    plane: &DataPlane,
) -> Result<(), String> {
    match frame.kind {
        kind::CALL => {
            let (header, message) = wire::split::<CallHeader>(&frame.body)?;
            plane
                .counters
                .calls_received
                .fetch_add(1, Ordering::Relaxed);
            let timeout = header.timeout();
            match plane.local(header.sequence) {
                Some(mailbox) => mailbox.call(
                    message,
                    header.format,
                    deadline::after(timeout),
                    Arc::clone(caller),
                    header.number,
                ),
                // Never given again: the service that had this number has ended.
                None => caller.fail(header.number, &Failure::Gone),
            }
        }
        kind::BOUNDED => {
            let (header, message) = wire::split::<BoundedHeader>(&frame.body)?;
            let BoundedHeader { call, refuse_at } = header;
            plane
                .counters
                .calls_received
                .fetch_add(1, Ordering::Relaxed);
            match plane.local(call.sequence) {
                Some(mailbox) => mailbox.call_bounded(
                    message,
                    call.format,
                    deadline::after(call.timeout()),
                    Arc::clone(caller),
                    call.number,
                    NonZeroU8::new(refuse_at),
                ),
                None => caller.fail(call.number, &Failure::Gone),
            }
        }
        kind::CAST => {
            let (header, message) = wire::split::<CastHeader>(&frame.body)?;
            plane
                .counters
                .casts_received
                .fetch_add(1, Ordering::Relaxed);
            let taken = plane.local(header.sequence).is_some_and(|mailbox| {
                mailbox.cast(message, header.format, Some(Arc::clone(caller)))
            });
            if !taken {
                plane.count_dropped_cast(&caller.peer);
            }
        }
        kind::KEYED => {
            let (header, message) = wire::split::<KeyedHeader>(&frame.body)?;
            take_keyed(header, message, caller, plane);
        }
        kind::TOKEN => plane.take_token(peer, frame.body),
        kind::CANCEL => {
            let (number, _) = wire::split::<u64>(&frame.body)?;
            caller.cancel(number);
        }
        kind::TRACE => {
            let (number, parent) = wire::split::<u64>(&frame.body)?;
            // Rule: nothing is kept that nobody would look at.
            if trace::is_heard()
                && let Some(parent) = TraceParent::from_bytes(&parent)
            {
                caller.note_trace(number, parent);
            }
        }
        kind::PING => caller.push(wire::empty(kind::PONG)),
        kind::GONE_AWAY => caller.gone.store(true, Ordering::Release),
        kind::FENCED => {
            let (number, _) = wire::split::<u64>(&frame.body)?;
            caller.fence.fetch_max(number, Ordering::AcqRel);
        }
        kind::BROADCAST => plane.deliver(caller, &frame.body)?,
        // Of a later minor version.
        _ => {}
    }
    Ok(())
}

fn take_keyed(header: KeyedHeader, message: Bytes, caller: &Arc<Caller>, plane: &DataPlane) {
    let KeyedHeader { call, is_cast, key } = header;
    let counter = if is_cast {
        &plane.counters.casts_received
    } else {
        &plane.counters.calls_received
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let reach = Reach::Remote {
        caller: Arc::clone(caller),
        number: call.number,
    };
    if key.len() > MAX_KEY_BYTES {
        let cause = format!("a key has at most {MAX_KEY_BYTES} bytes");
        return reach.refuse(Failure::NoState { cause });
    }
    let deadline = deadline::after(call.timeout());
    let key = KeyBytes::from_canonical(key);
    let letter = Letter::new(key, message, call.format, is_cast, deadline, reach);
    let letter = std::cell::Cell::new(Some(letter));
    // A letter that nobody takes says by itself that it has not run.
    plane.with_local(call.sequence, |mailbox| {
        match (mailbox.keyed(), letter.take()) {
            (Some(keyed), Some(letter)) => keyed.deliver(letter),
            (None, Some(letter)) => letter.refuse(Failure::Incompatible { theirs: 0 }),
            (_, None) => {}
        }
    });
}
