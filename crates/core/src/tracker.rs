//! Replication: each node's own entries to all nodes, by contiguous deltas, requests for what is missing, and digests.
//!
//! The rules of the protocol, named where they are followed: *single writer* (only the owner's own link carries its
//! deltas), *contiguity*, *one period's grace* (a difference is acted on only when it outlives a period), *the owner
//! first*, *one request an owner*, *hiding by generation*, *the owner's own word*.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::config::Settings;
use crate::entries::estimated_bytes;
use crate::entry::{EntryChange, EntryUpdate, NewEntry, ServiceInfo, ServiceState};
use crate::id::{NodeId, NodeName};
use crate::limits::{MAX_BYTES_PER_NODE, MAX_KNOWN_NODES};
use crate::log::{Log, MAX_DELTA_BYTES, content_hash};
use crate::message::{ControlMessage, Delta, OwnerVersion};
use crate::replica::{Rejected, Replica};
use crate::time::{Instant, earliest};

mod adding;
mod compare;
mod confirm;
mod fetch;
mod hearsay;
mod own;
mod serve;
#[cfg(test)]
mod tests;

pub use adding::{Added, Adding};
pub use own::{AddError, UpdateError};

use confirm::Confirmations;
use fetch::{Fetch, Tokens};
use hearsay::Hearsay;
use own::Names;
use serve::Serving;

/// Changes are collected for this long before they go out.
const COALESCE: Duration = Duration::from_millis(1);

/// Deltas that go out at once, of 256 KiB each; more follow after [`COALESCE`]. What is sent in one turn stays bounded, and
/// a peer that cannot take it all is found congested before everything is queued for it.
const MAX_FLUSHED_DELTAS: usize = 4;

/// Rows of one [`Vector`]: at most half a control frame with the longest names.
const VECTOR_ROWS: usize = 1_024;

/// What the tracker is started with.
#[derive(Clone, Debug)]
pub struct TrackerConfig {
    broadcast_period: Duration,
    max_silent_periods: u32,
    down_period: Duration,
    permdown_period: Duration,
    max_delta_sizes: usize,
}

impl TrackerConfig {
    /// What the settings say of replication.
    pub fn new(settings: &Settings) -> Self {
        TrackerConfig {
            broadcast_period: settings.broadcast_period(),
            max_silent_periods: settings.max_silent_periods(),
            down_period: settings.down_period(),
            permdown_period: settings.permdown_period(),
            max_delta_sizes: settings.max_delta_sizes(),
        }
    }
}

/// Which rules hold. All do, but for tests that show what happens without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackerRules {
    /// A delta is applied only where it is contiguous.
    pub contiguity: bool,
    /// An owner's entries show only while membership says that it is up in exactly that generation.
    pub hiding: bool,
    /// Up again, an owner's entries show only once its current version is known and reached.
    pub confirming: bool,
    /// Versions are compared now and then.
    pub digests: bool,
    /// The dead are forgotten after `permdown_period`.
    pub forgetting: bool,
    /// What the owner itself says replaces what others say of it, whatever the version.
    pub owners_word: bool,
    /// A copy by way of others is taken where two of them have it.
    pub agreeing_relays: bool,
    /// What is missing of an owner is asked for at a bounded rate.
    pub paced_fetches: bool,
}

impl Default for TrackerRules {
    fn default() -> Self {
        TrackerRules {
            contiguity: true,
            hiding: true,
            confirming: true,
            digests: true,
            forgetting: true,
            owners_word: true,
            agreeing_relays: true,
            paced_fetches: true,
        }
    }
}

/// What is known of one other owner, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerStats {
    /// The owner, in that life.
    pub node: NodeId,
    /// The version that this node has of it; none before the first.
    pub version: Option<u64>,
    /// The version that the owner is known to have, where that is higher.
    pub behind: Option<u64>,
    /// How many entries.
    pub entries: usize,
    /// Membership says that it is up.
    pub up: bool,
    /// Its entries show.
    pub visible: bool,
    /// There is a direct link to it.
    pub linked: bool,
}

