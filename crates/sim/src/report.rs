//! The command: many histories on all cores, and what came of them.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use keydispatch_core::{Rule, RuleSet};
use serde::Serialize;

use super::coverage::Coverage;
use super::history::{self, Outcome, Plan};
use super::profile::Profile;
use super::rules;

/// From so many histories on, each thing that can go wrong must have done so.
const COVERED_FROM: u64 = 10_000;

/// Runs many histories of simulated clusters, each determined by its seed.
#[derive(Clone, Debug, clap::Args)]
pub struct Histories {
    /// The seeds, the last one excluded.
    #[arg(long, value_name = "A..B", default_value = "0..500")]
    pub seeds: Seeds,
    /// One seed alone.
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Nodes in each cluster; by default a mix of 3 to 50.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub nodes: Option<u16>,
    /// What goes wrong: mixed, calm, lossy, partitions, restarts, clock, pauses, sleepers, cutoffs, severed, orphans or liars.
    #[arg(long, value_name = "NAME", default_value = "mixed", value_parser = parse_profile)]
    pub profile: Profile,
    /// Turns rules of the protocol off, to see who notices.
    #[arg(long, value_name = "RULE,…", value_delimiter = ',', value_parser = parse_rule)]
    pub without: Vec<Rule>,
    /// Prints what happened in a history, line by line.
    #[arg(long, requires = "seed")]
    pub trace: bool,
    /// Prints each frame, too.
    #[arg(long, requires = "trace")]
    pub frames: bool,
    /// Prints no line for each history; violations are printed all the same.
    #[arg(short, long)]
    pub quiet: bool,
    /// Prints the totals as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Threads; by default one for each core.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// A range of seeds, written `A..B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    end: u64,
}

impl Seeds {
    /// This one alone.
    pub(crate) fn one(seed: u64) -> Self {
        Seeds {
            first: seed,
            end: seed + 1,
        }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u64> {
        self.first..self.end
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once("..")
            .and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)))
            .filter(|(first, end)| first < end);
        let (first, end) = parsed.ok_or("seeds are written A..B, with A below B")?;
        Ok(Seeds { first, end })
    }
}

fn parse_profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| {
        format!(
            "there is no such profile; there are {}",
            Profile::names().join(", ")
        )
    })
}

fn parse_rule(name: &str) -> Result<Rule, String> {
    rules::named(name, &rules::of_clusters())
}

/// The totals of many histories.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How many there were.
    pub histories: u64,
    /// Simulated time of all, in seconds.
    pub simulated_seconds: f64,
    /// Histories in which a promise was broken.
    pub violations: u64,
    /// Their seeds, the first few.
    pub violating_seeds: Vec<u64>,
    /// Reports of deaths of nodes that lived and that the reporter could have heard for all of the `down_period`.
    pub false_downs: u64,
    /// Those of them of nodes that everybody could have heard.
    pub groundless_downs: u64,
    /// From the last fault until all agreed, half of the histories.
    pub agree_ms_p50: f64,
    /// The same, 99 of 100.
    pub agree_ms_p99: f64,
    /// The same, the slowest.
    pub agree_ms_max: f64,
    /// The seed of the slowest.
    pub agree_slowest_seed: u64,
    /// From a kill until another node reported it, half of all.
    pub death_known_ms_p50: f64,
    /// The same, 99 of 100.
    pub death_known_ms_p99: f64,
    /// Before anything goes wrong, from the start of the later of two nodes until the one knew the other, half of all.
    pub join_known_ms_p50: f64,
    /// The same, 99 of 100.
    pub join_known_ms_p99: f64,
    /// Messages that a node sent in a second, on average.
    pub messages_per_node_second: f64,
    /// The same in bytes.
    pub bytes_per_node_second: f64,
    /// Messages that a node sent in a second while nothing happened, in the loudest history.
    pub quiet_messages_per_node_second_max: f64,
    /// The same in bytes.
    pub quiet_bytes_per_node_second_max: f64,
    /// The most messages that one node sent in one second.
    pub loudest_second: u64,
    /// The longest queue of a connection, in bytes.
    pub largest_queue_bytes: usize,
    /// Real time, in seconds.
    pub elapsed_seconds: f64,
    /// What happened how often.
    pub coverage: Coverage,
    /// What did not happen often enough to count as tested, where that is judged.
    pub not_tested: Vec<&'static str>,
}

