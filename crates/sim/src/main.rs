//! The command of the simulator.

use std::process::ExitCode;

use clap::Parser;
use keydispatch_measure::allocations;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Runs simulated clusters: many histories, each determined by its seed, or the stated scale.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    arguments: keydispatch_sim::Args,
}

fn main() -> ExitCode {
    keydispatch_sim::run(&Arguments::parse().arguments, say)
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn say(line: &str) {
    println!("{line}");
}
