use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::log::content_hash;
use super::own::COALESCE;
use super::*;
use crate::RawSettings;
use crate::entry::{Metadata, ServiceState, Weight};
use crate::frame::Frame;
use crate::id::{Generation, InstanceName, ServiceId, ServiceType};
use crate::message::{Operation, OwnerVersion, Request, VersionVector};

mod liars;
mod turns;

fn node(name: &str, number: u64) -> NodeId {
    NodeId {
        name: NodeName::try_new(name).unwrap(),
        generation: Generation { number, random: 0 },
    }
}

fn entry(sequence: u64) -> NewEntry {
    NewEntry {
        sequence,
        service_type: ServiceType::try_new(format!("type{}", sequence % 3)).unwrap(),
        name: Some(InstanceName::try_new(format!("i{sequence}")).unwrap()),
        state: ServiceState::Online,
        weight: Weight::default(),
        protocol_version: None,
        metadata: Metadata::default(),
    }
}

fn tracker(me: &NodeId, kept: usize, now: Instant) -> Tracker {
    let settings = crate::Settings::try_new(RawSettings {
        max_delta_sizes: Some(kept),
        ..RawSettings::default()
    })
    .unwrap();
    let nonce = me.generation.number;
    Tracker::new(TrackerConfig::new(&settings), me.clone(), nonce, now, nonce)
}

/// Trackers that hear each other over links in order; what readers see is kept, and checked at every step.
struct Net {
    now: Instant,
    trackers: BTreeMap<NodeId, Tracker>,
    seen: BTreeMap<NodeId, BTreeMap<ServiceId, Arc<ServiceInfo>>>,
    wires: BTreeMap<(NodeId, NodeId), VecDeque<Frame>>,
    kept: usize,
}

impl Net {
    fn new(nodes: &[NodeId], kept: usize) -> Self {
        let now = Instant::from_micros(1_000_000);
        let mut net = Net {
            now,
            trackers: BTreeMap::new(),
            seen: BTreeMap::new(),
            wires: BTreeMap::new(),
            kept,
        };
        for me in nodes {
            net.start(me);
        }
        net
    }

    fn start(&mut self, me: &NodeId) {
        self.trackers
            .insert(me.clone(), tracker(me, self.kept, self.now));
        self.seen.insert(me.clone(), BTreeMap::new());
    }

    fn at(&mut self, me: &NodeId) -> &mut Tracker {
        self.trackers.get_mut(me).unwrap()
    }

    fn connect(&mut self, a: &NodeId, b: &NodeId) {
        let now = self.now;
        for (me, peer) in [(a, b), (b, a)] {
            self.wires
                .insert((me.clone(), peer.clone()), VecDeque::new());
            self.at(me).link_up(now, peer);
        }
        self.collect();
    }

    fn disconnect(&mut self, a: &NodeId, b: &NodeId) {
        let now = self.now;
        for (me, peer) in [(a, b), (b, a)] {
            self.wires.remove(&(me.clone(), peer.clone()));
            self.at(me).link_down(now, peer);
        }
        self.collect();
    }

    fn meet(&mut self, a: &NodeId, b: &NodeId) {
        let now = self.now;
        self.connect(a, b);
        self.at(a).member_up(now, b);
        self.at(b).member_up(now, a);
        self.collect();
    }

    fn meet_all(&mut self) {
        let nodes: Vec<NodeId> = self.trackers.keys().cloned().collect();
        for (at, a) in nodes.iter().enumerate() {
            for b in &nodes[at + 1..] {
                self.meet(a, b);
            }
        }
    }

    fn collect(&mut self) {
        for (me, tracker) in &mut self.trackers {
            while let Some((recipients, message)) = tracker.poll_transmit() {
                let frame = message.encode();
                for peer in recipients.iter() {
                    assert_ne!(peer, me, "no message to self");
                    if let Some(wire) = self.wires.get_mut(&(me.clone(), peer.clone())) {
                        wire.push_back(frame.clone());
                    }
                }
            }
            let seen = self.seen.get_mut(me).unwrap();
            for change in tracker.poll_changes() {
                let id = change
                    .before
                    .as_ref()
                    .or(change.after.as_ref())
                    .unwrap()
                    .id()
                    .clone();
                let was = match &change.after {
                    Some(after) => seen.insert(id, Arc::clone(after)),
                    None => seen.remove(&id),
                };
                assert_eq!(was, change.before, "readers are told what they saw");
                if let (Some(before), Some(after)) = (&was, &change.after) {
                    assert!(
                        after.reference() > before.reference(),
                        "references never go back"
                    );
                }
            }
        }
    }

