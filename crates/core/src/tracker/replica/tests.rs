use proptest::prelude::*;

use super::*;
use crate::entry::{ServiceState, Weight};
use crate::id::{Generation, InstanceName, NodeName, ServiceType};
use crate::limits::{
    MAX_BYTES_PER_NODE, MAX_INSTANCES_PER_TYPE, MAX_SERVICES_PER_NODE, MAX_TYPES_PER_NODE,
};
use crate::tracker::entries::{check_size, estimated_bytes};
use crate::tracker::log::{Log, MAX_DELTA_BYTES};

fn owner() -> NodeId {
    NodeId {
        name: NodeName::try_new("a").unwrap(),
        generation: Generation::default(),
    }
}

fn info(sequence: u64, version: u64) -> ServiceInfo {
    let record = Record {
        sequence,
        version,
        previous: None,
        service_type: ServiceType::try_new("uploader").unwrap(),
        name: InstanceName::try_new(format!("i{sequence}")).unwrap(),
        state: ServiceState::Online,
        weight: Weight::default(),
        protocol_version: None,
        metadata: None,
    };
    ServiceInfo::from_record(&owner().name, owner().generation, 5, record)
}

/// A log after these changes, and what it had to say after each of them.
fn history(changes: &[(u64, bool)]) -> Vec<Log> {
    let mut log = Log::new(owner(), 5, 1000);
    let mut states = vec![log.clone()];
    for &(sequence, put) in changes {
        if put {
            log.put(sequence, |version| info(sequence, version));
        } else {
            log.remove(sequence);
        }
        states.push(log.clone());
    }
    states
}

fn entries<'a>(infos: impl Iterator<Item = &'a Arc<ServiceInfo>>) -> Vec<Arc<ServiceInfo>> {
    infos.cloned().collect()
}

/// The entries of a snapshot, and the sum of their hashes.
fn staged(replica: &mut Replica, records: Vec<Record>) -> (Vec<Arc<ServiceInfo>>, u64) {
    let mut content = 0_u64;
    let staged = replica.stage(5, records).map(|(info, hash)| {
        content = content.wrapping_add(hash);
        info
    });
    (staged.collect(), content)
}

proptest! {
    #[test]
    fn deltas_of_any_cut_repeated_in_any_order_never_lead_elsewhere(
        changes in proptest::collection::vec((0..8_u64, any::<bool>()), 1..30),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..40),
    ) {
        let states = history(&changes);
        let mut replica = Replica::new(owner());
        for (from, at) in cuts {
            let (from, at) = (from.index(states.len()), at.index(states.len()));
            let from = states[from].version();
            let Some(deltas) = states[at].since(from, usize::MAX, MAX_DELTA_BYTES) else { continue };
            for delta in deltas {
                let before = replica.version();
                let outcome = replica.apply(delta.clone());
                if before.is_none_or(|before| delta.from > before) && delta.from > 0 {
                    prop_assert_eq!(outcome.unwrap_err(), Rejected::Gap);
                }
            }
            if let Some(version) = replica.version() {
                let state = states.iter().find(|state| state.version() == version).unwrap();
                prop_assert_eq!(entries(replica.entries()), entries(state.entries()));
                prop_assert_eq!(replica.content(), state.owner_version().content);
            }
        }
    }

    #[test]
    fn a_snapshot_gives_the_same_state_and_changes_as_deltas_would(
        changes in proptest::collection::vec((0..8_u64, any::<bool>()), 1..30),
        cut in any::<prop::sample::Index>(),
    ) {
        let states = history(&changes);
        let (then, now) = (&states[cut.index(states.len())], &states[states.len() - 1]);
        let mut replica = Replica::new(owner());
        for delta in then.since(0, usize::MAX, MAX_DELTA_BYTES).unwrap() {
            replica.apply(delta).unwrap();
        }
        let mut by_delta = replica.clone();
        let records = now.entries().map(|info| info.to_record()).collect();
        let (staged, content) = staged(&mut replica, records);
        let mut changed = replica.install(&now.owner_version(), 5, staged, content).unwrap();
        let mut expected: Vec<EntryChange> = Vec::new();
        for delta in now.since(then.version(), usize::MAX, MAX_DELTA_BYTES).unwrap() {
            if let Ok(more) = by_delta.apply(delta) {
                expected.extend(more);
            }
        }
        prop_assert_eq!(entries(replica.entries()), entries(by_delta.entries()));
        let id = |change: &EntryChange| change.before.as_ref().or(change.after.as_ref()).map(|info| info.id().clone());
        changed.sort_by_key(id);
        expected.sort_by_key(id);
        prop_assert_eq!(changed, expected);
    }
}

