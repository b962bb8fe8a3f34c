//! Who is up: SWIM by the engine `foca`, behind the rules that make it converge.
//!
//! Inputs are `handle_*(now, …)` and the facts of links; after each of them [`Membership::poll_event`] and
//! [`Membership::poll_transmit`] are emptied, and [`Membership::handle_timeout`] is called no later than
//! [`Membership::poll_timeout`] says.

mod accusations;
mod config;
mod death_notices;
mod disputes;
mod engine;
mod evidence;
#[cfg(any(test, feature = "fault-switches"))]
pub mod forge;
mod generations;
mod identity;
mod lately;
mod lives;
mod member_list;
mod places;
mod refusals;
mod suspicion;
#[cfg(test)]
mod tests;
mod two_accusers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use foca::{Incarnation, Member, Message, OwnedNotification, State};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::id::{Address, Generation, NodeId, NodeName};
use crate::limits::MAX_KNOWN_NODES;
use crate::message::ControlMessage;
use crate::rules::{Rule, RuleSet};
use crate::time::{Instant, earliest};

use accusations::Accusations;
pub use config::{MembershipConfig, MembershipCounts};
use disputes::{DEATH_NOTICE_INTERVAL, Disputes};
use engine::{Engine, Runtime, Swim};
use evidence::Evidence;
pub use evidence::RefusedDial;
#[cfg(any(test, feature = "fault-switches"))]
pub use identity::describe_packet;
use identity::{Identity, MemberKey, Packet, key};
use lately::Lately;
use lives::Lives;
pub use member_list::{MemberInfo, MemberState};
use member_list::{MemberList, Status};

/// When a newcomer asks random members for all they know, after it became active.
const JOIN_ANNOUNCES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// How many members are asked each time.
const JOIN_ANNOUNCE_COUNT: usize = 2;
/// How many members hear at once that this node took a new generation; the others hear by gossip.
const RENEW_ANNOUNCE_COUNT: usize = 5;
/// Told to come back more often than this, a node waits: two lives of one name would drive each other on.
const RENEW_INTERVAL: Duration = Duration::from_millis(50);
/// How far ahead of what is known an incarnation may be that a third party tells: a node counts it up by one each time that
/// it refutes a suspicion, and one at the end of the numbers has to come back under another identity.
const MAX_INCARNATION_LEAP: Incarnation = 256;
/// Members that agree are believed what the node itself has not said here.
const AGREEING_TELLERS: usize = 2;
/// How often what is outdated is forgotten.
const SWEEP_RANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What membership reports of the other nodes, and of this one's place among them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// A node is up.
    Up {
        /// The node, in this life.
        node: NodeId,
        /// Where it is reached.
        address: Address,
    },
    /// A node is down; it may come back.
    Down {
        /// The node, in that life.
        node: NodeId,
    },
    /// A node said goodbye: this life never comes back.
    Left {
        /// The node, in that life.
        node: NodeId,
    },
    /// A higher generation of this node's own name is being spoken of.
    NameConflict {
        /// The other life.
        node: NodeId,
        /// Where it is said to be reached.
        address: Address,
    },
    /// This node heard from nobody for so long that it must be the one that is cut off.
    Isolated,
}

