//! Keys that are called more than their owners can take.

use std::time::Duration;

use super::routing::{MAX_OWNERS, Routing};
use crate::time::Instant;

/// Over how long calls are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// How long after a key has more owners it may have more again at once: until then its calls have found those it has got.
const SETTLES: Duration = Duration::from_millis(100);

/// Most calm windows after which the owners of a key that had to have more again are halved.
const MOST_PATIENT: u8 = 31;

/// Calls of a window that might be refused, below which it says nothing of a key.
const FEW_CALLS: u32 = 2;

/// Keys that are kept: each needs half its calls of a second refused, so these are many. Others take the place of whoever has
/// fewer refusals, or none of late.
const PLACES: usize = 512;

/// Places that a key may have.
const WAYS: usize = 4;

/// Which keys have more owners than the routing says: those of which more than half of the calls of the last second were left
/// unplaced, refused by everybody they were sent to while they might be refused; and those whose owners told that far more wait
/// for them than they take ([`is_crowded`](super::is_crowded)).
///
/// Rule: the owners of such a key double, second by second, up to [`MAX_OWNERS`]; where they are crowded, at once. Calls that
/// nobody may refuse pile up there, and a second of them waits for a second.
/// Rule: once less than a quarter of its calls are left unplaced, or nobody calls it any more, they are halved again. Between
/// the two it stays as it is, or a key would go back and forth each second.
/// Rule: a key whose owners were crowded again after they were halved waits for twice as many calm seconds until they are the next
/// time. Sixteen owners of which hardly one refuses say nothing of whether eight are enough.
#[derive(Clone, Debug)]
pub struct HotKeys {
    keys: Vec<HotKey>,
}

#[derive(Clone, Copy, Debug, Default)]
struct HotKey {
    /// The key's hash; a place is free where there are no refusals and no doublings.
    hash: u64,
    since: Instant,
    calls: u32,
    /// Those of them that might be refused.
    asked: u32,
    unplaced: u32,
    doublings: u8,
    /// When the owners were doubled last.
    doubled: Option<Instant>,
    /// Calm windows in a row, and how many of them are waited for until the owners are halved.
    calm: u8,
    patience: u8,
    halved: bool,
}

impl Default for HotKeys {
    fn default() -> Self {
        HotKeys {
            keys: vec![HotKey::default(); PLACES],
        }
    }
}

impl HotKeys {
    /// A call for a key is about to be made. Returns how many owners it may go to.
    pub fn owners(&mut self, routing: Routing, key_hash: u64, now: Instant) -> usize {
        let owners = routing.owners();
        let Some(key) = self.find(key_hash) else {
            return owners;
        };
        key.turn(now);
        key.calls = key.calls.saturating_add(1);
        let most = owners.max(MAX_OWNERS);
        (owners << key.doublings).min(most)
    }

    /// A call for a key is sent to the first that may refuse it. A call that nobody may refuse, for want of a budget, says
    /// nothing of its key.
    pub fn asked(&mut self, key_hash: u64, now: Instant) {
        if let Some(key) = self.find(key_hash) {
            key.turn(now);
            key.asked = key.asked.saturating_add(1);
        }
    }

    /// A call for a key was refused by all that might refuse it.
    pub fn unplaced(&mut self, key_hash: u64, now: Instant) {
        if let Some(key) = self.find(key_hash) {
            key.turn(now);
            key.unplaced = key.unplaced.saturating_add(1);
        } else {
            self.insert(key_hash, now);
        }
    }

    /// A call for a key found its owners crowded. Returns how many owners it may go to now.
    pub fn crowded(&mut self, routing: Routing, key_hash: u64, now: Instant) -> usize {
        if self.find(key_hash).is_none() {
            self.insert(key_hash, now);
        }
        let owners = routing.owners();
        let Some(key) = self.find(key_hash) else {
            return owners;
        };
        key.turn(now);
        let is_settled = key.doubled.is_none_or(|at| now.since(at) >= SETTLES);
        if is_settled && owners << key.doublings < MAX_OWNERS {
            key.double();
            key.doubled = Some(now);
            if std::mem::take(&mut key.halved) {
                key.patience = (key.patience * 2 + 1).min(MOST_PATIENT);
            }
            // What was counted is of fewer owners.
            (key.asked, key.unplaced, key.since) = (0, 0, now);
        }
        (owners << key.doublings).min(owners.max(MAX_OWNERS))
    }

    /// A key of which a call was left unplaced for the first time.
    fn insert(&mut self, key_hash: u64, now: Instant) {
        let ways = &mut self.keys[ways(key_hash)];
        for key in &mut *ways {
            key.turn(now);
        }
        // The coolest gives way.
        if let Some(key) = ways
            .iter_mut()
            .min_by_key(|key| (key.doublings, key.unplaced))
        {
            *key = HotKey {
                hash: key_hash,
                since: now,
                calls: 1,
                asked: 1,
                unplaced: 1,
                ..HotKey::default()
            };
        }
    }

    fn find(&mut self, key_hash: u64) -> Option<&mut HotKey> {
        self.keys[ways(key_hash)]
            .iter_mut()
            .find(|key| key.hash == key_hash && !key.is_free())
    }
}

fn ways(key_hash: u64) -> std::ops::Range<usize> {
    // Not the bits that the slot is made of, so that the keys of one instance do not meet here.
    let at = (key_hash as usize % (PLACES / WAYS)) * WAYS;
    at..at + WAYS
}

