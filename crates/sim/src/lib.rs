//! The cluster simulator: the core's own state machines under virtual time, on a network that fails as it is told.
//!
//! A history is determined by its seed. Everything is checked at every step, and once more when the network has been
//! whole for a while; see [`history`] for the course of one, `checks` for what must hold.

use std::process::ExitCode;

mod checks;
mod constants;
mod coverage;
mod data;
mod data_links;
mod drive;
mod error;
mod event;
pub mod exhaustive;
mod faults;
pub mod history;
mod judge;
mod liar;
mod lies;
mod network;
mod process;
mod profile;
mod queue;
mod report;
pub mod route;
mod rules;
pub mod scale;
#[cfg(test)]
mod tests;
pub mod tokens;
mod trace;
mod workload;
mod world;

pub use checks::Violation;
pub use coverage::Coverage;
pub use error::Error;
pub use profile::Profile;
pub use report::{Histories, Report};

/// Runs simulated clusters: many histories, each determined by its seed, or the stated scale.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(flatten)]
    histories: Histories,
    #[command(subcommand)]
    scale: Option<Command>,
}

/// What there is beside the histories.
#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// What the largest clusters cost: joins, restarts, a partition, deaths, memory, changes, idleness.
    Scale(scale::Options),
    /// Histories of ownership that moves with its states.
    Tokens(tokens::TokenArgs),
    /// Routing: policies side by side over skew, callers, slow instances, hot keys and caches.
    Route(route::RouteArgs),
    /// Every interleaving of the smallest cases of ownership.
    Exhaustive(exhaustive::ExhaustiveArgs),
}

/// Runs the command; the tables of `scale` are told line by line.
pub fn run(args: &Args, say: fn(&str)) -> ExitCode {
    match &args.scale {
        Some(Command::Scale(options)) => scale::run(*options, say),
        Some(Command::Tokens(args)) => tokens::run_command(args),
        Some(Command::Route(args)) => route::run_command(args, say),
        Some(Command::Exhaustive(args)) => exhaustive::run_command(args, say),
        None => report::run(&args.histories),
    }
}
