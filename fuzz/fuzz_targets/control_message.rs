//! What a peer sends on the control lane: the first byte is the frame's kind. What decodes encodes, to the same again.
#![no_main]

use bytes::Bytes;
use keydispatch_core::message::{ControlMessage, Frame, Operation};
use keydispatch_core::{Record, ServiceInfo};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, body)) = data.split_first() else {
        return;
    };
    let frame = Frame {
        kind,
        body: Bytes::copy_from_slice(body),
    };
    let Ok(Some(message)) = ControlMessage::decode(&frame) else {
        return;
    };
    let again = message.encode();
    assert_eq!(ControlMessage::decode(&again), Ok(Some(message.clone())));
    // Records become services, and records again.
    let (owner, nonce, records) = match message {
        ControlMessage::Delta(delta) => {
            let puts = delta
                .operations
                .into_iter()
                .filter_map(|operation| match operation {
                    Operation::Put(record) => Some(record),
                    Operation::Remove { .. } => None,
                });
            (delta.owner, delta.nonce, puts.collect())
        }
        ControlMessage::Snapshot(chunk) => (chunk.of.owner, chunk.nonce, chunk.records),
        _ => return,
    };
    for record in records {
        let service =
            |record: Record| ServiceInfo::from_record(&owner.name, owner.generation, nonce, record);
        // Metadata that says nothing is left out.
        let info = service(record);
        assert_eq!(service(info.to_record()), info);
    }
});
