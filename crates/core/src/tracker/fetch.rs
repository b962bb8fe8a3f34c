//! The asking side of requests: one an owner at a time, the owner first, the asker sets the pace.

use std::time::Duration;

use super::entries::{check_size, estimated_bytes};
use super::incoming::{Fetch, Incoming};
use super::owner::Owner;
use super::replica::Rejected;
use super::{Recipients, Tracker};
use crate::id::NodeId;
use crate::message::{ControlMessage, Request, Resume, SnapshotChunk};
use crate::rules::Rule;
use crate::time::{Instant, earliest};

/// Requests under way at once: with [`WINDOW`] chunks each, what a newcomer is sent stays bounded.
const MAX_FETCHES: usize = 32;

/// Chunks of a snapshot that are asked for ahead.
const WINDOW: u32 = 4;

/// How long an answer, or the next part of it, may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How often [`TIMEOUT`] is doubled where answers are late: on a slow link a chunk takes its time.
const MAX_DOUBLINGS: u32 = 4;

/// Most chunks of one snapshot.
const MAX_CHUNKS: u32 = 65_536;

impl Tracker {
    /// Rule: the owner is asked first, another peer only where there is no direct link; what may still be on its way
    /// has one period to arrive.
    pub(super) fn fetch_if_due(&mut self, now: Instant, node: &NodeId) {
        if self.fetches.contains_key(node) || self.fetches.len() >= MAX_FETCHES {
            return;
        }
        let Some(owner) = self.owners.get(node) else {
            return;
        };
        let waited = owner
            .behind_since
            .is_some_and(|since| now.since(since) >= self.config.broadcast_period);
        if !waited && !owner.overdue {
            return;
        }
        let from = if self.peers.contains_key(node) {
            node.clone()
        } else {
            match &owner.source {
                Some(source) if waited && self.peers.contains_key(source) => source.clone(),
                _ => return,
            }
        };
        self.fetch(now, node, from);
    }

    /// Asks for what is missing of an owner, unless that was done too often.
    pub(super) fn fetch(&mut self, now: Instant, node: &NodeId, from: NodeId) {
        let period = self.config.broadcast_period;
        let Some(owner) = self.owners.get_mut(node) else {
            return;
        };
        if self.fetches.contains_key(node)
            || self.fetches.len() >= MAX_FETCHES
            || (self.rules.holds(Rule::PacedFetches) && !owner.tokens.take(now, period))
        {
            return;
        }
        self.counts.requests += 1;
        if from == *node {
            owner.relayed_versions.mark_asked();
        }
        let request = Request {
            owner: node.clone(),
            have: owner.replica.version().filter(|_| !owner.differs),
            resume: None,
        };
        let patience = TIMEOUT * 2_u32.pow(owner.late_answers);
        self.fetches.insert(
            node.clone(),
            Fetch {
                from: from.clone(),
                deadline: now + patience,
                patience,
                incoming: None,
            },
        );
        self.send_to(&from, ControlMessage::Request(request));
    }

    /// The owner's delta arrived: what was asked for may be complete, or this was its first part, see `suffix`. Then the next
    /// one is asked for, where this one brought anything: an owner that says it has more, and sends nothing, would otherwise
    /// be asked as fast as it answers.
    pub(super) fn answered(&mut self, now: Instant, node: &NodeId, brought_more: bool) {
        let behind = self.owners.get(node).is_some_and(Owner::is_behind);
        let Some(fetch) = self.fetches.get_mut(node) else {
            return;
        };
        if let Some(owner) = self.owners.get_mut(node)
            && brought_more
        {
            owner.tokens.give_back();
        }
        if !behind {
            self.fetches.remove(node);
            self.fetch_others(now);
        } else if fetch.incoming.is_none() {
            fetch.deadline = now + fetch.patience;
            if brought_more {
                let from = fetch.from.clone();
                self.fetches.remove(node);
                self.fetch(now, node, from);
            }
        }
    }

