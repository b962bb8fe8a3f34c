//! Which life of a name counts: what the name's own node has said, what others say of it, and what cannot be.
//!
//! Rule: *own word*. A later life of a name, or a later return of a life, is believed of the node itself: of a Hello whose
//! credentials allow the name, and of the source of a packet on that peer's own link. What others say is a hint: the
//! node is asked, at a bounded rate. Where it cannot be asked, two who say the same do, or one where there is no other.
//! Without it one packet about a life that nobody has ever led shuts a node out for as long as the dead are remembered.
//!
//! Rule: *plausible generations*. A generation counts microseconds since the Unix epoch. A node takes none that is more than
//! [`MAX_SKEW`] ahead of its own clock, whatever it is told of earlier lives; and one that is more than twice that ahead is
//! refused, whoever says it, and logged once for each source: once for what a node may take, once for clocks that differ.
//! Two members of different names that have taken later ones are believed that it is later: it is this node whose clock is
//! behind. They may have been made to go ahead, so that it sets its clock by that much less, and no chain of nodes goes ahead
//! of each other without end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::identity::Identity;
use crate::id::{Generation, NodeId, NodeName};
use crate::limits::MAX_KNOWN_NODES;
use crate::time::Instant;

/// How far the clocks of the nodes of a cluster may differ, and how far ahead of its clock a node takes a generation.
pub(crate) const MAX_SKEW: Duration = Duration::from_secs(24 * 3600);

/// Most peers of whom it is remembered what they say of one name.
const MAX_TELLERS: usize = 4;

/// Most names of which it is remembered what others say.
const MAX_CLAIMED: usize = 1_024;

/// What a name's own node has said of itself.
#[derive(Clone, Copy, Debug)]
struct OwnClaim {
    generation: Generation,
    rejoins: u32,
    at: Instant,
}

/// What peers say of one name.
#[derive(Debug, Default)]
struct Claims {
    tellers: BTreeMap<NodeName, (Generation, u32, Instant)>,
    asked_at: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Generations {
    /// What time it was by this node's clock, or by what others agree on, in microseconds since the Unix epoch, and when.
    clock: (u64, Instant),
    words: BTreeMap<NodeName, OwnClaim>,
    claims: BTreeMap<NodeName, Claims>,
    /// Who has taken a later generation than this node would now, the highest few.
    ahead: BTreeMap<NodeName, u64>,
    /// This node has been a member.
    joined: bool,
    /// What peers say that this node's own name has had.
    own: BTreeMap<NodeName, u64>,
    /// Who was complained about, and how often it gave reason to.
    complaints: BTreeMap<NodeName, u64>,
}

impl Generations {
    pub(super) fn new(clock_micros: u64, now: Instant) -> Self {
        Generations {
            clock: (clock_micros, now),
            words: BTreeMap::new(),
            claims: BTreeMap::new(),
            ahead: BTreeMap::new(),
            joined: false,
            own: BTreeMap::new(),
            complaints: BTreeMap::new(),
        }
    }

    /// What time it is, and so much later.
    fn clock_and(&self, now: Instant, ahead: Duration) -> u64 {
        let (clock, at) = self.clock;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        clock
            .saturating_add(micros(now.since(at)))
            .saturating_add(micros(ahead))
    }

    /// False where nobody can be in that generation yet.
    pub(super) fn is_plausible(&self, now: Instant, generation: Generation) -> bool {
        generation.number <= self.clock_and(now, 2 * MAX_SKEW)
    }

    pub(super) fn set_joined(&mut self) {
        self.joined = true;
    }

    /// A peer says that this node's own name has had that generation.
    pub(super) fn heard_of_own(&mut self, from: &NodeName, number: u64) {
        if self.own.len() >= MAX_TELLERS && !self.own.contains_key(from) {
            self.own.pop_first();
        }
        self.own.insert(from.clone(), number);
    }

    /// True where this node may take a generation of that number: it is not far ahead of its clock, or two peers have told
    /// of an earlier life of its name that was.
    pub(super) fn may_take(&self, now: Instant, number: u64) -> bool {
        let told = self
            .own
            .values()
            .filter(|told| **told >= number.saturating_sub(1));
        number <= self.clock_and(now, MAX_SKEW)
            || (number <= self.clock_and(now, 2 * MAX_SKEW) && told.count() > 1)
    }

