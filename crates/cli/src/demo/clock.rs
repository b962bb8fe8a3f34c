//! The clock that all processes of one machine share, and how long anything may take by it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long any one thing may take before the demonstration gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Microseconds of `CLOCK_MONOTONIC`: times that different processes read compare.
pub(crate) fn micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1_000
}

/// The milliseconds between two such times; none where the second is not later.
pub(crate) fn millis_between(earlier: u64, later: u64) -> f64 {
    Duration::from_micros(later.saturating_sub(earlier)).as_secs_f64() * 1_000.0
}
