//! Each rule by a story that can be told by hand. What no story shows is the simulator's to find.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::keyed::OFFER;
use super::message::{Answer, Claim, MAX_PIECE_BYTES, Offer, Piece, Place, Said, Standing, Which};
use super::*;
use crate::entry::{Record, ServiceState, Weight};
use crate::id::{Generation, InstanceName, NodeName};
use crate::key::SLOTS;
use crate::rules::Rule;

mod outcomes;

const MILLI: Duration = Duration::from_millis(1);
const DOWN: Duration = Duration::from_millis(1_500);
const SLOTS_HERE: u32 = 32;

fn rooms() -> ServiceType {
    ServiceType::try_new("rooms").unwrap()
}

fn node(number: u64) -> NodeId {
    NodeId {
        name: NodeName::try_new(format!("n{number}")).unwrap(),
        generation: Generation {
            number: 1_000 + number,
            random: number,
        },
    }
}

/// An entry of node `number`, in its `version`.
fn entry(number: u64, sequence: u64, version: u64, state: ServiceState) -> Arc<ServiceInfo> {
    let record = Record {
        sequence,
        version,
        previous: None,
        service_type: rooms(),
        name: InstanceName::try_new(format!("n{number}/{sequence}")).unwrap(),
        state,
        weight: Weight::default(),
        protocol_version: Some(1),
        metadata: None,
    };
    let node = node(number);
    Arc::new(ServiceInfo::from_record(
        &node.name,
        node.generation,
        number,
        record,
    ))
}

/// Nodes whose messages travel when the test says so.
struct Net {
    now: Instant,
    nodes: BTreeMap<u64, Ownership>,
    letters: VecDeque<(NodeId, NodeId, TokenMessage)>,
    states: BTreeMap<(ServiceId, u32), Vec<(Bytes, Bytes)>>,
    /// Slots whose states cannot be given.
    unfit: BTreeSet<u32>,
    /// Slots whose states are not given yet, with what was asked for.
    late: BTreeMap<u32, Option<(u64, u64)>>,
    told: Vec<(u64, TokenEvent)>,
    /// Which instances there are, by every view.
    services: BTreeMap<(u64, u64), Arc<ServiceInfo>>,
}

impl Net {
    /// Nodes that know each other, are synced, and have no instance yet.
    fn new(numbers: &[u64]) -> Net {
        let mut net = Net {
            now: Instant::from_micros(1_000_000),
            nodes: BTreeMap::new(),
            letters: VecDeque::new(),
            states: BTreeMap::new(),
            unfit: BTreeSet::new(),
            late: BTreeMap::new(),
            told: Vec::new(),
            services: BTreeMap::new(),
        };
        for number in numbers {
            net.start(*number);
            net.sync(*number);
        }
        net
    }

    fn start(&mut self, number: u64) {
        let config = OwnershipConfig::new(DOWN).slots(SLOTS_HERE).piece_bytes(64);
        let mut ownership = Ownership::new(config, node(number), number);
        ownership.keep(&rooms());
        for (other, there) in &mut self.nodes {
            there.handle_up(self.now, &node(number), true);
            ownership.handle_up(self.now, &node(*other), true);
        }
        self.nodes.insert(number, ownership);
        self.views();
    }

    fn sync(&mut self, number: u64) {
        let now = self.now;
        self.at(number).handle_synced(now);
        self.collect();
    }

    fn at(&mut self, number: u64) -> &mut Ownership {
        self.nodes.get_mut(&number).unwrap()
    }

    fn without(&mut self, rule: Rule) {
        for ownership in self.nodes.values_mut() {
            let mut rules = ownership.rules();
            rules.turn_off(rule);
            ownership.set_rules(rules);
        }
    }

    fn serve(&mut self, number: u64) -> ServiceId {
        self.set(number, 1, 1, ServiceState::Online)
    }

    fn set(&mut self, number: u64, sequence: u64, version: u64, state: ServiceState) -> ServiceId {
        let info = entry(number, sequence, version, state);
        let id = info.id().clone();
        self.services.insert((number, sequence), info);
        self.views();
        id
    }

    fn views(&mut self) {
        let services: Vec<_> = self.services.values().cloned().collect();
        let now = self.now;
        for ownership in self.nodes.values_mut() {
            ownership.handle_view(now, &rooms(), &services);
        }
        self.collect();
    }

