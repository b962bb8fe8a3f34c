//! One caller: what it knows of the instances, and whom it asks.

use keydispatch_core::Instant;
use keydispatch_core::route::{
    self, Ask, Choice, Hint, HotKeys, Latencies, MAX_OWNERS, OwnerCandidate, OwnerStanding,
    RetryBudget,
};
use smallvec::SmallVec;

use super::plan::Ours;

/// What became of the owners of one call, by their place in its order.
pub(super) type Standings = SmallVec<[OwnerStanding; 4]>;

#[derive(Debug)]
pub(super) struct Caller {
    pub(super) zone: usize,
    hints: Vec<Hint>,
    /// The last that each told, however long ago: for the policy that goes by that alone.
    pub(super) last_told: Vec<u8>,
    /// Messages on their way or waiting, by instance, and in all.
    pub(super) outstanding: (Vec<u32>, u32),
    hot: HotKeys,
    budget: RetryBudget,
    calls: u64,
    pub(super) latencies: Latencies,
}

impl Caller {
    pub(super) fn new(instances: usize, zone: usize) -> Self {
        Caller {
            zone,
            hints: vec![Hint::NONE; instances],
            last_told: vec![0; instances],
            outstanding: (vec![0; instances], 0),
            hot: HotKeys::default(),
            budget: RetryBudget::default(),
            calls: 0,
            latencies: Latencies::default(),
        }
    }

    /// An instance told its depth.
    pub(super) fn told(&mut self, instance: usize, depth: usize, now: Instant) {
        let depth = u8::try_from(depth).unwrap_or(u8::MAX);
        self.hints[instance] = Hint::told(depth, now);
        self.last_told[instance] = depth;
    }

    /// A call begins: how many owners it may go to.
    pub(super) fn begin(&mut self, ours: &Ours, key_hash: u64, now: Instant) -> usize {
        self.calls += 1;
        self.hot.owners(ours.routing, key_hash, now)
    }

    fn candidates(
        &self,
        ours: &Ours,
        owners: &[u16],
        standings: &Standings,
    ) -> SmallVec<[OwnerCandidate; 4]> {
        let candidate = |(at, instance): (usize, &u16)| OwnerCandidate {
            hint: self.hints[usize::from(*instance)],
            standing: standings.get(at).copied().unwrap_or_default(),
            near: ours.near && usize::from(*instance) % 2 == self.zone,
        };
        owners.iter().enumerate().map(candidate).collect()
    }

    /// Whom a call goes to next, of the first so many owners of its key: more where these are crowded.
    pub(super) fn next(
        &mut self,
        ours: &Ours,
        key_hash: u64,
        (owners, count): (&[u16], &mut u8),
        standings: &Standings,
        now: Instant,
        draw: u64,
    ) -> Option<Choice> {
        let refusals = standings.iter().filter(|s| **s == OwnerStanding::Refused);
        let refusals = refusals.count() as u8;
        let (percent, per_second) = ours.budget;
        let has = refusals < ours.refusals && self.budget.has(now, self.calls, percent, per_second);
        let ask = Ask {
            refusals,
            most_refusals: if has { ours.refusals } else { 0 },
            now,
            draw,
        };
        let first = |count: u8| &owners[..owners.len().min(usize::from(count))];
        let known = |count| self.candidates(ours, first(count), standings);
        let mut choice = route::next(ours.routing, &known(*count), ask)?;
        let few = first(*count).len();
        if choice.refuse_at.is_none()
            && few < MAX_OWNERS
            && route::is_crowded(ours.routing, &known(2 * few as u8), few, now)
        {
            *count = (*count).max(self.hot.crowded(ours.routing, key_hash, now) as u8);
            choice = route::next(
                ours.routing,
                &self.candidates(ours, first(*count), standings),
                ask,
            )?;
        }
        match choice.refuse_at {
            Some(_) if refusals == 0 => self.hot.asked(key_hash, now),
            None if refusals > 0 => self.hot.unplaced(key_hash, now),
            _ => {}
        }
        Some(choice)
    }

    /// A retry, if there is one.
    pub(super) fn withdraw(&mut self, ours: &Ours, now: Instant) -> bool {
        let (percent, per_second) = ours.budget;
        self.budget.withdraw(now, self.calls, percent, per_second)
    }

    /// Whom a hedge goes to.
    pub(super) fn hedge(
        &mut self,
        ours: &Ours,
        owners: &[u16],
        standings: &Standings,
        now: Instant,
    ) -> Option<usize> {
        let at = route::hedge(ours.routing, &self.candidates(ours, owners, standings), now)?;
        self.withdraw(ours, now).then_some(at)
    }
}
