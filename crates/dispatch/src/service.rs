//! `Service`: own state, one message at a time, a bounded mailbox; and what runs one.

use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keydispatch_core::{
    InstanceName, Metadata, NameError, NewEntry, ServiceId, ServiceInfo, ServiceState, ServiceType,
    Weight, Zone,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::call::Failure;
use crate::data::{DataPlane, wire};
use crate::mailbox::{AnyMailbox, Envelope, Mailbox, Payload, ReplyTo};
use crate::registry::{Registration, Registry, RegistryError};

/// Messages that wait for a service unless [`ServeOptions::mailbox`] says otherwise.
pub const DEFAULT_MAILBOX: usize = 1_024;

/// What can be sent to a service and back: anything that serde encodes.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Message for T {}

/// The messages of a service type, shared by those who serve it and those who call it.
///
/// ```
/// # use serde::{Serialize, Deserialize};
/// struct Uploads;
///
/// impl keydispatch::Protocol for Uploads {
///     const NAME: &'static str = "uploader";
///     type Call = String;           // a file's name
///     type Reply = Option<Vec<u8>>; // its contents
///     type Cast = (String, Vec<u8>);
/// }
/// ```
pub trait Protocol: Send + Sync + 'static {
    /// The service type, 1 to 255 bytes.
    const NAME: &'static str;
    /// The version of the messages. A service of another version answers
    /// [`CallError::Incompatible`](crate::CallError::Incompatible), never a misread message.
    const VERSION: u32 = 1;
    /// What is called.
    type Call: Message;
    /// What a call is answered with.
    type Reply: Message;
    /// What is cast: sent without an answer. `()` where nothing is.
    type Cast: Message;
}

/// What a handler or a factory may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a service is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// By [`Served::stop`] or [`Context::stop`].
    Stopped,
    /// Its node leaves.
    NodeStopped,
}

/// How a service came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was asked to, or its node left.
    Stopped(StopReason),
    /// A handler panicked.
    Panicked,
    /// Its node was dropped.
    Aborted,
}

/// One running service, in the shape of a GenServer: it owns its state, and handles one message at a time.
///
/// ```
/// use keydispatch::{Context, Protocol, ReplyTo, Service};
/// # struct Counters;
/// # impl Protocol for Counters {
/// #     const NAME: &'static str = "counter";
/// #     type Call = (); type Reply = u64; type Cast = u64;
/// # }
/// struct Counter(u64);
///
/// impl Service for Counter {
///     type Protocol = Counters;
///
///     async fn handle_call(&mut self, _: (), reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
///         reply_to.reply(self.0);
///     }
///
///     async fn handle_cast(&mut self, more: u64, _: &mut Context<Self>) {
///         self.0 += more;
///     }
/// }
/// ```
///
/// A handler that panics ends this instance alone: its entry leaves the registry at once, and its callers get
/// [`CallError::Stopped`](crate::CallError::Stopped). With `panic = "abort"` it ends the process, as any panic does.
pub trait Service: Sized + Send + 'static {
    /// The messages that it understands.
    type Protocol: Protocol;

    /// Runs before the service is registered; an error is what [`serve`](crate::Node::serve) returns.
    fn started(
        &mut self,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = cx;
        async { Ok(()) }
    }

    /// A call. `reply_to` is used now, moved away and used later, or dropped: then the caller gets
    /// [`CallError::NoReply`](crate::CallError::NoReply).
    fn handle_call(
        &mut self,
        call: <Self::Protocol as Protocol>::Call,
        reply_to: ReplyTo<<Self::Protocol as Protocol>::Reply>,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + Send;

    /// A cast: from a caller, or from the service to itself, at once or by a timer.
    fn handle_cast(
        &mut self,
        cast: <Self::Protocol as Protocol>::Cast,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + Send {
        let _ = (cast, cx);
        async {}
    }

    /// Runs when the service stops by request or because its node leaves; not after a panic, nor when the node is
    /// dropped. The entry has left the registry by then.
    fn stopped(&mut self, reason: StopReason) -> impl Future<Output = ()> + Send {
        let _ = reason;
        async {}
    }
}

/// How a service is started; see [`Node::serve_with`](crate::Node::serve_with).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ServeOptions {
    name: Option<String>,
    weight: Option<u16>,
    zone: Option<String>,
    tags: std::collections::BTreeMap<Box<str>, Box<str>>,
    offline: bool,
    mailbox: Option<usize>,
}

