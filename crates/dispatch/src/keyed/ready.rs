//! The keys that have something to do, and who sees to them.

use std::collections::HashMap;

use keydispatch_core::KeyBytes;
use tokio::task::AbortHandle;

use super::cells::Cell;
use crate::data::mailbox::letter::Letter;

/// What a key is to do.
pub(super) enum Job {
    Letter(Letter),
    /// Say whether it is still wanted.
    Idle,
}

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
    pub(super) coming: usize,
    pub(super) last: u64,
    /// Those that were called while the lock was held, and are still to begin.
    pub(super) called: Vec<u64>,
    /// None where a task has yet to begin.
    pub(super) tasks: HashMap<u64, Option<AbortHandle>>,
    /// They are ended, and nobody comes any more.
    pub(super) ended: bool,
}

impl Workers {
    /// Those that are to begin now.
    pub(super) fn take_called(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.called)
    }

    /// All of them, to be ended.
    pub(super) fn end(&mut self) -> Vec<AbortHandle> {
        self.ended = true;
        self.tasks.values().flatten().cloned().collect()
    }
}
