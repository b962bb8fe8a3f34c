//! Who holds the state of a key: a token for each slot of each service type whose states move with their keys.
//!
//! A view says who *should* hold a slot; only the token says who *does*. It is at one instance, or in one transfer. Whoever
//! is first for a slot by its view and does not hold it *claims*: it asks the expected holder first, then everybody. The
//! holder serves on until the first piece of the states goes out; the claimant holds once it has adopted all of them; whoever
//! gave it away points there. There is no coordinator and no number that all agree on.
//!
//! Inputs are `handle_*(now, …)` and the commands; after each of them [`poll_transmit`](Ownership::poll_transmit) and
//! [`poll_event`](Ownership::poll_event) are emptied, and [`handle_timeout`](Ownership::handle_timeout) is called no later
//! than [`poll_timeout`](Ownership::poll_timeout) says.
//!
//! The rules are named where they are followed:
//!
//! | rule | what it says |
//! |---|---|
//! | R1 | no claim before this node is synced, and none by one that knows nobody any more until it has looked for the others |
//! | R2 | who is first by its view claims; the expected holder is asked first, then everybody |
//! | R3 | an answer counts for the question that it answers; who goes down unanswered starts the questions of its round anew |
//! | R4 | answers name members that the claimant may not know; these are asked, too |
//! | R5 | a holder yields to whoever outranks it, and else says who it is; a claimant without states yields at once |
//! | R6 | states are adopted by a claim of the round that they were sent for |
//! | R7 | who gave a slot away says to whom |
//! | R8 | freeze when the first piece goes out, keep until it was adopted, pass on only what is settled; few pieces at a time |
//! | R9 | who is down here is not heard |
//! | R10 | what becomes of calls: [`Ownership::gate`] |
//! | R11 | who holds what is another's says so; where two copies meet they merge |
//! | R12 | who stood still for long asks before it serves on |
//! | R13 | what is not answered is said again; who is silent for long counts as down for that slot |
//! | R14 | who leaves is offline at once, and gone when it has nothing any more: [`Ownership::is_idle`] |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::entry::ServiceInfo;
use crate::id::{NodeId, NodeName, ServiceId, ServiceType};
use crate::key::{KEYED_SHIFT, KEYED_SLOTS, SLOTS};
use crate::limits::MAX_KNOWN_NODES;
use crate::time::{Instant, earliest};

mod answer;
mod claim;
pub mod message;
mod outcomes;
mod ranks;
mod rules;
mod slots;
#[cfg(test)]
mod tests;
mod transfer;

pub use rules::TokenRules;
pub use slots::{MAX_RUNS, SlotSet};

use claim::{Claiming, Group};
use message::{
    Ack, Answer, Claim, MAX_BUNDLE, MAX_PIECE_BYTES, Offer, Outcome, Piece, Place, Standing,
    TokenMessage, Which,
};
use outcomes::Outcomes;
use ranks::Ranks;
use transfer::{Frozen, Partial};

/// R8: most pieces that are on their way to one node and not acknowledged. It bounds what is kept for a slow one, and lets
/// what is still to be sent be served meanwhile. Pieces that are not full count by their bytes, as so many parts of a full one.
pub const WINDOW: u32 = 4;

/// R8: a piece counts as at least one of so many parts. Most slots have few keys, or none: if each counted as a whole, moving
/// thousands of them would take a round trip for every [`WINDOW`].
const PARTS: u32 = 64;

/// R13: how long somebody who is up may be silent before it counts as down for a slot.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// R13: patience is at least so many times the `down_period`: whoever is dead is found out by membership first.
const MIN_PATIENCE_IN_DOWN_PERIODS: u32 = 3;

/// Most bytes of states of which not all pieces have come, from all peers together: twice what one slot can hold in pieces of
/// half a megabyte. What is beyond is refused: its giver serves on, and is asked again.
const MAX_ARRIVING_BYTES: usize = 1024 * 1024 * 1024;

/// R11: what is here and another's by the view for this long is offered, and again after each such time.
const OFFER: Duration = Duration::from_millis(500);

/// R7: a pointer is kept for this long.
const POINTER_LIVES: Duration = Duration::from_secs(60);

/// Bytes after which a bundle of claims or answers is sent: half of a control frame.
const BUNDLE_BYTES: usize = 512 * 1024;

/// What the state machine is started with.
#[derive(Clone, Debug)]
pub struct OwnershipConfig {
    slots: u32,
    /// Each is so many of placement's, as a power of two; the first of them stands for it.
    shift: u32,
    down_period: Duration,
    patience: Duration,
    piece_bytes: usize,
    /// In parts of a full piece.
    window: u32,
    /// Pieces that are not full count by their bytes.
    by_bytes: bool,
    arriving_bytes: usize,
}

impl OwnershipConfig {
    /// All [`KEYED_SLOTS`], and the usual bounds; `down_period` is membership's.
    pub fn new(down_period: Duration) -> Self {
        OwnershipConfig {
            slots: KEYED_SLOTS as u32,
            shift: KEYED_SHIFT,
            down_period,
            patience: DEFAULT_PATIENCE.max(down_period * MIN_PATIENCE_IN_DOWN_PERIODS),
            piece_bytes: MAX_PIECE_BYTES,
            window: WINDOW * PARTS,
            by_bytes: true,
            arriving_bytes: MAX_ARRIVING_BYTES,
        }
    }

