//! The command: many histories of tokens, and what came of them.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use keydispatch_core::{Rule, RuleSet};

use super::history::{TokenOutcome, TokenPlan, run};
use super::profile::TokenProfile;
use crate::report::Seeds;
use crate::rules;

/// Runs many histories of ownership that moves with its states, each determined by its seed.
#[derive(Clone, Debug, clap::Args)]
pub struct TokenArgs {
    /// The seeds, the last one excluded.
    #[arg(long, value_name = "A..B", default_value = "0..200")]
    pub seeds: Seeds,
    /// One seed alone.
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// What goes wrong: planned, planned-late, instances, large, rolling, restarts, crashes, crashes-late, partitions, cutoffs,
    /// flaps, pairs, pauses, silence, mute, mass or everything.
    #[arg(long, value_name = "NAME", default_value = "planned", value_parser = parse_profile)]
    pub profile: TokenProfile,
    /// Turns rules of the protocol off, to see who notices.
    #[arg(long, value_name = "RULE,…", value_delimiter = ',', value_parser = parse_rule)]
    pub without: Vec<Rule>,
    /// Prints what happened in a history, line by line.
    #[arg(long, requires = "seed")]
    pub trace: bool,
    /// Ends after so many histories with violations.
    #[arg(long, value_name = "N")]
    pub stop: Option<u64>,
}

fn parse_profile(name: &str) -> Result<TokenProfile, String> {
    TokenProfile::named(name).ok_or_else(|| {
        format!(
            "there is no such profile; there are {}",
            TokenProfile::names().join(", ")
        )
    })
}

fn parse_rule(name: &str) -> Result<Rule, String> {
    rules::named(name, &rules::of_tokens())
}

/// The totals.
#[derive(Default)]
struct Totals {
    histories: u64,
    violated: u64,
    nobody: u64,
    unhealthy: u64,
    calls: (u64, u64),
    moved: (u64, u32),
    slowest: Duration,
    parked: Vec<Duration>,
    messages: [u64; 6],
    slots: [u64; 4],
    faults: [u64; 4],
    forks: u64,
    double: u64,
    refused: u64,
    most_in_flight: u32,
}

impl Totals {
    fn add(&mut self, outcome: &TokenOutcome) {
        self.histories += 1;
        self.violated += u64::from(!outcome.violations.is_empty());
        self.nobody += u64::from(outcome.nobody);
        self.unhealthy += u64::from(outcome.faults[0] + outcome.faults[1] > 0);
        self.calls.0 += outcome.calls.0;
        self.calls.1 += outcome.calls.1;
        self.moved.0 += outcome.moved.0;
        self.moved.1 = self.moved.1.max(outcome.moved.1);
        self.slowest = self.slowest.max(outcome.slowest);
        self.parked.extend(&outcome.parked);
        let add = |sums: &mut [u64], more: &[u64]| {
            sums.iter_mut()
                .zip(more)
                .for_each(|(sum, more)| *sum += more)
        };
        add(&mut self.messages, &outcome.messages);
        add(&mut self.slots, &outcome.slots);
        add(&mut self.faults, &outcome.faults);
        self.forks += outcome.forks;
        self.double += outcome.double;
        self.refused += outcome.refused;
        self.most_in_flight = self.most_in_flight.max(outcome.most_in_flight);
    }

    fn print(&mut self, elapsed: Duration, out: &mut impl Write) -> std::io::Result<()> {
        let [claims, answers, offers, pieces, acks, settled] = self.messages;
        let [minted, adopted, merged, again] = self.slots;
        let [false_downs, impatience, killed, doubts] = self.faults;
        self.parked.sort_unstable();
        let parked = |share: f64| {
            let place = (self.parked.len() as f64 * share) as usize;
            let found = self
                .parked
                .get(place.min(self.parked.len().saturating_sub(1)));
            found.map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        writeln!(
            out,
            "{} histories in {:.1} s: {} with violations, {} where the last one online went away, {} with deaths that were none",
            self.histories,
            elapsed.as_secs_f64(),
            self.violated,
            self.nobody,
            self.unhealthy
        )?;
        writeln!(
            out,
            "calls: {} answered, {} failed, {} sent on, one at most {} times; the slowest where all is healthy {:.0} ms",
            self.calls.0,
            self.calls.1,
            self.moved.0,
            self.moved.1,
            self.slowest.as_secs_f64() * 1e3
        )?;
        writeln!(
            out,
            "calls that waited for a slot, where all is healthy: {}, median {:.1} ms, p99 {:.1} ms, at worst {:.1} ms",
            self.parked.len(),
            parked(0.5),
            parked(0.99),
            parked(1.0)
        )?;
        writeln!(
            out,
            "slots: {minted} begun anew, {adopted} adopted, {merged} keys merged ({again} of them again), {} forked; {} calls ran while two held",
            self.forks, self.double
        )?;
        writeln!(
            out,
            "messages: {claims} claims, {answers} answers, {offers} offers, {pieces} pieces, {acks} acknowledgements ({} refused), \
             {settled} settled; at most {} pieces on their way to one node",
            self.refused, self.most_in_flight
        )?;
        writeln!(
            out,
            "faults: {killed} killed, {false_downs} deaths that were none, patience ended {impatience} times, {doubts} doubts"
        )
    }
}

pub(crate) fn run_command(args: &TokenArgs) -> ExitCode {
    let seeds = args.seed.map_or(args.seeds, Seeds::one);
    let started = std::time::Instant::now();
    let mut totals = Totals::default();
    let mut out = std::io::stdout().lock();
    for seed in seeds.iter() {
        drop(out);
        let outcome = run(&TokenPlan {
            rules: RuleSet::without(&args.without),
            trace: args.trace,
            ..TokenPlan::new(seed, args.profile.clone())
        });
        out = std::io::stdout().lock();
        for violation in &outcome.violations {
            let _ = writeln!(
                out,
                "VIOLATION in seed {seed} at {}: {}",
                violation.at, violation.what
            );
        }
        totals.add(&outcome);
        if args.stop.is_some_and(|stop| totals.violated >= stop) {
            break;
        }
    }
    // Whoever reads may have seen enough; the verdict stands.
    let _ = totals.print(started.elapsed(), &mut out);
    if totals.violated > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
