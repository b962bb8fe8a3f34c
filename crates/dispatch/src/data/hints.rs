//! What instances told of their queues: beside the lanes, for all handles of this node.

use std::sync::atomic::{AtomicU64, Ordering};

use keydispatch_core::route::Hint;
use keydispatch_core::{Instant as Since, ServiceId};
use tokio::time::Instant;

/// Instances that are remembered. Beyond that all are forgotten: what was told counts for a second at most.
const MAX_HINTS: usize = 1 << 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Hints {
    started: Instant,
    /// By process and number within it.
    told: papaya::HashMap<(u64, u64), AtomicU64>,
}

impl Default for Hints {
    fn default() -> Self {
        Hints {
            started: Instant::now(),
            told: papaya::HashMap::new(),
        }
    }
}

impl Hints {
    /// The time by which hints count.
    pub(crate) fn clock(&self) -> Since {
        Since::ZERO + self.started.elapsed()
    }

    /// An instance, by process and number within it, told what waits there.
    pub(crate) fn hear(&self, of: (u64, u64), depth: u8) {
        self.told(of, Hint::told(depth, self.clock()));
    }

    /// What an instance told last.
    pub(crate) fn of_instance(&self, id: &ServiceId) -> Hint {
        self.of((id.nonce, id.sequence))
    }

    fn told(&self, of: (u64, u64), hint: Hint) {
        let told = self.told.pin();
        if let Some(before) = told.get(&of) {
            return before.store(hint.bits(), Ordering::Relaxed);
        }
        if told.len() >= MAX_HINTS {
            told.clear();
        }
        told.insert(of, AtomicU64::new(hint.bits()));
    }

    fn of(&self, of: (u64, u64)) -> Hint {
        let told = self.told.pin();
        let bits = told.get(&of).map(|told| told.load(Ordering::Relaxed));
        bits.map_or(Hint::NONE, Hint::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_was_told_is_what_is_known_and_hints_are_bounded() {
        let hints = Hints::default();
        let now = Since::from_micros(5);
        assert_eq!(hints.of((1, 1)), Hint::NONE);
        for depth in [3, 9] {
            hints.told((1, 1), Hint::told(depth, now));
        }
        assert_eq!(hints.of((1, 1)).depth_at(now), Some(9));
        for number in 0..MAX_HINTS as u64 {
            hints.told((2, number), Hint::told(1, now));
        }
        assert!(hints.told.len() <= MAX_HINTS);
    }
}
