//! What a suspicion may come to, where the engine by itself goes too far, or leaves it at that.

use bytes::Bytes;
use foca::{Header, Incarnation, Member, Message, State, Timer};

use super::Membership;
use super::identity::{Identity, Packet};
use crate::message::ControlMessage;
use crate::rules::Rule;
use crate::time::Instant;

impl Membership {
    /// Rule: the engine declares a suspect down whose suspicion is long refuted, and tells it so; hence the look.
    pub(super) fn is_sound(&self, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        else {
            return true;
        };
        !self.rules.holds(Rule::SuspectGuard)
            || self.engine_member(member_id.key()).is_some_and(|member| {
                member.id() == member_id
                    && member.incarnation() == *incarnation
                    && member.state() == State::Suspect
            })
    }

    /// Rule: nobody is introduced by a suspicion. It may be the last thing that is said of a node that has long been dead;
    /// whoever lives refutes it, and is known by that.
    pub(super) fn is_stranger(&self, identity: &Identity) -> bool {
        self.rules.holds(Rule::SuspectsAreKnown)
            && self
                .engine_member(identity.key())
                .is_none_or(|member| member.state() == State::Down)
    }

    /// Rule: a suspect that talks is told. The engine passes a suspicion on a few times and then keeps quiet: a suspect that
    /// heard none of these stays one, and the next probe that fails declares it down without another word.
    pub(super) fn tell_suspect(&mut self, now: Instant, source: Identity) {
        if !self.rules.holds(Rule::SuspectsAreTold) {
            return;
        }
        let suspicion = self
            .engine_member(source.key())
            .filter(|member| *member.id() == source && member.state() == State::Suspect);
        let Some(suspicion) = suspicion else {
            return;
        };
        let node = &source.node;
        if self.told_suspects.has(now, node) {
            return;
        }
        self.told_suspects.note(now, node.clone());
        self.counts.told += 1;
        let packet = Packet {
            header: Header {
                src: self.me.clone(),
                // The lowest: it says nothing of this node that is not known.
                src_incarnation: Incarnation::default(),
                dst: source.clone(),
                message: Message::Gossip,
            },
            updates: vec![Member::new(
                source.clone(),
                suspicion.incarnation(),
                State::Suspect,
            )],
        };
        if let Some(packet) = packet.encode() {
            let message = ControlMessage::Membership(Bytes::from(packet));
            self.transmits
                .push_back((source.node, source.address, message));
        }
    }
}
