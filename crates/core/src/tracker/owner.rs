//! What is known of another owner, and of a peer.

use std::time::Duration;

use super::incoming::Tokens;
use super::relayed::Relayed;
use super::replica::Replica;
use crate::id::NodeId;
use crate::time::Instant;

/// What is known of one life of another owner.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) replica: Replica,
    /// Membership says that it is up in this life.
    pub(super) up: bool,
    /// It has been so before: whoever lists it now may not have heard yet that it is down.
    pub(super) was_up: bool,
    /// When it was last up, or first heard of.
    pub(super) down_since: Instant,
    /// Its entries are with the readers.
    pub(super) visible: bool,
    /// Since it came up, its current version was learnt and reached.
    pub(super) confirmed: bool,
    /// The highest version that it said it has.
    pub(super) target: Option<u64>,
    /// The copy came by way of others, and the owner has not said that it is right.
    pub(super) relayed: bool,
    /// The last version and content that the owner itself told over its own link.
    pub(super) said: Option<(u64, u64)>,
    pub(super) relayed_versions: Relayed,
    pub(super) tokens: Tokens,
    /// When something of it came last.
    pub(super) progress_at: Instant,
    /// Nothing has come of it for so long that nobody waits for it any more.
    pub(super) waited_out: bool,
    /// The copy is known to be wrong, and has to be replaced whatever its version.
    pub(super) differs: bool,
    /// Since when it is known to be ahead of this copy.
    pub(super) behind_since: Option<Instant>,
    /// Since when the owner itself says less than it is known to have.
    pub(super) contradicted_since: Option<Instant>,
    /// The owner itself said so over the current link.
    pub(super) owner_confirmed: bool,
    /// What is missing cannot be on its way any more.
    pub(super) overdue: bool,
    /// A peer that said it has more than this copy.
    pub(super) source: Option<NodeId>,
    /// Requests in a row that were not answered in time.
    pub(super) late_answers: u32,
}

impl Owner {
    pub(super) fn new(node: NodeId, now: Instant) -> Self {
        Owner {
            replica: Replica::new(node),
            up: false,
            was_up: false,
            down_since: now,
            visible: false,
            confirmed: false,
            target: None,
            relayed: false,
            said: None,
            relayed_versions: Relayed::default(),
            tokens: Tokens::new(now),
            progress_at: now,
            waited_out: false,
            differs: false,
            behind_since: None,
            contradicted_since: None,
            owner_confirmed: false,
            overdue: false,
            source: None,
            late_answers: 0,
        }
    }

    /// The owner says over its own link that it is at this version.
    ///
    /// Rule: the owner's word overrides anything relayed, once it stands by it. A word that was sent before what others
    /// have heard since may arrive after theirs, where its link was slow: heeded at once, it would show what was removed.
    pub(super) fn heed(&mut self, now: Instant, version: u64, patience: Duration) {
        self.owner_confirmed = true;
        let known = self.target.max(self.replica.version());
        if known.max(self.relayed_versions.highest_hint()) <= Some(version) {
            self.contradicted_since = None;
        } else {
            let since = *self.contradicted_since.get_or_insert(now);
            if now.since(since) < patience {
                return;
            }
            self.contradicted_since = None;
        }
        self.relayed_versions.contradict(now, version);
        self.target = Some(version);
    }

    /// All that it is known to have is here, and nobody who is heeded says more.
    pub(super) fn is_complete(&self) -> bool {
        let have = self.replica.version();
        !self.is_behind() && self.relayed_versions.highest_hint() <= have
    }

    /// True where this node would not be ready without it.
    pub(super) fn is_missing(&self) -> bool {
        self.up && !self.visible && !self.waited_out
    }

    pub(super) fn is_behind(&self) -> bool {
        self.differs
            || match (
                self.replica.version(),
                self.target.max(self.relayed_versions.agreed),
            ) {
                (None, Some(_)) => true,
                (Some(have), Some(target)) => have < target,
                (_, None) => false,
            }
    }
}

/// A peer with a ready link.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkedPeer {
    /// Its queue is long: deltas are skipped, and found missing later.
    pub(super) congested: bool,
    /// How often something of it was dropped over this link.
    pub(super) rejected: u64,
    /// It missed deltas, and gets the versions once its queue is short.
    pub(super) missed: bool,
    /// It speaks a version of the protocol in which nobody asks who has which version.
    pub(super) too_old: bool,
}
