//! The process that has the states.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use keydispatch::{Adapter, KeyedOptions, Node};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::service::{STATE_BYTES, Shelf, Shelves};
use crate::call::{Echo, KeyedEcho, echo};
use keydispatch_fleet::{self as fleet, Error};
use keydispatch_measure::process;

/// Tasks that open keys at once.
const OPENERS: u64 = 64;

/// What the other process is started with.
#[derive(Args, Clone)]
pub struct FarOptions {
    #[arg(long)]
    certificates: PathBuf,
    /// Have so many quiet keys, alone, and say what they took.
    #[arg(long)]
    quiet_keys: Option<u64>,
}

/// Runs the hidden command.
pub fn run_far(options: FarOptions, say: fn(&str)) -> Result<(), Error> {
    tokio::runtime::Runtime::new()?.block_on(async {
        if let Some(keys) = options.quiet_keys {
            return have(keys, say).await;
        }
        let certificates = options.certificates;
        let node = fleet::describe("far", "127.0.0.1:0", &[], &certificates)
            .start()
            .await?;
        node.serve(Echo).await?;
        node.serve_keyed(KeyedEcho).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let echo_address = listener.local_addr()?;
        tokio::spawn(async move {
            // Ends with the process, or with the listener.
            let _ = echo::serve(listener, &certificates, "far").await;
        });
        say(&format!("ready {} {echo_address}", node.address()));
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            if line == "shelf" {
                node.serve_keyed_with(KeyedOptions::new(), Shelf).await?;
                say("served");
            }
        }
        Ok(())
    })
}

/// Opens so many keys in a process of its own, and says how long that took and how much larger the process is.
async fn have(keys: u64, say: fn(&str)) -> Result<(), Error> {
    let node = Node::builder("alone")
        .adapter(Adapter::Local)
        .start()
        .await?;
    node.serve_keyed(Shelf).await?;
    let handle = node.keyed::<Shelves>();
    handle.wait_online(1).await?;
    let own = std::process::id();
    // Whatever is set up at first is no part of a key.
    for key in 0..10_000_u64 {
        handle.call(u64::MAX - key, STATE_BYTES).await?;
    }
    let (before, began) = (process::resident(own), Instant::now());
    let mut tasks = JoinSet::new();
    for opener in 0..OPENERS {
        let handle = handle.clone();
        tasks.spawn(async move {
            for key in (opener..keys).step_by(OPENERS as usize) {
                handle.call(key, STATE_BYTES).await?;
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let seconds = began.elapsed().as_secs_f64();
    let bytes = process::resident(own).saturating_sub(before);
    let stats = node.stats().await.ok_or("the node has ended")?;
    let there = stats.data.keys as u64;
    if there < keys {
        return Err(format!("{there} keys of {keys} have a state").into());
    }
    say(&format!("had {seconds} {bytes}"));
    Ok(())
}
