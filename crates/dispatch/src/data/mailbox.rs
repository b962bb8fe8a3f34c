//! What waits for a service: bounded, typed for local callers, encoded for remote ones.

use std::any::Any;
use std::num::NonZeroU8;
use std::sync::Arc;

use bytes::Bytes;
use keydispatch_core::Accepts;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::caller::Caller;
use super::reply::{Route, Unanswered};
use super::wire::Format;
use crate::backlog::Share;
use crate::call::Failure;
use crate::protocol::{self, Protocol};

pub(crate) mod letter;
pub(crate) mod queue;

use letter::KeyedMailbox;
use queue::{Load, TakesRoom};

/// Messages of at most so many bytes are copied where they are going to wait.
const COPIED_BYTES: usize = 16 * 1024;

/// A message as it came.
pub(crate) enum Payload<M> {
    Value(M),
    Encoded(Bytes),
}

/// Why a service is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// By [`Served::stop`](crate::Served::stop) or [`Context::stop`](crate::Context::stop).
    Stopped,
    /// Its node leaves.
    NodeStopped,
}

/// A message, and where its reply goes.
type Question<P> = (
    Payload<<P as Protocol>::Call>,
    Route<<P as Protocol>::Reply>,
);

/// A call that waits for its turn.
///
/// Rule: a call that is dropped before it was opened has not run, and its caller is told so. It does not matter who drops
/// it, or when: a mailbox that ends, a send that comes too late, a task that is aborted. Without it such a call looks like
/// one that the handler had, and nobody may send it on.
pub(crate) struct WaitingCall<P: Protocol> {
    /// None once it was opened.
    call: Option<Question<P>>,
    pub(crate) deadline: Instant,
    /// The version that the message is of.
    pub(crate) version: u32,
    /// The span of the call, where it is of this node and somebody listens.
    span: Option<Box<tracing::Span>>,
}

impl<P: Protocol> WaitingCall<P> {
    pub(crate) fn new(
        message: Payload<P::Call>,
        route: Route<P::Reply>,
        deadline: Instant,
        version: u32,
    ) -> Self {
        WaitingCall {
            call: Some((message, route)),
            deadline,
            version,
            span: None,
        }
    }

    /// The same, of a call of this node that has that span.
    pub(crate) fn traced(mut self, span: Option<Box<tracing::Span>>) -> Self {
        self.span = span;
        self
    }

    /// The span of the call, once.
    pub(crate) fn take_span(&mut self) -> Option<Box<tracing::Span>> {
        self.span.take()
    }

    /// True where nobody waits for the reply any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.call
            .as_ref()
            .is_none_or(|(_, route)| route.is_abandoned())
    }

    /// The message and where its reply goes: from now on they are the opener's to answer. None only after the first time.
    pub(crate) fn open(&mut self) -> Option<Question<P>> {
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
            Some((_, Route::Here(sender))) => {
                let _ = sender.send(Err(Failure::Gone));
            }
            Some((_, Route::Remote { caller, number } | Route::Bounded { caller, number, .. })) => {
                caller.fail(number, &Failure::Gone);
            }
            None => {}
        }
    }
}

/// What waits in a mailbox.
pub(crate) enum Envelope<P: Protocol> {
    Call(WaitingCall<P>),
    Cast {
        message: Payload<P::Cast>,
        /// The version that the message is of.
        version: u32,
        /// None for one of this node.
        caller: Option<Arc<Caller>>,
    },
    /// Everything before it was handled.
    Mark(oneshot::Sender<()>),
    /// Nothing is taken any more; what is there, before it or behind it, is handled.
    Stop(StopReason),
}

impl<M: 'static> Payload<M> {
    /// Bytes that it keeps, as far as they are known: of a value its own size, and what it holds if it is bytes or text as
    /// a whole. What other values point to is theirs to know.
    fn bytes(&self) -> usize {
        let message = match self {
            Payload::Encoded(bytes) => return bytes.len(),
            Payload::Value(message) => message as &dyn Any,
        };
        let held = if let Some(bytes) = message.downcast_ref::<Bytes>() {
            bytes.len()
        } else if let Some(bytes) = message.downcast_ref::<Vec<u8>>() {
            bytes.len()
        } else {
            message.downcast_ref::<String>().map_or(0, String::len)
        };
        size_of::<M>() + held
    }
}

