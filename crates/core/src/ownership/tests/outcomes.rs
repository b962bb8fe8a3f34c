//! What is sent again, or comes late, after many other transfers have ended.

use super::*;

fn is_adopted(message: &TokenMessage) -> bool {
    matches!(message, TokenMessage::Ack(ack) if ack.outcome == Outcome::Adopted)
}

/// Node 1 serves, node 2 joins and takes its slots but for one, of which node 1 does not hear that it was adopted. Many more
/// go to and fro.
fn one_is_not_heard_of() -> (Net, ServiceId, ServiceId, u32) {
    let mut net = Net::new(&[1, 2]);
    let one = net.serve(1);
    net.deliver_all();
    let two = net.serve(2);
    let slot = net.slot_between(&one, 2);
    let is_of =
        |message: &TokenMessage| matches!(message, TokenMessage::Ack(ack) if ack.slot == slot);
    for version in 1..6 {
        for state in [ServiceState::Offline, ServiceState::Online] {
            while net.deliver_one(|_, _, message| !is_adopted(message) || !is_of(message)) {}
            net.set(
                2,
                1,
                2 * version + u64::from(state == ServiceState::Online),
                state,
            );
        }
    }
    while net.deliver_one(|_, _, message| !is_adopted(message) || !is_of(message)) {}
    assert_eq!(net.holding(&one, slot), Holding::Frozen);
    assert_eq!(net.holding(&two, slot), Holding::Held);
    let ended = |event: &TokenEvent| matches!(event, TokenEvent::Adopted { instance, .. } if *instance == two);
    let ended = net.told.iter().filter(|(_, event)| ended(event)).count();
    assert!(ended > 4 * WINDOW as usize + 1, "{ended}");
    net.letters.clear();
    (net, one, two, slot)
}

fn times_adopted(net: &Net, of: u32) -> usize {
    let is_it =
        |event: &TokenEvent| matches!(event, TokenEvent::Adopted { slot, .. } if *slot == of);
    net.told.iter().filter(|(_, event)| is_it(event)).count()
}

fn is_taken_back(net: &Net) -> bool {
    let mut told = net.told.iter();
    told.any(|(_, event)| matches!(event, TokenEvent::TakenBack { .. }))
}

#[test]
fn what_is_sent_again_is_answered_as_before_however_many_have_ended_since() {
    let (mut net, _, two, slot) = one_is_not_heard_of();
    net.pass(Duration::from_secs(2));
    net.assert_rest();
    assert_eq!(net.holding(&two, slot), Holding::Held);
    assert_eq!(times_adopted(&net, slot), 1);
    assert!(!is_taken_back(&net));
}

#[test]
fn who_was_taken_for_dead_hears_what_became_of_what_it_gave() {
    let (mut net, _, two, slot) = one_is_not_heard_of();
    let now = net.now;
    net.at(2).handle_down(now, &node(1));
    net.collect();
    net.at(2).handle_up(now, &node(1), true);
    net.views();
    net.pass(Duration::from_secs(2));
    net.assert_rest();
    assert_eq!(net.holding(&two, slot), Holding::Held);
    assert_eq!(times_adopted(&net, slot), 1);
    assert!(!is_taken_back(&net));
}

#[test]
fn what_was_on_its_way_for_long_is_not_heard() {
    let mut net = Net::new(&[1, 2]);
    net.serve(1);
    net.deliver_all();
    net.serve(2);
    let mut late = Vec::new();
    loop {
        late.extend(
            net.letters
                .iter()
                .filter(|(.., message)| is_piece(message))
                .cloned(),
        );
        if !net.deliver_one(|_, _, _| true) {
            break;
        }
    }
    net.pass(Duration::from_secs(1));
    net.assert_rest();
    // The last transfers of all are not known to be over: nothing was sent after them that said so.
    let newest = |message: &TokenMessage| match message {
        TokenMessage::Piece(piece) => piece.transfer,
        _ => 0,
    };
    let last = late
        .iter()
        .map(|(.., message)| newest(message))
        .max()
        .unwrap();
    late.retain(|(.., message)| newest(message) + u64::from(WINDOW) <= last);
    assert!(!late.is_empty());
    let (told, now) = (net.told.len(), net.now);
    for (from, _, message) in late {
        net.at(2).handle_message(now, &from, message);
    }
    net.collect();
    assert_eq!((net.told.len(), net.letters.len()), (told, 0));
    net.assert_rest();
}
