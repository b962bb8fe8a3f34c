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

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::entry::ServiceInfo;
use crate::id::{NodeId, ServiceId, ServiceType};
use crate::rules::{Rule, RuleSet};
use crate::time::Instant;

mod answer;
mod claim;
mod claiming;
mod config;
mod event;
mod frozen;
mod hub;
mod keyed;
pub mod message;
mod outcomes;
mod ranks;
mod slots;
#[cfg(test)]
mod tests;
mod transfer;

pub use config::{DEFAULT_PATIENCE, OwnershipConfig, WINDOW};
pub use event::{Adoption, Gate, Holding, TokenCounts, TokenEvent};
pub use slots::{MAX_RUNS, SlotSet};

use config::{PARTS, POINTER_LIVES};
use hub::{Hub, TokenPeer};
use keyed::{Instance, Keyed};
use message::{Outcome, TokenMessage};
#[cfg(test)]
use ranks::Ranks;

/// Who holds which slot, as far as this node's instances are concerned.
///
/// The order: [`keep`](Ownership::keep) says once which types have states; [`handle_up`](Ownership::handle_up) comes before the
/// first message of a life, and [`handle_view`](Ownership::handle_view) whenever a view has changed. Nothing is claimed before
/// [`handle_synced`](Ownership::handle_synced). What [`TokenEvent::Give`] asks for is answered by [`give`](Ownership::give) or
/// [`keep_back`](Ownership::keep_back); until then the slot is served by nobody. A node that leaves calls
/// [`set_leaving`](Ownership::set_leaving) and goes on until [`is_idle`](Ownership::is_idle). Dropped before that, it takes the
/// states that it holds with it, and others begin these slots anew.
#[derive(Clone, Debug)]
pub struct Ownership {
    hub: Hub,
    types: BTreeMap<ServiceType, Keyed>,
}

impl Ownership {
    /// For a node of that life, in a process of that nonce, which knows nobody yet.
    pub fn new(config: OwnershipConfig, me: NodeId, nonce: u64) -> Self {
        Ownership {
            hub: Hub::new(config, me, nonce),
            types: BTreeMap::new(),
        }
    }

    /// Turns rules off, for tests that show what happens without them.
    #[cfg(any(test, feature = "fault-switches"))]
    pub fn set_rules(&mut self, rules: RuleSet) {
        self.hub.rules = rules;
    }

    /// The rules that hold.
    pub fn rules(&self) -> RuleSet {
        self.hub.rules
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
            .or_insert_with(|| Keyed::new(service_type.clone(), self.hub.config.shift));
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
        let peer = TokenPeer {
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
            && hub.rules.holds(Rule::StillSynced)
            && hub.rules.holds(Rule::Synced)
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
        if self.hub.rules.holds(Rule::Doubts) {
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
        if self.hub.rules.holds(Rule::DeadAreSilent) && !self.hub.is_up(from) {
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
        self.hub.end_life(now, node);
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
    let mut ranks = Ranks::new(crate::key::KEYED_SHIFT);
    ranks.set_view(services);
    move |slot| ranks.first(slot).map(|first| first.id.clone())
}
