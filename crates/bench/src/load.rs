//! Routing among real processes: callers that ask for more of some keys than of others, of instances one of which is slower, by
//! one policy after the other.
//!
//! Calls come at times of their own, whether or not the ones before are answered: an exponential pause after each, of each
//! caller. Latencies count from the moment at which a call was due, so that a caller that is late hides nothing. Each policy has
//! the same calls at the same times for the same keys.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use keydispatch::Routing;
use keydispatch_core::route::SLOW_START;
use keydispatch_measure::{Output, cells, figure, median, quantile_of_sorted};
use serde::Serialize;
use serde_json::json;
use tokio::process::Command;

use keydispatch_fleet::{Certificates, Child, Error, PATIENCE};

mod caller;
mod worker;

pub use caller::{CallerOptions, run as run_caller};
use caller::{Counts, Order};
pub use worker::{WorkerOptions, run as run_worker};

/// Nodes that serve: one instance each. The last is the slow one.
const WORKERS: usize = 3;

/// Processes that call, and callers in each of them.
const PROCESSES: usize = 2;
const CALLERS: usize = 4;

/// How much longer than the time over which calls are made a process may take until all of them have ended. A call has five
/// seconds.
const CALLERS_PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Over how long calls are made, for each policy and seed. The first tenth is not counted.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seeds: other keys, and other times.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// Work that is asked for, as a share of what the instances can do together.
    #[arg(long, default_value_t = 0.6, value_parser = share)]
    pub load: f64,
    /// How long an instance is at work on a call, in microseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub work_us: u64,
    /// How many times slower one of the instances is.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub slower: u32,
    /// Distinct keys.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub keys: u32,
    /// The exponent of their popularity.
    #[arg(long, default_value_t = 1.1, value_parser = exponent)]
    pub zipf: f64,
    /// Begin at once, while the instances are young and refuse early.
    #[arg(long)]
    pub young: bool,
    /// Print a JSON object last.
    #[arg(long)]
    pub json: bool,
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("it has to be between {least} and {most}"))
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.1, 3_600.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, 0.01, 10.0)
}

fn exponent(text: &str) -> Result<f64, String> {
    number(text, 0.0, 5.0)
}

impl Options {
    /// Calls a second of all callers together: so much of what the instances do at their speed.
    fn rate(&self) -> f64 {
        let one = 1e6 / self.work_us as f64;
        let all = one * ((WORKERS - 1) as f64 + 1.0 / f64::from(self.slower));
        all * self.load
    }
}

/// What became of the calls of one policy, with one seed.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// Calls that were counted.
    pub calls: usize,
    /// Those of them that failed, by kind.
    pub failed: BTreeMap<String, u64>,
    /// Latencies of those that were answered, in ms.
    pub p50: f64,
    /// See `p50`.
    pub p99: f64,
    /// See `p50`.
    pub p999: f64,
    /// Percent of those that were answered, which their first owner did.
    pub first: f64,
    /// Percent of those that were answered, which the slow instance did.
    pub slow: f64,
    /// Messages of calls that were sent, a call.
    pub messages: f64,
    /// How long an instance was at work on a call, in ms, on average: one of the others, and the slow one.
    pub work: (f64, f64),
    /// Work that was done, as a share of what an instance can do: the most of an instance, and the slow one.
    pub busy: (f64, f64),
}

impl Outcome {
    /// Calls that failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// A policy, and what came of it, by seed.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// Its name in tables.
    pub policy: &'static str,
    /// One for each seed, in their order.
    pub outcomes: Vec<Outcome>,
}

/// The policies, in the order in which they have their turn with each seed.
const POLICIES: [(&str, Routing); 4] = [
    ("Owner", Routing::Owner),
    ("Bounded at 4", bounded(4, None)),
    ("Bounded at 8", bounded(8, None)),
    ("Bounded at 16, stay 8", bounded(16, Some(8))),
];

