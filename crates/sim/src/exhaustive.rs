//! Every interleaving of the smallest cases of ownership: three nodes, one slot, a join, a leave, and where it is asked for a
//! death or timers that fire early.
//!
//! Beside the core's own token machine stands a small model of what is around it. Its choices are all that can come in more
//! than one order:
//!
//! - when the newcomer starts, and when the leaver begins to leave;
//! - which link delivers its next letter: control and data travel on links of their own, each in order, as the product has it;
//! - where deaths are allowed, who dies and when, and when each of the others notices;
//! - where early timers are allowed, that the next timer fires though letters are under way.
//!
//! Where nothing is under way, time goes on to the next timer. States that were seen before are not looked at again, so that
//! the search ends; what the machine counts for operators is no part of a state.
//!
//! Not in it: membership that errs (no living node is taken for dead), letters that are lost while both ends live, views
//! that go back, more than one key. Those are for the histories of [`tokens`](crate::tokens).

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Instant as Clock;

use keydispatch_core::RuleSet;

mod checks;
mod model;
mod scenario;
mod steps;
#[cfg(test)]
mod tests;

use crate::rules;
use model::State;
pub use scenario::Scenario;

/// Searches every interleaving of a join and a leave among three nodes.
#[derive(Clone, Debug, clap::Args)]
pub struct ExhaustiveArgs {
    /// How many nodes may die, at any moment.
    #[arg(long, default_value_t = 0)]
    deaths: u32,
    /// How many timers may fire though letters are under way.
    #[arg(long, default_value_t = 0)]
    early: u32,
    /// Gives up a case after so many different states; it is not complete then.
    #[arg(long, default_value_t = 20_000_000)]
    states: usize,
    /// Turns rules of the protocol off, to see who notices.
    #[arg(long, value_name = "RULE,…", value_delimiter = ',')]
    without: Vec<String>,
    /// One case alone, by its number.
    #[arg(long)]
    case: Option<usize>,
}

/// What a search came to.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Different states.
    pub states: usize,
    /// Ends, where nothing is under way any more.
    pub ends: usize,
    /// Steps to the deepest state.
    pub depth: usize,
    /// What is broken, and the steps that lead there.
    pub violation: Option<(String, Vec<String>)>,
    /// Every state was looked at.
    pub complete: bool,
}

/// Looks at all that can come of a scenario, up to so many states.
pub fn search(scenario: &Scenario, rules: RuleSet, most: usize) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut open = vec![State::new(scenario, rules)];
    while let Some(state) = open.pop() {
        let steps = state.steps();
        if steps.is_empty() {
            found.ends += 1;
            if let Some(broken) = state.broken_at_rest() {
                found.violation = Some((broken, state.trail()));
                return found;
            }
        }
        for step in steps {
            let next = state.after(step);
            if let Some(broken) = next.broken() {
                found.violation = Some((broken, next.trail()));
                return found;
            }
            if seen.insert(next.fingerprint()) {
                found.depth = found.depth.max(next.depth());
                open.push(next);
            }
        }
        found.states = seen.len();
        if found.states > most {
            return found;
        }
    }
    found.complete = true;
    found
}

pub(crate) fn run_command(args: &ExhaustiveArgs, say: fn(&str)) -> ExitCode {
    let mut off = Vec::new();
    for name in &args.without {
        match rules::named(name, &rules::of_tokens()) {
            Ok(rule) => off.push(rule),
            Err(error) => {
                say(&error);
                return ExitCode::from(2);
            }
        }
    }
    let rules = RuleSet::without(&off);
    let begun = Clock::now();
    let (mut all, mut broken, mut cut) = (0, 0, 0);
    for (number, scenario) in Scenario::all(args.deaths, args.early).iter().enumerate() {
        if args.case.is_some_and(|case| case != number) {
            continue;
        }
        let one = Clock::now();
        let found = search(scenario, rules, args.states);
        all += found.states;
        cut += usize::from(!found.complete && found.violation.is_none());
        let how = match (&found.violation, found.complete) {
            (Some(_), _) => "BROKEN",
            (None, true) => "all of it",
            (None, false) => "NOT all of it",
        };
        say(&format!(
            "case {number}: {scenario}: {how}: {} states, {} ends, {} steps deep, {:.1} s",
            found.states,
            found.ends,
            found.depth,
            one.elapsed().as_secs_f64()
        ));
        if let Some((what, trail)) = found.violation {
            broken += 1;
            say(&format!("  {what}, after"));
            for step in trail {
                say(&format!("    {step}"));
            }
        }
    }
    say(&format!(
        "{all} states, {broken} cases broken, {cut} not searched to the end, {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    if broken + cut == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
