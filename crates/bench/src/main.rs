//! The benchmarks, and the cluster simulator: one command each.

use std::process::ExitCode;

use clap::Parser;
use keydispatch_bench::sim;

/// Benchmarks of Dispatch, and its cluster simulator.
#[derive(Parser)]
enum Command {
    /// Runs many histories of simulated clusters, each determined by its seed.
    Sim(sim::Args),
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Sim(args) => sim::run(&args),
    }
}
