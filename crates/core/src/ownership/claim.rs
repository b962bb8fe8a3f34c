//! The claiming side: who is first for a slot asks whoever could hold it, and holds it when all have said that it is free,
//! or when its states were adopted (R1 to R4, R9, R12, R13).

use std::collections::BTreeMap;

use smallvec::{SmallVec, smallvec};

use super::claiming::{Asked, Claiming, Group, Heard, Open, REPEAT, WAIT, doubled};
use super::event::TokenEvent;
use super::hub::Hub;
use super::keyed::{Instance, Keyed, OFFER};
use super::message::{Answer, Claim, Place, Said, Which};
use super::slots::SlotSet;
use crate::id::NodeId;
use crate::rules::Rule;
use crate::time::Instant;

/// Runs of one named question; more are asked in several.
const RUNS_OF_A_QUESTION: usize = 16_384;
/// Slots of a claim beyond which they are never named to everybody.
const NAMED_TO_ALL: usize = 4_096;

impl Instance {
    /// Takes the claim of a slot out.
    pub(crate) fn end_claim(&mut self, slot: u32) -> Option<Claiming> {
        let claim = self.claims.remove(&slot)?;
        if let Some(group) = self.groups.get_mut(&claim.round) {
            group.claims = group.claims.saturating_sub(1);
            if group.claims == 0 {
                self.groups.remove(&claim.round);
            }
        }
        Some(claim)
    }
}

impl Keyed {
    /// Claims what this node's instances are first for, and ends the claims of what they are not.
    pub(crate) fn review(&mut self, hub: &mut Hub, now: Instant) {
        let ready = hub.ready || !hub.rules.holds(Rule::Synced);
        for at in 0..self.instances.len() {
            self.refresh_firsts(hub, at);
            let instance = &self.instances[at];
            let is_over = |slot: &u32| !instance.first.contains(*slot);
            // R2: a claim ends when the claimant is not first any more, or not online.
            let over = instance.claims.iter().filter(|(_, claim)| !claim.copy);
            let over: Vec<u32> = over.map(|(slot, _)| *slot).filter(is_over).collect();
            self.drop_claims(hub, at, &over);
            if ready {
                let instance = &self.instances[at];
                let wanted = instance.first.iter().filter(|slot| !instance.has(slot));
                let wanted: Vec<u32> = wanted.collect();
                let suspended = instance.claims.iter().filter(|(_, claim)| claim.suspended);
                let suspended: Vec<u32> = suspended.map(|(slot, _)| *slot).collect();
                if hub.rules.holds(Rule::Claims) {
                    self.start_claims(hub, now, at, &wanted, false);
                    self.start_claims(hub, now, at, &suspended, true);
                } else {
                    self.serve_by_view(hub, at, &wanted);
                }
            }
            self.note_strangers(hub, now, at);
        }
    }

    /// As [`review`](Self::review), where nothing has changed but what one instance has of one slot: what is given or adopted
    /// comes slot by slot, and to look at all of them each time would take as many looks as there are slots, squared.
    pub(crate) fn review_slot(&mut self, hub: &mut Hub, now: Instant, at: usize, slot: u32) {
        if !self.knows_firsts(at) || !hub.rules.holds(Rule::Claims) {
            return self.review(hub, now);
        }
        let ready = hub.ready || !hub.rules.holds(Rule::Synced);
        let instance = &self.instances[at];
        if ready && instance.first.contains(slot) && !instance.has(&slot) {
            self.start_claims(hub, now, at, &[slot], false);
        }
        let any = self.ranks.any_online();
        let instance = &mut self.instances[at];
        let has_copy = instance.claims.get(&slot).is_some_and(|claim| claim.copy);
        let is_here = instance.held.contains(slot) || has_copy;
        if is_here && any && !instance.first.contains(slot) {
            let extra = instance.extras.entry(slot).or_default();
            if extra.not_first.is_none() {
                extra.not_first = Some(now);
                hub.schedule(now + OFFER);
            }
        } else if let Some(extra) = instance.extras.get_mut(&slot) {
            extra.not_first = None;
            if extra.is_empty() {
                instance.extras.remove(&slot);
            }
        }
    }

