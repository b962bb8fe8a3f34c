//! What all connections to one peer share.

use std::sync::atomic::{AtomicU64, Ordering};

use keydispatch_core::message::Offers;

/// See the module.
#[derive(Debug)]
pub(super) struct Contact {
    /// The longest payload that the peer takes; the largest number until it has said so.
    max_payload_bytes: AtomicU64,
}

impl Default for Contact {
    fn default() -> Self {
        Contact {
            max_payload_bytes: AtomicU64::new(u64::MAX),
        }
    }
}

impl Contact {
    /// The peer's Hello, on whatever connection.
    pub(super) fn offers(&self, offers: &Offers) {
        // Rule: a peer of minor version 0 is taken to have this node's own setting, as it had to have.
        let said = offers.max_payload_bytes.unwrap_or(u64::MAX);
        self.max_payload_bytes.store(said, Ordering::Relaxed);
    }

    /// The longest payload that both this node, whose setting is given, and the peer take; in bytes.
    pub(super) fn max_payload_bytes(&self, ours: usize) -> usize {
        let said = self.max_payload_bytes.load(Ordering::Relaxed);
        usize::try_from(said).map_or(ours, |theirs| theirs.min(ours))
    }
}