    /// Delivers one frame of that wire.
    fn deliver(&mut self, from: &NodeId, to: &NodeId) -> bool {
        let wire = self.wires.get_mut(&(from.clone(), to.clone()));
        let Some(frame) = wire.and_then(VecDeque::pop_front) else {
            return false;
        };
        let now = self.now;
        let message = ControlMessage::decode(&frame).unwrap().unwrap();
        self.at(to).handle_message(now, from, message);
        self.collect();
        true
    }

    fn deliver_all(&mut self) {
        loop {
            let wires: Vec<_> = self.wires.keys().cloned().collect();
            if !wires.iter().any(|(from, to)| self.deliver(from, to)) {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.deliver_all();
            let next = self
                .trackers
                .values()
                .filter_map(Tracker::poll_timeout)
                .min()
                .filter(|next| *next <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            let now = self.now;
            for tracker in self.trackers.values_mut() {
                tracker.handle_timeout(now);
            }
            self.collect();
        }
        self.now = until;
    }

    fn add(&mut self, me: &NodeId, sequences: impl IntoIterator<Item = u64>) {
        let now = self.now;
        let entries = sequences.into_iter().map(entry).collect();
        self.at(me).add(now, entries).unwrap();
        self.collect();
    }

    fn ids(&self, me: &NodeId) -> Vec<(String, u64)> {
        self.seen[me]
            .keys()
            .map(|id| (id.node.to_string(), id.sequence))
            .collect()
    }

    fn assert_equal(&self) {
        let mut views = self.seen.iter();
        let (first, expected) = views.next().unwrap();
        for (me, seen) in views {
            assert_eq!(seen, expected, "{me} sees what {first} sees");
        }
        let own: usize = self
            .trackers
            .values()
            .map(|tracker| tracker.own().len())
            .sum();
        assert_eq!(expected.len(), own, "exactly what the owners hold");
        for (me, tracker) in &self.trackers {
            assert!(tracker.missing().is_empty(), "{me}");
        }
    }
}

fn three() -> [NodeId; 3] {
    [node("a", 1), node("b", 2), node("c", 3)]
}

#[test]
fn a_change_goes_out_after_a_millisecond_as_one_delta() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet_all();
    net.deliver_all();
    net.add(&a, 1..=5);
    net.add(&a, 6..=7);
    assert!(net.wires[&(a.clone(), b.clone())].is_empty());
    net.pass(COALESCE);
    assert_eq!(net.ids(&b).len(), 7);
    net.assert_equal();
}

#[test]
fn a_newcomer_gets_what_was_there_before_it_shows_anything() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=500);
    net.pass(Duration::from_millis(10));
    net.start(&c);
    net.meet(&a, &c);
    net.meet(&b, &c);
    assert_eq!(net.at(&c).missing().len(), 2);
    net.deliver_all();
    assert!(net.at(&c).has_heard_of_owners());
    net.assert_equal();
}

#[test]
fn a_gap_within_the_log_costs_its_suffix_and_beyond_it_a_snapshot() {
    let [a, b, _] = three();
    for (kept, suffixes, snapshots) in [(100, 1, 0), (5, 0, 2)] {
        let mut net = Net::new(&[a.clone(), b.clone()], kept);
        net.add(&a, 1..=30);
        net.meet_all();
        net.deliver_all();
        net.disconnect(&a, &b);
        net.add(&a, 31..=40);
        net.pass(COALESCE);
        net.connect(&a, &b);
        net.deliver_all();
        let counts = net.at(&a).counts();
        assert_eq!((counts.suffixes, counts.snapshots), (suffixes, snapshots));
        net.assert_equal();
    }
}

