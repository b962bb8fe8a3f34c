//! Membership under virtual time: nodes, a lossy network that can be cut, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use foca::PostcardCodec;

use super::generations::{Generations, MAX_SKEW};
use super::lives::CONFLICT_INTERVAL;
use super::*;
use crate::message::{Challenge, DeathNotice};
use crate::rules::{Rule, RuleSet};
use crate::settings::Settings;

mod evidence;
mod liars;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The default `down_period`.
const DOWN: Duration = Duration::from_millis(1500);

struct Node {
    membership: Membership,
    id: NodeId,
    address: Address,
    alive: bool,
    paused: Option<Vec<(NodeId, ControlMessage)>>,
    links: BTreeSet<usize>,
    events: Vec<(Instant, MemberEvent)>,
    redial_at: Instant,
}

enum Happening {
    Arrives {
        to: usize,
        from: NodeId,
        message: ControlMessage,
    },
    Redials {
        from: usize,
        to: usize,
    },
}

struct World {
    now: Instant,
    nodes: Vec<Node>,
    queue: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
    rng: StdRng,
    loss_percent: u32,
    /// Pairs that do not reach each other, the lower index first.
    cut: BTreeSet<(usize, usize)>,
    rules: RuleSet,
    /// Whether a node dials whom it learns of, as the real one does.
    mesh: bool,
    /// How many messages were sent.
    sent: u64,
}

fn name(index: usize) -> NodeName {
    NodeName::try_new(format!("node{index:02}")).unwrap()
}

fn address(index: usize) -> Address {
    Address::try_new(format!("10.0.0.{index}:7000")).unwrap()
}

