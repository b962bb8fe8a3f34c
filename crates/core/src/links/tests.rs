use std::collections::BTreeSet;

use super::*;
use crate::id::ClusterName;
use crate::message::{LaneKind, MAGIC, Offers, PROTOCOL_MAJOR, PROTOCOL_MINOR, Refusal};

mod refusals;

const DOWN: Duration = Duration::from_millis(1500);

/// What a node knows of names, by hand.
#[derive(Default)]
struct Known {
    up: BTreeMap<NodeName, NodeId>,
    highest: BTreeMap<NodeName, Generation>,
    left: BTreeSet<NodeId>,
}

impl KnownNames for Known {
    fn up(&self, name: &NodeName) -> Option<NodeId> {
        self.up.get(name).cloned()
    }

    fn highest(&self, name: &NodeName) -> Option<Generation> {
        self.highest.get(name).copied()
    }

    fn is_left(&self, node: &NodeId) -> bool {
        self.left.contains(node)
    }
}

struct Host {
    links: Links,
    known: Known,
    events: Vec<LinkEvent>,
}

/// Some hosts on a network without delay: what one sends arrives at once, dials succeed where somebody listens.
struct Net {
    now: Instant,
    hosts: Vec<Host>,
    /// Connection n joins the two hosts; `None` once it is closed.
    wires: Vec<Option<(usize, usize)>>,
    /// Dials wait here until they are let through.
    dials: Vec<(usize, Address)>,
    /// Processes that do nothing any more, although their connections stay.
    hung: BTreeSet<usize>,
}

fn node(name: &str, number: u64) -> NodeId {
    NodeId {
        name: NodeName::try_new(name).unwrap(),
        generation: Generation { number, random: 7 },
    }
}

fn address(host: usize) -> Address {
    Address::try_new(format!("host:{host}")).unwrap()
}

fn hello(node: NodeId, nonce: u64, at: usize) -> Hello {
    Hello {
        magic: MAGIC,
        major: PROTOCOL_MAJOR,
        minor: PROTOCOL_MINOR,
        lane: LaneKind::Control,
        cluster: ClusterName::try_new("test").unwrap(),
        node,
        nonce,
        address: address(at),
        placement: 1,
        periods_ms: (250, 1500),
        joined: false,
        highest_of_yours: None,
        offers: Offers::default(),
    }
}

impl Net {
    fn new(hellos: Vec<Hello>) -> Self {
        let hosts = hellos
            .into_iter()
            .enumerate()
            .map(|(seed, hello)| Host {
                links: Links::new(hello, DOWN, Vec::new(), Instant::ZERO, seed as u64),
                known: Known::default(),
                events: Vec::new(),
            })
            .collect();
        Net {
            now: Instant::ZERO,
            hosts,
            wires: Vec::new(),
            dials: Vec::new(),
            hung: BTreeSet::new(),
        }
    }

    fn of(names: &[(&str, u64)]) -> Self {
        Net::new(
            names
                .iter()
                .enumerate()
                .map(|(at, (name, number))| hello(node(name, *number), at as u64 + 100, at))
                .collect(),
        )
    }

    fn seed(&mut self, host: usize, at: usize) {
        self.hosts[host]
            .links
            .set_seeds(self.now, vec![address(at)]);
    }

