//! `states`: what states by key cost: a keyed call beside a plain one, a quiet key's memory, and a gigabyte that moves.

use std::time::Duration;

use clap::Args;
use keydispatch::Node;

use crate::call::echo;
use keydispatch_fleet::{self as fleet, Certificates, Child, Error, this_program};
use keydispatch_measure::{Output, Target};

mod calls;
mod far;
mod memory;
mod moving;
mod service;

pub use far::{FarOptions, run_far};

/// See the module.
#[derive(Args, Clone)]
pub struct Options {
    /// Print one object last.
    #[arg(long)]
    json: bool,
    /// Fewer and shorter rounds, a tenth of the keys, and a sixteenth of the bytes: for a look, not for a record.
    #[arg(long)]
    quick: bool,
}

/// What the measurements share.
struct Bench {
    output: Output,
    quick: bool,
    rounds: usize,
    window: Duration,
    certificates: Certificates,
    node: Node,
    far: Child,
    echo: echo::Client,
    figures: serde_json::Map<String, serde_json::Value>,
    targets: Vec<Target>,
}

/// Runs the command.
pub fn run(options: Options, say: fn(&str)) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(options, say))
}

async fn measure(options: Options, say: fn(&str)) -> Result<(), Error> {
    let certificates = Certificates::make(&["near", "far"])?;
    let path = certificates.path().as_os_str();
    let command = this_program(["states-far".as_ref(), "--certificates".as_ref(), path])?;
    let far = Child::start(command, "far").await?;
    let ready = far.ready().to_owned();
    let (address, echo_address) = ready.split_once(' ').ok_or("two addresses were expected")?;
    let node = fleet::describe(
        "near",
        "127.0.0.1:0",
        &[address.to_owned()],
        certificates.path(),
    )
    .start()
    .await?;
    let echo = echo::Client::connect(echo_address, &certificates).await?;
    let (rounds, window) = if options.quick { (3, 200) } else { (9, 500) };
    let mut bench = Bench {
        output: Output {
            say,
            json: options.json,
        },
        quick: options.quick,
        rounds,
        window: Duration::from_millis(window),
        certificates,
        node,
        far,
        echo,
        figures: serde_json::Map::new(),
        targets: Vec::new(),
    };
    bench.calls().await?;
    bench.moving().await?;
    bench.memory().await?;
    Ok(bench
        .output
        .finish("states", bench.figures, &bench.targets)?)
}