    /// R11: since when what is here is another's by the view.
    fn note_strangers(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        let any = self.ranks.any_online();
        let instance = &mut self.instances[at];
        let copies = instance.claims.iter().filter(|(_, claim)| claim.copy);
        let here = instance.held.iter().chain(copies.map(|(slot, _)| *slot));
        let others: Vec<u32> = here
            .filter(|slot| any && !instance.first.contains(*slot))
            .collect();
        for extra in instance.extras.values_mut() {
            extra.keep_not_first = false;
        }
        for slot in others {
            let extra = instance.extras.entry(slot).or_default();
            extra.keep_not_first = true;
            if extra.not_first.is_none() {
                extra.not_first = Some(now);
                hub.schedule(now + OFFER);
            }
        }
        for extra in instance.extras.values_mut() {
            if !extra.keep_not_first {
                extra.not_first = None;
            }
        }
        instance.extras.retain(|_, extra| !extra.is_empty());
    }

    /// R2 turned off: whoever is first serves, and whoever is not stops.
    fn serve_by_view(&mut self, hub: &mut Hub, at: usize, wanted: &[u32]) {
        let instance = &mut self.instances[at];
        let lost: SlotSet = instance
            .held
            .iter()
            .filter(|slot| !instance.first.contains(*slot))
            .collect();
        for slot in lost.iter() {
            instance.held.remove(slot);
        }
        let anew: SlotSet = wanted.iter().copied().collect();
        for slot in anew.iter() {
            instance.held.insert(slot);
        }
        let place = (self.service_type.clone(), instance.standing.id.clone());
        hub.tell(&place, lost, |service_type, instance, slots| {
            TokenEvent::Lost {
                service_type,
                instance,
                slots,
            }
        });
        hub.tell(&place, anew, |service_type, instance, slots| {
            TokenEvent::Anew {
                service_type,
                instance,
                slots,
            }
        });
    }

    /// Claims these slots in a new round. With a copy they are here, and in doubt.
    pub(crate) fn start_claims(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        at: usize,
        slots: &[u32],
        copy: bool,
    ) {
        if slots.is_empty() {
            return;
        }
        let (ranks, instance) = (&self.ranks, &mut self.instances[at]);
        instance.rounds += 1;
        let round = instance.rounds;
        let mut opens = false;
        for slot in slots {
            let copy = copy
                && (instance.held.contains(*slot)
                    || instance.claims.get(slot).is_some_and(|claim| claim.copy));
            instance.end_claim(*slot);
            instance.held.remove(*slot);
            hub.drop_partials(&instance.standing.id, *slot, None);
            // R2: the expected holder is asked first; it mostly holds, so that nobody else need be asked at all. Asked together
            // with the others it could give the slot to one that has said before that it is free, leave without an answer, and
            // be asked no more: the slot would be begun anew while it lives.
            let expected = Some(()).filter(|()| hub.rules.holds(Rule::ExpectedFirst) && !copy);
            let expected = expected.and_then(|()| ranks.expected(*slot, &instance.standing.id));
            let expected = expected.and_then(|standing| hub.node_of(&standing.id.node));
            opens |= expected.is_none();
            let claim = Claiming {
                round,
                copy,
                all: expected.is_none(),
                open: expected.map_or_else(SmallVec::new, |peer| smallvec![Open::new(peer, now)]),
                coming: None,
                begun: false,
                suspended: false,
            };
            instance.claims.insert(*slot, claim);
        }
        let group = Group {
            claims: slots.len(),
            named: copy,
            ..Group::default()
        };
        instance.groups.insert(round, group);
        if opens {
            self.open_group(hub, now, at, round);
        }
        self.ask_due(hub, now, at);
        self.conclude(hub, now, at);
    }

    /// R2: everybody is asked: every node that is up, and this one where it runs several instances.
    fn open_group(&mut self, hub: &mut Hub, now: Instant, at: usize, round: u64) {
        let several = self.instances.len() > 1;
        let Some(group) = self.instances[at].groups.get_mut(&round) else {
            return;
        };
        if std::mem::replace(&mut group.opened, true) {
            return;
        }
        hub.strangers.retain(|_, until| *until > now);
        let myself = several.then(|| (hub.me.clone(), None));
        let peers = hub.peers.values().filter(|peer| peer.speaks);
        let peers = peers.map(|peer| (peer.node.clone(), None));
        let strangers = hub
            .strangers
            .iter()
            .map(|(node, until)| (node.clone(), Some(*until)));
        for (node, until) in strangers.chain(peers).chain(myself) {
            group.ask(node, until, now);
        }
    }

