//! What peers say of another owner's entries.
//!
//! Rule: *the owner's word*. Where there is a link to the owner, what others say of it is a hint: the owner is asked, now
//! and then, and whoever said more than it has is not heeded about it for a while. Where there is none, a version counts
//! that two peers have told, or one where there is no other: so no single one can make up a version that nobody has.
//!
//! Rule: *agreeing relays*. A copy that comes by way of others is taken where two of them have it, by version and content,
//! where the owner itself said so before its link broke, or where there is no second one to ask. Whatever was taken, the
//! owner replaces it.

use super::Tracker;
use super::incoming::Incoming;
use crate::id::NodeId;
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{ControlMessage, Digest, OwnerVersion};
use crate::rules::Rule;
use crate::time::Instant;

/// So many peers have to agree, where there are as many.
const AGREEING: usize = 2;

impl Tracker {
    /// How many peers have to agree on what an owner has that there is no link to: as many as there are others, whether or
    /// not there is a link to them right now.
    fn needed(&self, owner: &NodeId) -> usize {
        if !self.rules.holds(Rule::AgreeingRelays) {
            return 1;
        }
        let others = self.owners.iter();
        let others = others.filter(|(node, known)| *node != owner && known.up);
        others.take(AGREEING).count().max(1)
    }

    /// What a peer says of another owner. Returns this node's row where it is ahead of the peer's.
    pub(super) fn handle_relayed(
        &mut self,
        now: Instant,
        from: &NodeId,
        row: OwnerVersion,
    ) -> Option<OwnerVersion> {
        let linked = self.peers.contains_key(&row.owner);
        let direct = linked && self.rules.holds(Rule::OwnersWord);
        let needed = self.needed(&row.owner);
        let Some(owner) = self.owners.get_mut(&row.owner) else {
            self.expect(now, row.owner);
            return None;
        };
        let have = owner.replica.version();
        if !linked {
            owner
                .relayed_versions
                .tell(&from.name, (row.version, row.content), needed);
        }
        match have {
            Some(have) if have > row.version => {
                return owner.confirmed.then(|| owner.replica.owner_version());
            }
            Some(have) if have == row.version => {
                if !linked
                    && owner
                        .relayed_versions
                        .count((have, owner.replica.content()))
                        >= needed
                {
                    // Without a link to the owner, this is the best word there is, unless the owner has said more before.
                    owner.confirmed |= !owner.is_behind();
                }
            }
            _ if direct => owner.relayed_versions.hint(now, &from.name, row.version),
            _ if linked => {
                owner.target = owner.target.max(Some(row.version));
                owner.behind_since.get_or_insert(now);
            }
            _ => {
                if owner.relayed_versions.agreed <= Some(row.version) {
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
        self.advance(now, &row.owner);
        None
    }

    /// A peer lists what is not known here: membership should speak of it soon. Old words of a life that is over, which come
    /// late where a link was stalled, promise nothing.
    ///
    /// Rule: nobody is waited for for long on the word of others. Only what is said in the first moments counts: otherwise one that
    /// goes on making up owners keeps a newcomer from ever being ready.
    fn expect(&mut self, now: Instant, node: NodeId) {
        let patience = 4 * self.config.down_period;
        let since = *self.heard_of_owners.get_or_insert(now);
        if self.rules.holds(Rule::OwnersWord) && now.since(since) > patience {
            return;
        }
        let is_over = self
            .owners
            .keys()
            .any(|other| other.name == node.name && other.generation > node.generation);
        // Rule: a life that another one has followed is not waited for. Membership will never say that it is up, and a newcomer
        // would not be ready before it gives up.
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
        let agreeing = self.rules.holds(Rule::AgreeingRelays);
        let owner = self.owners.get_mut(&node)?;
        let row = (incoming.of.version, incoming.of.content);
        if linked && agreeing && owner.said != Some(row) {
            // There is a link to the owner by now, who knows better.
            owner.overdue = true;
            self.counts.unagreed += 1;
            self.advance(now, &node);
            return None;
        }
        owner.relayed_versions.tell(&from.name, row, needed);
        if owner.said == Some(row) || owner.relayed_versions.count(row) >= needed {
            owner.relayed_versions.pending = None;
            return Some(incoming);
        }
        owner.relayed_versions.pending = Some((from.clone(), Box::new(incoming)));
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
        let relayed = &mut owner.relayed_versions;
        let Some((_, incoming)) = &relayed.pending else {
            return;
        };
        if relayed.count((incoming.of.version, incoming.of.content)) < needed {
            return;
        }
        if let Some((from, incoming)) = relayed.pending.take() {
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
                let due = owner.relayed_versions.has_hints(have) && owner.up && !owner.is_behind();
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