impl HotKey {
    fn is_free(&self) -> bool {
        self.unplaced == 0 && self.doublings == 0 && self.calls == 0 && self.patience == 0
    }

    fn double(&mut self) {
        // The owners are never more than sixteen: four doublings of one.
        self.doublings = (self.doublings + 1).min(4);
        self.calm = 0;
    }

    fn halve(&mut self, times: u8) {
        self.halved |= self.doublings > 0 && times > 0;
        self.doublings = self.doublings.saturating_sub(times);
        self.calm = 0;
    }

    /// Ends the window where its time is over.
    fn turn(&mut self, now: Instant) {
        let mut windows = now.since(self.since).as_micros() / WINDOW.as_micros();
        if windows == 0 {
            return;
        }
        if self.asked >= FEW_CALLS {
            if 2 * self.unplaced > self.asked {
                self.double();
            } else if 4 * self.unplaced >= self.asked {
                self.calm = 0;
            } else if self.calm < self.patience {
                self.calm += 1;
            } else {
                self.halve(1);
            }
        }
        windows -= u128::from(self.calls > 0);
        // Windows in which nobody called.
        let quiet = u8::try_from(windows).unwrap_or(u8::MAX);
        if quiet > 0 {
            self.halve(quiet);
            (self.halved, self.patience) = (false, 0);
        }
        (self.calls, self.asked, self.unplaced, self.since) = (0, 0, 0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(
        hot: &mut HotKeys,
        key: u64,
        at: u64,
        calls: u64,
        unplaced: impl Fn(u64) -> bool,
    ) -> usize {
        let mut owners = 0;
        for call in 0..calls {
            let now = Instant::from_micros(at * 1_000_000 + call * 1_000_000 / calls);
            owners = hot.owners(Routing::bounded(), key, now);
            hot.asked(key, now);
            if unplaced(call) {
                hot.unplaced(key, now);
            }
        }
        owners
    }

    #[test]
    fn the_owners_of_a_hot_key_double_up_to_sixteen_and_are_halved_again() {
        let mut hot = HotKeys::default();
        let found: Vec<usize> = (0..5)
            .map(|at| second(&mut hot, 7, at, 100, |call| call % 3 != 0))
            .collect();
        assert_eq!(found, [4, 8, 16, 16, 16]);
        // Between a quarter and a half it stays.
        assert_eq!(second(&mut hot, 7, 5, 100, |call| call % 3 == 0), 16);
        let cooled: Vec<usize> = (6..11)
            .map(|at| second(&mut hot, 7, at, 100, |_| false))
            .collect();
        assert_eq!(cooled[0], 16);
        assert_eq!(cooled[4], 4);
        // Another key is none of this one's business.
        assert_eq!(hot.owners(Routing::bounded(), 8, Instant::ZERO), 4);
    }

    #[test]
    fn a_key_that_nobody_calls_any_more_is_forgotten() {
        let mut hot = HotKeys::default();
        for at in 0..4 {
            second(&mut hot, 7, at, 100, |_| true);
        }
        assert_eq!(second(&mut hot, 7, 60, 1, |_| false), 4);
    }

    #[test]
    fn few_calls_say_nothing_of_a_key() {
        let mut hot = HotKeys::default();
        for at in 0..10 {
            assert_eq!(second(&mut hot, 7, at, 1, |_| true), 4);
        }
    }

    #[test]
    fn hot_keys_stay_while_a_thousand_others_are_refused_once() {
        let mut hot = HotKeys::default();
        for at in 0..2 {
            second(&mut hot, 7, at, 100, |_| true);
        }
        for other in 1_000..2_000 {
            hot.unplaced(other, Instant::from_micros(2_000_000));
        }
        assert_eq!(second(&mut hot, 7, 2, 1, |_| false), 16);
    }

    #[test]
    fn the_owners_of_a_key_double_at_once_where_they_are_crowded_and_then_have_a_moment() {
        let mut hot = HotKeys::default();
        let at = |millis: u64| Instant::from_micros(5_000_000 + millis * 1_000);
        let crowded = |hot: &mut HotKeys, millis| hot.crowded(Routing::bounded(), 7, at(millis));
        assert_eq!(crowded(&mut hot, 0), 8);
        assert_eq!(crowded(&mut hot, 99), 8);
        assert_eq!(crowded(&mut hot, 100), 16);
        assert_eq!(crowded(&mut hot, 300), 16);
        assert_eq!(hot.owners(Routing::bounded(), 7, at(301)), 16);
        assert_eq!(hot.owners(Routing::bounded(), 8, at(301)), 4);
    }

    #[test]
    fn a_key_that_needs_its_owners_again_keeps_them_longer_each_time() {
        let mut hot = HotKeys::default();
        // Eight owners are enough, and four are not.
        let mut halvings = Vec::new();
        for at in 0..60 {
            let now = Instant::from_micros(at * 1_000_000);
            if hot.owners(Routing::bounded(), 7, now) == 4 {
                halvings.push(at);
                assert_eq!(hot.crowded(Routing::bounded(), 7, now), 8);
            }
            second(&mut hot, 7, at, 100, |_| false);
        }
        let pauses: Vec<u64> = halvings.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses.is_sorted() && pauses[0] < pauses[3], "{pauses:?}");
        assert!(halvings.len() < 8, "{halvings:?}");
    }

    #[test]
    fn a_routing_of_many_owners_keeps_them() {
        let many = Routing::Bounded {
            owners: 16,
            depth: 1,
            stay: None,
        };
        assert_eq!(HotKeys::default().owners(many, 1, Instant::ZERO), 16);
    }
}