    /// Sends the questions that are due.
    pub(crate) fn ask_due(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        let members = hub.members_hash();
        let view = self.ranks.hash();
        let instance = &mut self.instances[at];
        let standing = instance.standing.clone();
        let mut fresh: BTreeMap<(NodeId, u64), u64> = BTreeMap::new();
        let mut named: BTreeMap<(NodeId, u64, u64), Vec<u32>> = BTreeMap::new();
        for (slot, claim) in &mut instance.claims {
            if claim.suspended {
                continue;
            }
            for open in &mut claim.open {
                if open.next > now {
                    hub.schedule(open.next);
                    continue;
                }
                if open.tries > 0 && open.last == Heard::Nothing && !hub.rules.holds(Rule::Repeats)
                {
                    continue;
                }
                // R3: who is asked again because of what it said, or of what was said of it, gets a new number.
                if open.question == 0 || open.last != Heard::Nothing {
                    let next = fresh.entry((open.peer.clone(), claim.round));
                    open.question = *next.or_insert_with(|| hub.question());
                }
                hub.counts.repeated += u64::from(open.tries > 0 && open.last == Heard::Nothing);
                open.tries += 1;
                open.next = now + open.pause();
                hub.schedule(open.next);
                let slots = named.entry((open.peer.clone(), claim.round, open.question));
                slots.or_default().push(*slot);
            }
        }
        let claim = |round, question, which| Claim {
            service_type: self.service_type.clone(),
            claimant: standing.clone(),
            round,
            question,
            which,
            members,
        };
        for ((peer, round, question), slots) in named {
            let slots: SlotSet = slots.into_iter().collect();
            for part in slots.chunks(RUNS_OF_A_QUESTION) {
                hub.claim(&peer, claim(round, question, Which::Slots(part)));
            }
        }
        for (round, group) in &mut instance.groups {
            for asked in group.asked.values_mut().filter(|asked| !asked.done) {
                if asked.next > now {
                    hub.schedule(asked.next);
                    continue;
                }
                if asked.tries > 0 && !asked.waits && !hub.rules.holds(Rule::Repeats) {
                    continue;
                }
                hub.counts.repeated += u64::from(asked.tries > 0 && !asked.waits);
                if asked.question == 0 || asked.waits {
                    asked.question = hub.question();
                }
                let names = group.named || asked.named;
                let which = if names {
                    // All of the round: what moves here later was asked for, too.
                    let slots = instance
                        .claims
                        .iter()
                        .filter(|(_, claim)| claim.round == *round);
                    Which::Slots(slots.map(|(slot, _)| *slot).collect())
                } else {
                    Which::First { view }
                };
                asked.next = now + doubled(if asked.waits { WAIT } else { REPEAT }, asked.tries);
                asked.tries += 1;
                hub.schedule(asked.next);
                hub.claim(&asked.node, claim(*round, asked.question, which));
            }
        }
    }

    /// Somebody answers.
    pub(crate) fn handle_answer(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        from: &NodeId,
        answer: &Answer,
    ) {
        let mut news = false;
        for standing in &answer.standings {
            // Everybody speaks for its own instances alone.
            if standing.id.node == from.name {
                news |= self.ranks.hear(standing, now);
            }
        }
        let Some(at) = self.at(&answer.claimant) else {
            return;
        };
        if hub.rules.holds(Rule::Closure) {
            self.meet(hub, now, at, &answer.members);
        }
        self.hear_of_slots(hub, now, at, from, answer);
        self.hear_of_all(hub, now, at, from, answer);
        if news {
            hub.schedule(now + hub.said_lives());
            self.review(hub, now);
        }
        if self.at(&answer.claimant) == Some(at) {
            self.ask_due(hub, now, at);
            self.conclude(hub, now, at);
        }
    }

    /// R4: who is listed is asked. Of two newcomers that met nobody but a common third, the one that asks it second hears of
    /// the first.
    fn meet(&mut self, hub: &mut Hub, now: Instant, at: usize, members: &[NodeId]) {
        for node in members {
            if node.name == hub.me.name || hub.gone.contains(node) {
                continue;
            }
            let until = match hub.peers.get(&node.name) {
                Some(peer) if peer.node == *node && peer.speaks => None,
                Some(_) => continue,
                None => Some(now + 2 * hub.config.down_period),
            };
            if let Some(until) = until {
                hub.strangers.entry(node.clone()).or_insert(until);
                hub.schedule(until);
            }
            for group in self.instances[at]
                .groups
                .values_mut()
                .filter(|group| group.opened)
            {
                if !group.asked.contains_key(&node.name) {
                    group.ask(node.clone(), until, now);
                }
            }
        }
    }

