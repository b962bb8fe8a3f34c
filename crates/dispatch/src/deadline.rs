//! The points in time that users' durations lead to.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than any process runs, and far from where the clocks of any platform end.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// That much from now; at most thirty years.
///
/// Rule: a duration that a user gives saturates. Added to a clock as it is, `Duration::MAX` panics, and a timer with it ended
/// its service.
pub(crate) fn after(duration: Duration) -> Instant {
    Instant::now() + duration.min(FAR)
}
