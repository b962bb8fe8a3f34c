//! The memory that lookup tables may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes the tables of a node may take; without one a slot is scored at every lookup.
#[derive(Debug)]
pub(crate) struct TableBudget {
    left: AtomicUsize,
}

impl TableBudget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(TableBudget {
            left: AtomicUsize::new(bytes),
        })
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}
