//! One of the processes: a node that serves and calls, and leaves when it is told to.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use super::counts::{self, Callers, Ran, Tallies};
use super::keyed;
use super::options::NodeOptions;
use crate::Error;

/// Serves and calls until it is told to leave, by a line or by SIGTERM; says last what it has seen.
pub async fn run(options: NodeOptions, say: impl Fn(&str)) -> Result<(), Error> {
    if options.keyed {
        return keyed::run_node(options, say).await;
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let node = options.describe().start().await?;
    let ran = Ran::new();
    let takes = Duration::from_millis(options.handler_ms);
    counts::serve(&node, &ran, options.instances, takes).await?;
    let services = node.services::<Tallies>();
    let callers = Callers::start(&services, options.callers, options.random);
    say(&format!("ready {}", node.address()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = terminated.recv() => Some("leave".to_owned()),
        };
        match line.as_deref() {
            Some("quiet") => callers.stop(),
            Some("leave") => break,
            Some(other) => return Err(format!("what does {other:?} mean?").into()),
            // Whoever started it has ended.
            None => return Ok(()),
        }
    }
    if let Err(error) = node.leave().await {
        tracing::warn!(%error, "leaving");
    }
    let mut seen = callers.finish().await;
    seen.take_ran(&ran);
    say(&format!("left {}", serde_json::to_string(&seen)?));
    Ok(())
}
