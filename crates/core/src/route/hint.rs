//! What an instance told of its queue, and when.

use std::time::Duration;

use crate::time::Instant;

/// How long a hint counts. Queues of a few calls of some milliseconds each change within that time.
pub const HINT_LASTS: Duration = Duration::from_millis(50);

/// The last that an instance told of its queue: its length, with a reply or a refusal. One word, to be kept in an atomic
/// beside whatever leads to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint(u64);

impl Hint {
    /// Nothing was told.
    pub const NONE: Hint = Hint(0);

    /// So many waited or were at work when it was told.
    pub const fn told(depth: u8, now: Instant) -> Self {
        // Fifty-six bits of microseconds are two thousand years.
        Hint((now.as_micros() + 1) << 8 | depth as u64)
    }

    /// The word; see [`from_bits`](Self::from_bits).
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What [`bits`](Self::bits) gave; of zero, nothing was told.
    pub const fn from_bits(bits: u64) -> Self {
        Hint(bits)
    }

    /// What was told, where that was within [`HINT_LASTS`].
    pub fn depth_at(self, now: Instant) -> Option<u8> {
        self.depth_within(now, HINT_LASTS)
    }

    /// What was told, where that was within so long.
    pub(super) fn depth_within(self, now: Instant, lasts: Duration) -> Option<u8> {
        let at = (self.0 >> 8).checked_sub(1)?;
        let age = now.since(Instant::from_micros(at));
        (age < lasts).then_some(self.0 as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_counts_for_a_while_and_comes_through_its_bits() {
        let now = Instant::from_micros(7_000);
        let hint = Hint::from_bits(Hint::told(9, now).bits());
        assert_eq!(hint.depth_at(now), Some(9));
        assert_eq!(
            hint.depth_at(now + HINT_LASTS - Duration::from_micros(1)),
            Some(9)
        );
        assert_eq!(hint.depth_at(now + HINT_LASTS), None);
        assert_eq!(Hint::NONE.depth_at(Instant::ZERO), None);
        let first = Hint::told(0, Instant::ZERO);
        assert_eq!(first.depth_at(Instant::ZERO), Some(0));
    }
}
