//! Who is first for a slot, by what this node knows of the instances of a type: its view, and what instances said of
//! themselves since.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::message::Standing;
use crate::entry::ServiceInfo;
use crate::id::{NodeName, ServiceId};
use crate::key::Slot;
use crate::limits::MAX_INSTANCES_PER_TYPE;
use crate::placement::{Candidate, draw, name_hash, prefer, salt};
use crate::time::Instant;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranks {
    /// A slot here is so many of placement's, as a power of two.
    shift: u32,
    /// What the view lists, and what was said later than it.
    ranked: BTreeMap<ServiceId, RankedInstance>,
    /// Instances that the view has listed and does not any more: a late word of theirs brings none of them back.
    removed: BTreeSet<ServiceId>,
    hash: u64,
}

#[derive(Clone, Debug)]
struct RankedInstance {
    standing: Standing,
    hash: u64,
    /// In the view, or only said.
    listed: bool,
    /// When it was last said.
    said_at: Instant,
}

impl RankedInstance {
    fn new(standing: Standing, listed: bool, said_at: Instant) -> Self {
        let hash = name_hash(&standing.name);
        RankedInstance {
            standing,
            hash,
            listed,
            said_at,
        }
    }

    fn bid(&self, salt: u64) -> (Candidate, u64) {
        let candidate = Candidate {
            hash: self.hash,
            weight: self.standing.weight,
        };
        (candidate, draw(self.hash, salt))
    }
}

/// Less where `a` comes before `b`. Of two of one name the smaller node's comes first, as in a view.
fn order(salt: u64, a: &RankedInstance, b: &RankedInstance) -> Ordering {
    prefer(a.bid(salt), b.bid(salt)).then_with(|| a.standing.id.cmp(&b.standing.id))
}

impl Ranks {
    /// Of nobody yet.
    pub(crate) fn new(shift: u32) -> Self {
        Ranks {
            shift,
            ..Ranks::default()
        }
    }

    /// Whether `a` comes before `b` for that slot.
    pub(crate) fn outranks(&self, slot: u32, a: &Standing, b: &Standing) -> bool {
        let (a, b) = (
            RankedInstance::new(a.clone(), false, Instant::ZERO),
            RankedInstance::new(b.clone(), false, Instant::ZERO),
        );
        order(self.salt_of(slot), &a, &b).is_lt()
    }

    fn salt_of(&self, slot: u32) -> u64 {
        // A slot that there is not would be first for nobody's keys.
        Slot::new((slot as usize) << self.shift).map_or(0, salt)
    }

    /// The view as it is now.
    pub(crate) fn set_view(&mut self, services: &[Arc<ServiceInfo>]) {
        let mut before = std::mem::take(&mut self.ranked);
        for info in services {
            let later = before
                .remove(info.id())
                .filter(|known| known.standing.reference > info.reference());
            let ranked = match later {
                Some(known) => RankedInstance {
                    listed: true,
                    ..known
                },
                None => RankedInstance::new(Standing::of(info), true, Instant::ZERO),
            };
            self.removed.remove(info.id());
            self.ranked.insert(info.id().clone(), ranked);
        }
        for (id, known) in before {
            if known.listed {
                self.removed.insert(id);
            } else {
                self.ranked.insert(id, known);
            }
        }
        // The oldest go first: their words are the least likely to be still on their way.
        while self.removed.len() > MAX_INSTANCES_PER_TYPE {
            self.removed.pop_first();
        }
        self.rehash();
    }

    /// An instance said this of itself; true where it is news.
    pub(crate) fn hear(&mut self, standing: &Standing, now: Instant) -> bool {
        if self.removed.contains(&standing.id) {
            return false;
        }
        let known = self.ranked.get(&standing.id);
        if known.is_some_and(|known| known.standing.reference >= standing.reference)
            || (known.is_none() && self.ranked.len() >= 2 * MAX_INSTANCES_PER_TYPE)
        {
            return false;
        }
        let listed = known.is_some_and(|known| known.listed);
        let ranked = RankedInstance::new(standing.clone(), listed, now);
        self.ranked.insert(standing.id.clone(), ranked);
        self.rehash();
        true
    }

    /// What was said and is not in the view after all this time never will be: an instance that was taken out of the registry
    /// before this node had heard that it was in it. True where there was any.
    pub(crate) fn expire(&mut self, now: Instant, lives: Duration) -> bool {
        let before = self.ranked.len();
        self.ranked
            .retain(|_, ranked| ranked.listed || now.since(ranked.said_at) < lives);
        if self.ranked.len() < before {
            self.rehash();
        }
        self.ranked.len() < before
    }

    /// When the next of these is forgotten.
    pub(crate) fn next_expiry(&self, lives: Duration) -> Option<Instant> {
        let said = self.ranked.values().filter(|ranked| !ranked.listed);
        said.map(|ranked| ranked.said_at + lives).min()
    }

    /// That node is down: nothing of it counts until the view lists it again.
    pub(crate) fn forget(&mut self, node: &NodeName) {
        self.ranked.retain(|id, _| id.node != *node);
        self.removed.retain(|id| id.node != *node);
        self.rehash();
    }

    /// Hash over those that are online: who has the same one names the same firsts.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn rehash(&mut self) {
        let online = self.ranked.values().filter(|ranked| ranked.standing.online);
        let rows = online.map(|ranked| {
            let standing = &ranked.standing;
            (&standing.id, &standing.name, standing.weight)
        });
        let rows: Vec<_> = rows.collect();
        self.hash = postcard::to_allocvec(&rows).map_or(0, |bytes| xxh3_64(&bytes));
    }

    /// What is known of an instance that is newer than this.
    pub(crate) fn newer(&self, than: &Standing) -> Option<&Standing> {
        let known = self.ranked.get(&than.id).map(|ranked| &ranked.standing);
        known.filter(|known| known.reference > than.reference)
    }

    pub(crate) fn any_online(&self) -> bool {
        self.ranked.values().any(|ranked| ranked.standing.online)
    }

    /// The instance that should hold the slot.
    pub(crate) fn first(&self, slot: u32) -> Option<&Standing> {
        self.best(slot, |ranked| ranked.standing.online)
    }

    /// Who holds it, if its first but for `me` always did: those that are offline may hold what they have not given away.
    pub(crate) fn expected(&self, slot: u32, me: &ServiceId) -> Option<&Standing> {
        self.best(slot, |ranked| ranked.standing.id != *me)
    }

    fn best(&self, slot: u32, counts: impl Fn(&RankedInstance) -> bool) -> Option<&Standing> {
        let salt = self.salt_of(slot);
        let all = self.ranked.values().filter(|ranked| counts(ranked));
        let best = all.min_by(|a, b| order(salt, a, b));
        best.map(|ranked| &ranked.standing)
    }

    /// Whether it is first for the slot.
    pub(crate) fn is_first(&self, slot: u32, id: &ServiceId) -> bool {
        let Some(me) = self.ranked.get(id).filter(|me| me.standing.online) else {
            return false;
        };
        let salt = self.salt_of(slot);
        // Most slots are another's, and the first who is better says so.
        let mut others = self.ranked.values().filter(|other| other.standing.online);
        others.all(|other| other.standing.id == *id || order(salt, me, other).is_lt())
    }
}
