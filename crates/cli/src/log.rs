//! Where the log goes.

use std::io;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output::complain;

/// Logs to standard error: what `RUST_LOG` says, or next to nothing, unless more is asked for.
pub(crate) fn of_demo(verbose: bool) {
    to_stderr(if verbose { "keydispatch=info" } else { "off" });
}

/// Logs to standard error: what `RUST_LOG` says, or what is given.
pub(crate) fn to_stderr(default: &str) {
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
