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
use std::time::Duration;

use foca::{Incarnation, Member, State, Timer};

use super::Membership;
use super::identity::{Identity, key};
use crate::id::{Generation, NodeId, NodeName};
use crate::limits::MAX_KNOWN_NODES;
use crate::message::{Challenge, ControlMessage};
use crate::time::Instant;

/// How long whoever accused a node that answers is not heeded about it, the first time; each further one doubles it.
const MIN_BLAME: Duration = Duration::from_secs(2);

/// The longest that an accuser is not heeded.
const MAX_BLAME: Duration = Duration::from_secs(60);

/// Most pairs of accuser and accused that are remembered.
const MAX_BLAMED: usize = 4_096;

/// Most accusers of one node that are remembered: more than are needed.
const MAX_ACCUSERS: usize = 4;

/// See the module.
#[derive(Default)]
pub(super) struct Accusations {
    cases: BTreeMap<NodeId, Case>,
    blamed: BTreeMap<(NodeName, NodeName), Blame>,
}

/// A node that others take for dead, and that is up here.
struct Case {
    accusers: BTreeMap<NodeName, Instant>,
    /// What it was when it was accused.
    as_of: (u32, Incarnation),
    /// It was asked over its link; otherwise it was suspected, which it can refute.
    asked: bool,
    /// When it is judged.
    due: Instant,
}

/// Somebody who was wrong about a node.
#[derive(Clone, Copy)]
struct Blame {
    until: Instant,
    times: u32,
}

impl Accusations {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.cases.values().map(|case| case.due).min()
    }

    /// What should have been heard by now may still wait to be read.
    pub(super) fn postpone(&mut self, now: Instant, later: Instant) {
        for case in self.cases.values_mut().filter(|case| case.due <= now) {
            case.due = later;
        }
    }

    /// Nothing that was said of that life before counts.
    pub(super) fn drop_case(&mut self, node: &NodeId) {
        self.cases.remove(node);
    }

    /// True where that life is accused, and has not answered yet.
    pub(super) fn has_case(&self, node: &NodeId) -> bool {
        self.cases.contains_key(node)
    }

    /// Somebody says that a node lives, as that.
    pub(super) fn refuted(&mut self, identity: &Identity, incarnation: Incarnation) {
        let later = |case: &Case| case.as_of < (identity.bump, incarnation);
        if self.cases.get(&identity.node).is_some_and(later) {
            self.cases.remove(&identity.node);
        }
    }

    fn is_blamed(&self, now: Instant, accuser: &NodeName, accused: &NodeName) -> bool {
        let pair = (accuser.clone(), accused.clone());
        self.blamed
            .get(&pair)
            .is_some_and(|blame| now < blame.until)
    }

    fn blame(&mut self, now: Instant, accuser: NodeName, accused: &NodeName) {
        if self.blamed.len() >= MAX_BLAMED {
            let soonest = self.blamed.iter().min_by_key(|(_, blame)| blame.until);
            if let Some(pair) = soonest.map(|(pair, _)| pair.clone()) {
                self.blamed.remove(&pair);
            }
        }
        let pair = (accuser, accused.clone());
        let blame = self.blamed.entry(pair.clone()).or_insert(Blame {
            until: now,
            times: 0,
        });
        let interval = MIN_BLAME
            .saturating_mul(1 << blame.times.min(16))
            .min(MAX_BLAME);
        blame.times = blame.times.saturating_add(1);
        blame.until = now + interval;
        if blame.times.is_power_of_two() {
            let (peer, times) = (&pair.0, blame.times);
            tracing::warn!(%peer, node = %accused, times, "says that a node is down which answers");
        }
    }

    /// Forgets those who have not been wrong for long.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.blamed
            .retain(|_, blame| now.since(blame.until) < MAX_BLAME);
    }
}

impl Membership {
    /// A peer says that a node is down that is up here, as `known`. True where that is believed.
    pub(super) fn is_convicted(
        &mut self,
        now: Instant,
        from: &NodeId,
        known: &Member<Identity>,
    ) -> bool {
        let node = &known.id().node;
        if !self.rules.two_accusers || self.has_own_evidence(known) {
            return true;
        }
        if self.accusations.is_blamed(now, &from.name, &node.name) {
            self.counts.unheeded += 1;
            return false;
        }
        let (linked, fresh) = (self.is_linked(node), self.config.down_period);
        let others = self
            .roster
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
                Case {
                    accusers: BTreeMap::new(),
                    as_of: (known.id().bump, known.incarnation()),
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
        let failed = |timer: &Timer<Identity>| match timer {
            Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } => member_id == known.id() && *incarnation == known.incarnation(),
            _ => false,
        };
        let probed = known.state() == State::Suspect
            && self
                .timers
                .values()
                .any(|(instance, timer)| *instance == self.instance && failed(timer));
        probed || self.evidence.is_lost(&known.id().node)
    }

    fn note_incarnation(&mut self, node: &NodeId) {
        let member = self.engine_member(key(&node.name));
        if let Some(case) = self.accusations.cases.get_mut(node)
            && let Some(member) = member
        {
            case.as_of = (member.id().bump, member.incarnation());
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
    pub(super) fn judge_accusations(&mut self, now: Instant) {
        let due: Vec<(NodeId, Case)> = self
            .accusations
            .cases
            .extract_if(.., |_, case| case.due <= now)
            .collect();
        for (node, case) in due {
            let member = self.engine_member(key(&node.name));
            let Some(member) = member.filter(|member| {
                member.id().node == node
                    && member.state() != State::Down
                    && member.id().bump == case.as_of.0
            }) else {
                continue;
            };
            if case.asked && !self.is_linked(&node) {
                // The question, or the answer, may be lost with the link: it has the time to refute a suspicion.
                self.suspect(now, &node);
                let due = now + self.config.suspicion;
                let case = Case {
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
                self.declare_dead(now, &node);
            }
        }
    }
}