/// Without this, what is sent at once may be more than the queue to a peer takes: the link breaks, and so does the next.
#[test]
fn a_long_suffix_is_sent_at_the_readers_pace() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100_000);
    net.add(&a, 1..=10);
    net.meet_all();
    net.deliver_all();
    net.disconnect(&a, &b);
    for batch in 1..=16 {
        net.add(&a, batch * 1000 + 1..=batch * 1000 + 1000);
        net.pass(COALESCE);
    }
    net.connect(&a, &b);
    let mut most = 0;
    while net.ids(&b).len() < 16_010 {
        let wires: Vec<_> = net.wires.keys().cloned().collect();
        assert!(wires.iter().any(|(from, to)| net.deliver(from, to)));
        let queued = &net.wires[&(a.clone(), b.clone())];
        most = most.max(queued.iter().map(|frame| frame.body.len()).sum());
    }
    assert!(most <= 160 * 1024, "{most} bytes at once");
    let counts = net.at(&a).counts();
    assert!(counts.suffixes > 4, "{counts:?}");
    net.assert_equal();
}

#[test]
fn a_snapshot_of_many_chunks_is_installed_whole_at_the_readers_pace() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    for batch in 0..20 {
        net.add(&a, batch * 1000 + 1..=batch * 1000 + 1000);
    }
    net.meet_all();
    let mut most = 0;
    while net.ids(&b).is_empty() {
        let wires: Vec<_> = net.wires.keys().cloned().collect();
        assert!(wires.iter().any(|(from, to)| net.deliver(from, to)));
        most = most.max(net.wires[&(a.clone(), b.clone())].len());
    }
    assert!(most <= 8, "{most} frames at once");
    net.assert_equal();
}

#[test]
fn down_hides_and_up_again_shows_only_what_is_still_there() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=2);
    net.pass(COALESCE);
    net.disconnect(&a, &b);
    let now = net.now;
    net.at(&b).member_down(now, &a);
    net.collect();
    assert!(net.ids(&b).is_empty());
    net.at(&a).remove(now, 1).unwrap();
    net.pass(COALESCE);
    net.at(&b).member_up(now, &a);
    net.collect();
    assert!(
        net.ids(&b).is_empty(),
        "nothing is shown before the current version is known"
    );
    net.connect(&a, &b);
    net.deliver_all();
    assert_eq!(net.ids(&b), [("a".to_owned(), 2)]);
}

#[test]
fn entries_show_only_while_that_generation_is_up() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.add(&a, 1..=2);
    net.connect(&a, &b);
    net.pass(Duration::from_secs(1));
    assert!(net.ids(&b).is_empty(), "not a word of membership yet");
    let now = net.now;
    net.at(&b).member_up(now, &a);
    net.pass(Duration::from_secs(1));
    assert_eq!(net.ids(&b).len(), 2);
}

#[test]
fn a_new_generation_replaces_the_old_entries() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=2);
    net.pass(COALESCE);
    net.disconnect(&a, &b);
    net.trackers.remove(&a);
    net.seen.remove(&a);
    let again = node("a", 9);
    net.start(&again);
    net.add(&again, [7]);
    net.meet(&again, &b);
    net.deliver_all();
    assert_eq!(net.ids(&b), [("a".to_owned(), 7)]);
}

#[test]
fn a_renewed_node_publishes_its_entries_anew_under_the_same_ids() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=3);
    net.pass(COALESCE);
    let before = net.ids(&b);
    let (now, renewed) = (net.now, node("a", 50));
    net.disconnect(&a, &b);
    let mut tracker = net.trackers.remove(&a).unwrap();
    tracker.renew(now, renewed.clone());
    net.trackers.insert(renewed.clone(), tracker);
    let seen = net.seen.remove(&a).unwrap();
    net.seen.insert(renewed.clone(), seen);
    net.meet(&renewed, &b);
    net.pass(Duration::from_millis(5));
    assert_eq!(net.ids(&b), before);
    net.assert_equal();
}

#[test]
fn without_a_direct_link_entries_come_by_way_of_a_third_node() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet(&a, &b);
    net.meet(&b, &c);
    let now = net.now;
    net.at(&a).member_up(now, &c);
    net.at(&c).member_up(now, &a);
    net.add(&a, 1..=3);
    net.pass(Duration::from_secs(4));
    assert_eq!(net.ids(&c).len(), 3);
    let now = net.now;
    net.at(&a).remove(now, 2).unwrap();
    net.pass(Duration::from_secs(4));
    net.assert_equal();
    assert!(net.at(&b).counts().relayed >= 2);
}

