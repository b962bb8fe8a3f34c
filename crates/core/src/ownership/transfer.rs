//! The states of a slot on their way from one instance to another (R6, R8, R11).

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::config::POINTER_LIVES;
use super::event::{Adoption, TokenEvent};
use super::frozen::{Frozen, PREPARES, Partial};
use super::hub::Hub;
use super::keyed::{Keyed, Unsettled};
use super::message::{
    Ack, MAX_PIECES, Outcome, Piece, Place, Settled, TokenMessage, join_states, split_states,
};
use super::outcomes::{Outcomes, Remembered};
use super::slots::SlotSet;
use crate::id::{NodeId, ServiceId, ServiceType};
use crate::rules::Rule;
use crate::time::Instant;

/// R13: pieces that were not acknowledged, and an `adopted` that was not settled, are sent again after this long.
pub(crate) const RESEND: std::time::Duration = std::time::Duration::from_millis(500);

/// Slots with states that could not be given are asked for again after this long: somebody may have made them smaller.
const KEPT_BACK: std::time::Duration = std::time::Duration::from_secs(1);

impl Keyed {
    /// Begins to give what is wanted, and goes on with what is on its way, as far as the window allows.
    pub(crate) fn pump(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        in_flight: &mut BTreeMap<NodeId, u32>,
    ) {
        let window = if hub.rules.holds(Rule::Window) {
            hub.config.window
        } else {
            u32::MAX
        };
        for at in 0..self.instances.len() {
            let instance = &self.instances[at];
            let frozen: Vec<u32> = instance.frozen.keys().copied().collect();
            for slot in frozen {
                self.send_pieces(hub, now, at, slot, in_flight);
            }
            let mut next = 0;
            loop {
                let instance = &mut self.instances[at];
                let is_full = |node: &NodeId| in_flight.get(node).is_some_and(|on| *on >= window);
                if instance.claimants.keys().all(is_full) {
                    break;
                }
                let Some(slot) = instance.wanted.range(next..).next().copied() else {
                    break;
                };
                next = slot + 1;
                if instance
                    .kept_back
                    .get(&slot)
                    .is_some_and(|until| *until > now)
                {
                    continue;
                }
                let copy = instance.claims.get(&slot).is_some_and(|claim| claim.copy);
                if !copy && !instance.held.contains(slot) {
                    continue;
                }
                let Some(extra) = instance.extras.get(&slot) else {
                    continue;
                };
                // R8: what was adopted is not passed on before the giver knows. It would take the slot back at the death of
                // its receiver, while the next one holds it.
                if hub.rules.holds(Rule::Settles) && !extra.unsettled.is_empty() {
                    continue;
                }
                if extra
                    .wanted
                    .as_ref()
                    .is_none_or(|wanted| is_full(&wanted.place.node))
                {
                    continue;
                }
                let Some(wanted) = instance.unwant(slot) else {
                    continue;
                };
                *in_flight.entry(wanted.place.node.clone()).or_default() += hub.config.preparing();
                let transfer = hub.outcomes.begin(&wanted.place.node);
                let frozen = Frozen {
                    to: wanted.place,
                    round: wanted.round,
                    transfer,
                    pieces: None,
                    sent: 0,
                    acked: Vec::new(),
                    touched: now,
                    heard: now,
                };
                // R8: it is frozen when its first piece goes out, and not when it is claimed: until then it is served.
                instance.end_claim(slot);
                instance.held.remove(slot);
                instance.frozen.insert(slot, frozen);
                hub.schedule(now + PREPARES);
                let instance = instance.standing.id.clone();
                hub.drop_partials(&instance, slot, None);
                hub.events.push_back(TokenEvent::Give {
                    service_type: self.service_type.clone(),
                    instance: instance.clone(),
                    slot,
                    transfer,
                });
                hub.gates(&self.service_type, &instance, SlotSet::one(slot));
            }
        }
    }

    fn send_pieces(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        at: usize,
        slot: u32,
        in_flight: &mut BTreeMap<NodeId, u32>,
    ) {
        let window = if hub.rules.holds(Rule::Window) {
            hub.config.window
        } else {
            u32::MAX
        };
        let instance = &mut self.instances[at];
        let Some(frozen) = instance.frozen.get_mut(&slot) else {
            return;
        };
        let Some(pieces) = &frozen.pieces else {
            return;
        };
        let on_way = in_flight.entry(frozen.to.node.clone()).or_default();
        while frozen.sent < pieces.len() && *on_way < window {
            let piece = piece(
                &self.service_type,
                &instance.standing.id,
                slot,
                frozen,
                frozen.sent,
                &hub.outcomes,
            );
            frozen.sent += 1;
            *on_way += piece
                .as_ref()
                .map_or(0, |piece| hub.config.parts(piece.bytes.len()));
            frozen.touched = now;
            hub.schedule(now + RESEND);
            if let Some(piece) = piece {
                hub.send(&frozen.to.node, TokenMessage::Piece(piece));
            }
        }
    }

