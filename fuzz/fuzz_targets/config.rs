//! A configuration file; one that is accepted makes a builder, or says what is missing.
#![no_main]

use keydispatch::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = Config::parse(text) {
        let _ = config.builder("unnamed");
    }
});
