//! The state machines of Dispatch: placement, replication, membership.
//!
//! Nothing here reads a clock, opens a socket or draws randomness of its own: time comes in as an
//! argument, randomness as a seed, and what is to be sent comes out of `poll_transmit`. The same code runs
//! under the library's driver and in a deterministic simulator.

pub mod config;
mod entry;
pub mod hello;
mod id;
pub mod limits;
pub mod links;
mod membership;
pub mod message;
mod time;

pub use config::{RawSettings, Settings, SettingsError};
pub use entry::{
    EntryChange, EntryError, EntryUpdate, Metadata, NewEntry, Record, ServiceInfo, ServiceState,
    Weight,
};
pub use id::{
    ClusterName, Generation, InstanceName, NameError, NodeId, NodeName, Reference, ServiceId,
    ServiceType, Topic, Zone,
};
pub use membership::{MemberEvent, MemberInfo, MemberState, Membership, MembershipConfig, Rules};
pub use time::{Instant, earliest};
