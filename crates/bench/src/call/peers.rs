//! Other crates, measured by a program of their own between our rounds.

use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bench::{Bench, Pair};
use super::load::{Load, Pace, load};
use keydispatch_fleet::Error;
use keydispatch_measure::{Target, cells, figure, median};

/// What the program prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Printed {
    calls_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Their names, and the targets: how many times faster we should be at 256 callers.
const PEERS: [(&str, f64); 2] = [("tonic", 8.0), ("ractor_cluster", 3.0)];

pub(super) async fn measure(bench: &mut Bench, program: Option<&Path>) -> Result<(), Error> {
    let Some(program) = program else {
        bench.output.line(
            "\nThe peers were not run: build crates/bench/peers and give its program by --peers.",
        );
        bench.figures.insert("peers".to_owned(), json!(null));
        return Ok(());
    };
    let mut rows = vec![cells([
        "64 B, callers",
        "",
        "calls/s",
        "p50 µs",
        "p99 µs",
        "dispatch calls/s over it",
    ])];
    let mut found = Vec::new();
    let message = Bytes::from_static(&[7; 64]);
    for callers in [1, 256] {
        let mut ours: Vec<Load> = Vec::new();
        let mut theirs = PEERS.map(|_| Vec::new());
        for _ in 0..bench.rounds.count.div_ceil(2) {
            let far = bench.far.id();
            let window = bench.rounds.window;
            ours.push(load(&bench.calls, far, callers, &message, window, Pace::Full).await?);
            for (theirs, (peer, _)) in theirs.iter_mut().zip(PEERS) {
                theirs.push(run(program, peer, callers, window.as_millis()).await?);
            }
        }
        rows.push(vec![
            callers.to_string(),
            "dispatch, TLS".to_owned(),
            figure(Pair::of(&ours, Load::rate)),
            figure(Pair::of(&ours, Load::p50)),
            figure(Pair::of(&ours, Load::p99)),
            "1".to_owned(),
        ]);
        for (theirs, (peer, target)) in theirs.iter().zip(PEERS) {
            let rounds = ours.iter().zip(theirs);
            let ratio = median(
                &rounds
                    .map(|(ours, theirs)| ours.rate() / theirs.calls_per_s)
                    .collect::<Vec<_>>(),
            );
            let of =
                |part: fn(&Printed) -> f64| median(&theirs.iter().map(part).collect::<Vec<_>>());
            rows.push(vec![
                callers.to_string(),
                format!("{peer}, without TLS"),
                figure(of(|peer| peer.calls_per_s)),
                figure(of(|peer| peer.p50_us)),
                figure(of(|peer| peer.p99_us)),
                format!("{ratio:.2}"),
            ]);
            found.push(json!({
                "peer": peer, "callers": callers, "calls_per_s": of(|peer| peer.calls_per_s),
                "p50_us": of(|peer| peer.p50_us), "p99_us": of(|peer| peer.p99_us), "ratio": ratio,
            }));
            if callers == 256 {
                let name = format!("calls per second / {peer}, 256 callers, 64 B");
                bench.targets.push(Target::at_least(name, ratio, target));
            }
        }
    }
    bench.output.table("Peers, in turns with ours", &rows);
    bench.figures.insert("peers".to_owned(), json!(found));
    Ok(())
}

async fn run(program: &Path, peer: &str, callers: usize, millis: u128) -> Result<Printed, Error> {
    let output = tokio::process::Command::new(program)
        .arg(peer)
        .args(["--callers", &callers.to_string()])
        .args(["--payload", "64", "--millis", &millis.to_string()])
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{peer}: {complaint}").into());
    }
    let printed = String::from_utf8(output.stdout)?;
    let last = printed.lines().last().ok_or("the peer printed nothing")?;
    Ok(serde_json::from_str(last)?)
}