    /// Runs timers that are due and collects dials and frames, without letting a dial through.
    fn pump(&mut self) {
        loop {
            let mut busy = false;
            for host in 0..self.hosts.len() {
                while let Some(event) = self.hosts[host].links.poll_event() {
                    if let LinkEvent::Ready { peer, .. } = &event {
                        let known = &mut self.hosts[host].known;
                        known.up.insert(peer.name.clone(), peer.clone());
                        known.highest.insert(peer.name.clone(), peer.generation);
                    }
                    self.hosts[host].events.push(event);
                }
                while let Some(output) = self.hosts[host].links.poll_output() {
                    busy = true;
                    self.output(host, output);
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn output(&mut self, from: usize, output: Output) {
        match output {
            Output::Dial { address } => self.dials.push((from, address)),
            Output::Transmit { link, frame } => {
                if let Some((a, b)) = self.wires[link.0 as usize] {
                    let to = if a == from { b } else { a };
                    if self.hung.contains(&to) {
                        return;
                    }
                    let host = &mut self.hosts[to];
                    host.links.handle_frame(self.now, link, &frame, &host.known);
                }
            }
            Output::Close { link } => {
                if let Some((a, b)) = self.wires[link.0 as usize].take() {
                    let to = if a == from { b } else { a };
                    if self.hung.contains(&to) {
                        return;
                    }
                    let host = &mut self.hosts[to];
                    host.links.handle_disconnected(self.now, link, &host.known);
                }
            }
        }
    }

    /// Opens a connection for the oldest dial that waits; the frames of both sides still wait for `pump`.
    fn connect(&mut self) {
        let (from, address) = self.dials.remove(0);
        let to: usize = address.as_str()[5..].parse().unwrap();
        if self.hung.contains(&to) {
            return;
        }
        let link = LinkId(self.wires.len() as u64);
        self.wires.push(Some((from, to)));
        self.hosts[to].links.handle_connected(
            self.now,
            link,
            Origin::Accepted,
            Credentials::Unchecked,
        );
        self.hosts[from].links.handle_connected(
            self.now,
            link,
            Origin::Dialled(address),
            Credentials::Unchecked,
        );
    }

    fn tick(&mut self, after: Duration) {
        self.now += after;
        for (at, host) in self.hosts.iter_mut().enumerate() {
            if !self.hung.contains(&at) {
                host.links.handle_timeout(self.now, &host.known);
            }
        }
        self.pump();
    }

    /// Lets every dial through for a while.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.tick(Duration::from_millis(10));
            while !self.dials.is_empty() {
                self.connect();
            }
            self.pump();
        }
    }

    fn open_wires(&self) -> usize {
        self.wires.iter().flatten().count()
    }

    fn has(&self, host: usize, wanted: impl Fn(&LinkEvent) -> bool) -> bool {
        self.hosts[host].events.iter().any(wanted)
    }
}

#[test]
fn a_seed_is_dialled_until_the_two_are_linked() {
    let mut net = Net::of(&[("a", 1), ("b", 1)]);
    net.seed(0, 1);
    net.run(Duration::from_millis(100));
    assert!(net.hosts[0].links.is_ready(&node("b", 1)));
    assert!(net.hosts[1].links.is_ready(&node("a", 1)));
    assert_eq!(net.open_wires(), 1);
}

#[test]
fn crossed_dials_leave_the_connection_that_the_smaller_name_dialled() {
    for order in [[0, 1], [1, 0]] {
        let mut net = Net::of(&[("a", 1), ("b", 1)]);
        net.seed(order[0], order[1]);
        net.seed(order[1], order[0]);
        net.tick(Duration::from_millis(1));
        assert_eq!(net.dials.len(), 2);
        net.dials.sort_by_key(|(from, _)| order[*from]);
        net.connect();
        net.connect();
        net.pump();
        assert_eq!(net.open_wires(), 1, "order {order:?}");
        let (dialler, _) = net.wires.iter().flatten().next().unwrap();
        assert_eq!(*dialler, 0);
        net.run(Duration::from_secs(10));
        assert_eq!(net.open_wires(), 1);
        assert!(net.hosts[0].links.is_ready(&node("b", 1)));
        assert!(net.hosts[1].links.is_ready(&node("a", 1)));
    }
}

#[test]
fn a_later_connection_of_a_pair_replaces_one_that_the_other_side_has_lost() {
    let mut net = Net::of(&[("a", 1), ("b", 1)]);
    net.seed(0, 1);
    net.run(Duration::from_secs(5));
    // b alone loses the connection; a believes in it.
    let link = LinkId(0);
    net.wires[0] = None;
    let host = &mut net.hosts[1];
    host.links.handle_disconnected(net.now, link, &host.known);
    net.run(Duration::from_secs(1));
    assert_eq!(net.open_wires(), 1);
    assert!(net.hosts[0].links.is_ready(&node("b", 1)));
    assert!(net.hosts[1].links.is_ready(&node("a", 1)));
}

#[test]
fn a_newcomer_is_refused_when_the_old_node_of_its_name_answers_the_challenge() {
    let mut net = Net::of(&[("a", 1), ("x", 1), ("x", 2)]);
    net.seed(1, 0);
    net.run(Duration::from_millis(100));
    net.hosts[1].links.set_joined();
    net.seed(2, 0);
    net.run(Duration::from_secs(3));
    assert!(net.has(2, |event| matches!(event, LinkEvent::NameTaken { .. })));
    assert!(!net.has(1, |event| matches!(event, LinkEvent::NameTaken { .. })));
    assert!(net.hosts[0].links.is_ready(&node("x", 1)));
}

#[test]
fn a_restarted_node_is_let_in_although_its_ghost_looks_alive() {
    let mut net = Net::of(&[("a", 1), ("x", 1), ("x", 2)]);
    net.seed(1, 0);
    net.run(Duration::from_millis(100));
    // The old process hangs: its connection stays, and it says nothing any more.
    net.hung.insert(1);
    net.seed(2, 0);
    net.run(Duration::from_secs(5));
    assert!(!net.has(2, |event| matches!(event, LinkEvent::NameTaken { .. })));
    assert!(net.hosts[0].links.is_ready(&node("x", 2)));
}

#[test]
fn whoever_answers_in_the_place_of_a_lost_node_is_not_dialled_without_a_pause() {
    let mut net = Net::of(&[("a", 1), ("x", 5)]);
    net.seed(0, 1);
    net.run(Duration::from_millis(100));
    assert!(net.hosts[0].links.is_ready(&node("x", 5)));
    // It starts again with a clock that went back, while it still looks alive.
    let link = LinkId(net.wires.len() as u64 - 1);
    net.wires[link.0 as usize] = None;
    let fresh = Net::of(&[("a", 1), ("x", 2)]).hosts.remove(1).links;
    net.hosts[1].links = fresh;
    let (now, host) = (net.now, &mut net.hosts[0]);
    host.links.handle_disconnected(now, link, &host.known);
    let before = net.wires.len();
    net.run(Duration::from_secs(1));
    let dials = net.wires.len() - before;
    assert!((1..=20).contains(&dials), "{dials} dials in a second");
}

#[test]
fn a_node_whose_clock_went_back_is_told_the_generation_to_exceed() {
    let mut net = Net::of(&[("a", 1), ("x", 5)]);
    let known = &mut net.hosts[0].known;
    known.highest.insert(
        NodeName::try_new("x").unwrap(),
        Generation {
            number: 9,
            random: 3,
        },
    );
    net.seed(1, 0);
    net.run(Duration::from_millis(100));
    assert!(net.has(1, |event| matches!(
        event,
        LinkEvent::HigherGeneration { number: 9, .. }
    )));
    let renewed = node("x", 10);
    let now = net.now;
    net.hosts[1].links.renew(now, renewed.clone());
    net.run(Duration::from_millis(200));
    assert!(net.hosts[0].links.is_ready(&renewed));
}

#[test]
fn of_two_members_of_one_name_the_lower_generation_stops() {
    for (dialler, other) in [(0, 1), (1, 0)] {
        let mut net = Net::of(&[("x", 1), ("x", 2)]);
        net.hosts[0].links.set_joined();
        net.hosts[1].links.set_joined();
        net.seed(dialler, other);
        net.run(Duration::from_millis(100));
        assert!(net.has(0, |event| matches!(event, LinkEvent::NameTaken { .. })));
        assert!(!net.has(1, |event| matches!(event, LinkEvent::NameTaken { .. })));
    }
}

#[test]
fn a_rival_that_nobody_answers_for_was_a_ghost() {
    let mut net = Net::of(&[("x", 1)]);
    let rival = Generation {
        number: 8,
        random: 0,
    };
    let now = net.now;
    net.hosts[0].links.question_rival(now, rival, &address(9));
    net.tick(Duration::from_millis(1));
    let (_, dialled) = net.dials.remove(0);
    net.hosts[0]
        .links
        .handle_dial_failed(net.now, &dialled, &DialFailure::Refused);
    net.pump();
    assert!(net.has(
        0,
        |event| matches!(event, LinkEvent::Ghost { generation } if *generation == rival)
    ));
}

#[test]
fn a_node_of_another_cluster_placement_or_major_version_is_refused() {
    let mut other_cluster = hello(node("b", 1), 2, 1);
    other_cluster.cluster = ClusterName::try_new("other").unwrap();
    let mut other_placement = hello(node("b", 1), 2, 1);
    other_placement.placement = 2;
    let mut other_version = hello(node("b", 1), 2, 1);
    other_version.major = PROTOCOL_MAJOR + 1;
    for theirs in [other_cluster, other_placement, other_version] {
        let mut net = Net::new(vec![hello(node("a", 1), 1, 0), theirs]);
        net.seed(1, 0);
        net.run(Duration::from_millis(50));
        assert!(net.hosts[0].links.ready.is_empty());
        assert!(net.has(0, |event| matches!(event, LinkEvent::Warning { .. })));
        assert!(net.has(1, |event| matches!(event, LinkEvent::Warning { .. })));
    }
}

#[test]
fn a_certificate_of_another_node_is_refused() {
    let mut links = Links::new(
        hello(node("a", 1), 1, 0),
        DOWN,
        Vec::new(),
        Instant::ZERO,
        1,
    );
    let credentials = Credentials::Certificate {
        cluster: ClusterName::try_new("test").unwrap(),
        nodes: crate::admission::NodeNames::Exact(vec![NodeName::try_new("c").unwrap()]),
    };
    links.handle_connected(Instant::ZERO, LinkId(1), Origin::Accepted, credentials);
    let frame = ControlMessage::Hello(hello(node("b", 1), 2, 1)).encode();
    links.handle_frame(Instant::ZERO, LinkId(1), &frame, &Known::default());
    let Some(Output::Transmit { frame, .. }) = links.poll_output() else {
        panic!("a refusal is sent");
    };
    assert!(matches!(
        ControlMessage::decode(&frame),
        Ok(Some(ControlMessage::Refuse(Refusal::Certificate { .. })))
    ));
    assert!(matches!(links.poll_output(), Some(Output::Close { .. })));
}

#[test]
fn a_refused_redial_of_a_lost_link_is_reported_as_evidence() {
    let mut net = Net::of(&[("a", 1), ("b", 1)]);
    net.seed(0, 1);
    net.run(Duration::from_millis(100));
    net.wires[0] = None;
    let host = &mut net.hosts[0];
    host.links
        .handle_disconnected(net.now, LinkId(0), &host.known);
    net.tick(Duration::from_millis(20));
    let (from, dialled) = net.dials.remove(0);
    assert_eq!(from, 0);
    net.hosts[0]
        .links
        .handle_dial_failed(net.now, &dialled, &DialFailure::Refused);
    net.pump();
    assert!(net.has(
        0,
        |event| matches!(event, LinkEvent::DialRefused { peer, refusal } if *peer == node("b", 1) && refusal.lost)
    ));
}

#[test]
fn a_silent_seed_is_complained_of_once_and_then_at_growing_intervals() {
    let mut net = Net::of(&[("a", 1)]);
    net.seed(0, 5);
    for _ in 0..6_000 {
        net.tick(Duration::from_millis(10));
        for (host, dialled) in std::mem::take(&mut net.dials) {
            let failure = DialFailure::Unreachable("no route".to_owned());
            net.hosts[host]
                .links
                .handle_dial_failed(net.now, &dialled, &failure);
        }
        net.pump();
    }
    let complaints = net.hosts[0].events.len();
    assert!((2..=4).contains(&complaints), "{complaints} in a minute");
}

#[test]
fn a_connection_that_speaks_before_its_hello_is_closed() {
    let mut links = Links::new(
        hello(node("a", 1), 1, 0),
        DOWN,
        Vec::new(),
        Instant::ZERO,
        1,
    );
    links.handle_connected(
        Instant::ZERO,
        LinkId(1),
        Origin::Accepted,
        Credentials::Unchecked,
    );
    let frame = ControlMessage::Membership(bytes::Bytes::from_static(b"early")).encode();
    links.handle_frame(Instant::ZERO, LinkId(1), &frame, &Known::default());
    assert!(matches!(links.poll_output(), Some(Output::Close { .. })));
}

#[test]
fn a_handshake_that_never_ends_is_closed() {
    let mut links = Links::new(
        hello(node("a", 1), 1, 0),
        DOWN,
        Vec::new(),
        Instant::ZERO,
        1,
    );
    links.handle_connected(
        Instant::ZERO,
        LinkId(1),
        Origin::Accepted,
        Credentials::Unchecked,
    );
    let due = links.poll_timeout().unwrap();
    assert_eq!(due, Instant::ZERO + hello_timeout(DOWN));
    links.handle_timeout(due, &Known::default());
    assert!(matches!(links.poll_output(), Some(Output::Close { .. })));
}

/// Its sender may have died since: a stalled connection delivers what was sent before.
#[test]
fn a_hello_that_was_held_up_is_not_believed() {
    for origin in [Origin::Accepted, Origin::Dialled(address(1))] {
        let mut links = Links::new(
            hello(node("a", 1), 1, 0),
            DOWN,
            Vec::new(),
            Instant::ZERO,
            1,
        );
        let link = LinkId(1);
        links.handle_connected(Instant::ZERO, link, origin, Credentials::Unchecked);
        let late = Instant::ZERO + hello_timeout(DOWN);
        let frame = ControlMessage::Hello(hello(node("b", 1), 2, 1)).encode();
        // Before the timers, as after a pause.
        links.handle_frame(late, link, &frame, &Known::default());
        let outputs = std::iter::from_fn(|| links.poll_output());
        assert!(outputs.last().is_some_and(
            |output| matches!(output, Output::Close { link: closed } if closed == link)
        ));
        let events = std::iter::from_fn(|| links.poll_event());
        assert!(
            events
                .filter(|event| matches!(event, LinkEvent::Ready { .. }))
                .count()
                == 0
        );
    }
}

#[test]
fn a_goodbye_that_comes_after_the_others_word_is_heard_once_and_from_its_own_link_alone() {
    let mut net = Net::of(&[("a", 1), ("b", 1)]);
    net.seed(0, 1);
    net.run(Duration::from_millis(100));
    let (link, b) = (LinkId(0), node("b", 1));
    let host = &mut net.hosts[0];
    host.links.forget(net.now, &b, &host.known);
    let goodbye = ControlMessage::Goodbye { node: b.clone() }.encode();
    for stranger in [LinkId(7), link, link] {
        host.links
            .handle_frame(net.now, stranger, &goodbye, &host.known);
    }
    let mut goodbyes = 0;
    while let Some(event) = host.links.poll_event() {
        if let LinkEvent::Message { from, message } = event {
            assert_eq!((from, message.encode()), (b.clone(), goodbye.clone()));
            goodbyes += 1;
        }
    }
    assert_eq!(goodbyes, 1);
}
