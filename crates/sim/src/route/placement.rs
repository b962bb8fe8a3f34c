//! Which instances there are, and who owns a key, by the library's own placement.

use keydispatch_core::route::MAX_OWNERS;
use keydispatch_core::{
    DirectoryWriter, EntryChange, Generation, InstanceName, Key, NodeName, Record, ServiceInfo,
    ServiceState, ServiceType, Weight,
};
use smallvec::SmallVec;

use super::plan::Plan;

const TYPE: &str = "simulated";

/// The first owners of each key, of all of them.
pub(super) fn placement(
    plan: &Plan,
    count: usize,
    keys: &[Key],
) -> Vec<SmallVec<[u16; MAX_OWNERS]>> {
    let joined = (0..count).map(|number| EntryChange {
        before: None,
        after: Some(info(number, plan).into()),
    });
    let mut registry = DirectoryWriter::new();
    registry.apply(joined.collect());
    let Some(view) = registry.directory().view(TYPE) else {
        return vec![SmallVec::new(); keys.len()];
    };
    let number = |info: &ServiceInfo| (info.id().sequence - 1) as u16;
    keys.iter()
        .map(|key| {
            let owners = view.owners(*key, MAX_OWNERS);
            owners.iter().map(|info| number(info)).collect()
        })
        .collect()
}

fn info(number: usize, plan: &Plan) -> ServiceInfo {
    let sequence = number as u64 + 1;
    let record = Record {
        sequence,
        version: sequence,
        previous: None,
        service_type: ServiceType::try_new(TYPE).expect("a name"),
        name: InstanceName::try_new(format!("i{number}/{}", plan.seed)).expect("a name"),
        state: ServiceState::Online,
        weight: Weight::try_new(plan.weights[number]).expect("a weight of the plan"),
        protocol_version: Some(1),
        metadata: None,
    };
    let node = NodeName::try_new("node").expect("a name");
    ServiceInfo::from_record(&node, Generation::default(), 1, record)
}
