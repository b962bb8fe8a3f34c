//! The way to one instance: its mailbox in this process, or the connection to its node.

use std::any::Any;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::num::NonZeroU8;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keydispatch_core::ServiceInfo;
use keydispatch_core::route::Hint;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::ways::Ways;
use crate::call::{CallError, CastError, Failure, Unsent};
use crate::codec::{self, DecodeError, EncodeError};
use crate::data::aim::{Aim, To};
use crate::data::lane::{Outcome, PendingCall};
use crate::data::lane_runtime::LaneRuntime;
use crate::data::local::Local;
use crate::data::mailbox::{self, Envelope, Mailbox, Payload, WaitingCall};
use crate::data::peers::Peers;
use crate::data::reply::{self, Route, Unanswered};
use crate::data::wire::{self, BoundedHeader, CallHeader, CastHeader, Format, kind};
use crate::deadline;
use crate::protocol::{Message, Protocol};
use crate::registry::Registry;
use crate::service::current;
use crate::trace;

/// Which instance a call went to: unique in the cluster, and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tried {
    nonce: u64,
    sequence: u64,
}

impl Tried {
    pub(super) fn of(info: &ServiceInfo) -> Self {
        Tried {
            nonce: info.id().nonce,
            sequence: info.id().sequence,
        }
    }
}

/// Whether a call may be refused by the load of its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// Load does not matter.
    None,
    /// It is to be taken, and the reply to tell what waits there.
    Told,
    /// It may be refused at that depth, and the reply is to tell.
    Refusable(NonZeroU8),
}

/// A call that failed, with what is needed to send it on.
#[derive(Debug)]
pub(super) struct Failed<M> {
    pub(super) error: CallError,
    /// None where it went with the service: it may have run.
    pub(super) message: Option<M>,
    /// True where views and connections are about to agree again: a node comes, goes, or takes nothing new.
    pub(super) settling: bool,
    /// None where there was nobody to ask.
    pub(super) tried: Option<Tried>,
}

/// Why a call was not put into a mailbox, and its message, where that was made.
type NotPut<C> = (CallError, Option<Payload<C>>);

/// A call on its way.
pub(super) enum Started<R> {
    Local {
        receiver: oneshot::Receiver<Result<R, Unanswered>>,
        tried: Tried,
    },
    /// In this process, and encoded.
    Here {
        receiver: oneshot::Receiver<Result<Bytes, Failure>>,
        tried: Tried,
    },
    Remote {
        call: PendingCall,
        tried: Tried,
    },
}

/// See the module.
pub(super) struct Channel<P: Protocol> {
    pub(super) registry: Registry,
    pub(super) local: Arc<Local>,
    pub(super) peers: Arc<Peers>,
    pub(super) runtime: Arc<LaneRuntime>,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Clone for Channel<P> {
    fn clone(&self) -> Self {
        Channel {
            registry: self.registry.clone(),
            local: Arc::clone(&self.local),
            peers: Arc::clone(&self.peers),
            runtime: Arc::clone(&self.runtime),
            protocol: PhantomData,
        }
    }
}

impl<P: Protocol> Channel<P> {
    pub(super) fn new(ways: &Ways) -> Self {
        Channel {
            registry: ways.registry.clone(),
            local: Arc::clone(&ways.local),
            peers: Arc::clone(&ways.peers),
            runtime: Arc::clone(&ways.runtime),
            protocol: PhantomData,
        }
    }

    pub(super) fn is_local(&self, info: &ServiceInfo) -> bool {
        let id = info.id();
        id.nonce == self.registry.nonce() && id.node == *self.registry.node()
    }

    /// What is known of an instance's queue: where it runs here, what is so.
    pub(super) fn hint_of(&self, info: &ServiceInfo) -> Hint {
        if !self.is_local(info) {
            return self.peers.hints.of_instance(info.id());
        }
        let told = self.local.with(info.id().sequence, |mailbox| {
            mailbox.load().map(|load| load.told())
        });
        let told = told.flatten();
        told.map_or(Hint::NONE, |depth| {
            Hint::told(depth, self.peers.hints.clock())
        })
    }

