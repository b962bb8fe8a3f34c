//! The lives of each name: which of them counts, which have left for good, and which claim this node's own name.

use std::collections::BTreeMap;
use std::time::Duration;

use super::generations::Generations;
use super::lately::Lately;
use crate::id::{Generation, NodeId};
use crate::limits::MAX_KNOWN_NODES;
use crate::time::Instant;

/// A rival for this node's name is reported again after this long.
pub(super) const CONFLICT_INTERVAL: Duration = Duration::from_secs(5);
/// Rivals of whatever generation are reported at most this often: each is dialled.
const RIVAL_INTERVAL: Duration = Duration::from_secs(1);
/// Most rivals remembered.
const MAX_RIVALS: usize = 64;

/// See the module.
pub(super) struct Lives {
    pub(super) generations: Generations,
    /// The lives that have left, until when.
    departed: BTreeMap<NodeId, Instant>,
    /// The generations of this node's name that were reported of late.
    rivals: Lately<Generation>,
    rival_at: Option<Instant>,
}

impl Lives {
    /// `clock_micros` is what time it is, in microseconds since the Unix epoch.
    pub(super) fn new(clock_micros: u64, now: Instant) -> Self {
        Lives {
            generations: Generations::new(clock_micros, now),
            departed: BTreeMap::new(),
            rivals: Lately::new(CONFLICT_INTERVAL, MAX_RIVALS),
            rival_at: None,
        }
    }

    /// That life said goodbye, which is remembered until then.
    pub(super) fn depart(&mut self, node: NodeId, until: Instant) {
        if self.departed.len() >= MAX_KNOWN_NODES {
            let soonest = self.departed.iter().min_by_key(|(_, until)| **until);
            if let Some(node) = soonest.map(|(node, _)| node.clone()) {
                self.departed.remove(&node);
            }
        }
        self.departed.insert(node, until);
    }

    pub(super) fn is_departed(&self, node: &NodeId) -> bool {
        self.departed.contains_key(node)
    }

    /// True where a rival of that generation is to be reported now. With `paced`, rivals of whatever generation are reported
    /// at a bounded rate.
    pub(super) fn is_new_rival(
        &mut self,
        now: Instant,
        generation: Generation,
        paced: bool,
    ) -> bool {
        let is_soon = |at: Instant| now.since(at) < RIVAL_INTERVAL;
        if (paced && self.rival_at.is_some_and(is_soon)) || self.rivals.has(now, &generation) {
            return false;
        }
        self.rivals.note(now, generation);
        self.rival_at = Some(now);
        true
    }

    pub(super) fn sweep_departed(&mut self, now: Instant) {
        self.departed.retain(|_, until| *until > now);
    }

    /// Forgets who has left, whatever was promised.
    #[cfg(test)]
    pub(super) fn forget_departed(&mut self) {
        self.departed.clear();
    }
}