fn life(index: usize, number: u64) -> NodeId {
    NodeId {
        name: name(index),
        generation: Generation { number, random: 7 },
    }
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    fn new(nodes: usize, seed: u64, rules: RuleSet) -> World {
        let mut world = World {
            now: Instant::from_micros(1_000_000),
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            rng: StdRng::seed_from_u64(seed),
            loss_percent: 0,
            cut: BTreeSet::new(),
            rules,
            mesh: true,
            sent: 0,
        };
        for index in 0..nodes {
            let node = world.fresh(index, 1);
            world.nodes.push(node);
        }
        world
    }

    /// Nodes that all know each other.
    fn joined(nodes: usize, seed: u64, rules: RuleSet) -> World {
        let mut world = World::new(nodes, seed, rules);
        world.join_through_the_first();
        world.run(10 * SECOND);
        world.assert_all_up("after joining");
        for node in &mut world.nodes {
            node.events.clear();
        }
        world
    }

    fn join_through_the_first(&mut self) {
        for index in 1..self.nodes.len() {
            self.link(0, index);
        }
    }

    fn fresh(&mut self, index: usize, number: u64) -> Node {
        let id = life(index, number);
        let mut membership = Membership::new(
            MembershipConfig::new(&Settings::default()),
            id.clone(),
            address(index),
            self.now,
            self.rng.random(),
        );
        membership.set_rules(self.rules);
        Node {
            membership,
            id,
            address: address(index),
            alive: true,
            paused: None,
            links: BTreeSet::new(),
            events: Vec::new(),
            redial_at: self.now,
        }
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.nodes[a].alive && self.nodes[b].alive && !self.cut.contains(&pair(a, b))
    }

    fn link(&mut self, a: usize, b: usize) {
        for (near, far) in [(a, b), (b, a)] {
            let (id, address) = (self.nodes[far].id.clone(), self.nodes[far].address.clone());
            self.nodes[near].links.insert(far);
            self.nodes[near].membership.link_up(self.now, &id, &address);
            self.pump(near);
        }
    }

    fn unlink(&mut self, a: usize, b: usize) {
        for (near, far) in [(a, b), (b, a)] {
            let far_id = self.nodes[far].id.clone();
            self.nodes[near].links.remove(&far);
            self.nodes[near].membership.link_down(&far_id);
        }
    }

    fn later(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue
            .insert((self.now + after, self.sequence), happening);
    }

    fn index_of(&self, name: &NodeName) -> usize {
        self.nodes
            .iter()
            .position(|node| node.id.name == *name)
            .unwrap()
    }

    /// Takes up what a node has to say and to report.
    fn pump(&mut self, index: usize) {
        while let Some(event) = self.nodes[index].membership.poll_event() {
            self.nodes[index].events.push((self.now, event.clone()));
            match event {
                MemberEvent::Down { node } | MemberEvent::Left { node, .. } => {
                    let other = self.index_of(&node.name);
                    if self.nodes[other].id == node {
                        self.unlink(index, other);
                    }
                }
                MemberEvent::Up { node, .. } if self.mesh => {
                    let to = self.index_of(&node.name);
                    self.later(MILLISECOND, Happening::Redials { from: index, to });
                }
                _ => {}
            }
        }
        while let Some((to, _, message)) = self.nodes[index].membership.poll_transmit() {
            self.sent += 1;
            let to = self.index_of(&to.name);
            let lost = self.rng.random_range(0..100) < self.loss_percent;
            if lost || !self.reaches(index, to) {
                continue;
            }
            let from = self.nodes[index].id.clone();
            self.later(MILLISECOND, Happening::Arrives { to, from, message });
        }
    }

    fn handle(&mut self, to: usize, from: &NodeId, message: ControlMessage) {
        let now = self.now;
        let membership = &mut self.nodes[to].membership;
        membership.heard(now);
        match message {
            ControlMessage::Membership(packet) => membership.handle_packet(now, from, &packet),
            ControlMessage::Refused { node } => membership.handle_refused(now, from, &node),
            ControlMessage::AskLink { node } => {
                membership.handle_link_question(now, from, &node);
            }
            ControlMessage::Link { node, linked } => {
                membership.handle_link_answer(now, from, &node, linked);
            }
            ControlMessage::Goodbye { node } => {
                membership.handle_goodbye(now, from, &node);
            }
            ControlMessage::DeathNotice(notice) => {
                membership.handle_death_notice(now, from, notice);
            }
            // What the links do with it.
            ControlMessage::Challenge(Challenge { rival, .. }) => {
                let asker = self.index_of(&from.name);
                if self.reaches(to, asker) {
                    let happening = Happening::Arrives {
                        to: asker,
                        from: self.nodes[to].id.clone(),
                        message: ControlMessage::Alive { rival },
                    };
                    self.later(MILLISECOND, happening);
                }
            }
            ControlMessage::Alive { .. } => membership.heard_alive_itself(now, from),
            other => panic!("not a message of membership: {other:?}"),
        }
        self.pump(to);
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let queued = self.queue.keys().next().map(|(at, _)| *at);
            let timer = self
                .nodes
                .iter()
                .filter(|node| node.alive && node.paused.is_none())
                .filter_map(|node| earliest(node.membership.poll_timeout(), Some(node.redial_at)))
                .min();
            let next = earliest(queued, timer).unwrap_or(until);
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            if queued == Some(next) {
                let (_, happening) = self.queue.pop_first().unwrap();
                self.happen(happening);
                continue;
            }
            for index in 0..self.nodes.len() {
                let now = self.now;
                let node = &mut self.nodes[index];
                if !node.alive || node.paused.is_some() {
                    continue;
                }
                if node.membership.poll_timeout().is_some_and(|at| at <= now) {
                    node.membership.handle_timeout(now);
                    assert!(
                        node.membership.poll_timeout().is_none_or(|at| at > now),
                        "a timer that stays due"
                    );
                }
                if node.redial_at <= now {
                    node.redial_at = now + SECOND;
                    for (candidate, _) in node.membership.dial_candidates(now) {
                        let to = self.index_of(&candidate.name);
                        self.later(MILLISECOND, Happening::Redials { from: index, to });
                    }
                }
                self.pump(index);
            }
        }
        self.now = until;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives { to, from, message } => {
                let sender = self.index_of(&from.name);
                let node = &mut self.nodes[to];
                if !node.alive || self.cut.contains(&pair(sender, to)) {
                    return;
                }
                if let Some(waiting) = &mut node.paused {
                    waiting.push((from, message));
                } else {
                    self.handle(to, &from, message);
                }
            }
            Happening::Redials { from, to } => {
                let paused = self.nodes[from].paused.is_some() || self.nodes[to].paused.is_some();
                let left = self.nodes[from].membership.is_left(&self.nodes[to].id);
                if self.reaches(from, to)
                    && !paused
                    && !left
                    && !self.nodes[from].links.contains(&to)
                {
                    self.link(from, to);
                }
            }
        }
    }

    /// The link of that node to another one broke, and a dial there is refused.
    fn refuse(&mut self, index: usize, by: &NodeId) {
        let refusal = RefusedDial {
            lost: true,
            took: MILLISECOND,
        };
        self.nodes[index].membership.link_down(by);
        self.nodes[index]
            .membership
            .dial_refused(self.now, by, refusal);
        self.pump(index);
    }

    /// The process dies, its host lives: links break at once, and redials are refused.
    fn kill(&mut self, index: usize) {
        self.nodes[index].alive = false;
        let id = self.nodes[index].id.clone();
        for other in 0..self.nodes.len() {
            if self.nodes[other].alive && self.nodes[other].links.remove(&index) {
                self.nodes[other].membership.link_down(&id);
                self.refuse(other, &id);
            }
        }
    }

    /// The host dies: nothing at all is heard any more.
    fn silence(&mut self, index: usize) {
        self.nodes[index].alive = false;
    }

    fn restart(&mut self, index: usize, number: u64) {
        let node = self.fresh(index, number);
        self.nodes[index] = node;
        for other in 0..self.nodes.len() {
            self.nodes[other].links.remove(&index);
        }
    }

    fn pause(&mut self, index: usize) {
        self.nodes[index].paused = Some(Vec::new());
    }

    fn resume(&mut self, index: usize) {
        for (from, message) in self.nodes[index].paused.take().unwrap() {
            self.handle(index, &from, message);
        }
        let now = self.now;
        self.nodes[index].membership.resumed(now);
        self.nodes[index].membership.handle_timeout(now);
        self.pump(index);
    }

    fn partition(&mut self, near: &[usize], far: &[usize]) {
        for &a in near {
            for &b in far {
                self.cut.insert(pair(a, b));
            }
        }
    }

    fn sees_up(&self, index: usize, other: usize) -> bool {
        self.nodes[index].membership.is_up(&name(other)) == Some(self.nodes[other].id.clone())
    }

    fn living(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|index| self.nodes[*index].alive)
            .collect()
    }

    fn all_up(&self) -> bool {
        let living = self.living();
        living
            .iter()
            .all(|a| living.iter().all(|b| a == b || self.sees_up(*a, *b)))
    }

    fn assert_all_up(&self, when: &str) {
        for a in self.living() {
            for b in self.living() {
                assert!(
                    a == b || self.sees_up(a, b),
                    "{when}: node{a:02} does not see node{b:02} up at {}",
                    self.now
                );
            }
        }
    }

    /// How long it takes until nobody living sees that one up, at most `limit`.
    fn time_to_down(&mut self, index: usize, limit: Duration) -> Option<Duration> {
        let start = self.now;
        while self.now.since(start) <= limit {
            if self.living().iter().all(|other| {
                *other == index || self.nodes[*other].membership.is_up(&name(index)).is_none()
            }) {
                return Some(self.now.since(start));
            }
            self.run(MILLISECOND);
        }
        None
    }

    fn time_to_all_up(&mut self, limit: Duration) -> Option<Duration> {
        let start = self.now;
        while self.now.since(start) <= limit {
            if self.all_up() {
                return Some(self.now.since(start));
            }
            self.run(10 * MILLISECOND);
        }
        None
    }

    fn downs(&self) -> usize {
        self.nodes
            .iter()
            .flat_map(|node| &node.events)
            .filter(|(_, event)| matches!(event, MemberEvent::Down { .. }))
            .count()
    }

    fn isolations(&self) -> usize {
        self.nodes
            .iter()
            .flat_map(|node| &node.events)
            .filter(|(_, event)| matches!(event, MemberEvent::Isolated))
            .count()
    }

    fn events_of(&self, index: usize) -> Vec<MemberEvent> {
        let events = &self.nodes[index].events;
        events.iter().map(|(_, event)| event.clone()).collect()
    }
}

