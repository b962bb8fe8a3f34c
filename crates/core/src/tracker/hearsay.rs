//! What peers say of another owner's entries.
//!
//! Rule: *the owner's word*. Where there is a link to the owner, what others say of it is a hint: the owner is asked, now
//! and then, and whoever said more than it has is not heeded about it for a while. Where there is none, a version counts
//! that two peers have told, or one where there is no other: so no single one can make up a version that nobody has.
//!
//! Rule: *agreeing relays*. A copy that comes by way of others is taken where two of them have it, by version and content,
//! where the owner itself said so before its link broke, or where there is no second one to ask. Whatever was taken, the
//! owner replaces it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fetch::Incoming;
use super::{Owner, Tracker};
use crate::id::{NodeId, NodeName};
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{ControlMessage, Digest, OwnerVersion};
use crate::time::Instant;

/// So many peers have to agree, where there are as many.
const AGREEING: usize = 2;

/// Most peers of whom it is remembered what they say of one owner.
const MAX_TELLERS: usize = 8;

/// How long whoever said more than the owner has is not heeded about it, the first time; each further one doubles it.
const MIN_DENIAL: Duration = Duration::from_secs(1);

/// The longest that a peer is not heeded.
const MAX_DENIAL: Duration = Duration::from_secs(60);

/// What peers say of one owner.
#[derive(Debug, Default)]
pub(super) struct Hearsay {
    /// Without a link to the owner: the last version and content that each has told.
    told: BTreeMap<NodeName, (u64, u64)>,
    /// The version that enough of them have reached.
    pub(super) agreed: Option<u64>,
    /// A copy that only one has, until another one has it, too.
    pending: Option<(NodeId, Box<Incoming>)>,
    /// With a link to the owner: who says that it has more, and whether the owner was asked since.
    hints: BTreeMap<NodeName, (u64, bool)>,
    /// Who was wrong: until when it is not heeded, and how often it was.
    denied: BTreeMap<NodeName, (Instant, u32)>,
}

