//! A connection's calls, until each has its outcome.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::Lane;
use super::pending::{Outcome, Pending, Waiting};
use crate::call::CallError;

impl Lane {
    pub(super) fn expect(&self, sender: oneshot::Sender<Outcome>) -> Result<u64, CallError> {
        let number = self.lock().add(sender);
        number.ok_or_else(|| CallError::Overloaded {
            node: self.target.peer.name.clone(),
        })
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
        self.pending.lock()
    }
}