const fn bounded(depth: u8, stay: Option<u8>) -> Routing {
    Routing::Bounded {
        owners: 4,
        depth,
        stay,
    }
}

/// Runs it, and prints what came of it.
pub async fn run(program: &Path, options: &Options, say: fn(&str)) -> Result<(), Error> {
    let output = Output {
        say,
        json: options.json,
    };
    output.line(format!(
        "{WORKERS} nodes, {} callers in {PROCESSES} processes, Zipf {} over {} keys, {} ms a call, one instance {} times slower;\n\
         load {} of what they can do: {} calls a second, {} s for each policy and seed",
        PROCESSES * CALLERS,
        options.zipf,
        options.keys,
        options.work_us as f64 / 1e3,
        options.slower,
        options.load,
        figure(options.rate()),
        options.seconds,
    ));
    let found = measure(program, options).await?;
    report(&output, options, &found);
    if options.json {
        let object = json!({ "command": "load", "rate": options.rate(), "policies": found });
        output.line(serde_json::to_string(&object)?);
    }
    Ok(())
}

fn report(output: &Output, options: &Options, found: &[Found]) {
    let mut rows = vec![cells([
        "policy",
        "p50, ms",
        "p99",
        "p99.9",
        "at the first, %",
        "at the slow one, %",
        "messages a call",
        "work, ms",
        "at the slow one",
        "failed, %",
    ])];
    for found in found {
        let of = |value: fn(&Outcome) -> f64| spread(&found.outcomes, value);
        rows.push(vec![
            found.policy.to_owned(),
            of(|one| one.p50),
            of(|one| one.p99),
            of(|one| one.p999),
            of(|one| one.first),
            of(|one| one.slow),
            of(|one| one.messages),
            of(|one| one.work.0),
            of(|one| one.work.1),
            of(|one| one.failures() as f64 / one.calls.max(1) as f64 * 100.0),
        ]);
    }
    let title = format!(
        "Real processes: the median of {} seeds, and from the least to the most",
        options.seeds
    );
    output.table(&title, &rows);
}

/// The median, and the extremes where there are several.
fn spread(outcomes: &[Outcome], value: fn(&Outcome) -> f64) -> String {
    let values: Vec<f64> = outcomes.iter().map(value).collect();
    let (least, most) = values
        .iter()
        .fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
            (least.min(*value), most.max(*value))
        });
    match values.len() {
        0 => String::new(),
        1 => figure(values[0]),
        _ => format!(
            "{} ({}–{})",
            figure(median(&values)),
            figure(least),
            figure(most)
        ),
    }
}

/// As [`run`], and returns what it saw.
pub async fn measure(program: &Path, options: &Options) -> Result<Vec<Found>, Error> {
    let mut fleet = Fleet::start(program, options).await?;
    if !options.young {
        // Rule: an instance of less than ten seconds refuses earlier. That is another figure.
        tokio::time::sleep(SLOW_START).await;
    }
    let mut found: Vec<Found> = POLICIES
        .iter()
        .map(|(policy, _)| Found {
            policy,
            outcomes: Vec::new(),
        })
        .collect();
    for seed in 1..=options.seeds {
        for ((_, routing), found) in POLICIES.iter().zip(&mut found) {
            let counts = fleet.call(seed, *routing).await?;
            found.outcomes.push(outcome(options, counts));
        }
    }
    Ok(found)
}

