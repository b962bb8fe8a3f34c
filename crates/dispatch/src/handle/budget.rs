//! The retry budget of a handle: what keeps retries from making an overload worse.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What was earned longer ago than this no longer counts: a handle that was busy this morning has no more retries now than
/// any other.
const WINDOW: Duration = Duration::from_secs(10);

/// Counters of calls, by thread, so that callers on different threads do not wait for each other's cache line.
const STRIPES: usize = 4;

static NEXT_STRIPE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static STRIPE: usize = NEXT_STRIPE.fetch_add(1, Ordering::Relaxed) % STRIPES;
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Stripe(AtomicU64);

/// See the module. Shared by the clones of a handle.
///
/// Rule: a handle's retries are at most so many percent of its calls, and so many a second on top. Without it, every caller of
/// an overloaded service sends its call a dozen times, which is what keeps the service overloaded.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    calls: [Stripe; STRIPES],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that were counted when `at` was.
    calls: u64,
    /// Retries that calls have earned.
    earned: f64,
    /// Retries that time has.
    spare: f64,
    at: Option<Instant>,
}

impl RetryBudget {
    /// A call is made. This is on the path of every call: one addition that other threads rarely touch.
    pub(super) fn count_call(&self) {
        let at = STRIPE.try_with(|stripe| *stripe).unwrap_or(0);
        self.calls[at].0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry, where there is one.
    pub(super) fn withdraw(&self, percent: u32, per_second: u32) -> bool {
        let calls = self.counted();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.withdraw(Instant::now(), calls, percent, per_second)
    }

    fn counted(&self) -> u64 {
        let counted = |stripe: &Stripe| stripe.0.load(Ordering::Relaxed);
        self.calls.iter().map(counted).sum()
    }
}

impl State {
    fn withdraw(&mut self, now: Instant, calls: u64, percent: u32, per_second: u32) -> bool {
        let (percent, per_second) = (f64::from(percent) / 100.0, f64::from(per_second));
        let fresh = calls.saturating_sub(self.calls) as f64 * percent;
        match self.at {
            None => {
                self.earned = fresh;
                self.spare = per_second;
            }
            Some(at) => {
                let elapsed = now.saturating_duration_since(at).as_secs_f64();
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
        self.calls = calls;
        self.at = Some(now);
        for tokens in [&mut self.spare, &mut self.earned] {
            if *tokens >= 1.0 {
                *tokens -= 1.0;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn withdrawn(state: &mut State, now: Instant, calls: u64) -> usize {
        (0..10_000)
            .take_while(|_| state.withdraw(now, calls, 20, 10))
            .count()
    }

    #[test]
    fn retries_are_a_fifth_of_the_calls_and_ten_a_second_on_top() {
        let start = Instant::now();
        let mut state = State::default();
        assert_eq!(withdrawn(&mut state, start, 1_000), 210);
        assert_eq!(withdrawn(&mut state, start, 1_000), 0);
        let later = start + Duration::from_millis(500);
        assert_eq!(withdrawn(&mut state, later, 1_100), 25);
    }

    #[test]
    fn what_was_earned_long_ago_does_not_count_any_more() {
        let start = Instant::now();
        let mut state = State::default();
        assert!(state.withdraw(start, 100_000, 20, 10));
        let next_day = start + Duration::from_secs(24 * 3600);
        assert_eq!(withdrawn(&mut state, next_day, 100_000), 10);
        // A day's calls count as those of ten seconds.
        let mut state = State::default();
        assert!(state.withdraw(start, 0, 20, 10));
        assert_eq!(withdrawn(&mut state, next_day, 8_640_000), 210);
    }

    #[test]
    fn without_a_budget_there_are_no_retries() {
        let mut state = State::default();
        assert!(!state.withdraw(Instant::now(), 1_000, 0, 0));
    }

    #[test]
    fn calls_of_all_threads_count() {
        let budget = RetryBudget::default();
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| (0..100).for_each(|_| budget.count_call()));
            }
        });
        assert_eq!(budget.counted(), 800);
        assert!(budget.withdraw(20, 0));
    }
}
