//! How long messages waited for the state of their key.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Parts of each doubling: what is read is at most a quarter too long.
const PARTS: u32 = 4;

/// Doublings of a microsecond: the last holds all beyond two minutes.
const DOUBLINGS: u32 = 27;

/// A count for each quarter of a doubling.
#[derive(Debug)]
pub(crate) struct Parked {
    counts: [AtomicU64; (PARTS * DOUBLINGS) as usize],
    longest_micros: AtomicU64,
}

impl Default for Parked {
    fn default() -> Self {
        Parked {
            counts: [const { AtomicU64::new(0) }; (PARTS * DOUBLINGS) as usize],
            longest_micros: AtomicU64::new(0),
        }
    }
}

impl Parked {
    pub(crate) fn note(&self, waited: Duration) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX).max(1);
        self.counts[place(micros)].fetch_add(1, Ordering::Relaxed);
        self.longest_micros.fetch_max(micros, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        let counts = self.counts.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_micros.load(Ordering::Relaxed))
    }

    /// What 99 of 100 did not wait longer than.
    pub(super) fn p99(&self) -> Duration {
        let most = self.count().div_ceil(100);
        let mut longer = 0;
        for (at, count) in self.counts.iter().enumerate().rev() {
            longer += count.load(Ordering::Relaxed);
            if longer >= most && longer > 0 {
                return Duration::from_micros(end(at as u32)).min(self.longest());
            }
        }
        Duration::ZERO
    }
}

fn place(micros: u64) -> usize {
    let doubling = micros.ilog2();
    let part = if doubling >= 2 {
        (micros >> (doubling - 2)) & 3
    } else {
        0
    };
    let place = doubling * PARTS + part as u32;
    place.min(PARTS * DOUBLINGS - 1) as usize
}

/// The longest time that is counted there.
fn end(place: u32) -> u64 {
    let (doubling, part) = (place / PARTS, u64::from(place % PARTS));
    ((4 + part + 1) << doubling) / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_hardly_longer_than_what_was_waited() {
        let parked = Parked::default();
        assert_eq!(parked.p99(), Duration::ZERO);
        for micros in 1..=10_000 {
            parked.note(Duration::from_micros(micros));
        }
        let p99 = parked.p99().as_micros();
        assert!((9_900..=12_400).contains(&p99), "{p99}");
        assert_eq!(parked.count(), 10_000);
        assert_eq!(parked.longest(), Duration::from_micros(10_000));
        parked.note(Duration::MAX);
        assert_eq!(parked.count(), 10_001);
    }
}
