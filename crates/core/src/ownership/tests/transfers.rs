//! States on their way, and copies that meet.

use super::*;

#[test]
fn who_joins_takes_its_slots_with_their_states_and_who_leaves_gives_all_away() {
    let mut net = Net::new(&[1, 2, 3]);
    let one = net.serve(1);
    net.pass(100 * MILLI);
    for slot in 0..SLOTS_HERE {
        let states = vec![
            (key("a"), key("state of a")),
            (key("b"), Bytes::from(vec![slot as u8; 200])),
        ];
        net.states.insert((one.clone(), slot), states);
    }
    let two = net.serve(2);
    net.pass(100 * MILLI);
    net.assert_rest();
    let three = net.serve(3);
    net.pass(100 * MILLI);
    net.assert_rest();
    net.set(1, 1, 2, ServiceState::Offline);
    net.set(2, 1, 2, ServiceState::Offline);
    net.pass(100 * MILLI);
    net.assert_rest();
    assert!(net.at(1).is_idle() && net.at(2).is_idle());
    assert_eq!((net.held(&one).len(), net.held(&two).len()), (0, 0));
    for slot in 0..SLOTS_HERE {
        assert_eq!(
            net.states[&(three.clone(), slot)][1].1,
            Bytes::from(vec![slot as u8; 200])
        );
    }
}

#[test]
fn states_that_come_for_a_claim_that_is_over_are_refused_and_served_where_they_were() {
    let run = |rounds: bool| {
        let mut net = Net::new(&[1, 2]);
        if !rounds {
            net.without(Rule::Rounds);
        }
        let one = net.serve(1);
        net.deliver_all();
        let two = net.serve(2);
        while net.deliver_one(|_, _, message| !message.is_data()) {}
        assert!(net.letters.iter().any(|(_, _, message)| is_piece(message)));
        // It is disabled before the first piece comes.
        net.set(2, 1, 2, ServiceState::Offline);
        net.deliver_all();
        net.pass(20 * MILLI);
        assert_eq!(net.held(&two).len(), 0);
        let adopted = |(number, event): &&(u64, TokenEvent)| {
            *number == 2 && matches!(event, TokenEvent::Adopted { .. })
        };
        (
            net.held(&one).len(),
            net.told.iter().filter(adopted).count(),
        )
    };
    assert_eq!(run(true), (SLOTS_HERE as usize, 0));
    assert!(run(false).1 > 0);
}

#[test]
fn a_slot_is_served_until_its_first_piece_goes_out_and_few_pieces_are_on_their_way() {
    let mut net = Net::new(&[1, 2]);
    let one = net.serve(1);
    net.deliver_all();
    net.serve(2);
    while net.deliver_one(|_, _, message| !message.is_data()) {}
    let frozen = (0..SLOTS_HERE)
        .filter(|slot| net.holding(&one, *slot) == Holding::Frozen)
        .count();
    assert_eq!(frozen, WINDOW as usize);
    let pieces = net
        .letters
        .iter()
        .filter(|(_, _, message)| is_piece(message))
        .count();
    assert_eq!(pieces, WINDOW as usize);
    let frozen = (0..SLOTS_HERE)
        .find(|slot| net.holding(&one, *slot) == Holding::Frozen)
        .unwrap();
    let two = entry(2, 1, 1, ServiceState::Online).id().clone();
    assert_eq!(
        net.nodes[&1].gate(&rooms(), frozen, &one),
        Gate::Moved(Some(two.clone()))
    );
    let waits = (0..SLOTS_HERE).find(|slot| {
        net.holding(&one, *slot) == Holding::Held && net.holding(&two, *slot) != Holding::Away
    });
    let waits = waits.unwrap();
    assert_eq!(
        net.nodes[&1].gate(&rooms(), waits, &one),
        Gate::Run(one.clone())
    );
    // R10: it is coming, and nothing has come: the holder serves it.
    assert_eq!(
        net.nodes[&2].gate(&rooms(), waits, &two),
        Gate::Moved(Some(one))
    );
    net.deliver_all();
    net.assert_rest();
    assert!(net.nodes[&1].counts().most_in_flight <= WINDOW);
}

