//! A key at work: its state is with one worker, which handles what waits for the key, and puts the state back.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use keydispatch_core::ownership::Adoption;
use keydispatch_core::{Codec, Escaped, KeyBytes};
use tokio::time::Instant;

use super::cells::{Cell, Form, Unreadable};
use super::context::{Instance, KeyContext};
use super::current::AT_WORK;
use super::error::StateError;
use super::events::KeyedEvent;
use super::ready::{Job, Ready};
use super::store::{Store, StoreInner};

use super::{Closed, Idle, Keyed};
use crate::call::Failure;
use crate::codec::{self, DecodeError, EncodeError};
use crate::data::mailbox;
use crate::data::mailbox::letter::{Letter, States};
use crate::data::reply::ReplyTo;
use crate::protocol::{self, Protocol};
use crate::service::current::{self, Current};
use crate::trace;

/// Messages of one key after which other tasks get their turn.
const TURN: u32 = 64;

/// Bytes of states that are encoded before other tasks get their turn.
const ENCODE_TURN_BYTES: usize = 256 * 1024;

/// What a worker has of a key.
enum Have<S> {
    Nothing,
    State(S),
    /// It cannot be read here.
    Unread(Unreadable<S>),
}

/// Rule: however the work on a key ends, also by a panic or an abort, the key is not at work any more. What waited for it is
/// told that it has not run.
struct AtWork<K: Keyed> {
    store: Arc<Store<K>>,
    slot: u32,
    key: KeyBytes,
    done: bool,
}

impl<K: Keyed> Drop for AtWork<K> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let left = {
            let mut inner = self.store.lock();
            let here = inner.slots.get_mut(&self.slot);
            let work = here.and_then(|here| here.work.remove(self.key.as_bytes()));
            self.store.ends(&mut inner, self.slot);
            work
        };
        drop(left);
    }
}

/// Runs until nothing waits for the key.
pub(super) fn run<K: Keyed>(
    store: Arc<Store<K>>,
    ready: Ready<K::State>,
) -> impl Future<Output = ()> + Send {
    let Ready {
        slot,
        key,
        cell,
        job,
    } = ready;
    let current = Current::of(&store.id);
    let at_work = (K::Protocol::NAME, key.key());
    let guard = AtWork {
        store,
        slot,
        key,
        done: false,
    };
    let task = AT_WORK.scope(at_work, handle_all(guard, cell, job));
    current::turns_of(current, task)
}

async fn handle_all<K: Keyed>(mut guard: AtWork<K>, cell: Option<Cell<K::State>>, job: Job) {
    let store = Arc::clone(&guard.store);
    let mut have = match cell {
        Some(cell) => store.read(&guard.key, cell),
        None => Have::Nothing,
    };
    let (mut job, mut turns) = (job, 0_u32);
    loop {
        have = match job {
            Job::Letter(letter) => store.handle(&guard, have, letter).await,
            Job::Idle => store.ask_idle(&guard.key, have).await,
        };
        turns += 1;
        if turns.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
        loop {
            let mut inner = store.lock();
            let here = inner.slots.entry(guard.slot).or_default();
            let work = here.work.entry(guard.key.to_bytes()).or_default();
            if !work.met.is_empty() {
                let met = std::mem::take(&mut work.met);
                drop(inner);
                have = store.meet(&guard.key, have, met);
                continue;
            }
            if let Some(letter) = work.queue.pop_front() {
                job = Job::Letter(letter);
                break;
            }
            let key = here.work.remove_entry(guard.key.as_bytes());
            let key = key.map_or_else(|| guard.key.to_bytes(), |(key, _)| key);
            match have {
                Have::Nothing => {}
                Have::State(state) => {
                    here.keys.insert(key, Cell::value(state, store.now()));
                }
                Have::Unread(unread) => {
                    here.keys.insert(key, unread.cell);
                }
            }
            guard.done = true;
            store.ends(&mut inner, guard.slot);
            return;
        }
    }
}

