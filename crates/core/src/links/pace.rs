//! How often what others say of a name may have this node dial, and how often a link that breaks may.
//!
//! Rule: for each name a few dials at once, and then one a second. A member that says of one name that it is here, and
//! there, and there, would otherwise have all the others knock wherever it likes, as fast as it talks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::NodeName;
use crate::limits::MAX_KNOWN_NODES;
use crate::time::Instant;

/// How long one dial counts.
const INTERVAL: Duration = Duration::from_secs(1);

/// Dials of one name at once: more than an honest node has lives in so many seconds.
const BURST: u32 = 8;

/// When each name's dials have all stopped counting.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<NodeName, Instant>);

impl Paces {
    /// When a dial of that name may be made that is wanted at that time; it counts from now on.
    pub(super) fn admit(&mut self, now: Instant, name: &NodeName, wanted: Instant) -> Instant {
        if self.0.len() >= MAX_KNOWN_NODES && !self.0.contains_key(name) {
            self.0.retain(|_, until| *until > now);
            if self.0.len() >= MAX_KNOWN_NODES {
                return wanted.max(now + INTERVAL * BURST);
            }
        }
        let until = self.0.entry(name.clone()).or_insert(now);
        let counted = (*until).max(now);
        *until = counted + INTERVAL;
        let ahead = counted.since(now);
        wanted.max(now + ahead.saturating_sub(INTERVAL * (BURST - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_dials_of_a_name_are_made_at_once_and_then_one_a_second() {
        let (mut paces, now) = (Paces::default(), Instant::from_micros(1_000));
        let (a, b) = (name("a"), name("b"));
        for _ in 0..BURST {
            assert_eq!(paces.admit(now, &a, now), now);
        }
        for more in 1..100 {
            assert_eq!(paces.admit(now, &a, now), now + INTERVAL * more);
        }
        assert_eq!(paces.admit(now, &b, now), now, "another name");
        let later = now + INTERVAL * 200;
        assert_eq!(paces.admit(later, &a, later), later, "it is over");
    }

    #[test]
    fn names_are_forgotten_where_there_are_many() {
        let (mut paces, now) = (Paces::default(), Instant::from_micros(1_000));
        for number in 0..2 * MAX_KNOWN_NODES {
            paces.admit(now, &name(&number.to_string()), now);
        }
        assert_eq!(paces.0.len(), MAX_KNOWN_NODES);
        let later = now + INTERVAL * 2;
        assert_eq!(paces.admit(later, &name("late"), later), later);
    }

    fn name(text: &str) -> NodeName {
        NodeName::try_new(text).unwrap_or_else(|error| panic!("{error}"))
    }
}