impl Report {
    fn new(mut outcomes: Vec<Outcome>, elapsed: Duration) -> Self {
        outcomes.sort_unstable_by_key(|outcome| outcome.seed);
        let mut report = Report {
            histories: outcomes.len() as u64,
            elapsed_seconds: elapsed.as_secs_f64(),
            ..Report::default()
        };
        let (mut messages, mut bytes, mut node_seconds) = (0, 0, 0.0);
        let (mut agreed, mut deaths, mut joins) = (Vec::new(), Vec::new(), Vec::new());
        for outcome in &outcomes {
            report.simulated_seconds += outcome.time.as_secs_f64();
            report.false_downs += outcome.false_downs;
            report.groundless_downs += outcome.groundless_downs;
            messages += outcome.messages;
            bytes += outcome.bytes;
            node_seconds += outcome.node_seconds;
            if !outcome.violations.is_empty() {
                report.violations += 1;
                report.violating_seeds.push(outcome.seed);
            }
            let known = |times: &[Duration]| -> Vec<(Duration, u64)> {
                times.iter().map(|time| (*time, outcome.seed)).collect()
            };
            deaths.extend(known(&outcome.deaths_known));
            joins.extend(known(&outcome.joins_known));
            agreed.extend(outcome.agreed.map(|agreed| (agreed, outcome.seed)));
            let quiet = &mut report.quiet_messages_per_node_second_max;
            *quiet = quiet.max(outcome.quiet_messages);
            let quiet = &mut report.quiet_bytes_per_node_second_max;
            *quiet = quiet.max(outcome.quiet_bytes);
            report.loudest_second = report.loudest_second.max(outcome.max_messages);
            report.largest_queue_bytes = report.largest_queue_bytes.max(outcome.largest_queue);
            report.coverage.add(&outcome.coverage);
        }
        report.violating_seeds.truncate(20);
        report.messages_per_node_second = messages as f64 / node_seconds;
        report.bytes_per_node_second = bytes as f64 / node_seconds;
        agreed.sort_unstable();
        deaths.sort_unstable();
        joins.sort_unstable();
        report.agree_ms_p50 = quantile_ms(&agreed, 0.5);
        report.agree_ms_p99 = quantile_ms(&agreed, 0.99);
        report.agree_ms_max = quantile_ms(&agreed, 1.0);
        report.death_known_ms_p50 = quantile_ms(&deaths, 0.5);
        report.death_known_ms_p99 = quantile_ms(&deaths, 0.99);
        report.join_known_ms_p50 = quantile_ms(&joins, 0.5);
        report.join_known_ms_p99 = quantile_ms(&joins, 0.99);
        report.agree_slowest_seed = agreed.last().map_or(0, |(_, seed)| *seed);
        if report.histories >= COVERED_FROM {
            let rows = report.coverage.rows().into_iter();
            let rare = rows.filter(|(_, count, minimum)| count < minimum);
            report.not_tested = rare.map(|(name, _, _)| name).collect();
        }
        report
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{} histories, {:.0} simulated seconds in {:.1} s: {} with violations, {} false downs, {} of them groundless",
            self.histories,
            self.simulated_seconds,
            self.elapsed_seconds,
            self.violations,
            self.false_downs,
            self.groundless_downs
        )?;
        writeln!(
            out,
            "all agree after the last fault: median {:.0} ms, p99 {:.0} ms, at worst {:.0} ms (seed {})",
            self.agree_ms_p50, self.agree_ms_p99, self.agree_ms_max, self.agree_slowest_seed
        )?;
        writeln!(
            out,
            "each node and second: {:.0} messages, {:.0} bytes; in silence at most {:.0} and {:.0}; loudest second {}, \
             largest queue {} bytes",
            self.messages_per_node_second,
            self.bytes_per_node_second,
            self.quiet_messages_per_node_second_max,
            self.quiet_bytes_per_node_second_max,
            self.loudest_second,
            self.largest_queue_bytes
        )?;
        writeln!(
            out,
            "a kill is known to another node: median {:.0} ms, p99 {:.0} ms; a newcomer: median {:.0} ms, p99 {:.0} ms",
            self.death_known_ms_p50,
            self.death_known_ms_p99,
            self.join_known_ms_p50,
            self.join_known_ms_p99
        )?;
        for (name, count, minimum) in self.coverage.rows() {
            writeln!(
                out,
                "  {name:<24}{count:>12}   (10,000 histories: at least {minimum})"
            )?;
        }
        for name in &self.not_tested {
            writeln!(out, "not tested: {name}")?;
        }
        if !self.violating_seeds.is_empty() {
            writeln!(out, "violating seeds: {:?}", self.violating_seeds)?;
        }
        Ok(())
    }
}