    /// The first so many slots of placement, each by itself, for a simulator: 1 to [`SLOTS`]. Every piece counts as a full one,
    /// so that few slots are many.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots.clamp(1, SLOTS as u32);
        self.shift = 0;
        self.by_bytes = false;
        self
    }

    /// How long whoever is up may be silent; at least three `down_period`s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.max(self.down_period * MIN_PATIENCE_IN_DOWN_PERIODS);
        self
    }

    /// Most bytes of states of which not all pieces have come; 1 GiB unless this says otherwise.
    #[must_use]
    pub fn arriving_bytes(mut self, bytes: usize) -> Self {
        self.arriving_bytes = bytes;
        self
    }

    /// What a piece of so many bytes counts as, in parts of a full one.
    fn parts(&self, bytes: usize) -> u32 {
        if !self.by_bytes {
            return PARTS;
        }
        let parts = (bytes * PARTS as usize).div_ceil(self.piece_bytes);
        u32::try_from(parts).unwrap_or(PARTS).clamp(1, PARTS)
    }

    /// What a slot counts as whose states are not there yet: nobody knows how many bytes they are.
    fn preparing(&self) -> u32 {
        if self.by_bytes { PARTS / 8 } else { PARTS }
    }

    /// Bytes of a piece of states: 1 to [`MAX_PIECE_BYTES`].
    #[must_use]
    pub fn piece_bytes(mut self, bytes: usize) -> Self {
        self.piece_bytes = bytes.clamp(1, MAX_PIECE_BYTES);
        self
    }
}

/// How adopted states are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// They are all that there is.
    Whole,
    /// R11: another copy is held here; what came is merged into it.
    MergeIntoOurs,
    /// R12: what is here was in doubt and is older; it is merged into what came.
    MergeOursInto,
}

/// What the state machine tells whoever holds the states.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenEvent {
    /// These slots are held here now, and there were no states of them anywhere that could be asked.
    Anew {
        /// The type.
        service_type: ServiceType,
        /// The instance that holds.
        instance: ServiceId,
        /// The slots.
        slots: SlotSet,
    },
    /// The slot is served no more: its states are to be handed to [`Ownership::give`], and kept until
    /// [`TokenEvent::Released`] or [`TokenEvent::TakenBack`].
    Give {
        /// The type.
        service_type: ServiceType,
        /// The instance that gives.
        instance: ServiceId,
        /// The slot.
        slot: u32,
        /// What the states are to be given for.
        transfer: u64,
    },
    /// The slot is held here now, with these states.
    Adopted {
        /// The type.
        service_type: ServiceType,
        /// The instance that holds.
        instance: ServiceId,
        /// The slot.
        slot: u32,
        /// Who gave it.
        from: ServiceId,
        /// The giver's number for it.
        transfer: u64,
        /// By key.
        states: Vec<(Bytes, Bytes)>,
        /// What becomes of states that were here.
        how: Adoption,
    },
    /// The receiver has adopted the states: they are to be dropped here.
    Released {
        /// The type.
        service_type: ServiceType,
        /// The instance that gave.
        instance: ServiceId,
        /// The slot.
        slot: u32,
        /// Who holds it now.
        to: ServiceId,
    },
    /// The receiver did not adopt the states: the slot is held here again.
    TakenBack {
        /// The type.
        service_type: ServiceType,
        /// The instance that holds.
        instance: ServiceId,
        /// The slot.
        slot: u32,
    },
    /// What becomes of calls for these slots has changed: those that wait are to ask [`Ownership::gate`] again.
    Gate {
        /// The type.
        service_type: ServiceType,
        /// The instance.
        instance: ServiceId,
        /// The slots.
        slots: SlotSet,
    },
    /// States are gone without a receiver: the instance was taken out of the registry while it held them.
    Lost {
        /// The type.
        service_type: ServiceType,
        /// The instance.
        instance: ServiceId,
        /// The slots.
        slots: SlotSet,
    },
    /// R13: that node is up and has been silent for as long as patience lasts; it counts as down for these slots.
    Impatient {
        /// The type.
        service_type: ServiceType,
        /// The instance that waited.
        instance: ServiceId,
        /// Who is silent.
        peer: NodeId,
        /// The slots.
        slots: SlotSet,
    },
    /// R1: this node knows nobody any more. It claims again once it has dialled all seeds, and
    /// [`Ownership::handle_synced`] was called.
    Alone,
}

/// What becomes of a call for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It runs at this instance.
    Run(ServiceId),
    /// It waits at this instance.
    Park(ServiceId),
    /// Its caller is told to go there, where that is known.
    Moved(Option<ServiceId>),
}

/// How often what happened, for operators and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCounts {
    /// Claims that were sent, to one node about one type each.
    pub claims: u64,
    /// Answers.
    pub answers: u64,
    /// Offers.
    pub offers: u64,
    /// Pieces.
    pub pieces: u64,
    /// Acknowledgements of pieces.
    pub acks: u64,
    /// "Settled".
    pub settled: u64,
    /// R13: questions, pieces and acknowledgements that were said again, since no answer had come.
    pub repeated: u64,
    /// Pieces that nobody wanted.
    pub refused: u64,
    /// Times that patience ended.
    pub impatience: u64,
    /// Messages of lives that are not up here.
    pub unheard: u64,
    /// Most pieces on their way to one node at once.
    pub most_in_flight: u32,
    /// Slots that were named in claims.
    pub named: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Ownership {
    hub: Hub,
    types: BTreeMap<ServiceType, Keyed>,
}