#[test]
fn a_relayed_snapshot_shows_at_once_where_the_owner_has_said_how_far_it_is() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet(&a, &b);
    net.add(&a, 1..=3);
    net.pass(Duration::from_millis(10));
    let now = net.now;
    net.at(&c).member_up(now, &a);
    net.meet(&b, &c);
    // Asked for at the relay, before there is a link to the owner.
    while net.deliver(&b, &c) {}
    net.now += Duration::from_millis(600);
    let now = net.now;
    net.at(&c).handle_timeout(now);
    net.collect();
    while net.deliver(&c, &b) {}
    net.connect(&a, &c);
    while net.deliver(&a, &c) {}
    assert!(net.ids(&c).is_empty());
    while net.deliver(&b, &c) {}
    assert_eq!(net.ids(&c).len(), 3);
}

#[test]
fn a_snapshot_comes_through_where_each_part_takes_longer_than_is_waited_for_at_first() {
    let (a, c) = (node("a", 1), node("c", 3));
    let mut net = Net::new(&[a.clone(), c.clone()], 100);
    net.add(&a, 1..=2_000);
    net.meet(&a, &c);
    let mut rounds = 0;
    while net.ids(&c).len() < 2_000 {
        while net.deliver(&c, &a) {}
        net.now += Duration::from_millis(1_500);
        let now = net.now;
        for tracker in net.trackers.values_mut() {
            tracker.handle_timeout(now);
        }
        net.collect();
        // A digest, and a part of the snapshot.
        net.deliver(&a, &c);
        net.deliver(&a, &c);
        rounds += 1;
        assert!(rounds < 100, "{:?}", net.trackers[&a].counts());
    }
}

#[test]
fn old_words_of_an_earlier_life_let_nobody_be_missed() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet_all();
    net.deliver_all();
    let earlier = NodeId {
        generation: Generation {
            number: a.generation.number - 1,
            ..a.generation
        },
        ..a.clone()
    };
    let row = OwnerVersion {
        owner: earlier,
        version: 3,
        content: 7,
    };
    let now = net.now;
    let vector = ControlMessage::Vector(VersionVector { owners: vec![row] });
    net.at(&c).handle_message(now, &b, vector);
    assert_eq!(net.at(&c).missing(), []);
    // Nor do the words of somebody who has not heard yet that it is down.
    net.at(&c).member_down(now, &a);
    let row = OwnerVersion {
        owner: a.clone(),
        version: 3,
        content: 7,
    };
    let vector = ControlMessage::Vector(VersionVector { owners: vec![row] });
    net.at(&c).handle_message(now, &b, vector);
    assert_eq!(net.at(&c).missing(), []);
}

/// A peer says how far an owner is.
fn hearsay(net: &mut Net, to: &NodeId, from: &NodeId, of: &NodeId, version: u64) {
    let now = net.now;
    let row = OwnerVersion {
        owner: of.clone(),
        version,
        content: 0,
    };
    let vector = VersionVector { owners: vec![row] };
    net.at(to)
        .handle_message(now, from, ControlMessage::Vector(vector));
    net.collect();
}

#[test]
fn deltas_that_overtake_the_parts_of_a_snapshot_are_not_taken_back() {
    const MANY: u64 = 2_000;
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 1);
    net.add(&a, 1..=MANY);
    net.meet_all();
    net.pass(Duration::from_secs(1));
    assert_eq!(net.ids(&b).len(), MANY as usize);
    let disable = |net: &mut Net, sequence: u64| {
        let now = net.now;
        let update = EntryUpdate {
            state: Some(ServiceState::Offline),
            ..EntryUpdate::default()
        };
        net.at(&a).update(now, sequence, update).unwrap();
        net.now += COALESCE;
        let now = net.now;
        net.at(&a).handle_timeout(now);
        net.collect();
    };
    // What the owner sends is stalled, and by way of another node it is known to be further.
    (1..=3).for_each(|sequence| disable(&mut net, sequence));
    hearsay(&mut net, &b, &c, &a, MANY + 3);
    net.now += Duration::from_millis(600);
    let now = net.now;
    net.at(&b).handle_timeout(now);
    net.collect();
    while net.deliver(&b, &a) {}
    // Behind the first part of the answer there is one more change, and one that was skipped.
    disable(&mut net, 4);
    net.at(&a).set_congested(now, &b, true);
    disable(&mut net, 5);
    let now = net.now;
    net.at(&a).set_congested(now, &b, false);
    hearsay(&mut net, &b, &c, &a, MANY + 5);
    let interrupted = net.trackers[&b].counts().interrupted;
    net.pass(Duration::from_secs(5));
    assert_eq!(net.trackers[&b].counts().interrupted, interrupted);
    net.assert_equal();
}

