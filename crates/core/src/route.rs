//! Which owner of a key a call goes to next: a pure function of the owners, in their order of preference, and of what its
//! caller knows of them.
//!
//! With [`Routing::Owner`] it is the first owner, whatever its load. With [`Routing::Bounded`] the first owner is asked, too,
//! and refuses where so many wait for it already; then the next owner is asked. An instance knows its own queue exactly, and
//! for nothing, where a caller among a hundred sees a hundredth of the load: so the bound is the owner's. A refusal comes
//! before anything runs and costs a round trip instead of a place in a long queue.
//!
//! | rule | what goes wrong without it |
//! |---|---|
//! | who owns a key never depends on load: the walk along the order of preference is the widening | each call would change the owners, and every change of load move keys |
//! | at most [`MAX_REFUSALS`] refusals a call, each inside the retry budget; then the least loaded that was told takes it in any case | under load beyond all of them, messages would multiply with the owners |
//! | a hint counts for [`HINT_LASTS`] alone | what was told a second ago is of another queue: all callers would flee from whoever was busy once |
//! | a key whose owners leave more than half of its calls unplaced has twice as many ([`HotKeys`]) | the last of a few owners would take all that the others refuse, without a bound |
//! | a key whose owners told that twice as many wait as they take has twice as many owners at once ([`is_crowded`]) | until its owners double, the calls that nobody may refuse pile up: in a second, for a second |
//! | a young instance refuses earlier ([`limit_at`]); its weight stays | a cold process takes its full share at once; a ramp of weights would move keys again and again |
//! | whoever cannot be reached counts as having refused, and nobody is left out for the errors of its handlers | these are the user's, and true of its key wherever it is asked |
//!
//! Nothing of this is replicated. It is for services whose instances answer a call alike, if not equally fast: caches, models,
//! converters. State that lives in its owner alone needs `Owner`.

use std::num::NonZeroU8;
use std::time::Duration;

use smallvec::SmallVec;

use crate::time::Instant;

mod budget;
mod hint;
mod hot;
mod latency;
mod routing;

pub use budget::RetryBudget;
pub use hint::{HINT_LASTS, Hint};
pub use hot::HotKeys;
pub use latency::Latencies;
pub use routing::{MAX_OWNERS, Routing};

#[cfg(test)]
mod tests;

/// Refusals after which a call is taken in any case: each costs a round trip, and of those that pass two full owners by, few
/// find room at the next.
pub const MAX_REFUSALS: u8 = 2;

/// How long a hint counts for a call that nobody may refuse.
const LAST_TOLD: Duration = Duration::from_secs(1);

/// For how long an instance is young.
pub const SLOW_START: Duration = Duration::from_secs(10);

/// What a caller may do with one owner of a key, for one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnerStanding {
    /// It was not asked yet.
    #[default]
    Open,
    /// It refused this call.
    Refused,
    /// It cannot be reached, is suspended, or failed this call otherwise.
    Out,
}

/// One owner of a key, as its caller knows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnerCandidate {
    /// What it told of its queue.
    pub hint: Hint,
    /// What may be done with it.
    pub standing: OwnerStanding,
    /// It is in the caller's zone, and comes before those that are not: false for all where the caller does not care. A hot key
    /// goes wherever there is room.
    pub near: bool,
}

/// The call that is to be sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    /// How often it was refused.
    pub refusals: u8,
    /// After how many refusals it is taken in any case: [`MAX_REFUSALS`] where another one is inside the retry budget, else zero.
    pub most_refusals: u8,
    /// The time.
    pub now: Instant,
    /// Anything: spreads the calls for a hot key over its owners.
    pub draw: u64,
}

/// Whom a call goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The place among the candidates.
    pub at: usize,
    /// The depth at which it may refuse: none where it is to take it in any case.
    pub refuse_at: Option<NonZeroU8>,
}

/// Whom a call goes to next, of the owners of its key in their order of preference: none only where there are none.
///
/// The candidates are the first [`Routing::owners`], or as many as [`HotKeys::owners`] says, which is how a hot key is told
/// from others; more than [`MAX_OWNERS`] are not looked at. Where nothing is known of anybody, it is the first.
pub fn next(routing: Routing, candidates: &[OwnerCandidate], ask: Ask) -> Option<Choice> {
    let candidates = &candidates[..candidates.len().min(MAX_OWNERS)];
    let forced = |at| Choice {
        at,
        refuse_at: None,
    };
    let Routing::Bounded { depth, stay, .. } = routing else {
        return (!candidates.is_empty()).then(|| forced(0));
    };
    let order = in_order(candidates, routing.owners(), ask.draw);
    let with = |standing: OwnerStanding| {
        let order = order.iter().copied();
        order.filter(move |at| candidates[*at].standing == standing)
    };
    let open: OwnerPlaces = with(OwnerStanding::Open).collect();
    let told = |at: usize| candidates[at].hint.depth_at(ask.now);
    let is_alone = open.len() + with(OwnerStanding::Refused).count() < 2;
    if !open.is_empty() && !is_alone && ask.refusals < ask.most_refusals {
        return Some(Choice {
            at: passing_by(&open, told, stay),
            refuse_at: Some(NonZeroU8::new(depth).unwrap_or(NonZeroU8::MIN)),
        });
    }
    let last = open.iter().copied().chain(with(OwnerStanding::Refused));
    if ask.refusals > 0 || is_alone {
        let least = last.min_by_key(|at| told(*at).unwrap_or(0));
        return least.or(order.first().copied()).map(forced);
    }
    // Rule: without a budget for refusals, what was told is all there is, and it counts for longer: the first owner is left
    // where it was full. Otherwise the calls that nobody may refuse would pile up at whoever is asked for most.
    let told = |at: usize| candidates[at].hint.depth_within(ask.now, LAST_TOLD);
    let has_room = |at: &usize| told(*at).is_none_or(|told| told < depth.max(1));
    let first = open.iter().copied().find(has_room);
    let least = || last.min_by_key(|at| told(*at).unwrap_or(0));
    first.or_else(least).map(forced)
}

