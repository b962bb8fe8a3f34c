//! The retry budget: what keeps retries from making an overload worse.

use std::time::Duration;

use crate::time::Instant;

/// What was earned longer ago than this no longer counts: who was busy this morning has no more retries now than any other.
const WINDOW: Duration = Duration::from_secs(10);

/// How many calls may be made again: so many percent of the calls of the last ten seconds, and so many a second on top.
///
/// Rule: retries, refusals and hedges are a share of the calls. Without it, every caller of an overloaded service sends its
/// call a dozen times, which is what keeps the service overloaded.
#[derive(Clone, Debug, Default)]
pub struct RetryBudget {
    /// Calls that were counted when `at` was.
    calls: u64,
    /// Retries that calls have earned.
    earned: f64,
    /// Retries that time has.
    spare: f64,
    at: Option<Instant>,
}

impl RetryBudget {
    /// Takes one retry, where there is one. `calls` is how many were made since the first.
    pub fn withdraw(&mut self, now: Instant, calls: u64, percent: u32, per_second: u32) -> bool {
        self.look(now, calls, percent, per_second);
        for tokens in [&mut self.spare, &mut self.earned] {
            if *tokens >= 1.0 {
                *tokens -= 1.0;
                return true;
            }
        }
        false
    }

    /// Whether there is one.
    pub fn has(&mut self, now: Instant, calls: u64, percent: u32, per_second: u32) -> bool {
        self.look(now, calls, percent, per_second);
        self.spare >= 1.0 || self.earned >= 1.0
    }

    /// Counts what time and calls have brought since the last look.
    fn look(&mut self, now: Instant, calls: u64, percent: u32, per_second: u32) {
        let (percent, per_second) = (f64::from(percent) / 100.0, f64::from(per_second));
        let fresh = calls.saturating_sub(self.calls) as f64 * percent;
        match self.at {
            None => {
                self.earned = fresh;
                self.spare = per_second;
            }
            Some(at) => {
                let elapsed = now.since(at).as_secs_f64();
                let windows = elapsed / WINDOW.as_secs_f64();
                // The calls since then are taken to be spread evenly.
                let counted = if windows > 1.0 {
                    fresh / windows
                } else {
                    fresh
                };
                self.earned = self.earned * (1.0 - windows.min(1.0)) + counted;
                self.spare = (self.spare + per_second * elapsed).min(per_second);
            }
        }
        self.calls = self.calls.max(calls);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn withdrawn(budget: &mut RetryBudget, now: Instant, calls: u64) -> usize {
        (0..10_000)
            .take_while(|_| budget.withdraw(now, calls, 20, 10))
            .count()
    }

    #[test]
    fn retries_are_a_fifth_of_the_calls_and_ten_a_second_on_top() {
        let start = Instant::from_micros(5);
        let mut budget = RetryBudget::default();
        assert_eq!(withdrawn(&mut budget, start, 1_000), 210);
        assert_eq!(withdrawn(&mut budget, start, 1_000), 0);
        assert!(!budget.has(start, 1_000, 20, 10));
        let later = start + Duration::from_millis(500);
        assert!(budget.has(later, 1_100, 20, 10));
        assert_eq!(withdrawn(&mut budget, later, 1_100), 25);
    }

    #[test]
    fn what_was_earned_long_ago_does_not_count_any_more() {
        let start = Instant::ZERO;
        let mut budget = RetryBudget::default();
        assert!(budget.withdraw(start, 100_000, 20, 10));
        let next_day = start + Duration::from_secs(24 * 3600);
        assert_eq!(withdrawn(&mut budget, next_day, 100_000), 10);
        // A day's calls count as those of ten seconds.
        let mut budget = RetryBudget::default();
        assert!(budget.withdraw(start, 0, 20, 10));
        assert_eq!(withdrawn(&mut budget, next_day, 8_640_000), 210);
    }

    #[test]
    fn without_a_budget_there_are_no_retries() {
        let mut budget = RetryBudget::default();
        assert!(!budget.withdraw(Instant::ZERO, 1_000, 0, 0));
        assert!(!budget.has(Instant::ZERO, 2_000, 0, 0));
    }
}