impl ServeOptions {
    /// A default name, weight 100, the node's zone, no tags, online, a mailbox of 1,024 messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stable name that placement hashes; by default `<node>/<smallest free ordinal>`. A service that takes the name
    /// of one that ended takes its keys.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Its share of the keys relative to the others: 1 to 1000.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Its failure domain.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A label, for whoever reads the registry.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into().into(), value.into().into());
        self
    }

    /// Registered, but without keys until it is enabled.
    pub fn offline(mut self) -> Self {
        self.offline = true;
        self
    }

    /// How many messages may wait, at least 1; more are refused as
    /// [`CallError::Overloaded`](crate::CallError::Overloaded).
    pub fn mailbox(mut self, messages: usize) -> Self {
        self.mailbox = Some(messages.max(1));
        self
    }

    fn into_entry<P: Protocol>(
        self,
        sequence: u64,
        default_zone: Option<&Zone>,
    ) -> Result<NewEntry, RegistryError> {
        let zone = match self.zone {
            Some(zone) => Some(Zone::try_new(zone)?),
            None => default_zone.cloned(),
        };
        Ok(NewEntry {
            sequence,
            service_type: ServiceType::try_new(P::NAME)?,
            name: self.name.map(InstanceName::try_new).transpose()?,
            state: if self.offline {
                ServiceState::Offline
            } else {
                ServiceState::Online
            },
            weight: self.weight.map_or(Ok(Weight::default()), Weight::try_new)?,
            protocol_version: Some(P::VERSION),
            metadata: Metadata::try_new(zone, None, self.tags)?,
        })
    }
}

/// Why a service was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Its `started` failed.
    #[error("the service did not start: {0}")]
    Start(BoxError),
    /// It ended while it was starting: by a panic, or because the node stopped.
    #[error("the service ended while it was starting")]
    EndedEarly,
    /// It cannot be registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Where a service finds itself, and how it sends messages to itself.
pub struct Context<S: Service> {
    id: ServiceId,
    own: VecDeque<CastOf<S>>,
    timers: BinaryHeap<Due<S>>,
    /// Numbers timers, so that those of one instant fire in order.
    last_timer: u64,
    cancelled: Vec<u64>,
    stop: Option<StopReason>,
}

type CastOf<S> = <<S as Service>::Protocol as Protocol>::Cast;

/// A timer of a service; see [`Context::cast_after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer(u64);

struct Due<S: Service> {
    at: Instant,
    number: u64,
    message: CastOf<S>,
}

impl<S: Service> PartialEq for Due<S> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<S: Service> Eq for Due<S> {}

impl<S: Service> PartialOrd for Due<S> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<S: Service> Ord for Due<S> {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<S: Service> Context<S> {
    fn new(id: ServiceId) -> Self {
        Context {
            id,
            own: VecDeque::new(),
            timers: BinaryHeap::new(),
            last_timer: 0,
            cancelled: Vec::new(),
            stop: None,
        }
    }

    /// This instance.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// Sends a message to this service itself. It is handled after this one, in turn with what waits in the mailbox.
    pub fn cast(&mut self, message: CastOf<S>) {
        self.own.push_back(message);
    }

    /// Sends a message to this service itself after a while. Timers end with the service.
    pub fn cast_after(&mut self, after: Duration, message: CastOf<S>) -> Timer {
        self.last_timer += 1;
        self.timers.push(Due {
            at: Instant::now() + after,
            number: self.last_timer,
            message,
        });
        Timer(self.last_timer)
    }

    /// Takes a timer back. One that has fired is not undone.
    pub fn cancel(&mut self, timer: Timer) {
        if self.timers.iter().any(|due| due.number == timer.0) {
            self.cancelled.push(timer.0);
        }
    }

    /// Ends the service after this message.
    pub fn stop(&mut self) {
        self.stop.get_or_insert(StopReason::Stopped);
    }

    fn next_timer(&mut self) -> Option<Instant> {
        loop {
            let due = self.timers.peek()?;
            let Some(at) = self
                .cancelled
                .iter()
                .position(|number| *number == due.number)
            else {
                return Some(due.at);
            };
            self.cancelled.swap_remove(at);
            self.timers.pop();
        }
    }

    fn due(&mut self) -> Option<CastOf<S>> {
        let at = self.next_timer()?;
        if at > Instant::now() {
            return None;
        }
        self.timers.pop().map(|due| due.message)
    }
}

impl<S: Service> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id)
            .field("timers", &self.timers.len())
            .finish_non_exhaustive()
    }
}

/// A service that runs on this node.
///
/// Dropping it changes nothing: the service runs until it is stopped, panics, or its node ends.
pub struct Served<P: Protocol> {
    info: Arc<ServiceInfo>,
    registry: Registry,
    mailbox: Mailbox<P>,
    ended: watch::Receiver<Option<Ended>>,
}

impl<P: Protocol> Served<P> {
    /// The instance.
    pub fn id(&self) -> &ServiceId {
        self.info.id()
    }