    /// Calls an instance and waits. A message that is kept is sent again whatever became of it; any other comes back only
    /// where it has not run, or was sent to another node. Where no connection is there it waits for one, as long as it is still
    /// for that instance; one that is for nobody in particular does not wait.
    pub(super) async fn call(
        &self,
        info: &Arc<ServiceInfo>,
        to: Option<To>,
        message: P::Call,
        keep: bool,
        deadline: Deadline,
    ) -> Result<P::Reply, Failed<P::Call>> {
        let bound = Bound::None;
        self.call_bounded(info, to, message, keep, deadline, bound)
            .await
    }

    /// The same with a bound. Where it is refused it is [`CallError::Overloaded`], and comes back.
    pub(super) async fn call_bounded(
        &self,
        info: &Arc<ServiceInfo>,
        to: Option<To>,
        message: P::Call,
        keep: bool,
        deadline: Deadline,
        bound: Bound,
    ) -> Result<P::Reply, Failed<P::Call>> {
        if self.is_local(info) && !keep && !is_another_type::<P>(info) {
            if let Err(error) = self.check_bound(info, bound) {
                return Err(Failed {
                    error,
                    message: Some(message),
                    settling: false,
                    tried: Some(Tried::of(info)),
                });
            }
            let started = self.start_with(info, message, deadline)?;
            return self.finish(started, deadline).await;
        }
        let result = match self.start_bounded(info, to, &message, deadline, bound) {
            Ok(started) => self.finish(started, deadline).await,
            Err(failed) => Err(failed),
        };
        result.map_err(|failed| Failed {
            message: Some(message),
            ..failed
        })
    }

    /// Hands a value to a service in this process.
    pub(super) fn start_with(
        &self,
        info: &Arc<ServiceInfo>,
        message: P::Call,
        deadline: Deadline,
    ) -> Result<Started<P::Reply>, Failed<P::Call>> {
        // Of another type, or encoded all the same: what cannot cross the wire fails here, too.
        if is_another_type::<P>(info) {
            return self
                .start(info, None, &message, deadline)
                .map_err(|failed| Failed {
                    message: Some(message),
                    ..failed
                });
        }
        let message = match self.runtime.checked_limit() {
            Some(limit) => match reply::crossed::<P, _>(&message, limit, false) {
                Ok(message) => message,
                Err(error) => {
                    return Err(Failed {
                        error,
                        message: Some(message),
                        settling: false,
                        tried: Some(Tried::of(info)),
                    });
                }
            },
            None => message,
        };
        let mut message = Some(message);
        let result = self.put_call(info, deadline, || message.take().map(Payload::Value));
        result.map_err(|(error, back)| Failed {
            error,
            message: match back {
                Some(Payload::Value(back)) => Some(back),
                _ => message,
            },
            settling: false,
            tried: Some(Tried::of(info)),
        })
    }

    /// Sends a call and keeps its message: a service in this process gets it encoded.
    pub(super) fn start(
        &self,
        info: &Arc<ServiceInfo>,
        to: Option<To>,
        message: &P::Call,
        deadline: Deadline,
    ) -> Result<Started<P::Reply>, Failed<P::Call>> {
        self.start_bounded(info, to, message, deadline, Bound::None)
    }

    /// Rule: what runs here refuses by the same depth as what runs elsewhere.
    fn check_bound(&self, info: &ServiceInfo, bound: Bound) -> Result<(), CallError> {
        let Bound::Refusable(refuse_at) = bound else {
            return Ok(());
        };
        let refuses = self.local.with(info.id().sequence, |mailbox| {
            mailbox.load().is_some_and(|load| load.refuses(refuse_at))
        });
        match refuses {
            Some(true) => Err(self.overloaded(info)),
            _ => Ok(()),
        }
    }

