//! A long run: five processes over TLS, constant churn and calls, random kills; at every quiet point all is as it should.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::net::load::{Calls, LoadOptions};
use crate::net::worker::{Health, Request};
use crate::net::workers::{Start, Worker, agree, tell_all};
use crate::{Certificates, Error};

/// Processes.
const NODES: usize = 5;

/// Echo services of each, which the calls go to.
const ECHOES: usize = 4;

const LOAD: LoadOptions = LoadOptions {
    callers: 4,
    pause_ms: 4,
    timeout_ms: 5_000,
};

/// Changes a second on each node.
const CHURN: u32 = 20;

/// Between two quiet points, at most.
const ROUND: Duration = Duration::from_secs(20);

/// How long the views may take to agree at a quiet point.
const PATIENCE: Duration = Duration::from_secs(30);

/// Allowance: memory may grow by this share between the first and the last third of a node's quiet points, because an
/// allocator keeps what it once had,
const MEMORY_SHARE: f64 = 0.15;
/// and by this much in any case.
const MEMORY_KIB: u64 = 4 * 1024;

/// Allowance for tasks and for descriptors: links to nodes that were just started may or may not be open at a quiet point.
const COUNT_ALLOWANCE: usize = 12;

/// Quiet points of one life, after the first one, below which nothing is said about its growth.
const MIN_POINTS: usize = 6;

/// How to soak.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long.
    pub length: Duration,
    /// Print a JSON object at the end.
    pub json: bool,
    /// Of all choices.
    pub seed: u64,
}

/// One node over all its lives.
struct Seat {
    name: String,
    bind: String,
    /// What it said at the quiet points of its current life.
    points: Vec<Health>,
}

/// What a life's numbers were, at the median of the first and of the last third of its quiet points.
#[derive(Clone, Debug)]
struct Growth {
    node: String,
    points: usize,
    memory_kib: (u64, u64),
    descriptors: (usize, usize),
    tasks: (usize, usize),
}

#[derive(Default)]
struct Totals {
    calls: Calls,
    kills: u64,
    changes: u64,
    quiet_points: u64,
    slowest_agreement: Duration,
    growth: Vec<Growth>,
    violations: Vec<String>,
}

/// Runs it, and says what came of it; the error is that something did not hold.
pub async fn run(program: &Path, options: &Options, say: fn(&str)) -> Result<(), Error> {
    let names: Vec<String> = (0..NODES).map(|number| format!("node-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let certificates = Certificates::make(&names)?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut workers = Vec::new();
    let mut seats = Vec::new();
    let mut seeds = Vec::new();
    for name in names {
        let mut seat = Seat {
            name: name.to_owned(),
            bind: "127.0.0.1:0".to_owned(),
            points: Vec::new(),
        };
        let worker = start(program, &seat, &seeds, &certificates, &mut rng).await?;
        // A node is started again where it was, so that the others find it and its seeds stay true.
        worker.address().clone_into(&mut seat.bind);
        seeds.push(worker.address().to_owned());
        workers.push(worker);
        seats.push(seat);
    }
    let begun = Instant::now();
    let round = ROUND.min(options.length / 3);
    let mut totals = Totals::default();
    while begun.elapsed() < options.length {
        churn(&mut workers, &mut rng).await?;
        let kill = rng.random_bool(0.4);
        tokio::time::sleep(round / 2).await;
        if kill {
            let at = rng.random_range(1..NODES);
            totals.kills += 1;
            let killed = workers.remove(at);
            take(&mut workers, &mut totals).await?;
            killed.kill().await?;
            totals.finish(&mut seats[at]);
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3_000))).await;
            let worker = start(program, &seats[at], &seeds, &certificates, &mut rng).await?;
            workers.insert(at, worker);
        }
        tokio::time::sleep(round / 2).await;
        tell_all(&mut workers, &Request::StopChurn).await?;
        take(&mut workers, &mut totals).await?;
        totals.quiet_points += 1;
        let agreement = agree(&mut workers, Instant::now(), PATIENCE).await?;
        match agreement.after {
            Some(after) => totals.slowest_agreement = totals.slowest_agreement.max(after),
            None => totals.violations.push(format!(
                "the views did not agree within {PATIENCE:?}: {} lost, {} resurrected; {}",
                agreement.lost,
                agreement.resurrected,
                agreement.seen.join("; ")
            )),
        }
        // Calls under way end, and connections that were closed are gone.
        for worker in &mut workers {
            let calls = worker.calls(&Request::StopLoad).await?;
            calls.values().for_each(|calls| totals.calls.add(calls));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (worker, seat) in workers.iter_mut().zip(&mut seats) {
            let health = worker.health().await?;
            if health.pending > 0 {
                totals.violations.push(format!(
                    "{} calls of {} are pending and nobody waits for them",
                    health.pending, seat.name
                ));
            }
            seat.points.push(health);
        }
        for worker in &mut workers {
            worker.tell(&Request::StartLoad(LOAD)).await?;
        }
    }
    for seat in &mut seats {
        totals.finish(seat);
    }
    totals.judge();
    report(&totals, options, begun.elapsed(), say);
    if totals.violations.is_empty() {
        Ok(())
    } else {
        Err(format!("{} things did not hold", totals.violations.len()).into())
    }
}

