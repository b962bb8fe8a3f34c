//! What is asked for, of all and of each process; and what both kinds of rolling share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use keydispatch::NodeBuilder;

use crate::describe;

/// The node of the callers that stay.
pub(super) const STAYS: &str = "stays";

/// How long a process may take to leave.
pub(super) const LEAVE_PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Nodes that leave and come back.
    #[arg(long, default_value_t = 5)]
    pub nodes: usize,
    /// Callers on a node that stays; each of the others has an eighth as many.
    #[arg(long, default_value_t = 64)]
    pub callers: usize,
    /// At least so many calls; with 0 of them and `--keyed`, no planned change is made.
    #[arg(long, default_value_t = 500_000)]
    pub calls: u64,
    /// How long a handler takes, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub handler_ms: u64,
    /// Data connections per peer.
    #[arg(long, default_value_t = 1)]
    pub pool_size: usize,
    /// Services on each node.
    #[arg(long, default_value_t = 16)]
    pub instances: usize,
    /// Of everything that happens by chance.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One keyed service on each node, whose states move: every key is counted up, and nothing may be lost.
    #[arg(long)]
    pub keyed: bool,
    /// With `--keyed`: kill a node afterwards, and let one stand still for four times `down_period`, too.
    #[arg(long, requires = "keyed")]
    pub faults: bool,
    /// With `--keyed`: keys.
    #[arg(long, default_value_t = 10_000)]
    pub keys: usize,
    /// With `--keyed`: bytes of a state.
    #[arg(long, default_value_t = 1_024)]
    pub state_bytes: usize,
    /// With `--keyed`: calls a second, at most.
    #[arg(long, default_value_t = 20_000)]
    pub rate: u64,
    /// How long a node may be silent before it is taken for dead, in milliseconds; the library's default unless this says
    /// otherwise. Where a machine is so busy that a process does not run for longer than that, what is seen is not a planned
    /// change any more: a node is taken for dead, and what it held is begun anew.
    #[arg(long)]
    pub down_period_ms: Option<u64>,
    /// Print a JSON object last.
    #[arg(long)]
    pub json: bool,
}

/// A node as [`describe`] has it, with what was asked for.
pub(super) fn configured(
    described: NodeBuilder,
    pool_size: usize,
    down_period_ms: Option<u64>,
) -> NodeBuilder {
    let described = described.pool_size(pool_size);
    match down_period_ms {
        Some(period) => described.down_period(Duration::from_millis(period)),
        None => described,
    }
}

/// How a process is told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Line,
    Signal,
}

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
