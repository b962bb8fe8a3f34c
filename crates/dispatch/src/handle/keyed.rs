//! Typed handles to services that have a state for each key.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keydispatch_core::{
    Key, KeyBytes, MAX_KEY_BYTES, NameError, ServiceId, ServiceInfo, ServiceState, View,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::budget::RetryBudget;
use super::route::{HANDOVER, LOOK_PAUSE, Pause, RETRY_PAUSE};
use super::send::{Deadline, decode_reply, encode_error, gone};
use super::ways::Ways;
use crate::call::{CallError, CallOptions, CastError, DEFAULT_CALL_TIMEOUT, Failure};
use crate::codec;
use crate::data::aim::{Aim, To};
use crate::data::lane::{Outcome, PendingCall};
use crate::data::lane_runtime::LaneRuntime;
use crate::data::local::Local;
use crate::data::mailbox;
use crate::data::mailbox::letter::{Letter, Reach};
use crate::data::peers::Peers;
use crate::data::wire::{self, CallHeader, Format, KeyedHeader, kind};
use crate::keyed::current::current_key;
use crate::protocol::{Message, Protocol};
use crate::registry::Registry;
use crate::registry::entry::{NoService, RegistryError};
use crate::trace;
use crate::watch::services::Subscription;

/// Casts of a handle and its clones that were not taken yet; more are refused.
const MAX_CASTS: usize = 1 << 16;

/// How long a cast looks for its key's state.
const CAST_TIMEOUT: Duration = DEFAULT_CALL_TIMEOUT;

/// Calls and casts the keys of one [`Keyed`](crate::Keyed) service, wherever their states are. Cheap to clone; made by
/// [`Node::keyed`](crate::Node::keyed).
///
/// There is one state for each key, so there are no calls to several owners, and none to the next one: what cannot be had
/// from the owner waits for it. It does not keep its node alive: once that has stopped, nothing is found any more.
pub struct KeyedHandle<P: Protocol> {
    registry: Registry,
    local: Arc<Local>,
    peers: Arc<Peers>,
    runtime: Arc<LaneRuntime>,
    timeout: Duration,
    idempotent: bool,
    /// Shared with the clones.
    budget: Arc<RetryBudget>,
    casts: Arc<tokio::sync::Semaphore>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

impl<P: Protocol> Clone for KeyedHandle<P> {
    fn clone(&self) -> Self {
        KeyedHandle {
            registry: self.registry.clone(),
            local: Arc::clone(&self.local),
            peers: Arc::clone(&self.peers),
            runtime: Arc::clone(&self.runtime),
            timeout: self.timeout,
            idempotent: self.idempotent,
            budget: Arc::clone(&self.budget),
            casts: Arc::clone(&self.casts),
            protocol: self.protocol,
        }
    }
}

impl<P: Protocol> std::fmt::Debug for KeyedHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyedHandle")
            .field("type", &P::NAME)
            .field("node", self.registry.node())
            .finish_non_exhaustive()
    }
}

/// A message on its way to one instance.
enum StartedKeyed {
    Here(oneshot::Receiver<Result<Bytes, Failure>>),
    Remote(PendingCall),
}

/// Why an attempt came to nothing.
struct Missed {
    error: CallError,
    /// Where the state is, as far as whoever was asked knows.
    to: Option<ServiceId>,
    /// True where views, connections and states are about to agree again.
    settling: bool,
}

impl From<CallError> for Missed {
    fn from(error: CallError) -> Self {
        Missed {
            error,
            to: None,
            settling: false,
        }
    }
}

impl From<crate::call::Unsent> for Missed {
    fn from(unsent: crate::call::Unsent) -> Self {
        Missed {
            error: unsent.error,
            to: None,
            settling: unsent.settling,
        }
    }
}

/// What is sent, however often.
#[derive(Clone)]
struct Parcel {
    key: KeyBytes,
    place: Key,
    body: Bytes,
    is_cast: bool,
}