    /// The same with a bound.
    pub(super) fn start_bounded(
        &self,
        info: &Arc<ServiceInfo>,
        to: Option<To>,
        message: &P::Call,
        deadline: Deadline,
        bound: Bound,
    ) -> Result<Started<P::Reply>, Failed<P::Call>> {
        let failed = |Unsent { error, settling }| Failed {
            error,
            message: None,
            settling,
            tried: Some(Tried::of(info)),
        };
        if !self.is_local(info) {
            return self
                .send_call(info, to, message, deadline, bound)
                .map_err(failed);
        }
        self.check_bound(info, bound)
            .map_err(|error| failed(error.into()))?;
        let bytes = encode_alone::<P, _>(message, self.runtime.max_payload_bytes())
            .map_err(|error| failed(error.into()))?;
        if is_another_type::<P>(info) {
            return self
                .put_encoded(info, bytes, deadline)
                .map_err(|error| failed(error.into()));
        }
        self.put_call(info, deadline, || Some(Payload::Encoded(bytes)))
            .map_err(|(error, _)| failed(error.into()))
    }

    /// Puts a call into a mailbox of this process, or gives back the message that `make` made.
    fn put_call(
        &self,
        info: &ServiceInfo,
        deadline: Deadline,
        make: impl FnOnce() -> Option<Payload<P::Call>>,
    ) -> Result<Started<P::Reply>, NotPut<P::Call>> {
        check_version::<P>(info).map_err(|error| (error, None))?;
        // Rule: nobody waits for its own handler to end.
        if current::is(info.id()) {
            let id = info.id().clone();
            return Err((CallError::CallsItself { id }, None));
        }
        let put = self.with_mailbox(info, |mailbox| {
            let message = make()?;
            let (sender, receiver) = oneshot::channel();
            let call = WaitingCall::new(message, Route::Local(sender), deadline.at, P::VERSION)
                .traced(trace::attempt(info));
            Some((receiver, mailbox.sender.try_send(Envelope::Call(call))))
        });
        let (envelope, error) = match put {
            Ok(Some((receiver, Ok(())))) => {
                let tried = Tried::of(info);
                return Ok(Started::Local { receiver, tried });
            }
            Ok(Some((_, Err(mpsc::error::TrySendError::Full(envelope))))) => {
                (envelope, self.overloaded(info))
            }
            Ok(Some((_, Err(mpsc::error::TrySendError::Closed(envelope))))) => {
                (envelope, gone(info))
            }
            Ok(None) => return Err((gone(info), None)),
            Err(error) => return Err((error, None)),
        };
        let back = match envelope {
            Envelope::Call(mut call) => call.open().map(|(message, _)| message),
            _ => None,
        };
        Err((error, back))
    }

    /// Puts a call into a mailbox of this process whose protocol is another type, of a version that takes ours.
    fn put_encoded(
        &self,
        info: &ServiceInfo,
        bytes: Bytes,
        deadline: Deadline,
    ) -> Result<Started<P::Reply>, CallError> {
        check_version::<P>(info)?;
        if current::is(info.id()) {
            let id = info.id().clone();
            return Err(CallError::CallsItself { id });
        }
        let (sender, receiver) = oneshot::channel();
        self.local
            .with(info.id().sequence, |mailbox| {
                mailbox.call_here(bytes, Format::of::<P>(), deadline.at, sender);
            })
            .ok_or_else(|| gone(info))?;
        let tried = Tried::of(info);
        Ok(Started::Here { receiver, tried })
    }

    fn cast_encoded(&self, info: &ServiceInfo, message: &P::Cast) -> Result<(), CallError> {
        check_version::<P>(info)?;
        let bytes = encode_alone::<P, _>(message, self.runtime.max_payload_bytes())?;
        let taken = self.local.with(info.id().sequence, |mailbox| {
            mailbox.cast(bytes, Format::of::<P>(), None)
        });
        match taken {
            Some(true) => Ok(()),
            Some(false) => Err(self.overloaded(info)),
            None => Err(gone(info)),
        }
    }

