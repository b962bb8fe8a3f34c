//! A peer that says what is not so of other owners' entries: "m" in each of these.

use super::*;
use crate::message::SnapshotChunk;
use crate::rules::{Rule, RuleSet};

const FAR: u64 = 1 << 40;

fn four() -> [NodeId; 4] {
    [node("a", 1), node("b", 2), node("m", 3), node("x", 4)]
}

/// All four know each other; x has two services.
fn met() -> (Net, [NodeId; 4]) {
    let [a, b, m, x] = four();
    let mut net = Net::new(&[a.clone(), b.clone(), m.clone(), x.clone()], 100);
    net.meet_all();
    net.add(&x, 1..=2);
    net.pass(Duration::from_secs(1));
    net.assert_equal();
    (net, [a, b, m, x])
}

fn off(net: &mut Net, who: &NodeId, rule: Rule) {
    net.at(who).set_rules(RuleSet::without(&[rule]));
}

/// A copy of x's entries that x never had: nothing at all, at that version.
fn forged(x: &NodeId, version: u64) -> ControlMessage {
    ControlMessage::Snapshot(SnapshotChunk {
        of: OwnerVersion {
            owner: x.clone(),
            version,
            content: 0,
        },
        nonce: 9,
        index: 0,
        count: 1,
        records: Vec::new(),
    })
}

/// Whatever m is asked for, it answers with that.
fn answer(net: &mut Net, to: &NodeId, m: &NodeId, message: &ControlMessage) -> usize {
    let wire = net.wires.get_mut(&(to.clone(), m.clone())).unwrap();
    let is_request = |frame: &Frame| {
        matches!(
            ControlMessage::decode(frame),
            Ok(Some(ControlMessage::Request(_)))
        )
    };
    let before = wire.len();
    wire.retain(|frame| !is_request(frame));
    let asked = before - wire.len();
    for _ in 0..asked {
        let now = net.now;
        net.at(to).handle_message(now, m, message.clone());
        net.collect();
    }
    asked
}

/// For so long m says that x is at that version, and answers whatever it is asked with nothing at all.
fn lie(net: &mut Net, to: &NodeId, m: &NodeId, x: &NodeId, version: u64, time: Duration) {
    let until = net.now + time;
    while net.now < until {
        hearsay(net, to, m, x, version);
        answer(net, to, m, &forged(x, version));
        net.pass(Duration::from_millis(50));
        answer(net, to, m, &forged(x, version));
    }
}

#[test]
fn a_version_that_the_owner_does_not_have_is_asked_for_at_a_bounded_rate_and_shows_nothing() {
    for version in [3, FAR, u64::MAX] {
        let (mut net, [a, _, m, x]) = met();
        let before = net.at(&a).counts().requests;
        lie(&mut net, &a, &m, &x, version, Duration::from_secs(20));
        assert_eq!(net.ids(&a).len(), 2, "version {version}");
        // It is denied at once, and heeded ever more rarely.
        let asked = net.at(&a).counts().requests - before;
        assert!((1..=6).contains(&asked), "{asked} requests, {version}");
        net.add(&x, 3..=3);
        net.pass(Duration::from_secs(1));
        assert_eq!(net.ids(&a).len(), 3);
    }
}

#[test]
fn what_is_missing_is_asked_for_at_a_bounded_rate() {
    let asked = |paced: bool| {
        let (mut net, [a, _, m, _]) = met();
        if !paced {
            off(&mut net, &a, Rule::PacedFetches);
        }
        net.add(&m, 1..=5);
        net.pass(Duration::from_secs(1));
        let before = net.at(&a).counts().requests;
        // m says that it has more, and answers with an older copy of its own.
        let row = OwnerVersion {
            owner: m.clone(),
            version: FAR,
            content: 7,
        };
        let now = net.now;
        let vector = ControlMessage::Vector(VersionVector { owners: vec![row] });
        net.at(&a).handle_message(now, &m, vector);
        net.collect();
        for _ in 0..1_000 {
            answer(&mut net, &a, &m, &forged(&m, 1));
            net.now += Duration::from_millis(10);
            let now = net.now;
            net.at(&a).handle_timeout(now);
            net.collect();
        }
        net.at(&a).counts().requests - before
    };
    // Sixteen at once, and four a second.
    let paced = asked(true);
    assert!(paced <= 16 + 40 + 1, "{paced}");
    let unpaced = asked(false);
    assert!(unpaced > 200, "{unpaced}");
}

