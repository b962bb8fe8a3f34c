//! Who claims what, and who is asked for it.

use super::*;

#[test]
fn nothing_is_claimed_before_this_node_is_synced() {
    let mut net = Net::new(&[]);
    net.start(1);
    let one = net.serve(1);
    net.pass(20 * MILLI);
    assert!(net.held(&one).is_empty());
    net.sync(1);
    assert_eq!(net.held(&one).len(), SLOTS_HERE as usize);
    net.assert_rest();
    let mut hasty = Net::new(&[]);
    hasty.start(1);
    hasty.without(Rule::Synced);
    let one = hasty.serve(1);
    assert_eq!(hasty.held(&one).len(), SLOTS_HERE as usize);
}

#[test]
fn who_knows_nobody_any_more_claims_only_after_it_has_looked_around() {
    let mut net = Net::new(&[1, 2]);
    let (one, _) = (net.serve(1), net.serve(2));
    net.pass(20 * MILLI);
    net.assert_rest();
    let before = net.held(&one).len();
    net.kill(2);
    assert!(net.told.contains(&(1, TokenEvent::Alone)));
    net.pass(100 * MILLI);
    assert_eq!(net.held(&one).len(), before);
    net.sync(1);
    net.assert_rest();
    let mut hasty = Net::new(&[1, 2]);
    hasty.without(Rule::StillSynced);
    let (one, _) = (hasty.serve(1), hasty.serve(2));
    hasty.pass(20 * MILLI);
    hasty.kill(2);
    assert_eq!(hasty.held(&one).len(), SLOTS_HERE as usize);
}

#[test]
fn slots_are_named_to_the_expected_holder_alone() {
    let mut net = Net::new(&[1, 2, 3, 4]);
    let one = net.serve(1);
    net.deliver_all();
    net.serve(2);
    for (_, to, message) in &net.letters {
        if let TokenMessage::Claims(claims) = message {
            assert_eq!(*to, node(1), "{claims:?}");
            assert!(matches!(claims[0].which, Which::Slots(_)));
        }
    }
    net.deliver_all();
    // What its holder has lost is asked for with everybody, and not named.
    let slot = net.slot_between(&one, 2);
    net.at(1).hub.rules.turn_off(Rule::Pointers);
    net.kill(2);
    net.set(1, 1, 2, ServiceState::Offline);
    net.serve(3);
    net.letters.retain(|(from, _, _)| *from == node(3));
    assert!(!net.letters.is_empty(), "{slot}");
    net.deliver_all();
    net.serve(4);
    let named = |message: &TokenMessage| match message {
        TokenMessage::Claims(claims) => claims
            .iter()
            .any(|claim| matches!(claim.which, Which::Slots(_))),
        _ => false,
    };
    let to_others = net.letters.iter().filter(|(from, to, message)| {
        *from == node(4) && named(message) && *to != node(3) && *to != node(1)
    });
    assert_eq!(to_others.count(), 0);
}

#[test]
fn an_answer_to_an_earlier_question_does_not_count() {
    let told = |numbered: bool| {
        let mut net = Net::new(&[1, 2, 3]);
        if !numbered {
            net.without(Rule::Questions);
        }
        // Nobody holds; the second is expected to, and asked by number.
        net.set(1, 1, 1, ServiceState::Offline);
        let two = net.serve(2);
        let TokenMessage::Claims(claims) = net
            .letters
            .iter()
            .find(|(_, to, _)| *to == node(1))
            .unwrap()
            .2
            .clone()
        else {
            panic!();
        };
        net.letters.clear();
        let answer = |question| Answer {
            service_type: rooms(),
            claimant: two.clone(),
            round: claims[0].round,
            question,
            differs: false,
            said: Vec::new(),
            standings: Vec::new(),
            members: Vec::new(),
        };
        let now = net.now;
        net.at(2).handle_message(
            now,
            &node(1),
            TokenMessage::Answers(vec![answer(claims[0].question + 7)]),
        );
        net.collect();
        // Where it was taken for the answer, everybody else is asked now.
        net.letters.iter().any(|(_, to, _)| *to == node(3))
    };
    assert!(!told(true));
    assert!(told(false));
}

#[test]
fn a_holder_says_no_to_whom_it_outranks_and_that_ends_the_claim() {
    let mut net = Net::new(&[1, 2]);
    let (one, two) = (net.serve(1), net.serve(2));
    net.pass(20 * MILLI);
    net.assert_rest();
    // The second has not heard that the first is there.
    let services = vec![net.services[&(2, 1)].clone()];
    let now = net.now;
    net.at(2).types.get_mut(&rooms()).unwrap().ranks = Ranks::default();
    net.at(2).handle_view(now, &rooms(), &services);
    net.collect();
    net.deliver_all();
    net.pass(50 * MILLI);
    assert_eq!(
        net.held(&one).len() + net.held(&two).len(),
        SLOTS_HERE as usize
    );
    net.assert_rest();
}

#[test]
fn who_gave_a_slot_away_says_to_whom() {
    let said = |points: bool| {
        let mut net = Net::new(&[1, 2, 3]);
        if !points {
            net.without(Rule::Pointers);
        }
        let one = net.serve(1);
        net.deliver_all();
        let two = net.serve(2);
        net.deliver_all();
        let slot = net.held(&two)[0];
        let third = entry(3, 1, 1, ServiceState::Online);
        let claim = Claim {
            service_type: rooms(),
            claimant: Standing::of(&third),
            round: 1,
            question: 1,
            which: Which::Slots(SlotSet::one(slot)),
            members: 0,
        };
        let now = net.now;
        net.at(1)
            .handle_message(now, &node(3), TokenMessage::Claims(vec![claim]));
        net.collect();
        let answer = net
            .letters
            .iter()
            .find_map(|(_, to, message)| match message {
                TokenMessage::Answers(answers) if *to == node(3) => Some(answers[0].clone()),
                _ => None,
            });
        assert!(!net.held(&one).contains(&slot));
        let place = Place {
            id: two,
            node: node(2),
        };
        let there = vec![(SlotSet::one(slot), Said::Ask(place))];
        (answer.unwrap().said, there)
    };
    let (told, there) = said(true);
    assert_eq!(told, there);
    assert!(said(false).0.is_empty());
}