/// What all types share.
#[derive(Clone, Debug)]
struct Hub {
    config: OwnershipConfig,
    rules: TokenRules,
    me: NodeId,
    nonce: u64,
    peers: BTreeMap<NodeName, Peer>,
    /// Lives that went down, or left.
    gone: BTreeSet<NodeId>,
    /// R4: members that others know and this node does not, and until when they are waited for.
    strangers: BTreeMap<NodeId, Instant>,
    /// R1.
    ready: bool,
    leaving: bool,
    questions: u64,
    partials: BTreeMap<(NodeId, u64), Partial>,
    outcomes: Outcomes,
    claims: BTreeMap<NodeId, Vec<Claim>>,
    answers: BTreeMap<NodeId, Vec<Answer>>,
    offers: BTreeMap<NodeId, Vec<Offer>>,
    transmits: VecDeque<(NodeId, TokenMessage)>,
    /// What this node's own instances say to each other.
    loopback: VecDeque<TokenMessage>,
    events: VecDeque<TokenEvent>,
    /// Told after all else: whoever asks again what becomes of a call has taken in by then what was adopted.
    gates: BTreeMap<(ServiceType, ServiceId), SlotSet>,
    due: Option<Instant>,
    members_hash: u64,
    counts: TokenCounts,
}

#[derive(Clone, Debug)]
struct Peer {
    node: NodeId,
    /// It speaks a version of the protocol that knows of tokens.
    speaks: bool,
}

/// One type whose states move with their keys.
#[derive(Clone, Debug)]
struct Keyed {
    service_type: ServiceType,
    ranks: Ranks,
    instances: Vec<Instance>,
    /// R7.
    pointers: BTreeMap<u32, (Place, Instant)>,
}

/// One of this node's own instances. A slot is in one of `held`, `claims` and `frozen`, or away.
#[derive(Clone, Debug)]
struct Instance {
    standing: Standing,
    /// What it is first for, by this node's view of that hash.
    first: SlotSet,
    first_by: Option<(u64, Standing)>,
    held: SlotSet,
    claims: BTreeMap<u32, Claiming>,
    frozen: BTreeMap<u32, Frozen>,
    /// R5: the slots that somebody wants, which `extras` tells of, and how many each node wants.
    wanted: BTreeSet<u32>,
    claimants: BTreeMap<NodeId, usize>,
    /// Slots with states that could not be given, and until when that is not tried again.
    kept_back: BTreeMap<u32, Instant>,
    /// What else there is to know of slots that are here.
    extras: BTreeMap<u32, Extra>,
    groups: BTreeMap<u64, Group>,
    rounds: u64,
}

#[derive(Clone, Debug, Default)]
struct Extra {
    /// R5: the best claimant.
    wanted: Option<Wanted>,
    /// R8: the givers that do not know yet.
    unsettled: SmallVec<[Unsettled; 1]>,
    /// R11: since when it is another's.
    not_first: Option<Instant>,
    keep_not_first: bool,
    offered: Option<Instant>,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.wanted.is_none() && self.unsettled.is_empty() && self.not_first.is_none()
    }
}

#[derive(Clone, Debug)]
struct Wanted {
    place: Place,
    standing: Standing,
    round: u64,
}

#[derive(Clone, Debug)]
struct Unsettled {
    giver: Place,
    transfer: u64,
    /// When it was last told.
    at: Instant,
    since: Instant,
}

impl Ownership {
    /// For a node of that life, in a process of that nonce, which knows nobody yet.
    pub fn new(config: OwnershipConfig, me: NodeId, nonce: u64) -> Self {
        let mut hub = Hub {
            config,
            rules: TokenRules::default(),
            me,
            nonce,
            peers: BTreeMap::new(),
            gone: BTreeSet::new(),
            strangers: BTreeMap::new(),
            ready: false,
            leaving: false,
            questions: 0,
            partials: BTreeMap::new(),
            outcomes: Outcomes::default(),
            claims: BTreeMap::new(),
            answers: BTreeMap::new(),
            offers: BTreeMap::new(),
            transmits: VecDeque::new(),
            loopback: VecDeque::new(),
            events: VecDeque::new(),
            gates: BTreeMap::new(),
            due: None,
            members_hash: 0,
            counts: TokenCounts::default(),
        };
        hub.rehash();
        Ownership {
            hub,
            types: BTreeMap::new(),
        }
    }

    /// Turns rules off, for tests that show what happens without them.
    #[cfg(any(test, feature = "fault-switches"))]
    pub fn set_rules(&mut self, rules: TokenRules) {
        self.hub.rules = rules;
    }

    /// The rules that hold.
    pub fn rules(&self) -> &TokenRules {
        &self.hub.rules
    }

    /// How often what happened.
    pub fn counts(&self) -> TokenCounts {
        self.hub.counts
    }

    /// True while R1 lets this node claim.
    pub fn is_ready(&self) -> bool {
        self.hub.ready
    }

    /// The states of this type move with their keys. A type that this is never said of costs nothing.
    pub fn keep(&mut self, service_type: &ServiceType) {
        self.types
            .entry(service_type.clone())
            .or_insert_with(|| Keyed {
                service_type: service_type.clone(),
                ranks: Ranks::new(self.hub.config.shift),
                instances: Vec::new(),
                pointers: BTreeMap::new(),
            });
    }

    /// This node may route: every owner that is up has been synced. Also said after [`TokenEvent::Alone`], once all seeds
    /// were dialled again.
    pub fn handle_synced(&mut self, now: Instant) {
        self.hub.ready = true;
        self.review(now);
        self.settle(now);
    }

    /// A node is up; `speaks` says whether its protocol knows of tokens: who does not is not asked. Whoever is up and has not
    /// said its version yet is taken to know them, and this is said again when it has.
    pub fn handle_up(&mut self, now: Instant, node: &NodeId, speaks: bool) {
        if node.name == self.hub.me.name {
            return;
        }
        let known = self.hub.peers.get_mut(&node.name);
        if let Some(known) = known.filter(|peer| peer.node == *node) {
            if std::mem::replace(&mut known.speaks, speaks) && !speaks {
                // It was asked before its version was known, and will never answer.
                for keyed in self.types.values_mut() {
                    for at in 0..keyed.instances.len() {
                        keyed.stop_asking(&mut self.hub, now, at, node);
                    }
                }
                self.conclude(now);
                self.settle(now);
            }
            return;
        }
        let known = self.hub.peers.get(&node.name);
        if let Some(before) = known.map(|peer| peer.node.clone()) {
            self.end_life(now, &before);
        }
        self.hub.gone.remove(node);
        self.hub.strangers.remove(node);
        let peer = Peer {
            node: node.clone(),
            speaks,
        };
        self.hub.peers.insert(node.name.clone(), peer);
        self.hub.rehash();
        self.review(now);
        self.settle(now);
    }

