//! The other processes: nodes that say what they see and when.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use keydispatch::{NewService, Node, ServiceEvent, Subscription};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::call::Echo;
use keydispatch_fleet::{self as fleet, Error};
use keydispatch_measure::monotonic_nanos;

/// Services added by one command, where they are added in batches.
pub(super) const BATCH: usize = 1_000;

/// The type that is watched.
pub(super) const PROBE: &str = "probe";

/// How the hidden command is told what to be.
#[derive(Args)]
pub struct Far {
    #[arg(long)]
    name: String,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long = "seed")]
    seeds: Vec<String>,
}

/// What joined and left, and when by the machine's clock.
#[derive(Default)]
struct Seen {
    joined: Vec<(String, u64)>,
    left: Vec<(String, u64)>,
}

/// Runs the hidden command. It is told line by line:
///
/// - `own N`: register N probes; answers `own`.
/// - `fill FIRST END EACH`: register endpoints of those numbers in batches, EACH of a type; answers `fill`.
/// - `echo`: serve the echo; answers `echo`.
/// - `count NODE N`: wait until it has N entries of that node or more; answers `count NANOS`.
/// - `empty NODE`: wait until it has none; answers `empty NANOS`.
/// - `joined`, `left`: answers with the word, then a name and a time for each sight since it was last asked.
pub fn run_far(far: Far, say: fn(&str)) -> Result<(), Error> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let node = fleet::describe(&far.name, "127.0.0.1:0", &far.seeds, &far.certificates)
            .start()
            .await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        tokio::spawn(watch(node.registry().subscribe(PROBE)?, Arc::clone(&seen)));
        say(&format!("ready {}", node.address()));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["own", count] => {
                    let probes = (0..count.parse::<usize>()?).map(|number| {
                        NewService::endpoint(PROBE, format!("{}/{number}", far.name))
                    });
                    node.registry()
                        .add_services(probes.collect::<Vec<_>>())
                        .await?;
                    say("own");
                }
                ["fill", first, end, each] => {
                    fill(&node, first.parse()?, end.parse()?, each.parse()?).await?;
                    say("fill");
                }
                ["echo"] => {
                    node.serve(Echo).await?;
                    say("echo");
                }
                ["count", owner, count] => {
                    let count: usize = count.parse()?;
                    let at = once(&node, owner, |entries| entries >= count).await?;
                    say(&format!("count {at}"));
                }
                ["empty", owner] => {
                    let at = once(&node, owner, |entries| entries == 0).await?;
                    say(&format!("empty {at}"));
                }
                [word @ ("joined" | "left")] => {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    let sights = match *word {
                        "joined" => std::mem::take(&mut seen.joined),
                        _ => std::mem::take(&mut seen.left),
                    };
                    let sights: Vec<String> = sights
                        .iter()
                        .map(|(name, at)| format!("{name} {at}"))
                        .collect();
                    say(&format!("{word} {}", sights.join(" ")));
                }
                _ => return Err(format!("not understood: {line}").into()),
            }
        }
        Ok(())
    })
}

async fn fill(node: &Node, first: usize, end: usize, each: usize) -> Result<(), Error> {
    for first in (first..end).step_by(BATCH) {
        let services = (first..end.min(first + BATCH)).map(|number| {
            let service_type = format!("type {}", number / each);
            NewService::endpoint(service_type, format!("host:{number}"))
        });
        node.registry()
            .add_services(services.collect::<Vec<_>>())
            .await?;
    }
    Ok(())
}

/// Waits until so many of a node's entries show here, and says when they did.
async fn once(node: &Node, owner: &str, enough: impl Fn(usize) -> bool) -> Result<u64, Error> {
    loop {
        let stats = node.stats().await.ok_or("the node has stopped")?;
        let shown = stats
            .cluster
            .owners
            .iter()
            .find(|other| other.node.name.as_str() == owner && other.visible)
            .map_or(0, |other| other.entries);
        if enough(shown) {
            return Ok(monotonic_nanos());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn watch(mut events: Subscription, seen: Arc<Mutex<Seen>>) {
    let mut known = HashSet::new();
    while let Some(event) = events.next().await {
        let now = monotonic_nanos();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ServiceEvent::Joined(info) => {
                known.insert(info.name().clone());
                seen.joined.push((info.name().as_str().to_owned(), now));
            }
            ServiceEvent::Left(info) => {
                known.remove(info.name());
                seen.left.push((info.name().as_str().to_owned(), now));
            }
            // First, and where this was too slow to hear of each.
            ServiceEvent::Current(view) => {
                let current: HashSet<_> = view
                    .services()
                    .iter()
                    .map(|info| info.name().clone())
                    .collect();
                for gone in known.difference(&current) {
                    seen.left.push((gone.as_str().to_owned(), now));
                }
                for new in current.difference(&known) {
                    seen.joined.push((new.as_str().to_owned(), now));
                }
                known = current;
            }
            _ => {}
        }
    }
}
