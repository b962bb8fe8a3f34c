//! What the tracker is started with, and what it counts.

use std::time::Duration;

use crate::id::NodeId;
use crate::settings::Settings;

/// What the tracker is started with.
#[derive(Clone, Debug)]
pub struct TrackerConfig {
    pub(super) broadcast_period: Duration,
    pub(super) max_silent_periods: u32,
    pub(super) down_period: Duration,
    pub(super) permdown_period: Duration,
    pub(super) max_delta_sizes: usize,
}

impl TrackerConfig {
    /// What the settings say of replication.
    pub fn new(settings: &Settings) -> Self {
        TrackerConfig {
            broadcast_period: settings.broadcast_period(),
            max_silent_periods: settings.max_silent_periods(),
            down_period: settings.down_period(),
            permdown_period: settings.permdown_period(),
            max_delta_sizes: settings.max_delta_sizes(),
        }
    }
}

/// What is known of one other owner, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerStats {
    /// The owner, in that life.
    pub node: NodeId,
    /// The version that this node has of it; none before the first.
    pub version: Option<u64>,
    /// The version that the owner is known to have, where that is higher.
    pub behind: Option<u64>,
    /// How many entries.
    pub entries: usize,
    /// Membership says that it is up.
    pub up: bool,
    /// Its entries show.
    pub visible: bool,
    /// There is a direct link to it.
    pub linked: bool,
}

/// How often each thing that can go wrong did, for tests that want to know what they exercised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerCounts {
    /// Deltas that were not contiguous.
    pub gaps: u64,
    /// Suffixes of the log that were served.
    pub suffixes: u64,
    /// Snapshots of this node's own entries that were served.
    pub snapshots: u64,
    /// Snapshots of another owner's entries that were served.
    pub relayed: u64,
    /// Snapshots that were given up before their end.
    pub interrupted: u64,
    /// Snapshots that were installed.
    pub installed: u64,
    /// Copies that turned out to differ from their owner's word.
    pub differences: u64,
    /// Messages that broke a rule and were dropped.
    pub rejected: u64,
    /// New generations of this node.
    pub renewals: u64,
    /// Requests for what is missing of an owner, those for the further parts of a snapshot not counted.
    pub requests: u64,
    /// Copies that had to wait until a second peer had them.
    pub unagreed: u64,
    /// Copies by way of others that gave way to an older one of the owner itself.
    pub replaced: u64,
}
