//! Who handles the keys that have something to do.
//!
//! A worker is a task that takes one key after the other. A task for each message costs more than most handlers: it is
//! allocated, queued and woken. Rule: while a key is ready, a worker that is at work on nothing is on its way; so a handler
//! that waits, or that blocks its thread, holds up no other key, as if each had a task of its own.

use std::collections::HashMap;
use std::sync::Arc;

use keydispatch_core::KeyBytes;
use tokio::task::AbortHandle;

use super::Keyed;
use super::cells::Cell;
use super::store::{Inner, Store};
use super::work::{self, Job};

/// Keys after which other tasks get their turn.
const TURN: u32 = 64;

/// A key that has something to do.
pub(super) struct Ready<S> {
    pub(super) slot: u32,
    pub(super) key: KeyBytes,
    pub(super) cell: Option<Cell<S>>,
    pub(super) job: Job,
}

/// The workers of a store.
#[derive(Default)]
pub(super) struct Workers {
    /// Those that have not taken anything yet.
    coming: usize,
    last: u64,
    tasks: HashMap<u64, AbortHandle>,
}

impl Workers {
    /// All, to be ended.
    pub(super) fn all(&self) -> Vec<AbortHandle> {
        self.tasks.values().cloned().collect()
    }
}

/// A worker's place. However its task ends, also by an abort, it is given back.
struct Seat<K: Keyed> {
    store: Arc<Store<K>>,
    number: u64,
    /// It has not taken anything yet.
    coming: bool,
}

impl<K: Keyed> Store<K> {
    /// Follows the rule of the module; true where a worker was called.
    pub(super) fn call_worker(self: &Arc<Self>, inner: &mut Inner<K::State>) -> bool {
        if inner.ready.is_empty() || inner.workers.coming > 0 {
            return false;
        }
        let workers = &mut inner.workers;
        workers.coming += 1;
        workers.last += 1;
        let seat = Seat {
            store: Arc::clone(self),
            number: workers.last,
            coming: true,
        };
        // It begins once the lock is let go, at the earliest.
        let task = self.data.spawn_service(handle(seat));
        workers.tasks.insert(workers.last, task);
        true
    }
}

impl<K: Keyed> Seat<K> {
    fn take(&mut self) -> Option<Ready<K::State>> {
        let store = &self.store;
        let mut inner = store.lock();
        let ready = inner.ready.pop_front()?;
        if std::mem::take(&mut self.coming) {
            inner.workers.coming -= 1;
        }
        if store.call_worker(&mut inner) {
            // Rule: whoever is called can be taken by another thread. What a task spawns last is next on its own thread, and
            // no other one takes it: where the handler that comes now blocks, nobody would come. A task that does nothing
            // takes that place.
            store.data.spawn_service(std::future::ready(()));
        }
        Some(ready)
    }
}

impl<K: Keyed> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        inner.workers.tasks.remove(&self.number);
        if self.coming {
            inner.workers.coming -= 1;
            // Something may have become ready since it looked, and nobody was called for it.
            self.store.call_worker(&mut inner);
        }
    }
}

async fn handle<K: Keyed>(mut seat: Seat<K>) {
    let mut turns = 0_u32;
    while let Some(ready) = seat.take() {
        let store = Arc::clone(&seat.store);
        work::run(store, ready).await;
        turns += 1;
        if turns.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
    }
}