fn outcome(options: &Options, mut counts: Counts) -> Outcome {
    counts.micros.sort_unstable();
    let latencies: Vec<f64> = counts
        .micros
        .iter()
        .map(|at| f64::from(*at) / 1e3)
        .collect();
    let answered = latencies.len() as f64;
    let failed: u64 = counts.failed.values().sum();
    let percent = |count: u64| count as f64 / answered.max(1.0) * 100.0;
    let slow = worker_name(WORKERS - 1);
    let (mut others, mut slow_one) = ((0, 0), (0, 0));
    let mut busiest = 0.0_f64;
    let available = options.seconds * 0.9 * 1e6;
    for (name, (calls, micros)) in &counts.by_instance {
        let sum = if *name == slow {
            &mut slow_one
        } else {
            &mut others
        };
        *sum = (sum.0 + calls, sum.1 + micros);
        busiest = busiest.max(*micros as f64 / available);
    }
    let mean_ms = |(calls, micros): (u64, u64)| micros as f64 / calls.max(1) as f64 / 1e3;
    Outcome {
        calls: latencies.len() + failed as usize,
        failed: counts.failed,
        p50: quantile_of_sorted(&latencies, 0.5),
        p99: quantile_of_sorted(&latencies, 0.99),
        p999: quantile_of_sorted(&latencies, 0.999),
        first: percent(counts.first),
        slow: percent(slow_one.0),
        messages: counts.messages as f64 / counts.made.max(1) as f64,
        work: (mean_ms(others), mean_ms(slow_one)),
        busy: (busiest, slow_one.1 as f64 / available),
    }
}

/// The processes. They end when this is dropped.
struct Fleet<'a> {
    options: &'a Options,
    callers: Vec<Child>,
    _workers: Vec<Child>,
    _certificates: Certificates,
}

fn worker_name(at: usize) -> String {
    format!("w{at}")
}

impl<'a> Fleet<'a> {
    async fn start(program: &Path, options: &'a Options) -> Result<Self, Error> {
        let workers: Vec<String> = (0..WORKERS).map(worker_name).collect();
        let callers: Vec<String> = (0..PROCESSES).map(|at| format!("c{at}")).collect();
        let names: Vec<&str> = workers.iter().chain(&callers).map(String::as_str).collect();
        let certificates = Certificates::make(&names)?;
        let mut seed: Option<String> = None;
        let mut spawn = async |command: &str, name: &str, more: Option<(&str, u64)>| {
            let mut process = Command::new(program);
            process
                .args([command, "--name", name, "--certificates"])
                .arg(certificates.path());
            if let Some(seed) = &seed {
                process.args(["--seed", seed]);
            }
            if let Some((option, value)) = more {
                process.args([option, &value.to_string()]);
            }
            let process = Child::start(process, name).await?;
            seed.get_or_insert_with(|| process.address().to_owned());
            Ok::<_, Error>(process)
        };
        let mut started = Vec::new();
        for (at, name) in workers.iter().enumerate() {
            let is_slow = at + 1 == WORKERS;
            let times = if is_slow { options.slower } else { 1 };
            let work = options.work_us * u64::from(times);
            started.push(spawn("load-worker", name, Some(("--work-us", work))).await?);
        }
        let mut calling = Vec::new();
        for name in &callers {
            let workers = Some(("--workers", WORKERS as u64));
            calling.push(spawn("load-caller", name, workers).await?);
        }
        Ok(Fleet {
            options,
            callers: calling,
            _workers: started,
            _certificates: certificates,
        })
    }

    /// Lets everybody call by one policy, and waits until all calls have ended.
    async fn call(&mut self, seed: u64, routing: Routing) -> Result<Counts, Error> {
        let options = self.options;
        for (at, process) in self.callers.iter_mut().enumerate() {
            let order = Order {
                seed: seed << 16 | (at * CALLERS) as u64,
                routing: routing.into(),
                callers: CALLERS,
                rate: options.rate() / (PROCESSES * CALLERS) as f64,
                seconds: options.seconds,
                keys: options.keys,
                keys_of: seed,
                zipf: options.zipf,
            };
            process.tell(&serde_json::to_string(&order)?).await?;
        }
        let patience = Duration::try_from_secs_f64(options.seconds)? + CALLERS_PATIENCE + PATIENCE;
        let mut sum = Counts::default();
        for process in &mut self.callers {
            let line = tokio::time::timeout(patience, process.next_line()).await??;
            let line = line.ok_or_else(|| format!("{} has ended", process.name()))?;
            sum.add(serde_json::from_str(&line)?);
        }
        Ok(sum)
    }
}
