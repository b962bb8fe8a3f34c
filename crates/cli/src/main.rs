//! The command `dispatch`: certificates for a cluster, a demonstration on real files, and with the feature `agent` an agent
//! and what operates it.

mod cert;
mod demo;
#[cfg(feature = "agent")]
mod operate;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Gives every key one home in a cluster of nodes.
#[derive(Parser)]
#[command(name = "dispatch", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Cert(cert::Arguments),
    Demo(demo::Arguments),
    #[command(hide = true)]
    DemoNode(demo::node::Arguments),
    #[cfg(feature = "agent")]
    #[command(flatten)]
    Operate(operate::Command),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Cert(arguments) => output::exit(cert::run(&arguments)),
        Command::Demo(arguments) => output::exit(demo::run(&arguments)),
        Command::DemoNode(arguments) => demo::node::run(&arguments),
        #[cfg(feature = "agent")]
        Command::Operate(command) => operate::run(command),
    }
}