    /// What is answered to a question about slots in particular.
    fn hear_of_slots(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        at: usize,
        from: &NodeId,
        answer: &Answer,
    ) {
        let numbered = hub.rules.holds(Rule::Questions);
        let instance = &mut self.instances[at];
        let mut gates = SlotSet::new();
        let mut opens = false;
        for (slot, claim) in &mut instance.claims {
            if claim.round != answer.round {
                continue;
            }
            // R3: without the number, a "free" of before is taken for the answer to what was asked since, and two hold.
            let is_meant = |open: &Open| {
                open.peer == *from
                    && open.tries > 0
                    && (open.question == answer.question || !numbered)
            };
            let Some(place) = claim.open.iter().position(is_meant) else {
                continue;
            };
            let said = answer.said.iter().find(|(slots, _)| slots.contains(*slot));
            let said = said.map(|(_, said)| said);
            if answer.differs {
                claim.open[place].hear(Heard::Wait, now);
                continue;
            }
            match said {
                None | Some(Said::Ask(_)) => {
                    claim.open.remove(place);
                    claim.all = true;
                    if let Some(Said::Ask(to)) = said {
                        claim.follow(hub, now, to);
                    }
                }
                Some(Said::No | Said::Wait) => {
                    claim.open[place].hear(Heard::Wait, now);
                    claim.all = true;
                }
                Some(Said::Coming(id)) => {
                    claim.open[place].hear(Heard::Coming, now);
                    claim.comes_from(id, from);
                    gates.insert(*slot);
                }
            }
            opens |= claim.all;
        }
        let id = instance.standing.id.clone();
        if opens {
            self.open_group(hub, now, at, answer.round);
        }
        hub.gates(&self.service_type, &id, gates);
    }

    /// What is answered to a question about all slots of a round.
    fn hear_of_all(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        at: usize,
        from: &NodeId,
        answer: &Answer,
    ) {
        let numbered = hub.rules.holds(Rule::Questions);
        let instance = &mut self.instances[at];
        let Some(group) = instance.groups.get_mut(&answer.round) else {
            return;
        };
        let claims = group.claims;
        let Some(asked) = group.asked.get_mut(&from.name) else {
            return;
        };
        if asked.node != *from
            || asked.done
            || asked.tries == 0
            || (asked.question != answer.question && numbered)
        {
            return;
        }
        asked.heard = now;
        if answer.differs {
            // Its view is another one: it cannot know which slots are meant. It is asked again, by name where these are few.
            if !std::mem::replace(&mut asked.waits, true) {
                asked.tries = 0;
            }
            asked.named = claims <= NAMED_TO_ALL;
            asked.next = now + doubled(WAIT, asked.tries);
            return;
        }
        asked.done = true;
        let mut gates = SlotSet::new();
        for (slots, said) in &answer.said {
            for slot in slots.iter() {
                let Some(claim) = instance.claims.get_mut(&slot) else {
                    continue;
                };
                if claim.round != answer.round || claim.open.iter().any(|open| open.peer == *from) {
                    continue;
                }
                match said {
                    Said::Ask(to) => claim.follow(hub, now, to),
                    Said::No | Said::Wait => {
                        claim
                            .open
                            .push(Open::that_said(from.clone(), Heard::Wait, now))
                    }
                    Said::Coming(id) => {
                        claim
                            .open
                            .push(Open::that_said(from.clone(), Heard::Coming, now));
                        claim.comes_from(id, from);
                        gates.insert(slot);
                    }
                }
            }
        }
        let id = instance.standing.id.clone();
        hub.gates(&self.service_type, &id, gates);
    }

