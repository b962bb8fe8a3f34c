//! Typed handles to the services of a protocol, wherever they run.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::{Key, NameError, ServiceId, ServiceInfo, ServiceType, View};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::call::{CallError, CallOptions, CastError};
use crate::data::DataPlane;
use crate::data::lane::{Outcome, PendingCall};
use crate::data::wire::{self, CallHeader, CastHeader, EncodeError, kind};
use crate::events::{ServiceEvent, Subscription};
use crate::mailbox::{Envelope, Mailbox, Payload, Route, Unanswered, WaitingCall};
use crate::registry::{NoService, Registry};
use crate::service::{Protocol, current};

/// Pause before a call is made again, and how much longer it is each time.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// See [`RETRY_PAUSE`].
const MAX_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long a node may be in the view before its connection is known here: the two follow each other within microseconds.
const SETTLING: Duration = Duration::from_millis(20);

/// Calls and casts the services of one protocol by key. Cheap to clone; made by
/// [`Node::services`](crate::Node::services).
///
/// It does not keep its node alive: once that has stopped, nothing is found any more.
pub struct ServiceHandle<P: Protocol> {
    registry: Registry,
    data: Arc<DataPlane>,
    options: CallOptions,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Clone for ServiceHandle<P> {
    fn clone(&self) -> Self {
        ServiceHandle {
            registry: self.registry.clone(),
            data: Arc::clone(&self.data),
            options: self.options,
            protocol: PhantomData,
        }
    }
}

impl<P: Protocol> std::fmt::Debug for ServiceHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceHandle")
            .field("type", &P::NAME)
            .field("node", self.registry.node())
            .finish_non_exhaustive()
    }
}

/// A reply, and the instance that it came from; see [`ServiceHandle::call_answered`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<R> {
    /// The reply.
    pub reply: R,
    /// Who answered: the owner of the key, or with [`CallOptions::fallback`] one of the next.
    pub by: Arc<ServiceInfo>,
}

impl<P: Protocol> ServiceHandle<P> {
    pub(crate) fn new(registry: &Registry, data: &Arc<DataPlane>) -> Self {
        ServiceHandle {
            registry: registry.clone(),
            data: Arc::clone(data),
            options: CallOptions::default(),
            protocol: PhantomData,
        }
    }

    /// The same handle with other options.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use keydispatch::{CallOptions, Protocol, ServiceHandle};
    /// # fn example<P: Protocol>(uploaders: ServiceHandle<P>) {
    /// let once = uploaders.with(CallOptions::new().timeout(Duration::from_secs(1)));
    /// # }
    /// ```
    #[must_use]
    pub fn with(&self, options: CallOptions) -> Self {
        ServiceHandle {
            options,
            ..self.clone()
        }
    }

    /// The view at this moment, to look many keys up in.
    pub fn view(&self) -> Arc<View> {
        self.registry.view(P::NAME).unwrap_or_else(|| {
            let service_type = ServiceType::try_new(P::NAME).unwrap_or_else(|_| nameless());
            Arc::new(View::empty(service_type))
        })
    }

    /// The owner of a key.
    pub fn find(&self, key: impl Into<Key>) -> Result<Arc<ServiceInfo>, NoService> {
        self.look(|view| view.owner(key).cloned())
            .ok_or_else(|| NoService {
                service_type: P::NAME.to_owned(),
            })
    }

    /// Sends a message to the owner of a key, and does not wait for anything: an error gives the message back.
    ///
    /// `Ok` says that it is on its way; whether it arrives is not known.
    pub fn cast(&self, key: impl Into<Key>, message: P::Cast) -> Result<(), CastError<P::Cast>> {
        match self.owner(key.into()) {
            Ok(info) => self.cast_to(&info, message),
            Err(error) => Err(CastError { error, message }),
        }
    }

