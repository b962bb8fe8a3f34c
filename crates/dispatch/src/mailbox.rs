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
                let _ = sender.send(Err(Unanswered::Failed(failure.into_error(ours, node))));
            }
            Route::Remote { caller, number } => caller.fail(number, &failure),
        }
    }
}

/// A call that waits for its turn.
///
/// Rule: a call that is dropped before it was opened has not run, and its caller is told so. It does not matter who drops
/// it, or when: a mailbox that ends, a send that comes too late, a task that is aborted. Without it such a call looks like
/// one that the handler had, and nobody may send it on.
pub(crate) struct WaitingCall<P: Protocol> {
    /// None once it was opened.
    call: Option<(Payload<P::Call>, Route<P::Reply>)>,
    pub(crate) deadline: Instant,
}

impl<P: Protocol> WaitingCall<P> {
    pub(crate) fn new(
        message: Payload<P::Call>,
        route: Route<P::Reply>,
        deadline: Instant,
    ) -> Self {
        WaitingCall {
            call: Some((message, route)),
            deadline,
        }
    }

    /// True where nobody waits for the reply any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.call
            .as_ref()
            .is_none_or(|(_, route)| route.is_abandoned())
    }

    /// The message and where its reply goes: from now on they are the opener's to answer. None only after the first time.
    pub(crate) fn open(&mut self) -> Option<(Payload<P::Call>, Route<P::Reply>)> {
        self.call.take()
    }
}

impl<P: Protocol> Drop for WaitingCall<P> {
    fn drop(&mut self) {
        match self.call.take() {
            Some((message, Route::Local(sender))) => {
                let back = match message {
                    Payload::Value(message) => Some(Box::new(message) as Box<dyn Any + Send>),
                    // Its caller has kept it.
                    Payload::Encoded(_) => None,
                };
                // The caller may have gone.
                let _ = sender.send(Err(Unanswered::NotStarted(back)));
            }
            Some((_, Route::Remote { caller, number })) => caller.fail(number, &Failure::Gone),
            None => {}
        }
    }
}

impl Failure {
    /// As the caller sees it.
    pub(crate) fn into_error(self, ours: u32, node: &NodeName) -> CallError {
        match self {
            Failure::Stopped => CallError::Stopped,
            Failure::Gone => CallError::Gone { node: node.clone() },
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
    Call(WaitingCall<P>),
    Cast { message: Payload<P::Cast> },
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
        let route = Route::Remote { caller, number };
        let call = WaitingCall::new(Payload::Encoded(body), route, deadline);
        match self.sender.try_send(Envelope::Call(call)) {
            // One that comes too late is dropped unopened.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(envelope)) => {
                if let Envelope::Call(mut call) = envelope
                    && let Some((_, Route::Remote { caller, number })) = call.open()
                {
                    caller.fail(number, &Failure::Overloaded);
                }
            }
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
                let _ = sender.send(Err(Unanswered::Failed(error)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::wire;

    struct Numbers;

    impl Protocol for Numbers {
        const NAME: &'static str = "numbers";
        type Call = u64;
        type Reply = u64;
        type Cast = ();
    }

    #[test]
    fn a_call_that_is_dropped_unopened_comes_back_and_one_that_was_opened_does_not() {
        let call = |message| {
            let (sender, receiver) = oneshot::channel();
            let route = Route::Local(sender);
            let deadline = Instant::now();
            (
                WaitingCall::<Numbers>::new(message, route, deadline),
                receiver,
            )
        };
        let (unopened, mut receiver) = call(Payload::Value(7));
        drop(unopened);
        match receiver.try_recv() {
            Ok(Err(Unanswered::NotStarted(Some(back)))) => {
                assert_eq!(back.downcast_ref::<u64>(), Some(&7));
            }
            other => panic!("{other:?}"),
        }
        let (encoded, mut receiver) = call(Payload::Encoded(Bytes::new()));
        drop(encoded);
        let answer = receiver.try_recv();
        assert!(
            matches!(answer, Ok(Err(Unanswered::NotStarted(None)))),
            "{answer:?}"
        );
        let (mut opened, mut receiver) = call(Payload::Value(7));
        let (_, route) = opened.open().unwrap();
        drop(opened);
        assert!(receiver.try_recv().is_err());
        let ended = Arc::new(AtomicBool::new(true));
        drop(ReplyTo::new(route, ended));
        let answer = receiver.try_recv();
        assert!(
            matches!(&answer, Ok(Err(Unanswered::Failed(CallError::Stopped)))),
            "{answer:?}"
        );
    }

    #[test]
    fn a_failure_that_came_before_the_handler_travels_as_one() {
        let node = NodeName::try_new("a").unwrap();
        let travelled = |failure: Failure| {
            let frame = wire::failure(9, &failure);
            let (_, body) = wire::split::<u64>(&frame.body).unwrap();
            let failure: Failure = postcard::from_bytes(&body).unwrap();
            failure.into_error(1, &node)
        };
        for before in [
            Failure::Gone,
            Failure::Overloaded,
            Failure::Expired,
            Failure::Incompatible { theirs: 2 },
            Failure::Decode {
                cause: String::new(),
            },
        ] {
            let error = travelled(before);
            assert!(!error.may_have_run(), "{error:?}");
        }
        for after in [
            Failure::Stopped,
            Failure::NoReply,
            Failure::ReplyTooLarge { limit: 1 },
            Failure::ReplyEncode {
                cause: String::new(),
            },
        ] {
            let error = travelled(after);
            assert!(error.may_have_run(), "{error:?}");
        }
    }
}
