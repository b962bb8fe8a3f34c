use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::entry::{Accepts, Codec, Metadata, Record, ServiceState, Weight};
use crate::id::{Generation, NodeName, Zone};
use crate::key::SLOTS;
use crate::placement::name_hash;

/// One instance, by hand.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    node: String,
    name: String,
    pub(super) weight: u16,
    zone: Option<String>,
    state: ServiceState,
    accepts: Option<Accepts>,
}

impl Instance {
    pub(super) fn new(name: &str) -> Self {
        Instance {
            node: format!("node of {name}"),
            name: name.to_owned(),
            weight: 100,
            zone: None,
            state: ServiceState::Online,
            accepts: None,
        }
    }

    pub(super) fn info(&self, sequence: u64) -> Arc<ServiceInfo> {
        let zone = self.zone.as_ref().map(|zone| Zone::try_new(zone).unwrap());
        let record = Record {
            sequence,
            version: sequence,
            previous: None,
            service_type: service_type(),
            name: InstanceName::try_new(&self.name).unwrap(),
            state: self.state,
            weight: Weight::try_new(self.weight).unwrap(),
            protocol_version: self.accepts.map(|accepts| *accepts.versions().end()),
            metadata: Some(Box::new(
                Metadata::try_new(zone, None, BTreeMap::new())
                    .unwrap()
                    .with_accepts(self.accepts),
            )),
        };
        let node = NodeName::try_new(&self.node).unwrap();
        Arc::new(ServiceInfo::from_record(
            &node,
            Generation::default(),
            1,
            record,
        ))
    }
}

fn service_type() -> ServiceType {
    ServiceType::try_new("uploader").unwrap()
}

pub(super) fn budget() -> Arc<TableBudget> {
    TableBudget::new(1 << 30)
}

pub(super) fn view_of(infos: &[Arc<ServiceInfo>], budget: Arc<TableBudget>) -> View {
    let joins: Vec<_> = infos
        .iter()
        .map(|info| (None, Some(Arc::clone(info))))
        .collect();
    View::with_budget(service_type(), budget).changed(1, &joins)
}

fn named(names: &[&str]) -> View {
    let infos: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| Instance::new(name).info(at as u64))
        .collect();
    view_of(&infos, budget())
}

pub(super) fn owner_names(view: &View, slot: usize, n: usize) -> Vec<String> {
    view.owners(key_in(slot), n)
        .iter()
        .map(|info| info.name().to_string())
        .collect()
}

pub(super) fn slot(index: usize) -> Slot {
    Slot::new(index).unwrap()
}

pub(super) fn key_in(index: usize) -> Key {
    Key::in_slot(slot(index))
}

/// The specification, read off `placement.rs` line by line.
fn by_definition(view: &View, slot: Slot) -> Vec<String> {
    let salt = salt(slot);
    let mut order: Vec<(Candidate, u64, String)> = view
        .online()
        .map(|info| {
            let candidate = Candidate {
                hash: name_hash(info.name()),
                weight: info.weight().value(),
            };
            (
                candidate,
                draw(candidate.hash, salt),
                info.name().to_string(),
            )
        })
        .collect();
    order.sort_by(|a, b| prefer((a.0, a.1), (b.0, b.1)).then(a.2.cmp(&b.2)));
    order.into_iter().map(|(_, _, name)| name).collect()
}