    /// The states of a slot that is to be given. False where there is no such transfer any more, or where they are too large
    /// to be given: then the slot is served here again.
    pub(crate) fn give(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        transfer: u64,
        states: &[(Bytes, Bytes)],
    ) -> bool {
        for at in 0..self.instances.len() {
            let found = self.instances[at]
                .frozen
                .iter_mut()
                .find(|(_, frozen)| frozen.transfer == transfer);
            let Some((_, frozen)) = found else {
                continue;
            };
            if frozen.pieces.is_some() {
                return false;
            }
            let bytes = join_states(states);
            let count = bytes.len().div_ceil(hub.config.piece_bytes).max(1);
            if count > MAX_PIECES as usize || states.len() > super::message::MAX_KEYS_PER_SLOT {
                self.keep_back(hub, now, transfer);
                return false;
            }
            let cut = |number: usize| {
                let start = number * hub.config.piece_bytes;
                bytes.slice(start..bytes.len().min(start + hub.config.piece_bytes))
            };
            frozen.pieces = Some((0..count).map(cut).collect());
            frozen.acked = vec![false; count];
            frozen.touched = now;
            frozen.heard = now;
            hub.schedule(now + RESEND);
            return true;
        }
        false
    }

    /// See [`Ownership::keep_back`](super::Ownership::keep_back).
    pub(crate) fn keep_back(&mut self, hub: &mut Hub, now: Instant, transfer: u64) {
        for at in 0..self.instances.len() {
            let instance = &mut self.instances[at];
            let mut frozen = instance.frozen.iter();
            let found =
                frozen.find(|(_, frozen)| frozen.transfer == transfer && frozen.pieces.is_none());
            let Some(slot) = found.map(|(slot, _)| *slot) else {
                continue;
            };
            instance.kept_back.retain(|_, until| *until > now);
            instance.kept_back.insert(slot, now + KEPT_BACK);
            hub.schedule(now + KEPT_BACK);
            return self.take_back(hub, now, at, slot);
        }
    }

    /// A piece came.
    pub(crate) fn handle_piece(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        from: &NodeId,
        piece: Piece,
    ) {
        if piece.from.node != from.name {
            return hub.ack(from, &piece, Outcome::Refused);
        }
        let slot = piece.slot;
        let at = self.at(&piece.to).filter(|_| slot < hub.config.slots);
        match hub.recall(from, &piece) {
            Remembered::Open => {}
            Remembered::Ended(outcome) => return hub.ack(from, &piece, outcome),
            Remembered::Stale => return,
        }
        let Some(at) = at else {
            return hub.ack(from, &piece, Outcome::Refused);
        };
        let instance = &mut self.instances[at];
        let unsettled = instance.extras.get(&slot).map(|extra| &extra.unsettled);
        let was_adopted = unsettled.is_some_and(|unsettled| {
            let mut unsettled = unsettled.iter();
            unsettled.any(|one| one.giver.id == piece.from && one.transfer == piece.transfer)
        });
        if was_adopted {
            // Too much has ended since for its outcome to be remembered, and its giver does not know.
            return hub.ack(from, &piece, Outcome::Adopted);
        }
        let (holds, claim) = (instance.held.contains(slot), instance.claims.get_mut(&slot));
        // R6: states are adopted by a claim of the round that they were sent for alone; where the slot is held, they are
        // another copy, to be merged (R11). Whoever was disabled meanwhile would hold without wanting to.
        let is_wanted = match &claim {
            Some(claim) => claim.round == piece.round || !hub.rules.holds(Rule::Rounds),
            None => {
                holds || (!hub.rules.holds(Rule::Rounds) && !instance.frozen.contains_key(&slot))
            }
        };
        if !is_wanted {
            hub.partials.remove(&(from.clone(), piece.transfer));
            hub.remember(&piece, Outcome::Refused);
            return hub.ack(from, &piece, Outcome::Refused);
        }
        // Rule: what has come in part is bounded. A member that begins with many slots and ends none would fill the memory.
        let arriving: usize = hub.partials.values().map(|partial| partial.bytes).sum();
        if piece.of > 1 && arriving + piece.bytes.len() > hub.config.arriving_bytes {
            hub.partials.remove(&(from.clone(), piece.transfer));
            hub.remember(&piece, Outcome::Refused);
            return hub.ack(from, &piece, Outcome::Refused);
        }
        let begins = claim.is_some_and(|claim| !std::mem::replace(&mut claim.begun, true));
        let id = instance.standing.id.clone();
        if begins {
            hub.gates(&self.service_type, &id, SlotSet::one(slot));
        }
        // A newer transfer of that sender for the slot: the earlier one was taken back.
        hub.drop_partials(&id, slot, Some((from, piece.transfer)));
        let partial = hub
            .partials
            .entry((from.clone(), piece.transfer))
            .or_insert_with(|| Partial {
                service_type: piece.service_type.clone(),
                to: piece.to.clone(),
                slot,
                pieces: vec![None; piece.of as usize],
                bytes: 0,
            });
        let is_same = partial.pieces.len() == piece.of as usize
            && partial.to == piece.to
            && partial.slot == slot
            && partial.service_type == piece.service_type;
        let Some(place) = partial
            .pieces
            .get_mut(piece.piece as usize)
            .filter(|_| is_same)
        else {
            return;
        };
        let before = place.replace(piece.bytes.clone());
        partial.bytes += piece.bytes.len();
        partial.bytes -= before.map_or(0, |before| before.len());
        if partial.pieces.iter().any(Option::is_none) {
            return hub.ack(from, &piece, Outcome::Got);
        }
        let mut whole = BytesMut::new();
        for part in partial.pieces.iter().flatten() {
            whole.extend_from_slice(part);
        }
        hub.partials.remove(&(from.clone(), piece.transfer));
        let Some(states) = split_states(&whole.freeze()) else {
            hub.remember(&piece, Outcome::Refused);
            return hub.ack(from, &piece, Outcome::Refused);
        };
        self.adopt(hub, now, at, from, &piece, states);
    }

