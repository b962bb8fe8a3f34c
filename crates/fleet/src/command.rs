//! The commands, which the benchmarks' program has, too.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Error, net, rolling, soak, test_node};

/// A node that a process runs.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    #[arg(long)]
    name: String,
    #[arg(long)]
    bind: String,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long = "seed")]
    seeds: Vec<String>,
}

/// What there is to run, and the processes that it starts.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// A node that obeys the test that started it, until its standard input closes.
    #[command(hide = true)]
    TestNode(NodeArgs),
    /// A node that obeys lines on its standard input, until that closes.
    #[command(hide = true)]
    Worker(NodeArgs),
    /// Processes that leave and come back in turn while everybody calls: no call may fail, and each runs once.
    Rolling(rolling::Options),
    /// One of the processes of `rolling`.
    #[command(hide = true)]
    RollingNode(rolling::NodeOptions),
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

/// Runs one; processes that it starts are of this program.
pub fn run(command: Command, say: fn(&str)) -> Result<(), Error> {
    if !matches!(command, Command::Net { .. } | Command::Soak { .. }) {
        log();
    }
    let program = std::env::current_exe()?;
    let runtime = tokio::runtime::Runtime::new()?;
    match command {
        Command::TestNode(node) => runtime.block_on(test_node::run(
            node.name,
            node.bind,
            node.seeds,
            node.certificates,
            say,
        )),
        Command::Worker(node) => runtime.block_on(net::worker::run(
            node.name,
            node.bind,
            node.seeds,
            node.certificates,
            say,
        )),
        Command::Rolling(options) => runtime.block_on(rolling::run(&program, &options, say)),
        Command::RollingNode(options) => {
            let outcome = runtime.block_on(rolling::run_node(options, say));
            // Whoever reads the standard input is not waited for.
            runtime.shutdown_background();
            outcome
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
            runtime.block_on(net::run(&program, &options, say))
        }
        Command::Soak {
            minutes,
            seed,
            json,
        } => {
            let options = soak::Options {
                length: Duration::try_from_secs_f64(minutes * 60.0)?,
                json,
                seed,
            };
            runtime.block_on(soak::run(&program, &options, say))
        }
    }
}

/// Logs to standard error what `RUST_LOG` asks for.
pub fn log() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
}