#[test]
fn an_old_copy_does_not_bring_back_what_a_node_that_is_gone_had_removed() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.add(&a, [1]);
    net.meet_all();
    net.pass(Duration::from_millis(10));
    net.disconnect(&a, &c);
    let now = net.now;
    net.at(&a).remove(now, 1).unwrap();
    net.pass(COALESCE);
    assert!(net.ids(&b).is_empty());
    // The one that knows loses the owner, and hears of it again from the one that does not.
    let now = net.now;
    net.at(&b).member_down(now, &a);
    net.disconnect(&a, &b);
    net.at(&b).member_up(now, &a);
    net.collect();
    hearsay(&mut net, &b, &c, &a, 1);
    net.pass(Duration::from_secs(3));
    assert!(net.ids(&b).is_empty(), "{:?}", net.ids(&b));
}

#[test]
fn what_the_owner_said_last_counts_for_more_than_hearsay_after_a_down() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=2);
    net.pass(Duration::from_secs(1));
    net.disconnect(&a, &b);
    net.disconnect(&a, &c);
    let now = net.now;
    net.at(&a).remove(now, 1).unwrap();
    net.pass(COALESCE);
    // The owner tells c how far it is, and is gone again before c has the change.
    net.connect(&a, &c);
    while net.deliver(&a, &c) {}
    net.disconnect(&a, &c);
    net.at(&c).member_down(now, &a);
    net.at(&c).member_up(now, &a);
    // What b has is what c has, and older than the owner's word.
    net.disconnect(&b, &c);
    net.connect(&b, &c);
    net.deliver_all();
    assert!(net.ids(&c).is_empty(), "what was removed flashes back");
    net.connect(&a, &c);
    net.deliver_all();
    assert_eq!(net.ids(&c), [("a".to_owned(), 2)]);
}

/// The owner's word is on its way to c when it removes a service, and b has heard of that before.
fn old_word_on_its_way() -> (Net, [NodeId; 3]) {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=2);
    net.pass(Duration::from_secs(1));
    net.disconnect(&a, &c);
    let now = net.now;
    net.at(&c).member_down(now, &a);
    net.collect();
    net.connect(&a, &c);
    net.at(&a).remove(now, 1).unwrap();
    net.now += COALESCE;
    let now = net.now;
    net.at(&a).handle_timeout(now);
    net.collect();
    while net.deliver(&a, &b) {}
    net.at(&c).member_up(now, &a);
    net.collect();
    (net, [a, b, c])
}

#[test]
fn an_owners_word_that_was_overtaken_by_hearsay_brings_nothing_back_that_was_removed() {
    let (mut net, [a, b, c]) = old_word_on_its_way();
    hearsay(&mut net, &c, &b, &a, 3);
    while net.deliver(&a, &c) {
        let ids = net.ids(&c);
        assert!(
            !ids.contains(&("a".to_owned(), 1)),
            "what was removed flashes back: {ids:?}"
        );
    }
    net.deliver_all();
    assert_eq!(net.ids(&c), [("a".to_owned(), 2)]);
}

#[test]
fn an_owner_that_stands_by_its_word_overrides_hearsay_that_was_wrong() {
    let (mut net, [a, b, c]) = old_word_on_its_way();
    hearsay(&mut net, &c, &b, &a, 1_000);
    // It answers what it was asked after that was said, which settles it.
    net.pass(Duration::from_secs(1));
    assert_eq!(net.ids(&c), [("a".to_owned(), 2)]);
    // Nothing is asked for any more.
    let asked = |net: &Net| net.trackers[&a].counts().suffixes;
    let before = asked(&net);
    net.pass(Duration::from_secs(10));
    assert_eq!(asked(&net), before);
    net.assert_equal();
}

