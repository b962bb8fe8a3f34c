//! The keys of one instance: their states, what waits for them, and whether their slots are served here.
//!
//! The driver says what becomes of each slot; workers run the handlers, each of one key at a time. Whatever
//! both look at is behind one lock, which nobody holds for longer than it takes to look a key up.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::ownership::{Adoption, Gate, SlotSet};
use keydispatch_core::{Escaped, KeyBytes, NodeId, ServiceId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cells::{Cell, put};
use super::context::Instance;
use super::events::{KeyedEvent, Teller};
use super::options::KeyedOptions;
use super::ready::{Job, Ready, Workers};
use super::{Closed, Keyed};
use crate::backlog::Share;
use crate::call::Failure;
use crate::data::lane_runtime::LaneRuntime;
use crate::data::local::Local;
use crate::data::mailbox::letter::{Letter, Room, States};
use crate::data::tokens::TokenInputs;
use crate::mutex::Mutex;
use crate::service::host::Host;

/// What the store's clock counts in: a key remembers in four bytes when it was last used.
const TICK: Duration = Duration::from_millis(100);

/// Keys that are asked about at once whether they are idle.
const IDLE_AT_ONCE: usize = 4_096;

/// See the module.
pub(super) struct Store<K: Keyed> {
    pub(super) service: K,
    pub(super) id: ServiceId,
    pub(super) local: Arc<Local>,
    pub(super) runtime: Arc<LaneRuntime>,
    pub(super) tokens: TokenInputs,
    pub(super) options: KeyedOptions,
    /// True once the service has ended, for the replies that it still owes.
    pub(super) flag: Arc<std::sync::atomic::AtomicBool>,
    pub(super) teller: Teller,
    room: Arc<Room>,
    share: Arc<Share>,
    started: Instant,
    /// Itself, for the workers that it calls.
    me: Weak<Store<K>>,
    inner: Mutex<StoreInner<K::State>>,
}

/// What is behind the lock, while it is held.
///
/// Rule: workers that were called meanwhile begin once it is let go. A runtime that has ended drops what is spawned at once, on
/// this thread, and whoever is dropped takes the lock.
pub(super) struct Locked<'a, K: Keyed> {
    store: &'a Store<K>,
    /// None once it is let go.
    inner: Option<MutexGuard<'a, StoreInner<K::State>>>,
}

impl<K: Keyed> Deref for Locked<'_, K> {
    type Target = StoreInner<K::State>;

    fn deref(&self) -> &Self::Target {
        self.inner
            .as_ref()
            .expect("it is let go when this is dropped")
    }
}

impl<K: Keyed> DerefMut for Locked<'_, K> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.inner
            .as_mut()
            .expect("it is let go when this is dropped")
    }
}

impl<K: Keyed> Drop for Locked<'_, K> {
    fn drop(&mut self) {
        let called = self.workers.take_called();
        self.inner = None;
        for number in called {
            self.store.start_worker(number);
        }
    }
}

pub(super) struct StoreInner<S> {
    /// What becomes of messages; of a slot that is not there nothing is known.
    gates: HashMap<u32, Now>,
    pub(super) slots: HashMap<u32, Slot<S>>,
    parked: HashMap<u32, Vec<(Letter, Instant)>>,
    /// Keys at work.
    pub(super) working: usize,
    /// Those of them that nobody has begun with yet.
    pub(super) ready: VecDeque<Ready<S>>,
    pub(super) workers: Workers,
    /// Nothing is taken any more.
    closed: bool,
    marks: Vec<oneshot::Sender<()>>,
}

/// What becomes of messages for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Now {
    Run,
    Park,
    Moved(Option<ServiceId>),
}

/// What there is of one slot.
pub(super) struct Slot<S> {
    /// Those that are not at work.
    pub(super) keys: HashMap<Bytes, Cell<S>>,
    pub(super) work: HashMap<Bytes, Work>,
    /// Its states are to be given, as soon as nothing is at work.
    pub(super) giving: Option<u64>,
    /// They are being encoded, and not here meanwhile.
    pub(super) away: bool,
}