    /// A node is down, or has left.
    pub fn handle_down(&mut self, now: Instant, node: &NodeId) {
        if node.name == self.hub.me.name || self.hub.gone.contains(node) {
            return;
        }
        self.end_life(now, node);
        let hub = &mut self.hub;
        if hub.peers.is_empty()
            && hub.ready
            && !hub.leaving
            && hub.rules.still_synced
            && hub.rules.synced
        {
            // R1: whoever knows nobody cannot have asked everybody who could hold. Two newcomers that had met nobody but a
            // node that has just died would both begin anew.
            hub.ready = false;
            hub.events.push_back(TokenEvent::Alone);
            for keyed in self.types.values_mut() {
                keyed.suspend(&mut self.hub);
            }
        }
        self.conclude(now);
        self.review(now);
        self.settle(now);
    }

    /// This node took a new generation; its instances are the same.
    pub fn handle_renewed(&mut self, node: NodeId) {
        self.hub.me = node;
        self.hub.rehash();
    }

    /// The view of a type, as it is now; of one that is not kept, nothing is done.
    pub fn handle_view(
        &mut self,
        now: Instant,
        service_type: &ServiceType,
        services: &[Arc<ServiceInfo>],
    ) {
        let Some(keyed) = self.types.get_mut(service_type) else {
            return;
        };
        keyed.set_view(&mut self.hub, services);
        self.review(now);
        self.settle(now);
    }

    /// R12: this process stood still for so long that others may have taken it for dead, or they say that they did. Every
    /// slot is asked for before it is served on.
    pub fn handle_doubt(&mut self, now: Instant) {
        if self.hub.rules.doubts {
            for keyed in self.types.values_mut() {
                keyed.doubt(&mut self.hub, now);
            }
        }
        self.settle(now);
    }

    /// R14: this node is about to go, and does not look for others when it knows nobody any more. Its instances are taken
    /// offline in the registry.
    pub fn set_leaving(&mut self) {
        self.hub.leaving = true;
    }

    /// A message of a node.
    pub fn handle_message(&mut self, now: Instant, from: &NodeId, message: TokenMessage) {
        // R9: the dead do not speak. What one sent before its slots were begun anew would make a second holder.
        if self.hub.rules.dead_are_silent && !self.hub.is_up(from) {
            self.hub.counts.unheard += 1;
            return;
        }
        self.dispatch(now, from, message);
        self.settle(now);
    }

    /// The states of a slot for which [`TokenEvent::Give`] asked. False where they are not wanted any more, or too large to
    /// travel; the slot is served here again then.
    pub fn give(&mut self, now: Instant, transfer: u64, states: &[(Bytes, Bytes)]) -> bool {
        let mut given = false;
        for keyed in self.types.values_mut() {
            given = given || keyed.give(&mut self.hub, now, transfer, states);
        }
        self.settle(now);
        given
    }

