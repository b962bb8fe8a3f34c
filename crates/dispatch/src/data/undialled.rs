//! A member that is up and that this node cannot dial: said once, and again ever more rarely while it lasts.
//!
//! Others may reach such a member, and it may have dialled this node itself, so it is up and stays up. But no call gets
//! there: mostly its address is not one by which this host reaches it.

use std::time::Duration;

use keydispatch_core::message::Address;
use keydispatch_core::{Escaped, NodeId};
use tokio::time::Instant;

use crate::mutex::Mutex;

/// How long dials have to fail before it is said: a node that has died is down by then, and one that restarts is back.
const PATIENCE: Duration = Duration::from_secs(3);

/// First and longest pause between two warnings.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));

/// Since when the dials of one member have failed; it goes with the member.
#[derive(Debug, Default)]
pub(super) struct Undialled(Mutex<Option<Failing>>);

#[derive(Debug)]
struct Failing {
    since: Instant,
    /// When it may be said next, and how long after that again.
    next: Instant,
    pause: Duration,
}

impl Undialled {
    /// A dial failed.
    pub(super) fn failed(&self, node: &NodeId, address: &Address, why: &str) {
        let now = Instant::now();
        if let Some(since) = self.should_log(now) {
            let failing = now.duration_since(since);
            tracing::warn!(
                node = %node.name,
                %address,
                why = %Escaped(why),
                ?failing,
                "a node is up and cannot be dialled from here, so no call gets there: look at its node.advertise, and at what is between"
            );
        }
    }

    /// A dial succeeded.
    pub(super) fn over(&self) {
        *self.0.lock() = None;
    }

    /// Since when dials have failed, where that is to be said now.
    fn should_log(&self, now: Instant) -> Option<Instant> {
        let mut failing = self.0.lock();
        let failing = failing.get_or_insert(Failing {
            since: now,
            next: now + PATIENCE,
            pause: PAUSE.0,
        });
        (now >= failing.next).then(|| {
            failing.next = now + failing.pause;
            failing.pause = (failing.pause * 2).min(PAUSE.1);
            failing.since
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_cannot_be_dialled_is_news_after_a_while_and_then_ever_more_rarely() {
        let undialled = Undialled::default();
        let start = Instant::now();
        let said = |from: u64, to: u64| {
            (from..to)
                .filter(|second| {
                    let now = start + Duration::from_secs(*second);
                    undialled.should_log(now).is_some()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(said(0, 400), [3, 63, 183]);
        // Once it was reached, it begins anew.
        undialled.over();
        assert_eq!(said(400, 470), [403, 463]);
        assert_eq!(said(470, 40_000).len(), 14);
    }
}
