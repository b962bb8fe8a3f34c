//! Replication: each node's own entries to all nodes, by contiguous deltas, requests for what is missing, and digests.
//!
//! The rules of the protocol, named where they are followed: *single writer* (only the owner's own link carries its
//! deltas), *contiguity*, *one period's grace* (a difference is acted on only when it outlives a period), *the owner
//! first*, *one request an owner*, *hiding by generation*, *the owner's own word*.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::entry::{EntryChange, EntryUpdate, NewEntry, ServiceInfo, ServiceState};
use crate::id::{NodeId, NodeName};
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{ControlMessage, Delta, OwnerVersion};
use crate::rules::{Rule, RuleSet};
use crate::time::{Instant, earliest};

mod adding;
mod agreement;
mod compare;
mod config;
mod confirm;
mod confirmations;
mod entries;
mod error;
mod fetch;
mod incoming;
mod log;
mod names;
mod own;
mod owner;
mod relayed;
mod replica;
mod serve;
mod serving;
#[cfg(test)]
mod tests;

pub use adding::{Added, Adding};
pub use config::{OwnerStats, TrackerConfig, TrackerCounts};
pub use error::{AddError, UpdateError};

use confirmations::Confirmations;
use incoming::{Fetch, Tokens};
use own::Own;
use owner::{LinkedPeer, Owner};
use replica::Rejected;
use serving::Serving;

/// To whom a message goes.
#[derive(Clone, Debug)]
pub enum Recipients {
    /// One peer.
    One(NodeId),
    /// All these.
    Many(Arc<[NodeId]>),
}

impl Recipients {
    /// The peers.
    pub fn iter(&self) -> impl Iterator<Item = &NodeId> {
        match self {
            Recipients::One(peer) => std::slice::from_ref(peer).iter(),
            Recipients::Many(peers) => peers.iter(),
        }
    }
}

/// This node's own entries, and its copies of all others'.
///
/// The order: a peer's messages are handled between [`link_up`](Tracker::link_up) and [`link_down`](Tracker::link_down), and are
/// dropped outside. Membership's [`member_up`](Tracker::member_up), [`member_down`](Tracker::member_down) and
/// [`member_left`](Tracker::member_left) come in its own order, whatever the links do. What changed is with this
/// node's readers before what was to be sent goes out: a peer that is told that a version is here relies on that. Dropped, it says
/// nothing: the others hide what it had when membership takes this node down.
pub struct Tracker {
    config: TrackerConfig,
    rules: RuleSet,
    me: NodeId,
    own: Own,
    owners: BTreeMap<NodeId, Owner>,
    peers: BTreeMap<NodeId, LinkedPeer>,
    /// Owners that a peer says are up, until membership says so here: a newcomer waits for them.
    expected: BTreeMap<NodeId, Instant>,
    /// When a peer first told which owners there are.
    heard_of_owners: Option<Instant>,
    /// Rule: one request an owner at a time.
    fetches: BTreeMap<NodeId, Fetch>,
    serving: Vec<Serving>,
    confirmations: Confirmations,
    tick_at: Instant,
    silent_periods: u32,
    changed: bool,
    rng: StdRng,
    transmits: VecDeque<(Recipients, ControlMessage)>,
    changes: Vec<EntryChange>,
    counts: TrackerCounts,
}

impl Tracker {
    /// A tracker without entries, on its own.
    pub fn new(config: TrackerConfig, me: NodeId, nonce: u64, now: Instant, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // Nodes that start together do not compare their versions together.
        let first = config.broadcast_period.mul_f64(rng.random_range(0.5..1.5));
        Tracker {
            own: Own::new(&me, nonce, config.max_delta_sizes),
            rules: RuleSet::default(),
            me,
            owners: BTreeMap::new(),
            peers: BTreeMap::new(),
            expected: BTreeMap::new(),
            heard_of_owners: None,
            fetches: BTreeMap::new(),
            serving: Vec::new(),
            confirmations: Confirmations::default(),
            tick_at: now + first,
            silent_periods: 0,
            changed: false,
            config,
            rng,
            transmits: VecDeque::new(),
            changes: Vec::new(),
            counts: TrackerCounts::default(),
        }
    }