impl<S> Default for Slot<S> {
    fn default() -> Self {
        Slot {
            keys: HashMap::new(),
            work: HashMap::new(),
            giving: None,
            away: false,
        }
    }
}

impl<S> Slot<S> {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.work.is_empty() && self.giving.is_none() && !self.away
    }
}

/// A key at work.
#[derive(Default)]
pub(super) struct Work {
    pub(super) queue: VecDeque<Letter>,
    /// Other states of it that have come meanwhile.
    pub(super) met: Vec<(Bytes, Adoption)>,
}

/// Letters that do not stay, and why: to be refused once the lock is let go.
#[derive(Default)]
pub(super) struct Leaving(Vec<(Letter, Failure)>);

impl Leaving {
    /// See [`Store::see_to`].
    pub(super) fn now(self) {
        for (letter, failure) in self.0 {
            letter.refuse(failure);
        }
    }
}

impl<K: Keyed> Instance for Store<K> {
    fn id(&self) -> &ServiceId {
        &self.id
    }

    fn serves(&self, key: &KeyBytes) -> bool {
        let slot = slot_of(key);
        let inner = self.lock();
        let is_leaving = inner
            .slots
            .get(&slot)
            .is_some_and(|here| here.giving.is_some());
        inner.gates.get(&slot) == Some(&Now::Run) && !is_leaving
    }
}

impl<K: Keyed> Store<K> {
    pub(super) fn new(
        service: K,
        id: ServiceId,
        host: &Host,
        tokens: TokenInputs,
        options: KeyedOptions,
        flag: Arc<std::sync::atomic::AtomicBool>,
        room: Arc<Room>,
    ) -> Arc<Self> {
        let share = host.runtime.own_share();
        Arc::new_cyclic(|me| Store {
            service,
            id,
            local: Arc::clone(&host.local),
            runtime: Arc::clone(&host.runtime),
            tokens,
            options,
            flag,
            teller: Teller::default(),
            room,
            share,
            started: Instant::now(),
            me: Weak::clone(me),
            inner: Mutex::new(StoreInner {
                gates: HashMap::new(),
                slots: HashMap::new(),
                parked: HashMap::new(),
                working: 0,
                ready: VecDeque::new(),
                workers: Workers::default(),
                closed: false,
                marks: Vec::new(),
            }),
        })
    }

