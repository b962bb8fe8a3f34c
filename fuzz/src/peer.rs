//! The node that is fuzzed, and the peer that it meets: the same in every run.

use std::time::Duration;

use keydispatch_core::message::{Address, Hello, Offers};
use keydispatch_core::{
    Cluster, ClusterConfig, ClusterName, Instant, Metadata, NewEntry, NodeName, RawSettings,
    ServiceState, ServiceType, Settings, Weight,
};

fn named(name: &str, seed: u64) -> ClusterConfig {
    let settings = RawSettings {
        permdown_period: Some(Duration::from_secs(10)),
        ..RawSettings::default()
    };
    ClusterConfig {
        cluster: ClusterName::try_new("fuzz").expect("a name"),
        name: NodeName::try_new(name).expect("a name"),
        address: Address::try_new(format!("{name}:1")).expect("an address"),
        seeds: Vec::new(),
        seeds_awaited: false,
        settings: Settings::try_new(settings).expect("they are good settings"),
        wall_clock_micros: 1_000_000 + seed,
        nonce: seed,
        offers: Offers::default(),
        seed,
    }
}

/// The node.
pub(crate) fn config() -> ClusterConfig {
    named("node", 1)
}

/// The peer.
pub(crate) fn peer_config() -> ClusterConfig {
    named("peer", 2)
}

/// What the peer says first.
pub(crate) fn hello() -> Hello {
    Cluster::new(peer_config(), Instant::ZERO).hello().clone()
}

/// What either of them registers.
pub(crate) fn entries() -> Vec<NewEntry> {
    (1..=3)
        .map(|sequence| NewEntry {
            sequence,
            service_type: ServiceType::try_new("uploader").expect("a name"),
            name: None,
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: Some(1),
            metadata: Metadata::default(),
        })
        .collect()
}
