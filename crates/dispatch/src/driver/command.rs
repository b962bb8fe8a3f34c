//! What the driver is asked to do, and what it answers.

use std::sync::Arc;

use keydispatch_core::message::Address;
use keydispatch_core::{
    AddError, ClusterStats, EntryUpdate, NewEntry, NodeName, ServiceInfo, UpdateError,
};
use tokio::sync::oneshot;

use crate::claim::{Claim, Life};

/// Commands and frames that wait for the driver; senders wait beyond that.
pub(crate) const QUEUE: usize = 1_024;

/// A command to the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Add {
        entries: Vec<NewEntry>,
        /// Of the service that runs behind the entry; none for endpoints.
        life: Option<Life>,
        reply: oneshot::Sender<Added>,
    },
    Update {
        sequence: u64,
        update: EntryUpdate,
        reply: oneshot::Sender<Changed>,
    },
    Remove {
        sequence: u64,
        reply: oneshot::Sender<Changed>,
    },
    Stats {
        reply: oneshot::Sender<ClusterStats>,
    },
    Missing {
        reply: oneshot::Sender<Vec<NodeName>>,
    },
    Seeds {
        addresses: Vec<Address>,
        /// The name of one has no address yet.
        awaited: bool,
    },
    /// Takes keys away, and asks every peer to say when it knows; answered with the version that is to be known.
    Drain {
        what: Draining,
        reply: oneshot::Sender<u64>,
    },
    /// Which members that are up have not said that they have that version.
    Without {
        version: u64,
        reply: oneshot::Sender<Vec<NodeName>>,
    },
    /// What is left of the states of all services of this node, or of one.
    StatesLeft {
        sequence: Option<u64>,
        reply: oneshot::Sender<StatesLeft>,
    },
    Leave {
        reply: oneshot::Sender<()>,
    },
    #[cfg(feature = "testkit-faults")]
    Panic,
}

/// Whose keys are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    /// Of all services of this node; for good, whatever is added or enabled later owns nothing either.
    Node { for_good: bool },
    /// Of one service.
    Service { sequence: u64 },
}

pub(super) type Added = Result<Claim, AddError>;
pub(super) type Changed = Result<Arc<ServiceInfo>, UpdateError>;

/// What is left of the states of this node's own services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatesLeft {
    /// No slot is claimed, held or on its way.
    pub(crate) is_idle: bool,
    /// Somebody else is online who may take them.
    pub(crate) can_go: bool,
    /// Keys with a state.
    pub(crate) keys: usize,
}
