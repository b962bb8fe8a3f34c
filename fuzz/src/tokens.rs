//! The two nodes of the `tokens` target: one that is fuzzed, and one whose messages are recorded as seeds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::ownership::{Ownership, OwnershipConfig, TokenEvent};
use keydispatch_core::{
    Generation, InstanceName, Instant, NodeId, NodeName, Record, ServiceInfo, ServiceState,
    ServiceType, Weight,
};

/// Membership's, of both.
pub(crate) const DOWN: Duration = Duration::from_millis(1_500);
/// Slots of the type: few, so that what is said meets what is held.
pub(crate) const SLOTS: u32 = 64;
/// Most bytes of states of which not all pieces have come.
pub(crate) const ARRIVING: usize = 64 * 1024;

/// The type.
pub(crate) fn rooms() -> ServiceType {
    ServiceType::try_new("rooms").expect("a name")
}

/// Node 0 is the one that is fuzzed, 1 its peer.
pub(crate) fn node(number: u64) -> NodeId {
    NodeId {
        name: NodeName::try_new(format!("n{number}")).expect("a name"),
        generation: Generation {
            number: 1_000 + number,
            random: number,
        },
    }
}

/// Its one instance.
pub(crate) fn entry(number: u64, version: u64, state: ServiceState) -> Arc<ServiceInfo> {
    let record = Record {
        sequence: 1,
        version,
        previous: None,
        service_type: rooms(),
        name: InstanceName::try_new(format!("n{number}/1")).expect("a name"),
        state,
        weight: Weight::default(),
        protocol_version: Some(1),
        metadata: None,
    };
    let node = node(number);
    let info = ServiceInfo::from_record(&node.name, node.generation, number, record);
    Arc::new(info)
}

/// One of them, which knows the other.
pub(crate) fn machine(number: u64) -> Ownership {
    let config = OwnershipConfig::new(DOWN)
        .slots(SLOTS)
        .piece_bytes(256)
        .arriving_bytes(ARRIVING);
    let mut machine = Ownership::new(config, node(number), number);
    machine.keep(&rooms());
    machine.handle_up(Instant::ZERO, &node(1 - number), true);
    machine
}

/// Does what whoever holds the states would do: gives what is to be given, a few bytes for each slot.
pub(crate) fn answer(machine: &mut Ownership, now: Instant, event: &TokenEvent) {
    if let TokenEvent::Give { slot, transfer, .. } = event {
        let key = Bytes::from(slot.to_le_bytes().to_vec());
        let state = Bytes::from(vec![7; 1 + *slot as usize * 16]);
        machine.give(now, *transfer, &[(key, state)]);
    }
}
