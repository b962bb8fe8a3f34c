//! The handshake: who is welcome, who is refused, and rivals for a name.

use std::collections::BTreeMap;

use super::link::{KnownNames, Link, LinkEvent, LinkId, LinkState, Origin, Output};
use super::{CROSSED_DIAL_WINDOW, INTRODUCTION_INTERVAL, Links, NameDispute};
use crate::admission;
use crate::frame::Frame;
use crate::id::{Address, Generation, NodeId, NodeName};
use crate::message::{Challenge, ControlMessage, Hello, MAGIC, Refusal};
use crate::time::Instant;

impl Links {
    pub(super) fn handle_hello(
        &mut self,
        now: Instant,
        link: LinkId,
        theirs: Hello,
        names: &impl KnownNames,
    ) {
        let credentials = &self.links[&link].credentials;
        let accepted = !self.links[&link].is_dialled();
        let sound = admission::check(&self.ours, &theirs, credentials);
        self.check_rivals_place(link, &theirs, sound.is_ok());
        if let Err(refusal) = sound {
            if matches!(refusal, Refusal::Myself) {
                if let Origin::Dialled(address) = &self.links[&link].origin {
                    self.dials.is_myself(address);
                }
            } else {
                self.warn(
                    &theirs.node.name,
                    format!("refusing {} at {}: {refusal}", theirs.node, theirs.address),
                );
            }
            return self.refuse(now, link, refusal);
        }
        if !names.is_plausible(now, theirs.node.generation) {
            self.implausible(&theirs.node.name, theirs.node.clone());
            return self.refuse(now, link, Refusal::Generation);
        }
        if let Origin::Dialled(address) = &self.links[&link].origin
            && let Some((peer, refusal)) = self.dials.resolved(now, address, &theirs.node)
        {
            // Somebody else answers there: the node that was lost is gone from its address.
            self.events
                .push_back(LinkEvent::DialRefused { peer, refusal });
        }
        if theirs.node.name == self.ours.node.name {
            return self.handle_twin(now, link, &theirs);
        }
        if !accepted
            && let Some(highest) = theirs.highest_of_yours
            && highest > self.ours.node.generation
            && self.may_be_mine(now, &theirs.node.name, highest, names)
        {
            self.events.push_back(LinkEvent::HigherGeneration {
                by: theirs.node.clone(),
                number: highest.number,
            });
            self.close(now, link);
            return;
        }
        if names.is_left(&theirs.node) {
            return self.refuse(now, link, Refusal::Left);
        }
        match self.admit(now, &theirs, names) {
            Admission::Welcome => self.welcome(now, link, theirs, names),
            Admission::Refuse(refusal) => self.refuse(now, link, refusal),
            Admission::Behind => {
                // It has to take a higher generation before anything else; this Hello tells it which.
                if accepted {
                    let hello = self.our_hello(names.highest(&theirs.node.name));
                    self.transmit(link, &ControlMessage::Hello(hello));
                }
                self.close(now, link);
            }
            Admission::Ask(old) => {
                let challenge = Challenge {
                    rival: theirs.node.generation,
                    address: theirs.address.clone(),
                    joined: theirs.joined,
                };
                self.transmit(old, &ControlMessage::Challenge(challenge));
                if let Some(link) = self.links.get_mut(&link) {
                    link.since = now;
                    link.state = LinkState::InQuestion(Box::new(theirs));
                }
            }
        }
    }

