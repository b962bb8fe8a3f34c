//! The cluster simulator: the core's own state machines under virtual time, on a network that fails as it is told.
//!
//! A history is determined by its seed. Everything is checked at every step, and once more when the network has been
//! whole for a while; see [`history`] for the course of one, `checks` for what must hold.

use std::process::ExitCode;

mod checks;
mod coverage;
mod drive;
mod faults;
pub mod history;
mod judge;
mod network;
mod process;
mod profile;
mod queue;
mod report;
mod rules;
#[cfg(test)]
mod tests;
mod trace;
mod workload;
mod world;

pub use checks::Violation;
pub use coverage::Coverage;
pub use profile::Profile;
pub use report::{Args, Report};
pub use rules::Without;

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    report::run(args)
}
