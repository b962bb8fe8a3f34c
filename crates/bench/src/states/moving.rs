//! States that move, and what calls of keys that stay feel of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;

use super::Bench;
use super::service::{Shelf, Shelves};
use crate::call::{KeyedEchoes, Load, Pace, Subject, load};
use keydispatch_fleet::Error;
use keydispatch_measure::{Target, cells, figure, median};

/// Bytes of each state.
const STATE_BYTES: u32 = 256 * 1024;

/// Calls a second of keys that stay.
const CALLS: f64 = 2_000.0;

impl Bench {
    /// This node has the states; the other one comes, takes its half, and gets the rest when this one is drained.
    pub(super) async fn moving(&mut self) -> Result<(), Error> {
        // Half of them is what moves with the drain: 1 GiB.
        let keys = if self.quick { 512_u64 } else { 8_192 };
        let served = self.node.serve_keyed(Shelf).await?;
        let handle = self.node.keyed::<Shelves>();
        handle.wait_online(1).await?;
        for key in 0..keys {
            handle.call(key, STATE_BYTES).await?;
        }
        self.far.tell("shelf").await?;
        self.far.expect("served").await?;
        handle.wait_online(2).await?;
        let (far, message) = (self.far.id(), Bytes::from_static(&[7; 64]));
        let still = Subject::Keyed(
            self.node.keyed::<KeyedEchoes>(),
            Arc::new(AtomicU64::new(0)),
        );
        // At rest: what is here is what this instance is first for.
        let here = loop {
            let own = (0..keys).filter(|key| {
                let owner = handle.find(*key);
                owner.is_ok_and(|owner| owner.id() == served.id())
            });
            let own = own.count();
            let stats = self.node.stats().await.ok_or("the node has ended")?;
            if stats.data.keys == own {
                break own as u64;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut quiet = Vec::new();
        for _ in 0..self.rounds {
            let pace = Pace::Rate(CALLS);
            quiet.push(
                load(&still, far, 64, &message, self.window, pace)
                    .await?
                    .p99(),
            );
        }
        let floor = self.floor().await?;
        let calling = {
            let (still, stop) = (still.clone(), Arc::new(AtomicU64::new(0)));
            let ended = Arc::clone(&stop);
            let task = tokio::spawn(async move { latencies(&still, &ended).await });
            (task, stop)
        };
        let began = Instant::now();
        self.node.drain(Duration::from_secs(300)).await?;
        let seconds = began.elapsed().as_secs_f64();
        calling.1.store(1, Ordering::Relaxed);
        let mut nanos = calling.0.await??;
        nanos.sort_unstable();
        let at = nanos.len().saturating_sub(1) * 99 / 100;
        let during = nanos.get(at).map_or(0.0, |nanos| *nanos as f64 / 1e3);
        let bytes = (here * u64::from(STATE_BYTES)) as f64;
        let (rate, quiet) = (bytes / seconds, median(&quiet));
        let mut rows = vec![cells([
            "states moved",
            "MiB",
            "seconds",
            "MB/s",
            "TLS echo MB/s",
            "ratio",
            "p99 µs of other keys before",
            "while",
            "ratio",
        ])];
        rows.push(vec![
            here.to_string(),
            figure(bytes / 1_048_576.0),
            format!("{seconds:.2}"),
            figure(rate / 1e6),
            figure(floor / 1e6),
            format!("{:.2}", rate / floor),
            figure(quiet),
            figure(during),
            format!("{:.2}", during / quiet),
        ]);
        let title = "A node is drained: states of 256 KiB go to another process; TLS";
        self.output.table(title, &rows);
        let name = "bytes of states a second / TLS echo's";
        self.targets.push(Target::at_least(name, rate / floor, 0.5));
        let name = "p99 of calls to keys that stay, while states move / before";
        self.targets
            .push(Target::at_most(name, during / quiet, 2.0));
        self.figures.insert(
            "moving".to_owned(),
            json!({
                "states": here, "bytes": bytes, "seconds": seconds, "bytes_per_s": rate,
                "echo_bytes_per_s": floor, "p99_us_before": quiet, "p99_us_while": during,
            }),
        );
        Ok(())
    }

    /// Bytes a second in one direction that a plain TLS echo carries in messages of a state's size.
    async fn floor(&self) -> Result<f64, Error> {
        let (echo, message) = (
            Subject::Echo(self.echo.clone()),
            Bytes::from(vec![7; STATE_BYTES as usize]),
        );
        let mut rates = Vec::new();
        for _ in 0..self.rounds {
            let seen = load(&echo, self.far.id(), 4, &message, self.window, Pace::Full).await?;
            rates.push(Load::rate(&seen) * f64::from(STATE_BYTES));
        }
        Ok(median(&rates))
    }
}

/// How long calls take, at a steady pace, until it is over.
async fn latencies(subject: &Subject, stop: &AtomicU64) -> Result<Vec<u64>, Error> {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / CALLS));
    let mut calls = JoinSet::new();
    let mut nanos = Vec::new();
    while stop.load(Ordering::Relaxed) == 0 {
        ticks.tick().await;
        let subject = subject.clone();
        calls.spawn(async move {
            let began = Instant::now();
            subject.call(&Bytes::from_static(&[7; 64])).await?;
            Ok::<u64, Error>(began.elapsed().as_nanos() as u64)
        });
        while let Some(done) = calls.try_join_next() {
            nanos.push(done??);
        }
    }
    while let Some(done) = calls.join_next().await {
        nanos.push(done??);
    }
    Ok(nanos)
}