/// How often each thing that can go wrong did, for tests that want to know what they exercised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerCounts {
    /// Deltas that were not contiguous.
    pub gaps: u64,
    /// Suffixes of the log that were served.
    pub suffixes: u64,
    /// Snapshots of this node's own entries that were served.
    pub snapshots: u64,
    /// Snapshots of another owner's entries that were served.
    pub relayed: u64,
    /// Snapshots that were given up before their end.
    pub interrupted: u64,
    /// Snapshots that were installed.
    pub installed: u64,
    /// Copies that turned out to differ from their owner's word.
    pub differences: u64,
    /// Messages that broke a rule and were dropped.
    pub rejected: u64,
    /// New generations of this node.
    pub renewals: u64,
    /// Requests for what is missing of an owner, those for the further parts of a snapshot not counted.
    pub requests: u64,
    /// Copies that had to wait until a second peer had them.
    pub unagreed: u64,
    /// Copies by way of others that gave way to an older one of the owner itself.
    pub replaced: u64,
}

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

/// What is known of one life of another owner.
#[derive(Debug)]
struct Owner {
    replica: Replica,
    /// Membership says that it is up in this life.
    up: bool,
    /// It has been so before: whoever lists it now may not have heard yet that it is down.
    was_up: bool,
    /// When it was last up, or first heard of.
    down_since: Instant,
    /// Its entries are with the readers.
    visible: bool,
    /// Since it came up, its current version was learnt and reached.
    confirmed: bool,
    /// The highest version that it said it has.
    target: Option<u64>,
    /// The copy came by way of others, and the owner has not said that it is right.
    relayed: bool,
    /// The last version and content that the owner itself told over its own link.
    said: Option<(u64, u64)>,
    hearsay: Hearsay,
    tokens: Tokens,
    /// When something of it came last.
    progress_at: Instant,
    /// Nothing has come of it for so long that nobody waits for it any more.
    waited_out: bool,
    /// The copy is known to be wrong, and has to be replaced whatever its version.
    differs: bool,
    /// Since when it is known to be ahead of this copy.
    behind_since: Option<Instant>,
    /// Since when the owner itself says less than it is known to have.
    contradicted_since: Option<Instant>,
    /// The owner itself said so over the current link.
    word: bool,
    /// What is missing cannot be on its way any more.
    overdue: bool,
    /// A peer that said it has more than this copy.
    source: Option<NodeId>,
    /// Requests in a row that were not answered in time.
    late_answers: u32,
}

impl Owner {
    fn new(node: NodeId, now: Instant) -> Self {
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
            hearsay: Hearsay::default(),
            tokens: Tokens::new(now),
            progress_at: now,
            waited_out: false,
            differs: false,
            behind_since: None,
            contradicted_since: None,
            word: false,
            overdue: false,
            source: None,
            late_answers: 0,
        }
    }

    /// The owner says over its own link that it is at this version.
    ///
    /// Rule: the owner's word overrides anything relayed, once it stands by it. A word that was sent before what others
    /// have heard since may arrive after theirs, where its link was slow: heeded at once, it would show what was removed.
    fn heed(&mut self, now: Instant, version: u64, patience: Duration) {
        self.word = true;
        let known = self.target.max(self.replica.version());
        if known.max(self.hearsay.highest_hint()) <= Some(version) {
            self.contradicted_since = None;
        } else {
            let since = *self.contradicted_since.get_or_insert(now);
            if now.since(since) < patience {
                return;
            }
            self.contradicted_since = None;
        }
        self.hearsay.contradict(now, version);
        self.target = Some(version);
    }

    /// All that it is known to have is here, and nobody who is heeded says more.
    fn is_complete(&self) -> bool {
        let have = self.replica.version();
        !self.is_behind() && self.hearsay.highest_hint() <= have
    }

    fn is_behind(&self) -> bool {
        self.differs
            || match (self.replica.version(), self.target.max(self.hearsay.agreed)) {
                (None, Some(_)) => true,
                (Some(have), Some(target)) => have < target,
                (_, None) => false,
            }
    }
}

/// A peer with a ready link.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// Its queue is long: deltas are skipped, and found missing later.
    congested: bool,
    /// How often something of it was dropped over this link.
    rejected: u64,
    /// It missed deltas, and gets the versions once its queue is short.
    missed: bool,
    /// It speaks a version of the protocol in which nobody asks who has which version.
    too_old: bool,
}