    /// Turns rules off, for tests that show what happens without them.
    #[cfg(any(test, feature = "fault-switches"))]
    pub fn set_rules(&mut self, rules: RuleSet) {
        self.rules = rules;
    }

    /// The version of this node's own entries.
    pub fn version(&self) -> u64 {
        self.own.log.version()
    }

    /// This node's own entries.
    pub fn own(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceInfo>> {
        self.own.log.entries()
    }

    /// How often what happened.
    pub fn counts(&self) -> TrackerCounts {
        self.counts
    }

    /// What is known of the other owners, living and not yet forgotten.
    pub fn owners(&self) -> Vec<OwnerStats> {
        self.owners
            .iter()
            .map(|(node, owner)| OwnerStats {
                node: node.clone(),
                version: owner.replica.version(),
                behind: owner.target.filter(|_| owner.is_behind()),
                entries: owner.replica.entries().len(),
                up: owner.up,
                visible: owner.visible,
                linked: self.peers.contains_key(node),
            })
            .collect()
    }

    /// The version and the hash of what is here of that life of a node: its copy, or this node's own entries.
    pub fn copy_of(&self, node: &NodeId) -> Option<OwnerVersion> {
        if *node == self.me {
            return Some(self.own.log.owner_version());
        }
        let replica = &self.owners.get(node)?.replica;
        replica.version().map(|_| replica.owner_version())
    }

    /// The owners that are up, or that a peer says are up, and whose entries do not show yet.
    pub fn missing(&self) -> Vec<NodeName> {
        let up = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.is_missing())
            .map(|(node, _)| &node.name);
        let expected = self.expected.keys().map(|node| &node.name);
        let names: BTreeSet<&NodeName> = up.chain(expected).collect();
        names.into_iter().cloned().collect()
    }

    /// True where [`missing`](Self::missing) names anybody.
    pub fn is_missing_any(&self) -> bool {
        !self.expected.is_empty() || self.owners.values().any(Owner::is_missing)
    }

    /// True once a peer has told which owners there are.
    pub fn has_heard_of_owners(&self) -> bool {
        self.heard_of_owners.is_some()
    }

    /// Forgets that a peer has told so: all of them are gone.
    pub(crate) fn forget_who_told(&mut self) {
        self.heard_of_owners = None;
    }

    /// Registers services, all or none.
    pub fn add(
        &mut self,
        now: Instant,
        entries: Vec<NewEntry>,
    ) -> Result<Vec<Arc<ServiceInfo>>, AddError> {
        let added = self.own.add(entries, &mut self.changes)?;
        self.own_change(now);
        Ok(added)
    }

    /// Goes on with a batch, and looks at no more than `most` of its entries.
    pub fn continue_add(&mut self, now: Instant, adding: Adding, most: usize) -> Added {
        let added = self.own.continue_add(adding, most, &mut self.changes);
        if let Added::All(Ok(_)) = &added {
            self.own_change(now);
        }
        added
    }

    /// Changes one of this node's own services; an update that says nothing changes nothing. What it says is merged into
    /// the entry as it is now, so that of two updates of different fields both hold, whoever sent them when.
    pub fn update(
        &mut self,
        now: Instant,
        sequence: u64,
        update: EntryUpdate,
    ) -> Result<Arc<ServiceInfo>, UpdateError> {
        let before = self.version();
        let after = self.own.update(sequence, update, &mut self.changes)?;
        if self.version() != before {
            self.own_change(now);
        }
        Ok(after)
    }

    /// Takes the keys of all of this node's own services away, in one change for whoever reads: those that are online drain
    /// from now on. For good says that what is added or enabled later drains as well.
    pub fn drain(&mut self, now: Instant, for_good: bool) {
        if for_good {
            self.own.set_draining();
        }
        for sequence in self.own.online() {
            let update = EntryUpdate {
                state: Some(ServiceState::Draining),
                ..EntryUpdate::default()
            };
            // It was listed a moment ago.
            let _ = self.update(now, sequence, update);
        }
    }

    /// Removes one of this node's own services.
    pub fn remove(&mut self, now: Instant, sequence: u64) -> Result<Arc<ServiceInfo>, UpdateError> {
        let before = self.own.remove(sequence, &mut self.changes)?;
        self.own_change(now);
        Ok(before)
    }