#[test]
fn asking_for_more_than_there_are_gives_all() {
    for count in 1..9 {
        let names: Vec<String> = (0..count).map(|at| format!("n{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let view = named(&names);
        assert_eq!(owner_names(&view, 7, 100).len(), count);
        assert_eq!(owner_names(&view, 7, 0).len(), 0);
    }
}

#[test]
fn nobody_owns_a_key_of_an_empty_view() {
    let view = View::empty(service_type());
    assert!(view.owner("file.png").is_none());
    assert!(view.owners("file.png", 3).is_empty());
    assert!(view.owners("file.png", 30).is_empty());
}

#[test]
fn only_online_services_own_keys() {
    let mut draining = Instance::new("draining");
    draining.state = ServiceState::Draining;
    let mut offline = Instance::new("offline");
    offline.state = ServiceState::Offline;
    let infos = [
        Instance::new("online").info(1),
        draining.info(2),
        offline.info(3),
    ];
    let view = view_of(&infos, budget());
    assert_eq!(view.services().len(), 3);
    assert_eq!(view.online_count(), 1);
    assert!((0..100).all(|slot| owner_names(&view, slot, 5) == ["online"]));
}

#[test]
fn of_two_with_one_name_the_smaller_node_owns_and_the_other_stands_by_right_behind() {
    let mut twin = Instance::new("x");
    twin.node = "a".to_owned();
    let mut other = twin.clone();
    other.node = "b".to_owned();
    let infos = [
        other.info(1),
        twin.info(2),
        Instance::new("y").info(3),
        Instance::new("z").info(4),
        Instance::new("u").info(5),
    ];
    let view = view_of(&infos, budget());
    for slot in 0..1000 {
        let owners = view.owners(key_in(slot), 5);
        let at = owners
            .iter()
            .position(|info| info.node().as_str() == "a")
            .unwrap();
        assert_eq!(owners[at + 1].node().as_str(), "b");
        assert_eq!(owners.len(), 5);
    }
    assert!(view.is_standby(&infos[0]));
    assert!(!view.is_standby(&infos[1]));
}

#[test]
fn spread_takes_at_most_one_of_each_node_or_zone_in_the_same_order() {
    let infos: Vec<_> = (0..12)
        .map(|at| {
            let mut instance = Instance::new(&format!("i{at}"));
            instance.node = format!("node{}", at % 4);
            instance.zone = Some(format!("zone{}", at % 2));
            instance.info(at)
        })
        .collect();
    let view = view_of(&infos, budget());
    for slot in 0..500 {
        let key = key_in(slot);
        let all = view.owners(key, 12);
        for (spread, most) in [(Spread::Nodes, 4), (Spread::Zones, 2)] {
            let chosen = view.owners_spread(key, 12, spread);
            assert_eq!(chosen.len(), most);
            assert_eq!(chosen[0].id(), all[0].id());
            let places = chosen
                .iter()
                .map(|info| all.iter().position(|other| other.id() == info.id()));
            assert!(places.is_sorted_by(|a, b| a < b));
        }
        assert_eq!(view.owners_spread(key, 2, Spread::Nodes).len(), 2);
    }
}

#[test]
fn without_a_budget_for_tables_the_owners_are_the_same() {
    let infos: Vec<_> = (0..20)
        .map(|at| Instance::new(&format!("i{at}")).info(at))
        .collect();
    let with = view_of(&infos, budget());
    let without = view_of(&infos, TableBudget::new(0));
    for slot in 0..2000 {
        assert_eq!(owner_names(&with, slot, 4), owner_names(&without, slot, 4));
    }
}

#[test]
fn names_beyond_the_seats_own_nothing_until_one_is_vacant() {
    let joins: Vec<_> = (0..candidates::MAX_CANDIDATES as u64 + 2)
        .map(|at| (None, Some(Instance::new(&format!("i{at:06}")).info(at))))
        .collect();
    let view = View::with_budget(service_type(), budget()).changed(1, &joins);
    assert_eq!(view.services().len(), candidates::MAX_CANDIDATES + 2);
    assert_eq!(view.online_count(), candidates::MAX_CANDIDATES);
    let gone: Vec<_> = view.services()[..2]
        .iter()
        .map(|info| (Some(Arc::clone(info)), None))
        .collect();
    let view = view.changed(2, &gone);
    assert_eq!(view.online_count(), candidates::MAX_CANDIDATES - 2);
    let (_, back) = &joins[0];
    let view = view.changed(3, &[(None, back.clone())]);
    assert_eq!(view.online_count(), candidates::MAX_CANDIDATES - 1);
}

/// Most-loaded over mean for sets of random names: median, and 95th percentile.
fn balance(instances: usize, sets: u64) -> (f64, f64) {
    let mut loads: Vec<f64> = (0..sets)
        .map(|set| {
            let hashes: Vec<u64> = (0..instances)
                .map(|at| {
                    let name = format!("host-{set}-{at}/0");
                    name_hash(&InstanceName::try_new(name).unwrap())
                })
                .collect();
            let mut counts = vec![0_u32; instances];
            for index in 0..SLOTS {
                let salt = salt(slot(index));
                let owner = (0..instances)
                    .max_by_key(|at| draw(hashes[*at], salt))
                    .unwrap();
                counts[owner] += 1;
            }
            let most = counts.iter().max().copied().unwrap_or_default();
            f64::from(most) * instances as f64 / SLOTS as f64
        })
        .collect();
    loads.sort_by(f64::total_cmp);
    (loads[loads.len() / 2], loads[loads.len() * 95 / 100])
}

/// What a thousand sets give is in `docs/PERFORMANCE.md`; these are too few for its bounds.
#[test]
fn equal_weights_share_alike() {
    let (median, p95) = balance(10, 20);
    assert!(median <= 1.008 && p95 <= 1.011, "{median} {p95}");
    let (median, p95) = balance(100, 3);
    assert!(median <= 1.035 && p95 <= 1.045, "{median} {p95}");
}

fn instances(most: usize) -> impl Strategy<Value = Vec<Instance>> {
    let instance = (
        "[a-z]{1,3}",
        "[a-c]",
        prop_oneof![Just(100_u16), 1_u16..=1000],
    );
    proptest::collection::btree_map(
        (instance.0, instance.1),
        (instance.2, proptest::bool::weighted(0.9)),
        1..most,
    )
    .prop_map(|set| {
        set.into_iter()
            .map(|((name, node), (weight, online))| Instance {
                accepts: None,
                node,
                name,
                weight,
                zone: None,
                state: if online {
                    ServiceState::Online
                } else {
                    ServiceState::Offline
                },
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_joins_does_not_matter(
        set in instances(30).prop_flat_map(|set| (Just(set.clone()), Just(set).prop_shuffle())),
        slots in proptest::collection::vec(0..SLOTS, 20),
    ) {
        let (one, other) = set;
        let one: Vec<_> = one.iter().map(|instance| instance.info(1)).collect();
        let mut joined = View::with_budget(service_type(), budget());
        for (at, instance) in other.iter().enumerate() {
            joined = joined.changed(at as u64 + 1, &[(None, Some(instance.info(1)))]);
            // Looked up while it grows, so that tables are carried over.
            for slot in &slots {
                joined.owner(key_in(*slot));
            }
        }
        let at_once = view_of(&one, budget());
        for slot in slots {
            for n in [1, 3, 4, 9] {
                prop_assert_eq!(owner_names(&at_once, slot, n), owner_names(&joined, slot, n));
            }
        }
    }

    #[test]
    fn tables_direct_scores_and_the_definition_agree_through_any_changes(
        set in instances(24),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0_u16..=1000), 1..20),
        slots in proptest::collection::vec(0..SLOTS, 30),
    ) {
        let mut infos: Vec<_> = set.iter().enumerate().map(|(at, instance)| instance.info(at as u64)).collect();
        let mut view = view_of(&infos, budget());
        let mut gone: Vec<Arc<ServiceInfo>> = Vec::new();
        for (version, (which, weight)) in changes.into_iter().enumerate() {
            for slot in &slots {
                view.owner(key_in(*slot));
            }
            let at = which.index(infos.len());
            let change = if weight == 0 && infos.len() > 1 {
                let info = infos.swap_remove(at);
                gone.push(Arc::clone(&info));
                (Some(info), None)
            } else if weight % 3 == 0 && let Some(back) = gone.pop() {
                infos.push(Arc::clone(&back));
                (None, Some(back))
            } else {
                let before = Arc::clone(&infos[at]);
                let mut record = before.to_record();
                record.weight = Weight::try_new(weight.max(1)).unwrap();
                record.version += 1;
                let after = Arc::new(ServiceInfo::from_record(before.node(), Generation::default(), 1, record));
                infos[at] = Arc::clone(&after);
                (Some(before), Some(after))
            };
            view = view.changed(version as u64 + 2, &[change]);
            let fresh = view_of(&infos, TableBudget::new(0));
            prop_assert_eq!(view.services().len(), infos.len());
            for slot in &slots {
                prop_assert_eq!(owner_names(&view, *slot, 4), owner_names(&fresh, *slot, 4));
                let mut all = owner_names(&view, *slot, 100);
                prop_assert_eq!(&all[..all.len().min(4)], &owner_names(&view, *slot, 4)[..]);
                all.dedup();
                let mut expected = by_primaries(&view, super::tests::slot(*slot));
                expected.dedup();
                prop_assert_eq!(all, expected);
            }
        }
    }

    #[test]
    fn changes_at_once_lead_where_they_lead_one_by_one(
        set in instances(24),
        batches in proptest::collection::vec(
            proptest::collection::vec((any::<prop::sample::Index>(), 0_u16..=1000, 0..4_u8), 1..8),
            1..8,
        ),
        slots in proptest::collection::vec(0..SLOTS, 20),
    ) {
        let mut infos: Vec<_> = set.iter().enumerate().map(|(at, instance)| instance.info(at as u64)).collect();
        let mut at_once = view_of(&infos, budget());
        let mut one_by_one = view_of(&infos, budget());
        let mut version = 1;
        for batch in batches {
            let mut changes = Vec::new();
            for (which, weight, what) in batch {
                if infos.is_empty() {
                    break;
                }
                let at = which.index(infos.len());
                let before = Arc::clone(&infos[at]);
                changes.push(if what == 0 {
                    infos.swap_remove(at);
                    (Some(before), None)
                } else if what == 1 {
                    // As a new service under the name of another one.
                    let mut record = before.to_record();
                    version += 1;
                    record.sequence = 1_000 + version;
                    let twin = Arc::new(ServiceInfo::from_record(before.node(), Generation::default(), 1, record));
                    infos.push(Arc::clone(&twin));
                    (None, Some(twin))
                } else {
                    let mut record = before.to_record();
                    version += 1;
                    record.version = version;
                    record.weight = Weight::try_new(weight / 500 + 1).unwrap();
                    record.state = if what == 2 { ServiceState::Online } else { ServiceState::Draining };
                    let after = Arc::new(ServiceInfo::from_record(before.node(), Generation::default(), 1, record));
                    infos[at] = Arc::clone(&after);
                    (Some(before), Some(after))
                });
            }
            for slot in &slots {
                at_once.owner(key_in(*slot));
                one_by_one.owner(key_in(*slot));
            }
            version += 1;
            at_once = at_once.changed(version, &changes);
            for change in &changes {
                version += 1;
                one_by_one = one_by_one.changed(version, std::slice::from_ref(change));
            }
            let fresh = view_of(&infos, TableBudget::new(0));
            prop_assert_eq!(at_once.services(), fresh.services());
            prop_assert_eq!(one_by_one.services(), fresh.services());
            prop_assert_eq!(at_once.online_count(), fresh.online().count());
            prop_assert_eq!(one_by_one.online_count(), fresh.online().count());
            for slot in &slots {
                for n in [1, 3, 4, 50] {
                    let expected = owner_names(&fresh, *slot, n);
                    prop_assert_eq!(&owner_names(&at_once, *slot, n), &expected);
                    prop_assert_eq!(&owner_names(&one_by_one, *slot, n), &expected);
                }
            }
        }
    }

    #[test]
    fn removing_an_instance_moves_its_keys_alone_to_their_second_owners(
        set in instances(20),
        which in any::<prop::sample::Index>(),
        slots in proptest::collection::vec(0..SLOTS, 50),
    ) {
        let infos: Vec<_> = set.iter().enumerate().map(|(at, instance)| instance.info(at as u64)).collect();
        let gone = Arc::clone(&infos[which.index(infos.len())]);
        let before = view_of(&infos, budget());
        let after = before.changed(2, &[(Some(Arc::clone(&gone)), None)]);
        for slot in slots {
            let key = key_in(slot);
            let was = before.owners(key, 2);
            let is = after.owner(key);
            let expected = if was.first().is_some_and(|info| info.id() == gone.id()) {
                was.get(1)
            } else {
                was.first()
            };
            // A standby that steps up may bring a weight of its own.
            let twin = infos.iter().any(|info| info.name() == gone.name() && info.id() != gone.id());
            prop_assert!(twin || expected.map(|info| info.id()) == is.map(|info| info.id()));
        }
    }

    #[test]
    fn a_larger_weight_only_attracts_keys(
        set in instances(20),
        which in any::<prop::sample::Index>(),
        more in 1_u16..900,
        slots in proptest::collection::vec(0..SLOTS, 50),
    ) {
        let infos: Vec<_> = set.iter().enumerate().map(|(at, instance)| instance.info(at as u64)).collect();
        let light = Arc::clone(&infos[which.index(infos.len())]);
        let mut record = light.to_record();
        record.weight = Weight::try_new((record.weight.value() + more).min(1000)).unwrap();
        let heavy = Arc::new(ServiceInfo::from_record(light.node(), Generation::default(), 1, record));
        let before = view_of(&infos, budget());
        let after = before.changed(2, &[(Some(Arc::clone(&light)), Some(heavy))]);
        for slot in slots {
            let was = before.owner(key_in(slot)).map(|info| info.name());
            let is = after.owner(key_in(slot)).map(|info| info.name());
            prop_assert!(was == is || is == Some(light.name()));
        }
    }
}

/// The definition over one instance a name, standbys right behind.
fn by_primaries(view: &View, slot: Slot) -> Vec<String> {
    let mut seen: BTreeMap<&InstanceName, &Arc<ServiceInfo>> = BTreeMap::new();
    for info in view.online() {
        seen.entry(info.name()).or_insert(info);
    }
    let primaries: Vec<_> = seen.values().map(|info| Arc::clone(info)).collect();
    by_definition(&view_of(&primaries, TableBudget::new(0)), slot)
}

/// What an instance of each kind takes; none for an external endpoint.
const KINDS: [Option<Accepts>; 5] = [
    None,
    Some(Accepts::only(1)),
    Some(Accepts::new(1..=2, Codec::Postcard)),
    Some(Accepts::new(2..=3, Codec::Postcard)),
    Some(Accepts::new(1..=3, Codec::Json)),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn keys_are_placed_among_those_alone_that_take_the_callers_messages_through_any_changes(
        steps in proptest::collection::vec(
            proptest::collection::vec((0_usize..6, 0_usize..7, any::<bool>()), 1..4),
            1..12,
        ),
    ) {
        let budget = budget();
        let mut view = View::with_budget(service_type(), Arc::clone(&budget));
        let mut now: BTreeMap<usize, Arc<ServiceInfo>> = BTreeMap::new();
        for (version, step) in (1..).zip(steps) {
            let mut changes = Vec::new();
            for (who, kind, online) in step {
                let before = now.remove(&who);
                let after = KINDS.get(kind).map(|accepts| {
                    let mut instance = Instance::new(&format!("i{who}"));
                    instance.accepts = *accepts;
                    if !online {
                        instance.state = ServiceState::Draining;
                    }
                    instance.info(who as u64)
                });
                if let Some(after) = &after {
                    now.insert(who, Arc::clone(after));
                }
                changes.push((before, after));
            }
            view = view.changed(version, &changes);
            for (wanted, codec) in [(1, Codec::Postcard), (2, Codec::Postcard), (3, Codec::Json)] {
                let takes = |info: &&Arc<ServiceInfo>| {
                    info.accepts().is_some_and(|accepts| accepts.takes(wanted, codec))
                };
                let online = || now.values().filter(|info| info.is_online());
                let those: Vec<_> = online().filter(takes).cloned().collect();
                // Where nobody takes them, whoever would own the key says so.
                let expected = if those.is_empty() {
                    online().cloned().collect()
                } else {
                    those
                };
                let expected = view_of(&expected, Arc::clone(&budget));
                let found = view.accepting(wanted, codec);
                for key in 0_u64..50 {
                    prop_assert_eq!(found.owner(key), expected.owner(key));
                    prop_assert_eq!(found.owners(key, 9), expected.owners(key, 9));
                }
            }
        }
    }
}

#[test]
fn a_view_whose_instances_take_the_same_messages_is_not_narrowed() {
    let mut instances = [Instance::new("a"), Instance::new("b"), Instance::new("c")];
    for instance in &mut instances {
        instance.accepts = Some(Accepts::new(1..=2, Codec::Postcard));
    }
    // One of another version that owns nothing changes nothing.
    instances[2].accepts = Some(Accepts::only(1));
    instances[2].state = ServiceState::Offline;
    let infos: Vec<_> = (0..)
        .zip(&instances)
        .map(|(at, one)| one.info(at))
        .collect();
    let view = view_of(&infos, budget());
    for version in [1, 2, 9] {
        assert!(std::ptr::eq(
            view.accepting(version, Codec::Postcard),
            &view
        ));
    }
}

#[test]
fn types_with_states_are_placed_by_the_slots_of_tokens_and_apart_from_those_without() {
    let keyed = Accepts::only(1).keyed();
    let of = |name: &str, weight, accepts| {
        let mut instance = Instance::new(name);
        (instance.weight, instance.accepts) = (weight, Some(accepts));
        instance
    };
    let instances = [
        of("a", 100, keyed),
        of("b", 300, keyed),
        of("c", 100, keyed),
        of("plain", 100, Accepts::only(1)),
    ];
    let infos: Vec<_> = (0..)
        .zip(&instances)
        .map(|(at, one)| one.info(at))
        .collect();
    let view = view_of(&infos[..3], budget());
    assert!(view.is_keyed());
    assert!(std::ptr::eq(view.keyed().unwrap(), &view));
    let mixed = view_of(&infos, budget());
    assert!(!mixed.is_keyed());
    let part = mixed.keyed().unwrap();
    assert!(part.is_keyed());
    let plain = mixed.accepting(1, Codec::Postcard);
    let mut first_of = crate::ownership::ranks_of(&infos[..3]);
    for index in (0..SLOTS).step_by(97) {
        let slot = Slot::new(index).unwrap();
        let owner = view.owner(Key::in_slot(slot)).unwrap();
        assert_eq!(view.owner(Key::in_slot(slot.keyed())), Some(owner));
        assert_eq!(part.owner(Key::in_slot(slot)), Some(owner));
        assert_eq!(plain.owner(Key::in_slot(slot)), Some(&infos[3]));
        // Who is first for a token owns its keys.
        assert_eq!(first_of(slot.keyed_index()).as_ref(), Some(owner.id()));
    }
    let gone: Vec<_> = vec![(Some(Arc::clone(&infos[3])), None)];
    assert!(mixed.changed(2, &gone).is_keyed());
    assert!(view_of(&infos[3..], budget()).keyed().is_none());
}