#[test]
fn the_dead_are_not_heard() {
    let hears = |silent: bool| {
        let mut net = Net::new(&[1, 2, 3]);
        if !silent {
            net.without(Rule::DeadAreSilent);
        }
        net.serve(1);
        net.deliver_all();
        net.serve(2);
        while net.deliver_one(|_, _, message| !message.is_data()) {}
        net.services.remove(&(1, 1));
        net.nodes.remove(&1);
        let now = net.now;
        let (from, to, piece) = net
            .letters
            .iter()
            .find(|(_, _, message)| is_piece(message))
            .cloned()
            .unwrap();
        assert_eq!((from, to), (node(1), node(2)));
        net.letters.clear();
        net.at(2).handle_down(now, &node(1));
        net.at(3).handle_down(now, &node(1));
        net.views();
        net.deliver_all();
        net.at(2).handle_message(now, &node(1), piece);
        net.collect();
        net.told
            .iter()
            .any(|(_, event)| matches!(event, TokenEvent::Adopted { .. }))
    };
    assert!(!hears(true));
    assert!(hears(false));
}

#[test]
fn another_life_of_this_nodes_own_name_is_not_waited_for() {
    let waits = |own_lives: bool| {
        let mut net = Net::new(&[1, 2, 3]);
        if !own_lives {
            net.without(Rule::OwnLives);
        }
        net.set(1, 1, 1, ServiceState::Offline);
        let two = net.serve(2);
        let TokenMessage::Claims(claims) = net.letters.pop_front().unwrap().2 else {
            panic!();
        };
        let Which::Slots(slots) = &claims[0].which else {
            panic!();
        };
        let mut former = node(2);
        former.generation.number -= 1;
        let place = Place {
            id: ServiceId {
                nonce: 99,
                ..two.clone()
            },
            node: former,
        };
        let answer = Answer {
            service_type: rooms(),
            claimant: two.clone(),
            round: claims[0].round,
            question: claims[0].question,
            differs: false,
            said: vec![(slots.clone(), Said::Ask(place))],
            standings: Vec::new(),
            members: Vec::new(),
        };
        let now = net.now;
        net.at(2)
            .handle_message(now, &node(1), TokenMessage::Answers(vec![answer]));
        net.collect();
        net.deliver_all();
        net.pass(100 * MILLI);
        net.held(&two).is_empty()
    };
    assert!(!waits(true));
    assert!(waits(false));
}

#[test]
fn what_was_lost_is_said_again() {
    let mut net = Net::new(&[1, 2]);
    let one = net.serve(1);
    net.deliver_all();
    let two = net.serve(2);
    // The first of each is lost: claims, answers, pieces, acknowledgements.
    for _ in 0..4 {
        net.letters.clear();
        let end = net.now + Duration::from_millis(1_100);
        while net.now < end && net.letters.is_empty() {
            net.now += MILLI;
            let now = net.now;
            for ownership in net.nodes.values_mut() {
                ownership.handle_timeout(now);
            }
            net.collect();
        }
        net.deliver_one(|_, _, _| true);
    }
    net.letters.clear();
    net.pass(Duration::from_secs(3));
    net.assert_rest();
    assert!(!net.held(&one).is_empty() && !net.held(&two).is_empty());
}

#[test]
fn who_is_up_and_mute_is_waited_for_as_long_as_patience_lasts() {
    let mut net = Net::new(&[1, 2, 3]);
    net.set(1, 1, 1, ServiceState::Offline);
    let two = net.serve(2);
    let mute = node(1);
    let start = net.now;
    while net.held(&two).is_empty() && net.now.since(start) < 2 * DEFAULT_PATIENCE {
        net.now += 10 * MILLI;
        let now = net.now;
        for ownership in net.nodes.values_mut() {
            ownership.handle_timeout(now);
        }
        net.collect();
        while net.deliver_one(|_, to, _| *to != mute) {}
        net.letters.clear();
    }
    let took = net.now.since(start);
    assert!(
        took >= DEFAULT_PATIENCE && took < 2 * DEFAULT_PATIENCE + MILLI,
        "{took:?}"
    );
    assert!(
        net.told
            .iter()
            .any(|(_, event)| matches!(event, TokenEvent::Impatient { peer, .. } if *peer == mute))
    );
}

#[test]
fn who_turns_out_to_know_no_tokens_is_not_waited_for() {
    let config = OwnershipConfig::new(DOWN).slots(SLOTS_HERE);
    let mut ownership = Ownership::new(config, node(1), 1);
    ownership.keep(&rooms());
    let now = Instant::from_micros(1);
    ownership.handle_up(now, &node(2), true);
    ownership.handle_synced(now);
    ownership.handle_view(now, &rooms(), &[entry(1, 1, 1, ServiceState::Online)]);
    let asked = std::iter::from_fn(|| ownership.poll_transmit()).count();
    assert!(asked > 0);
    let id = entry(1, 1, 1, ServiceState::Online).id().clone();
    assert_ne!(ownership.holding(&rooms(), &id, 0), Holding::Held);
    ownership.handle_up(now, &node(2), false);
    assert_eq!(ownership.holding(&rooms(), &id, 0), Holding::Held);
}