    /// R11: who holds what this instance claims says so: it is asked, again if need be.
    pub(crate) fn ask_again(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        at: usize,
        slots: &SlotSet,
        whom: &NodeId,
    ) {
        let mut rounds = Vec::new();
        for slot in slots.iter() {
            if let Some(claim) = self.instances[at]
                .claims
                .get_mut(&slot)
                .filter(|claim| !claim.suspended)
            {
                claim.all = true;
                claim.ask(whom, now);
                rounds.push(claim.round);
            }
        }
        rounds.dedup();
        for round in rounds {
            self.open_group(hub, now, at, round);
        }
        self.ask_due(hub, now, at);
    }

    /// Holds what all have said is free.
    ///
    /// R1: not before this node is synced: whoever could hold might not have been asked.
    pub(crate) fn conclude(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        if !hub.ready && hub.rules.holds(Rule::Synced) {
            return;
        }
        let instance = &mut self.instances[at];
        let is_free = |claim: &Claiming| {
            claim.is_settled()
                && instance
                    .groups
                    .get(&claim.round)
                    .is_none_or(|group| group.asked.values().all(|asked| asked.done))
        };
        let free = instance.claims.iter().filter(|(_, claim)| is_free(claim));
        let free: Vec<(u32, bool)> = free.map(|(slot, claim)| (*slot, claim.copy)).collect();
        if free.is_empty() {
            return;
        }
        let (mut anew, mut kept) = (SlotSet::new(), SlotSet::new());
        for (slot, copy) in free {
            instance.end_claim(slot);
            hub.drop_partials(&instance.standing.id, slot, None);
            instance.held.insert(slot);
            if copy {
                kept.insert(slot)
            } else {
                anew.insert(slot)
            };
        }
        let place = (self.service_type.clone(), instance.standing.id.clone());
        hub.tell(&place, anew.clone(), |service_type, instance, slots| {
            TokenEvent::Anew {
                service_type,
                instance,
                slots,
            }
        });
        hub.gates(&place.0, &place.1, anew);
        hub.gates(&place.0, &place.1, kept);
        self.note_strangers(hub, now, at);
    }

    /// Gives claims up.
    pub(crate) fn drop_claims(&mut self, hub: &mut Hub, at: usize, slots: &[u32]) {
        let instance = &mut self.instances[at];
        let mut gates = SlotSet::new();
        for slot in slots {
            hub.drop_partials(&instance.standing.id, *slot, None);
            instance.end_claim(*slot);
            gates.insert(*slot);
        }
        let id = instance.standing.id.clone();
        hub.gates(&self.service_type, &id, gates);
    }

    /// R12: every slot that is held becomes a claim with its copy, and every claim begins anew.
    pub(crate) fn doubt(&mut self, hub: &mut Hub, now: Instant) {
        for at in 0..self.instances.len() {
            let instance = &self.instances[at];
            let (copies, bare): (Vec<_>, Vec<_>) =
                instance.claims.iter().partition(|(_, claim)| claim.copy);
            let held: Vec<u32> = instance
                .held
                .iter()
                .chain(copies.into_iter().map(|(slot, _)| *slot))
                .collect();
            let bare: Vec<u32> = bare.into_iter().map(|(slot, _)| *slot).collect();
            if hub.ready || !hub.rules.holds(Rule::Synced) {
                self.start_claims(hub, now, at, &held, true);
                self.start_claims(hub, now, at, &bare, false);
            }
        }
    }

    /// R1, second half: the claims of who knows nobody any more end. Only after it has looked for the others is everybody
    /// asked who could hold.
    pub(crate) fn suspend(&mut self, hub: &mut Hub) {
        for at in 0..self.instances.len() {
            let claims = &mut self.instances[at].claims;
            for claim in claims.values_mut().filter(|claim| claim.copy) {
                claim.suspended = true;
                claim.open.clear();
            }
            let bare = claims.iter().filter(|(_, claim)| !claim.copy);
            let bare: Vec<u32> = bare.map(|(slot, _)| *slot).collect();
            self.drop_claims(hub, at, &bare);
        }
    }

