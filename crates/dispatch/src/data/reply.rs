//! Where the reply to a call goes, and the chance to give it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use keydispatch_core::NodeName;
use tokio::sync::oneshot;

use super::caller::Caller;
use super::mailbox::queue::{Load, Opened};
use super::wire::max_frame_bytes;
use crate::call::{CallError, Failure};
use crate::codec::{self, CrossError, DecodeError, EncodeError};
use crate::protocol::{Message, Protocol};
use crate::trace::Parent;

/// What a local caller gets instead of a reply.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The service failed the call.
    Failed(CallError),
    /// The call was never handed to the handler: it has not run. A message that came as a value goes back to its caller,
    /// who may send it elsewhere; boxed, so that calls that are answered do not pay for it.
    NotStarted(Option<Box<dyn Any + Send>>),
}

/// Where the reply to a call goes.
pub(crate) enum Route<R> {
    Local(oneshot::Sender<Result<R, Unanswered>>),
    /// To a caller on this node whose protocol is another type, of another version that the service takes: encoded.
    Here(oneshot::Sender<Result<Bytes, Failure>>),
    Remote {
        caller: Arc<Caller>,
        number: u64,
    },
    /// The same, and the caller wants to know what waits here.
    Bounded {
        caller: Arc<Caller>,
        number: u64,
        load: Arc<Load>,
    },
}

impl<R> Route<R> {
    /// True where nobody waits for the reply any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Route::Local(sender) => sender.is_closed(),
            Route::Here(sender) => sender.is_closed(),
            Route::Remote { caller, number } | Route::Bounded { caller, number, .. } => {
                caller.has_cancelled(*number)
            }
        }
    }

    /// Whoever waits for the reply on another node.
    pub(crate) fn caller(&self) -> Option<&Arc<Caller>> {
        match self {
            Route::Local(_) | Route::Here(_) => None,
            Route::Remote { caller, .. } | Route::Bounded { caller, .. } => Some(caller),
        }
    }

    /// Whose child the span of its handler is; `here` is the span of a call of this node.
    pub(crate) fn parent(&self, here: Option<Box<tracing::Span>>) -> Parent {
        match self {
            Route::Local(_) | Route::Here(_) => Parent::Here(here),
            Route::Remote { caller, number } | Route::Bounded { caller, number, .. } => {
                Parent::Elsewhere {
                    caller: caller.peer().clone(),
                    parent: caller.trace_of(*number),
                }
            }
        }
    }

    /// Fails an encoded call, whose caller knows its version and where it sent it.
    pub(super) fn refuse(self, failure: Failure) {
        match self {
            // Never encoded: dropping the route says that it was not answered.
            Route::Local(_) => {}
            Route::Here(sender) => {
                // The caller may have gone.
                let _ = sender.send(Err(failure));
            }
            Route::Remote { caller, number } | Route::Bounded { caller, number, .. } => {
                caller.fail(number, &failure);
            }
        }
    }

    pub(crate) fn fail(self, failure: Failure, ours: u32, node: &NodeName) {
        match self {
            Route::Local(sender) => {
                // The caller may have gone.
                let _ = sender.send(Err(Unanswered::Failed(failure.into_error(ours, node))));
            }
            other => other.refuse(failure),
        }
    }
}

/// The chance to reply to one call: now, or later from anywhere, or never.
///
/// Dropping it gives the caller [`CallError::NoReply`], or [`CallError::Stopped`] where the service has ended.
#[must_use = "dropping it fails the call"]
pub struct ReplyTo<R> {
    route: Option<Route<R>>,
    /// True once the service has ended.
    ended: Arc<AtomicBool>,
    /// The limit by which a local reply is encoded and decoded as a remote one is; none where it moves as it is.
    checked: Option<usize>,
    encode: fn(Route<R>, R, Option<usize>),
    /// Counts the call as one that the service has, until it is answered or given up.
    opened: Option<Opened>,
}