impl Hearsay {
    fn tell(&mut self, from: &NodeName, row: (u64, u64), needed: usize) {
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
    fn count(&self, row: (u64, u64)) -> usize {
        self.told.values().filter(|told| **told == row).count()
    }

    fn hint(&mut self, now: Instant, from: &NodeName, version: u64) {
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

impl Tracker {
    /// How many peers have to agree on what an owner has that there is no link to: as many as there are others, whether or
    /// not there is a link to them right now.
    fn needed(&self, owner: &NodeId) -> usize {
        if !self.rules.agreeing_relays {
            return 1;
        }
        let others = self.owners.iter();
        let others = others.filter(|(node, known)| *node != owner && known.up);
        others.take(AGREEING).count().max(1)
    }

    /// What a peer says of another owner. Returns this node's row where it is ahead of the peer's.
    pub(super) fn handle_hearsay(
        &mut self,
        now: Instant,
        from: &NodeId,
        row: OwnerVersion,
    ) -> Option<OwnerVersion> {
        let linked = self.peers.contains_key(&row.owner);
        let direct = linked && self.rules.owners_word;
        let needed = self.needed(&row.owner);
        let Some(owner) = self.owners.get_mut(&row.owner) else {
            self.expect(now, row.owner);
            return None;
        };
        let have = owner.replica.version();
        if !linked {
            owner
                .hearsay
                .tell(&from.name, (row.version, row.content), needed);
        }
        match have {
            Some(have) if have > row.version => {
                return owner.confirmed.then(|| owner.replica.owner_version());
            }
            Some(have) if have == row.version => {
                if !linked && owner.hearsay.count((have, owner.replica.content())) >= needed {
                    // Without a link to the owner, this is the best word there is, unless the owner has said more before.
                    owner.confirmed |= !owner.is_behind();
                }
            }
            _ if direct => owner.hearsay.hint(now, &from.name, row.version),
            _ if linked => {
                owner.target = owner.target.max(Some(row.version));
                owner.behind_since.get_or_insert(now);
            }
            _ => {
                if owner.hearsay.agreed <= Some(row.version) {
                    owner.source = Some(from.clone());
                }
            }
        }
        if !owner.up && !owner.was_up {
            let name_is_up = self
                .owners
                .iter()
                .any(|(node, owner)| node.name == row.owner.name && owner.up);
            if !name_is_up {
                self.expect(now, row.owner.clone());
            }
        }
        self.settle_pending(now, &row.owner);
        self.judge(now, &row.owner);
        None
    }

    /// A peer lists what is not known here: membership should speak of it soon. Old words of a life that is over, which come
    /// late where a link was stalled, promise nothing.
    ///
    /// Rule: nobody is waited for on hearsay for long. Only what is said in the first moments counts: otherwise one that
    /// goes on making up owners keeps a newcomer from ever being ready.
    fn expect(&mut self, now: Instant, node: NodeId) {
        let patience = 4 * self.config.down_period;
        let since = *self.heard_of_owners.get_or_insert(now);
        if self.rules.owners_word && now.since(since) > patience {
            return;
        }
        let is_over = self
            .owners
            .keys()
            .any(|other| other.name == node.name && other.generation > node.generation);
        if is_over {
            return;
        }
        if self.expected.len() < MAX_KNOWN_NODES && node.name != self.me.name {
            self.expected.entry(node).or_insert(now);
        }
    }

    /// A whole copy has come by way of a peer. Returns it where it may be taken; otherwise others are asked what they have.
    pub(super) fn agreed_copy(
        &mut self,
        now: Instant,
        from: &NodeId,
        incoming: Incoming,
    ) -> Option<Incoming> {
        let node = incoming.of.owner.clone();
        let needed = self.needed(&node);
        let linked = self.peers.contains_key(&node);
        let agreeing = self.rules.agreeing_relays;
        let owner = self.owners.get_mut(&node)?;
        let row = (incoming.of.version, incoming.of.content);
        if linked && agreeing && owner.said != Some(row) {
            // There is a link to the owner by now, who knows better.
            owner.overdue = true;
            self.counts.unagreed += 1;
            self.judge(now, &node);
            return None;
        }
        owner.hearsay.tell(&from.name, row, needed);
        if owner.said == Some(row) || owner.hearsay.count(row) >= needed {
            owner.hearsay.pending = None;
            return Some(incoming);
        }
        owner.hearsay.pending = Some((from.clone(), Box::new(incoming)));
        // Asked for again no sooner than after a period.
        owner.behind_since = Some(now);
        owner.overdue = false;
        self.counts.unagreed += 1;
        self.ask_others(&node, from);
        None
    }

    /// Somebody else may have told by now what the copy that waits says.
    fn settle_pending(&mut self, now: Instant, node: &NodeId) {
        let needed = self.needed(node);
        let Some(owner) = self.owners.get_mut(node) else {
            return;
        };
        let hearsay = &mut owner.hearsay;
        let Some((_, incoming)) = &hearsay.pending else {
            return;
        };
        if hearsay.count((incoming.of.version, incoming.of.content)) < needed {
            return;
        }
        if let Some((from, incoming)) = hearsay.pending.take() {
            self.install(now, &from, *incoming);
        }
    }

    /// Asks two peers, other than those two, for the versions that they have.
    fn ask_others(&mut self, node: &NodeId, from: &NodeId) {
        let digest = Digest {
            hash: self.digest(),
            ask: true,
        };
        let peers: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(peer, state)| *peer != node && *peer != from && !state.congested)
            .map(|(peer, _)| peer.clone())
            .collect();
        for _ in 0..AGREEING.min(peers.len()) {
            let at = self.draw(peers.len());
            self.send_to(&peers[at], ControlMessage::Digest(digest));
        }
    }

    /// The owner is asked whether it has more, as somebody says: at most once a period, and as fetches are paced.
    pub(super) fn follow_hints(&mut self, now: Instant) {
        let hinted: Vec<NodeId> = self
            .owners
            .iter_mut()
            .filter_map(|(node, owner)| {
                let have = owner.replica.version();
                let due = owner.hearsay.has_hints(have) && owner.up && !owner.is_behind();
                due.then(|| node.clone())
            })
            .collect();
        for node in hinted {
            if self.peers.contains_key(&node) {
                self.fetch(now, &node, node.clone());
            }
        }
    }

    /// An owner that goes on saying that it has what it does not give is not waited for.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let patience = 4 * self.config.down_period;
        for owner in self.owners.values_mut() {
            owner.waited_out |= owner.up && now.since(owner.progress_at) > patience;
        }
    }
}

impl Owner {
    /// True where this node would not be ready without it.
    pub(super) fn is_missing(&self) -> bool {
        self.up && !self.visible && !self.waited_out
    }
}
