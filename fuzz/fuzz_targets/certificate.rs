//! The names that a peer's certificate claims.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| keydispatch::fuzzing::certificate(data));