    /// There are states of a slot for which [`TokenEvent::Give`] asked that cannot be given: they do not encode, or are over a
    /// bound. The slot is served here again, and is not asked for again for a second.
    pub fn keep_back(&mut self, now: Instant, transfer: u64) {
        for keyed in self.types.values_mut() {
            keyed.keep_back(&mut self.hub, now, transfer);
        }
        self.settle(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.hub.due
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.hub.due.is_none_or(|due| due > now) {
            return;
        }
        self.hub.due = None;
        for keyed in self.types.values_mut() {
            let hub = &mut self.hub;
            for at in 0..keyed.instances.len() {
                keyed.lose_patience(hub, now, at);
                keyed.ask_due(hub, now, at);
                keyed.resend(hub, now, at);
                keyed.offer(hub, now, at);
                keyed.conclude(hub, now, at);
            }
            keyed.ranks.expire(now, hub.said_lives());
            if let Some(next) = keyed.ranks.next_expiry(hub.said_lives()) {
                hub.schedule(next);
            }
            keyed
                .pointers
                .retain(|_, (_, since)| now.since(*since) < POINTER_LIVES);
            if let Some(next) = keyed.pointers.values().map(|(_, since)| *since).min() {
                hub.schedule(next + POINTER_LIVES);
            }
        }
        if let Some(next) = self.hub.outcomes.expire(now) {
            self.hub.schedule(next);
        }
        self.review(now);
        self.settle(now);
    }

    /// The next message, and to whom.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, TokenMessage)> {
        self.hub.transmits.pop_front()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<TokenEvent> {
        self.hub.events.pop_front().or_else(|| {
            let ((service_type, instance), slots) = self.hub.gates.pop_first()?;
            Some(TokenEvent::Gate {
                service_type,
                instance,
                slots,
            })
        })
    }

    /// R10: what becomes of a call that came for an instance of this node.
    pub fn gate(&self, service_type: &ServiceType, slot: u32, to: &ServiceId) -> Gate {
        let Some(keyed) = self.types.get(service_type) else {
            return Gate::Moved(None);
        };
        keyed.gate(&self.hub, slot, to)
    }

    /// Who should hold the slot, by what is known of the type here.
    pub fn first(&self, service_type: &ServiceType, slot: u32) -> Option<&ServiceId> {
        let first = self.types.get(service_type)?.ranks.first(slot)?;
        Some(&first.id)
    }

    /// What an instance has of a slot, for tests and operators.
    pub fn holding(&self, service_type: &ServiceType, id: &ServiceId, slot: u32) -> Holding {
        let instance = self
            .types
            .get(service_type)
            .and_then(|keyed| Some(&keyed.instances[keyed.at(id)?]));
        let Some(instance) = instance else {
            return Holding::Away;
        };
        if instance.held.contains(slot) {
            Holding::Held
        } else if let Some(claim) = instance.claims.get(&slot) {
            Holding::Claiming { copy: claim.copy }
        } else if instance.frozen.contains_key(&slot) {
            Holding::Frozen
        } else {
            Holding::Away
        }
    }

    /// What is not at rest, in words; nothing where all is.
    pub fn unrest(&self) -> Option<String> {
        let partial = self.hub.partials.values().next();
        if let Some(partial) = partial {
            return Some(format!(
                "half of slot {} has come for {}",
                partial.slot, partial.to
            ));
        }
        for instance in self.types.values().flat_map(|keyed| &keyed.instances) {
            let id = &instance.standing.id;
            if let Some((slot, claim)) = instance.claims.iter().next() {
                return Some(format!(
                    "{id} claims slot {slot}: {claim:?}, {:?}",
                    instance.groups.get(&claim.round)
                ));
            }
            if let Some((slot, frozen)) = instance.frozen.iter().next() {
                return Some(format!("{id} has frozen slot {slot} for {:?}", frozen.to));
            }
            let mut extras = instance.extras.iter();
            if let Some((slot, extra)) = extras.find(|(_, extra)| !extra.is_empty()) {
                return Some(format!("{id} has of slot {slot} {extra:?}"));
            }
        }
        None
    }

    /// True where nothing is held, claimed or frozen here: a node that leaves may go (R14).
    pub fn is_idle(&self) -> bool {
        let mut instances = self.types.values().flat_map(|keyed| &keyed.instances);
        instances.all(Instance::is_idle)
    }

    /// The same of one instance: one that is stopped may be taken out of the registry.
    pub fn is_instance_idle(&self, service_type: &ServiceType, id: &ServiceId) -> bool {
        let instance = self
            .types
            .get(service_type)
            .and_then(|keyed| Some(&keyed.instances[keyed.at(id)?]));
        instance.is_none_or(Instance::is_idle)
    }

    fn end_life(&mut self, now: Instant, node: &NodeId) {
        self.hub.bury(now, node);
        for keyed in self.types.values_mut() {
            keyed.end_life(&mut self.hub, now, node);
        }
    }

    fn dispatch(&mut self, now: Instant, from: &NodeId, message: TokenMessage) {
        match message {
            TokenMessage::Claims(claims) => {
                for claim in claims {
                    match self.types.get_mut(&claim.service_type) {
                        Some(keyed) => keyed.handle_claim(&mut self.hub, now, from, &claim),
                        None => self.hub.has_nothing(from, claim),
                    }
                }
            }
            TokenMessage::Answers(answers) => {
                for answer in answers {
                    if let Some(keyed) = self.types.get_mut(&answer.service_type) {
                        keyed.handle_answer(&mut self.hub, now, from, &answer);
                    }
                }
            }
            TokenMessage::Offers(offers) => {
                for offer in offers {
                    if let Some(keyed) = self.types.get_mut(&offer.service_type) {
                        keyed.handle_offer(&mut self.hub, now, from, &offer);
                    }
                }
            }
            TokenMessage::Piece(piece) => match self.types.get_mut(&piece.service_type) {
                Some(keyed) => keyed.handle_piece(&mut self.hub, now, from, piece),
                None => self.hub.ack(from, &piece, Outcome::Refused),
            },
            TokenMessage::Ack(ack) => {
                if let Some(keyed) = self.types.get_mut(&ack.service_type) {
                    keyed.handle_ack(&mut self.hub, now, from, &ack);
                }
            }
            TokenMessage::Settled(settled) => {
                if let Some(keyed) = self.types.get_mut(&settled.service_type) {
                    keyed.handle_settled(&settled);
                }
            }
        }
    }

    fn review(&mut self, now: Instant) {
        for keyed in self.types.values_mut() {
            keyed.review(&mut self.hub, now);
        }
    }

    fn conclude(&mut self, now: Instant) {
        for keyed in self.types.values_mut() {
            for at in 0..keyed.instances.len() {
                keyed.ask_due(&mut self.hub, now, at);
                keyed.conclude(&mut self.hub, now, at);
            }
        }
    }

    /// Lets this node's instances hear of each other until nothing is left to say, and sends what may go.
    fn settle(&mut self, now: Instant) {
        loop {
            self.pump(now);
            self.hub.bundle();
            let Some(message) = self.hub.loopback.pop_front() else {
                break;
            };
            let me = self.hub.me.clone();
            self.dispatch(now, &me, message);
        }
    }

    fn pump(&mut self, now: Instant) {
        let frozen = self.types.values().flat_map(|keyed| &keyed.instances);
        let frozen = frozen.flat_map(|instance| instance.frozen.values());
        let mut in_flight: BTreeMap<NodeId, u32> = BTreeMap::new();
        for frozen in frozen {
            let parts = frozen.in_flight(&self.hub.config, now);
            *in_flight.entry(frozen.to.node.clone()).or_default() += parts;
        }
        for keyed in self.types.values_mut() {
            keyed.pump(&mut self.hub, now, &mut in_flight);
        }
        let most = in_flight.values().copied().max().unwrap_or(0);
        let most = most.div_ceil(PARTS);
        self.hub.counts.most_in_flight = self.hub.counts.most_in_flight.max(most);
    }
}

/// Who is first for each slot of the product, for the tests of views.
#[cfg(test)]
pub(crate) fn ranks_of(services: &[Arc<ServiceInfo>]) -> impl FnMut(u32) -> Option<ServiceId> {
    let mut ranks = Ranks::new(KEYED_SHIFT);
    ranks.set_view(services);
    move |slot| ranks.first(slot).map(|first| first.id.clone())
}

/// What an instance has of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing.
    Away,
    /// It asks for it; with a copy, its states are here and in doubt.
    Claiming {
        /// The states are here.
        copy: bool,
    },
    /// It serves it.
    Held,
    /// It is giving it away.
    Frozen,
}

