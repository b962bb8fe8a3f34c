//! One instance: a queue, one call at a time, and a cache.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use keydispatch_core::Instant;

use super::plan::Cache;

/// One of the messages of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) call: u32,
    /// Its number among those of the call.
    pub(super) number: u8,
}

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) speed: f64,
    pub(super) queue: VecDeque<Sent>,
    pub(super) at_work: Option<Sent>,
    /// It is stopped until then.
    pub(super) paused_until: Instant,
    pub(super) born: Option<Instant>,
    pub(super) handled: u64,
    pub(super) busy: Duration,
    cache: Option<Warm>,
}

impl Instance {
    pub(super) fn new(speed: f64, cache: Option<Cache>) -> Self {
        Instance {
            speed,
            queue: VecDeque::new(),
            at_work: None,
            paused_until: Instant::ZERO,
            born: None,
            handled: 0,
            busy: Duration::ZERO,
            cache: cache.map(Warm::new),
        }
    }

    /// How many wait or are at work.
    pub(super) fn depth(&self) -> usize {
        self.queue.len() + usize::from(self.at_work.is_some())
    }

    /// How many times longer than at its best a call for a key takes now.
    pub(super) fn cost(&mut self, key: u32, now: Instant) -> f64 {
        let cold = self.cache.as_mut().map_or(1.0, |cache| cache.touch(key));
        // Rule of the plan: four times as long at first, and at its best after ten seconds.
        let young = self.born.map_or(1.0, |born| {
            let age = now.since(born).as_secs_f64() / 10.0;
            4.0 - 3.0 * age.min(1.0)
        });
        cold * young / self.speed
    }

    /// Calls for keys that were warm, and all, where there is a cache.
    pub(super) fn hits(&self) -> (u64, u64) {
        self.cache.as_ref().map_or((0, 0), |cache| cache.hits)
    }

    pub(super) fn forget_counts(&mut self) {
        (self.handled, self.busy) = (0, Duration::ZERO);
        if let Some(cache) = &mut self.cache {
            cache.hits = (0, 0);
        }
    }
}

/// The keys that were called last.
#[derive(Debug)]
struct Warm {
    terms: Cache,
    used: HashMap<u32, u64>,
    by_use: BTreeMap<u64, u32>,
    uses: u64,
    hits: (u64, u64),
}

impl Warm {
    fn new(terms: Cache) -> Self {
        Warm {
            terms,
            used: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            hits: (0, 0),
        }
    }

    /// What a call for it costs; from now on it is warm.
    fn touch(&mut self, key: u32) -> f64 {
        self.uses += 1;
        self.hits.1 += 1;
        let before = self.used.insert(key, self.uses);
        if let Some(before) = before {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, key);
        if self.used.len() > self.terms.keys
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.used.remove(&oldest);
        }
        match before {
            Some(_) => {
                self.hits.0 += 1;
                1.0
            }
            None => self.terms.cold,
        }
    }
}