    fn adopt(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        at: usize,
        from: &NodeId,
        piece: &Piece,
        states: Vec<(Bytes, Bytes)>,
    ) {
        let slot = piece.slot;
        let instance = &mut self.instances[at];
        let id = instance.standing.id.clone();
        // R11: where two copies meet they merge. R12: an older copy that was in doubt is merged into the newer one.
        let how = if instance.held.contains(slot) {
            Adoption::MergeIntoOurs
        } else if instance.claims.get(&slot).is_some_and(|claim| claim.copy) {
            Adoption::MergeOursInto
        } else {
            Adoption::Whole
        };
        if instance.end_claim(slot).is_some() {
            hub.drop_partials(&id, slot, None);
        }
        instance.held.insert(slot);
        let unsettled = Unsettled {
            giver: Place {
                id: piece.from.clone(),
                node: from.clone(),
            },
            transfer: piece.transfer,
            at: now,
            since: now,
        };
        instance
            .extras
            .entry(slot)
            .or_default()
            .unsettled
            .push(unsettled);
        hub.schedule(now + RESEND);
        hub.remember(piece, Outcome::Adopted);
        hub.events.push_back(TokenEvent::Adopted {
            service_type: self.service_type.clone(),
            instance: id.clone(),
            slot,
            from: piece.from.clone(),
            transfer: piece.transfer,
            states,
            how,
        });
        hub.ack(from, piece, Outcome::Adopted);
        hub.gates(&self.service_type, &id, SlotSet::one(slot));
        self.review_slot(hub, now, at, slot);
    }

    /// A piece was taken, or not.
    pub(crate) fn handle_ack(&mut self, hub: &mut Hub, now: Instant, from: &NodeId, ack: &Ack) {
        if ack.outcome == Outcome::Adopted {
            // R8: said whenever it is asked for, also of what is forgotten here: the receiver waits for it.
            let settled = Settled {
                service_type: self.service_type.clone(),
                transfer: ack.transfer,
                to: ack.from.clone(),
                slot: ack.slot,
            };
            hub.send(from, TokenMessage::Settled(settled));
        }
        let Some(at) = self.at(&ack.to) else {
            return;
        };
        let instance = &mut self.instances[at];
        let Some(frozen) = instance.frozen.get_mut(&ack.slot) else {
            return;
        };
        if frozen.transfer != ack.transfer || frozen.to.node != *from {
            return;
        }
        frozen.heard = now;
        match ack.outcome {
            Outcome::Got => {
                if let Some(acked) = frozen.acked.get_mut(ack.piece as usize) {
                    *acked = true;
                }
            }
            Outcome::Adopted => {
                let to = frozen.to.clone();
                instance.frozen.remove(&ack.slot);
                hub.outcomes.end(&to.node, ack.transfer);
                let id = instance.standing.id.clone();
                self.pointers.insert(ack.slot, (to.clone(), now));
                hub.schedule(now + POINTER_LIVES);
                hub.events.push_back(TokenEvent::Released {
                    service_type: self.service_type.clone(),
                    instance: id.clone(),
                    slot: ack.slot,
                    to: to.id,
                });
                hub.gates(&self.service_type, &id, SlotSet::one(ack.slot));
                self.review_slot(hub, now, at, ack.slot);
            }
            Outcome::Refused => self.take_back(hub, now, at, ack.slot),
        }
    }

