//! Benchmarks beside peers and floors; and the simulator and what runs node processes, which have programs of their own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use keydispatch_bench::{agent, call, limits, load, lookup, register, states};
use keydispatch_fleet::log;
use keydispatch_measure::allocations;

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
    /// What asking an agent costs, beside a static answer of the same server; what it costs when nobody asks.
    Agent(agent::Options),
    /// The agents that `agent` asks.
    #[command(hide = true)]
    AgentFar(agent::Far),
    /// What it costs to add services, to see those of others, and to lose a node.
    Register(register::Options),
    /// What one peer costs that registers as much as a node may.
    Limits(limits::Options),
    /// The processes that see what `register` adds.
    #[command(hide = true)]
    RegisterFar(register::Far),
    /// The process that `call` calls.
    #[command(hide = true)]
    CallFar {
        #[arg(long)]
        certificates: PathBuf,
    },
    /// What states by key cost: a keyed call beside a plain one, a quiet key's memory, and a gigabyte that moves.
    States(states::Options),
    /// The process that `states` calls.
    #[command(hide = true)]
    StatesFar(states::FarOptions),
    /// Runs simulated clusters: many histories, each determined by its seed, or the stated scale.
    Sim(keydispatch_sim::Args),
    /// Simulates routing: policies side by side over skew, callers, slow instances, hot keys and caches.
    Route(keydispatch_sim::route::RouteArgs),
    /// Routing among real processes: skewed keys, one slow instance, by owner and bounded.
    Load(load::Options),
    /// One of the processes of `load` that serve.
    #[command(hide = true)]
    LoadWorker(load::WorkerOptions),
    /// One of those that call.
    #[command(hide = true)]
    LoadCaller(load::CallerOptions),
    #[command(flatten)]
    Fleet(keydispatch_fleet::Command),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if let Command::Sim(arguments) = &command {
        return keydispatch_sim::run(arguments, say);
    }
    if let Command::Route(arguments) = &command {
        return keydispatch_sim::route::run_command(arguments, say);
    }
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), keydispatch_fleet::Error> {
    match command {
        // These have exit codes of their own.
        Command::Sim(_) | Command::Route(_) => Ok(()),
        Command::Lookup(options) => lookup::run(options, say),
        Command::Call(options) => call::run(options, say),
        Command::States(options) => states::run(options, say),
        Command::StatesFar(options) => states::run_far(options, say),
        Command::Load(options) => {
            log();
            let program = std::env::current_exe()?;
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(load::run(&program, &options, say))
        }
        Command::LoadWorker(options) => {
            log();
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(load::run_worker(options, say))
        }
        Command::LoadCaller(options) => {
            log();
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(load::run_caller(options, say))
        }
        Command::Agent(options) => agent::run(options, say),
        Command::AgentFar(far) => agent::run_far(far, say),
        Command::Register(options) => {
            log();
            register::run(options, say)
        }
        Command::Limits(options) => {
            log();
            limits::run(options, say)
        }
        Command::RegisterFar(far) => {
            log();
            register::run_far(far, say)
        }
        Command::CallFar { certificates } => call::run_far(certificates, say),
        Command::Fleet(command) => keydispatch_fleet::run(command, say),
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