    pub(super) fn lock(&self) -> Locked<'_, K> {
        let inner = self.inner.lock();
        Locked {
            store: self,
            inner: Some(inner),
        }
    }

    /// Itself; none while it is dropped.
    pub(super) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// The store's clock.
    pub(super) fn now(&self) -> u32 {
        let ticks = self.started.elapsed().as_millis() / TICK.as_millis();
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    pub(super) fn deliver(self: &Arc<Self>, mut letter: Letter) {
        let slot = slot_of(&letter.key);
        if !letter.wait_in(&self.room, &self.share) {
            return letter.refuse(Failure::Overloaded);
        }
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            // Unopened: it goes elsewhere.
            return drop(letter);
        }
        let mut leaving = Leaving::default();
        self.dispatch(&mut inner, slot, letter, &mut leaving);
        drop(inner);
        leaving.now();
    }

    fn dispatch(
        self: &Arc<Self>,
        inner: &mut StoreInner<K::State>,
        slot: u32,
        letter: Letter,
        leaving: &mut Leaving,
    ) {
        match inner.gate(slot) {
            Now::Run => self.enqueue(inner, slot, letter),
            Now::Park => {
                let parked = inner.parked.entry(slot).or_default();
                parked.push((letter, Instant::now()));
            }
            Now::Moved(to) => leaving.0.push((letter, Failure::Moved { to })),
        }
    }

    fn enqueue(self: &Arc<Self>, inner: &mut StoreInner<K::State>, slot: u32, letter: Letter) {
        let here = inner.slots.entry(slot).or_default();
        match here.work.get_mut(letter.key.as_bytes()) {
            Some(work) => work.queue.push_back(letter),
            None => {
                let key = letter.key.clone();
                self.begin(inner, slot, &key, Job::Letter(letter));
            }
        }
    }

    /// Puts a key to work that is not.
    fn begin(
        self: &Arc<Self>,
        inner: &mut StoreInner<K::State>,
        slot: u32,
        key: &KeyBytes,
        job: Job,
    ) {
        inner.working += 1;
        let here = inner.slots.entry(slot).or_default();
        let (stored, cell) = match here.keys.remove_entry(key.as_bytes()) {
            Some((stored, cell)) => (stored, Some(cell)),
            None => (key.to_bytes(), None),
        };
        let key = KeyBytes::from_canonical(stored.clone());
        here.work.entry(stored).or_default();
        inner.ready.push_back(Ready {
            slot,
            key,
            cell,
            job,
        });
        inner.call_worker();
    }

    /// Sees to what waits for a slot, after what becomes of its messages has changed.
    pub(super) fn see_to(self: &Arc<Self>, inner: &mut StoreInner<K::State>, slot: u32) -> Leaving {
        let mut leaving = Leaving::default();
        let gate = inner.gate(slot);
        let mut letters = Vec::new();
        if gate != Now::Run
            && let Some(here) = inner.slots.get_mut(&slot)
        {
            for work in here.work.values_mut() {
                letters.extend(work.queue.drain(..));
            }
        }
        let parked = if gate == Now::Park {
            Vec::new()
        } else {
            inner.parked.remove(&slot).unwrap_or_default()
        };
        for (letter, since) in parked {
            self.runtime.counters.parked.note(since.elapsed());
            letters.push(letter);
        }
        for letter in letters {
            self.dispatch(inner, slot, letter, &mut leaving);
        }
        leaving
    }

    pub(super) fn set_gate(self: &Arc<Self>, slot: u32, gate: Gate) {
        let mut inner = self.lock();
        inner.set(slot, &self.id, gate);
        let leaving = self.see_to(&mut inner, slot);
        drop(inner);
        leaving.now();
    }

    pub(super) fn give(self: &Arc<Self>, slot: u32, transfer: u64, gate: Gate) -> bool {
        let mut inner = self.lock();
        inner.set(slot, &self.id, gate);
        let leaving = self.see_to(&mut inner, slot);
        let here = inner.slots.entry(slot).or_default();
        here.giving = Some(transfer);
        let has_any = !here.keys.is_empty() || !here.work.is_empty() || here.away;
        if has_any {
            self.collect(&mut inner, slot);
        }
        drop(inner);
        leaving.now();
        if has_any {
            self.teller.tell(KeyedEvent::Losing { slot });
        }
        !has_any
    }

    pub(super) fn adopt(&self, slot: u32, from: &ServiceId, states: States, how: Adoption) {
        let (now, count) = (self.now(), states.len());
        let mut both = 0;
        {
            let mut inner = self.lock();
            let here = inner.slots.entry(slot).or_default();
            for (key, state) in states {
                if let Some(work) = here.work.get_mut(&key) {
                    work.met.push((state, how));
                    both += 1;
                    continue;
                }
                let coming = Cell::encoded(state, now);
                both += usize::from(put(&mut here.keys, key, coming, how));
            }
            inner.tidy(slot);
        }
        // Rule: nothing is told of slots without a state. There are thousands, and a reader would miss the others.
        if both > 0 {
            let from = from.clone();
            self.teller.tell(KeyedEvent::Conflict {
                slot,
                keys: both,
                from,
            });
        }
        if count > 0 {
            self.teller.tell(KeyedEvent::Gained {
                slot,
                keys: count,
                from: from.clone(),
            });
        }
    }

    pub(super) fn released(&self, slot: u32, to: &ServiceId) {
        let gone = {
            let mut inner = self.lock();
            let gone = inner.slots.get_mut(&slot).map(|here| {
                here.giving = None;
                std::mem::take(&mut here.keys)
            });
            inner.tidy(slot);
            gone.unwrap_or_default()
        };
        if !gone.is_empty() {
            self.teller.tell(KeyedEvent::Lost {
                slot,
                keys: gone.len(),
                to: to.clone(),
            });
        }
    }

    pub(super) fn taken_back(&self, slot: u32) {
        let has_any = {
            let mut inner = self.lock();
            if let Some(here) = inner.slots.get_mut(&slot) {
                here.giving = None;
            }
            inner.tidy(slot);
            inner.slots.contains_key(&slot)
        };
        if has_any {
            self.teller.tell(KeyedEvent::TakenBack { slot });
        }
    }

    pub(super) fn anew(&self, slots: &SlotSet) {
        self.teller.tell(KeyedEvent::Anew { slots: slots.len() });
    }

    /// Rule: what nobody knows of is not served. Others begin these slots anew, and a second state of a key would come back
    /// one day.
    pub(super) fn lost(self: &Arc<Self>, slots: &SlotSet) {
        let mut left = Vec::new();
        let mut all = Leaving::default();
        {
            let mut inner = self.lock();
            for slot in slots.iter() {
                inner.gates.remove(&slot);
                all.0.extend(self.see_to(&mut inner, slot).0);
                if let Some(here) = inner.slots.get_mut(&slot) {
                    here.giving = None;
                    left.extend(here.keys.drain());
                }
                inner.tidy(slot);
            }
        }
        all.now();
        if left.is_empty() {
            return;
        }
        let store = Arc::clone(self);
        self.local.spawn_service(async move {
            for (key, cell) in left {
                store.close_cell(&KeyBytes::from_canonical(key), cell).await;
            }
        });
    }

    /// Hands a state back that is not kept any more.
    pub(super) async fn close_cell(&self, key: &KeyBytes, cell: Cell<K::State>) {
        match cell.resolve(&self.service, key) {
            Ok(state) => self.close_key(key, state, Closed::Stopped).await,
            Err(unread) => {
                let why = Escaped(unread.why);
                tracing::error!(service = %self.id, %key, %why, "a state that cannot be read is lost");
            }
        }
    }

    pub(super) fn impatient(&self, peer: &NodeId, slots: &SlotSet) {
        self.teller.tell(KeyedEvent::Impatient {
            peer: peer.clone(),
            slots: slots.len(),
        });
    }

    /// How many keys have a state here, or are at work.
    pub(super) fn keys(&self) -> usize {
        let inner = self.lock();
        let here = inner.slots.values();
        here.map(|slot| slot.keys.len() + slot.work.len()).sum()
    }

    /// How many messages wait.
    pub(super) fn waiting(&self) -> usize {
        self.room.letters()
    }

    /// Hears once nothing is at work.
    pub(super) fn mark(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        inner.marks.push(sender);
        inner.tell_marks();
        receiver
    }

    /// Asks about the keys that nobody has called for so long.
    pub(super) fn sweep(self: &Arc<Self>, idle: Duration) {
        let ticks = u32::try_from(idle.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
        let before = self.now().saturating_sub(ticks.max(1));
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        let mut quiet = Vec::new();
        for (slot, here) in &inner.slots {
            if inner.gates.get(slot) != Some(&Now::Run) || here.giving.is_some() || here.away {
                continue;
            }
            let is_quiet = |cell: &Cell<K::State>| match cell {
                Cell::One { used, .. } => *used <= before,
                Cell::Many(_) => false,
            };
            let keys = here.keys.iter().filter(|(_, cell)| is_quiet(cell));
            quiet.extend(keys.map(|(key, _)| (*slot, KeyBytes::from_canonical(key.clone()))));
            if quiet.len() >= IDLE_AT_ONCE {
                break;
            }
        }
        for (slot, key) in quiet {
            self.begin(&mut inner, slot, &key, Job::Idle);
        }
    }

    /// Drops what waits for longer than its sender does.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let mut late = Leaving::default();
        {
            let mut inner = self.lock();
            for parked in inner.parked.values_mut() {
                let expired = parked.extract_if(.., |(letter, _)| letter.deadline <= now);
                late.0
                    .extend(expired.map(|(letter, _)| (letter, Failure::Expired)));
            }
            inner.parked.retain(|_, parked| !parked.is_empty());
        }
        late.now();
    }

    /// Nothing is taken any more; what waits is told, and what is at work goes on.
    pub(super) fn close(&self) {
        let (parked, marks) = {
            let mut inner = self.lock();
            inner.closed = true;
            let parked = std::mem::take(&mut inner.parked);
            (parked, std::mem::take(&mut inner.marks))
        };
        drop((parked, marks));
    }

    /// Ends what is at work, as it is; what nobody has begun with stays as it was.
    pub(super) fn abort(&self) {
        self.close();
        let (workers, unread) = {
            let mut inner = self.lock();
            let ready = std::mem::take(&mut inner.ready);
            let mut unread = Vec::new();
            for one in ready {
                inner.working = inner.working.saturating_sub(1);
                if let Some(here) = inner.slots.get_mut(&one.slot) {
                    unread.extend(here.work.remove(one.key.as_bytes()).map(|work| work.queue));
                    if let Some(cell) = one.cell {
                        here.keys.insert(one.key.to_bytes(), cell);
                    }
                }
                unread.push(match one.job {
                    Job::Letter(letter) => VecDeque::from([letter]),
                    Job::Idle => VecDeque::new(),
                });
            }
            (inner.workers.end(), unread)
        };
        for worker in workers {
            worker.abort();
        }
        // Unopened: they go elsewhere.
        drop(unread);
    }

    /// The states that are left, once nothing is at work.
    pub(super) fn take_all(&self) -> Vec<(KeyBytes, Cell<K::State>)> {
        let mut inner = self.lock();
        let slots = std::mem::take(&mut inner.slots);
        let keys = slots.into_values().flat_map(|here| here.keys);
        keys.map(|(key, cell)| (KeyBytes::from_canonical(key), cell))
            .collect()
    }
}

