//! One of the processes: a node that serves and calls, and leaves when it is told to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use keydispatch::NodeBuilder;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use super::counts::{self, Callers, Ran, Tallies};
use super::{configured, keyed};
use crate::fleet::{Error, describe};

/// What such a process is started with.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    #[arg(long)]
    pub(super) name: String,
    #[arg(long)]
    pub(super) bind: String,
    #[arg(long)]
    pub(super) certificates: PathBuf,
    #[arg(long = "seed")]
    pub(super) seeds: Vec<String>,
    #[arg(long)]
    pub(super) pool_size: usize,
    #[arg(long, default_value_t = 1)]
    pub(super) instances: usize,
    #[arg(long, default_value_t = 0)]
    pub(super) callers: usize,
    #[arg(long, default_value_t = 0)]
    pub(super) handler_ms: u64,
    #[arg(long, default_value_t = 0)]
    pub(super) random: u64,
    #[arg(long)]
    pub(super) keyed: bool,
    #[arg(long, default_value_t = 0)]
    pub(super) state_bytes: usize,
    #[arg(long)]
    pub(super) down_period_ms: Option<u64>,
}

impl NodeOptions {
    pub(super) fn describe(&self) -> NodeBuilder {
        let described = describe(&self.name, &self.bind, &self.seeds, &self.certificates);
        configured(described, self.pool_size, self.down_period_ms)
    }
}

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