/// Whether far more calls wait for the first so many owners of a key than these take, and there is room beyond them: two of the
/// first ones told so of late, twice the depth or more, and none of them otherwise; and one of the next ones told of less than
/// the depth within the last second.
///
/// An owner takes more than its depth only where nobody may refuse a call any more, so its queue tells in one word of what
/// became of the calls of all callers.
///
/// Rule: where nobody is known to have room, a key has no more owners for that. It would be cold at each of them, and all would
/// be slower for it: instances whose caches are cold at first would never get warm.
pub fn is_crowded(
    routing: Routing,
    candidates: &[OwnerCandidate],
    owners: usize,
    now: Instant,
) -> bool {
    let Routing::Bounded { depth, .. } = routing else {
        return false;
    };
    let depth = depth.max(1);
    let candidates = &candidates[..candidates.len().min(MAX_OWNERS)];
    let (first, beyond) = candidates.split_at(owners.min(candidates.len()));
    let (mut told, mut crowded) = (0, 0);
    let reached = first
        .iter()
        .filter(|one| one.standing != OwnerStanding::Out);
    for waiting in reached.filter_map(|one| one.hint.depth_at(now)) {
        told += 1;
        crowded += usize::from(waiting >= depth.saturating_mul(2));
    }
    let has_room = |one: &OwnerCandidate| {
        let told = one.hint.depth_within(now, LAST_TOLD);
        one.standing == OwnerStanding::Open && told.is_some_and(|told| told < depth)
    };
    told >= 2 && crowded == told && beyond.iter().any(has_room)
}

type OwnerPlaces = SmallVec<[usize; MAX_OWNERS]>;

/// Who is asked beside those that have the call already, where they take longer than most: the first that may be asked and is
/// not said to be full; none where there is nobody else.
pub fn hedge(routing: Routing, candidates: &[OwnerCandidate], now: Instant) -> Option<usize> {
    let candidates = &candidates[..candidates.len().min(MAX_OWNERS)];
    let depth = match routing {
        Routing::Owner => u8::MAX,
        Routing::Bounded { depth, .. } => depth.max(1),
    };
    let order = in_order(candidates, candidates.len(), 0);
    let mut open = order
        .into_iter()
        .filter(|at| candidates[*at].standing == OwnerStanding::Open);
    // Rule: a hedge is never one call more for whoever has too many.
    open.find(|at| {
        let told = candidates[*at].hint.depth_at(now);
        told.is_none_or(|told| told < depth)
    })
}

/// The candidates by preference: of the first owners, those near first.
///
/// Rule: the calls for a hot key begin anywhere among its owners. In their order, the first ones would refuse nearly all of
/// them, and use up the budget of all other keys.
fn in_order(candidates: &[OwnerCandidate], owners: usize, draw: u64) -> OwnerPlaces {
    let mut order: OwnerPlaces = (0..candidates.len()).collect();
    if candidates.len() > owners {
        order.rotate_left((draw % candidates.len() as u64) as usize);
    } else {
        order.sort_by_key(|at| !candidates[*at].near);
    }
    order
}

/// The first, or one of the next where those before it told queues so much longer.
fn passing_by(open: &[usize], told: impl Fn(usize) -> Option<u8>, stay: Option<u8>) -> usize {
    let mut at = 0;
    if let Some(stay) = stay {
        while at + 1 < open.len()
            && let Some(ours) = told(open[at])
            && ours > told(open[at + 1]).unwrap_or(0).saturating_add(stay)
        {
            at += 1;
        }
    }
    open[at]
}

/// The depth at which an instance refuses calls that name `depth`: from its first moment on a share of it that grows with its
/// age, and all of it once it is [`SLOW_START`] old.
pub fn limit_at(depth: NonZeroU8, age: Duration) -> usize {
    let depth = usize::from(depth.get());
    if age >= SLOW_START {
        return depth;
    }
    let share = depth as u128 * age.as_micros() / SLOW_START.as_micros();
    // What takes nothing at all would never get warm.
    usize::try_from(share).unwrap_or(depth).max(1)
}
