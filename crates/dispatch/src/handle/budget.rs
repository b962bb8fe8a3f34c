//! The retry budget of a handle: what keeps retries from making an overload worse.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use keydispatch_core::{Instant as Since, route};
use tokio::time::Instant;

use crate::mutex::Mutex;

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
#[derive(Debug)]
pub(super) struct RetryBudget {
    calls: [Stripe; STRIPES],
    made: Instant,
    state: Mutex<route::RetryBudget>,
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget {
            calls: Default::default(),
            made: Instant::now(),
            state: Mutex::default(),
        }
    }
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
        let mut state = self.state.lock();
        state.withdraw(self.now(), calls, percent, per_second)
    }

    /// Whether there is one.
    pub(super) fn has(&self, percent: u32, per_second: u32) -> bool {
        let calls = self.counted();
        let mut state = self.state.lock();
        state.has(self.now(), calls, percent, per_second)
    }

    fn now(&self) -> Since {
        Since::ZERO + self.made.elapsed()
    }

    fn counted(&self) -> u64 {
        let counted = |stripe: &Stripe| stripe.0.load(Ordering::Relaxed);
        self.calls.iter().map(counted).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
