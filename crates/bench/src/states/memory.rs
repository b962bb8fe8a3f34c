//! What a key takes that nobody calls.

use std::time::Instant;

use keydispatch::{Adapter, Key, KeyBytes, Node};
use serde_json::json;

use super::Bench;
use super::service::{Shelf, Shelves};
use crate::Follower;
use crate::fleet::Error;
use keydispatch_measure::{Target, cells, figure, process};
use tokio::task::JoinSet;

/// Bytes of each state.
const STATE_BYTES: u32 = 8;

/// Tasks that open keys at once.
const OPENERS: u64 = 64;

/// Opens so many keys in a process of its own, and says how long that took and how much larger the process is.
pub(super) async fn have(keys: u64, say: fn(&str)) -> Result<(), Error> {
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

impl Bench {
    pub(super) async fn memory(&mut self) -> Result<(), Error> {
        let keys = if self.quick { 100_000_u64 } else { 1_000_000 };
        let path = self.certificates.path().as_os_str();
        let count = keys.to_string();
        let mut alone = Follower::start([
            "states-far".as_ref(),
            "--certificates".as_ref(),
            path,
            "--quiet-keys".as_ref(),
            count.as_ref(),
        ])?;
        let had = alone.expect("had").await?;
        let (seconds, bytes) = had.split_once(' ').ok_or("two figures were expected")?;
        let (seconds, bytes): (f64, f64) = (seconds.parse()?, bytes.parse()?);
        let key_bytes = KeyBytes::from(keys / 2).as_bytes().len() as f64;
        debug_assert_eq!(KeyBytes::from(keys / 2).key(), Key::from(keys / 2));
        let beyond = bytes / keys as f64 - key_bytes - f64::from(STATE_BYTES);
        let mut rows = vec![cells([
            "keys",
            "seconds",
            "keys/s",
            "MB",
            "bytes each beyond state and key",
        ])];
        rows.push(vec![
            keys.to_string(),
            format!("{seconds:.1}"),
            figure(keys as f64 / seconds),
            figure(bytes / 1e6),
            figure(beyond),
        ]);
        self.output.table(
            "Keys that were opened by a call each, and are quiet; a state of 8 bytes",
            &rows,
        );
        let name = "bytes of a quiet key beyond its state and key";
        self.targets.push(Target::at_most(name, beyond, 200.0));
        self.figures.insert(
            "memory".to_owned(),
            json!({"keys": keys, "seconds": seconds, "bytes": bytes, "beyond": beyond}),
        );
        Ok(())
    }
}