    fn send_call(
        &self,
        info: &Arc<ServiceInfo>,
        to: Option<To>,
        message: &P::Call,
        deadline: Deadline,
        bound: Bound,
    ) -> Result<Started<P::Reply>, Unsent> {
        check_version::<P>(info)?;
        let lane = self.peers.lane(info)?;
        let limit = lane.max_payload_bytes(&self.runtime);
        let left = deadline.at.saturating_duration_since(Instant::now());
        let call = lane.call(&self.runtime, to.is_some(), |number| {
            lane.trace(number, info);
            let header = CallHeader {
                number,
                sequence: info.id().sequence,
                timeout_ms: CallHeader::millis(left),
                format: Format::of::<P>(),
            };
            let refuse_at = match bound {
                // Rule: a peer to which a bounded call is nothing gets it as any other, or it would never be answered.
                _ if !lane.knows_bounds() => None,
                Bound::None => None,
                Bound::Told => Some(0),
                Bound::Refusable(refuse_at) => Some(refuse_at.get()),
            };
            let encoded = match refuse_at {
                None => wire::encode(kind::CALL, &header, P::CODEC, message, limit),
                Some(refuse_at) => {
                    let header = BoundedHeader {
                        call: header,
                        refuse_at,
                    };
                    wire::encode(kind::BOUNDED, &header, P::CODEC, message, limit)
                }
            };
            encoded
                .map(|outgoing| outgoing.aimed(to.map(Aim::new::<P>)))
                .map_err(|error| encode_error(error, limit))
        })?;
        self.runtime
            .counters
            .calls_sent
            .fetch_add(1, Ordering::Relaxed);
        let tried = Tried::of(info);
        Ok(Started::Remote { call, tried })
    }

    /// Waits for the reply.
    pub(super) async fn finish(
        &self,
        started: Started<P::Reply>,
        deadline: Deadline,
    ) -> Result<P::Reply, Failed<P::Call>> {
        match started {
            Started::Local { receiver, tried } => {
                self.finish_local(receiver, tried, deadline).await
            }
            Started::Here { receiver, tried } => self
                .finish_here(receiver, deadline)
                .await
                .map_err(|error| Failed {
                    error,
                    message: None,
                    settling: false,
                    tried: Some(tried),
                }),
            Started::Remote { call, tried } => self
                .finish_remote(call, tried, deadline)
                .await
                .map_err(|Unsent { error, settling }| Failed {
                    error,
                    message: None,
                    settling,
                    tried: Some(tried),
                }),
        }
    }

    async fn finish_local(
        &self,
        mut receiver: oneshot::Receiver<Result<P::Reply, Unanswered>>,
        tried: Tried,
        deadline: Deadline,
    ) -> Result<P::Reply, Failed<P::Call>> {
        let answer = match after_one_turn(&mut receiver).await {
            Some(answer) => Ok(answer),
            None => tokio::time::timeout_at(deadline.at, receiver).await,
        };
        let (error, message) = match answer {
            Ok(Ok(Ok(reply))) => return Ok(reply),
            Ok(Ok(Err(Unanswered::Failed(error)))) => (error, None),
            Ok(Ok(Err(Unanswered::NotStarted(back)))) => {
                let node = self.registry.node().clone();
                (CallError::Gone { node }, back.and_then(unboxed))
            }
            // Whoever opened the call has dropped it without a word.
            Ok(Err(_)) => (CallError::Stopped, None),
            Err(_) => (deadline.passed(), None),
        };
        Err(Failed {
            error,
            message,
            settling: false,
            tried: Some(tried),
        })
    }

    async fn finish_here(
        &self,
        receiver: oneshot::Receiver<Result<Bytes, Failure>>,
        deadline: Deadline,
    ) -> Result<P::Reply, CallError> {
        let answer = tokio::time::timeout_at(deadline.at, receiver).await;
        match answer.map_err(|_| deadline.passed())? {
            Ok(Ok(bytes)) => decode_reply::<P>(&bytes),
            Ok(Err(failure)) => Err(failure.into_error(P::VERSION, self.registry.node())),
            Err(_) => Err(CallError::Stopped),
        }
    }

