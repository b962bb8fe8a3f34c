//! Who has a version: an owner asks its peers to say when they have come so far, before it relies on it.
//!
//! Rule: *the peer's own word*. An owner that goes away in good order takes nothing new only after every peer that is up has
//! said that it knows. Without it a peer still sends calls where they are no longer taken.

use super::Tracker;
use crate::id::{NodeId, NodeName};
use crate::message::ControlMessage;
use crate::time::Instant;

impl Tracker {
    /// Asks every peer to say when it has the present version of this node's entries, and returns that version.
    /// What has not been sent of it goes out first.
    pub fn ask_who_has_it(&mut self, now: Instant) -> u64 {
        if self.own.is_ahead() {
            self.flush(now);
        }
        let version = self.own.log.version();
        self.confirmations.wanted = Some(version);
        let peers: Vec<NodeId> = self.peers.keys().cloned().collect();
        for peer in peers {
            self.send_to(&peer, ControlMessage::AwaitVersion { version });
        }
        version
    }

    /// The members that are up and have not said that they have that version of this node's entries. A peer that is too old to
    /// be asked is not among them; one without a link is.
    pub fn without(&self, version: u64) -> Vec<NodeName> {
        self.owners
            .iter()
            .filter(|(node, owner)| {
                let too_old = self.peers.get(node).is_some_and(|peer| peer.too_old);
                let confirmed = self.confirmations.confirmed.get(node);
                owner.up && !too_old && confirmed.is_none_or(|have| *have < version)
            })
            .map(|(node, _)| node.name.clone())
            .collect()
    }

    /// That peer does not know the messages of this rule.
    pub fn set_too_old(&mut self, peer: &NodeId) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.too_old = true;
        }
    }

    /// A link is ready: what was asked on the one before may be lost.
    pub(super) fn ask_again(&mut self, peer: &NodeId) {
        if let Some(version) = self.confirmations.wanted {
            self.send_to(peer, ControlMessage::AwaitVersion { version });
        }
    }

    /// The link is gone: whoever was at its other end asks again on the next.
    pub(super) fn nobody_waits(&mut self, peer: &NodeId) {
        self.confirmations.awaited.remove(peer);
    }

    /// That life has ended.
    pub(super) fn forget_word_of(&mut self, node: &NodeId) {
        self.confirmations.confirmed.remove(node);
        self.confirmations.awaited.remove(node);
    }

    /// This node has a new generation, whose versions count anew.
    pub(super) fn ask_anew(&mut self) {
        self.confirmations.confirmed.clear();
        if self.confirmations.wanted.is_some() {
            self.confirmations.wanted = Some(self.own.log.version());
        }
    }

    pub(super) fn handle_await(&mut self, from: &NodeId, version: u64) {
        self.confirmations.awaited.insert(from.clone(), version);
        self.answer_awaited(from);
    }

    pub(super) fn handle_have(&mut self, from: &NodeId, version: u64) {
        let confirmed = &mut self.confirmations.confirmed;
        let have = confirmed.entry(from.clone()).or_default();
        *have = version.max(*have);
    }

    /// Tells an owner that its version is here, once it is. The readers' view has changed by the time that this goes out: what
    /// is to be sent is taken after the changes were applied.
    pub(super) fn answer_awaited(&mut self, node: &NodeId) {
        let Some(wanted) = self.confirmations.awaited.get(node).copied() else {
            return;
        };
        let have = self
            .owners
            .get(node)
            .filter(|owner| !owner.differs)
            .and_then(|owner| owner.replica.version());
        if let Some(version) = have.filter(|have| *have >= wanted) {
            self.confirmations.awaited.remove(node);
            self.send_to(node, ControlMessage::HaveVersion { version });
        }
    }
}