#[test]
fn a_lost_delta_is_found_by_digest_when_nothing_else_follows() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.deliver_all();
    net.add(&a, [1]);
    let now = net.now + COALESCE;
    net.now = now;
    net.at(&a).handle_timeout(now);
    net.collect();
    net.wires.get_mut(&(a.clone(), b.clone())).unwrap().clear();
    net.pass(Duration::from_secs(3));
    net.assert_equal();
}

#[test]
fn a_congested_peer_is_skipped_and_catches_up() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.deliver_all();
    let now = net.now;
    net.at(&a).set_congested(now, &b, true);
    net.add(&a, 1..=3);
    net.pass(COALESCE);
    assert!(net.ids(&b).is_empty());
    let now = net.now;
    net.at(&a).set_congested(now, &b, false);
    net.collect();
    net.deliver_all();
    net.assert_equal();
}

#[test]
fn the_dead_are_forgotten_after_permdown_and_not_before() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.add(&a, 1..=3);
    net.meet_all();
    net.deliver_all();
    net.disconnect(&a, &b);
    let now = net.now;
    net.at(&b).member_down(now, &a);
    net.pass(Duration::from_secs(19 * 60));
    assert_eq!(net.at(&b).owners().len(), 1);
    net.pass(Duration::from_secs(2 * 60));
    assert!(net.at(&b).owners().is_empty());
}

#[test]
fn a_delta_of_somebody_elses_entries_is_dropped() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet_all();
    net.deliver_all();
    let forged = ControlMessage::Delta(Delta {
        owner: a.clone(),
        nonce: 1,
        from: 0,
        to: 1,
        content: 0,
        operations: vec![Operation::Remove { sequence: 1 }],
    });
    let now = net.now;
    net.at(&c).handle_message(now, &b, forged);
    assert_eq!(net.at(&c).counts().rejected, 1);
}

#[test]
fn at_most_two_snapshots_are_served_at_once() {
    let [a, b, c] = three();
    let d = node("d", 4);
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone(), d.clone()], 5);
    for batch in 0..10 {
        net.add(&a, batch * 1000 + 1..=batch * 1000 + 1000);
    }
    for peer in [&b, &c, &d] {
        net.connect(&a, peer);
    }
    let now = net.now;
    for peer in [&b, &c, &d] {
        let request = Request {
            owner: a.clone(),
            have: None,
            resume: None,
        };
        net.at(&a)
            .handle_message(now, peer, ControlMessage::Request(request));
    }
    let answers: Vec<ControlMessage> =
        std::iter::from_fn(|| net.at(&a).poll_transmit().map(|(_, message)| message)).collect();
    let refused = answers
        .iter()
        .filter(|message| matches!(message, ControlMessage::Unavailable(_)))
        .count();
    assert_eq!(refused, 1);
}