    async fn finish_remote(
        &self,
        mut call: PendingCall,
        tried: Tried,
        deadline: Deadline,
    ) -> Result<P::Reply, Unsent> {
        let Ok(outcome) = tokio::time::timeout_at(deadline.at, call.outcome()).await else {
            // Rule: what still waits for its connection when its time is over has not run, and is not said to may have.
            return Err(Unsent::from(if call.take_back() {
                CallError::NotSent {
                    node: call.node().clone(),
                    why: format!("no connection within {:?}", deadline.timeout),
                }
            } else {
                deadline.passed()
            }));
        };
        let node = call.node();
        let error = match outcome {
            Outcome::Reply(bytes) => return decode_reply::<P>(&bytes).map_err(Unsent::from),
            Outcome::Told { depth, reply } => {
                self.peers.hints.hear((tried.nonce, tried.sequence), depth);
                return decode_reply::<P>(&reply).map_err(Unsent::from);
            }
            Outcome::Refused { depth } => {
                self.peers.hints.hear((tried.nonce, tried.sequence), depth);
                CallError::Overloaded { node: node.clone() }
            }
            Outcome::Failed(failure) => failure.into_error(P::VERSION, node),
            Outcome::Lost => CallError::Disconnected { node: node.clone() },
            Outcome::NotSent { why, settling } => {
                let (node, why) = (node.clone(), why.to_string());
                let error = CallError::NotSent { node, why };
                return Err(Unsent { error, settling });
            }
            Outcome::TooLarge { limit } => CallError::TooLarge {
                limit,
                reply: false,
            },
        };
        Err(error.into())
    }

    /// Sends a message, or gives it back.
    pub(super) fn cast(
        &self,
        info: &Arc<ServiceInfo>,
        to: To,
        message: P::Cast,
    ) -> Result<(), CastError<P::Cast>> {
        if !self.is_local(info) {
            return match self.send_cast(info, to, &message) {
                Ok(()) => Ok(()),
                Err(error) => Err(CastError { error, message }),
            };
        }
        if is_another_type::<P>(info) {
            let sent = self.cast_encoded(info, &message);
            return sent.map_err(|error| CastError { error, message });
        }
        if let Err(error) = check_version::<P>(info) {
            return Err(CastError { error, message });
        }
        let message = match self.runtime.checked_limit() {
            Some(limit) => match reply::crossed::<P, _>(&message, limit, false) {
                Ok(message) => message,
                Err(error) => return Err(CastError { error, message }),
            },
            None => message,
        };
        // The message has to come back where there is no such mailbox.
        let mut message = Some(message);
        let taken = self.with_mailbox(info, |mailbox| {
            message.take().map_or(Ok(()), |message| {
                mailbox.sender.try_send(Envelope::Cast {
                    message: Payload::Value(message),
                    version: P::VERSION,
                    caller: None,
                })
            })
        });
        let (error, back) = match taken {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(mpsc::error::TrySendError::Full(back))) => (self.overloaded(info), Some(back)),
            Ok(Err(mpsc::error::TrySendError::Closed(back))) => (gone(info), Some(back)),
            Err(error) => (error, None),
        };
        let back = back.and_then(|envelope| match envelope {
            Envelope::Cast {
                message: Payload::Value(message),
                ..
            } => Some(message),
            _ => None,
        });
        match back.or(message) {
            Some(message) => Err(CastError { error, message }),
            None => Ok(()),
        }
    }

    /// Casts and keeps the message: a service in this process gets it encoded.
    pub(super) fn cast_copy(
        &self,
        info: &Arc<ServiceInfo>,
        to: To,
        message: &P::Cast,
    ) -> Result<(), CallError> {
        if !self.is_local(info) {
            return self.send_cast(info, to, message);
        }
        if is_another_type::<P>(info) {
            return self.cast_encoded(info, message);
        }
        check_version::<P>(info)?;
        let bytes = encode_alone::<P, _>(message, self.runtime.max_payload_bytes())?;
        let envelope = Envelope::Cast {
            message: Payload::Encoded(bytes),
            version: P::VERSION,
            caller: None,
        };
        match self.with_mailbox(info, |mailbox| mailbox.sender.try_send(envelope))? {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(self.overloaded(info)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone(info)),
        }
    }