impl<M: 'static> Payload<M> {
    /// What of [`bytes`](Self::bytes) is known to be held: a value alone is bounded by its type, and by the number of places.
    fn held(&self) -> usize {
        match self {
            Payload::Encoded(bytes) => bytes.len(),
            Payload::Value(_) => self.bytes() - size_of::<M>(),
        }
    }
}

impl<P: Protocol> TakesRoom for Envelope<P> {
    fn bytes(&self) -> usize {
        match self {
            Envelope::Call(WaitingCall { call, .. }) => {
                call.as_ref().map_or(0, |(message, _)| message.bytes())
            }
            Envelope::Cast { message, .. } => message.bytes(),
            Envelope::Stop(_) | Envelope::Mark(_) => 0,
        }
    }

    fn backlog(&self) -> usize {
        match self {
            Envelope::Call(WaitingCall { call, .. }) => {
                call.as_ref().map_or(0, |(message, _)| message.held())
            }
            Envelope::Cast { message, .. } => message.held(),
            Envelope::Stop(_) | Envelope::Mark(_) => 0,
        }
    }

    fn share(&self) -> Option<&Arc<Share>> {
        let caller = match self {
            Envelope::Call(WaitingCall { call, .. }) => {
                call.as_ref().and_then(|(_, route)| route.caller())
            }
            Envelope::Cast { caller, .. } => caller.as_ref(),
            Envelope::Stop(_) | Envelope::Mark(_) => None,
        };
        caller.map(|caller| caller.share())
    }
}

/// The way into a service's mailbox.
pub(crate) struct Mailbox<P: Protocol> {
    pub(crate) sender: queue::Sender<Envelope<P>>,
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
    fn call(
        &self,
        body: Bytes,
        format: Format,
        deadline: Instant,
        caller: Arc<Caller>,
        number: u64,
    );
    /// The same; it may be refused at that depth, and its caller wants to know what waits here.
    fn call_bounded(
        &self,
        body: Bytes,
        format: Format,
        deadline: Instant,
        caller: Arc<Caller>,
        number: u64,
        _refuse_at: Option<NonZeroU8>,
    ) {
        self.call(body, format, deadline, caller, number);
    }
    /// What waits here, where that can be known.
    fn load(&self) -> Option<&Load> {
        None
    }
    /// A call of this node, by a caller whose protocol is another type.
    fn call_here(
        &self,
        body: Bytes,
        format: Format,
        deadline: Instant,
        sender: oneshot::Sender<Result<Bytes, Failure>>,
    );
    /// Returns whether it was taken. The caller is none for one of this node.
    fn cast(&self, body: Bytes, format: Format, caller: Option<Arc<Caller>>) -> bool;
    fn stop(&self, reason: StopReason);
    /// Hears once everything that is in it now was handled, or an error where the service has ended.
    fn mark(&self) -> oneshot::Receiver<()>;
    /// The same, where it has a state for each key.
    fn keyed(&self) -> Option<&dyn KeyedMailbox> {
        None
    }
    /// The protocol's.
    fn name(&self) -> &'static str;
    fn as_any(&self) -> &dyn Any;
}

impl<P: Protocol> Mailbox<P> {
    /// A full mailbox takes it once there is room; a closed one needs it no more.
    fn put_in_any_case(&self, envelope: Envelope<P>) {
        if let Err(mpsc::error::TrySendError::Full(envelope)) = self.sender.try_send(envelope) {
            let sender = self.sender.clone();
            tokio::spawn(async move {
                let _ = sender.send(envelope).await;
            });
        }
    }

    /// A message that is going to wait, apart from what it was read with.
    ///
    /// Rule: what waits keeps as much as it counts for. Without it a short message keeps all that its connection read at
    /// once, which may be a hundred times as much.
    fn apart(&self, body: Bytes) -> Bytes {
        if body.len() <= COPIED_BYTES && self.sender.is_busy() {
            Bytes::copy_from_slice(&body)
        } else {
            body
        }
    }

