//! Refused connections as evidence of death, and the word of those who hold a living link, which outweighs them.
//!
//! Rule: a refusal is no evidence against a node that somebody still holds a living link to. An address that refuses may
//! be wrong, or out of reach from here alone: whoever is refused asks others, and who holds a link vouches for the node.
//!
//! Rule: only the link that broke here makes a refusal weigh enough to take a node down. That a node was never reached here says more
//! about its address, or about late gossip, than about the node: it is suspected, which the living refute.
//!
//! Rule: with nobody else to ask, the node that is refused twice and does not come by itself is gone. A living process
//! learns at the same moment that its link broke, and dials at once.

use std::time::Duration;

use foca::{Member, State};

use super::Membership;
use super::evidence::{OwnEvidence, RefusedDial};
use super::identity::key;
use crate::id::{NodeId, NodeName};
use crate::message::ControlMessage;
use crate::rules::Rule;
use crate::time::Instant;

/// How many members are told of link evidence.
const EVIDENCE_COUNT: usize = 3;

/// How long a node that is refused waits for the other to come by itself, where there is nobody else to ask: several times
/// what a living process on the same network takes to find its link broken, and to dial.
const ALONE_WAIT: Duration = Duration::from_millis(50);

/// The same in round trips, for networks where these are long: a dial with its encryption takes three.
const ALONE_ROUND_TRIPS: u32 = 5;

impl Membership {
    /// A dial of a node that should be there was refused: evidence of this node's own.
    pub fn dial_refused(&mut self, now: Instant, peer: &NodeId, refusal: RefusedDial) {
        if self.stopped
            || !self.rules.holds(Rule::LinkEvidence)
            || !self.is_up_in_this_life(peer)
            || self.is_linked(peer)
        {
            return;
        }
        let fresh = self.config.down_period;
        let case = self.evidence.case(peer);
        if let Some(own) = &mut case.own {
            own.refusals += 1;
            return self.check_evidence(now, peer);
        }
        if case.is_vouched_for(now, fresh) {
            return;
        }
        // Whom others vouched for before is not suspected again for an address that goes on refusing.
        let lost = refusal.lost && case.vouchers.is_empty();
        let promised = std::mem::take(&mut case.promised);
        let mut told = self.random_up(EVIDENCE_COUNT, Some(&peer.name));
        let asked = told.iter().map(|member| member.node.name.clone()).collect();
        let alone = ALONE_WAIT
            .max(refusal.took * ALONE_ROUND_TRIPS)
            .min(self.config.evidence_wait);
        self.evidence.case(peer).own = Some(OwnEvidence {
            lost,
            refusals: 1,
            check_at: now + self.config.evidence_wait,
            alone_at: lost.then(|| now + alone),
            asked,
        });
        let others = promised
            .into_iter()
            .filter(|node| !told.iter().any(|member| member.node == *node))
            .filter_map(|node| self.member_list.up(&node.name).filter(|up| up.node == node));
        let others: Vec<_> = others.cloned().collect();
        let question = if lost {
            self.suspect(now, peer);
            told.extend(others);
            ControlMessage::Refused { node: peer.clone() }
        } else {
            ControlMessage::AskLink { node: peer.clone() }
        };
        for member in told {
            self.transmits
                .push_back((member.node, member.address, question.clone()));
        }
        self.check_evidence(now, peer);
    }

    /// A peer reports that its link to a node broke, and that it was refused there.
    pub fn handle_refused(&mut self, now: Instant, from: &NodeId, node: &NodeId) {
        if !self.may_speak_of(from, node) {
            return;
        }
        self.heard(now);
        if self.is_up_in_this_life(node) {
            let case = self.evidence.case(node);
            case.reports.insert(from.name.clone(), now);
            case.vouchers.remove(&from.name);
            if let Some(own) = &mut case.own {
                own.asked.remove(&from.name);
            }
        }
        self.answer(from, node);
        self.check_evidence(now, node);
    }

    /// A peer that was refused by a node which it had never met wants to know whether this one holds a link to it. Where the
    /// link from here broke, and this node is refused, too, that confirms it.
    pub fn handle_link_question(&mut self, now: Instant, from: &NodeId, node: &NodeId) {
        if !self.may_speak_of(from, node) {
            return;
        }
        self.heard(now);
        if self.is_up_in_this_life(node) {
            let case = self.evidence.case(node);
            case.reports.insert(from.name.clone(), now);
        }
        self.answer(from, node);
        self.check_evidence(now, node);
    }

