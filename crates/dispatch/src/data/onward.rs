//! Casts that were accepted and certainly not written, and whose connection does not come about: they go on to whoever is to
//! have them by then.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard, OnceLock};

use keydispatch_core::ServiceInfo;
use tokio::time::Instant;

use super::contact::PATIENCE;
use super::wire::{Outgoing, kind};
use crate::mutex::Mutex;

/// Casts that wait at once, and bytes of them: as much as one connection holds.
const MAX_CASTS: usize = 1 << 16;
const MAX_BYTES: usize = 128 * 1024 * 1024;

/// Those of one node.
#[derive(Default)]
pub(super) struct Onward {
    state: Mutex<OnwardState>,
    /// Begins with them: it knows where they can go, which connections do not.
    forward: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Debug, Default)]
struct OnwardState {
    waiting: VecDeque<WaitingCast>,
    bytes: usize,
    /// A task is at it, and may have some in its hands.
    at_work: bool,
}

#[derive(Debug)]
pub(super) struct WaitingCast {
    pub(super) cast: Outgoing,
    /// Rule: an accepted cast waits for so long and no longer. Where nobody takes it by then it is lost, and counted.
    pub(super) until: Instant,
    /// Whom it goes to, where that is settled.
    pub(super) by: Option<Arc<ServiceInfo>>,
}

impl Onward {
    /// What begins with them once some wait.
    pub(super) fn forward_by(&self, forward: impl Fn() + Send + Sync + 'static) {
        // There is one for each node.
        let _ = self.forward.set(Box::new(forward));
    }

    /// Takes casts that were not written, and drops anything else among them; returns how many found no room.
    pub(super) fn send_on(&self, unwritten: impl IntoIterator<Item = Outgoing>) -> u64 {
        let until = Instant::now() + PATIENCE;
        let mut lost = 0;
        let mut state = self.lock();
        for cast in unwritten {
            if cast.frame.kind != kind::CAST {
                continue;
            }
            let bytes = cast.bytes();
            if state.waiting.len() >= MAX_CASTS || state.bytes + bytes > MAX_BYTES {
                lost += 1;
                continue;
            }
            state.bytes += bytes;
            state.waiting.push_back(WaitingCast {
                cast,
                until,
                by: None,
            });
        }
        lost
    }

    /// Sees to it that somebody is at what waits.
    pub(super) fn begin(&self) {
        let begins = {
            let mut state = self.lock();
            !state.waiting.is_empty() && !std::mem::replace(&mut state.at_work, true)
        };
        if begins && let Some(forward) = self.forward.get() {
            forward();
        }
    }

    /// True while some have found nobody yet.
    pub(super) fn is_at_work(&self) -> bool {
        self.lock().at_work
    }

    /// Takes what is there; the task ends where that is nothing.
    pub(super) fn take(&self) -> VecDeque<WaitingCast> {
        let mut state = self.lock();
        state.at_work = !state.waiting.is_empty();
        state.bytes = 0;
        std::mem::take(&mut state.waiting)
    }

    /// Before those that came meanwhile.
    pub(super) fn put_back(&self, left: VecDeque<WaitingCast>) {
        let mut state = self.lock();
        state.bytes += bytes(&left);
        let later = std::mem::replace(&mut state.waiting, left);
        state.waiting.extend(later);
    }

    fn lock(&self) -> MutexGuard<'_, OnwardState> {
        self.state.lock()
    }
}

fn bytes(casts: &VecDeque<WaitingCast>) -> usize {
    casts.iter().map(|waiting| waiting.cast.bytes()).sum()
}