/// One thing that happens to three trackers.
#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Remove(usize, prop::sample::Index),
    Toggle(usize, prop::sample::Index),
    Deliver(usize, usize),
    Cut(usize, usize),
    Heal(usize, usize),
    Down(usize, usize),
    Lose(usize, usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..3_usize;
    let pair = (0..3_usize, 1..3_usize).prop_map(|(a, off)| (a, (a + off) % 3));
    prop_oneof![
        4 => who.clone().prop_map(Step::Add),
        2 => (who.clone(), any::<prop::sample::Index>()).prop_map(|(who, which)| Step::Remove(who, which)),
        2 => (who, any::<prop::sample::Index>()).prop_map(|(who, which)| Step::Toggle(who, which)),
        8 => pair.clone().prop_map(|(a, b)| Step::Deliver(a, b)),
        1 => pair.clone().prop_map(|(a, b)| Step::Cut(a, b)),
        2 => pair.clone().prop_map(|(a, b)| Step::Heal(a, b)),
        1 => pair.clone().prop_map(|(a, b)| Step::Down(a, b)),
        1 => pair.prop_map(|(a, b)| Step::Lose(a, b)),
        3 => (0..400_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn after_any_history_all_views_become_equal(
        steps in proptest::collection::vec(step(), 0..120),
        kept in prop_oneof![Just(2_usize), Just(1000)],
    ) {
        let nodes = three();
        let mut net = Net::new(&nodes, kept);
        net.meet_all();
        let mut next = 0;
        for step in steps {
            let now = net.now;
            match step {
                Step::Add(who) => {
                    next += 1;
                    net.add(&nodes[who], [next]);
                }
                Step::Remove(who, which) | Step::Toggle(who, which) => {
                    let own: Vec<u64> = net.at(&nodes[who]).own().map(|info| info.id().sequence).collect();
                    if own.is_empty() {
                        continue;
                    }
                    let sequence = own[which.index(own.len())];
                    if matches!(step, Step::Remove(..)) {
                        net.at(&nodes[who]).remove(now, sequence).unwrap();
                    } else {
                        let update = EntryUpdate {
                            weight: Some(Weight::try_new(1 + (now.as_micros() % 1000) as u16).unwrap()),
                            ..EntryUpdate::default()
                        };
                        net.at(&nodes[who]).update(now, sequence, update).unwrap();
                    }
                    net.collect();
                }
                Step::Deliver(a, b) => {
                    net.deliver(&nodes[a], &nodes[b]);
                }
                Step::Cut(a, b) => {
                    if net.wires.contains_key(&(nodes[a].clone(), nodes[b].clone())) {
                        net.disconnect(&nodes[a], &nodes[b]);
                    }
                }
                Step::Heal(a, b) => {
                    if !net.wires.contains_key(&(nodes[a].clone(), nodes[b].clone())) {
                        net.meet(&nodes[a], &nodes[b]);
                    }
                }
                Step::Down(a, b) => {
                    net.at(&nodes[a]).member_down(now, &nodes[b]);
                    net.collect();
                }
                Step::Lose(a, b) => {
                    if let Some(wire) = net.wires.get_mut(&(nodes[a].clone(), nodes[b].clone())) {
                        wire.pop_front();
                    }
                }
                Step::Pass(millis) => net.pass(Duration::from_millis(millis)),
            }
        }
        for (at, a) in nodes.iter().enumerate() {
            for b in &nodes[at + 1..] {
                if net.wires.contains_key(&(a.clone(), b.clone())) {
                    let now = net.now;
                    net.at(a).member_up(now, b);
                    net.at(b).member_up(now, a);
                    net.collect();
                } else {
                    net.meet(a, b);
                }
            }
        }
        net.pass(Duration::from_secs(8));
        net.assert_equal();
    }
}

#[test]
fn an_owner_hears_who_has_its_version_and_nobody_says_so_before() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=3);
    net.pass(COALESCE);
    net.add(&a, 4..=4);
    let now = net.now;
    net.at(&a).drain(now, false);
    let version = net.at(&a).ask_who_has_it(now);
    net.collect();
    assert_eq!(net.at(&a).without(version).len(), 2);
    // What goes to c is lost with its link; b has all.
    net.disconnect(&a, &c);
    net.deliver_all();
    assert_eq!(net.at(&a).without(version), std::slice::from_ref(&c.name));
    let drained = net.seen[&b].values();
    assert!(
        drained
            .into_iter()
            .all(|info| info.state() == ServiceState::Draining)
    );
    // The question goes again on the next link, and is answered once what was missed is there.
    net.connect(&a, &c);
    net.deliver_all();
    assert!(net.at(&a).without(version).is_empty());
    net.assert_equal();
    // One that is not up is not waited for.
    net.add(&a, 5..=5);
    let version = net.at(&a).ask_who_has_it(now);
    net.at(&a).member_down(now, &b);
    net.at(&a).member_left(&c);
    assert!(net.at(&a).without(version).is_empty());
}

#[test]
fn of_a_node_that_drains_for_good_nothing_owns_keys_any_more() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 100);
    net.meet_all();
    net.add(&a, 1..=2);
    let now = net.now;
    net.at(&a).drain(now, true);
    net.add(&a, 3..=3);
    let online = EntryUpdate {
        state: Some(ServiceState::Online),
        ..EntryUpdate::default()
    };
    let enabled = net.at(&a).update(now, 1, online).unwrap();
    assert_eq!(enabled.state(), ServiceState::Draining);
    net.pass(COALESCE);
    let states = net.seen[&b].values().map(|info| info.state());
    assert!(
        states
            .into_iter()
            .all(|state| state == ServiceState::Draining)
    );
    assert_eq!(net.seen[&b].len(), 3);
}
