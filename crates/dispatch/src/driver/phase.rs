//! How far a node has come, and how it may end.

use keydispatch_core::message::Address;

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Joining,
    Synced,
    /// A living node has the name; where it is, if known.
    NameTaken(Option<Address>),
    Stopped,
    /// It ended without anybody having asked for it.
    Failed(Fatal),
}

impl Phase {
    /// True where the node has ended.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Phase::Joining | Phase::Synced => false,
            Phase::NameTaken(_) | Phase::Stopped | Phase::Failed(_) => true,
        }
    }
}

/// Why a node ends without anybody having asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fatal {
    /// The runtime that it was started on has ended.
    RuntimeEnded,
    /// A task that it cannot do without has panicked.
    Panicked,
}
