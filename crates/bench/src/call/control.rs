//! How long control frames take while data is saturated.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use keydispatch::{NewService, Node};
use serde_json::json;

use super::bench::Bench;
use super::far::{PROBE, Sightings};
use super::load::{Pace, load};
use keydispatch_fleet::Error;
use keydispatch_measure::{Target, cells, median, monotonic_nanos, quantile};

/// Pause between two probes.
const PAUSE: Duration = Duration::from_millis(3);

pub(super) async fn measure(bench: &mut Bench) -> Result<(), Error> {
    let window = bench.rounds.window * bench.rounds.count as u32;
    let idle = probe(bench, window, 0).await?;
    let base = median(&idle);
    let mut rows = vec![cells(["data lane", "p50 ms", "p99 ms", "p99 added ms"])];
    let mut found = Vec::new();
    let mut worst = 0_f64;
    let mut row = |name: &str, delays: &[f64]| {
        let (p50, p99) = (median(delays), quantile(delays, 0.99));
        let added = p99 - base;
        let shown = [p50, p99, added].map(|delay| format!("{delay:.2}"));
        rows.push([vec![name.to_owned()], shown.to_vec()].concat());
        found.push(json!({"data": name, "p50_ms": p50, "p99_ms": p99, "added_p99_ms": added}));
        added
    };
    row("idle", &idle);
    for (callers, payload, name) in [
        (256, 64, "256 callers, 64 B"),
        (16, 256 * 1024, "16 callers, 256 KiB"),
    ] {
        let calls = bench.calls.clone();
        let far = bench.far.id();
        let loading = tokio::spawn(async move {
            let message = Bytes::from(vec![7; payload]);
            load(
                &calls,
                far,
                callers,
                &message,
                window + Duration::from_millis(300),
                Pace::Full,
            )
            .await
            .map(|_| ())
        });
        tokio::time::sleep(Duration::from_millis(150)).await;
        let delays = probe(bench, window, callers).await?;
        loading.await??;
        worst = worst.max(row(name, &delays));
    }
    bench.output.table(
        "From add_service returning to the entry seen by the other process, by what the data lane does",
        &rows,
    );
    let name = "control frames while data is saturated, p99 added to the idle median, ms";
    bench.targets.push(Target::at_most(name, worst, 10.0));
    bench.figures.insert("control".to_owned(), json!(found));
    Ok(())
}

/// Milliseconds from the return of `add_service` here to the sight of it there.
async fn probe(bench: &Bench, window: Duration, run: usize) -> Result<Vec<f64>, Error> {
    let registry = bench.node.registry();
    let end = tokio::time::Instant::now() + window;
    let mut added = HashMap::new();
    // Removed when all were seen: what comes and goes between two messages is never told.
    let mut registrations = Vec::new();
    let mut number = 0;
    while tokio::time::Instant::now() < end {
        let name = format!("{run}/{number}");
        number += 1;
        let registration = registry
            .add_service(NewService::endpoint(PROBE, name.clone()))
            .await?;
        added.insert(name, monotonic_nanos());
        registrations.push(registration);
        tokio::time::sleep(PAUSE).await;
    }
    let delays = delays(&bench.node, added).await?;
    for registration in registrations {
        registration.remove().await?;
    }
    Ok(delays)
}

async fn delays(node: &Node, mut added: HashMap<String, u64>) -> Result<Vec<f64>, Error> {
    let sightings = node.services::<Sightings>();
    sightings.wait_online(1).await?;
    let mut delays = Vec::new();
    for _ in 0..200 {
        for (name, seen) in sightings.call(0_u8, ()).await? {
            if let Some(at) = added.remove(&name) {
                delays.push(seen.saturating_sub(at) as f64 / 1e6);
            }
        }
        if added.is_empty() {
            return Ok(delays);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!(
        "{} entries were never seen by the other process",
        added.len()
    )
    .into())
}