impl<K: Keyed> Store<K> {
    /// A key is not at work any more.
    fn ends(self: &Arc<Self>, inner: &mut StoreInner<K::State>, slot: u32) {
        inner.working = inner.working.saturating_sub(1);
        self.collect(inner, slot);
        inner.tidy(slot);
        inner.tell_marks();
    }

    fn read(&self, key: &KeyBytes, cell: Cell<K::State>) -> Have<K::State> {
        match cell.resolve(&self.service, key) {
            Ok(state) => Have::State(state),
            Err(unread) => {
                tracing::warn!(service = %self.id, %key, why = %Escaped(&unread.why), "a state cannot be read");
                Have::Unread(unread)
            }
        }
    }

    /// Another state of the key has come while it was at work.
    fn meet(
        &self,
        key: &KeyBytes,
        have: Have<K::State>,
        met: Vec<(Bytes, Adoption)>,
    ) -> Have<K::State> {
        let ours = match have {
            Have::Nothing => None,
            Have::State(state) => Some(Cell::value(state, self.now())),
            Have::Unread(unread) => Some(unread.cell),
        };
        let all = met.into_iter().fold(ours, |ours, (bytes, how)| {
            let coming = Cell::encoded(bytes, self.now());
            Some(match (ours, how) {
                (None, _) => coming,
                (Some(ours), Adoption::MergeOursInto) => Cell::meet(coming, ours),
                (Some(ours), _) => Cell::meet(ours, coming),
            })
        });
        match all {
            Some(cell) => self.read(key, cell),
            None => Have::Nothing,
        }
    }

    async fn handle(
        self: &Arc<Self>,
        at: &AtWork<K>,
        have: Have<K::State>,
        mut letter: Letter,
    ) -> Have<K::State> {
        // Rule: a call whose time is over, or whose caller has gone, is not started.
        if letter.is_abandoned() {
            // Nobody hears that it has not run.
            return have;
        }
        if letter.deadline <= Instant::now() {
            letter.refuse(Failure::Expired);
            return have;
        }
        let accepts = protocol::accepts::<K::Protocol>();
        let version = letter.format.version();
        if !letter.format.is_taken(&accepts) {
            let theirs = mailbox::theirs(K::Protocol::VERSION, &accepts, version);
            letter.refuse(Failure::Incompatible { theirs });
            return have;
        }
        let mut state = match have {
            Have::State(state) => state,
            Have::Unread(unread) => {
                let cause = unread.why.to_string();
                letter.refuse(Failure::NoState { cause });
                return Have::Unread(unread);
            }
            Have::Nothing => match self.open(&at.key).await {
                Ok(state) => state,
                Err(cause) => {
                    self.refuse_all(at, letter, cause.to_string());
                    return Have::Nothing;
                }
            },
        };
        let mut cx = KeyContext {
            instance: Arc::clone(self) as Arc<dyn Instance>,
            key: at.key.clone(),
            version,
            caller: None,
            close: false,
            service: PhantomData,
        };
        let body = std::mem::take(&mut letter.body);
        let ran = if letter.is_cast {
            let Some(cast) = self.decode::<<K::Protocol as Protocol>::Cast>(&mut letter, &body)
            else {
                return Have::State(state);
            };
            let Some(reach) = letter.open() else {
                return Have::State(state);
            };
            let span = trace::handle(K::Protocol::NAME, "cast", &self.id, || reach.parent(None));
            cx.caller = reach.caller().map(Arc::clone);
            reach.taken();
            let handler = self.service.handle_cast(&mut state, cast, &mut cx);
            caught(trace::handled(span, handler)).await
        } else {
            let Some(call) = self.decode::<<K::Protocol as Protocol>::Call>(&mut letter, &body)
            else {
                return Have::State(state);
            };
            let Some(reach) = letter.open() else {
                return Have::State(state);
            };
            let here = letter.span.take();
            let span = trace::handle(K::Protocol::NAME, "call", &self.id, || reach.parent(here));
            cx.caller = reach.caller().map(Arc::clone);
            let ended = Arc::clone(&self.flag);
            let checked = self.runtime.checked_limit();
            let reply_to = ReplyTo::new::<K::Protocol>(reach.into_route(), ended, checked);
            let handler = self
                .service
                .handle_call(&mut state, call, reply_to, &mut cx);
            caught(trace::handled(span, handler)).await
        };
        if ran.is_none() {
            tracing::error!(service = %self.id, key = %at.key, "a handler panicked: the state of its key is gone");
            self.runtime
                .counters
                .key_panics
                .fetch_add(1, Ordering::Relaxed);
            let key = at.key.clone();
            self.teller.tell(KeyedEvent::Panicked { key });
            return Have::Nothing;
        }
        if cx.close {
            self.close_key(&at.key, state, Closed::ByHandler).await;
            return Have::Nothing;
        }
        Have::State(state)
    }