impl Hub {
    fn rehash(&mut self) {
        let ids: BTreeSet<&NodeId> = self
            .peers
            .values()
            .map(|peer| &peer.node)
            .chain([&self.me])
            .collect();
        self.members_hash = postcard::to_allocvec(&ids).map_or(0, |bytes| xxh3_64(&bytes));
    }

    /// How long what an instance says of itself counts that the registry does not list.
    fn said_lives(&self) -> Duration {
        2 * self.config.down_period
    }

    fn members_hash(&self) -> u64 {
        self.members_hash
    }

    fn members(&self) -> Vec<NodeId> {
        let members = self.peers.values().map(|peer| &peer.node).chain([&self.me]);
        members.take(MAX_KNOWN_NODES).cloned().collect()
    }

    fn is_up(&self, node: &NodeId) -> bool {
        *node == self.me
            || self
                .peers
                .get(&node.name)
                .is_some_and(|peer| peer.node == *node)
    }

    /// The life of that name that is up, where it can be asked.
    fn node_of(&self, name: &NodeName) -> Option<NodeId> {
        if *name == self.me.name {
            return Some(self.me.clone());
        }
        self.peers
            .get(name)
            .filter(|peer| peer.speaks)
            .map(|peer| peer.node.clone())
    }

    fn bury(&mut self, now: Instant, node: &NodeId) {
        if self
            .peers
            .get(&node.name)
            .is_some_and(|peer| peer.node == *node)
        {
            self.peers.remove(&node.name);
        }
        while self.gone.len() >= MAX_KNOWN_NODES {
            self.gone.pop_first();
        }
        self.gone.insert(node.clone());
        self.strangers.remove(node);
        self.partials.retain(|(from, _), _| from != node);
        self.keep_outcomes(now, node);
        self.claims.remove(node);
        self.answers.remove(node);
        self.offers.remove(node);
        self.rehash();
    }

    fn question(&mut self) -> u64 {
        self.questions += 1;
        self.questions
    }

    fn schedule(&mut self, at: Instant) {
        self.due = earliest(self.due, Some(at));
    }

    fn claim(&mut self, to: &NodeId, claim: Claim) {
        self.counts.claims += 1;
        if let Which::Slots(slots) = &claim.which {
            self.counts.named += slots.len() as u64;
        }
        self.claims.entry(to.clone()).or_default().push(claim);
    }

    fn answer(&mut self, to: &NodeId, answer: Answer) {
        self.counts.answers += 1;
        self.answers.entry(to.clone()).or_default().push(answer);
    }

    /// Nothing of that type was ever here.
    fn has_nothing(&mut self, to: &NodeId, claim: Claim) {
        let differs = self.rules.closure && claim.members != self.members_hash;
        let answer = Answer {
            service_type: claim.service_type,
            claimant: claim.claimant.id,
            round: claim.round,
            question: claim.question,
            differs: false,
            said: Vec::new(),
            standings: Vec::new(),
            members: if differs { self.members() } else { Vec::new() },
        };
        self.answer(to, answer);
    }

    fn ack(&mut self, to: &NodeId, piece: &Piece, outcome: Outcome) {
        self.counts.refused += u64::from(outcome == Outcome::Refused);
        let ack = Ack {
            service_type: piece.service_type.clone(),
            transfer: piece.transfer,
            from: piece.to.clone(),
            to: piece.from.clone(),
            slot: piece.slot,
            piece: piece.piece,
            outcome,
        };
        self.send(to, TokenMessage::Ack(ack));
    }

    fn send(&mut self, to: &NodeId, message: TokenMessage) {
        match &message {
            TokenMessage::Piece(_) => self.counts.pieces += 1,
            TokenMessage::Ack(_) => self.counts.acks += 1,
            TokenMessage::Settled(_) => self.counts.settled += 1,
            _ => {}
        }
        if *to == self.me {
            self.loopback.push_back(message);
        } else {
            self.transmits.push_back((to.clone(), message));
        }
    }

    /// What there is to say to one node of all types goes together.
    fn bundle(&mut self) {
        fn parts<T>(all: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
            let mut parts: Vec<Vec<T>> = Vec::new();
            let mut bytes = BUNDLE_BYTES;
            for one in all {
                let more = size(&one);
                if bytes + more > BUNDLE_BYTES
                    || parts.last().is_none_or(|part| part.len() >= MAX_BUNDLE)
                {
                    parts.push(Vec::new());
                    bytes = 0;
                }
                bytes += more;
                if let Some(part) = parts.last_mut() {
                    part.push(one);
                }
            }
            parts
        }
        // A run is at most two numbers of three bytes; names at most 255 bytes each.
        const HEAD: usize = 2 * 1024;
        for (to, claims) in std::mem::take(&mut self.claims) {
            let size = |claim: &Claim| match &claim.which {
                Which::Slots(slots) => HEAD + 6 * slots.runs(),
                Which::First { .. } => HEAD,
            };
            for part in parts(claims, size) {
                self.send(&to, TokenMessage::Claims(part));
            }
        }
        for (to, answers) in std::mem::take(&mut self.answers) {
            let size = |answer: &Answer| {
                let runs: usize = answer.said.iter().map(|(slots, _)| slots.runs()).sum();
                HEAD + 6 * runs + HEAD * answer.standings.len() + 64 * answer.members.len()
            };
            for part in parts(answers, size) {
                self.send(&to, TokenMessage::Answers(part));
            }
        }
        for (to, offers) in std::mem::take(&mut self.offers) {
            self.counts.offers += offers.len() as u64;
            for part in parts(offers, |offer: &Offer| HEAD + 6 * offer.slots.runs()) {
                self.send(&to, TokenMessage::Offers(part));
            }
        }
    }