fn up(node: &NodeId, index: usize) -> MemberEvent {
    MemberEvent::Up {
        node: node.clone(),
        address: address(index),
    }
}

fn down(node: &NodeId) -> MemberEvent {
    MemberEvent::Down { node: node.clone() }
}

#[test]
fn timing_follows_from_the_down_period() {
    let config = MembershipConfig::new(&Settings::default());
    assert_eq!(config.probe, 200 * MILLISECOND);
    assert_eq!(config.probe_rtt, 100 * MILLISECOND);
    assert_eq!(config.suspicion, SECOND);
    assert_eq!(config.gossip, 50 * MILLISECOND);
    assert_eq!(config.isolation, 1700 * MILLISECOND);
    assert_eq!(config.evidence_wait, 400 * MILLISECOND);
}

#[test]
fn three_nodes_find_each_other_through_one_seed_within_a_second() {
    let mut world = World::new(3, 1, RuleSet::default());
    world.join_through_the_first();
    let took = world.time_to_all_up(SECOND);
    assert!(took.is_some());
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = || {
        let mut world = World::new(8, 42, RuleSet::default());
        world.loss_percent = 5;
        world.join_through_the_first();
        world.run(5 * SECOND);
        world.silence(3);
        world.run(5 * SECOND);
        let events: Vec<_> = world.nodes.into_iter().map(|node| node.events).collect();
        (world.sent, events)
    };
    assert_eq!(history(), history());
}

#[test]
fn the_silent_death_of_a_host_is_known_everywhere_within_twice_the_down_period() {
    for seed in 0..10 {
        let mut world = World::joined(10, seed, RuleSet::default());
        world.silence(4);
        let took = world.time_to_down(4, 2 * DOWN);
        assert!(took.is_some(), "seed {seed}");
        assert_eq!(world.downs(), 9, "seed {seed}");
    }
}

#[test]
fn losing_5_percent_for_two_minutes_takes_nobody_down() {
    for seed in 0..3 {
        let mut world = World::joined(10, seed, RuleSet::default());
        world.loss_percent = 5;
        world.run(120 * SECOND);
        assert_eq!(world.downs(), 0, "seed {seed}");
        world.assert_all_up("after loss");
    }
}

/// How often a node had to come back although it was well.
fn rejoins(rules: RuleSet) -> u64 {
    let mut rejoins = 0;
    for seed in 0..3 {
        let mut world = World::joined(10, seed, rules);
        world.loss_percent = 15;
        world.run(120 * SECOND);
        rejoins += world
            .nodes
            .iter()
            .map(|node| u64::from(node.membership.me.rejoins))
            .sum::<u64>();
    }
    rejoins
}

#[test]
fn a_suspicion_that_was_refuted_has_no_consequence() {
    let with = rejoins(RuleSet::default());
    let without = rejoins(RuleSet::without(&[Rule::SuspectGuard]));
    assert!(
        with * 4 < without,
        "{with} with the rule, {without} without"
    );
}

fn after_a_partition(rules: RuleSet, limit: Duration) -> Option<Duration> {
    let mut world = World::joined(10, 7, rules);
    let (near, far): (Vec<usize>, Vec<usize>) = ((0..5).collect(), (5..10).collect());
    world.partition(&near, &far);
    world.run(10 * SECOND);
    for a in &near {
        assert!(far.iter().all(|b| !world.sees_up(*a, *b)));
        assert!(near.iter().all(|b| a == b || world.sees_up(*a, *b)));
    }
    assert_eq!(world.isolations(), 0);
    world.cut.clear();
    // Redials are the links' business, and heal it as well: here the engine is on its own.
    for node in &mut world.nodes {
        node.redial_at = Instant::from_micros(u64::MAX);
    }
    world.time_to_all_up(limit)
}

#[test]
fn a_partition_of_ten_seconds_heals_and_everyone_sees_everyone() {
    let limit = 10 * SECOND;
    assert!(after_a_partition(RuleSet::default(), limit).is_some());
    for rules in [
        RuleSet::without(&[Rule::AnnounceToDown]),
        RuleSet::without(&[Rule::NotifyDown]),
    ] {
        assert_eq!(after_a_partition(rules, limit), None, "{rules:?}");
    }
}

