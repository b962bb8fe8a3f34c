//! The points in time that users' durations lead to, and waiting for something until then.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than any process runs, and far from where the clocks of any platform end.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// First and longest pause between two looks at whether something is done.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// That much from now; at most thirty years.
///
/// Rule: a duration that a user gives saturates. Added to a clock as it is, `Duration::MAX` panics, and a timer with it ended
/// its service.
pub(crate) fn after(duration: Duration) -> Instant {
    Instant::now() + duration.min(FAR)
}

/// Looks again and again until it is done; false where time is up before.
pub(crate) async fn done_by(until: Instant, mut is_done: impl FnMut() -> bool) -> bool {
    let mut pause = LOOK_PAUSE.0;
    loop {
        if is_done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_PAUSE.1);
    }
}
