//! The state machines of Dispatch: placement, replication, membership.
//!
//! Nothing here reads a clock, opens a socket or draws randomness of its own: time comes in as an
//! argument, randomness as a seed, and what is to be sent comes out of `poll_output`. The same code runs
//! under the library's driver and in a deterministic simulator.

pub mod admission;
pub mod cluster;
pub mod directory;
mod entry;
mod error;
pub mod frame;
mod id;
pub mod keepalive;
mod key;
pub mod limits;
pub mod links;
mod membership;
pub mod message;
pub mod ownership;
pub mod placement;
pub mod route;
pub mod rules;
pub mod settings;
mod text;
mod time;
pub mod tracker;
mod view;

pub use cluster::{Cluster, ClusterConfig, ClusterEvent, ClusterStats};
pub use directory::{Directory, DirectoryWriter, FoundOwners, RegistryEvent};
pub use entry::{
    Accepts, Codec, EntryChange, EntryError, EntryUpdate, Metadata, NewEntry, Record, ServiceInfo,
    ServiceState, Weight,
};
pub use id::{
    Address, AddressError, ClusterName, Generation, InstanceName, NameError, NodeId, NodeName,
    Reference, ServiceId, ServiceIdError, ServiceType, Topic, Zone,
};
pub use key::{KEYED_SLOTS, Key, KeyBytes, KeyError, KeyPart, MAX_KEY_BYTES, SLOTS, Slot};
pub use membership::{
    MemberEvent, MemberInfo, MemberState, Membership, MembershipConfig, MembershipCounts,
    RefusedDial,
};
#[cfg(any(test, feature = "fault-switches"))]
pub use membership::{describe_packet, forge};
pub use route::Routing;
pub use rules::{Rule, RuleSet};
pub use settings::{RawSettings, Settings, SettingsError};
pub use text::Escaped;
pub use time::{Instant, earliest};
pub use tracker::{
    AddError, Added, Adding, OwnerStats, Tracker, TrackerConfig, TrackerCounts, UpdateError,
};
pub use view::explain::{Explanation, Preferred};
pub use view::whatif::{KeyMove, PlanError, PlannedChange};
pub use view::{Owners, Spread, View};
