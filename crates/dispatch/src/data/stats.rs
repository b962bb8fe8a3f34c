//! What the data lane counts.

use std::sync::atomic::{AtomicU64, Ordering};

use keydispatch_core::NodeName;

use super::DataPlane;
use super::parked::Parked;

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
}

impl DataPlane {
    pub(crate) fn stats(&self) -> DataStats {
        let counters = &self.counters;
        let mut stats = DataStats {
            calls_sent: counters.calls_sent.load(Ordering::Relaxed),
            calls_received: counters.calls_received.load(Ordering::Relaxed),
            casts_sent: counters.casts_sent.load(Ordering::Relaxed),
            casts_unsent: counters.casts_unsent.load(Ordering::Relaxed),
            casts_received: counters.casts_received.load(Ordering::Relaxed),
            casts_dropped: counters.casts_dropped.load(Ordering::Relaxed),
            too_large_for_peer: counters.too_large_for_peer.load(Ordering::Relaxed),
            undecodable: counters.undecodable.load(Ordering::Relaxed),
            connections_opened: counters.connections_opened.load(Ordering::Relaxed),
            connections_inbound: self.places.count() as u64,
            services: self.local.len(),
            waiting_bytes: self.backlog.waiting(),
            max_waiting_bytes: self.backlog.limit(),
            refused_for_want_of_room: self.backlog.refused(),
            key_panics: counters.key_panics.load(Ordering::Relaxed),
            parked: counters.parked.count(),
            parked_p99: counters.parked.p99(),
            parked_longest: counters.parked.longest(),
            ..DataStats::default()
        };
        for (_, local) in &self.local.pin() {
            if let Some(keyed) = local.mailbox.keyed() {
                stats.keys += keyed.keys();
            }
        }
        for (name, peer) in &self.peers.pin() {
            for lane in &peer.lanes {
                stats.connections_open += usize::from(lane.is_open());
                stats.calls_pending += lane.pending();
                stats.frames_queued += lane.queued();
            }
            if peer.lanes.iter().any(|lane| lane.is_suspended()) {
                stats.suspended.push(name.clone());
            }
        }
        stats.suspended.sort();
        stats
    }
}