    /// Nobody is asked any more in that life.
    pub(crate) fn stop_asking(&mut self, hub: &mut Hub, now: Instant, at: usize, node: &NodeId) {
        let instance = &mut self.instances[at];
        let mut rounds: Vec<u64> = Vec::new();
        for claim in instance.claims.values_mut() {
            let before = claim.open.len();
            claim.open.retain(|open| open.peer != *node);
            if claim.open.len() < before && !claim.suspended {
                claim.all = true;
                rounds.push(claim.round);
            }
            if claim
                .coming
                .as_ref()
                .is_some_and(|place| place.node == *node)
            {
                claim.coming = None;
                claim.begun = false;
            }
        }
        for (round, group) in &mut instance.groups {
            let owed = group
                .asked
                .get(&node.name)
                .filter(|asked| asked.node == *node)
                .map(|asked| !asked.done);
            if owed.is_some() {
                group.asked.remove(&node.name);
            }
            // R3, second half: what it held may have gone to one that has said before that it is free, or has come since, and
            // it took the word of that with it. Who goes unanswered starts the questions of its round anew.
            let unanswered = owed == Some(true) || rounds.contains(round);
            if group.opened && unanswered && hub.rules.holds(Rule::AsksAnew) {
                group.opened = false;
                group.asked.clear();
                rounds.push(*round);
            }
        }
        rounds.sort_unstable();
        rounds.dedup();
        for round in rounds {
            self.open_group(hub, now, at, round);
        }
    }

    /// R13: who is up and silent for as long as patience lasts counts as down for these slots.
    pub(crate) fn lose_patience(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        let patience = hub.config.patience;
        let instance = &mut self.instances[at];
        let mut silent: BTreeMap<NodeId, SlotSet> = BTreeMap::new();
        let mut rounds = Vec::new();
        for (slot, claim) in &mut instance.claims {
            claim.open.retain(|open| {
                let is_silent =
                    now.since(open.heard) >= patience && hub.rules.holds(Rule::Patience);
                if is_silent {
                    silent.entry(open.peer.clone()).or_default().insert(*slot);
                    claim.all = true;
                    rounds.push(claim.round);
                } else if hub.rules.holds(Rule::Patience) {
                    hub.schedule(open.heard + patience);
                }
                !is_silent
            });
        }
        for (round, group) in &mut instance.groups {
            group.asked.retain(|_, asked| {
                if asked.done {
                    return true;
                }
                let unfound = asked
                    .until
                    .is_some_and(|until| until <= now && hub.node_of(&asked.node.name).is_none());
                let is_silent =
                    now.since(asked.heard) >= patience && hub.rules.holds(Rule::Patience);
                if is_silent {
                    let slots = instance
                        .claims
                        .iter()
                        .filter(|(_, claim)| claim.round == *round);
                    silent.entry(asked.node.clone()).or_default();
                    for (slot, _) in slots {
                        silent.entry(asked.node.clone()).or_default().insert(*slot);
                    }
                } else if !unfound {
                    hub.schedule(
                        asked
                            .until
                            .unwrap_or(asked.heard + patience)
                            .max(now + WAIT.0),
                    );
                }
                !is_silent && !unfound
            });
        }
        rounds.dedup();
        for round in rounds {
            self.open_group(hub, now, at, round);
        }
        let id = self.instances[at].standing.id.clone();
        for (peer, slots) in silent {
            hub.lose_patience(&self.service_type, &id, peer, slots);
        }
    }
}

impl Claiming {
    /// R7: the slot was given to that one.
    fn follow(&mut self, hub: &Hub, now: Instant, to: &Place) {
        // R9: another life of this node's own name is dead, whether or not anybody has said so here: nobody would ever say
        // it, and the claim would wait for ever.
        let own_life =
            to.node.name == hub.me.name && to.node != hub.me && hub.rules.holds(Rule::OwnLives);
        if !own_life && !hub.gone.contains(&to.node) {
            self.ask(&to.node, now);
        }
    }

    /// R3: it is asked anew, and no answer to what it was asked before counts.
    fn ask(&mut self, whom: &NodeId, now: Instant) {
        self.open.retain(|open| open.peer != *whom);
        let mut open = Open::new(whom.clone(), now);
        // With R3 turned off, an answer to an earlier question counts.
        open.tries = 0;
        self.open.push(open);
    }

    fn comes_from(&mut self, id: &crate::id::ServiceId, node: &NodeId) {
        self.coming.get_or_insert_with(|| Place {
            id: id.clone(),
            node: node.clone(),
        });
    }
}

impl Group {
    fn ask(&mut self, node: NodeId, until: Option<Instant>, now: Instant) {
        let asked = Asked {
            node: node.clone(),
            question: 0,
            done: false,
            named: false,
            waits: false,
            next: now,
            tries: 0,
            heard: now,
            until,
        };
        self.asked.insert(node.name, asked);
    }
}
