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

mod claims;
mod messages;
mod outcomes;
mod transfers;

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
