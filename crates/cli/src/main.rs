//! The command `dispatch`: certificates for a cluster, and a demonstration on real files.

mod cert;
mod demo;
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
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Cert(arguments) => output::exit(cert::run(&arguments)),
        Command::Demo(arguments) => output::exit(demo::run(&arguments)),
        Command::DemoNode(arguments) => demo::node::run(&arguments),
    }
}
