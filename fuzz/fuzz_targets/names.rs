//! What users and files name: seeds, addresses, names, keys, metadata.
#![no_main]

use std::collections::BTreeMap;

use keydispatch::limits::{MAX_ADDRESS_BYTES, MAX_NAME_BYTES};
use keydispatch::{Address, InstanceName, Key, NodeName, ServiceType, Zone};
use keydispatch_core::Metadata;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Key::from_canonical(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    keydispatch::fuzzing::seed(text);
    assert_eq!(Key::from(text), Key::from(text.to_owned()));
    let _ = Key::of(&(text, data.len(), data));
    if let Ok(address) = Address::try_new(text) {
        assert!(address.as_str() == text && text.len() <= MAX_ADDRESS_BYTES);
    }
    if let Ok(name) = NodeName::try_new(text) {
        assert!(name.as_str() == text && text.len() <= MAX_NAME_BYTES);
    }
    let _ = ServiceType::try_new(text);
    let _ = InstanceName::try_new(text);
    let _ = Zone::try_new(text);
    let tags: BTreeMap<Box<str>, Box<str>> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    let _ = Metadata::try_new(Zone::try_new(text).ok(), Some(text.into()), tags);
});
