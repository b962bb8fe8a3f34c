use std::sync::Arc;

use super::whatif::{PlanError, PlannedChange};
use super::{Spread, View};
use crate::entry::{Record, ServiceInfo, ServiceState, Weight};
use crate::id::{Generation, InstanceName, NodeName, ServiceType};
use crate::key::{Key, SLOTS, Slot};

fn info(node: &str, name: &str, weight: u16, state: ServiceState) -> Arc<ServiceInfo> {
    let record = Record {
        sequence: 1,
        version: 1,
        previous: None,
        service_type: chat(),
        name: named(name),
        state,
        weight: Weight::try_new(weight).unwrap(),
        protocol_version: None,
        metadata: None,
    };
    let node = NodeName::try_new(node).unwrap();
    Arc::new(ServiceInfo::from_record(
        &node,
        Generation::default(),
        1,
        record,
    ))
}

fn chat() -> ServiceType {
    ServiceType::try_new("chat").unwrap()
}

fn named(name: &str) -> InstanceName {
    InstanceName::try_new(name).unwrap()
}

fn mixed() -> View {
    View::of(
        chat(),
        [
            info("a", "chat-1", 100, ServiceState::Online),
            info("b", "chat-2", 250, ServiceState::Online),
            info("c", "chat-3", 100, ServiceState::Offline),
            info("d", "chat-4", 400, ServiceState::Online),
            info("e", "chat-4", 100, ServiceState::Online),
            info("f", "chat-5", 100, ServiceState::Draining),
        ],
    )
}

/// Some keys of every part of the key space.
fn keys() -> impl Iterator<Item = Key> {
    (0..SLOTS)
        .step_by(401)
        .filter_map(Slot::new)
        .map(Key::in_slot)
}

#[test]
fn what_was_planned_is_what_comes_key_by_key() {
    let view = mixed();
    let planned = view
        .with(&[
            PlannedChange::Remove(named("chat-2")),
            PlannedChange::Weigh(named("chat-1"), Weight::try_new(300).unwrap()),
            PlannedChange::State(named("chat-3"), ServiceState::Online),
            PlannedChange::Add {
                name: named("chat-9"),
                weight: Weight::default(),
                node: NodeName::try_new("b").unwrap(),
            },
        ])
        .unwrap();
    // The same by the way that changes take in a running node.
    let was = |name: &str| {
        let found = view
            .services()
            .iter()
            .find(|info| info.name().as_str() == name);
        found.cloned()
    };
    let real = view.changed(
        2,
        &[
            (was("chat-2"), None),
            (
                was("chat-1"),
                Some(info("a", "chat-1", 300, ServiceState::Online)),
            ),
            (
                was("chat-3"),
                Some(info("c", "chat-3", 100, ServiceState::Online)),
            ),
            (None, Some(info("b", "chat-9", 100, ServiceState::Online))),
        ],
    );
    for key in keys() {
        let name = |view: &View| view.owner(key).map(|info| info.name().clone());
        assert_eq!(name(&planned), name(&real), "{key:?}");
    }
    // Nothing was changed by it.
    assert_eq!(view.services().len(), 6);
    assert!(was("chat-2").is_some());
}

#[test]
fn shares_and_moves_count_every_slot_once() {
    let view = mixed();
    let shares = view.shares();
    assert_eq!(shares.iter().map(|(_, slots)| slots).sum::<usize>(), SLOTS);
    let mut counted = std::collections::BTreeMap::new();
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let owner = view.owner(Key::in_slot(slot)).unwrap();
        *counted.entry(owner.id().clone()).or_insert(0_usize) += 1;
    }
    let told = shares
        .iter()
        .map(|(info, slots)| (info.id().clone(), *slots));
    assert_eq!(counted, told.collect());
    let removed = view
        .with(&[PlannedChange::Remove(named("chat-2"))])
        .unwrap();
    let moves = view.moves_to(&removed);
    let of_2 = shares
        .iter()
        .find(|(info, _)| info.name().as_str() == "chat-2")
        .unwrap()
        .1;
    assert_eq!(moves.iter().map(|moved| moved.slots).sum::<usize>(), of_2);
    assert!(moves.iter().all(|moved| {
        moved
            .from
            .as_ref()
            .is_some_and(|info| info.name().as_str() == "chat-2")
            && moved.to.is_some()
    }));
    let nobody = View::empty(chat());
    assert!(nobody.shares().is_empty());
    let to_nobody = view.moves_to(&nobody);
    assert!(to_nobody.iter().all(|moved| moved.to.is_none()));
    assert_eq!(
        to_nobody.iter().map(|moved| moved.slots).sum::<usize>(),
        SLOTS
    );
}

#[test]
fn the_standby_takes_over_where_the_primary_goes_and_that_is_a_move() {
    let view = mixed();
    let without = View::of(
        chat(),
        view.services()
            .iter()
            .filter(|info| info.node().as_str() != "d")
            .cloned(),
    );
    let moves = view.moves_to(&without);
    assert!(moves.iter().any(|moved| {
        let node =
            |info: &Option<Arc<ServiceInfo>>| info.as_ref().map(|info| info.node().to_string());
        node(&moved.from) == Some("d".into()) && node(&moved.to) == Some("e".into())
    }));
}

#[test]
fn a_change_that_does_not_fit_is_named() {
    let view = mixed();
    let gone = PlannedChange::Weigh(named("chat-7"), Weight::default());
    assert_eq!(
        view.with(&[gone]).unwrap_err(),
        PlanError::NoInstance {
            name: named("chat-7")
        }
    );
    let there = PlannedChange::Add {
        name: named("chat-1"),
        weight: Weight::default(),
        node: NodeName::try_new("a").unwrap(),
    };
    assert_eq!(
        view.with(std::slice::from_ref(&there)).unwrap_err(),
        PlanError::Exists {
            name: named("chat-1")
        }
    );
    assert!(
        view.with(&[PlannedChange::Remove(named("chat-1")), there])
            .is_ok()
    );
}

#[test]
fn an_explanation_has_the_owners_in_their_order_and_the_others_where_they_would_be() {
    let view = mixed();
    for key in keys().step_by(7) {
        let why = view.explain(key);
        let ranked: Vec<_> = why
            .order
            .iter()
            .filter(|preferred| preferred.rank.is_some())
            .map(|preferred| preferred.service.id().clone())
            .collect();
        let owners: Vec<_> = view
            .owners(key, 10)
            .iter()
            .map(|info| info.id().clone())
            .collect();
        assert_eq!(ranked, owners, "{key:?}");
        assert_eq!(why.order.len(), view.services().len());
        let offline = why
            .order
            .iter()
            .find(|preferred| preferred.service.name().as_str() == "chat-3");
        let would = offline.unwrap().would_rank;
        let back = view
            .with(&[PlannedChange::State(named("chat-3"), ServiceState::Online)])
            .unwrap();
        let place = back
            .owners(key, 10)
            .iter()
            .position(|info| info.name().as_str() == "chat-3");
        assert_eq!(place, Some(would - 1), "{key:?}");
    }
    assert!(
        view.explain("room-7")
            .order
            .iter()
            .any(|preferred| preferred.standby)
    );
}

#[test]
fn spread_over_names_leaves_the_standby_out() {
    let view = mixed();
    for key in keys().step_by(7) {
        let all = view.owners(key, 10);
        let names = view.owners_spread(key, 10, Spread::Names);
        assert_eq!((all.len(), names.len()), (4, 3));
        assert_eq!(all[0].id(), names[0].id());
        assert!(names.iter().all(|info| info.node().as_str() != "e"));
    }
}