#[test]
fn what_a_receiver_did_not_adopt_before_it_died_is_served_where_it_was() {
    let mut net = Net::new(&[1, 2, 3]);
    let one = net.serve(1);
    net.deliver_all();
    net.serve(2);
    while net.deliver_one(|_, _, message| !message.is_data()) {}
    net.kill(2);
    assert_eq!(net.held(&one).len(), SLOTS_HERE as usize);
    let back = net
        .told
        .iter()
        .filter(|(_, event)| matches!(event, TokenEvent::TakenBack { .. }));
    assert_eq!(back.count(), WINDOW as usize);
    net.pass(100 * MILLI);
    net.assert_rest();
}

#[test]
fn what_was_adopted_is_passed_on_only_when_the_giver_knows() {
    let passes_on = |settles: bool| {
        let mut net = Net::new(&[1, 2, 3]);
        if !settles {
            net.without(Rule::Settles);
        }
        net.serve(1);
        net.deliver_all();
        let two = net.serve(2);
        let is_ack = |message: &TokenMessage| matches!(message, TokenMessage::Ack(ack) if ack.outcome == Outcome::Adopted);
        while net.deliver_one(|_, _, message| !is_ack(message)) {}
        let slot = net.held(&two)[0];
        net.set(2, 1, 2, ServiceState::Offline);
        while net.deliver_one(|_, _, message| !is_ack(message)) {}
        let passed = net.holding(&two, slot) != Holding::Held;
        net.deliver_all();
        net.pass(100 * MILLI);
        net.assert_rest();
        passed
    };
    assert!(!passes_on(true));
}

#[test]
fn two_copies_meet_and_merge_once_the_dead_one_turns_out_to_live() {
    let mut net = Net::new(&[1, 2]);
    let (one, two) = (net.serve(1), net.serve(2));
    net.pass(20 * MILLI);
    // Each takes the other for dead, and serves all.
    let now = net.now;
    for (me, other) in [(1, 2), (2, 1)] {
        let services = vec![net.services[&(me, 1)].clone()];
        net.at(me).handle_down(now, &node(other));
        net.at(me).handle_view(now, &rooms(), &services);
        net.at(me).handle_synced(now);
    }
    net.collect();
    assert_eq!(
        net.held(&one).len() + net.held(&two).len(),
        2 * SLOTS_HERE as usize
    );
    let now = net.now;
    for (me, other) in [(1, 2), (2, 1)] {
        net.at(me).handle_up(now, &node(other), true);
    }
    net.views();
    net.pass(2 * OFFER);
    net.assert_rest();
    let merged = net.told.iter().filter(|(_, event)| {
        matches!(
            event,
            TokenEvent::Adopted {
                how: Adoption::MergeIntoOurs,
                ..
            }
        )
    });
    assert_eq!(merged.count(), SLOTS_HERE as usize);
}

#[test]
fn who_stood_still_asks_before_it_serves_on_and_its_copy_is_merged_into_the_newer_one() {
    let mut net = Net::new(&[1, 2]);
    let (one, two) = (net.serve(1), net.serve(2));
    net.pass(20 * MILLI);
    let now = net.now;
    net.at(1).handle_doubt(now);
    net.collect();
    assert!(net.held(&one).is_empty());
    assert!(
        (0..SLOTS_HERE).any(|slot| net.holding(&one, slot) == Holding::Claiming { copy: true })
    );
    net.deliver_all();
    net.assert_rest();
    // Meanwhile the other took it for dead and holds all: what comes is newer.
    let services = vec![net.services[&(2, 1)].clone()];
    let now = net.now;
    net.at(2).handle_down(now, &node(1));
    net.at(2).handle_view(now, &rooms(), &services);
    net.at(2).handle_synced(now);
    net.at(2).handle_up(now, &node(1), true);
    net.collect();
    assert_eq!(net.held(&two).len(), SLOTS_HERE as usize);
    let now = net.now;
    net.at(1).handle_doubt(now);
    net.views();
    net.pass(3 * OFFER);
    net.assert_rest();
    let newer = net.told.iter().filter(|(_, event)| {
        matches!(
            event,
            TokenEvent::Adopted {
                how: Adoption::MergeOursInto,
                ..
            }
        )
    });
    assert!(newer.count() > 0);
}