    /// Calls the owner of a key, and waits for its reply: five seconds, unless [`with`](Self::with) said otherwise.
    ///
    /// Dropping the future cancels the call: if it was not started yet, it will not be.
    pub async fn call(&self, key: impl Into<Key>, message: P::Call) -> Result<P::Reply, CallError> {
        let (key, options) = (key.into(), self.options);
        if options.idempotent || options.fallback > 0 {
            return Ok(self.call_answered(key, message).await?.reply);
        }
        let deadline = Instant::now() + options.timeout;
        // Where the owner runs here, the call is sent while the view is looked at: its entry's reference count is shared
        // by all callers.
        let sent = self.look(|view| {
            let info = view.owner(key)?;
            Some(if self.is_local(info) {
                Ok(self.start(info, Sent::Given(message), deadline))
            } else {
                Err((Arc::clone(info), message))
            })
        });
        match sent {
            Some(Ok(started)) => self.finish(started?, deadline).await,
            Some(Err((by, message))) => self.call_to(&by, Sent::Given(message), deadline).await,
            None => Err(self.nobody()),
        }
    }

    /// As [`call`](Self::call), and says who answered.
    pub async fn call_answered(
        &self,
        key: impl Into<Key>,
        message: P::Call,
    ) -> Result<Answer<P::Reply>, CallError> {
        let (key, options) = (key.into(), self.options);
        let deadline = Instant::now() + options.timeout;
        if !options.idempotent && options.fallback == 0 {
            let by = self.owner(key)?;
            let reply = self.call_to(&by, Sent::Given(message), deadline).await?;
            return Ok(Answer { reply, by });
        }
        let mut pause = RETRY_PAUSE;
        loop {
            let error = match self.call_once(key, &message, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let again = options.idempotent && error.is_passing();
            if !again || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_RETRY_PAUSE);
        }
    }

