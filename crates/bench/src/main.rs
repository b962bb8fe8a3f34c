//! Benchmarks beside peers and floors, the simulator, and the node processes that tests drive: one command each.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use keydispatch_bench::{allocations, call, fleet, lookup, register};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What finding the owner of a key costs, beside hashing the key and beside other crates.
    Lookup(lookup::Options),
    /// What calling a service in another process costs, beside a plain TLS echo and beside other crates.
    Call(call::Options),
    /// What it costs to add services, to see those of others, and to lose a node.
    Register(register::Options),
    /// The processes that see what `register` adds.
    #[command(hide = true)]
    RegisterFar(register::Far),
    /// The process that `call` calls.
    #[command(hide = true)]
    CallFar {
        #[arg(long)]
        certificates: PathBuf,
    },
    /// A node that obeys the test that started it, until its standard input closes.
    #[command(hide = true)]
    Puppet {
        #[arg(long)]
        name: String,
        #[arg(long)]
        bind: String,
        #[arg(long)]
        certificates: PathBuf,
        #[arg(long = "seed")]
        seeds: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), fleet::Error> {
    match arguments.command {
        Command::Lookup(options) => lookup::run(options, say),
        Command::Call(options) => call::run(options, say),
        Command::Register(options) => register::run(options, say),
        Command::RegisterFar(far) => register::run_far(far, say),
        Command::CallFar { certificates } => call::run_far(certificates, say),
        Command::Puppet {
            name,
            bind,
            certificates,
            seeds,
        } => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                .init();
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(fleet::run_puppet(
                name,
                bind,
                seeds,
                certificates,
                |address| {
                    say(&format!("ready {address}"));
                },
            ))
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a command's complaint")]
fn report(line: &str) {
    eprintln!("{line}");
}
