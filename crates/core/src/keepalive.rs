//! When a data link that says nothing is asked whether anybody is there, and when its peer is suspended: calls to it fail at
//! once until a byte is heard. It is local, and changes no placement.

use crate::rules::{Rule, RuleSet};
use crate::time::Instant;
use std::time::Duration;

/// Rule: a link with replies outstanding and no byte for this long is pinged. Also how often it is looked at.
pub const PING_AFTER: Duration = Duration::from_millis(250);
/// Rule: after this long its peer is suspended.
pub const SUSPEND_AFTER: Duration = Duration::from_secs(1);

/// What a look at a link came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepaliveAction {
    /// Something was heard of late: the peer is not suspended.
    Heard,
    /// Nothing was heard, and nobody waits, or not for long yet.
    Idle,
    /// Somebody waits: the peer is to be pinged,
    Ping,
    /// or is suspended, and to be pinged all the same: its answer ends that.
    Suspend,
    /// It is this process that did not run: what arrived meanwhile is to be read before the peer is checked, who counts as
    /// heard now.
    ProcessPaused,
}

/// When one link is pinged and its peer suspended.
///
/// It sends nothing itself: whoever drives it calls [`look`](Keepalive::look) every [`PING_AFTER`] for as long as the link is
/// open, and does what that says. Dropped with the link, it leaves nothing behind; a new link has a new one.
#[derive(Clone, Debug)]
pub struct Keepalive {
    rules: RuleSet,
    looked_at: Instant,
    /// Since when somebody waits, as far as looks can tell.
    waits_since: Option<Instant>,
    pinged_at: Option<Instant>,
}

impl Keepalive {
    /// For a link that was opened now.
    pub fn new(now: Instant) -> Self {
        Keepalive {
            rules: RuleSet::default(),
            looked_at: now,
            waits_since: None,
            pinged_at: None,
        }
    }

    /// The same with rules switched off.
    #[cfg(any(test, feature = "fault-switches"))]
    pub fn with_rules(self, rules: RuleSet) -> Self {
        Keepalive { rules, ..self }
    }

    /// To be called every [`PING_AFTER`]. `heard_at` is when the last byte arrived, `waits` says whether replies are
    /// outstanding.
    pub fn look(&mut self, now: Instant, heard_at: Instant, waits: bool) -> KeepaliveAction {
        let slept = now.since(self.looked_at) >= 2 * PING_AFTER;
        self.looked_at = now;
        // Rule: whoever stood still itself has not listened. Without it all peers are suspended at once after a pause.
        if slept && self.rules.holds(Rule::OwnPauses) {
            return KeepaliveAction::ProcessPaused;
        }
        self.pinged_at = self.pinged_at.filter(|at| heard_at <= *at);
        if !waits && self.pinged_at.is_none() {
            self.waits_since = None;
        } else if self.waits_since.is_none() {
            self.waits_since = Some(now);
        }
        if now.since(heard_at) < PING_AFTER {
            return KeepaliveAction::Heard;
        }
        let Some(waits_since) = self.waits_since else {
            return KeepaliveAction::Idle;
        };
        // Nobody had asked it anything before that.
        let silent = now.since(heard_at.max(waits_since));
        if silent < PING_AFTER {
            return KeepaliveAction::Idle;
        }
        self.pinged_at.get_or_insert(now);
        if silent < SUSPEND_AFTER {
            KeepaliveAction::Ping
        } else {
            KeepaliveAction::Suspend
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    /// Looks every 250 ms at a link where somebody waits and nothing is heard after `heard_at`.
    fn looks(watch: &mut Keepalive, heard_at: Instant, times: &[u64]) -> Vec<KeepaliveAction> {
        let look = |millis: &u64| watch.look(at(*millis), heard_at, true);
        times.iter().map(look).collect()
    }

    #[test]
    fn a_silent_peer_is_pinged_and_then_suspended() {
        use KeepaliveAction::*;
        let mut watch = Keepalive::new(at(0));
        let found = looks(&mut watch, at(100), &[250, 500, 750, 1_000, 1_250]);
        assert_eq!(found, [Heard, Ping, Ping, Ping, Suspend]);
        assert_eq!(watch.look(at(1_500), at(1_400), true), Heard);
    }

    #[test]
    fn silence_before_anybody_asked_is_no_reason() {
        use KeepaliveAction::*;
        let mut watch = Keepalive::new(at(0));
        for millis in (250..=5_000).step_by(250) {
            watch.look(at(millis), at(0), false);
        }
        let found = looks(&mut watch, at(0), &[5_250, 5_500, 5_750, 6_000, 6_250]);
        assert_eq!(found, [Idle, Ping, Ping, Ping, Suspend]);
    }

    #[test]
    fn without_anybody_who_waits_silence_is_nothing() {
        let mut watch = Keepalive::new(at(0));
        for millis in (250..5_000).step_by(250) {
            let found = watch.look(at(millis), at(0), false);
            assert!(
                matches!(found, KeepaliveAction::Heard | KeepaliveAction::Idle),
                "{found:?}"
            );
        }
    }

    #[test]
    fn who_was_pinged_is_waited_for() {
        let mut watch = Keepalive::new(at(0));
        assert_eq!(watch.look(at(250), at(0), true), KeepaliveAction::Idle);
        assert_eq!(watch.look(at(500), at(0), true), KeepaliveAction::Ping);
        // The caller has given up, the ping was not answered.
        assert_eq!(watch.look(at(750), at(0), false), KeepaliveAction::Ping);
        assert_eq!(
            watch.look(at(1_250), at(0), false),
            KeepaliveAction::ProcessPaused
        );
        assert_eq!(
            watch.look(at(1_500), at(0), false),
            KeepaliveAction::Suspend
        );
    }

    #[test]
    fn a_process_that_stood_still_suspends_nobody_for_it() {
        let mut watch = Keepalive::new(at(0));
        assert_eq!(
            watch.look(at(4_000), at(0), true),
            KeepaliveAction::ProcessPaused
        );
        let rules = RuleSet::without(&[Rule::OwnPauses]);
        let mut watch = Keepalive::new(at(0)).with_rules(rules);
        assert_eq!(watch.look(at(250), at(100), true), KeepaliveAction::Heard);
        assert_eq!(
            watch.look(at(4_000), at(100), true),
            KeepaliveAction::Suspend
        );
    }
}