    /// Takes an encoded call, or fails it.
    fn put(&self, body: Bytes, format: Format, deadline: Instant, route: Route<P::Reply>) {
        let accepts = protocol::accepts::<P>();
        if !format.is_taken(&accepts) {
            let theirs = theirs(P::VERSION, &accepts, format.version());
            return route.refuse(Failure::Incompatible { theirs });
        }
        let body = self.apart(body);
        let call = WaitingCall::new(Payload::Encoded(body), route, deadline, format.version());
        match self.sender.try_send(Envelope::Call(call)) {
            // One that comes too late is dropped unopened.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(envelope)) => {
                if let Envelope::Call(mut call) = envelope
                    && let Some((_, route)) = call.open()
                {
                    route.refuse(Failure::Overloaded);
                }
            }
        }
    }
}

impl<P: Protocol> AnyMailbox for Mailbox<P> {
    fn call(
        &self,
        body: Bytes,
        format: Format,
        deadline: Instant,
        caller: Arc<Caller>,
        number: u64,
    ) {
        self.put(body, format, deadline, Route::Remote { caller, number });
    }

    fn call_bounded(
        &self,
        body: Bytes,
        format: Format,
        deadline: Instant,
        caller: Arc<Caller>,
        number: u64,
        refuse_at: Option<NonZeroU8>,
    ) {
        let load = Arc::clone(self.sender.load());
        // Rule: a refusal comes before anything is decoded or queued, so that it is known that nothing has run.
        if refuse_at.is_some_and(|refuse_at| load.refuses(refuse_at)) && !self.sender.is_closed() {
            return caller.refuse(number, load.told());
        }
        let route = Route::Bounded {
            caller,
            number,
            load,
        };
        self.put(body, format, deadline, route);
    }

    fn load(&self) -> Option<&Load> {
        Some(self.sender.load())
    }

    fn call_here(
        &self,
        body: Bytes,
        format: Format,
        deadline: Instant,
        sender: oneshot::Sender<Result<Bytes, Failure>>,
    ) {
        self.put(body, format, deadline, Route::Here(sender));
    }

    fn cast(&self, body: Bytes, format: Format, caller: Option<Arc<Caller>>) -> bool {
        let envelope = Envelope::Cast {
            message: Payload::Encoded(self.apart(body)),
            version: format.version(),
            caller,
        };
        format.is_taken(&protocol::accepts::<P>()) && self.sender.try_send(envelope).is_ok()
    }

    fn stop(&self, reason: StopReason) {
        self.put_in_any_case(Envelope::Stop(reason));
    }

    fn mark(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.put_in_any_case(Envelope::Mark(sender));
        receiver
    }

    fn name(&self) -> &'static str {
        P::NAME
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What a caller of another version or codec is told: the version of the service, or 0 where that is not the difference.
pub(crate) fn theirs(version: u32, accepts: &Accepts, wanted: u32) -> u32 {
    if accepts.versions().contains(&wanted) {
        0
    } else {
        version
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use keydispatch_core::NodeName;

    use super::*;
    use crate::call::CallError;
    use crate::data::reply::ReplyTo;
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
                WaitingCall::<Numbers>::new(message, route, deadline, 1),
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
        drop(ReplyTo::new::<Numbers>(route, ended, None));
        let answer = receiver.try_recv();
        assert!(
            matches!(&answer, Ok(Err(Unanswered::Failed(CallError::Stopped)))),
            "{answer:?}"
        );
    }

    #[test]
    fn messages_weigh_what_is_known_of_them() {
        let encoded: Payload<u64> = Payload::Encoded(Bytes::from_static(b"seven"));
        assert_eq!(encoded.bytes(), 5);
        assert_eq!(Payload::Value(7_u64).bytes(), 8);
        assert_eq!(Payload::Value([0_u8; 1_000]).bytes(), 1_000);
        assert!(Payload::Value(vec![0_u8; 1_000]).bytes() >= 1_000);
        assert!(Payload::Value("x".repeat(1_000)).bytes() >= 1_000);
        assert!(Payload::Value(Bytes::from(vec![0; 1_000])).bytes() >= 1_000);
        assert_eq!(
            Envelope::<Numbers>::Stop(StopReason::NodeStopped).bytes(),
            0
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
