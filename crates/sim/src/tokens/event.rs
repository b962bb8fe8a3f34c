//! What is going to happen of tokens.

use keydispatch_core::{Instant, NodeName, ServiceId};

/// What is going to happen of tokens.
#[derive(Debug)]
pub(crate) enum TokenEvent {
    /// The first letter of a lane may arrive.
    Arrive(LaneId),
    /// A machine has something to do.
    Wake(usize),
    /// A node calls.
    Traffic(usize),
    /// A call goes on.
    Attempt(u64, Option<ServiceId>),
    /// A node that is synced registers its instances.
    Register(usize),
    /// A node that leaves, or an instance that stops, looks whether it may go.
    Tick(usize),
    /// A node that leaves is gone.
    Gone(usize),
    /// A process starts.
    Start(NodeName, usize),
    /// An instance goes offline, or online.
    Toggle(usize, ServiceId),
    /// The next thing of the profile, until then.
    Phase(Instant),
    /// A node that knows nobody looks for the others.
    LookAround(usize),
}

/// Which lane: who sends, who receives, and whether it is that of calls and states.
pub(crate) type LaneId = (usize, usize, bool);
