use proptest::prelude::*;

use super::*;
use crate::entry::{ServiceState, Weight};
use crate::id::{Generation, InstanceName, NodeName, ServiceType};
use crate::log::{Log, MAX_DELTA_BYTES};

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

#[test]
fn a_delta_to_more_entries_than_a_node_may_have_changes_nothing() {
    let record = info(1, 1).to_record();
    let too_many = MAX_SERVICES_PER_NODE as u64 + 1;
    let delta = |count: u64| Delta {
        owner: owner(),
        nonce: 5,
        from: 0,
        to: 1,
        content: 0,
        operations: (0..count)
            .map(|sequence| {
                Operation::Put(Record {
                    sequence,
                    ..record.clone()
                })
            })
            .collect(),
    };
    let mut replica = Replica::new(owner());
    assert_eq!(replica.apply(delta(too_many)), Err(Rejected::TooMany));
    assert_eq!((replica.version(), replica.entries().len()), (None, 0));
    assert!(replica.apply(delta(2)).is_ok());
}