/// A node took another for dead while nobody heard it say so, and the two have no way to each other.
fn sees_the_other_again(rules: RuleSet) -> bool {
    let mut world = World::joined(3, 3, rules);
    let (peer, accused) = (world.nodes[2].id.clone(), world.nodes[1].id.clone());
    world.partition(&[0], &[1, 2]);
    let now = world.now;
    world.nodes[0].membership.mark_down(now, &accused);
    // Short of what makes a node take itself for cut off; long enough for the news to have been told to nobody.
    world.run(SECOND * 3 / 2);
    world.cut.remove(&pair(0, 2));
    world.run(10 * SECOND);
    assert!(world.sees_up(0, 2) && world.sees_up(2, 1));
    world.nodes[2].events.clear();
    let now = world.now;
    let membership = &mut world.nodes[0].membership;
    membership.on_peer_claims_alive(now, &peer, &accused);
    world.pump(0);
    world.run(SECOND);
    assert_eq!(world.events_of(2), [], "nobody else minds");
    world.sees_up(0, 1)
}

#[test]
fn a_node_that_one_other_takes_for_dead_learns_it_by_way_of_a_third() {
    assert!(sees_the_other_again(RuleSet::default()));
    assert!(!sees_the_other_again(RuleSet::without(&[
        Rule::VerdictIsTold
    ])));
}

/// A node was out of reach while another one died without a word, and while that was the news.
fn learns_of_a_death_that_it_missed(rules: RuleSet) -> bool {
    let mut world = World::joined(48, 5, rules);
    let (late, dead) = (world.nodes[1].id.clone(), world.nodes[2].id.clone());
    world.silence(2);
    world.cut = (0..48).map(|other| pair(1, other)).collect();
    for index in (0..48).filter(|index| ![1, 2].contains(index)) {
        let now = world.now;
        world.nodes[index].membership.mark_down(now, &dead);
        world.pump(index);
    }
    // Short of what makes a node take itself for cut off; long enough for nobody to talk of it any more.
    world.run(SECOND);
    world.cut.clear();
    world.run(SECOND / 5);
    assert!(world.sees_up(1, 2) && world.sees_up(1, 0));
    let now = world.now;
    world.nodes[0]
        .membership
        .on_peer_claims_alive(now, &late, &dead);
    world.pump(0);
    world.run(2 * SECOND);
    !world.sees_up(1, 2)
}

#[test]
fn a_node_that_missed_the_news_of_a_death_learns_it_from_who_hears_it_list_the_dead() {
    assert!(learns_of_a_death_that_it_missed(RuleSet::default()));
    assert!(!learns_of_a_death_that_it_missed(RuleSet::without(&[
        Rule::VerdictIsEvidence
    ])));
}

/// A packet of one node's to another that passes something on.
fn gossip(world: &World, from: usize, to: usize, updates: Vec<Member<Identity>>) -> Bytes {
    let packet = Packet {
        header: foca::Header {
            src: world.nodes[from].membership.me.clone(),
            src_incarnation: 0,
            dst: world.nodes[to].membership.me.clone(),
            message: Message::Gossip,
        },
        updates,
    };
    Bytes::from(packet.encode().unwrap())
}

/// A newcomer was told of a dead node by somebody who missed the news, and has nothing of that node's that it could list.
fn learns_that_whom_it_passes_on_is_dead(rules: RuleSet) -> bool {
    let mut world = World::joined(48, 9, rules);
    let dead = world.nodes[2].id.clone();
    world.silence(2);
    for index in (0..48).filter(|index| *index != 2) {
        let now = world.now;
        world.nodes[index].membership.mark_down(now, &dead);
        world.pump(index);
    }
    world.run(10 * SECOND);
    world.restart(1, 2);
    for other in [0, 3] {
        world.link(1, other);
    }
    let late = Member::alive(Identity::new(dead, 0, address(2)));
    let now = world.now;
    world.nodes[1].membership.apply(now, late);
    world.pump(1);
    assert!(world.sees_up(1, 2));
    world.run(3 * SECOND);
    !world.sees_up(1, 2)
}

#[test]
fn a_newcomer_that_passes_on_that_a_dead_node_lives_is_contradicted() {
    assert!(learns_that_whom_it_passes_on_is_dead(RuleSet::default()));
    assert!(!learns_that_whom_it_passes_on_is_dead(RuleSet::without(&[
        Rule::VerdictIsTold
    ])));
}

#[test]
fn a_node_that_was_cut_off_takes_no_earlier_life_for_the_living() {
    let mut world = World::joined(10, 10, RuleSet::default());
    world.restart(1, 2);
    world.link(0, 1);
    world.run(SECOND);
    assert!(world.sees_up(0, 1));
    let others: Vec<usize> = (1..10).collect();
    world.partition(&[0], &others);
    world.run(30 * SECOND);
    assert_eq!(world.isolations(), 1, "its engine has forgotten everybody");
    let sender = world.nodes[2].id.clone();
    let earlier = Member::alive(Identity::new(life(1, 1), 0, address(1)));
    let packet = gossip(&world, 2, 0, vec![earlier]);
    let membership = &mut world.nodes[0].membership;
    membership.link_up(world.now, &sender, &address(2));
    membership.handle_packet(world.now, &sender, &packet);
    assert_eq!(membership.is_up(&name(1)), None);
    let notice = ControlMessage::DeathNotice(DeathNotice {
        node: life(1, 1),
        rival: Some((life(1, 2).generation, address(1))),
    });
    assert!(
        std::iter::from_fn(|| membership.poll_transmit())
            .any(|(to, _, message)| to == sender && message == notice),
        "whoever says so is told"
    );
}

