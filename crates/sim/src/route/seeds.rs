//! One plan with several seeds: other keys at other times, of which the median and the worst are said.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use keydispatch_measure::median;
use serde::Serialize;

use super::plan::{Plan, Policy};
use super::world::{Outcome, run};

/// What came of one plan and policy, by seed.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Outcomes(Vec<Outcome>);

impl Outcomes {
    /// A figure of each.
    pub(super) fn of(&self, value: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.0.iter().map(value).collect()
    }

    pub(super) fn median(&self, value: impl Fn(&Outcome) -> f64) -> f64 {
        median(&self.of(value))
    }

    pub(super) fn least(&self, value: impl Fn(&Outcome) -> f64) -> f64 {
        self.of(value).into_iter().fold(f64::INFINITY, f64::min)
    }

    pub(super) fn most(&self, value: impl Fn(&Outcome) -> f64) -> f64 {
        self.of(value).into_iter().fold(0.0, f64::max)
    }
}

/// Runs plans with each of the seeds instead of their own, on as many threads as there are processors. The order in which they
/// end is of no consequence.
pub(super) fn run_all(runs: &[(&Plan, &Policy)], seeds: &Range<u64>) -> Vec<Outcomes> {
    let of_each = seeds.clone().count();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((plan, policy)) = runs.get(at / of_each.max(1)) else {
                return done;
            };
            let plan = Plan {
                seed: seeds.start + (at % of_each) as u64,
                ..(*plan).clone()
            };
            done.push((at, run(&plan, policy)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, Outcome)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    done.sort_by_key(|(at, _)| *at);
    let mut outcomes = done.into_iter().map(|(_, outcome)| outcome);
    runs.iter()
        .map(|_| Outcomes(outcomes.by_ref().take(of_each).collect()))
        .collect()
}