fn quantile_ms(sorted: &[(Duration, u64)], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    let found = sorted.get(place.min(sorted.len().saturating_sub(1)));
    found.map_or(0.0, |(time, _)| time.as_secs_f64() * 1e3)
}

pub(super) fn run(args: &Histories) -> ExitCode {
    let seeds = match args.seed {
        Some(seed) => Seeds::one(seed),
        None => args.seeds,
    };
    let started = std::time::Instant::now();
    let outcomes = run_all(args, seeds);
    let report = Report::new(outcomes, started.elapsed());
    let mut out = std::io::stdout().lock();
    let printed = if args.json {
        serde_json::to_string(&report)
            .map_err(std::io::Error::from)
            .and_then(|json| writeln!(out, "{json}"))
    } else {
        report.print(&mut out)
    };
    // Whoever reads may have seen enough; the verdict stands.
    drop(printed);
    if report.violations > 0 || !report.not_tested.is_empty() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run_all(args: &Histories, seeds: Seeds) -> Vec<Outcome> {
    let threads = args
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);
    let next = AtomicU64::new(seeds.first);
    let outcomes = Mutex::new(Vec::new());
    let bar = progress(seeds.end - seeds.first);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let rules = RuleSet::without(&args.without);
                    let outcome = history::run(&Plan {
                        rules,
                        nodes: args.nodes.map(usize::from),
                        trace: args.trace,
                        frames: args.frames,
                        ..Plan::new(seed, args.profile.clone())
                    });
                    bar.suspend(|| tell(args, &outcome));
                    bar.inc(1);
                    outcomes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(outcome);
                }
            });
        }
    });
    bar.finish_and_clear();
    outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

fn progress(histories: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(histories);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} histories, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// A line for each history with all that it exercised; violations always.
fn tell(args: &Histories, outcome: &Outcome) {
    let mut out = std::io::stderr().lock();
    if !args.quiet {
        let _ = writeln!(
            out,
            "seed {}: {} nodes, {:.1} s, {} violations, {} false downs, agreed after {}; each node and second: {:.0} messages, \
             {:.0} bytes, in silence {:.0} and {:.0};{}",
            outcome.seed,
            outcome.nodes,
            outcome.time.as_secs_f64(),
            outcome.violations.len(),
            outcome.false_downs,
            outcome.agreed.map_or("-".to_owned(), |agreed| format!(
                "{} ms",
                agreed.as_millis()
            )),
            outcome.messages as f64 / outcome.node_seconds,
            outcome.bytes as f64 / outcome.node_seconds,
            outcome.quiet_messages,
            outcome.quiet_bytes,
            exercised(outcome),
        );
    }
    for violation in &outcome.violations {
        let _ = writeln!(
            out,
            "VIOLATION in seed {} with {} nodes at {}: {}",
            outcome.seed, outcome.nodes, violation.at, violation.what
        );
    }
}

/// What happened in a history, and how often.
fn exercised(outcome: &Outcome) -> String {
    let rows = outcome.coverage.rows().into_iter();
    let happened = rows.filter(|(_, count, _)| *count > 0);
    happened
        .map(|(name, count, _)| format!(" {name} {count}"))
        .collect()
}