    fn decode<M: protocol::Message>(&self, letter: &mut Letter, body: &Bytes) -> Option<M> {
        match codec::decode(<K::Protocol as Protocol>::CODEC, body) {
            Ok(message) => Some(message),
            Err(DecodeError(cause)) => {
                self.runtime
                    .counters
                    .undecodable
                    .fetch_add(1, Ordering::Relaxed);
                if let Some(reach) = letter.open() {
                    reach.refuse(Failure::Decode { cause });
                }
                None
            }
        }
    }

    async fn open(&self, key: &KeyBytes) -> Result<K::State, StateError> {
        let limit = self.options.open_timeout;
        let opening = caught(self.service.open(key));
        match tokio::time::timeout(limit, opening).await {
            Ok(Some(Ok(state))) => Ok(state),
            Ok(Some(Err(error))) => Err(StateError::NotOpened(error)),
            Ok(None) => Err(StateError::OpenPanicked),
            Err(_) => Err(StateError::OpenTooSlow { limit }),
        }
    }

    /// Rule: whoever waits for a key that does not open is told at once. Each would wait for an attempt of its own else.
    fn refuse_all(&self, at: &AtWork<K>, letter: Letter, cause: String) {
        tracing::warn!(service = %self.id, key = %at.key, cause = %Escaped(&cause), "a key did not open");
        let waiting = {
            let mut inner = self.lock();
            let here = inner.slots.get_mut(&at.slot);
            let work = here.and_then(|here| here.work.get_mut(at.key.as_bytes()));
            work.map(|work| std::mem::take(&mut work.queue))
                .unwrap_or_default()
        };
        for letter in std::iter::once(letter).chain(waiting) {
            let cause = cause.clone();
            letter.refuse(Failure::NoState { cause });
        }
    }

    async fn ask_idle(&self, key: &KeyBytes, have: Have<K::State>) -> Have<K::State> {
        let Have::State(mut state) = have else {
            return have;
        };
        match caught(self.service.idle(key, &mut state)).await {
            Some(Idle::Keep) => Have::State(state),
            Some(Idle::Close) => {
                self.close_key(key, state, Closed::Idle).await;
                Have::Nothing
            }
            None => {
                let key = key.clone();
                self.teller.tell(KeyedEvent::Panicked { key });
                Have::Nothing
            }
        }
    }

    pub(super) async fn close_key(&self, key: &KeyBytes, state: K::State, why: Closed) {
        if caught(self.service.closed(key, state, why)).await.is_none() {
            tracing::error!(service = %self.id, %key, "closing a key panicked");
        }
    }

    /// Begins to encode the states of a slot that is to be given, where nothing of it is at work.
    pub(super) fn collect(self: &Arc<Self>, inner: &mut StoreInner<K::State>, slot: u32) {
        let Some(here) = inner.slots.get_mut(&slot) else {
            return;
        };
        let Some(transfer) = here.giving.filter(|_| here.work.is_empty() && !here.away) else {
            return;
        };
        if here.keys.is_empty() {
            return self.tokens.given(transfer, Some(Vec::new()));
        }
        here.away = true;
        let cells = std::mem::take(&mut here.keys);
        let store = Arc::clone(self);
        self.local.spawn_service(async move {
            let mut away = Away { store, slot, cells };
            let given = away.encode().await;
            away.come_back(transfer, given);
        });
    }

