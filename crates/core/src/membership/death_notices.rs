//! Who is down here and up for a peer.
//!
//! Rule: a death notice reaches the accused. Usually a node that is taken for dead is told so as soon as it talks, renews its
//! identity, and is up again. Where two nodes have no way to each other, one of them could hold the other down for as
//! long as it remembers the dead, while everybody else sees it up: the peer that says so is asked to pass the notice on.
//! The same where the accused started with a clock that had gone back, and only whoever takes it for dead remembers its earlier life.
//!
//! Rule: where the accused stays silent, the notice is evidence. Whoever missed the news of a death (its process stood
//! still, say) would otherwise list the dead until their turn of being probed comes, which takes as many probe periods as
//! there are members. The accused has time to answer the notice; then it is suspected, which it can refute.
//!
//! Rule: gossip is contradicted as versions are. A newcomer that was told of the dead by somebody who missed the news has
//! nothing of theirs that it could list, but it passes on that they live.

use foca::{Member, State};

use super::Membership;
use super::disputes::{DEATH_NOTICE_INTERVAL, Dispute};
use super::identity::{Identity, key};
use crate::id::NodeId;
use crate::message::{ControlMessage, DeathNotice};
use crate::rules::Rule;
use crate::time::Instant;

impl Membership {
    /// A peer says that this life of a node is up.
    pub fn on_peer_claims_alive(&mut self, now: Instant, from: &NodeId, node: &NodeId) {
        if self.stopped
            || !self.rules.holds(Rule::VerdictIsTold)
            || node.name == self.me.node.name
            || self.is_up_in_this_life(node)
            || self.is_barred(node)
            || self.told_dead.has(now, node)
        {
            return;
        }
        let member = self.engine_member(key(&node.name));
        let remembered = self.member_list.identity(&node.name);
        let later = [member.as_ref().map(Member::id), remembered]
            .into_iter()
            .flatten()
            .find(|known| known.node.generation > node.generation);
        let is_dead = member
            .as_ref()
            .is_some_and(|known| known.id().node == *node && known.state() == State::Down);
        let rival = match later {
            Some(later) => Some((later.node.generation, later.address.clone())),
            None if is_dead => None,
            None => return,
        };
        let teller = self.member_list.up(&from.name);
        let Some(teller) = teller.filter(|teller| teller.node == *from) else {
            return;
        };
        let notice = DeathNotice {
            node: node.clone(),
            rival,
        };
        self.transmits.push_back((
            from.clone(),
            teller.address.clone(),
            ControlMessage::DeathNotice(notice),
        ));
        self.counts.verdicts += 1;
        self.told_dead.note(now, node.clone());
    }

    /// A peer passes on that a node lives.
    pub(super) fn on_gossip_claims_alive(
        &mut self,
        now: Instant,
        from: &NodeId,
        identity: &Identity,
    ) {
        let known = self.member_list.identity(&identity.node.name);
        // A later identity of the same life refutes what is known of it.
        if known
            .is_some_and(|known| known.node != identity.node || known.rejoins >= identity.rejoins)
        {
            self.on_peer_claims_alive(now, from, &identity.node);
        }
    }

    /// A later life of that name is known, which an engine that was started anew may have forgotten.
    pub(super) fn is_outdated(&self, node: &NodeId) -> bool {
        let known = self.member_list.identity(&node.name);
        known.is_some_and(|known| known.node.generation > node.generation)
    }

    /// Somebody takes a life of a node for dead. Where it is this node, it comes back under a renewed identity, or looks
    /// for the later life of its name; where it is another one that is up here, it is told.
    pub fn handle_death_notice(&mut self, now: Instant, from: &NodeId, notice: DeathNotice) {
        if self.stopped || !self.is_up_in_this_life(from) || from.name == notice.node.name {
            return;
        }
        if notice.node != self.me.node {
            let accused = self.member_list.up(&notice.node.name);
            if let Some(accused) = accused.filter(|accused| accused.node == notice.node) {
                let (node, address) = (accused.node.clone(), accused.address.clone());
                self.dispute(now, &node);
                self.transmits
                    .push_back((node, address, ControlMessage::DeathNotice(notice)));
            }
            return;
        }
        if let Some((generation, address)) = notice.rival {
            let name = notice.node.name;
            let rival = Identity::new(NodeId { name, generation }, 0, address);
            return self.report_rival(now, &from.name, &rival);
        }
        let just_rejoined = self
            .rejoined_at
            .is_some_and(|at| now.since(at) < DEATH_NOTICE_INTERVAL);
        if !just_rejoined {
            let dead = Member::new(self.me.clone(), foca::Incarnation::default(), State::Down);
            self.apply(now, dead);
        }
    }

    fn dispute(&mut self, now: Instant, node: &NodeId) {
        if !self.rules.holds(Rule::VerdictIsEvidence) || self.disputes.is_open(node) {
            return;
        }
        if let Some(member) = self.engine_member(key(&node.name)) {
            let dispute = Dispute {
                at: now + self.config.evidence_wait,
                as_of: (member.id().rejoins, member.incarnation()),
                suspected: false,
            };
            self.disputes.open(node.clone(), dispute);
        }
    }

    /// Whoever has answered is out of dispute; the others are suspected, and dead where that does not help either.
    pub(super) fn settle_disputes(&mut self, now: Instant) {
        for (node, dispute) in self.disputes.take_due(now) {
            let member = self.engine_member(key(&node.name)).filter(|member| {
                member.id().node == node
                    && (member.id().rejoins, member.incarnation()) == dispute.as_of
                    && member.state() != State::Down
            });
            let Some(member) = member else {
                continue;
            };
            if dispute.suspected {
                self.mark_down_and_gossip(now, &node);
                continue;
            }
            let suspect = Member::new(member.id().clone(), member.incarnation(), State::Suspect);
            self.apply(now, suspect);
            self.counts.unanswered += 1;
            let dispute = Dispute {
                at: now + self.config.suspicion,
                suspected: true,
                ..dispute
            };
            self.disputes.open(node, dispute);
        }
    }
}
