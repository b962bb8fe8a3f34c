//! The connections of the control lane: who is dialled and when, the handshake, and one winner per pair.
//!
//! Membership says who lives; this module only keeps a ready connection to each of them, answers
//! newcomers, and reports what it sees: links that break, dials that are refused, rivals for a name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::admission::Credentials;
use crate::frame::Frame;
use crate::id::{Address, Generation, NodeId, NodeName};
use crate::message::{ControlMessage, Hello, Offers, kind};
use crate::time::{Instant, earliest};

mod dials;
mod handshake;
mod link;
mod pace;
#[cfg(test)]
mod tests;

pub(crate) use dials::{Dials, Purpose, SeedState};
pub use link::{DialFailure, LinkId, Origin, Output};
pub(crate) use link::{KnownNames, LinkEvent};
use link::{Link, LinkState};

/// Shortest and longest time that [`hello_timeout`] gives.
const HELLO_TIMEOUTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// A second connection of a pair within this time of the first is taken for a crossed dial, and the one that
/// the smaller name dialled stays. A later one means that the other side has lost the first, so the newer stays.
const CROSSED_DIAL_WINDOW: Duration = Duration::from_secs(2);

/// How long a node that looks alive has to answer a challenge on its own link.
const CHALLENGE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a node is dialled that is said to have this node's name.
const INTRODUCTION_INTERVAL: Duration = Duration::from_millis(200);

/// Most connections whose handshake is under way. More are closed at once: a flood of them is hostile or broken.
const MAX_HANDSHAKES: usize = 1_024;

/// Most packets of the membership engine that wait for a link to come up, per peer; the engine repeats itself.
const MAX_WAITING_PACKETS: usize = 8;

/// Most links that were closed on the word of others and may still bring a goodbye.
const MAX_FORGOTTEN: usize = 64;

/// How long a connection may take, from when this side dialled or accepted it, until the other side's Hello is here: the
/// `down_period`, at least a second and at most five.
///
/// Rule: a Hello is no older than what it takes to find out a death. One that waited for longer in a stalled connection
/// may be the last word of a process that has died since, and everybody who is told by whoever believes it would list
/// the dead.
pub fn hello_timeout(down_period: Duration) -> Duration {
    down_period.clamp(HELLO_TIMEOUTS.0, HELLO_TIMEOUTS.1)
}

/// A rival for this node's name that is being dialled, to see whether it lives.
#[derive(Debug)]
struct Rival {
    generation: Generation,
    address: Address,
}

/// A newcomer whose name looked alive, first seen when.
#[derive(Debug)]
struct NameDispute {
    since: Instant,
    rival: Generation,
}

/// The connections of this node.
///
/// The order: [`handle_connected`](Links::handle_connected), then frames, then
/// [`handle_disconnected`](Links::handle_disconnected), once for each [`LinkId`]; a failed dial has none of these, but
/// [`handle_dial_failed`](Links::handle_dial_failed). After each input outputs and events are emptied, and then
/// [`settle_timeout`](Links::settle_timeout) is called. Dropped, it closes nothing by itself: whoever drives it drops its
/// connections.
pub(crate) struct Links {
    ours: Hello,
    down_period: Duration,
    links: BTreeMap<LinkId, Link>,
    /// Those of `links` whose handshake is under way.
    unready: BTreeSet<LinkId>,
    ready: BTreeMap<NodeName, LinkId>,
    waiting: BTreeMap<NodeName, Vec<(Instant, Frame)>>,
    name_disputes: BTreeMap<NodeName, NameDispute>,
    dials: Dials,
    rival: Option<Rival>,
    /// When the last node was dialled that is said to have this node's name.
    introduced_at: Option<Instant>,
    /// The links of those whose life is over, the last ones: a goodbye may still be on its way there.
    forgotten: VecDeque<(LinkId, NodeId)>,
    leaving: bool,
    /// What [`poll_timeout`](Self::poll_timeout) says, while nothing that it depends on changes: messages on ready links
    /// are by far the most of what comes in, and looking at every dial after each of them is what a large cluster would
    /// do most of the time.
    due: Option<Option<Instant>>,
    outputs: VecDeque<Output>,
    events: VecDeque<LinkEvent>,
}

