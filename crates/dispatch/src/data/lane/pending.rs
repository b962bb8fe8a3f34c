//! The calls that wait for their reply on one connection.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use slab::Slab;
use tokio::sync::oneshot;

use super::{Lane, Outcome};
use crate::call::CallError;

/// Calls that wait for their reply on one connection, as a power of two.
const PENDING_BITS: u32 = 20;

/// One of them.
#[derive(Debug)]
pub(super) struct Waiting {
    stamp: u64,
    pub(super) sender: oneshot::Sender<Outcome>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) calls: Slab<Waiting>,
    stamp: u64,
}

impl Pending {
    /// Of all calls.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        let calls = self.calls.iter();
        calls.map(|(at, waiting)| waiting.stamp << PENDING_BITS | at as u64)
    }

    fn has(&self, number: u64) -> bool {
        let waiting = self.calls.get(place(number));
        waiting.is_some_and(|waiting| waiting.stamp == number >> PENDING_BITS)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Waiting> {
        self.has(number).then(|| self.calls.remove(place(number)))
    }
}

/// Where a call of that number is.
fn place(number: u64) -> usize {
    (number & ((1 << PENDING_BITS) - 1)) as usize
}

impl Lane {
    pub(super) fn expect(&self, sender: oneshot::Sender<Outcome>) -> Result<u64, CallError> {
        let mut pending = self.lock();
        if pending.calls.len() >= 1 << PENDING_BITS {
            return Err(CallError::Overloaded {
                node: self.target.peer.name.clone(),
            });
        }
        pending.stamp = (pending.stamp + 1) % (1 << (64 - PENDING_BITS));
        let stamp = pending.stamp;
        let at = pending.calls.insert(Waiting { stamp, sender });
        Ok(stamp << PENDING_BITS | at as u64)
    }

    /// The calls that wait for their reply.
    pub(super) fn waiting(&self) -> Vec<u64> {
        self.lock().numbers().collect()
    }

    pub(super) fn waits_for(&self, number: u64) -> bool {
        self.lock().has(number)
    }

    pub(super) fn complete(&self, number: u64, outcome: Outcome) {
        if let Some(waiting) = self.forget(number) {
            // The caller may have gone.
            let _ = waiting.sender.send(outcome);
        }
    }

    pub(super) fn forget(&self, number: u64) -> Option<Waiting> {
        let waiting = self.lock().remove(number);
        if self.going.load(Ordering::Relaxed) {
            self.finish_if_idle();
        }
        waiting
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
