//! Benchmarks beside peers and floors, the simulator, and the node processes that tests drive: one command each.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use keydispatch_bench::{
    agent, call, fleet, limits, load, lookup, net, register, rolling, soak, states,
};
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
    /// A node that obeys lines on its standard input, until that closes.
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        name: String,
        #[arg(long)]
        bind: String,
        #[arg(long)]
        certificates: PathBuf,
        #[arg(long = "seed")]
        seeds: Vec<String>,
    },
    /// Processes that leave and come back in turn while everybody calls: no call may fail, and each runs once.
    Rolling(rolling::Options),
    /// One of the processes of `rolling`.
    #[command(hide = true)]
    RollingNode(rolling::NodeOptions),
    /// Routing among real processes: skewed keys, one slow instance, by owner and bounded.
    Load(load::Options),
    /// One of the processes of `load` that serve.
    #[command(hide = true)]
    LoadWorker(load::WorkerOptions),
    /// One of those that call.
    #[command(hide = true)]
    LoadCaller(load::CallerOptions),
    /// Five nodes in network namespaces of their own, on networks that go wrong; needs root.
    Net {
        /// Only this one.
        #[arg(long)]
        scenario: Option<String>,
        /// Of everything that happens by chance.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print a JSON object last.
        #[arg(long)]
        json: bool,
    },
    /// Five processes under constant change and calls, some of them killed now and then; nothing may leak.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
        /// Of everything that happens by chance.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print a JSON object last.
        #[arg(long)]
        json: bool,
    },
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

fn run(command: Command) -> Result<(), fleet::Error> {
    match command {
        // These have exit codes of their own.
        Command::Sim(_) | Command::Route(_) => Ok(()),
        Command::Lookup(options) => lookup::run(options, say),
        Command::Call(options) => call::run(options, say),
        Command::States(options) => states::run(options, say),
        Command::StatesFar(options) => states::run_far(options, say),
        Command::Rolling(options) => {
            log();
            let program = std::env::current_exe()?;
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(rolling::run(&program, &options, say))
        }
        Command::RollingNode(options) => {
            log();
            let runtime = tokio::runtime::Runtime::new()?;
            let outcome = runtime.block_on(rolling::run_node(options, say));
            // Whoever reads the standard input is not waited for.
            runtime.shutdown_background();
            outcome
        }
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
        Command::Puppet {
            name,
            bind,
            certificates,
            seeds,
        } => {
            log();
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
        Command::Worker {
            name,
            bind,
            certificates,
            seeds,
        } => {
            log();
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(net::worker::run(name, bind, seeds, certificates, say))
        }
        Command::Net {
            scenario,
            seed,
            json,
        } => {
            let options = net::Options {
                scenario,
                json,
                seed,
            };
            let program = std::env::current_exe()?;
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(net::run(&program, &options, say))
        }
        Command::Soak {
            minutes,
            seed,
            json,
        } => {
            let options = soak::Options {
                length: std::time::Duration::try_from_secs_f64(minutes * 60.0)?,
                json,
                seed,
            };
            let program = std::env::current_exe()?;
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(soak::run(&program, &options, say))
        }
    }
}

fn log() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
}

#[expect(clippy::print_stdout, reason = "a command's output")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "a command's complaint")]
fn report(line: &str) {
    eprintln!("{line}");
}