    /// A peer that was asked says whether it holds a living link to a node.
    pub fn handle_link_answer(&mut self, now: Instant, from: &NodeId, node: &NodeId, linked: bool) {
        if !self.may_speak_of(from, node) || !self.is_up_in_this_life(node) {
            return;
        }
        self.heard(now);
        let case = self.evidence.case(node);
        if linked {
            case.vouchers.insert(from.name.clone(), now);
            case.own = None;
            return;
        }
        if let Some(own) = &mut case.own {
            own.asked.remove(&from.name);
        }
        self.check_evidence(now, node);
    }

    /// The ready link to a peer is gone.
    pub fn link_down(&mut self, peer: &NodeId) {
        if self.linked.get(&peer.name) == Some(peer) {
            self.linked.remove(&peer.name);
        }
    }

    pub(super) fn is_linked(&self, node: &NodeId) -> bool {
        self.linked.get(&node.name) == Some(node)
    }

    fn may_speak_of(&self, from: &NodeId, node: &NodeId) -> bool {
        !self.stopped
            && self.rules.holds(Rule::LinkEvidence)
            && from.name != node.name
            && node.name != self.me.node.name
            && self.is_up_in_this_life(from)
    }

    /// Rule: a living link is one to a node that is up here and not suspected.
    fn answer(&mut self, to: &NodeId, node: &NodeId) {
        let Some(asker) = self.member_list.up(&to.name).cloned() else {
            return;
        };
        let linked = self.is_linked(node)
            && self
                .engine_member(key(&node.name))
                .is_some_and(|member| member.id().node == *node && member.state() == State::Alive);
        if linked {
            self.evidence.case(node).promised.insert(to.clone());
        }
        let answer = ControlMessage::Link {
            node: node.clone(),
            linked,
        };
        self.transmits
            .push_back((asker.node, asker.address, answer));
    }

    pub(super) fn suspect(&mut self, now: Instant, node: &NodeId) {
        if let Some(member) = self.engine_member(key(&node.name)) {
            let suspect = Member::new(member.id().clone(), member.incarnation(), State::Suspect);
            self.apply(now, suspect);
        }
    }

    /// Rule: refused here, reported refused by another member, and nobody who was asked holds a link: down at once.
    fn check_evidence(&mut self, now: Instant, node: &NodeId) {
        if self.is_refuted_by_nobody(now, node) {
            self.mark_down_and_gossip(now, node);
            // Whoever was asked about others, and is dead, need not be waited for.
            for other in self.evidence.nodes() {
                self.check_evidence(now, &other);
            }
        }
    }

    fn is_refuted_by_nobody(&self, now: Instant, node: &NodeId) -> bool {
        let fresh = self.config.down_period;
        let Some(case) = self.evidence.get(node) else {
            return false;
        };
        let Some(own) = case.own.as_ref().filter(|own| own.lost) else {
            return false;
        };
        // Who is gone, or refuses this node as well, cannot answer.
        let is_gone = |name: &NodeName| {
            let life = self.member_list.up(name).map(|member| &member.node);
            life.is_none_or(|life| self.evidence.own(life).is_some())
        };
        if case.is_vouched_for(now, fresh) || !own.asked.iter().all(is_gone) {
            return false;
        }
        if case.reports.values().any(|at| now.since(*at) <= fresh) {
            return true;
        }
        let waited = own.refusals > 1 && own.alone_at.is_none();
        let suspect = |member: Member<_>| member.state() == State::Suspect;
        waited
            && !self.is_anybody_else_up(node)
            && self.engine_member(key(&node.name)).is_some_and(suspect)
    }

    /// Somebody who did not refuse this node as well.
    fn is_anybody_else_up(&self, but: &NodeId) -> bool {
        self.member_list
            .iter_up()
            .any(|member| member.node != *but && self.evidence.own(&member.node).is_none())
    }

    /// What nobody has contradicted in time.
    pub(super) fn check_due_evidence(&mut self, now: Instant) {
        for node in self.evidence.due_alone(now) {
            self.check_evidence(now, &node);
        }
        for (node, lost) in self.evidence.due(now, self.config.down_period) {
            let state = self
                .engine_member(key(&node.name))
                .map(|known| known.state());
            match state {
                // Rule: its link broke, it is refused here alone, and is still suspect after the wait.
                Some(State::Suspect) if lost => self.mark_down_and_gossip(now, &node),
                Some(State::Alive) if !lost => self.suspect(now, &node),
                _ => {}
            }
        }
    }
}
