//! Histories of ownership that moves with its states: beside each process's cluster runs the core's token machine, and all of
//! it is checked at every step.
//!
//! What must hold: I1, at most one instance holds a slot, and nothing is begun anew while a copy of it lives, where no living
//! node was taken for dead and no patience was used; I2, each copy is served as one sequence; I3, no call runs twice; I4,
//! planned changes fail no call; I5, in the end each slot is held by its first alone, and nothing is under way; I6, few pieces
//! are on their way to one node; I8, every copy that ever served is held, merged, or was lost with a process. (I7 is that
//! histories end.)

mod brief;
mod calls;
mod checks;
mod drive;
mod event;
mod history;
mod instances;
mod ledger;
mod letter;
mod machine;
mod post;
mod profile;
mod report;
mod script;
#[cfg(test)]
mod tests;

pub use history::{TokenOutcome, TokenPlan, run};
pub use profile::TokenProfile;
pub use report::TokenArgs;

pub(crate) use event::TokenEvent;
pub(crate) use machine::Tokens;
pub(crate) use report::run_command;
