//! A message for one key, as it travels and waits: encoded, so that it can be sent on as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use keydispatch_core::ownership::{Adoption, Gate, SlotSet};
use keydispatch_core::{Codec, KeyBytes, NodeId, ServiceId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backlog::{Held, Share};
use crate::call::Failure;
use crate::data::caller::Caller;
use crate::data::reply::Route;
use crate::data::wire::Format;
use crate::trace::Parent;

/// The states of a slot by key, as they travel.
pub(crate) type States = Vec<(Bytes, Bytes)>;

/// Where the answer to a letter goes.
pub(crate) enum Reach {
    /// To a caller on this node.
    Here(oneshot::Sender<Result<Bytes, Failure>>),
    Remote {
        caller: Arc<Caller>,
        number: u64,
    },
}

impl Reach {
    pub(crate) fn refuse(self, failure: Failure) {
        match self {
            // The caller may have gone.
            Reach::Here(sender) => drop(sender.send(Err(failure))),
            Reach::Remote { caller, number } => caller.fail(number, &failure),
        }
    }

    /// Says that a cast was taken.
    pub(crate) fn taken(self) {
        match self {
            Reach::Here(sender) => drop(sender.send(Ok(Bytes::new()))),
            Reach::Remote { caller, number } => caller.reply(number, Codec::Postcard, &()),
        }
    }

    pub(crate) fn into_route<R>(self) -> Route<R> {
        match self {
            Reach::Here(sender) => Route::Here(sender),
            Reach::Remote { caller, number } => Route::Remote { caller, number },
        }
    }

    /// Whose child the span of its handler is; `here` is the span of a call of this node.
    pub(crate) fn parent(&self, here: Option<Box<tracing::Span>>) -> Parent {
        match self {
            Reach::Here(_) => Parent::Here(here),
            Reach::Remote { caller, number } => Parent::Elsewhere {
                caller: caller.peer().clone(),
                parent: caller.trace_of(*number),
            },
        }
    }

    fn is_abandoned(&self) -> bool {
        match self {
            Reach::Here(sender) => sender.is_closed(),
            Reach::Remote { caller, number } => caller.has_cancelled(*number),
        }
    }

    pub(crate) fn caller(&self) -> Option<&Arc<Caller>> {
        match self {
            Reach::Here(_) => None,
            Reach::Remote { caller, .. } => Some(caller),
        }
    }
}

/// See the module.
///
/// Rule: a letter that is dropped before it was opened has not run, and its sender is told so, who sends it on. It does not
/// matter who drops it, or when.
pub(crate) struct Letter {
    pub(crate) key: KeyBytes,
    pub(crate) body: Bytes,
    pub(crate) format: Format,
    pub(crate) is_cast: bool,
    pub(crate) deadline: Instant,
    /// None once it was opened.
    reach: Option<Reach>,
    /// Its place among those that wait.
    ticket: Option<Ticket>,
    /// The span of the call, where it is of this node and somebody listens.
    pub(crate) span: Option<Box<tracing::Span>>,
}

impl Letter {
    pub(crate) fn new(
        key: KeyBytes,
        body: Bytes,
        format: Format,
        is_cast: bool,
        deadline: Instant,
        reach: Reach,
    ) -> Self {
        Letter {
            key,
            body,
            format,
            is_cast,
            deadline,
            reach: Some(reach),
            ticket: None,
            span: None,
        }
    }

    /// Bytes that it keeps.
    fn bytes(&self) -> usize {
        self.body.len() + self.key.as_bytes().len()
    }

    /// True where nobody waits for its answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reach.as_ref().is_none_or(Reach::is_abandoned)
    }

    /// Where its answer goes, which is the opener's to give from now on. None only after the first time.
    pub(crate) fn open(&mut self) -> Option<Reach> {
        self.ticket = None;
        self.reach.take()
    }

    /// Says that it has not run, and why.
    pub(crate) fn refuse(mut self, failure: Failure) {
        if let Some(reach) = self.open() {
            reach.refuse(failure);
        }
    }

    /// Counts it among those that wait, for the instance and on this node; false where there is no room.
    pub(crate) fn wait_in(&mut self, room: &Arc<Room>, own: &Arc<Share>) -> bool {
        let bytes = self.bytes();
        let caller = self.reach.as_ref().and_then(Reach::caller);
        let share = caller.map_or(own, |caller| caller.share());
        self.ticket = share
            .take(bytes)
            .and_then(|held| Ticket::take(room, bytes, held));
        self.ticket.is_some()
    }
}

impl Drop for Letter {
    fn drop(&mut self) {
        if let Some(reach) = self.open() {
            reach.refuse(Failure::Gone);
        }
    }
}

/// How many letters may wait for one instance, and how many do.
#[derive(Debug)]
pub(crate) struct Room {
    max_letters: usize,
    max_bytes: usize,
    letters: AtomicUsize,
    bytes: AtomicUsize,
}

impl Room {
    pub(crate) fn new(max_letters: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Room {
            max_letters,
            max_bytes,
            letters: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    /// How many wait.
    pub(crate) fn letters(&self) -> usize {
        self.letters.load(Ordering::Relaxed)
    }
}

/// One place, until it is dropped.
struct Ticket {
    room: Arc<Room>,
    bytes: usize,
    _held: Held,
}

impl Ticket {
    /// One letter is always taken, however long.
    fn take(room: &Arc<Room>, bytes: usize, held: Held) -> Option<Self> {
        let letters = room.letters.fetch_add(1, Ordering::Relaxed);
        let before = room.bytes.fetch_add(bytes, Ordering::Relaxed);
        let ticket = Ticket {
            room: Arc::clone(room),
            bytes,
            _held: held,
        };
        let fits = letters < room.max_letters && before.saturating_add(bytes) <= room.max_bytes;
        (fits || letters == 0).then_some(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.room.letters.fetch_sub(1, Ordering::Relaxed);
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An instance that has a state for each key: what connections deliver to, and whom the driver tells of slots.
pub(crate) trait KeyedMailbox: Send + Sync {
    /// A message for a key; it runs, waits, or its sender is told where to go.
    fn deliver(&self, letter: Letter);
    /// These slots are held here, and no state of them was found anywhere.
    fn anew(&self, slots: &SlotSet);
    /// The states of a slot are to be given; they are kept until they were released or taken back. True where there are none;
    /// otherwise the driver is told when they are there.
    fn give(&self, slot: u32, transfer: u64, gate: Gate) -> bool;
    /// The states of a slot have come.
    fn adopt(&self, slot: u32, from: &ServiceId, states: States, how: Adoption);
    /// What was given has arrived.
    fn released(&self, slot: u32, to: &ServiceId);
    /// What was given has not arrived: it is held here again.
    fn taken_back(&self, slot: u32);
    /// What becomes of messages for a slot.
    fn gate(&self, slot: u32, gate: Gate);
    /// These slots were held here, and nobody knows that any more: the entry was taken out of the registry by hand.
    fn lost(&self, slots: &SlotSet);
    /// Somebody who is up was silent for so long that it was not waited for.
    fn impatient(&self, peer: &NodeId, slots: &SlotSet);
    /// How many keys have a state here.
    fn keys(&self) -> usize;
}