async fn start(
    program: &Path,
    seat: &Seat,
    seeds: &[String],
    certificates: &Certificates,
    rng: &mut StdRng,
) -> Result<Worker, Error> {
    let mut worker = Worker::start(Start {
        program,
        within: Vec::new(),
        name: seat.name.clone(),
        bind: seat.bind.clone(),
        seeds: seeds.to_vec(),
        certificates: certificates.path(),
    })
    .await?;
    worker.tell(&Request::Echoes(ECHOES)).await?;
    worker
        .tell(&Request::Bulk(rng.random_range(10..50)))
        .await?;
    worker.tell(&Request::StartLoad(LOAD)).await?;
    Ok(worker)
}

async fn churn(workers: &mut [Worker], rng: &mut StdRng) -> Result<(), Error> {
    for worker in workers {
        let tell = Request::StartChurn {
            per_second: CHURN,
            seed: rng.random(),
        };
        worker.tell(&tell).await?;
    }
    Ok(())
}

async fn take(workers: &mut [Worker], totals: &mut Totals) -> Result<(), Error> {
    for worker in workers {
        let calls = worker.calls(&Request::TakeLoad).await?;
        calls.values().for_each(|calls| totals.calls.add(calls));
    }
    Ok(())
}

fn median<T: Copy + Ord>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

impl Totals {
    /// A life is over: what can be said of its growth is kept.
    fn finish(&mut self, seat: &mut Seat) {
        let points = std::mem::take(&mut seat.points);
        self.changes += points.last().map_or(0, |last| last.changes);
        // The first one is warm-up.
        let points = points.get(1..).unwrap_or_default();
        if points.len() < MIN_POINTS {
            return;
        }
        let third = points.len() / 3;
        let (first, last) = (&points[..third], &points[points.len() - third..]);
        let both = |read: fn(&Health) -> u64| {
            (
                median(first.iter().map(read)).unwrap_or(0),
                median(last.iter().map(read)).unwrap_or(0),
            )
        };
        let count = |(first, last): (u64, u64)| (first as usize, last as usize);
        self.growth.push(Growth {
            node: seat.name.clone(),
            points: points.len(),
            memory_kib: both(|health| health.memory_kib),
            descriptors: count(both(|health| health.descriptors as u64)),
            tasks: count(both(|health| health.tasks as u64)),
        });
    }

    fn judge(&mut self) {
        let mut found = Vec::new();
        if self.calls.wrong > 0 {
            found.push(format!("{} calls were wrongly answered", self.calls.wrong));
        }
        if self.calls.late > 0 {
            found.push(format!("{} calls outlived their deadline", self.calls.late));
        }
        for growth in &self.growth {
            let (first, last) = growth.memory_kib;
            let allowed = ((first as f64 * MEMORY_SHARE) as u64).max(MEMORY_KIB);
            if last > first + allowed {
                found.push(format!(
                    "the memory of {} grew from {first} to {last} KiB",
                    growth.node
                ));
            }
            for (what, (first, last)) in
                [("descriptors", growth.descriptors), ("tasks", growth.tasks)]
            {
                if last > first + COUNT_ALLOWANCE {
                    found.push(format!(
                        "the {what} of {} grew from {first} to {last}",
                        growth.node
                    ));
                }
            }
        }
        self.violations.extend(found);
    }
}

fn report(totals: &Totals, options: &Options, took: Duration, say: fn(&str)) {
    let calls = &totals.calls;
    say(&format!("ran                  {} s", took.as_secs()));
    say(&format!("calls made           {}", calls.made));
    say(&format!("  answered           {}", calls.answered));
    say(&format!(
        "  failed             {} {:?}",
        calls.failures(),
        calls.failed
    ));
    say(&format!("  wrongly answered   {}", calls.wrong));
    say(&format!("  past the deadline  {}", calls.late));
    say(&format!(
        "  slowest            {:.1} ms",
        calls.slowest_us as f64 / 1_000.0
    ));
    say(&format!("processes killed     {}", totals.kills));
    say(&format!("changes              {}", totals.changes));
    say(&format!(
        "quiet points         {}, slowest agreement {} ms",
        totals.quiet_points,
        totals.slowest_agreement.as_millis()
    ));
    for growth in &totals.growth {
        say(&format!(
            "{}: {} quiet points, memory {} -> {} KiB, descriptors {} -> {}, tasks {} -> {}",
            growth.node,
            growth.points,
            growth.memory_kib.0,
            growth.memory_kib.1,
            growth.descriptors.0,
            growth.descriptors.1,
            growth.tasks.0,
            growth.tasks.1
        ));
    }
    for violation in &totals.violations {
        say(&format!("DID NOT HOLD         {violation}"));
    }
    if options.json {
        let growth: Vec<_> = totals
            .growth
            .iter()
            .map(|growth| {
                json!({
                    "node": growth.node,
                    "quiet_points": growth.points,
                    "memory_kib": [growth.memory_kib.0, growth.memory_kib.1],
                    "descriptors": [growth.descriptors.0, growth.descriptors.1],
                    "tasks": [growth.tasks.0, growth.tasks.1],
                })
            })
            .collect();
        let object = json!({
            "seed": options.seed,
            "seconds": took.as_secs(),
            "calls": {
                "made": calls.made,
                "answered": calls.answered,
                "failed": calls.failed,
                "wrong": calls.wrong,
                "late": calls.late,
                "slowest_ms": calls.slowest_us as f64 / 1_000.0,
            },
            "kills": totals.kills,
            "changes": totals.changes,
            "quiet_points": totals.quiet_points,
            "agree_ms_max": totals.slowest_agreement.as_millis() as u64,
            "growth": growth,
            "violations": totals.violations,
        });
        say(&object.to_string());
    }
}