    fn kill(&mut self, number: u64) {
        self.nodes.remove(&number);
        self.services.retain(|(owner, _), _| *owner != number);
        let now = self.now;
        for ownership in self.nodes.values_mut() {
            ownership.handle_down(now, &node(number));
        }
        self.views();
    }

    fn collect(&mut self) {
        let now = self.now;
        for (number, ownership) in &mut self.nodes {
            loop {
                let mut busy = false;
                while let Some((to, message)) = ownership.poll_transmit() {
                    busy = true;
                    let bytes = message.encode();
                    let message = TokenMessage::decode(&bytes).unwrap();
                    self.letters.push_back((node(*number), to, message));
                }
                while let Some(event) = ownership.poll_event() {
                    busy = true;
                    match &event {
                        TokenEvent::Give {
                            instance,
                            slot,
                            transfer,
                            ..
                        } => {
                            if self.unfit.contains(slot) {
                                ownership.keep_back(now, *transfer);
                                self.told.push((*number, event));
                                continue;
                            }
                            if let Some(late) = self.late.get_mut(slot) {
                                *late = Some((*number, *transfer));
                                self.told.push((*number, event));
                                continue;
                            }
                            let states = self.states.get(&(instance.clone(), *slot)).cloned();
                            ownership.give(now, *transfer, &states.unwrap_or_default());
                        }
                        TokenEvent::Adopted {
                            instance,
                            slot,
                            states,
                            ..
                        } => {
                            self.states
                                .insert((instance.clone(), *slot), states.clone());
                        }
                        TokenEvent::Released { instance, slot, .. } => {
                            self.states.remove(&(instance.clone(), *slot));
                        }
                        _ => {}
                    }
                    self.told.push((*number, event));
                }
                if !busy {
                    break;
                }
            }
        }
    }

    /// Delivers the first letter that the test lets through.
    fn deliver_one(&mut self, lets: impl Fn(&NodeId, &NodeId, &TokenMessage) -> bool) -> bool {
        let Some(at) = self
            .letters
            .iter()
            .position(|(from, to, message)| lets(from, to, message))
        else {
            return false;
        };
        let (from, to, message) = self.letters.remove(at).unwrap();
        let now = self.now;
        let receiver = self
            .nodes
            .iter_mut()
            .find(|(number, _)| node(**number) == to);
        if let Some((_, receiver)) = receiver {
            receiver.handle_message(now, &from, message);
        }
        self.collect();
        true
    }

    fn deliver_all(&mut self) {
        while self.deliver_one(|_, _, _| true) {}
    }

    /// Lets time pass, and everything arrive.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += MILLI;
            let now = self.now;
            for ownership in self.nodes.values_mut() {
                ownership.handle_timeout(now);
            }
            self.collect();
            self.deliver_all();
        }
    }

    fn holding(&self, id: &ServiceId, slot: u32) -> Holding {
        let number = id.nonce;
        self.nodes.get(&number).map_or(Holding::Away, |ownership| {
            ownership.holding(&rooms(), id, slot)
        })
    }

    fn held(&self, id: &ServiceId) -> Vec<u32> {
        (0..SLOTS_HERE)
            .filter(|slot| self.holding(id, *slot) == Holding::Held)
            .collect()
    }

    /// Every slot is held by its first alone, and nothing is under way.
    fn assert_rest(&self) {
        for (number, ownership) in &self.nodes {
            assert_eq!(ownership.unrest(), None, "n{number}");
            for slot in 0..SLOTS_HERE {
                let first = ownership.first(&rooms(), slot).cloned();
                let first = first.unwrap();
                assert_eq!(
                    self.holding(&first, slot),
                    Holding::Held,
                    "slot {slot} at {first}"
                );
            }
        }
        let ids: Vec<ServiceId> = self
            .services
            .values()
            .map(|info| info.id().clone())
            .collect();
        let held: usize = ids.iter().map(|id| self.held(id).len()).sum();
        assert_eq!(held, SLOTS_HERE as usize);
    }

    /// A slot of the one that would be the other's if that were online.
    fn slot_between(&self, holder: &ServiceId, next: u64) -> u32 {
        let services = [
            self.services[&(holder.nonce, holder.sequence)].clone(),
            entry(next, 1, 1, ServiceState::Online),
        ];
        let mut ranks = Ranks::default();
        ranks.set_view(&services);
        let mut slots = 0..SLOTS_HERE;
        slots
            .find(|slot| {
                ranks
                    .first(*slot)
                    .is_some_and(|first| first.id.nonce == next)
            })
            .unwrap()
    }
}

