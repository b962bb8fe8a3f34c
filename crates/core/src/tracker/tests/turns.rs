//! What one turn may cost, counted in entries and bytes: a large batch keeps no timer waiting.

use std::collections::BTreeMap as Map;

use super::*;
use crate::tracker::log::{MAX_DELTA_BYTES, work};

/// Entries of a large batch.
const MANY: u64 = 10_000;

/// Entries that a turn of these tests adds.
const SLICE: usize = 200;

/// Bytes that one turn sends: a few milliseconds of encoding, and less than makes a peer congested.
const MOST_BYTES: usize = 1_100_000;

/// Entries of 4 KiB in one delta, and in the longest chunk of a snapshot.
const OF_A_DELTA: usize = MAX_DELTA_BYTES / 4_000 + 1;

fn large(sequence: u64) -> NewEntry {
    let tags = Map::from([("tag".into(), "x".repeat(4_000).into())]);
    NewEntry {
        metadata: Metadata::try_new(None, None, tags).unwrap(),
        name: None,
        ..entry(sequence)
    }
}

fn larges(count: u64) -> Vec<NewEntry> {
    (1..=count).map(large).collect()
}

/// Adds them slice by slice, and says how many slices that took.
fn add(net: &mut Net, me: &NodeId, entries: Vec<NewEntry>) -> Result<usize, AddError> {
    let (now, mut slices) = (net.now, 0);
    let mut adding = Adding::new(entries);
    work::take();
    loop {
        slices += 1;
        let added = net.at(me).continue_add(now, adding, SLICE);
        assert!(work::take() <= SLICE);
        match added {
            Added::NotYet(rest) => {
                net.collect();
                assert!(net.ids(me).is_empty(), "a part of a batch is visible");
                adding = rest;
            }
            Added::All(outcome) => {
                net.collect();
                return outcome.map(|_| slices);
            }
        }
    }
}

/// Lets timers and messages come one by one, and returns the most entries and bytes that one of them cost anybody.
fn most_of_a_turn(net: &mut Net, time: Duration) -> (usize, usize) {
    let until = net.now + time;
    let (mut entries, mut bytes) = (0, 0);
    work::take();
    loop {
        let wires: Vec<_> = net.wires.keys().cloned().collect();
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for (from, to) in &wires {
                while net.deliver(from, to) {
                    busy = true;
                    entries = entries.max(work::take());
                }
            }
        }
        let timers = net.trackers.values().filter_map(Tracker::poll_timeout);
        let Some(next) = timers.min().filter(|next| *next <= until) else {
            break;
        };
        net.now = net.now.max(next);
        let now = net.now;
        let nodes: Vec<NodeId> = net.trackers.keys().cloned().collect();
        for node in nodes {
            net.at(&node).handle_timeout(now);
            let queued: usize = net.wires.values().flatten().map(|f| f.body.len()).sum();
            net.collect();
            let after: usize = net.wires.values().flatten().map(|f| f.body.len()).sum();
            bytes = bytes.max(after - queued);
            entries = entries.max(work::take());
        }
    }
    net.now = until;
    (entries, bytes)
}

#[test]
fn a_large_batch_is_added_and_sent_in_slices_and_becomes_visible_as_a_whole() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], MANY as usize);
    net.meet_all();
    net.deliver_all();
    let slices = add(&mut net, &a, larges(MANY)).unwrap();
    assert!(slices >= MANY as usize / SLICE, "{slices}");
    assert_eq!(net.ids(&a).len(), MANY as usize);
    let (entries, bytes) = most_of_a_turn(&mut net, Duration::from_secs(2));
    assert!(entries <= OF_A_DELTA, "{entries} entries in one turn");
    assert!(bytes <= MOST_BYTES, "{bytes} bytes in one turn");
    assert!(net.seen[&a] == net.seen[&b]);
}

#[test]
fn a_newcomer_fetches_a_large_batch_in_turns_that_are_as_small() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 5);
    add(&mut net, &a, larges(MANY)).unwrap();
    net.meet_all();
    let (entries, bytes) = most_of_a_turn(&mut net, Duration::from_secs(2));
    assert!(entries <= OF_A_DELTA, "{entries} entries in one turn");
    assert!(bytes <= MAX_DELTA_BYTES, "{bytes} bytes in one turn");
    assert!(net.seen[&a] == net.seen[&b]);
}

#[test]
fn a_peer_that_comes_while_a_batch_goes_out_gets_all_of_it() {
    let [a, b, c] = three();
    let mut net = Net::new(&[a.clone(), b.clone(), c.clone()], MANY as usize);
    net.meet(&a, &b);
    net.deliver_all();
    add(&mut net, &a, larges(1_000)).unwrap();
    net.pass(COALESCE);
    assert!(net.ids(&b).len() < 1_000);
    net.meet(&a, &c);
    net.meet(&b, &c);
    net.pass(Duration::from_secs(3));
    net.assert_equal();
}

#[test]
fn a_batch_that_cannot_be_added_leaves_nothing_behind() {
    let [a, ..] = three();
    let mut net = Net::new(std::slice::from_ref(&a), 100);
    let taken = || NewEntry {
        name: Some(InstanceName::try_new("taken").unwrap()),
        ..entry(900)
    };
    let mut entries = larges(500);
    entries.extend([taken(), taken()]);
    let error = add(&mut net, &a, entries).unwrap_err();
    assert!(
        matches!(
            error,
            AddError::NameTaken { .. } | AddError::SequenceTaken { .. }
        ),
        "{error}"
    );
    assert!(net.ids(&a).is_empty());
    add(&mut net, &a, larges(500)).unwrap();
    assert_eq!(net.ids(&a).len(), 500);
}

#[test]
fn a_batch_that_a_new_generation_overtakes_is_written_in_that_generation() {
    let [a, b, _] = three();
    let mut net = Net::new(&[a.clone(), b.clone()], 1_000);
    net.meet_all();
    net.deliver_all();
    let later = node("a", 7);
    let now = net.now;
    let Added::NotYet(adding) = net.at(&a).continue_add(now, Adding::new(larges(100)), 150) else {
        panic!("it takes more than one slice");
    };
    net.at(&a).renew(now, later.clone());
    let mut added = net.at(&a).continue_add(now, adding, 40);
    while let Added::NotYet(rest) = added {
        added = net.at(&a).continue_add(now, rest, 40);
    }
    net.collect();
    let Added::All(Ok(infos)) = added else {
        panic!("{added:?}");
    };
    for (at, info) in infos.iter().enumerate() {
        assert_eq!(info.reference().generation, 7);
        assert_eq!(info.reference().version, at as u64 + 1);
    }
    let content = infos.iter().map(|info| content_hash(info));
    let content = content.fold(0_u64, u64::wrapping_add);
    assert_eq!(net.at(&a).copy_of(&later).unwrap().content, content);
}
