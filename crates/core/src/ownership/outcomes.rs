//! What became of transfers: what is sent again, or comes late, is answered as it was before (R8).
//!
//! A receiver that had forgotten a transfer would refuse its piece when that is sent again, and the giver would serve the
//! states again that somebody else holds. So each piece says from which number on its sender may send again, and what is
//! older is neither remembered nor heard.

use std::collections::{BTreeMap, BTreeSet};

use super::config::POINTER_LIVES;
use super::message::{Outcome, Piece};
use crate::id::{NodeId, NodeName};
use crate::time::Instant;

/// What is remembered of one sending process.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// The process: its numbers are its own. Who is taken for dead and comes back is the same one.
    pub(super) nonce: u64,
    /// Nothing below this is sent any more.
    pub(super) since: u64,
    pub(super) known: BTreeMap<u64, Outcome>,
    /// When its life ended, as far as is known here.
    pub(super) ended: Option<Instant>,
}

/// What is remembered of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// It is under way.
    Open,
    /// It has ended so.
    Ended(Outcome),
    /// Its sender has ended it long ago: the piece was on its way for long.
    Stale,
}

/// What became of the transfers that came, and the numbers of those that go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes {
    senders: BTreeMap<NodeName, Sender>,
    /// Numbers given out.
    last: u64,
    /// Those that have not ended, by who is to receive.
    open: BTreeMap<NodeId, BTreeSet<u64>>,
}

impl Outcomes {
    /// Begins a transfer to that node, and returns its number.
    pub(crate) fn begin(&mut self, to: &NodeId) -> u64 {
        self.last += 1;
        self.open.entry(to.clone()).or_default().insert(self.last);
        self.last
    }

    /// It will not be sent again.
    pub(crate) fn end(&mut self, to: &NodeId, transfer: u64) {
        if let Some(open) = self.open.get_mut(to) {
            open.remove(&transfer);
            if open.is_empty() {
                self.open.remove(to);
            }
        }
    }

    /// The first number that may be sent again to that node; at most `transfer`, which is being sent.
    pub(crate) fn oldest(&self, to: &NodeId, transfer: u64) -> u64 {
        let oldest = self.open.get(to).and_then(BTreeSet::first);
        oldest.map_or(transfer, |oldest| transfer.min(*oldest))
    }

    /// A node's life has ended.
    pub(super) fn mark_ended(&mut self, now: Instant, name: &NodeName) {
        if let Some(sender) = self.senders.get_mut(name) {
            sender.ended = Some(now);
        }
    }

    /// Forgets who has been down for as long as a pointer lives; returns when there is more to forget.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.senders.retain(|_, sender| {
            sender
                .ended
                .is_none_or(|ended| now.since(ended) < POINTER_LIVES)
        });
        let ended = self.senders.values().filter_map(|sender| sender.ended);
        ended.min().map(|ended| ended + POINTER_LIVES)
    }

    pub(super) fn sender(&mut self, piece: &Piece) -> &mut Sender {
        let nonce = piece.from.nonce;
        let new = || Sender {
            nonce,
            since: 0,
            known: BTreeMap::new(),
            ended: None,
        };
        let sender = self
            .senders
            .entry(piece.from.node.clone())
            .or_insert_with(new);
        if sender.nonce != nonce {
            *sender = new();
        }
        sender.ended = None;
        sender
    }
}