#[test]
fn a_snapshot_that_does_not_match_its_hash_changes_nothing() {
    let mut log = Log::new(owner(), 5, 10);
    log.put(1, |version| info(1, version));
    let mut of = log.owner_version();
    of.content ^= 1;
    let mut replica = Replica::new(owner());
    let records = log.entries().map(|info| info.to_record()).collect();
    let (staged, content) = staged(&mut replica, records);
    assert_eq!(
        replica.install(&of, 5, staged, content),
        Err(Rejected::Differs)
    );
    assert_eq!(replica.version(), None);
    assert_eq!(replica.entries().len(), 0);
}

fn records(count: usize, type_of: impl Fn(usize) -> String) -> Vec<Record> {
    let record = info(1, 1).to_record();
    (0..count)
        .map(|number| Record {
            sequence: number as u64,
            service_type: ServiceType::try_new(type_of(number)).unwrap(),
            ..record.clone()
        })
        .collect()
}

fn delta_of(records: Vec<Record>) -> Delta {
    Delta {
        owner: owner(),
        nonce: 5,
        from: 0,
        to: 1,
        content: 0,
        operations: records.into_iter().map(Operation::Put).collect(),
    }
}

#[test]
fn what_an_owner_may_not_have_changes_nothing_whichever_bound_it_is_beyond() {
    let one = |_: usize| "uploader".to_owned();
    let each = |number: usize| format!("type {number}");
    for (most, type_of, beyond) in [
        (
            MAX_SERVICES_PER_NODE,
            &one as &dyn Fn(usize) -> String,
            Beyond::Services,
        ),
        (MAX_INSTANCES_PER_TYPE, &one, Beyond::Instances),
        (MAX_TYPES_PER_NODE, &each, Beyond::Types),
    ] {
        let mut replica = Replica::new(owner());
        let too_many = records(most + 1, type_of);
        let outcome = replica.apply(delta_of(too_many.clone()));
        assert_eq!(outcome, Err(Rejected::Beyond(beyond)));
        assert_eq!((replica.version(), replica.entries().len()), (None, 0));
        if beyond != Beyond::Services {
            let (staged, content) = staged(&mut replica, too_many);
            let of = OwnerVersion {
                owner: owner(),
                version: 1,
                content,
            };
            let outcome = replica.install(&of, 5, staged, content);
            assert_eq!(outcome, Err(Rejected::Beyond(beyond)));
            assert_eq!(replica.entries().len(), 0);
            assert!(replica.apply(delta_of(records(most, type_of))).is_ok());
        }
    }
}

#[test]
fn bytes_are_those_of_what_is_there() {
    let mut entries = Entries::default();
    let small = info(1, 1);
    let mut record = info(1, 2).to_record();
    record.name = InstanceName::try_new("x".repeat(200)).unwrap();
    let large = ServiceInfo::from_record(&owner().name, owner().generation, 5, record);
    entries.insert(Arc::new(small.clone()));
    assert_eq!(entries.bytes(), estimated_bytes(&small));
    entries.insert(Arc::new(large.clone()));
    assert_eq!(entries.bytes(), estimated_bytes(&large));
    assert!(entries.bytes() > 200);
    entries.remove(1);
    assert_eq!(entries.bytes(), 0);
    assert!(check_size(1, MAX_BYTES_PER_NODE).is_ok());
    assert_eq!(check_size(1, MAX_BYTES_PER_NODE + 1), Err(Beyond::Bytes));
}
