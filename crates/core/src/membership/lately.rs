//! What was done of late, so that it is not done again too soon.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Instant;

/// When something was last done about each of a bounded number of things.
pub(super) struct Lately<K> {
    at: BTreeMap<K, Instant>,
    interval: Duration,
    most: usize,
}

impl<K: Ord> Lately<K> {
    /// Not again within that time, for as many at once.
    pub(super) fn new(interval: Duration, most: usize) -> Self {
        Lately {
            at: BTreeMap::new(),
            interval,
            most,
        }
    }

    /// True where it was done within the interval.
    pub(super) fn has(&self, now: Instant, key: &K) -> bool {
        let at = self.at.get(key);
        at.is_some_and(|at| now.since(*at) < self.interval)
    }

    /// It is done now. Where there are too many, the smallest is forgotten: it is done once more than it need be.
    pub(super) fn note(&mut self, now: Instant, key: K) {
        if self.at.len() >= self.most {
            self.at.pop_first();
        }
        self.at.insert(key, now);
    }

    /// Forgets what was done longer ago.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.at.retain(|_, at| now.since(*at) < self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_of_late_is_known_for_its_interval_and_for_a_bounded_number() {
        let at = |millis: u64| Instant::from_micros(millis * 1_000);
        let mut lately = Lately::new(Duration::from_millis(10), 2);
        lately.note(at(0), 1);
        assert!(lately.has(at(9), &1));
        assert!(!lately.has(at(10), &1));
        lately.note(at(5), 2);
        lately.note(at(5), 3);
        assert!(!lately.has(at(6), &1));
        assert!(lately.has(at(6), &2) && lately.has(at(6), &3));
        lately.sweep(at(15));
        assert!(lately.at.is_empty());
    }
}
