//! What one member says of the death of another.
//!
//! Rule: *two accusers*. A member that says alone that a node is down is not believed where the node can be asked, or
//! where there are others who would know: the node is asked over its own link, and has a `down_period` to answer. It is
//! believed at once where this node's own probe failed as well, where the link from here broke and was refused, or where
//! a second member says so. Without the rule one member keeps any other one down, everywhere and for as long as it likes.
//!
//! Rule: whoever is said to live in a later incarnation than it was accused in has refuted it, though the answer on its own
//! link is late: after a cut, a connection stays silent for as long as it has been cut.
//!
//! Rule: an accuser who was wrong is not heeded about that node for a while, which grows each time.

use std::collections::BTreeMap;

use foca::{Member, State};

use super::Membership;
use super::accusations::Accusation;
use super::identity::{Identity, key};
use crate::id::{Generation, NodeId};
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{Challenge, ControlMessage};
use crate::rules::Rule;
use crate::time::Instant;

/// Most accusers of one node that are remembered: more than are needed.
const MAX_ACCUSERS: usize = 4;

impl Membership {
    /// A peer says that a node is down that is up here, as `known`. True where that is believed.
    pub(super) fn is_convicted(
        &mut self,
        now: Instant,
        from: &NodeId,
        known: &Member<Identity>,
    ) -> bool {
        let node = &known.id().node;
        if !self.rules.holds(Rule::TwoAccusers) || self.has_own_evidence(known) {
            return true;
        }
        // Rule: an accuser who was wrong is not heeded for a while. Without it one member has the same node asked again and
        // again, and takes it down at its first late answer.
        if self.accusations.is_blamed(now, &from.name, &node.name) {
            self.counts.unheeded += 1;
            return false;
        }
        let (linked, fresh) = (self.is_linked(node), self.config.down_period);
        let others = self
            .member_list
            .iter_up()
            .filter(|other| other.node.name != node.name);
        let alone = others.take(2).count() < 2;
        if alone && !linked {
            return true;
        }
        if self.accusations.cases.len() >= MAX_KNOWN_NODES {
            self.accusations.cases.pop_first();
        }
        let mut begins = false;
        let case = self
            .accusations
            .cases
            .entry(node.clone())
            .or_insert_with(|| {
                begins = true;
                Accusation {
                    accusers: BTreeMap::new(),
                    as_of: (known.id().rejoins, known.incarnation()),
                    asked: linked,
                    due: now + fresh,
                }
            });
        case.accusers.retain(|_, at| now.since(*at) <= fresh);
        if case.accusers.len() < MAX_ACCUSERS || case.accusers.contains_key(&from.name) {
            case.accusers.insert(from.name.clone(), now);
        }
        if case.accusers.len() > 1 {
            self.accusations.cases.remove(node);
            return true;
        }
        self.counts.accusations += 1;
        if begins && linked {
            let address = known.id().address.clone();
            // Every node answers this on its own link, of whatever version it is; nobody has that generation.
            let question = ControlMessage::Challenge(Challenge {
                rival: Generation::default(),
                address: self.me.address.clone(),
                joined: false,
            });
            self.transmits.push_back((node.clone(), address, question));
        } else if begins {
            let node = node.clone();
            self.suspect(now, &node);
            self.note_incarnation(&node);
        }
        false
    }

    /// This node's own probe failed, or its link broke and was refused.
    fn has_own_evidence(&self, known: &Member<Identity>) -> bool {
        self.engine.has_failed_probe(known) || self.evidence.is_lost(&known.id().node)
    }

    fn note_incarnation(&mut self, node: &NodeId) {
        let member = self.engine_member(key(&node.name));
        if let Some(case) = self.accusations.cases.get_mut(node)
            && let Some(member) = member
        {
            case.as_of = (member.id().rejoins, member.incarnation());
        }
    }

    /// A node answered on its own link what it was asked because of an accusation.
    pub fn heard_alive_itself(&mut self, now: Instant, node: &NodeId) {
        let Some(case) = self.accusations.cases.remove(node) else {
            return;
        };
        self.counts.acquitted += 1;
        for accuser in case.accusers.into_keys() {
            self.accusations.blame(now, accuser, &node.name);
        }
    }

    /// Who has not answered is dead.
    pub(super) fn check_accusations(&mut self, now: Instant) {
        let due: Vec<(NodeId, Accusation)> = self
            .accusations
            .cases
            .extract_if(.., |_, case| case.due <= now)
            .collect();
        for (node, case) in due {
            let member = self.engine_member(key(&node.name));
            let Some(member) = member.filter(|member| {
                member.id().node == node
                    && member.state() != State::Down
                    && member.id().rejoins == case.as_of.0
            }) else {
                continue;
            };
            if case.asked && !self.is_linked(&node) {
                // The question, or the answer, may be lost with the link: it has the time to refute a suspicion.
                self.suspect(now, &node);
                let due = now + self.config.suspicion;
                let case = Accusation {
                    asked: false,
                    due,
                    ..case
                };
                self.accusations.cases.insert(node.clone(), case);
                self.note_incarnation(&node);
                continue;
            }
            let unanswered = case.asked
                || (member.state() == State::Suspect && member.incarnation() == case.as_of.1);
            if unanswered {
                self.mark_down_and_gossip(now, &node);
            }
        }
    }
}
