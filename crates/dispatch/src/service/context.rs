//! Where a service finds itself: messages and timers to itself, and its end.

use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::{NodeName, ServiceId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Service;
use crate::data::caller::Caller;
use crate::data::mailbox::StopReason;
use crate::deadline;
use crate::protocol::Protocol;

/// Where a service finds itself, and how it sends messages to itself.
pub struct Context<S: Service> {
    pub(super) id: ServiceId,
    pub(super) own: VecDeque<OwnMessage<S>>,
    /// None until a handle to send some was asked for: most services never do.
    pub(super) infos: Option<Infos<S>>,
    /// Messages that may wait in each of its mailboxes.
    pub(super) capacity: usize,
    timers: BinaryHeap<Due<S>>,
    /// Numbers timers, so that those of one instant fire in order.
    last_timer: u64,
    cancelled: Vec<u64>,
    pub(super) stop: Option<StopReason>,
    /// Of the call or cast that is being handled.
    pub(super) from: Option<Origin>,
}

/// Where a message came from.
pub(super) struct Origin {
    pub(super) version: u32,
    /// None for this node.
    pub(super) caller: Option<Arc<Caller>>,
}

type CastOf<S> = <<S as Service>::Protocol as Protocol>::Cast;

/// What a service tells itself, or its tasks tell it.
pub(super) enum OwnMessage<S: Service> {
    Cast(CastOf<S>),
    Info(Box<dyn InfoTurn<S>>),
}

pub(super) type Handling<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A private message whose type is not known: what runs a service knows nothing of [`HandleInfo`](super::info::HandleInfo), so that services
/// without private messages say nothing of them.
pub(super) trait InfoTurn<S: Service>: Send + Sync {
    fn handle<'a>(self: Box<Self>, service: &'a mut S, cx: &'a mut Context<S>) -> Handling<'a>;
}

/// The private messages that wait for a service, once somebody can send them.
pub(super) struct Infos<S: Service> {
    pub(super) sender: mpsc::Sender<Box<dyn InfoTurn<S>>>,
    pub(super) receiver: mpsc::Receiver<Box<dyn InfoTurn<S>>>,
}

impl<S: Service> Infos<S> {
    pub(super) fn new(capacity: usize) -> Self {
        let (sender, receiver) = mpsc::channel(capacity);
        Infos { sender, receiver }
    }
}

/// A timer of a service; see [`Context::cast_after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer(u64);

struct Due<S: Service> {
    at: Instant,
    number: u64,
    message: OwnMessage<S>,
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
    pub(super) fn new(id: ServiceId, capacity: usize) -> Self {
        Context {
            id,
            own: VecDeque::new(),
            infos: None,
            capacity,
            timers: BinaryHeap::new(),
            last_timer: 0,
            cancelled: Vec::new(),
            stop: None,
            from: None,
        }
    }

    /// This instance.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// The node that sent the call or cast that is being handled, as its connection has proven it: with certificates, a
    /// name that its certificate speaks for. This node itself for what was sent here; none for what the service sent to
    /// itself, and outside of a call or cast.
    pub fn caller(&self) -> Option<&NodeName> {
        let from = self.from.as_ref()?;
        Some(match &from.caller {
            Some(caller) => caller.peer(),
            None => &self.id.node,
        })
    }

    /// The version of the protocol that the call or cast is of which is being handled, one of
    /// [`Protocol::ACCEPTS`]; the service's own version for everything else.
    pub fn version(&self) -> u32 {
        match &self.from {
            Some(from) => from.version,
            None => S::Protocol::VERSION,
        }
    }

    /// Sends a message to this service itself. It is handled after this one, in turn with what waits in the mailbox.
    pub fn cast(&mut self, message: CastOf<S>) {
        self.own.push_back(OwnMessage::Cast(message));
    }

    /// Sends a message to this service itself after a while, of thirty years at most. Timers end with the service.
    pub fn cast_after(&mut self, after: Duration, message: CastOf<S>) -> Timer {
        self.after(after, OwnMessage::Cast(message))
    }

    pub(super) fn after(&mut self, after: Duration, message: OwnMessage<S>) -> Timer {
        self.last_timer += 1;
        self.timers.push(Due {
            at: deadline::after(after),
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

    pub(super) fn next_timer(&mut self) -> Option<Instant> {
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

    pub(super) fn due(&mut self) -> Option<OwnMessage<S>> {
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