    fn tell(
        &mut self,
        (service_type, id): &(ServiceType, ServiceId),
        slots: SlotSet,
        event: impl Fn(ServiceType, ServiceId, SlotSet) -> TokenEvent,
    ) {
        if !slots.is_empty() {
            self.events
                .push_back(event(service_type.clone(), id.clone(), slots));
        }
    }

    fn gates(&mut self, service_type: &ServiceType, id: &ServiceId, slots: SlotSet) {
        if slots.is_empty() {
            return;
        }
        let known = self
            .gates
            .entry((service_type.clone(), id.clone()))
            .or_default();
        for slot in slots.iter() {
            known.insert(slot);
        }
    }

    fn lose_patience(
        &mut self,
        service_type: &ServiceType,
        id: &ServiceId,
        peer: NodeId,
        slots: SlotSet,
    ) {
        self.counts.impatience += 1;
        tracing::warn!(%peer, %service_type, slots = slots.len(), "is up and silent: it counts as down for these slots");
        self.events.push_back(TokenEvent::Impatient {
            service_type: service_type.clone(),
            instance: id.clone(),
            peer,
            slots,
        });
    }

    /// What has come of a slot so far is of no use any more; of one sender, only what came before that transfer.
    fn drop_partials(&mut self, to: &ServiceId, slot: u32, before: Option<(&NodeId, u64)>) {
        self.partials.retain(|(from, transfer), partial| {
            partial.slot != slot
                || partial.to != *to
                || before.is_some_and(|(sender, newer)| from != sender || *transfer >= newer)
        });
    }
}

impl Instance {
    fn new(standing: Standing) -> Self {
        Instance {
            standing,
            first: SlotSet::new(),
            first_by: None,
            held: SlotSet::new(),
            claims: BTreeMap::new(),
            frozen: BTreeMap::new(),
            wanted: BTreeSet::new(),
            claimants: BTreeMap::new(),
            kept_back: BTreeMap::new(),
            extras: BTreeMap::new(),
            groups: BTreeMap::new(),
            rounds: 0,
        }
    }

    /// Whether anything of the slot is here.
    fn has(&self, slot: &u32) -> bool {
        self.held.contains(*slot)
            || self.claims.contains_key(slot)
            || self.frozen.contains_key(slot)
    }

    /// R5: somebody wants the slot.
    fn want(&mut self, slot: u32, wanted: Wanted) {
        self.unwant(slot);
        *self.claimants.entry(wanted.place.node.clone()).or_default() += 1;
        self.wanted.insert(slot);
        self.extras.entry(slot).or_default().wanted = Some(wanted);
    }

    /// Nobody does any more.
    fn unwant(&mut self, slot: u32) -> Option<Wanted> {
        let wanted = self.extras.get_mut(&slot)?.wanted.take()?;
        self.wanted.remove(&slot);
        if let Some(count) = self.claimants.get_mut(&wanted.place.node) {
            *count -= 1;
            if *count == 0 {
                self.claimants.remove(&wanted.place.node);
            }
        }
        Some(wanted)
    }

    fn is_idle(&self) -> bool {
        self.held.is_empty() && self.claims.is_empty() && self.frozen.is_empty()
    }
}

impl Keyed {
    fn at(&self, id: &ServiceId) -> Option<usize> {
        self.instances
            .iter()
            .position(|instance| instance.standing.id == *id)
    }

    fn set_view(&mut self, hub: &mut Hub, services: &[Arc<ServiceInfo>]) {
        self.ranks.set_view(services);
        let is_own =
            |info: &&Arc<ServiceInfo>| info.node() == &hub.me.name && info.id().nonce == hub.nonce;
        let own: Vec<Standing> = services
            .iter()
            .filter(is_own)
            .map(|info| Standing::of(info))
            .collect();
        for standing in &own {
            match self.at(&standing.id) {
                Some(at) => self.instances[at].standing = standing.clone(),
                None => self.instances.push(Instance::new(standing.clone())),
            }
        }
        let service_type = self.service_type.clone();
        self.instances.retain(|instance| {
            let id = &instance.standing.id;
            let stays = own.iter().any(|standing| standing.id == *id);
            if !stays {
                let mut lost = instance.held.clone();
                let copies = instance.claims.iter().filter(|(_, claim)| claim.copy);
                for slot in instance.frozen.keys().chain(copies.map(|(slot, _)| slot)) {
                    lost.insert(*slot);
                }
                let place = (service_type.clone(), id.clone());
                hub.tell(&place, lost, |service_type, instance, slots| {
                    TokenEvent::Lost {
                        service_type,
                        instance,
                        slots,
                    }
                });
                hub.partials.retain(|_, partial| partial.to != *id);
                for frozen in instance.frozen.values() {
                    hub.outcomes.end(&frozen.to.node, frozen.transfer);
                }
            }
            stays
        });
    }

    /// Whether it is known what that instance is first for.
    fn knows_firsts(&self, at: usize) -> bool {
        let (hash, instance) = (self.ranks.hash(), &self.instances[at]);
        let by = instance.first_by.as_ref();
        by.is_some_and(|(by, standing)| *by == hash && *standing == instance.standing)
    }

