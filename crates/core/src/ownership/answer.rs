//! The answering side: each question is answered from the present state, and nobody ever owes an answer (R5, R7).

use std::collections::BTreeMap;

use super::hub::Hub;
use super::keyed::{Keyed, Wanted};
use super::message::{Answer, Claim, MAX_SAYINGS, MAX_STANDINGS, Place, Said, Standing, Which};
use super::slots::SlotSet;
use crate::id::NodeId;
use crate::rules::Rule;
use crate::time::Instant;

impl Keyed {
    /// Somebody claims.
    pub(crate) fn handle_claim(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        from: &NodeId,
        claim: &Claim,
    ) {
        if claim.claimant.id.node != from.name {
            return;
        }
        if self.ranks.hear(&claim.claimant, now) {
            hub.schedule(now + hub.said_lives());
            self.review(hub, now);
        }
        // A claim that was on its way for long says how the claimant was: what was heard since counts.
        let newer = self.ranks.newer(&claim.claimant).cloned();
        let claimant = newer.as_ref().unwrap_or(&claim.claimant);
        let place = Place {
            id: claim.claimant.id.clone(),
            node: from.clone(),
        };
        let slots: Option<Vec<u32>> = match &claim.which {
            Which::Slots(slots) => Some(
                slots
                    .iter()
                    .take_while(|slot| *slot < hub.config.slots)
                    .collect(),
            ),
            // Who has another view cannot know which slots are meant, and "free" would be said of others.
            Which::First { view } if *view == self.ranks.hash() => {
                Some(self.here_of(&claim.claimant.id))
            }
            Which::First { .. } => None,
        };
        let differs = slots.is_none();
        let mut said: BTreeMap<Said, Vec<u32>> = BTreeMap::new();
        for slot in slots.into_iter().flatten() {
            if let Some(answer) = self.say(hub, claim, claimant, &place, slot) {
                said.entry(answer).or_default().push(slot);
            }
        }
        // Whom this node does not name is taken to say "free": rather ask again than leave something out.
        let differs = differs || said.len() > MAX_SAYINGS;
        let said = said.into_iter().take(MAX_SAYINGS);
        let said = said.map(|(said, slots)| (slots.into_iter().collect::<SlotSet>(), said));
        let standings = self.instances.iter().take(MAX_STANDINGS);
        let members = if hub.rules.holds(Rule::Closure) && claim.members != hub.members_hash() {
            hub.members()
        } else {
            Vec::new()
        };
        let answer = Answer {
            service_type: self.service_type.clone(),
            claimant: claim.claimant.id.clone(),
            round: claim.round,
            question: claim.question,
            differs,
            said: said.collect(),
            standings: standings
                .map(|instance| instance.standing.clone())
                .collect(),
            members,
        };
        hub.answer(from, answer);
    }

    /// What is here of the slots that this instance is first for.
    fn here_of(&self, claimant: &crate::id::ServiceId) -> Vec<u32> {
        let mut here = SlotSet::new();
        let others = self
            .instances
            .iter()
            .filter(|instance| instance.standing.id != *claimant);
        for instance in others {
            let busy = instance
                .claims
                .keys()
                .chain(instance.frozen.keys())
                .copied();
            for slot in instance.held.iter().chain(busy) {
                here.insert(slot);
            }
        }
        for slot in self.pointers.keys() {
            here.insert(*slot);
        }
        here.iter()
            .filter(|slot| self.ranks.is_first(*slot, claimant))
            .collect()
    }

    /// What is to be said of one slot; nothing where it is free.
    fn say(
        &mut self,
        hub: &mut Hub,
        claim: &Claim,
        claimant: &Standing,
        place: &Place,
        slot: u32,
    ) -> Option<Said> {
        let (mut said, mut any) = (None, false);
        for at in 0..self.instances.len() {
            let instance = &mut self.instances[at];
            let standing = &instance.standing;
            if standing.id == claimant.id {
                continue;
            }
            // R5: only whoever outranks the holder gets it. A stale view would move it for nothing, and back.
            let is_outranked = !standing.online
                || self.ranks.outranks(slot, claimant, standing)
                || !hub.rules.holds(Rule::Ranks);
            let has_copy = instance.held.contains(slot)
                || instance.claims.get(&slot).is_some_and(|claim| claim.copy);
            if let Some(frozen) = instance.frozen.get(&slot) {
                any = true;
                let to_it = frozen.to.id == claimant.id && frozen.round == claim.round;
                said = Some(if to_it {
                    Said::Coming(standing.id.clone())
                } else {
                    Said::Wait
                });
            } else if has_copy {
                any = true;
                if !claimant.online {
                    said = Some(Said::Wait);
                } else if !is_outranked {
                    said = Some(Said::No);
                } else {
                    let id = standing.id.clone();
                    let wanted = instance.extras.get(&slot);
                    let wanted = wanted.and_then(|extra| extra.wanted.as_ref());
                    let is_better = wanted.is_none_or(|wanted| {
                        if wanted.standing.id == claimant.id {
                            wanted.round <= claim.round || claim.round == 0
                        } else {
                            self.ranks.outranks(slot, claimant, &wanted.standing)
                        }
                    });
                    if is_better {
                        let wanted = Wanted {
                            place: place.clone(),
                            standing: claimant.clone(),
                            round: claim.round,
                        };
                        instance.want(slot, wanted);
                        said = Some(Said::Coming(id));
                    } else {
                        said = Some(Said::Wait);
                    }
                }
            } else if instance.claims.contains_key(&slot) {
                any = true;
                if !is_outranked {
                    said = Some(Said::No);
                } else {
                    // R5: the claim is dropped, and the slot is as free as if there had been none. Nobody has to wait for a
                    // claimant; what is sent for the dropped claim is refused (R6).
                    self.drop_claims(hub, at, &[slot]);
                }
            }
        }
        if any || !hub.rules.holds(Rule::Pointers) {
            return said;
        }
        // R7: whoever holds it may be unknown to the claimant, or have had nothing when it was asked.
        let pointer = &self.pointers.get(&slot)?.0;
        let lives = hub.is_up(&pointer.node);
        let to_itself = pointer.node == place.node || pointer.node == hub.me;
        (lives && !to_itself).then(|| Said::Ask(pointer.clone()))
    }
}
