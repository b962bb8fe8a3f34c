//! Who is accused of being down, by whom, and who was wrong about whom: what the rule *two accusers* is checked by.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::Incarnation;

use super::identity::Identity;
use crate::id::{NodeId, NodeName};
use crate::time::Instant;

/// How long whoever accused a node that answers is not heeded about it, the first time; each further one doubles it.
const MIN_BLAME: Duration = Duration::from_secs(2);

/// The longest that an accuser is not heeded.
const MAX_BLAME: Duration = Duration::from_secs(60);

/// Most pairs of accuser and accused that are remembered.
const MAX_BLAMED: usize = 4_096;

/// See the module.
#[derive(Default)]
pub(super) struct Accusations {
    pub(super) cases: BTreeMap<NodeId, Accusation>,
    blamed: BTreeMap<(NodeName, NodeName), Blame>,
}

/// A node that others take for dead, and that is up here.
pub(super) struct Accusation {
    pub(super) accusers: BTreeMap<NodeName, Instant>,
    /// What it was when it was accused.
    pub(super) as_of: (u32, Incarnation),
    /// It was asked over its link; otherwise it was suspected, which it can refute.
    pub(super) asked: bool,
    /// When it is checked.
    pub(super) due: Instant,
}

/// Somebody who was wrong about a node.
#[derive(Clone, Copy)]
struct Blame {
    until: Instant,
    times: u32,
}

impl Accusations {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.cases.values().map(|case| case.due).min()
    }

    /// What should have been heard by now may still wait to be read.
    pub(super) fn postpone(&mut self, now: Instant, later: Instant) {
        for case in self.cases.values_mut().filter(|case| case.due <= now) {
            case.due = later;
        }
    }

    /// Nothing that was said of that life before counts.
    pub(super) fn drop_case(&mut self, node: &NodeId) {
        self.cases.remove(node);
    }

    /// True where that life is accused, and has not answered yet.
    pub(super) fn has_case(&self, node: &NodeId) -> bool {
        self.cases.contains_key(node)
    }

    /// Somebody says that a node lives, as that.
    pub(super) fn refuted(&mut self, identity: &Identity, incarnation: Incarnation) {
        let later = |case: &Accusation| case.as_of < (identity.rejoins, incarnation);
        if self.cases.get(&identity.node).is_some_and(later) {
            self.cases.remove(&identity.node);
        }
    }

    pub(super) fn is_blamed(&self, now: Instant, accuser: &NodeName, accused: &NodeName) -> bool {
        let pair = (accuser.clone(), accused.clone());
        self.blamed
            .get(&pair)
            .is_some_and(|blame| now < blame.until)
    }

    pub(super) fn blame(&mut self, now: Instant, accuser: NodeName, accused: &NodeName) {
        if self.blamed.len() >= MAX_BLAMED {
            let soonest = self.blamed.iter().min_by_key(|(_, blame)| blame.until);
            if let Some(pair) = soonest.map(|(pair, _)| pair.clone()) {
                self.blamed.remove(&pair);
            }
        }
        let pair = (accuser, accused.clone());
        let blame = self.blamed.entry(pair.clone()).or_insert(Blame {
            until: now,
            times: 0,
        });
        let interval = MIN_BLAME
            .saturating_mul(1 << blame.times.min(16))
            .min(MAX_BLAME);
        blame.times = blame.times.saturating_add(1);
        blame.until = now + interval;
        if blame.times.is_power_of_two() {
            let (peer, times) = (&pair.0, blame.times);
            tracing::warn!(%peer, node = %accused, times, "says that a node is down which answers");
        }
    }

    /// Forgets those who have not been wrong for long.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.blamed
            .retain(|_, blame| now.since(blame.until) < MAX_BLAME);
    }
}
