//! The answering side of one data connection.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keydispatch_core::message::{Frame, Hello};
use keydispatch_core::{Escaped, KeyBytes, MAX_KEY_BYTES, NodeId, Topic};

use super::activity::Activity;
use super::caller::Caller;
use super::callers::{AdmittedCaller, Callers, Greeted};
use super::contact::Contact;
use super::error::LaneError;
use super::lane_runtime::LaneRuntime;
use super::local::Local;
use super::mailbox::letter::{Letter, Reach};
use super::peers::Peers;
use super::places::Inbound;
use super::pump::{self, Reading, Terms};
use super::tokens::TokenInputs;
use super::topics::Topics;
use super::wire::{self, BoundedHeader, CallHeader, CastHeader, FrameError, KeyedHeader, kind};
use crate::call::Failure;
use crate::deadline;
use crate::trace::{self, TraceParent};
use crate::transport::Connection;

/// Peers of a lower minor version do not know how a node goes away in good order.
const MINOR_GOES_AWAY: u16 = 1;

/// What answers the connections that peers open.
pub(crate) struct Answering {
    pub(super) runtime: Arc<LaneRuntime>,
    pub(super) local: Arc<Local>,
    pub(super) peers: Arc<Peers>,
    pub(super) topics: Arc<Topics>,
    pub(super) callers: Arc<Callers>,
    pub(super) tokens: TokenInputs,
}

impl Answering {
    /// A peer has said Hello; none where it is too late for that.
    pub(crate) fn greet(&self) -> Option<Greeted> {
        self.callers.greet()
    }

    /// True once the node has stopped.
    pub(crate) fn is_closed(&self) -> bool {
        self.runtime.is_closed()
    }

    /// A peer opened a connection, and its Hello was accepted.
    pub(crate) fn serve(self: &Arc<Self>, mut connection: Box<dyn Connection>, theirs: Hello) {
        let Some(inbound) = self.callers.places.add(&theirs) else {
            tracing::warn!(peer = %theirs.node, "closing a data connection: there are too many");
            return;
        };
        // Rule: a reply may be as long as both sides take; over that it fails its call alone.
        let contact = Contact::default();
        contact.offers(&theirs.offers);
        let limit = contact.max_payload_bytes(self.runtime.max_payload_bytes());
        let share = self.runtime.backlog.share_of(&theirs.node.name);
        let old = theirs.minor < MINOR_GOES_AWAY;
        let caller = Caller::new(theirs.node.name, share, limit, old);
        let admitted = self.callers.admit(&caller);
        let serving = Serving::new(caller, inbound, admitted, Arc::clone(self));
        // It was accepted on the node's own threads.
        connection.move_here();
        self.runtime
            .spawn("data connection of a peer", serving.run(connection));
    }

    /// A broadcast from a peer.
    fn deliver(&self, from: &Caller, body: &Bytes) -> Result<(), FrameError> {
        let (topic, payload) = wire::split::<Topic>(body)?;
        self.topics
            .publish_from(&topic, from.peer(), payload, from.share());
        Ok(())
    }
}

/// A connection that a peer opened, while it is served.
pub(super) struct Serving {
    caller: Arc<Caller>,
    inbound: Arc<Inbound>,
    answering: Arc<Answering>,
    /// Whoever leaves waits for it until it is dropped.
    _admitted: AdmittedCaller,
}

/// Rule: however the task ends, also by a panic, the connection is not counted any more, and what is still replied goes
/// nowhere instead of piling up.
impl Drop for Serving {
    fn drop(&mut self) {
        self.caller.end();
        self.answering.callers.places.remove(&self.inbound);
    }
}

impl Serving {
    pub(super) fn new(
        caller: Arc<Caller>,
        inbound: Arc<Inbound>,
        admitted: AdmittedCaller,
        answering: Arc<Answering>,
    ) -> Self {
        Serving {
            caller,
            inbound,
            answering,
            _admitted: admitted,
        }
    }

    /// Serves it until the peer closes it or is gone, a later connection has taken its place, or the node stops.
    pub(super) async fn run(self, mut connection: Box<dyn Connection>) {
        let Serving {
            caller,
            inbound,
            answering,
            _admitted: _,
        } = &self;
        let peer = &inbound.peer.name;
        connection.set_frame_limit(wire::max_frame_bytes(answering.runtime.max_payload_bytes()));
        let heard = Activity::default();
        let serving = pump::pump(
            &mut *connection,
            &caller.outbox,
            &heard,
            Terms {
                reading: Reading::WhileAnswersGo,
                frame_limit: wire::max_frame_bytes(caller.max_payload_bytes()),
            },
            |frame| {
                inbound.handle(&answering.callers.places, || {
                    handle(frame, &inbound.peer, caller, answering)
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
            () = inbound.replaced() => LaneError::Replaced,
            () = inbound.forsaken(&heard, |node| answering.peers.is_up_as(node)) => LaneError::Silent,
        };
        tracing::debug!(%peer, why = %Escaped(why), "a data connection from a peer is gone");
    }
}

fn handle(
    frame: Frame,
    peer: &NodeId,
    caller: &Arc<Caller>,
    answering: &Answering,
) -> Result<(), FrameError> {
    match frame.kind {
        kind::CALL => {
            let (header, message) = wire::split::<CallHeader>(&frame.body)?;
            answering
                .runtime
                .counters
                .calls_received
                .fetch_add(1, Ordering::Relaxed);
            let timeout = header.timeout();
            match answering.local.get(header.sequence) {
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
            answering
                .runtime
                .counters
                .calls_received
                .fetch_add(1, Ordering::Relaxed);
            match answering.local.get(call.sequence) {
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
            answering
                .runtime
                .counters
                .casts_received
                .fetch_add(1, Ordering::Relaxed);
            let taken = answering.local.get(header.sequence).is_some_and(|mailbox| {
                mailbox.cast(message, header.format, Some(Arc::clone(caller)))
            });
            if !taken {
                answering.runtime.counters.count_dropped_cast(caller.peer());
            }
        }
        kind::KEYED => {
            let (header, message) = wire::split::<KeyedHeader>(&frame.body)?;
            take_keyed(header, message, caller, answering);
        }
        kind::TOKEN => answering.tokens.take(peer, frame.body),
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
        kind::GONE_AWAY => caller.goes(),
        kind::FENCED => {
            let (number, _) = wire::split::<u64>(&frame.body)?;
            caller.passes(number);
        }
        kind::BROADCAST => answering.deliver(caller, &frame.body)?,
        // Of a later minor version.
        _ => {}
    }
    Ok(())
}

fn take_keyed(header: KeyedHeader, message: Bytes, caller: &Arc<Caller>, answering: &Answering) {
    let KeyedHeader { call, is_cast, key } = header;
    let counter = if is_cast {
        &answering.runtime.counters.casts_received
    } else {
        &answering.runtime.counters.calls_received
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
    answering.local.with(call.sequence, |mailbox| {
        match (mailbox.keyed(), letter.take()) {
            (Some(keyed), Some(letter)) => keyed.deliver(letter),
            (None, Some(letter)) => letter.refuse(Failure::Incompatible { theirs: 0 }),
            (_, None) => {}
        }
    });
}
