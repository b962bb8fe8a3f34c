//! What all types share: who is up, what is to be sent, and what is to be told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::config::{OwnershipConfig, POINTER_LIVES};
use super::event::{TokenCounts, TokenEvent};
use super::frozen::Partial;
use super::message::{Ack, Answer, Claim, MAX_BUNDLE, Offer, Outcome, Piece, TokenMessage, Which};
use super::outcomes::{Outcomes, Remembered};
use super::slots::SlotSet;
use crate::id::{NodeId, NodeName, ServiceId, ServiceType};
use crate::limits::MAX_KNOWN_NODES;
use crate::rules::{Rule, RuleSet};
use crate::time::{Instant, earliest};

/// Bytes after which a bundle of claims or answers is sent: half of a control frame.
const BUNDLE_BYTES: usize = 512 * 1024;

/// Most outcomes that are remembered of one sender. A sender has at most its window of transfers on their way; only those that
/// ended while an earlier one is open add to them.
const MAX_REMEMBERED: usize = 16_384;

/// What all types share.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    pub(super) config: OwnershipConfig,
    pub(super) rules: RuleSet,
    pub(super) me: NodeId,
    pub(super) nonce: u64,
    pub(super) peers: BTreeMap<NodeName, TokenPeer>,
    /// Lives that went down, or left.
    pub(super) gone: BTreeSet<NodeId>,
    /// R4: members that others know and this node does not, and until when they are waited for.
    pub(super) strangers: BTreeMap<NodeId, Instant>,
    /// R1.
    pub(super) ready: bool,
    pub(super) leaving: bool,
    pub(super) questions: u64,
    pub(super) partials: BTreeMap<(NodeId, u64), Partial>,
    pub(super) outcomes: Outcomes,
    pub(super) claims: BTreeMap<NodeId, Vec<Claim>>,
    pub(super) answers: BTreeMap<NodeId, Vec<Answer>>,
    pub(super) offers: BTreeMap<NodeId, Vec<Offer>>,
    pub(super) transmits: VecDeque<(NodeId, TokenMessage)>,
    /// What this node's own instances say to each other.
    pub(super) loopback: VecDeque<TokenMessage>,
    pub(super) events: VecDeque<TokenEvent>,
    /// Told after all else: whoever asks again what becomes of a call has taken in by then what was adopted.
    pub(super) gates: BTreeMap<(ServiceType, ServiceId), SlotSet>,
    pub(super) due: Option<Instant>,
    pub(super) members_hash: u64,
    pub(super) counts: TokenCounts,
}

/// A node that is up.
#[derive(Clone, Debug)]
pub(super) struct TokenPeer {
    pub(super) node: NodeId,
    /// It speaks a version of the protocol that knows of tokens.
    pub(super) speaks: bool,
}

impl Hub {
    /// Of a node that knows nobody yet.
    pub(super) fn new(config: OwnershipConfig, me: NodeId, nonce: u64) -> Self {
        let mut hub = Hub {
            config,
            rules: RuleSet::default(),
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
        hub
    }

    pub(super) fn rehash(&mut self) {
        let ids: BTreeSet<&NodeId> = self
            .peers
            .values()
            .map(|peer| &peer.node)
            .chain([&self.me])
            .collect();
        self.members_hash = postcard::to_allocvec(&ids).map_or(0, |bytes| xxh3_64(&bytes));
    }

    /// How long what an instance says of itself counts that the registry does not list.
    pub(super) fn said_lives(&self) -> Duration {
        2 * self.config.down_period
    }

    pub(super) fn members_hash(&self) -> u64 {
        self.members_hash
    }

    pub(super) fn members(&self) -> Vec<NodeId> {
        let members = self.peers.values().map(|peer| &peer.node).chain([&self.me]);
        members.take(MAX_KNOWN_NODES).cloned().collect()
    }

    pub(super) fn is_up(&self, node: &NodeId) -> bool {
        *node == self.me
            || self
                .peers
                .get(&node.name)
                .is_some_and(|peer| peer.node == *node)
    }

    /// The life of that name that is up, where it can be asked.
    pub(super) fn node_of(&self, name: &NodeName) -> Option<NodeId> {
        if *name == self.me.name {
            return Some(self.me.clone());
        }
        self.peers
            .get(name)
            .filter(|peer| peer.speaks)
            .map(|peer| peer.node.clone())
    }

    pub(super) fn end_life(&mut self, now: Instant, node: &NodeId) {
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

    pub(super) fn question(&mut self) -> u64 {
        self.questions += 1;
        self.questions
    }

    pub(super) fn schedule(&mut self, at: Instant) {
        self.due = earliest(self.due, Some(at));
    }

    pub(super) fn claim(&mut self, to: &NodeId, claim: Claim) {
        self.counts.claims += 1;
        if let Which::Slots(slots) = &claim.which {
            self.counts.named += slots.len() as u64;
        }
        self.claims.entry(to.clone()).or_default().push(claim);
    }

    pub(super) fn answer(&mut self, to: &NodeId, answer: Answer) {
        self.counts.answers += 1;
        self.answers.entry(to.clone()).or_default().push(answer);
    }

    /// Nothing of that type was ever here.
    pub(super) fn has_nothing(&mut self, to: &NodeId, claim: Claim) {
        let differs = self.rules.holds(Rule::Closure) && claim.members != self.members_hash;
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

    pub(super) fn ack(&mut self, to: &NodeId, piece: &Piece, outcome: Outcome) {
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

    pub(super) fn send(&mut self, to: &NodeId, message: TokenMessage) {
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
    pub(super) fn bundle(&mut self) {
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

    pub(super) fn tell(
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

    pub(super) fn gates(&mut self, service_type: &ServiceType, id: &ServiceId, slots: SlotSet) {
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

    pub(super) fn lose_patience(
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
    pub(super) fn drop_partials(
        &mut self,
        to: &ServiceId,
        slot: u32,
        before: Option<(&NodeId, u64)>,
    ) {
        self.partials.retain(|(from, transfer), partial| {
            partial.slot != slot
                || partial.to != *to
                || before.is_some_and(|(sender, newer)| from != sender || *transfer >= newer)
        });
    }

    /// What is remembered of a piece's transfer, whose sender speaks for itself. What it will not send again is forgotten.
    pub(super) fn recall(&mut self, from: &NodeId, piece: &Piece) -> Remembered {
        let sender = self.outcomes.sender(piece);
        let since = piece.since.min(piece.transfer);
        if since > sender.since {
            sender.since = since;
            sender.known = sender.known.split_off(&since);
            self.partials
                .retain(|(node, transfer), _| node != from || *transfer >= since);
        }
        let sender = self.outcomes.sender(piece);
        match sender.known.get(&piece.transfer) {
            Some(outcome) => Remembered::Ended(*outcome),
            None if piece.transfer < sender.since => Remembered::Stale,
            None => Remembered::Open,
        }
    }

    /// That transfer has ended.
    pub(super) fn remember(&mut self, piece: &Piece, outcome: Outcome) {
        let known = &mut self.outcomes.sender(piece).known;
        if known.len() >= MAX_REMEMBERED {
            known.pop_first();
        }
        known.insert(piece.transfer, outcome);
    }

    /// The outcomes of a sender whose life has ended are remembered for a while: it may have been taken for dead, and send
    /// again what was adopted.
    pub(super) fn keep_outcomes(&mut self, now: Instant, node: &NodeId) {
        self.outcomes.mark_ended(now, &node.name);
        self.schedule(now + POINTER_LIVES);
    }
}