impl<S> StoreInner<S> {
    fn gate(&self, slot: u32) -> Now {
        let now = self.gates.get(&slot).cloned().unwrap_or(Now::Moved(None));
        let is_away = || self.slots.get(&slot).is_some_and(|here| here.away);
        // It was taken back while its states were being encoded.
        if now == Now::Run && is_away() {
            Now::Park
        } else {
            now
        }
    }

    fn set(&mut self, slot: u32, ours: &ServiceId, gate: Gate) {
        let now = match gate {
            Gate::Run(id) if id == *ours => Now::Run,
            Gate::Park(id) if id == *ours => Now::Park,
            // Another instance of this node.
            Gate::Run(id) | Gate::Park(id) => Now::Moved(Some(id)),
            Gate::Moved(to) => Now::Moved(to.filter(|to| to != ours)),
        };
        match now {
            Now::Moved(None) => self.gates.remove(&slot),
            now => self.gates.insert(slot, now),
        };
    }

    /// Forgets a slot of which there is nothing.
    pub(super) fn tidy(&mut self, slot: u32) {
        if self.slots.get(&slot).is_some_and(Slot::is_empty) {
            self.slots.remove(&slot);
        }
    }

    pub(super) fn tell_marks(&mut self) {
        if self.working == 0 {
            for mark in self.marks.drain(..) {
                // Whoever waits for it may have gone.
                let _ = mark.send(());
            }
        }
    }
}

/// By which slot the key is placed.
pub(super) fn slot_of(key: &KeyBytes) -> u32 {
    key.key().slot().keyed_index()
}