/// See the module.
pub struct Tracker {
    config: TrackerConfig,
    rules: TrackerRules,
    me: NodeId,
    nonce: u64,
    log: Log,
    names: Names,
    /// The version that all uncongested peers have been sent.
    sent: u64,
    flush_at: Option<Instant>,
    owners: BTreeMap<NodeId, Owner>,
    peers: BTreeMap<NodeId, Peer>,
    /// Owners that a peer says are up, until membership says so here: a newcomer waits for them.
    expected: BTreeMap<NodeId, Instant>,
    /// When a peer first told which owners there are.
    heard_of_owners: Option<Instant>,
    /// Rule: one request an owner at a time.
    fetches: BTreeMap<NodeId, Fetch>,
    serving: Vec<Serving>,
    confirmations: Confirmations,
    /// This node goes away: nothing of it owns keys any more, whatever is added.
    draining: bool,
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
            log: Log::new(me.clone(), nonce, config.max_delta_sizes),
            rules: TrackerRules::default(),
            names: Names::new(me.name.clone()),
            me,
            nonce,
            sent: 0,
            flush_at: None,
            owners: BTreeMap::new(),
            peers: BTreeMap::new(),
            expected: BTreeMap::new(),
            heard_of_owners: None,
            fetches: BTreeMap::new(),
            serving: Vec::new(),
            confirmations: Confirmations::default(),
            draining: false,
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
    pub fn set_rules(&mut self, rules: TrackerRules) {
        self.rules = rules;
    }

    /// The version of this node's own entries.
    pub fn version(&self) -> u64 {
        self.log.version()
    }

