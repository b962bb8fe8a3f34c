//! `dispatch demo`: what the library does, shown on real files, between real processes.

mod arguments;
mod certificates;
mod clock;
mod cluster;
mod collect;
mod error;
mod files;
mod keeper;
mod keyed;
pub(crate) mod node;
mod process;
mod progress;
mod report;
mod story;
mod transfer;
mod uploader;
mod witness;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::output::complain;
pub(crate) use arguments::Arguments;
pub(crate) use error::DemoError;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, DemoError> {
    crate::log::of_demo(arguments.verbose);
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