    /// Rule: a newcomer whose name looks alive is refused only if the old one answers a challenge.
    fn admit(&mut self, now: Instant, theirs: &Hello, names: &impl KnownNames) -> Admission {
        let name = &theirs.node.name;
        let linked =
            self.ready
                .get(name)
                .copied()
                .and_then(|link| match &self.links.get(&link)?.state {
                    LinkState::Ready(hello) => Some((link, hello.node.clone(), hello.nonce)),
                    _ => None,
                });
        if let Some((old, node, nonce)) = linked
            && node.generation != theirs.node.generation
            && nonce != theirs.nonce
        {
            return Admission::Ask(old);
        }
        let up = names.up(name);
        if up.is_none()
            && names
                .highest(name)
                .is_some_and(|highest| highest > theirs.node.generation)
        {
            return Admission::Behind;
        }
        match up {
            // Rule: a later life that others have made up gives way to the node itself.
            Some(up) if up.generation > theirs.node.generation && names.is_unconfirmed(&up) => {
                self.name_disputes.remove(name);
                Admission::Welcome
            }
            Some(up) if up.generation != theirs.node.generation => {
                let renewed = linked_same_process(&self.links, self.ready.get(name), theirs.nonce);
                let dispute = self
                    .name_disputes
                    .entry(name.clone())
                    .or_insert(NameDispute {
                        since: now,
                        rival: theirs.node.generation,
                    });
                if dispute.rival != theirs.node.generation {
                    dispute.rival = theirs.node.generation;
                    dispute.since = now;
                }
                // A ghost is found out by membership within the down period; after that the doubt is over.
                if renewed || now.since(dispute.since) >= self.down_period {
                    self.name_disputes.remove(name);
                    if up.generation > theirs.node.generation {
                        Admission::Behind
                    } else {
                        Admission::Welcome
                    }
                } else {
                    Admission::Refuse(Refusal::NameInQuestion { name: name.clone() })
                }
            }
            _ => {
                self.name_disputes.remove(name);
                Admission::Welcome
            }
        }
    }

    /// Another process with this node's name: the lower generation stops.
    fn handle_twin(&mut self, now: Instant, link: LinkId, theirs: &Hello) {
        let ours = self.ours.node.generation;
        let lower = ours < theirs.node.generation;
        let newcomer = !self.ours.joined && theirs.joined;
        let settled = self.ours.joined && !theirs.joined;
        self.rival = None;
        if !self.links[&link].is_dialled() {
            let hello = self.our_hello(Some(ours));
            self.transmit(link, &ControlMessage::Hello(hello));
        }
        self.close(now, link);
        if newcomer || (lower && !settled) {
            self.events.push_back(LinkEvent::NameTaken {
                by: Some(theirs.address.clone()),
            });
        }
    }

    /// Somebody asks whether this node lives, because of a rival: settle with the rival who stops.
    pub(super) fn handle_rival(
        &mut self,
        now: Instant,
        from: NodeName,
        challenge: Challenge,
        names: &impl KnownNames,
    ) {
        if challenge.joined
            && challenge.rival > self.ours.node.generation
            && self.may_be_mine(now, &from, challenge.rival, names)
        {
            self.question_rival(now, challenge.rival, &challenge.address);
        }
    }

    /// The old node of that name answered the challenge.
    pub(super) fn handle_alive(&mut self, now: Instant, name: &NodeName, rival: Generation) {
        let asked: Vec<(LinkId, bool, Generation)> = self
            .unready()
            .filter_map(|(id, link)| match &link.state {
                LinkState::InQuestion(hello)
                    if hello.node.name == *name && hello.node.generation == rival =>
                {
                    Some((id, hello.joined, hello.node.generation))
                }
                _ => None,
            })
            .collect();
        let old = self
            .ready
            .get(name)
            .and_then(|link| match &self.links.get(link)?.state {
                LinkState::Ready(hello) => Some((hello.node.generation, hello.address.clone())),
                _ => None,
            });
        let alive = old.as_ref().map(|(generation, _)| *generation);
        for (link, joined, generation) in asked {
            // Two members of one name met after a partition: the lower stops, and the two are told of each other.
            let keep_trying = joined && alive.is_some_and(|alive| alive < generation);
            let name = name.clone();
            let refusal = match &old {
                Some((_, address)) if !keep_trying => Refusal::NameHeld {
                    name,
                    address: address.clone(),
                },
                _ => Refusal::NameInQuestion { name },
            };
            self.refuse(now, link, refusal);
        }
    }

