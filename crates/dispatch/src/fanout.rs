//! One message to many readers, each with a queue of its own: what subscriptions to services, topics and members are.
//!
//! A name costs memory while somebody reads it, and what waits for a reader while it waits. Queues are bounded in messages
//! and in bytes; a reader that is too slow loses the oldest and is told how many. Neither messages nor wakers are dropped
//! or called under a lock: both may run code of the user's, which may subscribe, or end a subscription.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use smallvec::SmallVec;

use crate::mutex::Mutex;

/// A queue that is empty and has room for more messages than this gives its memory back.
const KEPT_CAPACITY: usize = 16;

/// What is said to readers.
pub(crate) trait Weigh: Clone {
    /// Bytes that count towards [`Bounds::bytes`].
    fn bytes(&self) -> usize {
        0
    }
}

/// What may wait for one reader. One message may always wait, however large it is: what may be said is bounded elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// Identifies a reader within this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReaderId(u64);

impl ReaderId {
    fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        ReaderId(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What a reader is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<M> {
    Message(M),
    /// So many messages were dropped before the next one.
    Lagged(u64),
}

/// The readers of one node, by name.
pub(crate) struct Fanout<K, M> {
    names: Arc<Names<K, M>>,
    bounds: Bounds,
}

struct Names<K, M> {
    /// None once it is closed.
    groups: Mutex<Option<HashMap<K, Arc<Group<M>>>>>,
}

/// The readers of one name.
struct Group<M> {
    members: Mutex<Members<M>>,
}

struct Members<M> {
    queues: Vec<Arc<Queue<M>>>,
    /// Its last reader has gone, and it is in the map no longer: whoever subscribes takes a new one.
    gone: bool,
}

struct Queue<M> {
    id: ReaderId,
    /// Where it stands among the queues of its group, changed under the group's lock alone: leaving is not a search.
    place: AtomicUsize,
    state: Mutex<FanoutState<M>>,
}

struct FanoutState<M> {
    waiting: VecDeque<M>,
    bytes: usize,
    missed: u64,
    closed: bool,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl<K: Clone + Eq + Hash, M: Weigh> Fanout<K, M> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Fanout {
            names: Arc::new(Names {
                groups: Mutex::new(Some(HashMap::new())),
            }),
            bounds,
        }
    }

    /// What is said under a name from now on; nothing, and the end, once this is closed.
    pub(crate) fn subscribe(&self, name: K) -> Reader<K, M> {
        let queue = Arc::new(Queue::new());
        while let Some(group) = self.names.group_for(&name) {
            if group.join(&queue) {
                return Reader {
                    queue,
                    home: Some(Home {
                        names: Arc::clone(&self.names),
                        name,
                        group,
                    }),
                };
            }
            // Its last reader has gone, and is about to do the same.
            self.names.forget(&name, &group);
        }
        drop(lock(&queue.state).close());
        Reader { queue, home: None }
    }

    /// Says to all readers of a name but one what `message` makes, once there are any.
    pub(crate) fn publish(&self, name: &K, skip: Option<ReaderId>, message: impl FnOnce() -> M) {
        let group = match &*lock(&self.names.groups) {
            Some(groups) => groups.get(name).cloned(),
            None => None,
        };
        if let Some(group) = group {
            group.publish(message(), skip, self.bounds);
        }
    }

    /// All readers of a name but one are told that one message was missed.
    pub(crate) fn publish_a_miss(&self, name: &K, skip: Option<ReaderId>) {
        let group = match &*lock(&self.names.groups) {
            Some(groups) => groups.get(name).cloned(),
            None => None,
        };
        let Some(group) = group else {
            return;
        };
        let mut wakers = SmallVec::<[Waker; 8]>::new();
        for queue in &lock(&group.members).queues {
            if Some(queue.id) != skip {
                let mut state = lock(&queue.state);
                state.missed += 1;
                wakers.extend(state.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// True where somebody reads that name.
    pub(crate) fn has_readers(&self, name: &K) -> bool {
        let groups = lock(&self.names.groups);
        groups
            .as_ref()
            .is_some_and(|groups| groups.contains_key(name))
    }

    /// Every reader ends after what waits for it, and whoever subscribes from now on ends at once.
    pub(crate) fn close(&self) {
        let groups = lock(&self.names.groups).take();
        for group in groups.into_iter().flat_map(HashMap::into_values) {
            let queues = {
                let mut members = lock(&group.members);
                members.gone = true;
                std::mem::take(&mut members.queues)
            };
            for queue in queues {
                let waker = lock(&queue.state).close();
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }

    #[cfg(test)]
    fn names(&self) -> usize {
        lock(&self.names.groups).as_ref().map_or(0, HashMap::len)
    }
}

impl<K: Clone + Eq + Hash, M> Names<K, M> {
    /// The group of a name, made where there is none; none once this is closed.
    fn group_for(&self, name: &K) -> Option<Arc<Group<M>>> {
        let mut groups = lock(&self.groups);
        let groups = groups.as_mut()?;
        if let Some(group) = groups.get(name) {
            return Some(Arc::clone(group));
        }
        let group = Arc::new(Group::new());
        groups.insert(name.clone(), Arc::clone(&group));
        Some(group)
    }

    /// Forgets a name whose last reader has gone.
    fn forget(&self, name: &K, group: &Arc<Group<M>>) {
        let mut groups = lock(&self.groups);
        let Some(groups) = groups.as_mut() else {
            return;
        };
        if groups
            .get(name)
            .is_some_and(|there| Arc::ptr_eq(there, group))
        {
            groups.remove(name);
            if groups.capacity() / 4 > groups.len() + KEPT_CAPACITY {
                // To twice of what there is: as many have to come or go before the map is made anew.
                let room = groups.len() * 2;
                groups.shrink_to(room);
            }
        }
    }
}

impl<M> Group<M> {
    fn new() -> Self {
        Group {
            members: Mutex::new(Members {
                queues: Vec::with_capacity(1),
                gone: false,
            }),
        }
    }

    /// False where the last reader has just gone.
    fn join(&self, queue: &Arc<Queue<M>>) -> bool {
        let mut members = lock(&self.members);
        if members.gone {
            return false;
        }
        queue.place.store(members.queues.len(), Ordering::Relaxed);
        members.queues.push(Arc::clone(queue));
        true
    }

    /// True where that was the last one.
    fn leave(&self, queue: &Arc<Queue<M>>) -> bool {
        let mut members = lock(&self.members);
        let place = queue.place.load(Ordering::Relaxed);
        let queues = &mut members.queues;
        if !queues
            .get(place)
            .is_some_and(|there| Arc::ptr_eq(there, queue))
        {
            // Everything was closed meanwhile.
            return false;
        }
        // Not the last owner of the queue: its reader is.
        queues.swap_remove(place);
        if let Some(moved) = queues.get(place) {
            moved.place.store(place, Ordering::Relaxed);
        }
        if queues.capacity() / 4 > queues.len() + KEPT_CAPACITY {
            let room = queues.len() * 2;
            queues.shrink_to(room);
        }
        members.gone = members.queues.is_empty();
        members.gone
    }
}

impl<M: Weigh> Group<M> {
    fn publish(&self, message: M, skip: Option<ReaderId>, bounds: Bounds) {
        let mut wakers = SmallVec::<[Waker; 8]>::new();
        let mut dropped = Vec::new();
        {
            // Held until all have it: two messages come in one order to all.
            let members = lock(&self.members);
            for queue in &members.queues {
                if Some(queue.id) != skip {
                    let waker = lock(&queue.state).push(message.clone(), bounds, &mut dropped);
                    wakers.extend(waker);
                }
            }
        }
        drop(dropped);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<M> Queue<M> {
    fn new() -> Self {
        Queue {
            id: ReaderId::next(),
            place: AtomicUsize::new(0),
            state: Mutex::new(FanoutState {
                waiting: VecDeque::new(),
                bytes: 0,
                missed: 0,
                closed: false,
                waker: None,
            }),
        }
    }
}

impl<M> FanoutState<M> {
    /// Whom to wake.
    fn close(&mut self) -> Option<Waker> {
        self.closed = true;
        self.waker.take()
    }
}

impl<M: Weigh> FanoutState<M> {
    fn push(&mut self, message: M, bounds: Bounds, dropped: &mut Vec<M>) -> Option<Waker> {
        let bytes = message.bytes();
        while !self.waiting.is_empty()
            && (self.waiting.len() >= bounds.messages
                || self.bytes.saturating_add(bytes) > bounds.bytes)
        {
            if let Some(oldest) = self.waiting.pop_front() {
                self.bytes -= oldest.bytes();
                self.missed += 1;
                dropped.push(oldest);
            }
        }
        self.bytes += bytes;
        self.waiting.push_back(message);
        self.waker.take()
    }

    /// Nothing, or the end, or what is to be told next.
    fn pop(&mut self) -> Option<Option<Heard<M>>> {
        if self.missed > 0 {
            return Some(Some(Heard::Lagged(std::mem::take(&mut self.missed))));
        }
        match self.waiting.pop_front() {
            Some(message) => {
                self.bytes -= message.bytes();
                if self.waiting.is_empty() && self.waiting.capacity() > KEPT_CAPACITY {
                    self.waiting = VecDeque::new();
                }
                Some(Some(Heard::Message(message)))
            }
            None => self.closed.then_some(None),
        }
    }
}

/// Where a reader is registered.
struct Home<K, M> {
    names: Arc<Names<K, M>>,
    name: K,
    group: Arc<Group<M>>,
}

/// One reader. Dropping it ends it, and gives back what it took.
pub(crate) struct Reader<K: Clone + Eq + Hash, M> {
    queue: Arc<Queue<M>>,
    /// None where everything was closed before.
    home: Option<Home<K, M>>,
}

impl<K: Clone + Eq + Hash, M> Reader<K, M> {
    pub(crate) fn id(&self) -> ReaderId {
        self.queue.id
    }
}

impl<K: Clone + Eq + Hash, M: Weigh> Reader<K, M> {
    /// What is said next; none once this is closed and all is read. What is not ready is not lost.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard<M>>> {
        // A reader that always finds something lets others have their turn, as with every other resource of tokio's.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        let mut state = lock(&self.queue.state);
        if let Some(heard) = state.pop() {
            turn.made_progress();
            return Poll::Ready(heard);
        }
        let known = state.waker.as_ref();
        if !known.is_some_and(|waker| waker.will_wake(cx.waker())) {
            let before = state.waker.replace(cx.waker().clone());
            drop(state);
            drop(before);
        }
        Poll::Pending
    }

    /// What is said next, if there is something already.
    pub(crate) fn try_next(&mut self) -> Option<Heard<M>> {
        lock(&self.queue.state).pop()?
    }

    /// Forgets what waits.
    pub(crate) fn skip_all(&mut self) {
        let waiting = {
            let mut state = lock(&self.queue.state);
            (state.bytes, state.missed) = (0, 0);
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
    }
}

impl<K: Clone + Eq + Hash, M> Drop for Reader<K, M> {
    fn drop(&mut self) {
        if let Some(home) = self.home.take()
            && home.group.leave(&self.queue)
        {
            home.names.forget(&home.name, &home.group);
        }
    }
}

impl<K, M> fmt::Debug for Fanout<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fanout")
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash, M> fmt::Debug for Reader<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("id", &self.queue.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
