//! Histories of ownership that moves with its states: beside each process's cluster runs the core's token machine, and all of
//! it is checked at every step.
//!
//! What must hold: I1, at most one instance holds a slot, and nothing is begun anew while a copy of it lives, where no living
//! node was taken for dead and no patience was used; I2, each copy is served as one sequence; I3, no call runs twice; I4,
//! planned changes fail no call; I5, in the end each slot is held by its first alone, and nothing is under way; I6, few pieces
//! are on their way to one node; I8, every copy that ever served is held, merged, or was lost with a process. (I7 is that
//! histories end.)

use keydispatch_core::{Instant, NodeName, ServiceId};

mod books;
mod calls;
mod history;
mod post;
mod profile;
mod report;
mod script;
mod stage;
#[cfg(test)]
mod tests;

pub use history::{TokenOutcome, TokenPlan, run};
pub use profile::TokenProfile;
pub use report::TokenArgs;

pub(crate) use report::run_command;
pub(crate) use stage::Tokens;

/// What is going to happen of tokens.
#[derive(Debug)]
pub(crate) enum TokenEvent {
    /// The first letter of a lane may arrive.
    Arrive(post::LaneId),
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
    Scene(Instant),
    /// A node that knows nobody looks for the others.
    LookAround(usize),
}
