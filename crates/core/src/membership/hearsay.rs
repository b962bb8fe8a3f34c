//! Who is down here and up for a peer.
//!
//! Rule: a verdict reaches the accused. Usually a node that is taken for dead is told so as soon as it talks, renews its
//! identity, and is up again. Where two nodes have no way to each other, one of them could hold the other down for as
//! long as it remembers the dead, while everybody else sees it up: the peer that says so is asked to pass the verdict on.
//! The same where the accused started with a clock that had gone back, and only its judge remembers its earlier life.

use std::time::Duration;

use foca::{Member, State};

use super::Membership;
use super::identity::{Identity, key};
use crate::id::NodeId;
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{ControlMessage, Verdict};
use crate::time::Instant;

/// How often a verdict is passed on, and how often the accused heeds one.
const VERDICT_INTERVAL: Duration = Duration::from_secs(1);

impl Membership {
    /// A peer says that this life of a node is up.
    pub fn heard_alive(&mut self, now: Instant, from: &NodeId, node: &NodeId) {
        if self.stopped
            || !self.rules.verdict_is_told
            || node.name == self.me.node.name
            || self.is_up_in_this_life(node)
            || self.is_barred(node)
            || self
                .verdicts
                .get(node)
                .is_some_and(|at| now.since(*at) < VERDICT_INTERVAL)
        {
            return;
        }
        let Some(member) = self.engine_member(key(&node.name)) else {
            return;
        };
        let known = member.id();
        let rival = if known.node.generation > node.generation {
            Some((known.node.generation, known.address.clone()))
        } else if known.node == *node && member.state() == State::Down {
            None
        } else {
            return;
        };
        let teller = self.roster.up(&from.name);
        let Some(teller) = teller.filter(|teller| teller.node == *from) else {
            return;
        };
        let verdict = Verdict {
            node: node.clone(),
            rival,
        };
        self.transmits.push_back((
            from.clone(),
            teller.address.clone(),
            ControlMessage::TakenForDead(verdict),
        ));
        if self.verdicts.len() >= MAX_KNOWN_NODES {
            self.verdicts.pop_first();
        }
        self.verdicts.insert(node.clone(), now);
    }

    /// Somebody takes a life of a node for dead. Where it is this node, it comes back under a renewed identity, or looks
    /// for the later life of its name; where it is another one that is up here, it is told.
    pub fn handle_verdict(&mut self, now: Instant, from: &NodeId, verdict: Verdict) {
        if self.stopped || !self.is_up_in_this_life(from) || from.name == verdict.node.name {
            return;
        }
        if verdict.node != self.me.node {
            let accused = self.roster.up(&verdict.node.name);
            if let Some(accused) = accused.filter(|accused| accused.node == verdict.node) {
                self.transmits.push_back((
                    accused.node.clone(),
                    accused.address.clone(),
                    ControlMessage::TakenForDead(verdict),
                ));
            }
            return;
        }
        if let Some((generation, address)) = verdict.rival {
            let name = verdict.node.name;
            return self.judge_rival(now, &Identity::new(NodeId { name, generation }, 0, address));
        }
        let just_rejoined = self
            .rejoined_at
            .is_some_and(|at| now.since(at) < VERDICT_INTERVAL);
        if !just_rejoined {
            let dead = Member::new(self.me.clone(), foca::Incarnation::default(), State::Down);
            self.apply(now, dead);
        }
    }

    pub(super) fn sweep_verdicts(&mut self, now: Instant) {
        self.verdicts
            .retain(|_, at| now.since(*at) < VERDICT_INTERVAL);
    }
}
