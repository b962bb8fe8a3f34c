//! One of the processes that serve: an instance that is at work on one call at a time, as long for each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use keydispatch::{Context, Protocol, ReplyTo, Service};

use keydispatch_fleet::{Error, describe};

/// The calls. A reply says how many microseconds its instance was at work on it.
pub(super) struct Works;

impl Protocol for Works {
    const NAME: &'static str = "work";
    /// Whether there is anything to do.
    type Call = bool;
    type Reply = u32;
    type Cast = ();
}

struct Work {
    takes: Duration,
}

impl Service for Work {
    type Protocol = Works;

    async fn handle_call(&mut self, has_work: bool, reply_to: ReplyTo<u32>, _: &mut Context<Self>) {
        let began = Instant::now();
        if has_work {
            let until = began + self.takes;
            // The timers of tokio are of a millisecond, which is all of the work. To compute instead would make it a figure of
            // how many processors there are.
            let waited = tokio::task::spawn_blocking(move || {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            });
            if waited.await.is_err() {
                return;
            }
        }
        reply_to.reply(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

/// What such a process is started with.
#[derive(Clone, Debug, Args)]
pub struct WorkerOptions {
    #[arg(long)]
    name: String,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long = "seed")]
    seeds: Vec<String>,
    #[arg(long)]
    work_us: u64,
}

/// Serves until its standard input closes.
pub async fn run(options: WorkerOptions, say: fn(&str)) -> Result<(), Error> {
    let node = describe(
        &options.name,
        "127.0.0.1:0",
        &options.seeds,
        &options.certificates,
    )
    .start()
    .await?;
    let takes = Duration::from_micros(options.work_us);
    node.serve(Work { takes }).await?;
    say(&format!("ready {}", node.address()));
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    Ok(())
}