#[test]
fn two_instances_of_one_node_give_each_other_what_is_theirs() {
    let mut net = Net::new(&[1]);
    net.serve(1);
    net.deliver_all();
    net.set(1, 2, 2, ServiceState::Online);
    net.deliver_all();
    net.assert_rest();
    assert!(net.letters.is_empty());
    net.set(1, 1, 3, ServiceState::Offline);
    net.deliver_all();
    net.assert_rest();
}

#[test]
fn states_that_cannot_be_given_stay_and_are_tried_again_when_they_may_fit() {
    let mut net = Net::new(&[1, 2]);
    let one = net.serve(1);
    net.pass(20 * MILLI);
    net.unfit = (0..SLOTS_HERE).collect();
    let two = net.serve(2);
    net.pass(100 * MILLI);
    assert_eq!(net.held(&one).len(), SLOTS_HERE as usize);
    let tries = |net: &Net| {
        let told = net.told.iter();
        told.filter(|(_, event)| matches!(event, TokenEvent::Give { .. }))
            .count()
    };
    let first = tries(&net);
    assert!(first > 0);
    // Not again and again: each try freezes the slot for a moment.
    net.pass(800 * MILLI);
    assert_eq!(tries(&net), first);
    net.unfit.clear();
    net.pass(500 * MILLI);
    assert!(!net.held(&two).is_empty());
    net.assert_rest();
}

#[test]
fn half_arrived_states_are_bounded_and_what_is_beyond_is_refused() {
    let mut net = Net::new(&[1, 2]);
    let one = net.serve(1);
    net.pass(20 * MILLI);
    let slot = net.slot_between(&one, 2);
    let large = vec![(key("a"), Bytes::from(vec![7; 10 * 64]))];
    net.states.insert((one.clone(), slot), large);
    net.at(2).hub.config.arriving_bytes = 5 * 64;
    let two = net.serve(2);
    net.pass(300 * MILLI);
    // It stays where it is, and is served there between the attempts; all others have gone.
    assert_ne!(net.holding(&two, slot), Holding::Held);
    assert!(net.at(2).counts().refused > 0);
    assert!(net.states.contains_key(&(one.clone(), slot)));
    assert!(net.at(2).hub.partials.is_empty());
    net.at(2).hub.config.arriving_bytes = 20 * 64;
    net.pass(300 * MILLI);
    assert_eq!(net.holding(&two, slot), Holding::Held);
    net.assert_rest();
}

#[test]
fn slots_whose_states_are_slow_to_come_hold_up_no_others() {
    let mut net = Net::new(&[1, 2]);
    let one = net.serve(1);
    net.pass(20 * MILLI);
    let theirs: Vec<u32> = {
        let mut ranks = Ranks::default();
        ranks.set_view(&[
            net.services[&(1, 1)].clone(),
            entry(2, 1, 1, ServiceState::Online),
        ]);
        let firsts = (0..SLOTS_HERE).filter(|slot| ranks.first(*slot).unwrap().id.nonce == 2);
        firsts.collect()
    };
    let slow: Vec<u32> = theirs.iter().copied().take(2 * WINDOW as usize).collect();
    assert!(theirs.len() > slow.len(), "{theirs:?}");
    net.late = slow.iter().map(|slot| (*slot, None)).collect();
    let two = net.serve(2);
    net.pass(300 * MILLI);
    let gone: BTreeSet<u32> = net.held(&two).into_iter().collect();
    assert_eq!(gone.len(), theirs.len() - slow.len());
    assert!(
        slow.iter()
            .all(|slot| net.holding(&one, *slot) == Holding::Frozen)
    );
    for (_, asked) in std::mem::take(&mut net.late) {
        let (number, transfer) = asked.unwrap();
        let now = net.now;
        assert!(net.at(number).give(now, transfer, &[]));
        net.collect();
    }
    net.pass(100 * MILLI);
    net.assert_rest();
}