fn is_piece(message: &TokenMessage) -> bool {
    matches!(message, TokenMessage::Piece(_))
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

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
fn calls_run_where_the_slot_is_held_wait_where_it_is_claimed_and_are_told_where_to_go_elsewhere() {
    let mut net = Net::new(&[1, 2, 3]);
    let one = net.serve(1);
    let two = net.set(2, 1, 1, ServiceState::Offline);
    net.deliver_all();
    assert_eq!(
        net.nodes[&1].gate(&rooms(), 0, &one),
        Gate::Run(one.clone())
    );
    assert_eq!(
        net.nodes[&2].gate(&rooms(), 0, &two),
        Gate::Moved(Some(one.clone()))
    );
    assert_eq!(
        net.nodes[&3].gate(&rooms(), 0, &one),
        Gate::Moved(Some(one.clone()))
    );
    net.set(2, 1, 2, ServiceState::Online);
    let claimed =
        (0..SLOTS_HERE).find(|slot| net.holding(&two, *slot) == Holding::Claiming { copy: false });
    assert_eq!(
        net.nodes[&2].gate(&rooms(), claimed.unwrap(), &two),
        Gate::Park(two.clone())
    );
    let unknown = ServiceType::try_new("others").unwrap();
    assert_eq!(net.nodes[&2].gate(&unknown, 0, &two), Gate::Moved(None));
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
fn a_type_that_is_not_kept_costs_nothing_and_is_answered_in_few_bytes() {
    let mut net = Net::new(&[1, 2]);
    net.nodes.get_mut(&1).unwrap().types.clear();
    net.set(1, 1, 1, ServiceState::Offline);
    net.serve(2);
    net.deliver_one(|_, _, _| true);
    assert!(net.at(1).types.is_empty());
    let answer = net
        .letters
        .iter()
        .find(|(from, _, _)| *from == node(1))
        .unwrap();
    assert!(answer.2.encode().len() < 64);
    net.deliver_all();
    net.assert_rest_of(2);
}

impl Net {
    fn assert_rest_of(&self, number: u64) {
        assert_eq!(self.nodes[&number].unrest(), None);
    }
}

#[test]
fn whoever_holds_the_whole_key_space_keeps_one_run() {
    let mut ownership = Ownership::new(OwnershipConfig::new(DOWN).slots(SLOTS as u32), node(1), 1);
    ownership.keep(&rooms());
    let now = Instant::from_micros(1);
    ownership.handle_synced(now);
    ownership.handle_view(now, &rooms(), &[entry(1, 1, 1, ServiceState::Online)]);
    let instance = &ownership.types[&rooms()].instances[0];
    assert_eq!((instance.held.runs(), instance.held.len()), (1, SLOTS));
    assert!(instance.claims.is_empty() && instance.groups.is_empty() && instance.extras.is_empty());
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

mod messages {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = TokenMessage::decode(&bytes);
        }
    }

    #[test]
    fn what_is_over_a_bound_does_not_decode() {
        let piece = |number, of, bytes| {
            TokenMessage::Piece(Piece {
                service_type: rooms(),
                transfer: 1,
                since: 1,
                from: entry(1, 1, 1, ServiceState::Online).id().clone(),
                to: entry(2, 1, 1, ServiceState::Online).id().clone(),
                round: 1,
                slot: 1,
                piece: number,
                of,
                bytes: Bytes::from(vec![0; bytes]),
            })
        };
        assert!(TokenMessage::decode(&piece(0, 1, 10).encode()).is_ok());
        assert!(TokenMessage::decode(&piece(1, 1, 10).encode()).is_err());
        assert!(TokenMessage::decode(&piece(0, 0, 10).encode()).is_err());
        assert!(TokenMessage::decode(&piece(0, message::MAX_PIECES + 1, 10).encode()).is_err());
        assert!(TokenMessage::decode(&piece(0, 1, MAX_PIECE_BYTES + 1).encode()).is_err());
        let mut standing = Standing::of(&entry(1, 1, 1, ServiceState::Online));
        standing.weight = 0;
        let offer = Offer {
            service_type: rooms(),
            from: standing,
            to: entry(2, 1, 1, ServiceState::Online).id().clone(),
            slots: SlotSet::one(1),
        };
        assert!(TokenMessage::decode(&TokenMessage::Offers(vec![offer]).encode()).is_err());
    }
}
