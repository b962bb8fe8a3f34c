//! What peers say of the versions of another owner, and who of them was wrong; see [`agreement`](super::agreement).

use std::collections::BTreeMap;
use std::time::Duration;

use super::incoming::Incoming;
use crate::id::{NodeId, NodeName};
use crate::time::Instant;

/// Most peers of whom it is remembered what they say of one owner.
const MAX_TELLERS: usize = 8;

/// How long whoever said more than the owner has is not heeded about it, the first time; each further one doubles it.
const MIN_DENIAL: Duration = Duration::from_secs(1);

/// The longest that a peer is not heeded.
const MAX_DENIAL: Duration = Duration::from_secs(60);

/// What peers say of one owner.
#[derive(Debug, Default)]
pub(super) struct Relayed {
    /// Without a link to the owner: the last version and content that each has told.
    pub(super) told: BTreeMap<NodeName, (u64, u64)>,
    /// The version that enough of them have reached.
    pub(super) agreed: Option<u64>,
    /// A copy that only one has, until another one has it, too.
    pub(super) pending: Option<(NodeId, Box<Incoming>)>,
    /// With a link to the owner: who says that it has more, and whether the owner was asked since.
    pub(super) hints: BTreeMap<NodeName, (u64, bool)>,
    /// Who was wrong: until when it is not heeded, and how often it was.
    pub(super) denied: BTreeMap<NodeName, (Instant, u32)>,
}

impl Relayed {
    pub(super) fn tell(&mut self, from: &NodeName, row: (u64, u64), needed: usize) {
        if self.told.len() >= MAX_TELLERS && !self.told.contains_key(from) {
            let least = self.told.iter().min_by_key(|(_, row)| **row);
            if let Some(teller) = least.map(|(teller, _)| teller.clone()) {
                self.told.remove(&teller);
            }
        }
        self.told.insert(from.clone(), row);
        let mut versions: Vec<u64> = self.told.values().map(|(version, _)| *version).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        self.agreed = versions.get(needed.saturating_sub(1)).copied();
    }

    /// How many have told just that.
    pub(super) fn count(&self, row: (u64, u64)) -> usize {
        self.told.values().filter(|told| **told == row).count()
    }

    pub(super) fn hint(&mut self, now: Instant, from: &NodeName, version: u64) {
        let denied = self.denied.get(from);
        if denied.is_some_and(|(until, _)| now < *until) {
            return;
        }
        if self.hints.len() < MAX_TELLERS || self.hints.contains_key(from) {
            let known = self.hints.get(from);
            let asked = known.is_some_and(|(said, asked)| *asked && *said >= version);
            self.hints.insert(from.clone(), (version, asked));
        }
    }

    /// The most that anybody who is heeded says the owner has.
    pub(super) fn highest_hint(&self) -> Option<u64> {
        self.hints.values().map(|(version, _)| *version).max()
    }

    /// Who says that the owner has more than `have`, if anybody.
    pub(super) fn has_hints(&mut self, have: Option<u64>) -> bool {
        self.hints.retain(|_, (version, _)| Some(*version) > have);
        !self.hints.is_empty()
    }

    /// The owner says that it is at this version, and nothing else is on its way.
    pub(super) fn contradict(&mut self, now: Instant, version: u64) {
        for (teller, (said, _)) in std::mem::take(&mut self.hints) {
            if said > version {
                self.deny(now, teller);
            }
        }
    }

    /// The owner is being asked: its answer follows all that was said of it until now.
    pub(super) fn mark_asked(&mut self) {
        for (_, asked) in self.hints.values_mut() {
            *asked = true;
        }
    }

    /// The owner answers that it is at this version. Whoever said more before it was asked was wrong.
    pub(super) fn contradict_asked(&mut self, now: Instant, version: u64) {
        let wrong = |said: &u64, asked: &bool| *asked && *said > version;
        let tellers: Vec<NodeName> = self
            .hints
            .extract_if(.., |_, (said, asked)| wrong(said, asked))
            .map(|(teller, _)| teller)
            .collect();
        for teller in tellers {
            self.deny(now, teller);
        }
    }

    fn deny(&mut self, now: Instant, teller: NodeName) {
        if self.denied.len() >= MAX_TELLERS && !self.denied.contains_key(&teller) {
            self.denied.pop_first();
        }
        let (until, times) = self.denied.entry(teller).or_insert((now, 0));
        let interval = MIN_DENIAL.saturating_mul(1 << (*times).min(16));
        *until = now + interval.min(MAX_DENIAL);
        *times = times.saturating_add(1);
    }

    /// There is a link to the owner: its own word follows.
    pub(super) fn forget_told(&mut self) {
        self.told.clear();
        self.agreed = None;
        self.pending = None;
    }
}