    /// Its entry as it was registered.
    pub fn info(&self) -> &Arc<ServiceInfo> {
        &self.info
    }

    /// Its entry, to disable, drain, or change it.
    pub fn registration(&self) -> Registration {
        Registration::new(self.registry.clone(), &self.info)
    }

    /// Stops it: its entry leaves the registry, its `stopped` runs, and what still waits in its mailbox is failed with
    /// [`CallError::Stopped`](crate::CallError::Stopped). Returns when that is done.
    pub async fn stop(&self) {
        self.mailbox.stop(StopReason::Stopped);
        self.ended().await;
    }

    /// Waits until it has ended, and says how.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Ended::Aborted),
            Err(_) => Ended::Aborted,
        }
    }
}

impl<P: Protocol> fmt::Debug for Served<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("id", self.info.id())
            .finish_non_exhaustive()
    }
}

/// Starts a service and registers it.
pub(crate) async fn serve<S: Service>(
    registry: &Registry,
    data: &Arc<DataPlane>,
    options: ServeOptions,
    service: S,
) -> Result<Served<S::Protocol>, ServeError> {
    let sequence = registry.next_sequence();
    let capacity = options.mailbox.unwrap_or(DEFAULT_MAILBOX);
    let entry = options.into_entry::<S::Protocol>(sequence, registry.zone())?;
    let id = ServiceId {
        node: registry.node().clone(),
        nonce: registry.nonce(),
        sequence,
    };
    let (sender, receiver) = mpsc::channel(capacity);
    let mailbox = Mailbox { sender };
    let (started, start) = oneshot::channel();
    let (ended_sender, ended) = watch::channel(None);
    let flag = Arc::new(AtomicBool::new(false));
    let runner = Runner {
        registry: registry.clone(),
        data: Arc::clone(data),
        flag: Arc::clone(&flag),
        ended: ended_sender,
    };
    let task = data.spawn_service(runner.run(service, id.clone(), receiver, started));
    let unfinished = AbortUnlessDone(Some(task.clone()));
    match start.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(ServeError::Start(error)),
        Err(_) => return Err(ServeError::EndedEarly),
    }
    data.add_local(sequence, Arc::new(mailbox.clone()), task, flag);
    let info = registry.add_entry(entry).await?;
    unfinished.done();
    if ended.borrow().is_some() {
        // It ended before it was registered.
        data.remove_local(sequence);
        registry.remove_soon(&id);
    }
    Ok(Served {
        info,
        registry: registry.clone(),
        mailbox,
        ended,
    })
}

/// Ends a service whose start was given up.
struct AbortUnlessDone(Option<AbortHandle>);

