//! The calls that wait for their reply on one connection.

use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::oneshot;

use crate::call::Failure;

/// Calls that wait for their reply on one connection, as a power of two.
const PENDING_BITS: u32 = 20;

/// What became of a call, as far as the connection knows.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Bytes),
    /// The same, with what waits there.
    Told {
        depth: u8,
        reply: Bytes,
    },
    /// It was refused by what waits there: it has not run.
    Refused {
        depth: u8,
    },
    Failed(Failure),
    /// The connection broke after the call was sent.
    Lost,
    /// The call did not get out.
    NotSent {
        why: Arc<str>,
        /// True where views and connections are about to agree again.
        settling: bool,
    },
    /// Nor did this one, and never will: the peer takes at most so many bytes.
    TooLarge {
        limit: usize,
    },
}

/// One of them.
#[derive(Debug)]
pub(super) struct Waiting {
    stamp: u64,
    pub(super) sender: oneshot::Sender<Outcome>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) calls: Slab<Waiting>,
    stamp: u64,
}

impl Pending {
    /// One more, and its number; none where there are too many.
    pub(super) fn add(&mut self, sender: oneshot::Sender<Outcome>) -> Option<u64> {
        if self.calls.len() >= 1 << PENDING_BITS {
            return None;
        }
        self.stamp = (self.stamp + 1) % (1 << (64 - PENDING_BITS));
        let stamp = self.stamp;
        let at = self.calls.insert(Waiting { stamp, sender });
        Some(stamp << PENDING_BITS | at as u64)
    }

    /// Of all calls.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        let calls = self.calls.iter();
        calls.map(|(at, waiting)| waiting.stamp << PENDING_BITS | at as u64)
    }

    pub(super) fn has(&self, number: u64) -> bool {
        let waiting = self.calls.get(place(number));
        waiting.is_some_and(|waiting| waiting.stamp == number >> PENDING_BITS)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Waiting> {
        self.has(number).then(|| self.calls.remove(place(number)))
    }
}

/// Where a call of that number is.
fn place(number: u64) -> usize {
    (number & ((1 << PENDING_BITS) - 1)) as usize
}