/// What a node makes of a suspicion of somebody that it has never heard of.
fn is_introduced_by_a_suspicion(rules: RuleSet) -> bool {
    let mut world = World::new(4, 6, rules);
    world.silence(3);
    world.link(0, 1);
    world.link(0, 2);
    world.run(10 * SECOND);
    let stranger = Identity::new(life(3, 1), 0, address(3));
    let now = world.now;
    let membership = &mut world.nodes[0].membership;
    membership.apply(now, Member::alive(stranger.clone()));
    membership.apply(
        now,
        Member::new(stranger, Incarnation::default(), State::Suspect),
    );
    world.pump(0);
    world.run(SECOND / 2);
    world.sees_up(1, 3)
}

#[test]
fn nobody_is_introduced_by_a_suspicion() {
    assert!(!is_introduced_by_a_suspicion(RuleSet::default()));
    assert!(is_introduced_by_a_suspicion(RuleSet::without(&[
        Rule::SuspectsAreKnown
    ])));
}

/// What a node makes of a suspicion that the suspect was not told of when it arose.
fn is_refuted_in_the_end(rules: RuleSet) -> bool {
    let mut world = World::joined(3, 7, rules);
    let now = world.now;
    let membership = &mut world.nodes[0].membership;
    let suspect = membership.engine_member(key(&name(1))).unwrap();
    let suspicion = Member::new(suspect.id().clone(), suspect.incarnation(), State::Suspect);
    membership.drive(now, |engine, runtime| {
        engine.apply_many(std::iter::once(suspicion), false, runtime)
    });
    world.run(10 * SECOND);
    let member = world.nodes[0].membership.engine_member(key(&name(1)));
    member.is_some_and(|member| member.state() == State::Alive)
}

#[test]
fn a_suspect_that_talks_refutes_a_suspicion_that_nobody_talks_of() {
    assert!(is_refuted_in_the_end(RuleSet::default()));
    assert!(!is_refuted_in_the_end(RuleSet::without(&[
        Rule::SuspectsAreTold
    ])));
}

#[test]
fn the_generation_of_the_dead_is_known_for_as_long_as_they_are() {
    let mut world = World::joined(2, 8, RuleSet::default());
    world.silence(1);
    let permdown = Settings::default().permdown_period();
    world.run(permdown - 5 * SECOND);
    let mut known = 0;
    while world.nodes[0].membership.members().count() > 0 {
        let highest = world.nodes[0].membership.highest_known(&name(1));
        assert_eq!(highest, Some(life(1, 1).generation));
        world.run(MILLISECOND * 100);
        known += 1;
    }
    assert!(known > 50, "they were known for long enough");
}

#[test]
fn a_node_whose_clock_went_back_learns_of_its_earlier_life_by_way_of_a_third() {
    let mut world = World::joined(3, 4, RuleSet::default());
    world.partition(&[0], &[1, 2]);
    world.silence(1);
    world.run(10 * SECOND);
    // All but node 0, which has no way there, forgot the first life.
    world.restart(2, 2);
    world.restart(1, 0);
    world.link(1, 2);
    world.cut.remove(&pair(0, 2));
    world.run(10 * SECOND);
    world.nodes[0].membership.mark_down(world.now, &life(1, 1));
    let (peer, newer) = (world.nodes[2].id.clone(), world.nodes[1].id.clone());
    let earlier = Identity::new(life(1, 1), 0, address(1));
    let now = world.now;
    let membership = &mut world.nodes[0].membership;
    membership.apply(now, Member::new(earlier, 0, State::Down));
    membership.on_peer_claims_alive(now, &peer, &newer);
    world.nodes[1].events.clear();
    world.pump(0);
    world.run(SECOND);
    assert!(world.events_of(1).contains(&MemberEvent::NameConflict {
        node: life(1, 1),
        address: address(1),
    }));
}

#[test]
fn an_isolated_node_takes_itself_for_cut_off_and_comes_back() {
    for seed in 0..5 {
        let mut world = World::joined(10, seed, RuleSet::default());
        let others: Vec<usize> = (1..10).collect();
        world.partition(&[0], &others);
        world.run(30 * SECOND);
        assert_eq!(world.isolations(), 1, "seed {seed}");
        let alone = world.events_of(0);
        assert!(alone.contains(&MemberEvent::Isolated), "seed {seed}");
        assert!(others.iter().all(|other| !world.sees_up(0, *other)));
        world.cut.clear();
        let took = world.time_to_all_up(3 * SECOND);
        assert!(took.is_some(), "seed {seed}");
        world.run(10 * SECOND);
        world.assert_all_up("after the cut");
        // Nobody but the isolated node, and nobody of the isolated node twice.
        assert_eq!(world.downs(), 9 + 9, "seed {seed}");
    }
}

#[test]
fn without_the_isolation_rule_a_short_cut_spreads_stale_accusations() {
    let false_downs = |rules: RuleSet| -> usize {
        let mut false_downs = 0;
        for tenths in 20..30 {
            let mut world = World::joined(20, 11, rules);
            let others: Vec<usize> = (1..20).collect();
            world.partition(&[0], &others);
            world.run(SECOND * tenths / 10);
            world.cut.clear();
            world.run(10 * SECOND);
            world.assert_all_up("after the cut");
            false_downs += world.nodes[1..]
                .iter()
                .flat_map(|node| &node.events)
                .filter(|(_, event)| {
                    matches!(event, MemberEvent::Down { node } if node.name != name(0))
                })
                .count();
        }
        false_downs
    };
    let with = false_downs(RuleSet::default());
    // What one says alone is not believed of those who answer: the other rule that covers for this one.
    let without = false_downs(RuleSet::without(&[Rule::Isolation, Rule::TwoAccusers]));
    assert_eq!(with, 0, "{without} without the rule");
    assert!(without > 0);
}

