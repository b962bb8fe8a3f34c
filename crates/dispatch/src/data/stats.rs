//! What the data lane counts.

use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use keydispatch_core::NodeName;

use super::parked::Parked;
use crate::mutex::Mutex;

/// Counters of the data lane, from the node's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataStats {
    /// Calls that were sent to other nodes.
    pub calls_sent: u64,
    /// Calls that other nodes sent.
    pub calls_received: u64,
    /// Casts that were sent to other nodes.
    pub casts_sent: u64,
    /// Casts that were accepted here and never sent: no connection came about in time, nobody was there to take them, or too
    /// many waited for one.
    pub casts_unsent: u64,
    /// Casts that other nodes sent.
    pub casts_received: u64,
    /// Casts that other nodes sent and no mailbox took: it was full, gone, or of another version.
    pub casts_dropped: u64,
    /// Casts and broadcasts that were not sent, or dropped on the way out, because the peer takes only shorter ones.
    pub too_large_for_peer: u64,
    /// Messages that did not decode.
    pub undecodable: u64,
    /// Data connections that this node opened.
    pub connections_opened: u64,
    /// Data connections that this node has open now.
    pub connections_open: usize,
    /// Data connections that others have open to this node.
    pub connections_inbound: u64,
    /// Calls that wait for their reply.
    pub calls_pending: usize,
    /// Frames that wait to be written.
    pub frames_queued: usize,
    /// Services that run here.
    pub services: usize,
    /// Bytes that wait here: in mailboxes, for subscriptions to topics, as replies, and as messages to other nodes.
    pub waiting_bytes: usize,
    /// How many may, [`NodeBuilder::waiting_bytes`](crate::NodeBuilder::waiting_bytes).
    pub max_waiting_bytes: usize,
    /// Messages that were refused, or dropped, because no more may wait.
    pub refused_for_want_of_room: u64,
    /// Tasks of connections that panicked: a fault of this library. The log has their names.
    pub task_panics: u64,
    /// Keys whose states are here.
    pub keys: usize,
    /// Handlers of keys that panicked.
    pub key_panics: u64,
    /// Messages that waited until the state of their key had come.
    pub parked: u64,
    /// What 99 of 100 of these did not wait longer than; to a quarter.
    pub parked_p99: std::time::Duration,
    /// The longest that one of them waited.
    pub parked_longest: std::time::Duration,
    /// The nodes that calls are not sent to at the moment: silent, or their connection broke.
    pub suspended: Vec<NodeName>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) calls_sent: AtomicU64,
    pub(crate) calls_received: AtomicU64,
    pub(crate) casts_sent: AtomicU64,
    pub(crate) casts_unsent: AtomicU64,
    pub(crate) casts_received: AtomicU64,
    pub(crate) casts_dropped: AtomicU64,
    pub(crate) too_large_for_peer: AtomicU64,
    pub(crate) undecodable: AtomicU64,
    pub(crate) connections_opened: AtomicU64,
    pub(crate) key_panics: AtomicU64,
    pub(crate) parked: Parked,
    /// When a dropped cast was last logged.
    dropped_cast_logged: Mutex<Option<tokio::time::Instant>>,
}

impl Counters {
    /// A cast of a peer found no room, or nobody.
    pub(super) fn count_dropped_cast(&self, peer: &NodeName) {
        const PAUSE: Duration = Duration::from_secs(10);
        let dropped = self.casts_dropped.fetch_add(1, Ordering::Relaxed) + 1;
        let mut logged = self.dropped_cast_logged.lock();
        if logged.is_none_or(|at| at.elapsed() >= PAUSE) {
            *logged = Some(tokio::time::Instant::now());
            tracing::warn!(%peer, dropped, "a cast was dropped: its mailbox was full or gone");
        }
    }

    /// A cast or a broadcast was not sent because that peer takes at most `limit` bytes.
    pub(super) fn count_too_large(&self, peer: &NodeName, limit: usize) {
        let times = self.too_large_for_peer.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() {
            tracing::warn!(%peer, limit, times, "a message was not sent: the peer's max_payload_bytes is smaller");
        }
    }

    /// Accepted casts were lost before they were written.
    pub(super) fn count_unsent(&self, casts: u64) {
        if casts == 0 {
            return;
        }
        let unsent = &self.casts_unsent;
        let before = unsent.fetch_add(casts, Ordering::Relaxed);
        let all = before + casts;
        // Once for each doubling.
        if before.checked_ilog2() != Some(all.ilog2()) {
            tracing::warn!(
                casts_unsent = all,
                "casts were accepted and not sent: no connection came about in time, or nobody was there to take them"
            );
        }
    }
}
