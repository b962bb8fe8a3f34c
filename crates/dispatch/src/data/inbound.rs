//! The answering side of one data connection.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keydispatch_core::message::Frame;
use keydispatch_core::{Escaped, KeyBytes, MAX_KEY_BYTES, NodeId};

use super::DataPlane;
use super::activity::Activity;
use super::caller::Caller;
use super::leaving::Admitted;
use super::mailbox::letter::{Letter, Reach};
use super::places::Inbound;
use super::pump::{self, Reading, Terms};
use super::wire::{self, BoundedHeader, CallHeader, CastHeader, KeyedHeader, kind};
use crate::call::Failure;
use crate::deadline;
use crate::transport::Connection;

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
        self.caller.end();
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
                plane.count_dropped_cast(caller.peer());
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
        kind::PING => caller.push(wire::empty(kind::PONG)),
        kind::GONE_AWAY => caller.goes(),
        kind::FENCED => {
            let (number, _) = wire::split::<u64>(&frame.body)?;
            caller.passes(number);
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