    /// This node's own entries.
    pub fn own(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceInfo>> {
        self.log.entries()
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
            return Some(self.log.owner_version());
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
        let names = self.names.reserve(&entries)?;
        let (me, nonce, mut bytes) = (self.me.clone(), self.nonce, self.log.bytes());
        let mut infos = Vec::with_capacity(entries.len());
        for (mut entry, name) in entries.into_iter().zip(names) {
            entry.state = self.allowed(entry.state);
            let info = own::new_info(&me, nonce, 0, name, entry);
            bytes += estimated_bytes(&info);
            infos.push(info);
        }
        if bytes > MAX_BYTES_PER_NODE {
            for info in &infos {
                self.names.release(info);
            }
            return Err(AddError::NodeTooLarge);
        }
        let added = infos
            .into_iter()
            .map(|info| {
                let mut record = info.to_record();
                let (_, after) = self.log.put(record.sequence, |version| {
                    record.version = version;
                    ServiceInfo::from_record(&me.name, me.generation, nonce, record)
                });
                self.changes.push(EntryChange {
                    before: None,
                    after: Some(Arc::clone(&after)),
                });
                after
            })
            .collect();
        self.own_change(now);
        Ok(added)
    }

    /// Changes one of this node's own services; an update that says nothing changes nothing. What it says is merged into
    /// the entry as it is now, so that of two updates of different fields both hold, whoever sent them when.
    pub fn update(
        &mut self,
        now: Instant,
        sequence: u64,
        update: EntryUpdate,
    ) -> Result<Arc<ServiceInfo>, UpdateError> {
        let before = self
            .log
            .get(sequence)
            .cloned()
            .ok_or(UpdateError::Unknown { sequence })?;
        if update == EntryUpdate::default() {
            return Ok(before);
        }
        let mut update = update;
        update.state = update.state.map(|state| self.allowed(state));
        let mut record = update.merge(&before)?;
        let (me, nonce) = (self.me.clone(), self.nonce);
        // Far from the bound, this is not looked at: an entry has at most a few kilobytes.
        if self.log.bytes() > MAX_BYTES_PER_NODE / 8 * 7 {
            let after = ServiceInfo::from_record(&me.name, me.generation, nonce, record.clone());
            let (more, less) = (estimated_bytes(&after), estimated_bytes(&before));
            if more > less && self.log.bytes() + more - less > MAX_BYTES_PER_NODE {
                return Err(UpdateError::NodeTooLarge);
            }
        }
        let (_, after) = self.log.put(sequence, |version| {
            record.version = version;
            ServiceInfo::from_record(&me.name, me.generation, nonce, record)
        });
        self.changes.push(EntryChange {
            before: Some(before),
            after: Some(Arc::clone(&after)),
        });
        self.own_change(now);
        Ok(after)
    }

    /// Takes the keys of all of this node's own services away, in one change for whoever reads: those that are online drain
    /// from now on. For good says that what is added or enabled later drains as well.
    pub fn drain(&mut self, now: Instant, for_good: bool) {
        self.draining |= for_good;
        let online: Vec<u64> = self
            .log
            .entries()
            .filter(|info| info.state() == ServiceState::Online)
            .map(|info| info.id().sequence)
            .collect();
        for sequence in online {
            let update = EntryUpdate {
                state: Some(ServiceState::Draining),
                ..EntryUpdate::default()
            };
            // It was listed a moment ago.
            let _ = self.update(now, sequence, update);
        }
    }

    fn allowed(&self, state: ServiceState) -> ServiceState {
        match state {
            ServiceState::Online if self.draining => ServiceState::Draining,
            state => state,
        }
    }

    /// Removes one of this node's own services.
    pub fn remove(&mut self, now: Instant, sequence: u64) -> Result<Arc<ServiceInfo>, UpdateError> {
        let before = self
            .log
            .remove(sequence)
            .ok_or(UpdateError::Unknown { sequence })?;
        self.names.release(&before);
        self.changes.push(EntryChange {
            before: Some(Arc::clone(&before)),
            after: None,
        });
        self.own_change(now);
        Ok(before)
    }

    /// Rule: this node took a new generation: every entry is published anew, and keeps its identity.
    pub fn renew(&mut self, now: Instant, me: NodeId) {
        self.counts.renewals += 1;
        self.me = me.clone();
        self.expected.remove(&me);
        for (before, after) in self.log.renew(me) {
            self.changes.push(EntryChange {
                before: Some(before),
                after: Some(after),
            });
        }
        // Every link says Hello again, and starts with the versions.
        self.sent = self.log.version();
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
            // Rule: a new generation replaces the old entries.
            if other.generation < node.generation {
                self.forget(&other);
            } else {
                self.hide(now, &other);
            }
        }
        let linked = self.peers.contains_key(node);
        let confirming = self.rules.confirming;
        let owner = self.owner(now, node);
        owner.up = true;
        owner.was_up = true;
        owner.progress_at = now;
        owner.waited_out = false;
        owner.confirmed = !confirming && owner.replica.version().is_some();
        if linked {
            // What was learnt over this link before still holds: the owner's own word, and nothing lost since.
            owner.confirmed |=
                owner.word && owner.replica.version().is_some() && owner.is_complete();
        }
        self.judge(now, node);
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
        self.peers.insert(peer.clone(), Peer::default());
        if let Some(owner) = self.owners.get_mut(peer) {
            owner.word = false;
            owner.hearsay.forget_told();
            owner.tokens = Tokens::new(now);
        }
        // Rule: on every (re)connect the full vector goes.
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
            owner.word = false;
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
        if self.flush_at.is_some_and(|at| at <= now) {
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
        let next = earliest(self.flush_at, Some(self.tick_at));
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
        if self.flush_at.is_none() && self.sent < self.log.version() {
            self.flush_at = Some(now + COALESCE);
        }
    }

    /// Sends what changed since the last time to everybody, encoded once: as much as one turn may take.
    fn flush(&mut self, now: Instant) {
        let deltas = self
            .log
            .since(self.sent, MAX_FLUSHED_DELTAS, MAX_DELTA_BYTES);
        let last = deltas.as_ref().and_then(|deltas| deltas.last());
        self.sent = last.map_or(self.log.version(), |last| last.to);
        self.flush_at = (self.sent < self.log.version()).then(|| now + COALESCE);
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
        // Rule: a single writer. Only the owner's own link carries its deltas.
        if delta.owner != *from || delta.from > delta.to {
            self.reject(from, "a delta of another owner's entries");
            return;
        }
        let (to, content) = (delta.to, delta.content);
        let contiguity = self.rules.contiguity;
        let patience = self.config.down_period;
        let owner = self.owner(now, from);
        let mut delta = delta;
        if !contiguity && let Some(have) = owner.replica.version() {
            delta.from = delta.from.min(have);
        }
        if delta.from == delta.to {
            // The answer to a request: that is all there is.
            owner.hearsay.contradict_asked(now, to);
            owner.heed(now, to, patience);
            owner.said = Some((to, content));
        } else {
            owner.word = true;
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
        self.judge(now, from);
    }

    /// What is to be done about one owner: fetch what is missing, show what is complete.
    fn judge(&mut self, now: Instant, node: &NodeId) {
        if !self.confirmations.owes_nothing() {
            self.answer_awaited(node);
        }
        let hiding = self.rules.hiding;
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

    /// Rule: down hides.
    fn hide(&mut self, now: Instant, node: &NodeId) {
        self.give_up_fetch(node);
        let hiding = self.rules.hiding;
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
            self.judge(now, &node);
            self.ask_for_word(&node);
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
        if !self.rules.forgetting {
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