    fn send_cast(
        &self,
        info: &Arc<ServiceInfo>,
        to: To,
        message: &P::Cast,
    ) -> Result<(), CallError> {
        check_version::<P>(info)?;
        let header = CastHeader {
            sequence: info.id().sequence,
            format: Format::of::<P>(),
        };
        let lane = self.peers.lane(info).map_err(|unsent| unsent.error)?;
        let limit = lane.max_payload_bytes(&self.runtime);
        let frame = wire::encode(kind::CAST, &header, P::CODEC, message, limit)
            .map_err(|error| encode_error(error, limit))?;
        lane.send(&self.runtime, frame.aimed(Some(Aim::new::<P>(to))))
            .map_err(|unsent| unsent.error)?;
        self.runtime
            .counters
            .casts_sent
            .fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Looks at the mailbox of a service in this process.
    fn with_mailbox<T>(
        &self,
        info: &ServiceInfo,
        send: impl FnOnce(&Mailbox<P>) -> T,
    ) -> Result<T, CallError> {
        self.local
            .with(info.id().sequence, |mailbox| {
                mailbox.as_any().downcast_ref::<Mailbox<P>>().map(send)
            })
            .ok_or_else(|| gone(info))?
            // Another protocol of the same name and version in one process.
            .ok_or(CallError::Incompatible {
                ours: P::VERSION,
                theirs: 0,
            })
    }

    fn overloaded(&self, info: &ServiceInfo) -> CallError {
        CallError::Overloaded {
            node: info.node().clone(),
        }
    }
}

/// Until when a call may take, and what its caller asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Deadline {
            at: deadline::after(timeout),
            timeout,
        }
    }

    pub(super) fn passed(self) -> CallError {
        CallError::Timeout {
            after: self.timeout,
        }
    }
}

/// The reply, where it is there once every other task that is ready has had its turn: most local services answer in
/// theirs, and setting a timer costs more than to be asked twice.
async fn after_one_turn<R>(
    receiver: &mut oneshot::Receiver<R>,
) -> Option<Result<R, oneshot::error::RecvError>> {
    let mut asked = false;
    poll_fn(|cx| match Pin::new(&mut *receiver).poll(cx) {
        Poll::Ready(reply) => Poll::Ready(Some(reply)),
        Poll::Pending if std::mem::replace(&mut asked, true) => Poll::Ready(None),
        Poll::Pending => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

fn unboxed<M: 'static>(back: Box<dyn Any + Send>) -> Option<M> {
    back.downcast::<M>().ok().map(|message| *message)
}

pub(super) fn gone(info: &ServiceInfo) -> CallError {
    CallError::Gone {
        node: info.node().clone(),
    }
}

fn check_version<P: Protocol>(info: &ServiceInfo) -> Result<(), CallError> {
    let accepts = info.accepts();
    if accepts.is_some_and(|accepts| accepts.is_keyed()) {
        return Err(CallError::WrongHandle {
            service_type: P::NAME.to_owned(),
            keyed: true,
        });
    }
    if accepts.is_some_and(|accepts| accepts.takes(P::VERSION, P::CODEC)) {
        return Ok(());
    }
    let theirs = info.protocol_version().zip(accepts);
    let theirs = theirs.map(|(version, accepts)| mailbox::theirs(version, &accepts, P::VERSION));
    Err(CallError::Incompatible {
        ours: P::VERSION,
        theirs: theirs.unwrap_or(0),
    })
}

/// A service whose own version is another one: in this process, its protocol is another type, to which messages go encoded.
fn is_another_type<P: Protocol>(info: &ServiceInfo) -> bool {
    info.protocol_version() != Some(P::VERSION)
}

pub(super) fn decode_reply<P: Protocol>(bytes: &Bytes) -> Result<P::Reply, CallError> {
    codec::decode(P::CODEC, bytes)
        .map_err(|DecodeError(cause)| CallError::Decode { cause, reply: true })
}

fn encode_alone<P: Protocol, M: Message>(message: &M, limit: usize) -> Result<Bytes, CallError> {
    codec::append(
        P::CODEC,
        message,
        BytesMut::new(),
        wire::max_frame_bytes(limit),
    )
    .map(BytesMut::freeze)
    .map_err(|error| encode_error(error, limit))
}

pub(super) fn encode_error(error: EncodeError, limit: usize) -> CallError {
    match error {
        EncodeError::TooLarge => CallError::TooLarge {
            limit,
            reply: false,
        },
        EncodeError::Unfit(cause) => CallError::Encode { cause },
    }
}