impl<P: Protocol> KeyedHandle<P> {
    pub(crate) fn new(ways: &Ways) -> Self {
        KeyedHandle {
            registry: ways.registry.clone(),
            local: Arc::clone(&ways.local),
            peers: Arc::clone(&ways.peers),
            runtime: Arc::clone(&ways.runtime),
            timeout: DEFAULT_CALL_TIMEOUT,
            idempotent: false,
            budget: Arc::default(),
            casts: Arc::new(tokio::sync::Semaphore::new(MAX_CASTS)),
            protocol: std::marker::PhantomData,
        }
    }

    /// The same handle whose calls may take so long in all; by default five seconds. The deadline travels with the call: one
    /// that has expired is not started.
    #[must_use]
    pub fn timeout(&self, timeout: Duration) -> Self {
        KeyedHandle {
            timeout,
            ..self.clone()
        }
    }

    /// The same handle whose calls may run more than once: where it is unknown whether one ran, it is made again, within the
    /// timeout and a [retry budget](CallOptions::retry_budget) of 20 % and 10 a second.
    #[must_use]
    pub fn idempotent(&self) -> Self {
        KeyedHandle {
            idempotent: true,
            ..self.clone()
        }
    }

    /// The instance that owns a key by this node's view. While states move it may not have the key's yet.
    pub fn find(&self, key: impl Into<Key>) -> Result<Arc<ServiceInfo>, NoService> {
        self.owner(key.into()).ok_or_else(|| NoService {
            service_type: P::NAME.to_owned(),
        })
    }

    /// Calls a key, and waits for the reply.
    ///
    /// Where the key's state moves meanwhile, the call goes where it goes, until its time is over: it runs once.
    ///
    /// # Errors
    ///
    /// As those of [`ServiceHandle::call`](crate::ServiceHandle::call); and [`CallError::NoState`] where the key does not
    /// open, [`CallError::Moved`] where its state was on its way for as long as the call could take, [`CallError::CallsItself`]
    /// from the handler of that very key.
    pub async fn call(
        &self,
        key: impl Into<KeyBytes>,
        message: P::Call,
    ) -> Result<P::Reply, CallError> {
        let deadline = Deadline::after(self.timeout);
        let parcel = self.pack(key.into(), &message, false)?;
        drop(message);
        match trace::call(P::NAME, "call", Some(parcel.place.slot().keyed())) {
            None => self.call_packed(parcel, deadline).await,
            Some(span) => Box::pin(trace::within(span, self.call_packed(parcel, deadline))).await,
        }
    }

    async fn call_packed(&self, parcel: Parcel, deadline: Deadline) -> Result<P::Reply, CallError> {
        self.budget.count_call();
        let first = self.start_at_owner(&parcel, deadline);
        let bytes = self.see_through(parcel, first, deadline).await?;
        decode_reply::<P>(&bytes)
    }

    /// Sends a message to a key, and does not wait for anything: an error gives the message back.
    ///
    /// `Ok` says that it is on its way: where the key's state moves meanwhile it goes there, for five seconds. Casts of one
    /// caller to one key are handled in the order sent, while the key stays where it is.
    pub fn cast(
        &self,
        key: impl Into<KeyBytes>,
        message: P::Cast,
    ) -> Result<(), CastError<P::Cast>> {
        let deadline = Deadline::after(CAST_TIMEOUT);
        let parcel = match self.pack(key.into(), &message, true) {
            Ok(parcel) => parcel,
            Err(error) => return Err(CastError { error, message }),
        };
        let Ok(permit) = Arc::clone(&self.casts).try_acquire_owned() else {
            let node = self.registry.node().clone();
            let error = CallError::Overloaded { node };
            return Err(CastError { error, message });
        };
        let first = match self.start_at_owner(&parcel, deadline) {
            // Nobody is there to take it, and that is not about to change.
            Err(missed) if !missed.settling && self.is_final(&missed.error) => {
                let error = missed.error;
                return Err(CastError { error, message });
            }
            first => first,
        };
        let handle = self.clone();
        self.runtime.spawn("cast to a key", async move {
            let key = parcel.key.clone();
            if let Err(error) = handle.see_through(parcel, first, deadline).await {
                let unsent = &handle.runtime.counters.casts_unsent;
                let lost = unsent.fetch_add(1, Ordering::Relaxed) + 1;
                if lost.is_power_of_two() {
                    tracing::warn!(service_type = P::NAME, %key, %error, lost, "a cast was not taken");
                }
            }
            drop(permit);
        });
        Ok(())
    }