    /// A node proves its name, and has taken that generation.
    pub(super) fn witness(&mut self, now: Instant, node: &NodeId) {
        let number = node.generation.number;
        if number <= self.clock_and(now, MAX_SKEW) {
            return;
        }
        if self.ahead.len() >= MAX_TELLERS && !self.ahead.contains_key(&node.name) {
            let lowest = self.ahead.iter().min_by_key(|(_, number)| **number);
            if let Some(name) = lowest.map(|(name, _)| name.clone()) {
                self.ahead.remove(&name);
            }
        }
        self.ahead.insert(node.name.clone(), number);
        let mut numbers: Vec<u64> = self.ahead.values().copied().collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let skew = u64::try_from(MAX_SKEW.as_micros()).unwrap_or(u64::MAX);
        // A newcomer may have met one member only, which tells it of its own earlier lives.
        let agreeing = if self.joined { 2 } else { 1 };
        if let Some(agreed) = numbers.get(agreeing - 1) {
            let clock = self.clock_and(now, Duration::ZERO);
            self.clock = (clock.max(agreed.saturating_sub(skew)), now);
        }
    }

    /// How often that source gave reason to complain where it is time to say so: once, then ever more rarely.
    pub(super) fn complain(&mut self, source: &NodeName) -> Option<u64> {
        if self.complaints.len() >= MAX_CLAIMED && !self.complaints.contains_key(source) {
            self.complaints.pop_first();
        }
        let times = self.complaints.entry(source.clone()).or_default();
        *times += 1;
        times.is_power_of_two().then_some(*times)
    }

    /// The node itself says that this is its life; `rejoins` is how often it came back.
    pub(super) fn heard_itself(&mut self, now: Instant, node: &NodeId, rejoins: u32) {
        let generation = node.generation;
        self.witness(now, node);
        if let Some(word) = self.words.get_mut(&node.name) {
            if (word.generation, word.rejoins) < (generation, rejoins) {
                (word.generation, word.rejoins) = (generation, rejoins);
            }
            word.at = now;
            return;
        }
        if self.words.len() >= MAX_KNOWN_NODES {
            let oldest = self.words.iter().min_by_key(|(_, word)| word.at);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.words.remove(&name);
            }
        }
        let word = OwnClaim {
            generation,
            rejoins,
            at: now,
        };
        self.words.insert(node.name.clone(), word);
    }

    /// The highest generation that a node of that name has said itself.
    pub(super) fn highest(&self, name: &NodeName) -> Option<Generation> {
        self.words.get(name).map(|word| word.generation)
    }

    /// How often that life has come back, as it said itself.
    pub(super) fn returns_of(&self, node: &NodeId) -> u32 {
        let word = self.words.get(&node.name);
        word.filter(|word| word.generation == node.generation)
            .map_or(0, |word| word.rejoins)
    }

    /// True where that identity is later than all that the node itself has said.
    pub(super) fn is_unconfirmed(&self, identity: &Identity) -> bool {
        self.words.get(&identity.node.name).is_none_or(|word| {
            (word.generation, word.rejoins) < (identity.node.generation, identity.rejoins)
        })
    }

    /// A peer says that a node has come so far. True where as many as are needed say so.
    pub(super) fn is_agreed(
        &mut self,
        now: Instant,
        from: &NodeName,
        identity: &Identity,
        needed: usize,
    ) -> bool {
        if needed <= 1 {
            return true;
        }
        let name = &identity.node.name;
        if self.claims.len() >= MAX_CLAIMED && !self.claims.contains_key(name) {
            self.claims.pop_first();
        }
        let claims = self.claims.entry(name.clone()).or_default();
        if claims.tellers.len() >= MAX_TELLERS && !claims.tellers.contains_key(from) {
            let oldest = claims.tellers.iter().min_by_key(|(_, (_, _, at))| *at);
            if let Some(teller) = oldest.map(|(teller, _)| teller.clone()) {
                claims.tellers.remove(&teller);
            }
        }
        let (generation, rejoins) = (identity.node.generation, identity.rejoins);
        claims
            .tellers
            .insert(from.clone(), (generation, rejoins, now));
        let agree = claims
            .tellers
            .values()
            .filter(|(other, returns, _)| *other == generation && *returns >= rejoins);
        agree.count() >= needed
    }

    /// True where it is time to ask a node of that name again what it says itself.
    pub(super) fn may_ask(&mut self, now: Instant, name: &NodeName, interval: Duration) -> bool {
        let Some(claims) = self.claims.get_mut(name) else {
            return false;
        };
        let due = claims.asked_at.is_none_or(|at| now.since(at) >= interval);
        if due {
            claims.asked_at = Some(now);
        }
        due
    }

    /// Forgets what is older than `kept`, but for the names of which something else is known.
    pub(super) fn sweep(
        &mut self,
        now: Instant,
        kept: Duration,
        is_known: impl Fn(&NodeName) -> bool,
    ) {
        self.words
            .retain(|name, word| now.since(word.at) < kept || is_known(name));
        self.claims.retain(|_, claims| {
            claims.tellers.retain(|_, (_, _, at)| now.since(*at) < kept);
            !claims.tellers.is_empty()
        });
    }
}