#[test]
fn a_node_that_left_never_comes_back_whatever_is_said_of_it() {
    let mut world = World::joined(5, 12, RuleSet::default());
    let gone = world.nodes[3].id.clone();
    world.nodes[3].membership.leave(world.now);
    world.pump(3);
    world.run(10 * MILLISECOND);
    world.nodes[3].alive = false;
    for other in [0, 1, 2, 4] {
        let left = MemberEvent::Left { node: gone.clone() };
        assert_eq!(world.events_of(other), [left]);
        assert!(world.nodes[other].membership.is_left(&gone));
        assert_eq!(
            world.nodes[other].membership.highest_known(&gone.name),
            Some(gone.generation)
        );
    }
    world.run(10 * SECOND);
    assert!(
        world.nodes[0]
            .membership
            .members()
            .any(|member| { member.node == gone && member.state == MemberState::Left })
    );
    let resurrects = |world: &mut World, rejoins: u32| {
        let relayed = Member::alive(Identity::new(gone.clone(), rejoins, address(3)));
        world.nodes[1].membership.apply(world.now, relayed);
        world.pump(1);
        world.nodes[0].events.clear();
        world.run(3 * SECOND);
        let events = world.events_of(0);
        events
            .iter()
            .any(|event| matches!(event, MemberEvent::Up { node, .. } if *node == gone))
    };
    // What node 1 was tricked into believing, it spreads; the rule holds at every node for itself.
    world.nodes[1].membership.lives.forget_departed();
    assert!(!resurrects(&mut world, 9));
    for index in 0..5 {
        world.nodes[index]
            .membership
            .rules
            .turn_off(Rule::LeftIsFinal);
        world.nodes[index].membership.rules.turn_off(Rule::OwnWord);
    }
    assert!(resurrects(&mut world, 10), "the rule has no effect");
}

#[test]
fn only_a_node_itself_says_goodbye() {
    let mut world = World::joined(3, 13, RuleSet::default());
    let (liar, victim) = (world.nodes[1].id.clone(), world.nodes[2].id.clone());
    world.nodes[0]
        .membership
        .handle_goodbye(world.now, &liar, &victim);
    world.pump(0);
    assert!(!world.nodes[0].membership.is_left(&victim));
    assert!(world.sees_up(0, 2));
}

#[test]
fn a_life_that_left_may_be_followed_by_another() {
    let mut world = World::joined(3, 14, RuleSet::default());
    world.nodes[2].membership.leave(world.now);
    world.pump(2);
    world.run(SECOND);
    world.restart(2, 2);
    world.link(0, 2);
    assert!(world.time_to_all_up(SECOND).is_some());
}

fn events_of_a_restart(rules: RuleSet) -> (World, Vec<MemberEvent>) {
    let mut world = World::joined(3, 15, rules);
    world.restart(2, 2);
    world.link(0, 2);
    world.run(5 * SECOND);
    world.assert_all_up("after the restart");
    let events = world.events_of(1);
    (world, events)
}

#[test]
fn a_restart_with_a_higher_generation_is_the_death_of_the_old_life_and_the_birth_of_the_new() {
    let (world, events) = events_of_a_restart(RuleSet::default());
    assert_eq!(events, [down(&life(2, 1)), up(&life(2, 2), 2)]);
    assert_eq!(world.events_of(0), events);

    let (_, events) = events_of_a_restart(RuleSet::without(&[Rule::RenameIsDeath]));
    assert_eq!(events, []);
}

#[test]
fn a_pause_of_a_second_takes_nobody_down() {
    for seed in 0..10 {
        let mut world = World::joined(10, seed, RuleSet::default());
        world.pause(6);
        world.run(SECOND);
        world.resume(6);
        world.run(10 * SECOND);
        assert_eq!(world.downs(), 0, "seed {seed}");
    }
}

#[test]
fn after_a_long_pause_a_node_that_hears_others_is_not_isolated() {
    let mut world = World::joined(10, 16, RuleSet::default());
    world.pause(6);
    world.run(10 * SECOND);
    world.resume(6);
    assert!(world.time_to_all_up(5 * SECOND).is_some());
    assert_eq!(world.isolations(), 0);
}

#[test]
fn a_death_is_passed_on_often_enough_to_reach_everyone() {
    let spread = |rules: RuleSet| -> Duration {
        let mut world = World::joined(40, 24, rules);
        world.run(10 * SECOND);
        world.silence(4);
        let took = world.time_to_down(4, 60 * SECOND).unwrap();
        let downs = world.nodes.iter().flat_map(|node| &node.events);
        let first = downs.map(|(at, _)| *at).min().unwrap();
        assert_eq!(world.now.since(first).is_zero(), took.is_zero());
        world.now.since(first)
    };
    let with = spread(RuleSet::default());
    let without = spread(RuleSet::without(&[Rule::WideSpread]));
    assert!(with < SECOND, "{with:?}");
    assert!(
        with * 3 < without,
        "{with:?} with the rule, {without:?} without"
    );
}

#[test]
fn a_newcomer_whose_first_question_is_lost_asks_again() {
    let join = |rules: RuleSet| -> Duration {
        let mut slowest = Duration::ZERO;
        for seed in 0..2 {
            let mut world = World::joined(25, seed, rules);
            world.mesh = false;
            let newcomer = world.fresh(25, 1);
            world.nodes.push(newcomer);
            world.loss_percent = 100;
            world.link(0, 25);
            world.loss_percent = 0;
            slowest = slowest.max(world.time_to_all_up(60 * SECOND).unwrap());
        }
        slowest
    };
    let with = join(RuleSet::default());
    let without = join(RuleSet::without(&[Rule::JoinAnnounces]));
    assert!(
        with < 300 * MILLISECOND && with * 3 < without,
        "{with:?} with the rule, {without:?} without"
    );
}