    /// Waits until at least so many instances are online here: an error once the node has stopped, as none ever will be.
    pub async fn wait_online(&self, instances: usize) -> Result<(), RegistryError> {
        let mut events = self.subscribe()?;
        loop {
            let online = self.look(|view| Some(view.online_count()));
            if online.unwrap_or(0) >= instances {
                return Ok(());
            }
            if events.next().await.is_none() {
                return Err(RegistryError::NodeStopped);
            }
        }
    }

    /// The services that join, leave or change; see [`Registry::subscribe`].
    pub fn subscribe(&self) -> Result<Subscription, NameError> {
        self.registry.subscribe(P::NAME)
    }

    fn pack<M: Message>(
        &self,
        key: KeyBytes,
        message: &M,
        is_cast: bool,
    ) -> Result<Parcel, CallError> {
        let bytes = key.as_bytes().len();
        if bytes > MAX_KEY_BYTES {
            return Err(CallError::Encode {
                cause: format!(
                    "a key of a state has at most {MAX_KEY_BYTES} bytes, this one has {bytes}"
                ),
            });
        }
        let place = key.key();
        // Rule: nobody waits for its own handler to end.
        if !is_cast
            && current_key(P::NAME, place)
            && let Some(info) = self.owner(place)
        {
            let id = info.id().clone();
            return Err(CallError::CallsItself { id });
        }
        let limit = self.runtime.max_payload_bytes();
        let room = wire::max_frame_bytes(limit);
        let body = codec::append(P::CODEC, message, BytesMut::new(), room)
            .map_err(|error| encode_error(error, limit))?
            .freeze();
        Ok(Parcel {
            key,
            place,
            body,
            is_cast,
        })
    }

    fn look<T>(&self, read: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        let directory = self.registry.directory();
        directory.read(P::NAME, |view| view.keyed().and_then(read))?
    }

    fn owner(&self, key: Key) -> Option<Arc<ServiceInfo>> {
        self.look(|view| view.owner(key).cloned())
    }

    /// True for what no other instance, and no later attempt, will change.
    fn is_final(&self, error: &CallError) -> bool {
        !matches!(
            error,
            CallError::NoService { .. }
                | CallError::NotSent { .. }
                | CallError::Overloaded { .. }
                | CallError::Gone { .. }
                | CallError::Moved { .. }
                | CallError::Disconnected { .. }
                | CallError::Stopped
        )
    }

    fn start_at_owner(&self, parcel: &Parcel, deadline: Deadline) -> Result<StartedKeyed, Missed> {
        match self.owner(parcel.place) {
            Some(info) => self.start(&info, To::Owner(parcel.place), parcel, deadline),
            None => Err(self.nobody().into()),
        }
    }

    fn nobody(&self) -> CallError {
        let others = self
            .registry
            .directory()
            .read(P::NAME, |view| view.online_count() > 0 && !view.is_keyed());
        let is_listed = self.look(|_| Some(())).is_some();
        if others == Some(true) && !is_listed {
            return CallError::WrongHandle {
                service_type: P::NAME.to_owned(),
                keyed: false,
            };
        }
        CallError::NoService {
            service_type: P::NAME.to_owned(),
        }
    }