    /// The owner, then the next ones as far as `fallback` allows.
    async fn call_once(
        &self,
        key: Key,
        message: &P::Call,
        deadline: Instant,
    ) -> Result<Answer<P::Reply>, CallError> {
        let owners = self.owners(key, 1 + self.options.fallback);
        let mut last = self.nobody();
        for by in owners {
            match self.call_to(&by, Sent::Kept(message), deadline).await {
                Ok(reply) => return Ok(Answer { reply, by }),
                Err(error) => {
                    let elsewhere =
                        error.is_passing() && (self.options.idempotent || !error.may_have_run());
                    last = error;
                    if !elsewhere {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// Sends a message to the first `n` owners of a key; returns how many it was accepted for.
    pub fn multi_cast(&self, key: impl Into<Key>, n: usize, message: P::Cast) -> usize {
        self.owners(key.into(), n)
            .iter()
            .filter(|info| self.cast_copy_to(info, &message).is_ok())
            .count()
    }

    /// Calls the first `n` owners of a key at once, and waits for all: each result beside the instance it is of.
    pub async fn multi_call(
        &self,
        key: impl Into<Key>,
        n: usize,
        message: P::Call,
    ) -> Vec<(Arc<ServiceInfo>, Result<P::Reply, CallError>)> {
        let deadline = Instant::now() + self.options.timeout;
        let started: Vec<_> = self
            .owners(key.into(), n)
            .into_iter()
            .map(|info| {
                let call = self.start(&info, Sent::Kept(&message), deadline);
                (info, call)
            })
            .collect();
        let mut results = Vec::with_capacity(started.len());
        for (info, call) in started {
            let result = match call {
                Ok(call) => self.finish(call, deadline).await,
                Err(error) => Err(error),
            };
            results.push((info, result));
        }
        results
    }

    /// One particular instance, whatever it owns.
    pub fn at(&self, id: ServiceId) -> InstanceHandle<P> {
        InstanceHandle {
            services: self.clone(),
            id,
        }
    }

    /// Waits until at least so many instances are online here.
    pub async fn wait_online(&self, instances: usize) -> Result<(), NameError> {
        let mut events = self.subscribe()?;
        loop {
            if self.look(|view| Some(view.online_count())).unwrap_or(0) >= instances {
                return Ok(());
            }
            if events.next().await.is_none() {
                // The node has stopped: nothing will ever be online here again.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The services that join, leave or change; see [`Registry::subscribe`].
    pub fn subscribe(&self) -> Result<Subscription, NameError> {
        self.registry.subscribe(P::NAME)
    }

    /// Reads the current view without a reference count.
    fn look<T>(&self, read: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        let directory = self.registry.directory();
        directory.read(P::NAME, |view| read(view))?
    }

    fn owner(&self, key: Key) -> Result<Arc<ServiceInfo>, CallError> {
        self.look(|view| view.owner(key).cloned())
            .ok_or_else(|| self.nobody())
    }

    fn owners(&self, key: Key, n: usize) -> Vec<Arc<ServiceInfo>> {
        let spread = self.options.spread;
        self.look(|view| {
            let owners = view.owners_spread(key, n, spread);
            Some(owners.into_iter().cloned().collect())
        })
        .unwrap_or_default()
    }

    fn nobody(&self) -> CallError {
        CallError::NoService {
            service_type: P::NAME.to_owned(),
        }
    }

    async fn call_to(
        &self,
        info: &Arc<ServiceInfo>,
        message: Sent<'_, P::Call>,
        deadline: Instant,
    ) -> Result<P::Reply, CallError> {
        if !self.is_local(info) {
            self.settle(info, deadline).await;
        }
        let call = self.start(info, message, deadline)?;
        self.finish(call, deadline).await
    }

    /// A node that has just come up is in the view a moment before its connection is known here.
    async fn settle(&self, info: &ServiceInfo, deadline: Instant) {
        if self.data.is_up(info.node()) {
            return;
        }
        let settled = (Instant::now() + SETTLING).min(deadline);
        while !self.data.is_up(info.node()) && Instant::now() < settled {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn is_local(&self, info: &ServiceInfo) -> bool {
        let id = info.id();
        id.nonce == self.registry.nonce() && id.node == *self.registry.node()
    }

    fn check_version(&self, info: &ServiceInfo) -> Result<(), CallError> {
        match info.protocol_version() {
            Some(theirs) if theirs == P::VERSION => Ok(()),
            theirs => Err(CallError::Incompatible {
                ours: P::VERSION,
                theirs: theirs.unwrap_or(0),
            }),
        }
    }

    /// Looks at a local service's mailbox.
    fn with_mailbox<T>(
        &self,
        info: &ServiceInfo,
        send: impl FnOnce(&Mailbox<P>) -> T,
    ) -> Result<T, CallError> {
        self.data
            .with_local(info.id().sequence, |mailbox| {
                mailbox.as_any().downcast_ref::<Mailbox<P>>().map(send)
            })
            .ok_or_else(|| self.gone(info))?
            // Another protocol of the same name and version in one process.
            .ok_or(CallError::Incompatible {
                ours: P::VERSION,
                theirs: 0,
            })
    }

    /// Sends a call. What is returned is to be finished.
    fn start(
        &self,
        info: &Arc<ServiceInfo>,
        message: Sent<'_, P::Call>,
        deadline: Instant,
    ) -> Result<Started<P::Reply>, CallError> {
        self.check_version(info)?;
        if self.is_local(info) {
            // Rule: nobody waits for its own handler to end.
            if current::is(info.id()) {
                return Err(CallError::CallsItself {
                    id: info.id().clone(),
                });
            }
            let limit = self.data.max_payload_bytes();
            let message = match message {
                Sent::Given(message) => Payload::Value(message),
                Sent::Kept(message) => Payload::Encoded(encode_alone(message, limit)?),
            };
            let (sender, receiver) = oneshot::channel();
            let call = WaitingCall::new(message, Route::Local(sender), deadline);
            let envelope = Envelope::Call(call);
            let taken = self.with_mailbox(info, |mailbox| mailbox.sender.try_send(envelope))?;
            return match taken {
                Ok(()) => Ok(Started::Local(receiver)),
                Err(mpsc::error::TrySendError::Full(_)) => Err(self.overloaded(info)),
                Err(mpsc::error::TrySendError::Closed(_)) => Err(self.gone(info)),
            };
        }
        let lane = self.data.lane(info)?;
        let limit = lane.max_payload_bytes(&self.data);
        let message = match &message {
            Sent::Given(message) => message,
            Sent::Kept(message) => *message,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let call = lane.call(&self.data, |number| {
            let header = CallHeader {
                number,
                sequence: info.id().sequence,
                timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
                version: P::VERSION,
            };
            wire::encode(kind::CALL, &header, message, limit)
                .map_err(|error| encode_error(error, limit))
        })?;
        self.data
            .counters
            .calls_sent
            .fetch_add(1, Ordering::Relaxed);
        Ok(Started::Remote(call))
    }

    async fn finish(
        &self,
        call: Started<P::Reply>,
        deadline: Instant,
    ) -> Result<P::Reply, CallError> {
        let timeout = || CallError::Timeout {
            after: self.options.timeout,
        };
        match call {
            Started::Local(mut receiver) => {
                let reply = match after_one_turn(&mut receiver).await {
                    Some(reply) => Ok(reply),
                    None => tokio::time::timeout_at(deadline, receiver).await,
                };
                match reply {
                    Ok(Ok(Ok(reply))) => Ok(reply),
                    Ok(Ok(Err(Unanswered::Failed(error)))) => Err(error),
                    Ok(Ok(Err(Unanswered::NotStarted(_)))) => Err(CallError::Gone {
                        node: self.registry.node().clone(),
                    }),
                    Ok(Err(_)) => Err(CallError::Stopped),
                    Err(_) => Err(timeout()),
                }
            }
            Started::Remote(mut call) => {
                let outcome = tokio::time::timeout_at(deadline, call.outcome())
                    .await
                    .map_err(|_| timeout())?;
                let node = call.node();
                match outcome {
                    Outcome::Reply(bytes) => wire::decode(&bytes)
                        .map_err(|cause| CallError::Decode { cause, reply: true }),
                    Outcome::Failed(failure) => Err(failure.into_error(P::VERSION, node)),
                    Outcome::Lost => Err(CallError::Disconnected { node: node.clone() }),
                    Outcome::NotSent(why) => Err(CallError::NotSent {
                        node: node.clone(),
                        why: why.to_string(),
                    }),
                    Outcome::TooLarge { limit } => Err(CallError::TooLarge {
                        limit,
                        reply: false,
                    }),
                }
            }
        }
    }

    fn cast_to(&self, info: &Arc<ServiceInfo>, message: P::Cast) -> Result<(), CastError<P::Cast>> {
        if let Err(error) = self.check_version(info) {
            return Err(CastError { error, message });
        }
        if self.is_local(info) {
            // The message has to come back where there is no such mailbox.
            let mut message = Some(message);
            let taken = self.with_mailbox(info, |mailbox| {
                message.take().map_or(Ok(()), |message| {
                    mailbox.sender.try_send(Envelope::Cast {
                        message: Payload::Value(message),
                    })
                })
            });
            let (error, back) = match taken {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(mpsc::error::TrySendError::Full(back))) => {
                    (self.overloaded(info), Some(back))
                }
                Ok(Err(mpsc::error::TrySendError::Closed(back))) => (self.gone(info), Some(back)),
                Err(error) => (error, None),
            };
            let back = back.and_then(|envelope| match envelope {
                Envelope::Cast {
                    message: Payload::Value(message),
                } => Some(message),
                _ => None,
            });
            return match back.or(message) {
                Some(message) => Err(CastError { error, message }),
                None => Ok(()),
            };
        }
        match self.cast_remotely(info, &message) {
            Ok(()) => Ok(()),
            Err(error) => Err(CastError { error, message }),
        }
    }

    /// Casts and keeps the message: a local service gets it encoded.
    fn cast_copy_to(&self, info: &Arc<ServiceInfo>, message: &P::Cast) -> Result<(), CallError> {
        self.check_version(info)?;
        if !self.is_local(info) {
            return self.cast_remotely(info, message);
        }
        let message = Payload::Encoded(encode_alone(message, self.data.max_payload_bytes())?);
        let envelope = Envelope::Cast { message };
        match self.with_mailbox(info, |mailbox| mailbox.sender.try_send(envelope))? {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(self.overloaded(info)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.gone(info)),
        }
    }

    fn cast_remotely(&self, info: &Arc<ServiceInfo>, message: &P::Cast) -> Result<(), CallError> {
        let header = CastHeader {
            sequence: info.id().sequence,
            version: P::VERSION,
        };
        let lane = self.data.lane(info)?;
        let limit = lane.max_payload_bytes(&self.data);
        let frame = wire::encode(kind::CAST, &header, message, limit)
            .map_err(|error| encode_error(error, limit))?;
        lane.send(&self.data, frame)?;
        self.data
            .counters
            .casts_sent
            .fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn gone(&self, info: &ServiceInfo) -> CallError {
        CallError::Gone {
            node: info.node().clone(),
        }
    }

    fn overloaded(&self, info: &ServiceInfo) -> CallError {
        CallError::Overloaded {
            node: info.node().clone(),
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

/// A message that is sent once, or that may be sent again.
enum Sent<'a, M> {
    Given(M),
    Kept(&'a M),
}

/// A call on its way.
enum Started<R> {
    Local(oneshot::Receiver<Result<R, Unanswered>>),
    Remote(PendingCall),
}

fn encode_alone<M: Serialize>(message: &M, limit: usize) -> Result<Bytes, CallError> {
    wire::encode_whole(kind::CALL, &(), message, limit)
        .map(|frame| frame.body)
        .map_err(|error| encode_error(error, limit))
}

fn encode_error(error: EncodeError, limit: usize) -> CallError {
    match error {
        EncodeError::TooLarge => CallError::TooLarge {
            limit,
            reply: false,
        },
        EncodeError::Other(cause) => CallError::Encode { cause },
    }
}

fn nameless() -> ServiceType {
    ServiceType::try_new("nameless").expect("a name")
}

/// One particular instance; see [`ServiceHandle::at`].
pub struct InstanceHandle<P: Protocol> {
    services: ServiceHandle<P>,
    id: ServiceId,
}

// Derived, it would ask the protocol to be `Clone`, which it need not be.
impl<P: Protocol> Clone for InstanceHandle<P> {
    fn clone(&self) -> Self {
        InstanceHandle {
            services: self.services.clone(),
            id: self.id.clone(),
        }
    }
}

impl<P: Protocol> std::fmt::Debug for InstanceHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceHandle")
            .field("type", &P::NAME)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> InstanceHandle<P> {
    /// The instance.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// Its entry, as long as there is one.
    pub fn info(&self) -> Option<Arc<ServiceInfo>> {
        self.services.look(|view| view.service(&self.id).cloned())
    }

    /// Calls it, in whatever state it is.
    pub async fn call(&self, message: P::Call) -> Result<P::Reply, CallError> {
        let info = self.required()?;
        let deadline = Instant::now() + self.services.options.timeout;
        self.services
            .call_to(&info, Sent::Given(message), deadline)
            .await
    }

    /// Sends it a message.
    pub fn cast(&self, message: P::Cast) -> Result<(), CastError<P::Cast>> {
        match self.required() {
            Ok(info) => self.services.cast_to(&info, message),
            Err(error) => Err(CastError { error, message }),
        }
    }

    /// Waits until it is not in the registry any more: it has ended, or its node is down.
    pub async fn monitor(&self) -> Result<(), NameError> {
        let mut events = self.services.subscribe()?;
        loop {
            match events.next().await {
                Some(ServiceEvent::Current(view)) if view.service(&self.id).is_none() => break,
                Some(ServiceEvent::Left(info)) if info.id() == &self.id => break,
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    fn required(&self) -> Result<Arc<ServiceInfo>, CallError> {
        self.info().ok_or_else(|| CallError::NoInstance {
            id: self.id.clone(),
        })
    }
}
