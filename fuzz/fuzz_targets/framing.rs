//! Frames from a stream: the first byte says in what pieces it arrives, the second how long frames may be.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let [pieces, limit, stream @ ..] = data {
        keydispatch::fuzzing::frames(stream, usize::from(*pieces), 1 << (limit % 21));
    }
});