    /// The old node of that name did not answer, or its link broke: the newcomer is checked again without it.
    pub(super) fn settle_disputes_about(
        &mut self,
        now: Instant,
        name: &NodeName,
        names: &impl KnownNames,
    ) {
        let asked: Vec<LinkId> = self
            .unready()
            .filter(|(_, link)| {
                matches!(&link.state, LinkState::InQuestion(hello) if hello.node.name == *name)
            })
            .map(|(id, _)| id)
            .collect();
        for link in asked {
            self.settle_dispute(now, link, names);
        }
    }

    pub(super) fn settle_dispute(&mut self, now: Instant, link: LinkId, names: &impl KnownNames) {
        let Some(entry) = self.links.get_mut(&link) else {
            return;
        };
        let LinkState::InQuestion(hello) = std::mem::replace(&mut entry.state, LinkState::Greeting)
        else {
            return;
        };
        entry.since = now;
        if let Some(old) = self.ready.get(&hello.node.name).copied() {
            self.close(now, old);
        }
        self.handle_hello(now, link, *hello, names);
    }

    fn welcome(&mut self, now: Instant, link: LinkId, theirs: Hello, names: &impl KnownNames) {
        let name = theirs.node.name.clone();
        if let Some(other) = self.ready.get(&name).copied()
            && other != link
            && !self.newer_wins(now, other, link)
        {
            if !self.links[&link].is_dialled() {
                let hello = self.our_hello(names.highest(&name));
                self.transmit(link, &ControlMessage::Hello(hello));
            }
            return self.refuse(now, link, Refusal::Duplicate);
        }
        if theirs.periods_ms != self.ours.periods_ms {
            let (broadcast, down) = theirs.periods_ms;
            let message = format!(
                "{} runs with broadcast_period {broadcast} ms and down_period {down} ms, this node with {} and {}: \
                 use the same settings on all nodes",
                theirs.node, self.ours.periods_ms.0, self.ours.periods_ms.1
            );
            self.warn(&name, message);
        }
        if !self.links[&link].is_dialled() {
            let hello = self.our_hello(names.highest(&name));
            self.transmit(link, &ControlMessage::Hello(hello));
        }
        if let Some(replaced) = self.ready.get(&name).copied().filter(|old| *old != link) {
            // What was in flight on the old link is lost: membership and tracker start afresh on the new one.
            self.close(now, replaced);
        }
        self.ready.insert(name.clone(), link);
        if let Some(entry) = self.links.get_mut(&link) {
            entry.since = now;
            entry.state = LinkState::Ready(Box::new(theirs.clone()));
        }
        self.unready.remove(&link);
        self.dials.ready(&theirs.node);
        let waiting = self.waiting.remove(&name).unwrap_or_default();
        self.events.push_back(LinkEvent::Ready {
            peer: theirs.node.clone(),
            hello: Box::new(theirs),
        });
        for (_, frame) in waiting {
            self.outputs.push_back(Output::Transmit { link, frame });
        }
    }

    /// Rule: one connection per pair with a deterministic winner.
    fn newer_wins(&self, now: Instant, older: LinkId, newer: LinkId) -> bool {
        let (Some(old), Some(new)) = (self.links.get(&older), self.links.get(&newer)) else {
            return true;
        };
        let LinkState::Ready(hello) = &old.state else {
            return true;
        };
        if old.is_dialled() == new.is_dialled() || now.since(old.since) > CROSSED_DIAL_WINDOW {
            return true;
        }
        let we_are_smaller = self.ours.node.name < hello.node.name;
        new.is_dialled() == we_are_smaller
    }

