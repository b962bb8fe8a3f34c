//! Versions compared: vectors on every (re)connect, digests now and then, and what follows from a difference.

use std::collections::BTreeMap;

use rand::RngExt;

use super::Tracker;
use crate::id::NodeId;
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{ControlMessage, Digest, OwnerVersion, VersionVector};
use crate::rules::Rule;
use crate::time::Instant;

/// Rows of one [`VersionVector`]: at most half a control frame with the longest names.
const VECTOR_ROWS: usize = 1_024;

impl Tracker {
    /// Nothing is known to be missing, but the owner has not said so, or it says less than others do: it is asked for its
    /// versions.
    pub(super) fn ask_owner(&mut self, node: &NodeId) {
        let waits = self.owners.get(node).is_some_and(|owner| {
            let silent = !owner.confirmed && !owner.is_behind() && !self.fetches.contains_key(node);
            owner.up && (silent || owner.contradicted_since.is_some())
        });
        if waits && self.peers.get(node).is_some_and(|peer| !peer.congested) {
            let digest = Digest {
                hash: self.digest(),
                ask: true,
            };
            self.send_to(node, ControlMessage::Digest(digest));
        }
    }

    pub(super) fn handle_digest(&mut self, now: Instant, from: &NodeId, digest: Digest) {
        if digest.ask && digest.hash != self.digest() {
            self.send_versions(now, from);
        }
    }

    pub(super) fn handle_vector(&mut self, now: Instant, from: &NodeId, vector: VersionVector) {
        self.heard_of_owners.get_or_insert(now);
        let mut ahead = Vec::new();
        for row in vector.owners.into_iter().take(MAX_KNOWN_NODES) {
            if row.owner == self.me {
                continue;
            }
            if row.owner == *from {
                self.handle_own_word(now, row);
            } else {
                ahead.extend(self.handle_relayed(now, from, row));
            }
        }
        if !ahead.is_empty() {
            self.send_to(
                from,
                ControlMessage::Vector(VersionVector { owners: ahead }),
            );
        }
    }

    /// Rule: the owner's own word on its own link overrides anything relayed. Whatever it sent before has arrived.
    fn handle_own_word(&mut self, now: Instant, row: OwnerVersion) {
        let patience = self.config.down_period;
        let owner = self.owner(now, &row.owner);
        owner.heed(now, row.version, patience);
        owner.said = Some((row.version, row.content));
        owner.overdue = true;
        let contradicted = owner.contradicted_since.is_some();
        match owner.replica.version() {
            _ if contradicted => {}
            Some(have) if have == row.version && owner.replica.content() == row.content => {
                owner.confirmed = true;
                owner.differs = false;
                owner.relayed = false;
            }
            Some(have) if have >= row.version => {
                owner.differs = true;
                self.counts.differences += 1;
            }
            _ => {}
        }
        let node = row.owner;
        self.advance(now, &node);
    }

    pub(super) fn compare_with_somebody(&mut self) {
        if self.peers.is_empty() || !self.rules.holds(Rule::Digests) {
            return;
        }
        let at = self.rng.random_range(0..self.peers.len());
        if let Some((peer, state)) = self.peers.iter().nth(at)
            && !state.congested
        {
            let peer = peer.clone();
            let digest = Digest {
                hash: self.digest(),
                ask: true,
            };
            self.send_to(&peer, ControlMessage::Digest(digest));
        }
    }

    /// One hash over all owners that are up, this node among them, in the order of their names.
    pub(super) fn digest(&self) -> u64 {
        let mut rows = Vec::with_capacity((self.owners.len() + 1) * 64);
        let mut sorted: BTreeMap<&NodeId, OwnerVersion> = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.visible)
            .map(|(node, owner)| (node, owner.replica.owner_version()))
            .collect();
        sorted.insert(&self.me, self.own.log.owner_version());
        for (node, row) in sorted {
            rows.extend_from_slice(node.name.as_str().as_bytes());
            rows.push(0xff);
            for number in [
                node.generation.number,
                node.generation.random,
                row.version,
                row.content,
            ] {
                rows.extend_from_slice(&number.to_le_bytes());
            }
        }
        xxhash_rust::xxh3::xxh3_64(&rows)
    }

    /// This node's versions of all owners that are up, its own first.
    pub(super) fn send_versions(&mut self, now: Instant, to: &NodeId) {
        // What has not been sent yet follows in deltas: the peer is told of the version that it can have.
        if self.own.is_ahead() {
            self.flush(now);
        }
        let own = self.own.log.owner_version_at(self.own.sent);
        let mut rows = vec![own.unwrap_or_else(|| self.own.log.owner_version())];
        rows.extend(
            self.owners
                .values()
                .filter(|owner| owner.visible && owner.replica.owner() != to)
                .map(|owner| owner.replica.owner_version()),
        );
        for chunk in rows.chunks(VECTOR_ROWS) {
            self.send_to(
                to,
                ControlMessage::Vector(VersionVector {
                    owners: chunk.to_vec(),
                }),
            );
        }
    }
}
