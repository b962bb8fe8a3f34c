//! What all connections to one peer share: what it takes, and when it was last heard on its control connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keydispatch_core::Instant;
use keydispatch_core::message::Offers;
use tokio::sync::Notify;

use super::Heard;
use super::undialled::Undialled;

/// See the module.
#[derive(Debug)]
pub(super) struct Contact {
    /// The longest payload that the peer takes; the largest number until it has said so.
    max_payload_bytes: AtomicU64,
    /// The peer lets a later data connection take the place of an earlier one.
    replaces: AtomicBool,
    /// On the control connection.
    heard: Heard,
    /// Told of everything that is heard there.
    hearing: Notify,
    pub(super) undialled: Undialled,
}

impl Default for Contact {
    fn default() -> Self {
        Contact {
            max_payload_bytes: AtomicU64::new(u64::MAX),
            replaces: AtomicBool::new(false),
            heard: Heard::default(),
            hearing: Notify::new(),
            undialled: Undialled::default(),
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

    /// The peer's Hello on a data connection, of that minor version.
    pub(super) fn greeted(&self, minor: u16, offers: &Offers) {
        self.offers(offers);
        self.replaces.store(minor >= 1, Ordering::Relaxed);
    }

    /// The longest payload that both this node, whose setting is given, and the peer take; in bytes.
    pub(super) fn max_payload_bytes(&self, ours: usize) -> usize {
        let said = self.max_payload_bytes.load(Ordering::Relaxed);
        usize::try_from(said).map_or(ours, |theirs| theirs.min(ours))
    }

    /// True where a second data connection may take the place of one that is stuck, with order kept.
    pub(super) fn replaces(&self) -> bool {
        self.replaces.load(Ordering::Relaxed)
    }

    /// Something was heard on the control connection.
    pub(super) fn hear(&self) {
        self.heard.now();
        self.hearing.notify_waiters();
    }

    /// The time, as [`heard_since`](Self::heard_since) reckons it.
    pub(super) fn now(&self) -> Instant {
        self.heard.clock()
    }

    /// True where the peer was heard on the control connection after that time.
    pub(super) fn heard_since(&self, then: Instant) -> bool {
        self.heard.at() > then
    }

    /// Waits until the peer has been heard on the control connection within so much time.
    pub(super) async fn heard_within(&self, time: Duration) {
        loop {
            let mut hearing = std::pin::pin!(self.hearing.notified());
            // From here on nothing is missed.
            hearing.as_mut().enable();
            if self.heard.at() > Instant::ZERO && self.heard.since() <= time {
                return;
            }
            hearing.await;
        }
    }
}
