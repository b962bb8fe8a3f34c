//! `dispatch demo`: what the library does, shown on real files, between real processes.

mod certificates;
mod clock;
mod cluster;
mod files;
mod keyed;
pub(crate) mod node;
mod progress;
mod report;
mod story;
mod transfer;
mod uploader;
mod witness;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use keydispatch::StartError;
use keydispatch::testkit::AuthorityError;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output::complain;

/// How long any one thing may take before the demonstration gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Uploads real files to a cluster of three processes, kills one, and reads every file back
///
/// Starts three node processes on this machine, encrypted, each serving an uploader that keeps files in memory. Every file
/// goes to its first two owners, by its path; then one process is killed with SIGKILL, and the second owners of its files
/// answer for it. Exits with 0 only if nothing was lost and nothing moved that should have stayed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A directory, whose .gitignore is honoured, or a file
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
    /// Print the figures as one JSON object, as the last line
    #[arg(long)]
    json: bool,
    /// Leave out files beyond so many MiB in all: every file is kept in memory, twice
    #[arg(long, value_name = "MIB", default_value_t = 1_024)]
    max_total: u64,
    /// Keep each file once, as the state of its name, which goes along when nodes are replaced: each leaves and comes back, and
    /// then one is killed
    #[arg(long)]
    keyed: bool,
    /// Say on standard error what the nodes do
    #[arg(long)]
    verbose: bool,
}

/// Why the demonstration could not be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error(transparent)]
    Files(#[from] files::FilesError),
    #[error("cannot make the directory for the certificates: {0}")]
    Directory(io::Error),
    #[error(transparent)]
    Certificates(#[from] AuthorityError),
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("the node process {name} did not start: {why}")]
    NodeProcess { name: &'static str, why: String },
    #[error("this process did not join the cluster: {0}")]
    Join(#[from] StartError),
    #[error("the demonstration broke off: {0}")]
    Unexpected(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl DemoError {
    fn unexpected(why: impl Display) -> DemoError {
        DemoError::Unexpected(why.to_string())
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, DemoError> {
    log(arguments.verbose);
    let runtime = tokio::runtime::Runtime::new().map_err(DemoError::Runtime)?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            // First of all the signals are caught: before there is anything that they could leave behind.
            biased;
            stopped = interrupted() => stopped,
            outcome = tell(arguments) => outcome,
        }
    });
    // A thread may still read a file; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

async fn tell(arguments: &Arguments) -> Result<ExitCode, DemoError> {
    if arguments.keyed {
        keyed::tell(arguments).await
    } else {
        story::tell(arguments).await
    }
}

/// Waits to be told to stop. What was going on is dropped then, and with it the processes and the certificates.
async fn interrupted() -> Result<ExitCode, DemoError> {
    let caught = |kind| signal(kind).map_err(DemoError::Runtime);
    let mut interrupt = caught(SignalKind::interrupt())?;
    let mut terminate = caught(SignalKind::terminate())?;
    let mut hangup = caught(SignalKind::hangup())?;
    // Shells report 128 and the number of the signal.
    let code = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
        _ = hangup.recv() => 129,
    };
    complain("interrupted: the nodes are stopped, and nothing is left behind");
    Ok(ExitCode::from(code))
}

/// Logs to standard error: what `RUST_LOG` says, or next to nothing, unless more is asked for.
fn log(verbose: bool) {
    log_as(if verbose { "keydispatch=info" } else { "off" });
}

/// Logs to standard error: what `RUST_LOG` says, or what is given.
pub(crate) fn log_as(default: &str) {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let wanted = if asked.is_empty() { default } else { &asked };
    let filter = wanted.parse::<Targets>().unwrap_or_else(|error| {
        complain(format!("RUST_LOG is not heeded: {error}"));
        Targets::new()
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}