impl Links {
    pub(crate) fn new(
        ours: Hello,
        down_period: Duration,
        seeds: Vec<Address>,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut dials = Dials::new(rng.random());
        dials.set_seeds(now, seeds);
        Links {
            ours,
            down_period,
            links: BTreeMap::new(),
            unready: BTreeSet::new(),
            ready: BTreeMap::new(),
            waiting: BTreeMap::new(),
            name_disputes: BTreeMap::new(),
            dials,
            rival: None,
            introduced_at: None,
            forgotten: VecDeque::new(),
            leaving: false,
            due: None,
            outputs: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(crate) fn hello(&self) -> &Hello {
        &self.ours
    }

    pub(crate) fn dials(&self) -> &Dials {
        &self.dials
    }

    pub(crate) fn set_seeds(&mut self, now: Instant, seeds: Vec<Address>) {
        self.due = None;
        self.dials.set_seeds(now, seeds);
    }

    /// See [`Dials::look_around`].
    pub(crate) fn look_around(&mut self, now: Instant) {
        self.due = None;
        self.dials.look_around(now);
    }

    /// From now on this node is no newcomer.
    pub(crate) fn set_joined(&mut self) {
        self.ours.joined = true;
    }

    /// No dial any more, and no newcomer is let in.
    pub(crate) fn set_leaving(&mut self) {
        self.due = None;
        self.leaving = true;
    }

    /// The node took a new generation: every link says Hello again.
    pub(crate) fn renew(&mut self, now: Instant, node: NodeId) {
        self.due = None;
        self.ours.node = node;
        self.rival = None;
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.close(now, link);
        }
        self.dials.retry_all(now);
    }

    /// True where a message to that node would go out now.
    pub(crate) fn is_ready(&self, node: &NodeId) -> bool {
        self.ready_link(node).is_some()
    }

    pub(crate) fn offers(&self, node: &NodeId) -> Option<Offers> {
        match &self.links.get(&self.ready_link(node)?)?.state {
            LinkState::Ready(hello) => Some(hello.offers),
            _ => None,
        }
    }

    /// The minor version that the node on a ready link speaks.
    pub(crate) fn minor(&self, node: &NodeId) -> Option<u16> {
        match &self.links.get(&self.ready_link(node)?)?.state {
            LinkState::Ready(hello) => Some(hello.minor),
            _ => None,
        }
    }

    pub(crate) fn ready_peers(&self) -> impl Iterator<Item = &NodeId> {
        self.ready
            .values()
            .filter_map(|link| self.links.get(link)?.peer())
    }

    /// The peer on that link, once its handshake is through.
    pub(crate) fn peer_of(&self, link: LinkId) -> Option<&NodeId> {
        self.links.get(&link)?.peer()
    }

    pub(crate) fn handle_connected(
        &mut self,
        now: Instant,
        link: LinkId,
        origin: Origin,
        credentials: Credentials,
    ) {
        self.due = None;
        if self.leaving || self.unready.len() >= MAX_HANDSHAKES {
            self.outputs.push_back(Output::Close { link });
            return;
        }
        if let Origin::Dialled(address) = &origin {
            self.dials.connected(address, link);
            let hello = self.our_hello(None);
            self.transmit(link, &ControlMessage::Hello(hello));
        }
        self.unready.insert(link);
        self.links.insert(
            link,
            Link {
                origin,
                credentials,
                state: LinkState::Greeting,
                since: now,
            },
        );
    }

    pub(crate) fn handle_disconnected(
        &mut self,
        now: Instant,
        link: LinkId,
        names: &impl KnownNames,
    ) {
        self.due = None;
        let Some(gone) = self.links.remove(&link) else {
            return;
        };
        let peer = gone.peer().map(|peer| peer.name.clone());
        self.ended(now, link, gone);
        if let Some(peer) = peer {
            // Whoever waits for this node's word on a rival need not wait for the challenge to time out.
            self.settle_disputes_about(now, &peer, names);
        }
    }

    /// A connection that this node dialled ends before the other side has said who it is.
    pub(crate) fn complain_of_silence(&mut self, now: Instant, link: LinkId, why: &str) {
        let Some(Link {
            origin: Origin::Dialled(address),
            state: LinkState::Greeting,
            ..
        }) = self.links.get(&link)
        else {
            return;
        };
        let address = address.clone();
        if self.dials.complain(now, &address) {
            self.warn(
                &address,
                format!("{address} does not answer this node ({why}); still trying"),
            );
        }
    }

    pub(crate) fn handle_dial_failed(
        &mut self,
        now: Instant,
        address: &Address,
        failure: &DialFailure,
    ) {
        self.due = None;
        let failed = self.dials.failed(now, address, failure);
        if let Some((peer, refusal)) = failed.evidence {
            self.events
                .push_back(LinkEvent::DialRefused { peer, refusal });
        }
        if failed.complain {
            let why = match failure {
                DialFailure::Refused => "nobody listens there",
                DialFailure::Unreachable(why) => why,
            };
            self.warn(
                address,
                format!("the seed {address} does not answer ({why}); still trying"),
            );
        }
        if let Some(rival) = self.rival.take_if(|rival| rival.address == *address) {
            self.events.push_back(LinkEvent::Ghost {
                generation: rival.generation,
            });
        }
    }

    pub(crate) fn handle_frame(
        &mut self,
        now: Instant,
        link: LinkId,
        frame: &Frame,
        names: &impl KnownNames,
    ) {
        let Some(state) = self.links.get(&link).map(|link| &link.state) else {
            return self.handle_late_goodbye(link, frame);
        };
        let message = match ControlMessage::decode(frame) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                self.due = None;
                if matches!(state, LinkState::Greeting) && frame.kind == kind::HELLO {
                    self.refuse_unreadable_hello(link, frame);
                } else {
                    let peer = self.describe(link);
                    self.warn(&peer, format!("closing the connection to {peer}: {error}"));
                }
                self.close(now, link);
                return;
            }
        };
        let known = self.due.take();
        match (state, message) {
            (LinkState::Greeting, ControlMessage::Hello(_)) if self.is_late(now, link) => {
                self.give_up_greeting(now, link);
            }
            (LinkState::Greeting, ControlMessage::Hello(theirs)) => {
                self.handle_hello(now, link, theirs, names);
            }
            (LinkState::Greeting, ControlMessage::Refuse(refusal)) => {
                self.handle_refusal(now, link, refusal, names);
            }
            (LinkState::Ready(hello), ControlMessage::Refuse(refusal)) => {
                let peer = hello.node.clone();
                tracing::debug!(%peer, %refusal, "a peer closes the connection");
                self.handle_refusal(now, link, refusal, names);
            }
            (LinkState::Ready(hello), ControlMessage::Challenge(challenge)) => {
                let alive = ControlMessage::Alive {
                    rival: challenge.rival,
                };
                tracing::debug!(by = %hello.node, "challenged");
                let from = hello.node.name.clone();
                self.transmit(link, &alive);
                self.handle_rival(now, from, challenge, names);
            }
            (LinkState::Ready(hello), ControlMessage::Alive { rival }) => {
                let peer = hello.node.clone();
                self.handle_alive(now, &peer.name, rival);
                if rival == Generation::default() {
                    self.events.push_back(LinkEvent::Answered { peer });
                }
            }
            (LinkState::Ready(hello), message) => {
                let from = hello.node.clone();
                self.due = known;
                self.events.push_back(LinkEvent::Message { from, message });
            }
            (LinkState::Greeting | LinkState::InQuestion(_), _) => {
                let peer = self.describe(link);
                let what = "it spoke before the handshake was over";
                self.warn(&peer, format!("closing the connection to {peer}: {what}"));
                self.close(now, link);
            }
        }
    }

    /// What others make of a leaving node's silence may overtake its goodbye, which is the word that counts.
    fn handle_late_goodbye(&mut self, link: LinkId, frame: &Frame) {
        let Some(at) = self.forgotten.iter().position(|(other, _)| *other == link) else {
            return;
        };
        if let Ok(Some(message @ ControlMessage::Goodbye { .. })) = ControlMessage::decode(frame)
            && let Some((_, from)) = self.forgotten.remove(at)
        {
            self.events.push_back(LinkEvent::Message { from, message });
        }
    }

    /// Membership's word: that node is up, or worth trying again.
    pub(crate) fn want(
        &mut self,
        now: Instant,
        node: &NodeId,
        address: &Address,
        purpose: Purpose,
    ) {
        if self.leaving || self.is_ready(node) || node.name == self.ours.node.name {
            return;
        }
        self.due = None;
        // In a full mesh both sides learn of each other at once; the smaller name dials first.
        let defer = purpose == Purpose::Member && self.ours.node.name > node.name;
        self.dials.want(now, node, address, purpose, defer);
    }

    /// Membership's word: that life is over. What is left of its link is closed, so that the next one is fresh.
    pub(crate) fn forget(&mut self, now: Instant, node: &NodeId, names: &impl KnownNames) {
        self.due = None;
        if let Some(link) = self.ready_link(node) {
            if self.forgotten.len() >= MAX_FORGOTTEN {
                self.forgotten.pop_front();
            }
            self.forgotten.push_back((link, node.clone()));
            self.close(now, link);
        }
        self.dials.forget(node);
        self.waiting.remove(&node.name);
        self.settle_disputes_about(now, &node.name, names);
    }

    /// Sends a message to that node, if its link is ready.
    pub(crate) fn send(&mut self, node: &NodeId, frame: &Frame) -> bool {
        let Some(link) = self.ready_link(node) else {
            return false;
        };
        self.outputs.push_back(Output::Transmit {
            link,
            frame: frame.clone(),
        });
        true
    }

    /// Sends a packet of the membership engine, which may be for a node whose link is yet to come up.
    pub(crate) fn send_or_dial(
        &mut self,
        now: Instant,
        node: &NodeId,
        address: &Address,
        frame: &Frame,
    ) {
        if self.send(node, frame) {
            return;
        }
        let waiting = self.waiting.entry(node.name.clone()).or_default();
        waiting.retain(|(since, _)| now.since(*since) < Duration::from_secs(1));
        if waiting.len() < MAX_WAITING_PACKETS {
            waiting.push((now, frame.clone()));
        }
        self.want(now, node, address, Purpose::Once);
    }

    /// A life of this node's name with a higher generation is said to be there: dial it to see.
    pub(crate) fn question_rival(
        &mut self,
        now: Instant,
        generation: Generation,
        address: &Address,
    ) {
        if generation <= self.ours.node.generation || self.rival.is_some() {
            return;
        }
        if *address == self.ours.address {
            // Only this process can listen there: the rival is an earlier life of this very address.
            self.events.push_back(LinkEvent::Ghost { generation });
            return;
        }
        self.due = None;
        self.rival = Some(Rival {
            generation,
            address: address.clone(),
        });
        self.dials.question(now, address);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, names: &impl KnownNames) {
        self.due = None;
        let patience = hello_timeout(self.down_period);
        let late: Vec<LinkId> = self
            .unready()
            .map(|(id, _)| id)
            .filter(|id| self.is_late(now, *id))
            .collect();
        for link in late {
            self.give_up_greeting(now, link);
        }
        let unanswered: Vec<LinkId> = self
            .unready()
            .filter(|(_, link)| {
                matches!(link.state, LinkState::InQuestion(_))
                    && now.since(link.since) >= CHALLENGE_TIMEOUT
            })
            .map(|(id, _)| id)
            .collect();
        for link in unanswered {
            self.settle_dispute(now, link, names);
        }
        self.name_disputes
            .retain(|_, dispute| now.since(dispute.since) < 4 * self.down_period + patience);
        self.waiting.retain(|_, frames| {
            frames.retain(|(since, _)| now.since(*since) < Duration::from_secs(1));
            !frames.is_empty()
        });
        if !self.leaving {
            let ready = &self.ready;
            for address in self.dials.due(now, |name| ready.contains_key(name)) {
                self.outputs.push_back(Output::Dial { address });
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if let Some(known) = self.due {
            debug_assert_eq!(known, self.next_timeout());
            return known;
        }
        self.next_timeout()
    }

    /// Keeps what [`poll_timeout`](Self::poll_timeout) says, so that it need not be found again.
    pub(crate) fn settle_timeout(&mut self) {
        if self.due.is_none() {
            self.due = Some(self.next_timeout());
        }
    }

    /// True where the other side's Hello should have come by now.
    fn is_late(&self, now: Instant, link: LinkId) -> bool {
        let patience = hello_timeout(self.down_period);
        let link = self.links.get(&link);
        link.is_some_and(|link| {
            matches!(link.state, LinkState::Greeting) && now.since(link.since) >= patience
        })
    }

    fn give_up_greeting(&mut self, now: Instant, link: LinkId) {
        if let Origin::Dialled(address) = &self.links[&link].origin {
            let address = address.clone();
            let failure = DialFailure::Unreachable("the handshake timed out".to_owned());
            self.handle_dial_failed(now, &address, &failure);
        }
        self.close(now, link);
    }

    fn next_timeout(&self) -> Option<Instant> {
        let handshakes = self
            .unready()
            .filter_map(|(_, link)| match link.state {
                LinkState::Greeting => Some(link.since + hello_timeout(self.down_period)),
                LinkState::InQuestion(_) => Some(link.since + CHALLENGE_TIMEOUT),
                LinkState::Ready(_) => None,
            })
            .min();
        let dials = if self.leaving {
            None
        } else {
            let ready = &self.ready;
            self.dials.poll_timeout(|name| ready.contains_key(name))
        };
        earliest(handshakes, dials)
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn our_hello(&self, highest_of_yours: Option<Generation>) -> Hello {
        Hello {
            highest_of_yours,
            ..self.ours.clone()
        }
    }

    fn unready(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.unready
            .iter()
            .filter_map(|id| Some((*id, self.links.get(id)?)))
    }

    fn ready_link(&self, node: &NodeId) -> Option<LinkId> {
        let link = *self.ready.get(&node.name)?;
        (self.links.get(&link)?.peer()? == node).then_some(link)
    }

    fn transmit(&mut self, link: LinkId, message: &ControlMessage) {
        self.outputs.push_back(Output::Transmit {
            link,
            frame: message.encode(),
        });
    }

    /// Ends a connection from this side; a ready one counts as lost, and is dialled again.
    fn close(&mut self, now: Instant, link: LinkId) {
        let Some(closed) = self.links.remove(&link) else {
            return;
        };
        self.outputs.push_back(Output::Close { link });
        self.ended(now, link, closed);
    }

    fn ended(&mut self, now: Instant, link: LinkId, ended: Link) {
        self.unready.remove(&link);
        if let Origin::Dialled(address) = &ended.origin {
            // Whoever was to be found there was not.
            let rival = |rival: &mut Rival| rival.address == *address;
            if !matches!(ended.state, LinkState::Ready(_)) {
                self.rival.take_if(rival);
            }
            self.dials.disconnected(now, address, link);
        }
        if let LinkState::Ready(hello) = &ended.state
            && self.ready.get(&hello.node.name) == Some(&link)
        {
            self.ready.remove(&hello.node.name);
            if !self.leaving {
                self.dials.lost(now, &hello.node, &hello.address);
            }
            self.events.push_back(LinkEvent::Lost {
                peer: hello.node.clone(),
            });
        }
    }

    fn describe(&self, link: LinkId) -> String {
        match self.links.get(&link) {
            Some(Link {
                state: LinkState::Ready(hello) | LinkState::InQuestion(hello),
                ..
            }) => format!("{} at {}", hello.node, hello.address),
            Some(Link {
                origin: Origin::Dialled(address),
                ..
            }) => address.to_string(),
            _ => "an unknown peer".to_owned(),
        }
    }

    fn warn(&mut self, about: &impl ToString, message: String) {
        let about = about.to_string();
        self.events.push_back(LinkEvent::Warning { about, message });
    }
}