    fn encode(&self, state: &K::State) -> Result<Bytes, StateError> {
        let limit = self.options.max_state_bytes;
        let encoding = AssertUnwindSafe(|| {
            codec::append(Codec::Postcard, state, BytesMut::new(), limit).map(BytesMut::freeze)
        });
        match std::panic::catch_unwind(encoding) {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(EncodeError::TooLarge)) => Err(StateError::TooLarge { limit }),
            Ok(Err(EncodeError::Unfit(cause))) => Err(StateError::Unfit { cause }),
            Err(_) => Err(StateError::EncodePanicked),
        }
    }
}

/// The states of a slot while they are encoded.
struct Away<K: Keyed> {
    store: Arc<Store<K>>,
    slot: u32,
    cells: HashMap<Bytes, Cell<K::State>>,
}

impl<K: Keyed> Away<K> {
    /// All of them as bytes, which they are from then on here, too; an error where one stays as it is.
    async fn encode(&mut self) -> Result<States, (KeyBytes, StateError)> {
        let mut states = States::with_capacity(self.cells.len());
        let mut bytes = 0;
        let keys: Vec<Bytes> = self.cells.keys().cloned().collect();
        for stored in keys {
            let Some(cell) = self.cells.remove(&stored) else {
                continue;
            };
            let key = KeyBytes::from_canonical(stored.clone());
            let encoded = match cell {
                Cell::One {
                    form: Form::Encoded(encoded),
                    ..
                } => encoded,
                // What cannot be read here may be read there, but two that are not merged cannot go as one.
                cell => match cell.resolve(&self.store.service, &key) {
                    Ok(state) => match self.store.encode(&state) {
                        Ok(encoded) => encoded,
                        Err(why) => {
                            let now = self.store.now();
                            self.cells.insert(stored, Cell::value(state, now));
                            return Err((key, why));
                        }
                    },
                    Err(Unreadable { cell, why }) => {
                        self.cells.insert(stored, cell);
                        return Err((key, why));
                    }
                },
            };
            bytes += encoded.len();
            let now = self.store.now();
            self.cells
                .insert(stored.clone(), Cell::encoded(encoded.clone(), now));
            states.push((stored, encoded));
            if bytes >= ENCODE_TURN_BYTES {
                bytes = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(states)
    }

    fn come_back(self, transfer: u64, given: Result<States, (KeyBytes, StateError)>) {
        let Away { store, slot, cells } = self;
        let mut inner = store.lock();
        let here = inner.slots.entry(slot).or_default();
        here.away = false;
        for (key, cell) in cells {
            let cell = match here.keys.remove(&key) {
                Some(came) => Cell::meet(cell, came),
                None => cell,
            };
            here.keys.insert(key, cell);
        }
        let (states, unfit) = match given {
            Ok(states) => (Some(states), None),
            Err(unfit) => (None, Some(unfit)),
        };
        if here.giving == Some(transfer) {
            store.tokens.given(transfer, states);
        } else {
            // It was taken back, and is to be given once more.
            store.collect(&mut inner, slot);
        }
        let leaving = store.see_to(&mut inner, slot);
        inner.tidy(slot);
        drop(inner);
        leaving.now();
        if let Some((key, why)) = unfit {
            tracing::warn!(service = %store.id, %key, why = %Escaped(&why), "a state cannot be given: all of its slot stay");
            store.teller.tell(KeyedEvent::KeptBack {
                key,
                why: why.to_string(),
            });
        }
    }
}

/// What it comes to; none where it panics.
async fn caught<T>(task: impl Future<Output = T>) -> Option<T> {
    let mut task = pin!(task);
    std::future::poll_fn(|cx| {
        let polled = AssertUnwindSafe(|| task.as_mut().poll(cx));
        match std::panic::catch_unwind(polled) {
            Ok(Poll::Ready(done)) => Poll::Ready(Some(done)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}