    /// Rule: this node took a new generation: every entry is published anew, and keeps its identity.
    pub fn renew(&mut self, now: Instant, me: NodeId) {
        self.counts.renewals += 1;
        self.me = me.clone();
        self.expected.remove(&me);
        self.own.renew(me, &mut self.changes);
        self.ask_anew();
        self.changed = true;
        self.tick_at = self.tick_at.min(now + self.config.broadcast_period);
    }

    /// Membership says that this life is up.
    pub fn member_up(&mut self, now: Instant, node: &NodeId) {
        if *node == self.me {
            return;
        }
        self.expected.retain(|other, _| other.name != node.name);
        let older: Vec<NodeId> = self
            .owners
            .keys()
            .filter(|other| other.name == node.name && *other != node)
            .cloned()
            .collect();
        for other in older {
            // Rule: a new generation replaces the old entries. Without it a restarted process is listed twice until its past is
            // forgotten.
            if other.generation < node.generation {
                self.forget(&other);
            } else {
                self.hide(now, &other);
            }
        }
        let linked = self.peers.contains_key(node);
        let confirming = self.rules.holds(Rule::Confirming);
        let owner = self.owner(now, node);
        owner.up = true;
        owner.was_up = true;
        owner.progress_at = now;
        owner.waited_out = false;
        owner.confirmed = !confirming && owner.replica.version().is_some();
        if linked {
            // What was learnt over this link before still holds: the owner's own word, and nothing lost since.
            owner.confirmed |=
                owner.owner_confirmed && owner.replica.version().is_some() && owner.is_complete();
        }
        self.advance(now, node);
    }

    /// Membership says that this life is down.
    pub fn member_down(&mut self, now: Instant, node: &NodeId) {
        self.forget_word_of(node);
        self.expected.remove(node);
        self.hide(now, node);
    }

    /// This life has left for good: its entries are forgotten at once.
    pub fn member_left(&mut self, node: &NodeId) {
        self.forget_word_of(node);
        self.expected.remove(node);
        self.forget(node);
    }

    /// The link to that node is ready.
    pub fn link_up(&mut self, now: Instant, peer: &NodeId) {
        self.peers.insert(peer.clone(), LinkedPeer::default());
        if let Some(owner) = self.owners.get_mut(peer) {
            owner.owner_confirmed = false;
            owner.relayed_versions.forget_told();
            owner.tokens = Tokens::new(now);
        }
        // Rule: on every (re)connect the full vector goes. Without it, what was lost with the link before is found only when
        // somebody compares digests.
        self.send_versions(now, peer);
        self.ask_again(peer);
    }

    /// The link to that node is gone.
    pub fn link_down(&mut self, now: Instant, peer: &NodeId) {
        self.peers.remove(peer);
        self.nobody_waits(peer);
        self.serving.retain(|serving| serving.to != *peer);
        if let Some(owner) = self.owners.get_mut(peer) {
            // Whatever was sent since may be lost: the next link starts with the owner's word.
            owner.owner_confirmed = false;
            // Of a stranger nothing is kept. Of a member the version is, even where it holds nothing (any more): an earlier
            // copy that somebody else has must not come back.
            if !owner.was_up && owner.replica.entries().len() == 0 {
                self.owners.remove(peer);
            }
        }
        self.abandon_fetches_from(now, peer);
    }

    /// The queue to that peer is long, or short again.
    pub fn set_congested(&mut self, now: Instant, peer: &NodeId, congested: bool) {
        let Some(entry) = self.peers.get_mut(peer) else {
            return;
        };
        entry.congested = congested;
        if !congested && std::mem::take(&mut entry.missed) {
            self.send_versions(now, peer);
        }
    }