    pub(super) fn handle_unavailable(&mut self, now: Instant, from: &NodeId, node: &NodeId) {
        if self
            .fetches
            .get(node)
            .is_none_or(|fetch| fetch.from != *from)
        {
            return;
        }
        self.give_up_fetch(node);
        if let Some(owner) = self.owners.get_mut(node) {
            // Asked again after one period, where another peer has said more by then, there.
            owner.behind_since = Some(now);
            owner.overdue = false;
            if owner.source.as_ref() == Some(from) {
                owner.source = None;
            }
        }
        self.fetch_others(now);
    }

    pub(super) fn handle_chunk(&mut self, now: Instant, from: &NodeId, chunk: SnapshotChunk) {
        let node = chunk.of.owner.clone();
        let Some(fetch) = self
            .fetches
            .get_mut(&node)
            .filter(|fetch| fetch.from == *from)
        else {
            // The rest of an answer that was given up.
            return;
        };
        let incoming = match &mut fetch.incoming {
            None if chunk.index == 0 && (1..=MAX_CHUNKS).contains(&chunk.count) => {
                fetch.incoming.insert(Incoming {
                    of: chunk.of,
                    nonce: chunk.nonce,
                    next: 0,
                    count: chunk.count,
                    entries: Vec::new(),
                    content: 0,
                    bytes: 0,
                })
            }
            // Rule: a snapshot is one immutable (generation, version, hash). Without it a copy is put together of two versions,
            // and has what no version had.
            Some(incoming)
                if incoming.of == chunk.of
                    && incoming.next == chunk.index
                    && incoming.count == chunk.count
                    && incoming.nonce == chunk.nonce =>
            {
                incoming
            }
            _ => {
                self.give_up_fetch(&node);
                return self.reject(from, "a chunk of another snapshot than the one asked for");
            }
        };
        let services = incoming.entries.len() + chunk.records.len();
        if let Err(beyond) = check_size(services, incoming.bytes) {
            self.give_up_fetch(&node);
            return self.reject(from, &format!("a snapshot with {beyond}"));
        }
        let first = incoming.next == 0;
        if let Some(owner) = self.owners.get_mut(&node) {
            // As entries, which take half of what records do and share their types: a snapshot may be long.
            for (info, hash) in owner.replica.stage(chunk.nonce, chunk.records) {
                incoming.content = incoming.content.wrapping_add(hash);
                incoming.bytes += estimated_bytes(&info);
                incoming.entries.push(info);
            }
        }
        if let Some(owner) = self.owners.get_mut(&node) {
            owner.progress_at = now;
        }
        incoming.next += 1;
        fetch.deadline = now + fetch.patience;
        if incoming.next == incoming.count {
            if let Some(complete) = self.fetches.remove(&node).and_then(|fetch| fetch.incoming) {
                let agreed = if *from == node {
                    Some(complete)
                } else {
                    self.agreed_copy(now, from, complete)
                };
                if let Some(agreed) = agreed {
                    self.install(now, from, agreed);
                }
            }
            return self.fetch_others(now);
        }
        let last = incoming.count - 1;
        let ahead = (incoming.next - 1 + WINDOW).min(last);
        let wanted = if first {
            1..=ahead
        } else if incoming.next - 1 + WINDOW <= last {
            ahead..=ahead
        } else {
            return;
        };
        let version = incoming.of.version;
        for chunk in wanted {
            let request = Request {
                owner: node.clone(),
                have: None,
                resume: Some(Resume { version, chunk }),
            };
            self.transmits.push_back((
                Recipients::One(from.clone()),
                ControlMessage::Request(request),
            ));
        }
    }