impl<R> ReplyTo<R> {
    pub(crate) fn new<P: Protocol<Reply = R>>(
        route: Route<R>,
        ended: Arc<AtomicBool>,
        checked: Option<usize>,
    ) -> Self {
        ReplyTo {
            route: Some(route),
            ended,
            checked,
            encode: encode::<P>,
            opened: None,
        }
    }

    /// The same, counted.
    pub(crate) fn counted(mut self, load: &Arc<Load>) -> Self {
        self.opened = Some(Opened::new(load));
        self
    }
}

/// Answers as a remote caller is answered.
fn encode<P: Protocol>(route: Route<P::Reply>, reply: P::Reply, limit: Option<usize>) {
    match route {
        Route::Local(sender) => {
            let reply = match limit {
                Some(limit) => crossed::<P, _>(&reply, limit, true),
                None => Ok(reply),
            };
            // The caller may have gone.
            let _ = sender.send(reply.map_err(Unanswered::Failed));
        }
        Route::Here(sender) => {
            let limit = limit.unwrap_or(usize::MAX);
            let room = max_frame_bytes(limit);
            let bytes = codec::append(P::CODEC, &reply, BytesMut::new(), room);
            let answer = bytes.map(BytesMut::freeze).map_err(|error| match error {
                EncodeError::TooLarge => Failure::ReplyTooLarge {
                    limit: limit as u64,
                },
                EncodeError::Unfit(cause) => Failure::ReplyEncode { cause },
            });
            let _ = sender.send(answer);
        }
        Route::Remote { caller, number } => caller.reply(number, P::CODEC, &reply),
        Route::Bounded {
            caller,
            number,
            load,
        } => caller.reply_told(number, load.told(), P::CODEC, &reply),
    }
}

/// What another node would read of a message.
///
/// Rule: what cannot cross the wire fails in one process, too, so that it is not found out on the day of the second node.
pub(crate) fn crossed<P: Protocol, M: Message>(
    message: &M,
    limit: usize,
    reply: bool,
) -> Result<M, CallError> {
    let room = max_frame_bytes(limit);
    codec::cross(P::CODEC, message, room).map_err(|error| match error {
        CrossError::Encode(EncodeError::TooLarge) => CallError::TooLarge { limit, reply },
        CrossError::Encode(EncodeError::Unfit(cause)) if !reply => CallError::Encode { cause },
        CrossError::Encode(EncodeError::Unfit(cause)) | CrossError::Decode(DecodeError(cause)) => {
            CallError::Decode { cause, reply }
        }
    })
}

impl<R> ReplyTo<R> {
    /// Answers the call.
    pub fn reply(mut self, reply: R) {
        // What is told with the reply is what is left.
        self.opened = None;
        match self.route.take() {
            Some(Route::Local(sender)) if self.checked.is_none() => {
                // The caller may have gone.
                let _ = sender.send(Ok(reply));
            }
            Some(route) => (self.encode)(route, reply, self.checked),
            None => {}
        }
    }

    /// True where the caller has given up: its time is over, or it dropped the call.
    pub fn is_abandoned(&self) -> bool {
        self.route.as_ref().is_none_or(Route::is_abandoned)
    }
}

impl<R> Drop for ReplyTo<R> {
    fn drop(&mut self) {
        let Some(route) = self.route.take() else {
            return;
        };
        let failure = if self.ended.load(Ordering::Acquire) || std::thread::panicking() {
            Failure::Stopped
        } else {
            Failure::NoReply
        };
        match route {
            Route::Local(sender) => {
                let error = match failure {
                    Failure::Stopped => CallError::Stopped,
                    _ => CallError::NoReply,
                };
                let _ = sender.send(Err(Unanswered::Failed(error)));
            }
            other => other.refuse(failure),
        }
    }
}

impl<R> std::fmt::Debug for ReplyTo<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyTo")
            .field("is_abandoned", &self.is_abandoned())
            .finish_non_exhaustive()
    }
}
