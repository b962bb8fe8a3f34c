//! The command `dispatch`: certificates for a cluster, a demonstration on real files, and with the feature `agent` an agent
//! and what operates it.

mod cert;
mod demo;
mod log;
#[cfg(feature = "agent")]
mod operate;
mod output;

use std::process::ExitCode;

#[cfg(feature = "agent")]
use clap::CommandFactory;
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

/// What a build without the agent says of a command that it does not know: most of those that the README names are the agent's.
#[cfg(not(feature = "agent"))]
const WITHOUT_AGENT: &str =
    "this build has neither `agent` nor what asks one: build it with `--features agent`";

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| {
        #[cfg(not(feature = "agent"))]
        if error.kind() == clap::error::ErrorKind::InvalidSubcommand {
            output::complain(format_args!("{error}\n{WITHOUT_AGENT}"));
            std::process::exit(2);
        }
        error.exit()
    });
    match arguments.command {
        Command::Cert(arguments) => output::exit(cert::run(&arguments)),
        Command::Demo(arguments) => output::exit(demo::run(&arguments)),
        Command::DemoNode(arguments) => demo::node::run(&arguments),
        #[cfg(feature = "agent")]
        Command::Operate(command) => operate::run(command, Arguments::command),
    }
}
