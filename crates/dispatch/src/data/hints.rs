//! What instances told of their queues: beside the lanes, for all handles of this node.

use std::sync::atomic::{AtomicU64, Ordering};

use keydispatch_core::route::Hint;
use keydispatch_core::{Instant as Since, ServiceId, ServiceInfo};
use tokio::time::Instant;

use super::DataPlane;

/// Instances that are remembered. Beyond that all are forgotten: what was told counts for a second at most.
const MAX_HINTS: usize = 1 << 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Hints {
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

impl DataPlane {
    /// The time by which hints count.
    pub(crate) fn hint_clock(&self) -> Since {
        Since::ZERO + self.hints.started.elapsed()
    }

    /// An instance told what waits there.
    pub(crate) fn told(&self, (nonce, sequence): (u64, u64), depth: u8) {
        let hint = Hint::told(depth, self.hint_clock());
        self.hints.told((nonce, sequence), hint);
    }

    /// What is known of an instance: where it runs here, what is so.
    pub(crate) fn hint_of(&self, id: &ServiceId) -> Hint {
        let here = {
            let ours = self.hello();
            id.nonce == ours.nonce && id.node == ours.node.name
        };
        if here {
            let told = self.with_local(id.sequence, |mailbox| {
                mailbox.load().map(|load| load.told())
            });
            let told = told.flatten();
            return told.map_or(Hint::NONE, |depth| Hint::told(depth, self.hint_clock()));
        }
        self.hints.of((id.nonce, id.sequence))
    }

    /// True where nothing is sent to an instance just now: its connection is suspended or broken, or its node is not up.
    pub(crate) fn is_out(&self, info: &ServiceInfo) -> bool {
        let ours = self.hello().nonce;
        info.id().nonce != ours && self.lane_to(info).map_or(true, |lane| lane.is_suspended())
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