/// Who is up, as this node knows it.
///
/// The order: a peer's link is reported by [`link_up`](Membership::link_up) before anything that it says is handled, and by
/// [`link_down`](Membership::link_down) before a refused dial of it. [`resumed`](Membership::resumed) comes before
/// [`handle_timeout`](Membership::handle_timeout) where the process did not run for a while. After
/// [`leave`](Membership::leave) it hears nothing and has no timeout. Dropped without that, it is silent: the others take this
/// node for dead when their probes fail.
pub struct Membership {
    config: MembershipConfig,
    rules: RuleSet,
    me: Identity,
    engine: Engine,
    join_announces: VecDeque<Instant>,
    member_list: MemberList,
    lives: Lives,
    accusations: Accusations,
    /// What this node's own incarnation is at least.
    incarnation: Incarnation,
    evidence: Evidence,
    /// The nodes with a ready link.
    linked: BTreeMap<NodeName, NodeId>,
    /// The nodes that were told of their death, by way of somebody.
    told_dead: Lately<NodeId>,
    disputes: Disputes,
    /// The suspects that were told of it.
    told_suspects: Lately<NodeId>,
    heard_at: Instant,
    rejoined_at: Option<Instant>,
    sweep_at: Instant,
    stopped: bool,
    counts: MembershipCounts,
    rng: StdRng,
    transmits: VecDeque<(NodeId, Address, ControlMessage)>,
    events: VecDeque<MemberEvent>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("me", &self.me)
            .field("instance", &self.engine.instance())
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// A node that knows nobody yet; `seed` determines all its randomness.
    pub fn new(
        config: MembershipConfig,
        me: NodeId,
        address: Address,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let rules = RuleSet::default();
        // A generation is what the clock said when the process started.
        let lives = Lives::new(me.generation.number, now);
        let me = Identity::new(me, 0, address);
        let engine = Engine::new(config.engine(rules), &me, &mut rng);
        let sweep_at = now + sweep_interval(&config);
        let told_interval = config.probe_rtt;
        Membership {
            config,
            rules,
            me,
            engine,
            join_announces: VecDeque::new(),
            member_list: MemberList::default(),
            lives,
            accusations: Accusations::default(),
            incarnation: Incarnation::default(),
            evidence: Evidence::default(),
            linked: BTreeMap::new(),
            told_dead: Lately::new(DEATH_NOTICE_INTERVAL, MAX_KNOWN_NODES),
            disputes: Disputes::default(),
            told_suspects: Lately::new(told_interval, MAX_KNOWN_NODES),
            heard_at: now,
            rejoined_at: None,
            sweep_at,
            stopped: false,
            counts: MembershipCounts::default(),
            rng,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Switches rules off, before anybody is known.
    #[cfg(any(test, feature = "fault-switches"))]
    pub fn set_rules(&mut self, rules: RuleSet) {
        self.rules = rules;
        self.start_engine(self.me.clone());
    }

    /// A packet of the engine arrived from a peer.
    pub fn handle_packet(&mut self, now: Instant, from: &NodeId, packet: &Bytes) {
        if self.stopped {
            return;
        }
        self.heard(now);
        let Some(mut opened) = Packet::decode(packet) else {
            tracing::debug!(%from, "a garbled membership packet");
            return;
        };
        // The engine's packets are never relayed: a peer speaks for itself only.
        if opened.header.src.node != *from || self.is_barred(from) {
            return;
        }
        let just_rejoined = self
            .rejoined_at
            .is_some_and(|at| now.since(at) < RENEW_INTERVAL);
        // Rule: told to come back twice in a moment, a node heeds it once. Both are about the identity that it has given up;
        // without it two lives of one name drive each other on.
        if just_rejoined && opened.header.message == Message::TurnUndead {
            return;
        }
        // A peer that addresses another life of this name has heard of one: it may be this node whose time is over.
        self.report_rival(now, &from.name, &opened.header.dst);
        self.heard_itself(now, &opened.header.src);
        let told = std::mem::take(&mut opened.updates);
        let count = told.len();
        for update in told {
            if self.admits(now, from, &update, just_rejoined) {
                opened.updates.push(update);
            }
        }
        let stripped;
        let data = if opened.updates.len() == count {
            packet.as_ref()
        } else if let Some(bytes) = opened.encode() {
            stripped = bytes;
            &stripped
        } else {
            return;
        };
        let rejoins = self.me.rejoins;
        self.drive(now, |engine, runtime| engine.handle_data(data, runtime));
        let source = opened.header.src;
        if self.me.rejoins != rejoins {
            // Whoever said that this node is down should be the first to hear that it is not.
            self.drive(now, |engine, runtime| engine.announce(source, runtime));
        } else {
            self.tell_suspect(now, source);
        }
    }

    /// Anything at all arrived from a member. Whoever hears from anybody is not the one that is cut off: see
    /// [`Rule::Isolation`].
    pub fn heard(&mut self, now: Instant) {
        self.heard_at = self.heard_at.max(now);
    }

    /// The handshake with a peer is through.
    pub fn link_up(&mut self, now: Instant, peer: &NodeId, address: &Address) {
        if self.stopped || peer.name == self.me.node.name || self.is_barred(peer) {
            return;
        }
        self.heard(now);
        let returns = self.lives.generations.returns_of(peer);
        self.heard_itself(now, &Identity::new(peer.clone(), returns, address.clone()));
        self.linked.insert(peer.name.clone(), peer.clone());
        // Rule: a living link outweighs all that was said before. Without it, what others reported while the node restarted would
        // take down the life that has just said Hello.
        self.evidence.clear(peer);
        self.accusations.drop_case(peer);
        let known = self.engine_member(key(&peer.name));
        // Among 300 that all link to each other, asking each for all it knows would be a gigabyte of answers.
        let ask = !known
            .as_ref()
            .is_some_and(|member| member.id().node == *peer && member.state() != State::Down);
        let remembered = self.member_list.identity(&peer.name);
        let remembered = remembered.filter(|identity| {
            !self.rules.holds(Rule::OwnWord) || !self.lives.generations.is_unconfirmed(identity)
        });
        let rejoins = [known.as_ref().map(Member::id), remembered]
            .into_iter()
            .flatten()
            .filter(|identity| identity.node == *peer)
            .map(|identity| identity.rejoins)
            .max()
            .unwrap_or(0);
        let identity = Identity::new(peer.clone(), rejoins, address.clone());
        if self.rules.holds(Rule::LinkIntroduces) {
            let alive = Member::alive(identity.clone());
            self.apply(now, alive);
        }
        if ask {
            self.drive(now, |engine, runtime| engine.announce(identity, runtime));
        }
    }

    /// A peer says that a node leaves; only the node itself may say so.
    pub fn handle_goodbye(&mut self, now: Instant, from: &NodeId, node: &NodeId) {
        if self.stopped || from != node || node.name == self.me.node.name {
            return;
        }
        self.heard(now);
        self.lives.generations.heard_itself(now, node, 0);
        self.lives
            .depart(node.clone(), now + self.config.permdown_period);
        self.evidence.remove(node);
        if self.member_list.leave(now, node) {
            self.events
                .push_back(MemberEvent::Left { node: node.clone() });
        }
        // Told to nobody in a hurry: whoever hears of a death before the goodbye could only take it for one.
        self.mark_down(now, node);
    }

    /// The highest generation heard of for a name, be it of a living, dead or departed node.
    pub fn highest_known(&self, name: &NodeName) -> Option<Generation> {
        self.lives.generations.highest(name)
    }

    /// True where that generation can be: it is not far ahead of this node's clock.
    pub fn is_plausible(&self, now: Instant, generation: Generation) -> bool {
        !self.rules.holds(Rule::PlausibleGenerations)
            || self.lives.generations.is_plausible(now, generation)
    }

    /// From now on this node is no newcomer: one member alone does not tell it what time it is.
    pub fn set_joined(&mut self) {
        self.lives.generations.set_joined();
    }

    /// A peer says that this node's own name has had that generation.
    pub fn heard_of_own_generation(&mut self, now: Instant, from: &NodeId, number: u64) {
        // Its own generation tells what time it is, too: there is no link yet on which it could say so.
        self.lives.generations.witness(now, from);
        self.lives.generations.heard_of_own(&from.name, number);
    }

    /// True where this node may take a generation of that number: it is not far ahead of its clock.
    pub fn may_take(&self, now: Instant, number: u64) -> bool {
        !self.rules.holds(Rule::PlausibleGenerations)
            || self.lives.generations.may_take(now, number)
    }

    /// True where that life of a node is known from others alone.
    pub fn is_unconfirmed(&self, node: &NodeId) -> bool {
        self.rules.holds(Rule::OwnWord)
            && self
                .lives
                .generations
                .highest(&node.name)
                .is_none_or(|highest| highest < node.generation)
    }

    /// A peer says that a node is in a generation far ahead of this node's clock. Returns how often it has said such
    /// things, where that is worth a word.
    pub fn refuse_generation(
        &mut self,
        now: Instant,
        from: &NodeName,
        node: &NodeId,
    ) -> Option<u64> {
        self.counts.implausible += 1;
        if *from == node.name {
            self.lives.generations.witness(now, node);
        }
        self.lives.generations.complain(from)
    }

    /// True where that life of the node said goodbye.
    pub fn is_left(&self, node: &NodeId) -> bool {
        self.lives.is_departed(node)
    }

    pub(crate) fn rules(&self) -> RuleSet {
        self.rules
    }

    /// What the rules were needed for so far.
    pub fn counts(&self) -> MembershipCounts {
        self.counts
    }

    /// How often this life came back under a renewed identity: it was taken for dead, or took itself for cut off.
    pub fn returns(&self) -> u32 {
        self.me.rejoins
    }

    /// The life of a name that is up, where one is.
    pub fn is_up(&self, name: &NodeName) -> Option<NodeId> {
        self.member_list
            .up(name)
            .map(|identity| identity.node.clone())
    }

    /// This node took a new generation; the others stay known, and some are told at once.
    pub fn renew_generation(&mut self, now: Instant, me: NodeId) {
        if self.stopped {
            return;
        }
        self.lives.generations.heard_itself(now, &me, 0);
        let members: Vec<Member<Identity>> = self
            .engine
            .members()
            .filter(|member| member.id().key() != self.me.key())
            .cloned()
            .collect();
        let address = self.me.address.clone();
        self.start_engine(Identity::new(me, 0, address));
        self.drive(now, |engine, runtime| {
            engine.apply_many(members.into_iter(), false, runtime)
        });
        for identity in self.random_up(RENEW_ANNOUNCE_COUNT, None) {
            self.drive(now, |engine, runtime| engine.announce(identity, runtime));
        }
    }

    /// The process did not run for a while, and everything that arrived meanwhile has been handled: checks first
    /// whether this node is cut off, and gives the suspects one more probe's time to answer.
    pub fn resumed(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        self.check_isolation(now);
        let later = now + self.config.probe;
        self.engine.postpone_deaths(now, later);
        self.evidence.postpone(now, later);
        self.disputes.postpone(now, later);
        self.accusations.postpone(now, later);
    }

    /// Leaves for good; what is to be sent comes out of [`poll_transmit`](Self::poll_transmit) at once.
    pub fn leave(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        // The goodbye comes first: what the engine says after it could only be taken for a death.
        for peer in self.member_list.iter_up() {
            self.transmits.push_back((
                peer.node.clone(),
                peer.address.clone(),
                ControlMessage::Goodbye {
                    node: self.me.node.clone(),
                },
            ));
        }
        self.drive(now, |engine, runtime| engine.leave_cluster(runtime));
        self.stopped = true;
        self.engine.stop();
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) named has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        self.check_isolation(now);
        while let Some(timer) = self.engine.take_due(now) {
            if self.is_sound(&timer) {
                self.drive(now, |engine, runtime| engine.handle_timer(timer, runtime));
            } else {
                self.counts.refuted += 1;
            }
        }
        while self.join_announces.front().is_some_and(|at| *at <= now) {
            self.join_announces.pop_front();
            for identity in self.random_up(JOIN_ANNOUNCE_COUNT, None) {
                self.drive(now, |engine, runtime| engine.announce(identity, runtime));
            }
        }
        self.check_due_evidence(now);
        self.settle_disputes(now);
        self.check_accusations(now);
        if now >= self.sweep_at {
            self.sweep(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let timer = self.engine.poll_timeout();
        let announce = self.join_announces.front().copied();
        let isolation = (self.rules.holds(Rule::Isolation) && self.member_list.any_up())
            .then(|| self.heard_at + self.config.isolation);
        let first = earliest(earliest(timer, announce), isolation);
        let evidence = earliest(self.evidence.poll_timeout(), self.disputes.poll_timeout());
        let evidence = earliest(evidence, self.accusations.poll_timeout());
        earliest(earliest(first, evidence), Some(self.sweep_at))
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Address, ControlMessage)> {
        self.transmits.pop_front()
    }

    /// The next thing to report.
    pub fn poll_event(&mut self) -> Option<MemberEvent> {
        self.events.pop_front()
    }

    /// Which of the dead are worth a dial now: the most recent first, with one of the others in turn. To be asked every
    /// second or so.
    pub fn dial_candidates(&mut self, now: Instant) -> Vec<(NodeId, Address)> {
        if self.stopped || !self.rules.holds(Rule::RedialDead) {
            return Vec::new();
        }
        self.member_list.dial_candidates(now)
    }

    /// The other nodes by name, living, recently dead and departed.
    pub fn members(&self) -> impl Iterator<Item = MemberInfo> + '_ {
        let suspects: BTreeSet<MemberKey> = self
            .engine
            .members()
            .filter(|member| member.state() == State::Suspect)
            .map(|member| member.id().key())
            .collect();
        self.member_list.members(suspects)
    }

    fn is_barred(&self, node: &NodeId) -> bool {
        self.rules.holds(Rule::LeftIsFinal) && self.lives.is_departed(node)
    }

    fn is_up_in_this_life(&self, node: &NodeId) -> bool {
        self.member_list
            .up(&node.name)
            .is_some_and(|identity| identity.node == *node)
    }

    fn engine_member(&self, key: MemberKey) -> Option<Member<Identity>> {
        self.engine.member(key).cloned()
    }

    /// Up to `count` random living members, without the one named.
    fn random_up(&mut self, count: usize, without: Option<&NodeName>) -> Vec<Identity> {
        let mut candidates: Vec<Identity> = self
            .member_list
            .iter_up()
            .filter(|identity| Some(&identity.node.name) != without)
            .cloned()
            .collect();
        let count = count.min(candidates.len());
        for place in 0..count {
            let other = self.rng.random_range(place..candidates.len());
            candidates.swap(place, other);
        }
        candidates.truncate(count);
        candidates
    }

    /// What of a packet's news the engine may hear.
    fn admits(
        &mut self,
        now: Instant,
        from: &NodeId,
        update: &Member<Identity>,
        just_rejoined: bool,
    ) -> bool {
        let identity = update.id();
        if identity.key() == self.me.key() {
            if *identity == self.me {
                return self.admits_of_this_node(update, just_rejoined);
            }
            self.report_rival(now, &from.name, identity);
            return !self.rules.holds(Rule::NameConflict);
        }
        if !self.is_plausible(now, identity.node.generation) {
            self.complain_of_generation(now, &from.name, &identity.node);
            return false;
        }
        if !self.rules.holds(Rule::OwnWord) {
            self.lives
                .generations
                .heard_itself(now, &identity.node, identity.rejoins);
        }
        let own = identity.node.name == from.name;
        if update.state() == State::Alive {
            self.on_gossip_claims_alive(now, from, identity);
        }
        if !own && self.is_to_be_asked(now, from, update) {
            return false;
        }
        if update.state() == State::Down {
            let known = self.engine_member(identity.key());
            let accused = known.filter(|known| known.state() != State::Down && !own);
            return accused.is_none_or(|known| {
                known.id() != identity || self.is_convicted(now, from, &known)
            });
        }
        let barred = self.is_barred(&identity.node);
        let stranger = update.state() == State::Suspect && self.is_stranger(identity);
        let outdated = self.is_outdated(&identity.node);
        self.counts.barred += u64::from(barred);
        self.counts.strangers += u64::from(stranger);
        let admitted = !barred && !stranger && !outdated;
        if admitted && update.state() == State::Alive {
            // Rule: only what is believed refutes. A word that is refused for its incarnation would let one liar hold up what
            // others say of the dead.
            self.accusations.refuted(identity, update.incarnation());
        }
        admitted
    }

    /// What others say of this very identity of this node: a suspicion has to be about an incarnation that there is.
    fn admits_of_this_node(&mut self, update: &Member<Identity>, just_rejoined: bool) -> bool {
        match update.state() {
            State::Down => !just_rejoined,
            State::Alive => true,
            State::Suspect => {
                let said = update.incarnation();
                let most = self.incarnation.saturating_add(MAX_INCARNATION_LEAP);
                if self.rules.holds(Rule::OwnWord) && said > most {
                    return false;
                }
                self.incarnation = said.saturating_add(1).max(self.incarnation);
                true
            }
        }
    }

    /// Rule: *own word*; see [`generations`]. True where a third party says what the node itself has to say.
    fn is_to_be_asked(&mut self, now: Instant, from: &NodeId, update: &Member<Identity>) -> bool {
        let identity = update.id();
        let name = &identity.node.name;
        if !self.rules.holds(Rule::OwnWord) {
            return false;
        }
        let order = |identity: &Identity| (identity.node.generation, identity.rejoins);
        let member = self.engine_member(identity.key());
        let remembered = self.member_list.identity(name);
        let known = [member.as_ref().map(Member::id), remembered];
        let Some(latest) = known.into_iter().flatten().map(order).max() else {
            // Whoever has never been heard of is introduced by anybody.
            return false;
        };
        let is_up = self.member_list.up(name).is_some();
        let revives = !is_up && update.state() != State::Down && order(identity) >= latest;
        if order(identity) <= latest && !revives {
            let leaps = member.as_ref().is_some_and(|member| {
                let most = member.incarnation().saturating_add(MAX_INCARNATION_LEAP);
                update.state() != State::Down
                    && order(member.id()) == order(identity)
                    && update.incarnation() > most
            });
            return leaps;
        }
        let others = self
            .member_list
            .iter_up()
            .filter(|other| other.node.name != *name);
        let tellers = others.take(AGREEING_TELLERS).count();
        // Rule: whoever holds a link here speaks on it, whatever others say, as long as nobody doubts it. A link that was cut
        // is silent for a while longer, and who is suspected meanwhile would have no way to say that it has come back.
        // Even then one teller is not enough: of three nodes one could raise the doubt, and then tell of a return that never was.
        let doubted = member.is_some_and(|member| member.state() == State::Suspect);
        let linked = self
            .member_list
            .up(name)
            .filter(|up| self.is_linked(&up.node));
        let needed = match linked {
            Some(up) if !doubted && !self.accusations.has_case(&up.node) => usize::MAX,
            Some(_) => AGREEING_TELLERS,
            None => tellers,
        };
        if self
            .lives
            .generations
            .is_agreed(now, &from.name, identity, needed)
        {
            return false;
        }
        self.counts.hearsay += 1;
        let interval = self.config.probe;
        if update.state() != State::Down
            && !self.is_barred(&identity.node)
            && self.lives.generations.may_ask(now, name, interval)
        {
            let identity = identity.clone();
            self.drive(now, |engine, runtime| engine.announce(identity, runtime));
        }
        true
    }

    /// A node says itself who it is, on its own link.
    fn heard_itself(&mut self, now: Instant, identity: &Identity) {
        let node = &identity.node;
        self.lives
            .generations
            .heard_itself(now, node, identity.rejoins);
        if !self.rules.holds(Rule::OwnWord) {
            return;
        }
        // Rule: a later life that others have made up gives way to the node itself.
        let known = self.engine_member(identity.key());
        let made_up = known.filter(|known| {
            let (id, ours) = (known.id(), (node.generation, identity.rejoins));
            (id.node.generation, id.rejoins) > ours
                && self.lives.generations.is_unconfirmed(id)
                && (known.state() == State::Down || id.node.generation != node.generation)
        });
        if let Some(made_up) = made_up {
            self.counts.uncovered += 1;
            self.mark_down(now, &made_up.id().node);
            self.forget_dead(now, made_up.id().clone());
        }
    }

    fn complain_of_generation(&mut self, now: Instant, from: &NodeName, node: &NodeId) {
        if let Some(times) = self.refuse_generation(now, from, node) {
            tracing::warn!(peer = %from, %node, times, "says that a node is in a generation that cannot be yet");
        }
    }

    /// Rule: a higher generation of this node's own name is reported, once and again after a while.
    fn report_rival(&mut self, now: Instant, from: &NodeName, identity: &Identity) {
        let generation = identity.node.generation;
        if !self.rules.holds(Rule::NameConflict)
            || identity.key() != self.me.key()
            || generation <= self.me.node.generation
        {
            return;
        }
        if !self.is_plausible(now, generation) {
            return self.complain_of_generation(now, from, &identity.node);
        }
        let paced = self.rules.holds(Rule::OwnWord);
        if !self.lives.is_new_rival(now, generation, paced) {
            return;
        }
        self.counts.conflicts += 1;
        self.events.push_back(MemberEvent::NameConflict {
            node: identity.node.clone(),
            address: identity.address.clone(),
        });
    }

    /// A death that was found out by evidence: the others hear of it at once.
    fn mark_down_and_gossip(&mut self, now: Instant, node: &NodeId) {
        self.mark_down(now, node);
        self.drive(now, |engine, runtime| engine.gossip(runtime));
    }

    /// Tells the engine that this life of a node is over.
    fn mark_down(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.engine_member(key(&node.name)) else {
            return;
        };
        if member.id().node == *node && member.state() != State::Down {
            let down = Member::new(member.id().clone(), member.incarnation(), State::Down);
            self.apply(now, down);
        }
    }

    fn apply(&mut self, now: Instant, member: Member<Identity>) {
        self.drive(now, |engine, runtime| {
            engine.apply_many(std::iter::once(member), true, runtime)
        });
    }

    /// Rule: nothing received from anyone while peers are known to be up means that this node is cut off.
    fn check_isolation(&mut self, now: Instant) {
        if !self.rules.holds(Rule::Isolation)
            || !self.member_list.any_up()
            || now < self.heard_at + self.config.isolation
        {
            return;
        }
        tracing::info!(node = %self.me.node, "cut off: nothing received from anyone");
        for node in self.member_list.all_down(now) {
            self.events.push_back(MemberEvent::Down { node });
        }
        // What spoke against others was this node's own silence.
        self.evidence = Evidence::default();
        self.heard(now);
        let renewed = foca::Identity::renew(&self.me).unwrap_or_else(|| self.me.clone());
        self.start_engine(renewed);
        self.events.push_back(MemberEvent::Isolated);
    }

    /// A fresh engine that knows nobody; timers of the one before are void.
    fn start_engine(&mut self, me: Identity) {
        self.me = me;
        self.incarnation = Incarnation::default();
        self.join_announces.clear();
        self.disputes = Disputes::default();
        self.accusations = Accusations::default();
        let config = self.config.engine(self.rules);
        self.engine.restart(config, &self.me, &mut self.rng);
    }

    /// Lets the engine do something, and takes up what came of it.
    fn drive(
        &mut self,
        now: Instant,
        operation: impl FnOnce(&mut Swim, &mut Runtime) -> Result<(), foca::Error>,
    ) {
        self.engine.run(operation);
        self.process_engine_output(now);
    }

    fn process_engine_output(&mut self, now: Instant) {
        let mut touched = Vec::new();
        let mut rejoined = false;
        while let Some(notification) = self.engine.next_notification() {
            match notification {
                OwnedNotification::MemberUp(identity)
                | OwnedNotification::MemberDown(identity)
                | OwnedNotification::Rename(_, identity) => touched.push(identity.node.name),
                OwnedNotification::Active if self.rules.holds(Rule::JoinAnnounces) => {
                    self.join_announces = JOIN_ANNOUNCES.iter().map(|after| now + *after).collect();
                }
                OwnedNotification::Idle => self.join_announces.clear(),
                OwnedNotification::Rejoin(identity) => {
                    self.me = identity;
                    self.incarnation = Incarnation::default();
                    self.rejoined_at = Some(now);
                    rejoined = true;
                }
                _ => {}
            }
        }
        while let Some((to, packet)) = self.engine.next_packet() {
            if to.key() != self.me.key() && !self.is_barred(&to.node) {
                self.transmits
                    .push_back((to.node, to.address, ControlMessage::Membership(packet)));
            }
        }
        self.engine.keep_timers(now);
        touched.sort_unstable();
        touched.dedup();
        for name in touched {
            self.reconcile(now, &name);
        }
        if rejoined && self.rules.holds(Rule::RearmAfterRejoin) {
            self.counts.rearmed += 1;
            // Rule: the engine waits for a packet before it starts its timers again, which may never come.
            self.drive(now, |engine, runtime| {
                engine.apply_many(std::iter::empty(), true, runtime)
            });
            self.drive(now, |engine, runtime| engine.gossip(runtime));
        }
        self.cap_removals(now);
    }

    /// Brings the member list in line with what the engine thinks of a name, and reports the difference.
    fn reconcile(&mut self, now: Instant, name: &NodeName) {
        if *name == self.me.node.name {
            return;
        }
        let member = self.engine_member(key(name));
        match member {
            Some(member) if member.state() != State::Down => {
                let identity = member.id().clone();
                if self.is_barred(&identity.node) {
                    self.mark_down(now, &identity.node);
                    return;
                }
                match self.member_list.up(name).map(|known| known.node.clone()) {
                    // Rule: with another number of rejoins only, it is the same life. Without it, readers would hear of a death that was none.
                    Some(known) if known == identity.node => self.member_list.rename(identity),
                    Some(known) => {
                        // Rule: with another generation, the old one died and the new one lives.
                        self.evidence.remove(&known);
                        if self.rules.holds(Rule::RenameIsDeath) {
                            self.events.push_back(MemberEvent::Down { node: known });
                            self.report_up(now, identity);
                        } else {
                            self.member_list.rename(identity);
                        }
                    }
                    None => self.report_up(now, identity),
                }
            }
            member => {
                if let Some(node) = self.member_list.set_down(now, name) {
                    self.evidence.remove(&node);
                    self.events.push_back(MemberEvent::Down { node });
                }
                if let Some(member) = member {
                    self.member_list.renew_dead(now, member.id());
                }
            }
        }
    }

    fn report_up(&mut self, now: Instant, identity: Identity) {
        self.events.push_back(MemberEvent::Up {
            node: identity.node.clone(),
            address: identity.address.clone(),
        });
        self.member_list.set(identity, Status::Up, now);
    }

    /// Forgets what is outdated.
    fn sweep(&mut self, now: Instant) {
        self.sweep_at = now + sweep_interval(&self.config);
        for identity in self.engine.due_removals(now) {
            self.forget_dead(now, identity);
        }
        self.lives.sweep_departed(now);
        let kept = self.config.permdown_period;
        self.member_list.sweep(now, kept);
        let member_list = &self.member_list;
        // What is remembered of a name in any other way was given by that generation, or an earlier one.
        self.lives
            .generations
            .sweep(now, kept, |name| member_list.knows(name));
        self.accusations.sweep(now);
        self.evidence.sweep(now, self.config.down_period);
        self.told_dead.sweep(now);
        self.told_suspects.sweep(now);
    }

    /// Rule: retained dead names are capped, the oldest go first.
    fn cap_removals(&mut self, now: Instant) {
        while self.engine.members().len() > MAX_KNOWN_NODES {
            let Some(identity) = self.engine.oldest_dead() else {
                return;
            };
            self.forget_dead(now, identity);
        }
        self.member_list.cap();
    }

    fn forget_dead(&mut self, now: Instant, identity: Identity) {
        self.engine.forget(identity);
        self.process_engine_output(now);
    }
}

fn sweep_interval(config: &MembershipConfig) -> Duration {
    (config.permdown_period / 8).clamp(SWEEP_RANGE.0, SWEEP_RANGE.1)
}