    /// Sends it to one instance.
    fn start(
        &self,
        info: &Arc<ServiceInfo>,
        to: To,
        parcel: &Parcel,
        deadline: Deadline,
    ) -> Result<StartedKeyed, Missed> {
        let accepts = info.accepts();
        if !accepts.is_some_and(|accepts| accepts.takes(P::VERSION, P::CODEC)) {
            let theirs = info.protocol_version().zip(accepts);
            let theirs =
                theirs.map(|(version, accepts)| mailbox::theirs(version, &accepts, P::VERSION));
            let (ours, theirs) = (P::VERSION, theirs.unwrap_or(0));
            return Err(CallError::Incompatible { ours, theirs }.into());
        }
        let id = info.id();
        if id.nonce == self.registry.nonce() && id.node == *self.registry.node() {
            return self.put(info, parcel, deadline);
        }
        let lane = self.peers.lane(info)?;
        let limit = lane.max_payload_bytes(&self.runtime);
        if parcel.body.len() > limit {
            return Err(CallError::TooLarge {
                limit,
                reply: false,
            }
            .into());
        }
        let left = deadline.at.saturating_duration_since(Instant::now());
        let call = lane.call(&self.runtime, true, |number| {
            lane.trace(number, info);
            let header = KeyedHeader {
                call: CallHeader {
                    number,
                    sequence: id.sequence,
                    timeout_ms: CallHeader::millis(left),
                    format: Format::of::<P>(),
                },
                is_cast: parcel.is_cast,
                key: parcel.key.to_bytes(),
            };
            let outgoing = wire::with_body(kind::KEYED, &header, &parcel.body);
            Ok(outgoing.aimed(Some(Aim::keyed::<P>(to))))
        })?;
        let counters = &self.runtime.counters;
        let counter = if parcel.is_cast {
            &counters.casts_sent
        } else {
            &counters.calls_sent
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(StartedKeyed::Remote(call))
    }

    /// Hands it to an instance in this process.
    fn put(
        &self,
        info: &ServiceInfo,
        parcel: &Parcel,
        deadline: Deadline,
    ) -> Result<StartedKeyed, Missed> {
        let (sender, receiver) = oneshot::channel();
        let mut letter = Letter::new(
            parcel.key.clone(),
            parcel.body.clone(),
            Format::of::<P>(),
            parcel.is_cast,
            deadline.at,
            Reach::Here(sender),
        );
        letter.span = trace::attempt(info);
        let letter = Cell::new(Some(letter));
        let there = self.local.with(info.id().sequence, |mailbox| {
            if let (Some(keyed), Some(letter)) = (mailbox.keyed(), letter.take()) {
                keyed.deliver(letter);
            }
        });
        match there {
            Some(()) => Ok(StartedKeyed::Here(receiver)),
            None => Err(gone(info).into()),
        }
    }

    async fn finish(&self, started: StartedKeyed, deadline: Deadline) -> Result<Bytes, Missed> {
        let node = || self.registry.node().clone();
        let (failure, node) = match started {
            StartedKeyed::Here(receiver) => {
                match tokio::time::timeout_at(deadline.at, receiver).await {
                    Ok(Ok(Ok(bytes))) => return Ok(bytes),
                    Ok(Ok(Err(failure))) => (failure, node()),
                    Ok(Err(_)) => (Failure::Stopped, node()),
                    Err(_) => return Err(deadline.passed().into()),
                }
            }
            StartedKeyed::Remote(mut call) => {
                let Ok(outcome) = tokio::time::timeout_at(deadline.at, call.outcome()).await else {
                    // Rule: what still waits for its connection when its time is over has not run.
                    let node = call.node().clone();
                    return Err(if call.take_back() {
                        let why = "no connection in time".to_owned();
                        CallError::NotSent { node, why }.into()
                    } else {
                        deadline.passed().into()
                    });
                };
                let node = call.node().clone();
                match outcome {
                    // Calls for a key are never bounded by load; what is told of it all the same is not needed.
                    Outcome::Reply(bytes) | Outcome::Told { reply: bytes, .. } => return Ok(bytes),
                    Outcome::Refused { .. } => (Failure::Overloaded, node),
                    Outcome::Failed(failure) => (failure, node),
                    Outcome::Lost => return Err(CallError::Disconnected { node }.into()),
                    Outcome::NotSent { why, settling } => {
                        let why = why.to_string();
                        return Err(Missed {
                            error: CallError::NotSent { node, why },
                            to: None,
                            settling,
                        });
                    }
                    Outcome::TooLarge { limit } => {
                        return Err(CallError::TooLarge {
                            limit,
                            reply: false,
                        }
                        .into());
                    }
                }
            }
        };
        let (to, settling) = match &failure {
            Failure::Moved { to } => (to.clone(), true),
            Failure::Gone => (None, true),
            _ => (None, false),
        };
        Err(Missed {
            error: failure.into_error(P::VERSION, &node),
            to,
            settling,
        })
    }

    /// Follows the key's state until the message was taken there, or its time is over.
    ///
    /// Rule: what has not run goes to where the state is by now; first where whoever does not have it says, then where the
    /// view says. Rule: what may have run is sent again only where the caller said that it is idempotent.
    async fn see_through(
        &self,
        parcel: Parcel,
        first: Result<StartedKeyed, Missed>,
        deadline: Deadline,
    ) -> Result<Bytes, CallError> {
        let mut next = first;
        let (mut soon, mut later) = (Pause::new(LOOK_PAUSE), Pause::new(RETRY_PAUSE));
        let mut handover: Option<Instant> = None;
        // Whoever was named is asked at once, the first times: after that news may be going in a circle.
        let mut hops = 0;
        loop {
            let missed = match next {
                Ok(started) => match self.finish(started, deadline).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(missed) => missed,
                },
                Err(missed) => missed,
            };
            let error = missed.error;
            let may_have_run = error.may_have_run();
            if self.is_final(&error) || (may_have_run && !self.idempotent) {
                return Err(error);
            }
            if self.runtime.is_closed() {
                return Err(if may_have_run {
                    error
                } else {
                    CallError::NodeStopped
                });
            }
            let named = missed.to.and_then(|to| {
                self.look(|view| view.service(&to).cloned())
                    .filter(|info| info.id() == &to)
            });
            let waited = match &error {
                _ if missed.settling && named.is_some() && hops < 2 => {
                    hops += 1;
                    true
                }
                _ if missed.settling => soon.wait(deadline).await,
                CallError::NoService { .. } => {
                    let now = Instant::now();
                    let until = *handover.get_or_insert(now + HANDOVER);
                    let waits = self.idempotent || (now < until && self.somebody_drains());
                    waits && soon.wait(deadline).await
                }
                CallError::Overloaded { .. } => self.withdraw() && later.wait(deadline).await,
                _ if may_have_run => self.withdraw() && later.wait(deadline).await,
                CallError::NotSent { .. } if !self.idempotent => false,
                _ => later.wait(deadline).await,
            };
            if !waited {
                return Err(error);
            }
            next = match named {
                Some(info) => {
                    let to = To::Instance(Arc::clone(&info));
                    self.start(&info, to, &parcel, deadline)
                }
                None => self.start_at_owner(&parcel, deadline),
            };
        }
    }

    fn withdraw(&self) -> bool {
        let (percent, per_second) = CallOptions::default().retry_budget;
        self.budget.withdraw(percent, per_second)
    }

    fn somebody_drains(&self) -> bool {
        let drains = |info: &Arc<ServiceInfo>| info.state() == ServiceState::Draining;
        self.look(|view| Some(view.services().iter().any(drains)))
            .unwrap_or(false)
    }
}