#[test]
fn a_node_that_came_back_probes_although_nobody_answers() {
    let probes = |rules: RuleSet| {
        let mut world = World::joined(3, 25, rules);
        let accusation = Packet {
            header: foca::Header {
                src: world.nodes[1].membership.me.clone(),
                src_incarnation: 0,
                dst: world.nodes[0].membership.me.clone(),
                message: Message::TurnUndead,
            },
            updates: Vec::new(),
        };
        let mut bytes = Vec::new();
        foca::Codec::encode_header(&mut PostcardCodec, &accusation.header, &mut bytes).unwrap();
        world.partition(&[0], &[1, 2]);
        let sender = world.nodes[1].id.clone();
        let now = world.now;
        let membership = &mut world.nodes[0].membership;
        membership.handle_packet(now, &sender, &Bytes::from(bytes));
        assert_eq!(membership.me.rejoins, 1);
        while membership.poll_transmit().is_some() {}
        membership.handle_timeout(now + SECOND / 2);
        std::iter::from_fn(|| membership.poll_transmit()).count()
    };
    assert!(probes(RuleSet::default()) > 0);
    let without = probes(RuleSet::without(&[
        Rule::RearmAfterRejoin,
        Rule::JoinAnnounces,
    ]));
    assert_eq!(without, 0);
}

#[test]
fn a_linked_node_is_known_at_once() {
    let knows_at_once = |rules: RuleSet| {
        let mut world = World::new(2, 17, rules);
        world.link(0, 1);
        world.sees_up(0, 1)
    };
    assert!(knows_at_once(RuleSet::default()));
    assert!(!knows_at_once(RuleSet::without(&[Rule::LinkIntroduces])));
}

#[test]
fn a_node_that_was_taken_for_dead_comes_back_in_the_same_life_once_linked() {
    let mut world = World::joined(5, 18, RuleSet::default());
    let alive = world.nodes[2].id.clone();
    world.nodes[0].membership.mark_down(world.now, &alive);
    world.run(5 * SECOND);
    world.assert_all_up("after the error");
    assert_eq!(world.events_of(0), [down(&alive), up(&alive, 2)]);
}

#[test]
fn a_higher_generation_of_the_own_name_is_reported_once_and_kept_from_the_engine() {
    let conflict = MemberEvent::NameConflict {
        node: life(0, 9),
        address: address(99),
    };
    let rival = || Identity::new(life(0, 9), 0, address(99));
    let hear_of_it = |world: &mut World| {
        let sender = world.nodes[1].id.clone();
        let updates = vec![
            Member::alive(rival()),
            Member::down(Identity::new(life(0, 0), 0, address(98))),
            Member::alive(Identity::new(life(7, 1), 0, address(2))),
        ];
        let bytes = gossip(world, 1, 0, updates);
        world.nodes[0]
            .membership
            .handle_packet(world.now, &sender, &bytes);
        std::iter::from_fn(|| world.nodes[0].membership.poll_event()).collect::<Vec<_>>()
    };
    let mut world = World::joined(3, 19, RuleSet::default());
    let events = hear_of_it(&mut world);
    assert_eq!(events[0], conflict);
    assert!(matches!(&events[1..], [MemberEvent::Up { node, .. }] if node.name == name(7)));
    assert!(hear_of_it(&mut world).is_empty());
    assert!(
        world.nodes[0]
            .membership
            .engine_member(key(&name(0)))
            .is_none()
    );
    assert_eq!(
        world.nodes[0].membership.highest_known(&name(0)),
        None,
        "nobody but that life itself says that there is one"
    );
    world.now += CONFLICT_INTERVAL;
    assert!(hear_of_it(&mut world).contains(&conflict));

    let mut world = World::joined(3, 19, RuleSet::without(&[Rule::NameConflict]));
    assert!(!hear_of_it(&mut world).contains(&conflict));
    assert!(
        world.nodes[0]
            .membership
            .engine_member(key(&name(0)))
            .is_some()
    );
}

#[test]
fn a_new_generation_keeps_the_others_and_is_known_to_them() {
    let mut world = World::joined(5, 20, RuleSet::default());
    let (old, new) = (world.nodes[0].id.clone(), life(0, 5));
    world.nodes[0].id = new.clone();
    world.nodes[0]
        .membership
        .renew_generation(world.now, new.clone());
    world.pump(0);
    assert!(world.time_to_all_up(SECOND).is_some());
    assert_eq!(world.events_of(0), []);
    for other in 1..5 {
        assert_eq!(world.events_of(other), [down(&old), up(&new, 0)]);
    }
}

#[test]
fn the_dead_are_dialled_most_recent_first_and_each_in_its_turn() {
    let mut world = World::joined(10, 21, RuleSet::default());
    for index in 1..9 {
        let node = world.nodes[index].id.clone();
        world.now += MILLISECOND;
        world.nodes[0].membership.mark_down(world.now, &node);
    }
    let now = world.now;
    let mut dialled = || -> Vec<NodeName> {
        let candidates = world.nodes[0].membership.dial_candidates(now);
        candidates.into_iter().map(|(node, _)| node.name).collect()
    };
    assert_eq!(dialled()[..3], [name(8), name(7), name(6)]);
    assert_eq!(dialled().len(), 4);
    assert!(dialled().is_empty());
}

