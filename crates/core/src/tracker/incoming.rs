//! Requests for what is missing of an owner: how many may be made, those under way, and what has come of them.

use std::sync::Arc;
use std::time::Duration;

use crate::entry::ServiceInfo;
use crate::id::NodeId;
use crate::message::OwnerVersion;
use crate::time::Instant;

/// Requests that may be made of one owner's entries at once, and how many follow in each `broadcast_period`, which is how
/// often a difference is looked for.
const BURST: u32 = 16;

/// Rule: nothing is fetched in a loop. Requests for what is missing of one owner go by a rate, whatever peers say: without
/// it, one that says again and again that there is more has it fetched as often as answers take. A request whose answer
/// brought something does not count, nor do those before a new link: an owner that changes faster than its link carries is
/// asked after every gap.
#[derive(Debug)]
pub(super) struct Tokens {
    left: u32,
    at: Instant,
}

impl Tokens {
    pub(super) fn new(now: Instant) -> Self {
        Tokens {
            left: BURST,
            at: now,
        }
    }

    /// The last one was well spent.
    pub(super) fn give_back(&mut self) {
        self.left = (self.left + 1).min(BURST);
    }

    /// Takes one, where one is left.
    pub(super) fn take(&mut self, now: Instant, period: Duration) -> bool {
        let periods = now.since(self.at).as_micros() / period.as_micros().max(1);
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(BURST);
            self.left = self.left.saturating_add(more).min(BURST);
            self.at += period * more;
            if self.left == BURST {
                self.at = now;
            }
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) from: NodeId,
    pub(super) deadline: Instant,
    /// What is waited for each part of the answer.
    pub(super) patience: Duration,
    pub(super) incoming: Option<Incoming>,
}

/// A snapshot of which not all chunks are here.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) of: OwnerVersion,
    pub(super) nonce: u64,
    pub(super) next: u32,
    pub(super) count: u32,
    pub(super) entries: Vec<Arc<ServiceInfo>>,
    /// Sum of the hashes of `entries`.
    pub(super) content: u64,
    /// Estimated bytes of `entries`.
    pub(super) bytes: usize,
}
