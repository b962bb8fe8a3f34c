//! What a peer sends on the data lane.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| keydispatch::fuzzing::data_frame(data));