    /// Rule: a refusal ends nobody. Whoever refuses this node because another has its name only says where that one is to be
    /// found; the two settle it between themselves, with credentials that speak for the name. Without it any member that
    /// is dialled ends the node that dials.
    pub(super) fn handle_refusal(
        &mut self,
        now: Instant,
        link: LinkId,
        refusal: Refusal,
        names: &impl KnownNames,
    ) {
        let origin = self.links[&link].origin.clone();
        self.close(now, link);
        let Origin::Dialled(address) = origin else {
            return;
        };
        match refusal {
            Refusal::Duplicate => {}
            Refusal::Myself => self.dials.is_myself(&address),
            Refusal::NameTaken { .. } if names.heeds_refusals() => {
                self.events.push_back(LinkEvent::NameTaken { by: None });
            }
            Refusal::NameInQuestion { .. } | Refusal::NameTaken { .. } => {
                self.dials.retry_soon(now, &address);
            }
            Refusal::NameHeld { name, address: at } => {
                self.dials.retry_soon(now, &address);
                self.introduce(now, &name, &at);
            }
            refusal => self.warn_once_per_address(now, &address, &refusal),
        }
    }

    /// Somebody says that another node has this node's name, and where: it is asked, now and then.
    fn introduce(&mut self, now: Instant, name: &NodeName, at: &Address) {
        let soon = |since: Instant| now.since(since) < INTRODUCTION_INTERVAL;
        if *name != self.ours.node.name
            || *at == self.ours.address
            || self.introduced_at.is_some_and(soon)
        {
            return;
        }
        self.introduced_at = Some(now);
        self.dials.question(now, at);
    }

    /// The rival was said to be there: somebody else who answers, or who cannot prove the name, shows that it is not.
    fn check_rivals_place(&mut self, link: LinkId, theirs: &Hello, sound: bool) {
        let Origin::Dialled(address) = &self.links[&link].origin else {
            return;
        };
        let is_there = sound && theirs.node.name == self.ours.node.name;
        let gone = self
            .rival
            .take_if(|rival| !is_there && rival.address == *address);
        if let Some(rival) = gone {
            self.events.push_back(LinkEvent::Ghost {
                generation: rival.generation,
            });
        }
    }

    /// A peer speaks of a generation of this node's own name, which may be one.
    fn may_be_mine(
        &mut self,
        now: Instant,
        from: &NodeName,
        generation: Generation,
        names: &impl KnownNames,
    ) -> bool {
        let plausible = names.is_plausible(now, generation);
        if !plausible {
            let name = self.ours.node.name.clone();
            self.implausible(from, NodeId { name, generation });
        }
        plausible
    }

    fn implausible(&mut self, from: &NodeName, node: NodeId) {
        let from = from.clone();
        self.events.push_back(LinkEvent::Implausible { from, node });
    }

    fn warn_once_per_address(&mut self, now: Instant, address: &Address, refusal: &Refusal) {
        if self.dials.complain(now, address) {
            self.warn(address, format!("{address} refuses this node: {refusal}"));
        }
    }

    fn refuse(&mut self, now: Instant, link: LinkId, refusal: Refusal) {
        self.transmit(link, &ControlMessage::Refuse(refusal));
        self.close(now, link);
    }

    /// A Hello of another major version may not decode, but its first bytes never change their meaning.
    pub(super) fn refuse_unreadable_hello(&mut self, link: LinkId, frame: &Frame) {
        let refusal = match postcard::take_from_bytes::<([u8; 4], u16)>(&frame.body) {
            Ok(((MAGIC, theirs), _)) if theirs != self.ours.major => Refusal::Version {
                ours: self.ours.major,
                theirs,
            },
            _ => Refusal::Magic,
        };
        let peer = self.describe(link);
        self.warn(&peer, format!("refusing {peer}: {refusal}"));
        self.transmit(link, &ControlMessage::Refuse(refusal));
    }
}

enum Admission {
    Welcome,
    /// A higher generation of that name is known.
    Behind,
    /// The old one on that link is to be asked first.
    Ask(LinkId),
    Refuse(Refusal),
}

fn linked_same_process(links: &BTreeMap<LinkId, Link>, ready: Option<&LinkId>, nonce: u64) -> bool {
    ready
        .and_then(|link| links.get(link))
        .is_some_and(|link| matches!(&link.state, LinkState::Ready(hello) if hello.nonce == nonce))
}