#[test]
fn what_is_dead_for_long_is_forgotten() {
    let mut world = World::joined(4, 22, RuleSet::default());
    for node in &mut world.nodes {
        node.membership.config.permdown_period = 20 * SECOND;
        let config = node.membership.config.engine(RuleSet::default());
        node.membership.engine.swim.set_config(config).unwrap();
    }
    world.silence(3);
    world.run(10 * SECOND);
    assert_eq!(world.nodes[0].membership.members().count(), 3);
    world.run(60 * SECOND);
    for index in 0..3 {
        let membership = &world.nodes[index].membership;
        assert_eq!(membership.members().count(), 2);
        assert!(membership.engine_member(key(&name(3))).is_none());
        assert_eq!(membership.highest_known(&name(3)), None);
    }
}

#[test]
fn garbled_and_forged_packets_change_nothing() {
    let mut world = World::joined(3, 23, RuleSet::default());
    let sender = world.nodes[1].id.clone();
    for bytes in [&b""[..], &b"\x00"[..], &[0xff; 300][..], &[0; 70_000][..]] {
        let packet = Bytes::copy_from_slice(bytes);
        world.nodes[0]
            .membership
            .handle_packet(world.now, &sender, &packet);
    }
    let forged = Packet {
        header: foca::Header {
            src: Identity::new(life(2, 99), 0, address(66)),
            src_incarnation: 0,
            dst: world.nodes[0].membership.me.clone(),
            message: Message::Gossip,
        },
        updates: Vec::new(),
    };
    let bytes = Bytes::from(forged.encode().unwrap());
    world.nodes[0]
        .membership
        .handle_packet(world.now, &sender, &bytes);
    world.pump(0);
    assert_eq!(world.events_of(0), []);
}

#[test]
fn whatever_happens_the_living_agree_in_the_end() {
    for seed in 0..20 {
        let mut world = World::joined(8, seed, RuleSet::default());
        let mut chance = StdRng::seed_from_u64(seed);
        let mut generation = 1;
        for _ in 0..25 {
            let index = chance.random_range(0..8);
            let other = chance.random_range(0..8);
            match chance.random_range(0..6) {
                0 if world.nodes[index].alive && world.nodes[index].paused.is_none() => {
                    world.kill(index);
                }
                1 if world.nodes[index].alive && world.nodes[index].paused.is_none() => {
                    world.silence(index);
                }
                2 if !world.nodes[index].alive => {
                    generation += 1;
                    world.restart(index, generation);
                    if let Some(seed) = world.living().into_iter().find(|seed| {
                        *seed != index
                            && world.reaches(*seed, index)
                            && world.nodes[*seed].paused.is_none()
                    }) {
                        world.link(seed, index);
                    }
                }
                3 if index != other => {
                    world.cut.insert(pair(index, other));
                }
                4 => world.cut.clear(),
                5 if world.nodes[index].alive && world.nodes[index].paused.is_none() => {
                    world.pause(index);
                }
                _ => {}
            }
            let time = chance.random_range(1..3000);
            world.run(MILLISECOND * time);
            for paused in 0..8 {
                if world.nodes[paused].paused.is_some() && chance.random_range(0..2) == 0 {
                    world.resume(paused);
                }
            }
        }
        world.cut.clear();
        for index in 0..8 {
            if world.nodes[index].paused.is_some() {
                world.resume(index);
            }
            if !world.nodes[index].alive {
                generation += 1;
                world.restart(index, generation);
            }
        }
        for index in 1..8 {
            world.link(0, index);
        }
        let took = world.time_to_all_up(20 * SECOND);
        assert!(took.is_some(), "seed {seed}");
        world.run(20 * SECOND);
        world.assert_all_up(&format!("seed {seed}"));
        for node in &world.nodes {
            let mut up = BTreeMap::new();
            for (at, event) in &node.events {
                match event {
                    MemberEvent::Up { node, .. } => {
                        let before = up.insert(&node.name, node);
                        assert_eq!(before, None, "seed {seed}: up twice at {at}");
                    }
                    MemberEvent::Down { node } if node.generation.number > 1 => {
                        assert_eq!(up.remove(&node.name), Some(node), "seed {seed} at {at}");
                    }
                    MemberEvent::Down { node } => {
                        up.remove(&node.name);
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn a_node_whose_name_had_a_higher_generation_does_not_renew_without_end() {
    let mut world = World::joined(3, 26, RuleSet::default());
    for other in [1, 2] {
        let ghost = Member::down(Identity::new(life(0, 9), 0, address(0)));
        world.nodes[other].membership.apply(world.now, ghost);
    }
    let sent = world.sent;
    world.run(SECOND);
    let bumps = world.nodes[0].membership.me.rejoins;
    assert!(bumps <= 20, "{bumps} renewals in a second");
    assert!(world.sent - sent < 1000, "{} messages", world.sent - sent);

    world.nodes[0].id = life(0, 10);
    world.nodes[0]
        .membership
        .renew_generation(world.now, life(0, 10));
    world.pump(0);
    assert!(world.time_to_all_up(2 * SECOND).is_some());
}

#[test]
fn the_names_of_the_dead_are_capped() {
    let mut world = World::joined(2, 27, RuleSet::default());
    let dead: Vec<Member<Identity>> = (0..MAX_KNOWN_NODES + 50)
        .map(|number| {
            let name = NodeName::try_new(format!("pod-{number}")).unwrap();
            let generation = Generation::default();
            Member::down(Identity::new(NodeId { name, generation }, 0, address(9)))
        })
        .collect();
    let now = world.now;
    let membership = &mut world.nodes[0].membership;
    membership.drive(now, |engine, runtime| {
        engine.apply_many(dead.into_iter(), false, runtime)
    });
    assert_eq!(membership.engine.members().len(), MAX_KNOWN_NODES);
    assert!(world.sees_up(0, 1));
}