/// The link from a to x breaks, and x is said to be up all the time; b is there.
fn parted() -> (Net, [NodeId; 4]) {
    let (mut net, nodes) = met();
    net.disconnect(&nodes[0], &nodes[3]);
    (net, nodes)
}

#[test]
fn a_copy_that_one_relay_alone_has_is_not_taken() {
    let shown = |agreeing: bool| {
        let (mut net, [a, _, m, x]) = parted();
        if !agreeing {
            off(&mut net, &a, Rule::AgreeingRelays);
        }
        lie(&mut net, &a, &m, &x, FAR, Duration::from_secs(5));
        net.ids(&a).len()
    };
    assert_eq!(shown(true), 2);
    assert_eq!(shown(false), 0);
}

#[test]
fn two_relays_that_agree_are_taken_at_their_word() {
    let (mut net, [a, _, _, x]) = parted();
    net.add(&x, 3..=5);
    net.pass(Duration::from_secs(5));
    assert_eq!(net.ids(&a).len(), 5);
}

#[test]
fn a_forged_copy_gives_way_to_the_owner_itself() {
    let shown = |heeded: bool| {
        // With nobody but m to ask, its word is all there is.
        let [a, _, m, x] = four();
        let mut net = Net::new(&[a.clone(), m.clone(), x.clone()], 100);
        net.meet_all();
        net.add(&x, 1..=2);
        net.pass(Duration::from_secs(1));
        if !heeded {
            off(&mut net, &a, Rule::OwnersWord);
        }
        net.disconnect(&a, &x);
        lie(&mut net, &a, &m, &x, FAR, Duration::from_secs(5));
        assert!(net.ids(&a).is_empty());
        net.connect(&a, &x);
        net.pass(Duration::from_secs(5));
        net.add(&x, 3..=3);
        net.pass(Duration::from_secs(5));
        net.ids(&a).len()
    };
    assert_eq!(shown(true), 3);
    assert_eq!(shown(false), 0);
}

#[test]
fn made_up_owners_keep_no_newcomer_waiting() {
    let ready = |heeded: bool| {
        let [a, b, m, _] = four();
        let mut net = Net::new(&[a.clone(), b.clone(), m.clone()], 100);
        if !heeded {
            off(&mut net, &a, Rule::OwnersWord);
        }
        net.meet_all();
        for round in 0..200 {
            let made_up = node(&format!("made-up-{round}"), 1);
            hearsay(&mut net, &a, &m, &made_up, 1);
            net.pass(Duration::from_millis(100));
        }
        !net.at(&a).is_missing_any()
    };
    assert!(ready(true));
    assert!(!ready(false));
}

#[test]
fn an_owner_that_never_gives_what_it_says_it_has_is_not_waited_for() {
    let [a, m, _] = [node("a", 1), node("m", 2), node("b", 3)];
    let mut net = Net::new(&[a.clone(), m.clone()], 100);
    net.meet_all();
    for _ in 0..100 {
        let row = OwnerVersion {
            owner: m.clone(),
            version: u64::MAX,
            content: 7,
        };
        let now = net.now;
        let vector = ControlMessage::Vector(VersionVector { owners: vec![row] });
        net.at(&a).handle_message(now, &m, vector);
        net.wires.get_mut(&(a.clone(), m.clone())).unwrap().clear();
        net.collect();
        net.pass(Duration::from_millis(100));
    }
    assert!(!net.at(&a).is_missing_any());
}

/// Each peer is complained of by itself: one that is complained of all the time hides no other.
#[test]
fn what_is_dropped_is_counted_for_each_peer() {
    let (mut net, [a, b, m, x]) = met();
    let now = net.now;
    let of_another = ControlMessage::Delta(Delta {
        owner: x,
        nonce: 1,
        from: 0,
        to: 1,
        content: 0,
        operations: Vec::new(),
    });
    for (peer, times) in [(&m, 5), (&b, 1)] {
        for _ in 0..times {
            net.at(&a).handle_message(now, peer, of_another.clone());
        }
        assert_eq!(net.at(&a).peers[peer].rejected, times);
    }
}