    pub(super) fn install(&mut self, now: Instant, from: &NodeId, incoming: Incoming) {
        let node = incoming.of.owner.clone();
        let direct = *from == node;
        let linked = self.peers.contains_key(&node);
        let Some(owner) = self.owners.get_mut(&node) else {
            return;
        };
        // Rule: a copy never goes back. Deltas that are contiguous overtake the parts of a snapshot.
        //
        // Rule: *the owner's word* replaces anything relayed. What it answers to a request that was made after the copy came
        // by way of others is no older than what they can have had.
        let have = owner.replica.version();
        let goes_back = have.is_some_and(|have| incoming.of.version < have);
        let replaces = direct && owner.relayed && self.rules.holds(Rule::OwnersWord);
        if goes_back && !replaces {
            owner.late_answers = 0;
            owner.overdue |= direct;
            return self.advance(now, &node);
        }
        if have == Some(incoming.of.version) && !direct {
            return;
        }
        match owner.replica.install(
            &incoming.of,
            incoming.nonce,
            incoming.entries,
            incoming.content,
        ) {
            Ok(changes) => {
                if have.is_none_or(|have| incoming.of.version > have) {
                    owner.tokens.give_back();
                }
                owner.differs = false;
                owner.relayed = !direct;
                owner.late_answers = 0;
                self.counts.replaced += u64::from(goes_back);
                let version = incoming.of.version;
                if direct {
                    owner.said = Some((version, incoming.of.content));
                    owner.target = owner.target.max(Some(version));
                }
                // A relayed snapshot will do where the owner itself has said over its link how far it is.
                owner.confirmed |=
                    (direct || !linked || owner.owner_confirmed) && owner.is_complete();
                if direct {
                    // Whatever followed is on the same link, and what was dropped meanwhile has to be asked for.
                    owner.overdue = true;
                }
                if owner.visible {
                    self.changes.extend(changes);
                }
                self.counts.installed += 1;
            }
            Err(why) => {
                owner.behind_since = Some(now);
                owner.overdue = false;
                self.counts.differences += 1;
                match why {
                    Rejected::Beyond(beyond) => {
                        self.reject(from, &format!("a snapshot with {beyond}"));
                    }
                    _ => self.reject(from, "a snapshot whose entries do not match its hash"),
                }
            }
        }
        self.advance(now, &node);
    }

    pub(super) fn give_up_fetch(&mut self, node: &NodeId) {
        if self
            .fetches
            .remove(node)
            .is_some_and(|fetch| fetch.incoming.is_some())
        {
            self.counts.interrupted += 1;
        }
    }

    pub(super) fn abandon_fetches_from(&mut self, now: Instant, peer: &NodeId) {
        let nodes: Vec<NodeId> = self
            .fetches
            .iter()
            .filter(|(_, fetch)| fetch.from == *peer)
            .map(|(node, _)| node.clone())
            .collect();
        for node in nodes {
            self.give_up_fetch(&node);
            self.advance(now, &node);
        }
    }

    pub(super) fn retry_fetches(&mut self, now: Instant) {
        if self.fetch_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let late: Vec<NodeId> = self
            .fetches
            .iter()
            .filter(|(_, fetch)| fetch.deadline <= now)
            .map(|(node, _)| node.clone())
            .collect();
        for node in late {
            self.give_up_fetch(&node);
            if let Some(owner) = self.owners.get_mut(&node) {
                owner.late_answers = (owner.late_answers + 1).min(MAX_DOUBLINGS);
            }
            self.advance(now, &node);
        }
    }

    pub(super) fn fetch_deadline(&self) -> Option<Instant> {
        self.fetches
            .values()
            .fold(None, |next, fetch| earliest(next, Some(fetch.deadline)))
    }

    /// There is room for another request.
    fn fetch_others(&mut self, now: Instant) {
        let behind: Vec<NodeId> = self
            .owners
            .iter()
            .filter(|(node, owner)| {
                owner.up && owner.is_behind() && !self.fetches.contains_key(*node)
            })
            .map(|(node, _)| node.clone())
            .collect();
        for node in behind {
            if self.fetches.len() >= MAX_FETCHES {
                return;
            }
            self.fetch_if_due(now, &node);
        }
    }
}
