//! What a peer sends on the control lane: the first byte is the frame's kind. What decodes encodes, to the same again.
#![no_main]

use bytes::Bytes;
use keydispatch_core::ServiceInfo;
use keydispatch_core::message::{ControlMessage, Frame, Operation};
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
    // Records become services only where they are in bounds.
    match message {
        ControlMessage::Delta(delta) => {
            for operation in delta.operations {
                if let Operation::Put(record) = operation {
                    let _ = ServiceInfo::from_record(&delta.owner, delta.nonce, record);
                }
            }
        }
        ControlMessage::Snapshot(chunk) => {
            for record in chunk.records {
                let _ = ServiceInfo::from_record(&chunk.of.owner, chunk.nonce, record);
            }
        }
        _ => {}
    }
});
