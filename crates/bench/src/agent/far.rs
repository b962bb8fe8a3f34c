//! The other processes: agents.

use std::path::PathBuf;

use clap::Args;
use keydispatch_agent::{Agent, Layers, Origin};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::io::{AsyncBufReadExt, BufReader};

use keydispatch_fleet::Error;

/// How the hidden command is told what to be.
#[derive(Args)]
pub struct Far {
    #[arg(long)]
    name: String,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long = "seed")]
    seeds: Vec<String>,
    /// The core that all of it runs on.
    #[arg(long)]
    core: Option<usize>,
}

/// Runs the hidden command: says `ready` and where other nodes reach it, and goes on until its standard input closes.
pub fn run_far(far: Far, say: fn(&str)) -> Result<(), Error> {
    if let Some(core) = far.core {
        pin(core)?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(async {
        std::fs::create_dir_all(&far.directory)?;
        let file = |directory: &PathBuf, name: String| directory.join(name).display().to_string();
        let mut layers = Layers::default();
        for (key, value) in [
            ("node.name", far.name.clone()),
            ("node.bind", "127.0.0.1:0".to_owned()),
            ("node.seeds", far.seeds.join(",")),
            ("node.ca", file(&far.certificates, "ca.pem".to_owned())),
            (
                "node.cert",
                file(&far.certificates, format!("{}.pem", far.name)),
            ),
            (
                "node.key",
                file(&far.certificates, format!("{}.key", far.name)),
            ),
            ("pubsub.name", keydispatch_fleet::CLUSTER.to_owned()),
            (
                "agent.api.socket",
                file(&far.directory, "agent.sock".to_owned()),
            ),
            ("agent.ops.bind", "127.0.0.1:0".to_owned()),
            ("agent.state_dir", file(&far.directory, "state".to_owned())),
        ] {
            layers.flag(key, &value, Origin::Default)?;
        }
        let agent = Agent::start(layers.finish()?, &far.name).await?;
        say(&format!("ready {}", agent.listening().mesh));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while lines.next_line().await?.is_some() {}
        agent.stop().await?;
        Ok(())
    });
    // Whoever reads the standard input is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Keeps this thread, and those that it starts, on one core.
pub(super) fn pin(core: usize) -> Result<(), Error> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}