    /// A message from a peer.
    pub fn handle_message(&mut self, now: Instant, from: &NodeId, message: ControlMessage) {
        if !self.peers.contains_key(from) {
            return;
        }
        match message {
            ControlMessage::Delta(delta) => self.handle_delta(now, from, delta),
            ControlMessage::Digest(digest) => self.handle_digest(now, from, digest),
            ControlMessage::Vector(vector) => self.handle_vector(now, from, vector),
            ControlMessage::Request(request) => self.serve(now, from, request),
            ControlMessage::Unavailable(unavailable) => {
                self.handle_unavailable(now, from, &unavailable.owner);
            }
            ControlMessage::Snapshot(chunk) => self.handle_chunk(now, from, chunk),
            ControlMessage::AwaitVersion { version } => self.handle_await(from, version),
            ControlMessage::HaveVersion { version } => self.handle_have(from, version),
            _ => {}
        }
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.own.flush_at.is_some_and(|at| at <= now) {
            self.flush(now);
        }
        self.retry_fetches(now);
        if self.tick_at <= now {
            self.tick_at = now + self.config.broadcast_period;
            self.tick(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = earliest(self.own.flush_at, Some(self.tick_at));
        earliest(next, self.fetch_deadline())
    }

    /// The next message to be sent.
    pub fn poll_transmit(&mut self) -> Option<(Recipients, ControlMessage)> {
        self.transmits.pop_front()
    }

    /// What changed in the eyes of this node since the last time, in order.
    pub fn poll_changes(&mut self) -> Vec<EntryChange> {
        std::mem::take(&mut self.changes)
    }

    fn own_change(&mut self, now: Instant) {
        self.changed = true;
        self.own.changed(now);
    }

    /// Sends what changed since the last time to everybody, encoded once: as much as one turn may take.
    fn flush(&mut self, now: Instant) {
        let deltas = self.own.flush(now);
        let mut recipients = Vec::with_capacity(self.peers.len());
        for (peer, state) in &mut self.peers {
            if state.congested || deltas.is_none() {
                state.missed = true;
            } else {
                recipients.push(peer.clone());
            }
        }
        let Some(deltas) = deltas else {
            // More changed at once than is kept: the peers fetch a snapshot.
            let peers: Vec<NodeId> = self.peers.keys().cloned().collect();
            for peer in peers {
                if !self.peers[&peer].congested {
                    self.send_versions(now, &peer);
                }
            }
            return;
        };
        if recipients.is_empty() {
            return;
        }
        let recipients: Arc<[NodeId]> = recipients.into();
        for delta in deltas {
            self.transmits.push_back((
                Recipients::Many(Arc::clone(&recipients)),
                ControlMessage::Delta(delta),
            ));
        }
    }

    fn handle_delta(&mut self, now: Instant, from: &NodeId, delta: Delta) {
        // Rule: a single writer. Only the owner's own link carries its deltas. Without it any peer writes what others have.
        if delta.owner != *from || delta.from > delta.to {
            self.reject(from, "a delta of another owner's entries");
            return;
        }
        let (to, content) = (delta.to, delta.content);
        let contiguity = self.rules.holds(Rule::Contiguity);
        let patience = self.config.down_period;
        let owner = self.owner(now, from);
        let mut delta = delta;
        if !contiguity && let Some(have) = owner.replica.version() {
            delta.from = delta.from.min(have);
        }
        if delta.from == delta.to {
            // The answer to a request: that is all there is.
            owner.relayed_versions.contradict_asked(now, to);
            owner.heed(now, to, patience);
            owner.said = Some((to, content));
        } else {
            owner.owner_confirmed = true;
            owner.target = owner.target.max(Some(to));
        }
        let before = owner.replica.version();
        let outcome = owner.replica.apply(delta);
        match outcome {
            Ok(changes) => {
                owner.differs = owner.replica.content() != content;
                owner.relayed &= owner.differs;
                owner.progress_at = now;
                owner.confirmed |= owner.is_complete();
                let differs = owner.differs;
                if owner.visible {
                    self.changes.extend(changes);
                }
                if differs {
                    self.counts.differences += 1;
                }
                self.answered(now, from, before < Some(to));
            }
            Err(Rejected::Known) => {
                owner.confirmed |= owner.replica.version() == Some(to) && owner.is_complete();
                self.answered(now, from, false);
            }
            Err(Rejected::Gap) => {
                owner.overdue = true;
                self.counts.gaps += 1;
            }
            Err(Rejected::Differs) => {
                owner.overdue = true;
                owner.differs = true;
                self.counts.differences += 1;
            }
            Err(Rejected::Beyond(beyond)) => {
                return self.reject(from, &format!("a change to {beyond}"));
            }
        }
        self.advance(now, from);
    }

    /// What is to be done about one owner: fetch what is missing, show what is complete.
    fn advance(&mut self, now: Instant, node: &NodeId) {
        if !self.confirmations.owes_nothing() {
            self.answer_awaited(node);
        }
        let hiding = self.rules.holds(Rule::Hiding);
        let Some(owner) = self.owners.get_mut(node) else {
            return;
        };
        if owner.is_behind() {
            owner.behind_since.get_or_insert(now);
        } else {
            owner.behind_since = None;
            owner.overdue = false;
        }
        if owner.confirmed && !owner.differs && (owner.up || !hiding) && !owner.visible {
            owner.visible = true;
            self.changes
                .extend(owner.replica.entries().map(|info| EntryChange {
                    before: None,
                    after: Some(Arc::clone(info)),
                }));
        }
        if owner.is_behind() && owner.up {
            self.fetch_if_due(now, node);
        }
    }

    /// Rule: down hides, see [`Rule::Hiding`]. The copy is kept: who comes back with the same version sends nothing anew.
    fn hide(&mut self, now: Instant, node: &NodeId) {
        self.give_up_fetch(node);
        let hiding = self.rules.holds(Rule::Hiding);
        let Some(owner) = self.owners.get_mut(node) else {
            return;
        };
        owner.up = false;
        owner.confirmed = false;
        owner.down_since = now;
        if hiding && std::mem::take(&mut owner.visible) {
            self.changes
                .extend(owner.replica.entries().map(|info| EntryChange {
                    before: Some(Arc::clone(info)),
                    after: None,
                }));
        }
    }

    fn forget(&mut self, node: &NodeId) {
        self.give_up_fetch(node);
        if let Some(owner) = self.owners.remove(node)
            && owner.visible
        {
            self.changes
                .extend(owner.replica.entries().map(|info| EntryChange {
                    before: Some(Arc::clone(info)),
                    after: None,
                }));
        }
    }

    fn owner(&mut self, now: Instant, node: &NodeId) -> &mut Owner {
        self.owners
            .entry(node.clone())
            .or_insert_with(|| Owner::new(node.clone(), now))
    }

    /// Once every `broadcast_period`.
    fn tick(&mut self, now: Instant) {
        // Rule: one period's grace. What is still behind is asked for.
        let behind: Vec<NodeId> = self
            .owners
            .iter()
            .filter(|(_, owner)| owner.up && (owner.is_behind() || !owner.confirmed))
            .map(|(node, _)| node.clone())
            .collect();
        for node in behind {
            self.advance(now, &node);
            self.ask_owner(&node);
        }
        self.follow_hints(now);
        self.give_up_waiting(now);
        self.forget_the_dead(now);
        let patience = self.config.down_period * 2;
        self.expected
            .retain(|_, since| now.since(*since) < patience);
        self.silent_periods += 1;
        if self.changed || self.silent_periods >= self.config.max_silent_periods {
            self.changed = false;
            self.silent_periods = 0;
            self.compare_with_somebody();
        }
    }

    fn forget_the_dead(&mut self, now: Instant) {
        if !self.rules.holds(Rule::Forgetting) {
            return;
        }
        let permdown = self.config.permdown_period;
        let dead: Vec<NodeId> = self
            .owners
            .iter()
            .filter(|(_, owner)| !owner.up && now.since(owner.down_since) >= permdown)
            .map(|(node, _)| node.clone())
            .collect();
        for node in dead {
            self.forget(&node);
        }
        // Retained dead owners are bounded: the longest dead go first.
        while self.owners.len() > MAX_KNOWN_NODES {
            let oldest = self
                .owners
                .iter()
                .filter(|(_, owner)| !owner.up)
                .min_by_key(|(_, owner)| owner.down_since)
                .map(|(node, _)| node.clone());
            match oldest {
                Some(node) => self.forget(&node),
                None => break,
            }
        }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.rng.random_range(0..below)
    }

    fn send_to(&mut self, to: &NodeId, message: ControlMessage) {
        debug_assert_ne!(*to, self.me, "no message to self");
        self.transmits
            .push_back((Recipients::One(to.clone()), message));
    }

    fn reject(&mut self, from: &NodeId, what: &str) {
        self.counts.rejected += 1;
        // Rule: each peer is counted by itself, so that one that is complained of all the time hides no other.
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        peer.rejected += 1;
        if peer.rejected.is_power_of_two() {
            tracing::warn!(peer = %from, times = peer.rejected, "dropped {what}");
        }
    }
}