    /// What that instance is first for, where the view has changed since it was last worked out.
    fn refresh_firsts(&mut self, hub: &Hub, at: usize) {
        if self.knows_firsts(at) {
            return;
        }
        let (ranks, instance) = (&self.ranks, &mut self.instances[at]);
        let by = (ranks.hash(), instance.standing.clone());
        instance.first = if instance.standing.online {
            (0..hub.config.slots)
                .filter(|slot| ranks.is_first(*slot, &instance.standing.id))
                .collect()
        } else {
            SlotSet::new()
        };
        instance.first_by = Some(by);
    }

    fn end_life(&mut self, hub: &mut Hub, now: Instant, node: &NodeId) {
        self.ranks.forget(&node.name);
        for at in 0..self.instances.len() {
            let instance = &mut self.instances[at];
            if instance.claimants.contains_key(node) {
                let is_by_it = |(slot, extra): (&u32, &Extra)| {
                    let wanted = extra.wanted.as_ref()?;
                    (wanted.place.node == *node).then_some(*slot)
                };
                let theirs: Vec<u32> = instance.extras.iter().filter_map(is_by_it).collect();
                for slot in theirs {
                    instance.unwant(slot);
                }
            }
            for extra in instance.extras.values_mut() {
                // R8: the giver's end stands for its word: it takes nothing back any more.
                extra
                    .unsettled
                    .retain(|unsettled| unsettled.giver.node != *node);
            }
            let frozen = instance
                .frozen
                .iter()
                .filter(|(_, frozen)| frozen.to.node == *node);
            let frozen: Vec<u32> = frozen.map(|(slot, _)| *slot).collect();
            self.stop_asking(hub, now, at, node);
            for slot in frozen {
                self.take_back(hub, now, at, slot);
            }
        }
    }

    /// R11: offers what is another's by this node's view.
    fn offer(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        if !hub.rules.offers {
            return;
        }
        let (ranks, instance) = (&self.ranks, &mut self.instances[at]);
        let standing = instance.standing.clone();
        let mut offers: BTreeMap<ServiceId, SlotSet> = BTreeMap::new();
        for (slot, extra) in &mut instance.extras {
            let Some(since) = extra.not_first else {
                continue;
            };
            let next = extra.offered.map_or(since, |at| at.max(since)) + OFFER;
            if next > now {
                hub.schedule(next);
                continue;
            }
            extra.offered = Some(now);
            hub.schedule(now + OFFER);
            if let Some(first) = ranks.first(*slot).filter(|first| first.id != standing.id) {
                offers.entry(first.id.clone()).or_default().insert(*slot);
            }
        }
        for (to, slots) in offers {
            let Some(node) = hub.node_of(&to.node) else {
                continue;
            };
            let offer = Offer {
                service_type: self.service_type.clone(),
                from: standing.clone(),
                to,
                slots,
            };
            hub.offers.entry(node).or_default().push(offer);
        }
    }

    /// R11: a holder asks for the other copy, to merge it; a claimant asks for the slot, again if it did already.
    fn handle_offer(&mut self, hub: &mut Hub, now: Instant, from: &NodeId, offer: &Offer) {
        if offer.from.id.node != from.name {
            return;
        }
        if self.ranks.hear(&offer.from, now) {
            hub.schedule(now + hub.said_lives());
            self.review(hub, now);
        }
        let Some(at) = self.at(&offer.to) else {
            return;
        };
        let instance = &self.instances[at];
        let held: SlotSet = offer
            .slots
            .iter()
            .filter(|slot| instance.held.contains(*slot))
            .collect();
        if !held.is_empty() && instance.standing.online {
            let claim = Claim {
                service_type: self.service_type.clone(),
                claimant: instance.standing.clone(),
                round: 0,
                question: 0,
                which: Which::Slots(held),
                members: hub.members_hash(),
            };
            hub.claim(from, claim);
        }
        self.ask_again(hub, now, at, &offer.slots, from);
    }

    /// R10.
    fn gate(&self, hub: &Hub, slot: u32, to: &ServiceId) -> Gate {
        let here = self.at(to).map(|at| &self.instances[at]);
        let here = here.filter(|instance| instance.has(&slot));
        let holder = || {
            self.instances
                .iter()
                .find(|instance| instance.held.contains(slot))
        };
        let Some(instance) = here.or_else(holder) else {
            let first = self
                .ranks
                .first(slot)
                .filter(|first| first.id.node != hub.me.name);
            let pointer = self
                .pointers
                .get(&slot)
                .filter(|(place, _)| hub.is_up(&place.node));
            let pointer = pointer.map(|(place, _)| place.id.clone());
            let to_other = self.ranks.first(slot).filter(|first| first.id != *to);
            return Gate::Moved(
                first
                    .map(|first| first.id.clone())
                    .or(pointer)
                    .or(to_other.map(|first| first.id.clone())),
            );
        };
        let id = instance.standing.id.clone();
        if instance.held.contains(slot) {
            return Gate::Run(id);
        }
        if let Some(frozen) = instance.frozen.get(&slot) {
            // R8: what is written after the states were copied would be lost.
            return if hub.rules.freezes {
                Gate::Moved(Some(frozen.to.id.clone()))
            } else {
                Gate::Run(id)
            };
        }
        let coming = instance
            .claims
            .get(&slot)
            .filter(|claim| !claim.begun)
            .and_then(|claim| claim.coming.as_ref());
        match coming.filter(|_| hub.rules.moves_while_coming) {
            Some(place) => Gate::Moved(Some(place.id.clone())),
            None if hub.rules.parks => Gate::Park(id),
            None => Gate::Moved(None),
        }
    }
}