    /// R8: what was given was not adopted, as far as can be known: it is served here again.
    pub(crate) fn take_back(&mut self, hub: &mut Hub, now: Instant, at: usize, slot: u32) {
        let instance = &mut self.instances[at];
        let Some(frozen) = instance.frozen.remove(&slot) else {
            return;
        };
        hub.outcomes.end(&frozen.to.node, frozen.transfer);
        let id = instance.standing.id.clone();
        if !hub.rules.holds(Rule::Keeps) {
            hub.events.push_back(TokenEvent::Lost {
                service_type: self.service_type.clone(),
                instance: id,
                slots: SlotSet::one(slot),
            });
            return self.review(hub, now);
        }
        instance.held.insert(slot);
        instance.unwant(slot);
        hub.events.push_back(TokenEvent::TakenBack {
            service_type: self.service_type.clone(),
            instance: id.clone(),
            slot,
        });
        hub.gates(&self.service_type, &id, SlotSet::one(slot));
        self.review_slot(hub, now, at, slot);
    }

    /// The giver knows.
    pub(crate) fn handle_settled(&mut self, settled: &Settled) {
        let Some(at) = self.at(&settled.to) else {
            return;
        };
        let extras = &mut self.instances[at].extras;
        if let Some(extra) = extras.get_mut(&settled.slot) {
            extra
                .unsettled
                .retain(|unsettled| unsettled.transfer != settled.transfer);
            if extra.is_empty() {
                extras.remove(&settled.slot);
            }
        }
    }

    /// R13: says again what was not answered, and serves again what a silent receiver does not take.
    pub(crate) fn resend(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        let patience = hub.config.patience;
        let instance = &mut self.instances[at];
        let before = hub.counts.repeated;
        let mut silent = Vec::new();
        for (slot, frozen) in &mut instance.frozen {
            if frozen.pieces.is_none() {
                continue;
            }
            if now.since(frozen.heard) >= patience && hub.rules.holds(Rule::Patience) {
                silent.push((*slot, frozen.to.node.clone()));
                continue;
            }
            if hub.rules.holds(Rule::Patience) {
                hub.schedule(frozen.heard + patience);
            }
            if now.since(frozen.touched) >= RESEND && hub.rules.holds(Rule::Repeats) {
                frozen.touched = now;
                for number in 0..frozen.sent {
                    if frozen.acked[number] {
                        continue;
                    }
                    if let Some(piece) = piece(
                        &self.service_type,
                        &instance.standing.id,
                        *slot,
                        frozen,
                        number,
                        &hub.outcomes,
                    ) {
                        hub.counts.repeated += 1;
                        hub.send(&frozen.to.node, TokenMessage::Piece(piece));
                    }
                }
            }
            if hub.rules.holds(Rule::Repeats) {
                hub.schedule(frozen.touched + RESEND);
            }
        }
        for (slot, extra) in &mut instance.extras {
            // A giver that is up and mute keeps nobody from passing the slot on for longer than patience lasts.
            extra.unsettled.retain(|unsettled| {
                now.since(unsettled.since) < patience || !hub.rules.holds(Rule::Patience)
            });
            for unsettled in &mut extra.unsettled {
                if now.since(unsettled.at) >= RESEND && hub.rules.holds(Rule::Repeats) {
                    unsettled.at = now;
                    let ack = Ack {
                        service_type: self.service_type.clone(),
                        transfer: unsettled.transfer,
                        from: instance.standing.id.clone(),
                        to: unsettled.giver.id.clone(),
                        slot: *slot,
                        piece: 0,
                        outcome: Outcome::Adopted,
                    };
                    hub.counts.repeated += 1;
                    hub.send(&unsettled.giver.node, TokenMessage::Ack(ack));
                }
                if hub.rules.holds(Rule::Repeats) {
                    hub.schedule(unsettled.at + RESEND);
                }
            }
        }
        let id = instance.standing.id.clone();
        let again = hub.counts.repeated - before;
        if again > 0 {
            tracing::debug!(instance = %id, again, "what was sent of states was not answered, and is sent again");
        }
        for (slot, peer) in silent {
            hub.lose_patience(&self.service_type, &id, peer, SlotSet::one(slot));
            self.take_back(hub, now, at, slot);
        }
    }
}

fn piece(
    service_type: &ServiceType,
    from: &ServiceId,
    slot: u32,
    frozen: &Frozen,
    number: usize,
    outcomes: &Outcomes,
) -> Option<Piece> {
    let pieces = frozen.pieces.as_ref()?;
    Some(Piece {
        service_type: service_type.clone(),
        transfer: frozen.transfer,
        since: outcomes.oldest(&frozen.to.node, frozen.transfer),
        from: from.clone(),
        to: frozen.to.id.clone(),
        round: frozen.round,
        slot,
        piece: number as u32,
        of: pieces.len() as u32,
        bytes: pieces.get(number)?.clone(),
    })
}
