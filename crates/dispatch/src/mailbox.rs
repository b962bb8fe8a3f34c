//! What waits for a service: bounded, typed for local callers, encoded for remote ones.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use keydispatch_core::NodeName;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::call::{CallError, Failure};
use crate::data::inbound::Caller;
use crate::service::{Protocol, StopReason};

/// A message as it came.
pub(crate) enum Payload<M> {
    Value(M),
    Encoded(Bytes),
}

/// Where the reply to a call goes.
pub(crate) enum Route<R> {
    Local(oneshot::Sender<Result<R, CallError>>),
    Remote { caller: Arc<Caller>, number: u64 },
}

impl<R> Route<R> {
    /// True where nobody waits for the reply any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Route::Local(sender) => sender.is_closed(),
            Route::Remote { caller, number } => caller.has_cancelled(*number),
        }
    }

    pub(crate) fn fail(self, failure: Failure, ours: u32, node: &NodeName) {
        match self {
            Route::Local(sender) => {
                // The caller may have gone.
                let _ = sender.send(Err(failure.into_error(ours, node)));
            }
            Route::Remote { caller, number } => caller.fail(number, &failure),
        }
    }
}

impl Failure {
    /// As the caller sees it.
    pub(crate) fn into_error(self, ours: u32, node: &NodeName) -> CallError {
        match self {
            Failure::Stopped => CallError::Stopped,
            Failure::NoReply => CallError::NoReply,
            Failure::Overloaded => CallError::Overloaded { node: node.clone() },
            Failure::Incompatible { theirs } => CallError::Incompatible { ours, theirs },
            Failure::Decode { cause } => CallError::Decode {
                cause,
                reply: false,
            },
            Failure::ReplyTooLarge { limit } => CallError::TooLarge {
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
                reply: true,
            },
            Failure::ReplyEncode { cause } => CallError::Decode { cause, reply: true },
            Failure::Expired => CallError::NotSent {
                node: node.clone(),
                why: "its time was over before it was started".to_owned(),
            },
        }
    }
}

/// What waits in a mailbox.
pub(crate) enum Envelope<P: Protocol> {
    Call {
        message: Payload<P::Call>,
        route: Route<P::Reply>,
        deadline: Instant,
    },
    Cast {
        message: Payload<P::Cast>,
    },
    Stop(StopReason),
}

/// The way into a service's mailbox.
pub(crate) struct Mailbox<P: Protocol> {
    pub(crate) sender: mpsc::Sender<Envelope<P>>,
}

impl<P: Protocol> Clone for Mailbox<P> {
    fn clone(&self) -> Self {
        Mailbox {
            sender: self.sender.clone(),
        }
    }
}

/// A mailbox whose types are not known: what a connection delivers to.
pub(crate) trait AnyMailbox: Send + Sync {
    fn call(&self, body: Bytes, version: u32, deadline: Instant, caller: Arc<Caller>, number: u64);
    /// Returns whether it was taken.
    fn cast(&self, body: Bytes, version: u32) -> bool;
    fn stop(&self, reason: StopReason);
    fn as_any(&self) -> &dyn Any;
}

impl<P: Protocol> AnyMailbox for Mailbox<P> {
    fn call(&self, body: Bytes, version: u32, deadline: Instant, caller: Arc<Caller>, number: u64) {
        if version != P::VERSION {
            return caller.fail(number, &Failure::Incompatible { theirs: P::VERSION });
        }
        let envelope = Envelope::Call {
            message: Payload::Encoded(body),
            route: Route::Remote {
                caller: Arc::clone(&caller),
                number,
            },
            deadline,
        };
        match self.sender.try_send(envelope) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => caller.fail(number, &Failure::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => caller.fail(number, &Failure::Stopped),
        }
    }

    fn cast(&self, body: Bytes, version: u32) -> bool {
        let envelope = Envelope::Cast {
            message: Payload::Encoded(body),
        };
        version == P::VERSION && self.sender.try_send(envelope).is_ok()
    }

    fn stop(&self, reason: StopReason) {
        let sender = self.sender.clone();
        // A full mailbox takes it once there is room; a closed one has stopped already.
        if let Err(mpsc::error::TrySendError::Full(envelope)) =
            sender.try_send(Envelope::Stop(reason))
        {
            tokio::spawn(async move {
                let _ = sender.send(envelope).await;
            });
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
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
    encode: fn(&Caller, u64, R),
}

impl<R: Serialize + 'static> ReplyTo<R> {
    pub(crate) fn new(route: Route<R>, ended: Arc<AtomicBool>) -> Self {
        ReplyTo {
            route: Some(route),
            ended,
            encode: |caller, number, reply| caller.reply(number, &reply),
        }
    }
}

impl<R> ReplyTo<R> {
    /// Answers the call.
    pub fn reply(mut self, reply: R) {
        match self.route.take() {
            Some(Route::Local(sender)) => {
                // The caller may have gone.
                let _ = sender.send(Ok(reply));
            }
            Some(Route::Remote { caller, number }) => (self.encode)(&caller, number, reply),
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
                let _ = sender.send(Err(error));
            }
            Route::Remote { caller, number } => caller.fail(number, &failure),
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