impl AbortUnlessDone {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortUnlessDone {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

struct Runner {
    registry: Registry,
    data: Arc<DataPlane>,
    /// True once the service has ended, for the replies that it still owes.
    flag: Arc<AtomicBool>,
    ended: watch::Sender<Option<Ended>>,
}

/// Fails what still waits in the mailbox when it is dropped.
struct Inbox<P: Protocol> {
    receiver: mpsc::Receiver<Envelope<P>>,
    id: ServiceId,
}

impl<P: Protocol> Drop for Inbox<P> {
    fn drop(&mut self) {
        self.receiver.close();
        while let Ok(envelope) = self.receiver.try_recv() {
            if let Envelope::Call { route, .. } = envelope {
                route.fail(Failure::Stopped, P::VERSION, &self.id.node);
            }
        }
    }
}

/// Takes a service out of everything when it ends, in whatever way.
struct Ending {
    runner: Runner,
    id: ServiceId,
    how: Option<Ended>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.runner.flag.store(true, Ordering::Release);
        self.runner.data.remove_local(self.id.sequence);
        self.runner.registry.remove_soon(&self.id);
        let how = self.how.unwrap_or(if std::thread::panicking() {
            tracing::error!(service = %self.id, "a service panicked, and has ended");
            Ended::Panicked
        } else {
            Ended::Aborted
        });
        self.runner.ended.send_replace(Some(how));
    }
}

impl Runner {
    async fn run<S: Service>(
        self,
        service: S,
        id: ServiceId,
        receiver: mpsc::Receiver<Envelope<S::Protocol>>,
        started: oneshot::Sender<Result<(), BoxError>>,
    ) {
        // Dropped in the reverse order: first everybody knows that it has ended, then its state goes, then its mailbox.
        let mut inbox = Inbox {
            receiver,
            id: id.clone(),
        };
        let mut service = service;
        let flag = Arc::clone(&self.flag);
        let mut ending = Ending {
            runner: self,
            id: id.clone(),
            how: None,
        };
        let mut cx = Context::<S>::new(id);
        let outcome = service.started(&mut cx).await;
        let failed = outcome.is_err();
        if started.send(outcome).is_err() || failed {
            return;
        }
        let reason = ending
            .handle_all(&mut service, &mut cx, &mut inbox, &flag)
            .await;
        // The entry goes first, so that nobody finds a service that is stopping.
        ending.runner.data.remove_local(ending.id.sequence);
        // It may have been removed by hand already.
        let _ = ending.runner.registry.remove_service(&ending.id).await;
        service.stopped(reason).await;
        ending.how = Some(Ended::Stopped(reason));
    }
}

enum Turn<S: Service> {
    Envelope(Option<Envelope<S::Protocol>>),
    Own(CastOf<S>),
}

impl Ending {
    async fn handle_all<S: Service>(
        &self,
        service: &mut S,
        cx: &mut Context<S>,
        inbox: &mut Inbox<S::Protocol>,
        flag: &Arc<AtomicBool>,
    ) -> StopReason {
        let mut own_turn = true;
        loop {
            if let Some(reason) = cx.stop {
                return reason;
            }
            own_turn = !own_turn;
            let envelope = match self.next(cx, inbox, own_turn).await {
                Turn::Own(message) => {
                    service.handle_cast(message, cx).await;
                    continue;
                }
                Turn::Envelope(Some(envelope)) => envelope,
                // Every sender is gone: nobody can ever send again.
                Turn::Envelope(None) => return StopReason::NodeStopped,
            };
            match envelope {
                Envelope::Stop(reason) => return reason,
                Envelope::Cast { message } => {
                    if let Some(message) = self.decode(message, inbox) {
                        service.handle_cast(message, cx).await;
                    }
                }
                Envelope::Call {
                    message,
                    route,
                    deadline,
                } => {
                    // Rule: a call whose time is over, or whose caller has gone, is not started.
                    if route.is_abandoned() {
                        continue;
                    }
                    let version = <S::Protocol as Protocol>::VERSION;
                    if deadline <= Instant::now() {
                        route.fail(Failure::Expired, version, &inbox.id.node);
                        continue;
                    }
                    match message {
                        Payload::Value(call) => {
                            let reply_to = ReplyTo::new(route, Arc::clone(flag));
                            service.handle_call(call, reply_to, cx).await;
                        }
                        Payload::Encoded(bytes) => match wire::decode(&bytes) {
                            Ok(call) => {
                                let reply_to = ReplyTo::new(route, Arc::clone(flag));
                                service.handle_call(call, reply_to, cx).await;
                            }
                            Err(error) => {
                                self.count_undecodable(&error);
                                let cause = error.to_string();
                                route.fail(Failure::Decode { cause }, version, &inbox.id.node);
                            }
                        },
                    }
                }
            }
        }
    }

    /// The service's own messages and what is in the mailbox take turns, so that neither starves the other.
    async fn next<S: Service>(
        &self,
        cx: &mut Context<S>,
        inbox: &mut Inbox<S::Protocol>,
        own_turn: bool,
    ) -> Turn<S> {
        if let Some(message) = cx.due() {
            cx.own.push_back(message);
        }
        if !cx.own.is_empty() {
            let waiting = if own_turn {
                None
            } else {
                inbox.receiver.try_recv().ok()
            };
            return match (waiting, cx.own.pop_front()) {
                (Some(envelope), Some(message)) => {
                    cx.own.push_front(message);
                    Turn::Envelope(Some(envelope))
                }
                (Some(envelope), None) => Turn::Envelope(Some(envelope)),
                (None, Some(message)) => Turn::Own(message),
                (None, None) => Turn::Envelope(inbox.receiver.recv().await),
            };
        }
        let Some(at) = cx.next_timer() else {
            return Turn::Envelope(inbox.receiver.recv().await);
        };
        tokio::select! {
            biased;
            envelope = inbox.receiver.recv() => Turn::Envelope(envelope),
            () = tokio::time::sleep_until(at) => match cx.due() {
                Some(message) => Turn::Own(message),
                None => Turn::Envelope(inbox.receiver.recv().await),
            },
        }
    }

    fn decode<P: Protocol>(&self, message: Payload<P::Cast>, _: &Inbox<P>) -> Option<P::Cast> {
        match message {
            Payload::Value(message) => Some(message),
            Payload::Encoded(bytes) => match wire::decode(&bytes) {
                Ok(message) => Some(message),
                Err(error) => {
                    self.count_undecodable(&error);
                    None
                }
            },
        }
    }

    fn count_undecodable(&self, error: &postcard::Error) {
        let counters = &self.runner.data.counters;
        let times = counters.undecodable.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() {
            tracing::warn!(service = %self.id, %error, times, "a message does not decode");
        }
    }
}
