//! What all connections to one peer share: what it takes, and when it was last heard on its control connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::time::Duration;

use keydispatch_core::Instant;
use keydispatch_core::message::Offers;
use tokio::sync::Notify;

use super::activity::Activity;
use super::undialled::Undialled;
use crate::mutex::Mutex;

/// How long messages wait for a connection to a peer that cannot be dialled; from then on they fail at once.
///
/// Rule: a node that has died is down by then, twice `down_period` unless somebody changed that, and its keys have other
/// owners; one that came back is there. Without the waiting, every dial that fails by chance fails calls of a planned change;
/// without the bound, callers of a node that nobody reaches would pile up.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// A dial that fails so long after the one before is news: nothing is known of the time between.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Since when the dials have failed, and the last of them.
#[derive(Clone, Copy, Debug)]
struct UnreachedSince {
    since: tokio::time::Instant,
    last: tokio::time::Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Contact {
    /// The longest payload that the peer takes; the largest number until it has said so.
    max_payload_bytes: AtomicU64,
    /// The peer lets a later data connection take the place of an earlier one.
    replaces: AtomicBool,
    /// The peer knows of calls that may be refused by load.
    bounds: AtomicBool,
    /// The peer knows of the spans that calls belong to.
    traces: AtomicBool,
    /// On the control connection.
    heard: Activity,
    /// Told of everything that is heard there.
    hearing: Notify,
    pub(super) undialled: Undialled,
    unreached: Mutex<Option<UnreachedSince>>,
}

impl Default for Contact {
    fn default() -> Self {
        Contact {
            max_payload_bytes: AtomicU64::new(u64::MAX),
            replaces: AtomicBool::new(false),
            bounds: AtomicBool::new(false),
            traces: AtomicBool::new(false),
            heard: Activity::default(),
            hearing: Notify::new(),
            undialled: Undialled::default(),
            unreached: Mutex::default(),
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
        self.bounds.store(minor >= 3, Ordering::Relaxed);
        self.traces.store(minor >= 4, Ordering::Relaxed);
    }

    /// True where a call may be one that its service refuses. False until a data connection has said so: what is not known
    /// may be a node to which such a call is nothing.
    pub(super) fn knows_bounds(&self) -> bool {
        self.bounds.load(Ordering::Relaxed)
    }

    /// True where it may be told whose child the span of a call is.
    pub(super) fn knows_traces(&self) -> bool {
        self.traces.load(Ordering::Relaxed)
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

    /// A data connection was not to be had, from then on until now.
    pub(super) fn unreached(&self, from: tokio::time::Instant) {
        let mut unreached = self.unreached.lock();
        let before = unreached.filter(|before| from <= before.last + FORGOTTEN_AFTER);
        *unreached = Some(UnreachedSince {
            since: before.map_or(from, |before| before.since.min(from)),
            last: tokio::time::Instant::now(),
        });
    }

    /// A data connection has come about, and lasts.
    pub(super) fn reached(&self) {
        *self.unreached.lock() = None;
    }

    /// True while messages wait for a connection, however often it failed.
    pub(super) fn is_patient(&self) -> bool {
        let unreached = self.unreached.lock();
        unreached.is_none_or(|unreached| {
            unreached.since.elapsed() < PATIENCE || unreached.last.elapsed() > FORGOTTEN_AFTER
        })
    }

    /// Something was heard on the control connection.
    pub(super) fn hear(&self) {
        self.heard.record_read();
        self.hearing.notify_waiters();
    }

    /// The time, as [`heard_since`](Self::heard_since) reckons it.
    pub(super) fn now(&self) -> Instant {
        self.heard.clock()
    }

    /// True where the peer was heard on the control connection after that time.
    pub(super) fn heard_since(&self, then: Instant) -> bool {
        self.heard.last_read() > then
    }

    /// Waits until the peer has been heard on the control connection within so much time.
    pub(super) async fn heard_within(&self, time: Duration) {
        loop {
            let mut hearing = std::pin::pin!(self.hearing.notified());
            // From here on nothing is missed.
            hearing.as_mut().enable();
            if self.heard.last_read() > Instant::ZERO && self.heard.since() <= time {
                return;
            }
            hearing.await;
        }
    }
}
