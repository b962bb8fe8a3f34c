//! Who handles the keys that have something to do.
//!
//! A worker is a task that takes one key after the other. A task for each message costs more than most handlers: it is
//! allocated, queued and woken. Rule: while a key is ready, a worker that is at work on nothing is on its way; so a handler
//! that waits, or that blocks its thread, holds up no other key, as if each had a task of its own.

use std::sync::Arc;

use super::Keyed;
use super::ready::Ready;
use super::store::{Store, StoreInner};
use super::work;

/// Keys after which other tasks get their turn.
const TURN: u32 = 64;

/// A worker's place. However its task ends, also by an abort, it is given back.
struct Seat<K: Keyed> {
    store: Arc<Store<K>>,
    number: u64,
    /// It has not taken anything yet.
    coming: bool,
    /// Its task has begun.
    ran: bool,
}

impl<S> StoreInner<S> {
    /// Follows the rule of the module. The worker begins once the lock is let go.
    pub(super) fn call_worker(&mut self) {
        if self.ready.is_empty() || self.workers.coming > 0 || self.workers.ended {
            return;
        }
        let workers = &mut self.workers;
        workers.coming += 1;
        workers.last += 1;
        workers.called.push(workers.last);
        workers.tasks.insert(workers.last, None);
    }
}

impl<K: Keyed> Store<K> {
    /// Lets a worker begin that was called, without the lock.
    pub(super) fn start_worker(&self, number: u64) {
        let Some(store) = self.me() else {
            return;
        };
        let seat = Seat {
            store,
            number,
            coming: true,
            ran: false,
        };
        let task = self.local.spawn_service(handle(seat));
        // Rule: whoever is called can be taken by another thread. What a task spawns last is next on its own thread, and no other
        // one takes it: where that thread is held next, by a handler that begins or by one that has just sent this, nobody
        // would come, and nobody else would be called. A task that does nothing takes that place.
        self.local.spawn_service(std::future::ready(()));
        let mut inner = self.lock();
        if inner.workers.ended {
            task.abort();
        } else if let Some(place) = inner.workers.tasks.get_mut(&number) {
            *place = Some(task);
        }
    }
}

impl<K: Keyed> Seat<K> {
    fn take(&mut self) -> Option<Ready<K::State>> {
        self.ran = true;
        let mut inner = self.store.lock();
        let ready = inner.ready.pop_front()?;
        if std::mem::take(&mut self.coming) {
            inner.workers.coming -= 1;
        }
        inner.call_worker();
        Some(ready)
    }
}

impl<K: Keyed> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        inner.workers.tasks.remove(&self.number);
        // Where a task is dropped before it has begun, its runtime has ended, and the next one would be dropped like it.
        inner.workers.ended |= !self.ran;
        if self.coming {
            inner.workers.coming -= 1;
            // Something may have become ready since it looked, and nobody was called for it.
            inner.call_worker();
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
