//! Real networks: node processes in namespaces of their own, and between them a relay that makes it go wrong.

use std::path::Path;

use serde_json::{Value, json};

use crate::Error;

pub mod load;
pub mod namespaces;
pub mod relay;
pub mod scenarios;
pub mod worker;
pub mod workers;

use load::Calls;
use scenarios::{Fault, NODES, Outcome};

/// What to run, and how to say what came of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// One scenario; all of them where none is named.
    pub scenario: Option<String>,
    /// Print a JSON object at the end.
    pub json: bool,
    /// Of all choices.
    pub seed: u64,
}

/// Runs the scenarios, and says each one's table; the error is that something did not hold.
pub async fn run(program: &Path, options: &Options, say: fn(&str)) -> Result<(), Error> {
    if let Some(why) = cannot_run() {
        say(&format!("the network scenarios did not run: {why}"));
        if options.json {
            say(&json!({ "ran": false, "why": why }).to_string());
        }
        return Ok(());
    }
    let chosen: Vec<(&str, Fault)> = Fault::ALL
        .into_iter()
        .filter(|(name, _)| options.scenario.as_deref().is_none_or(|only| only == *name))
        .collect();
    if chosen.is_empty() {
        let names = Fault::ALL.map(|(name, _)| name).join(", ");
        return Err(format!("no such scenario; there are: {names}").into());
    }
    let mut outcomes = Vec::new();
    for (name, fault) in chosen {
        let outcome = scenarios::run(program, name, fault, options.seed)
            .await
            .map_err(|error| format!("{name}: {error}"))?;
        say(&table(&outcome));
        outcomes.push(outcome);
    }
    let violations: usize = outcomes
        .iter()
        .map(|outcome| outcome.violations.len())
        .sum();
    if options.json {
        let scenarios: Vec<Value> = outcomes.iter().map(object).collect();
        let object = json!({
            "ran": true,
            "seed": options.seed,
            "nodes": NODES,
            "violations": violations,
            "scenarios": scenarios,
        });
        say(&object.to_string());
    }
    if violations > 0 {
        return Err(format!("{violations} things did not hold").into());
    }
    Ok(())
}

/// Why the scenarios cannot run here, where they cannot.
pub fn cannot_run() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces and TAP devices need root");
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("this system has no /dev/net/tun");
    }
    let missing = |program: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&paths).any(|path| path.join(program).exists())
    };
    if ["ip", "unshare", "nsenter"].into_iter().any(missing) {
        return Some("ip (iproute2), unshare and nsenter (util-linux) are needed");
    }
    None
}

fn table(outcome: &Outcome) -> String {
    let calls = &outcome.calls;
    let failed: Vec<String> = calls
        .failed
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let agreed = match outcome.agreement.after {
        Some(after) => format!("{} ms", after.as_millis()),
        None => "never".to_owned(),
    };
    let frames = &outcome.frames;
    let mut rows = vec![
        format!("== {}", outcome.scenario),
        format!("calls made           {}", calls.made),
        format!("  answered           {}", calls.answered),
        format!(
            "  failed             {}{}",
            calls.failures(),
            if failed.is_empty() {
                String::new()
            } else {
                format!(" ({})", failed.join(", "))
            }
        ),
        format!("  wrongly answered   {}", calls.wrong),
        format!("  past the deadline  {}", calls.late),
        format!("  slowest            {}", slowest(calls)),
        format!(
            "  during the fault, from healthy nodes: slowest {}, last failure {}",
            slowest(&outcome.untouched),
            last_failure(&outcome.untouched)
        ),
    ];
    if outcome.touched.made > 0 {
        rows.push(format!(
            "  for keys of the silent node: {} made, slowest {}, last failure {}",
            outcome.touched.made,
            slowest(&outcome.touched),
            last_failure(&outcome.touched)
        ));
    }
    rows.extend([
        format!(
            "  after agreement    {} made, {} failed",
            outcome.after.made,
            outcome.after.failures()
        ),
        format!("views agree after    {agreed}"),
        format!("entries lost         {}", outcome.agreement.lost),
        format!("entries resurrected  {}", outcome.agreement.resurrected),
        format!(
            "members down         {} (over {NODES} nodes); changes to the registry {}",
            outcome.downs, outcome.changes
        ),
        format!(
            "frames               {} passed, {} cut, {} lost, {} overflowed, {} overtaken",
            frames.passed, frames.cut, frames.lost, frames.overflowed, frames.reordered
        ),
    ]);
    for violation in &outcome.violations {
        rows.push(format!("DID NOT HOLD         {violation}"));
    }
    rows.join("\n")
}

fn slowest(calls: &Calls) -> String {
    format!("{:.1} ms", calls.slowest_us as f64 / 1_000.0)
}

fn last_failure(calls: &Calls) -> String {
    match calls.last_failure_ms {
        Some(millis) => format!("after {millis} ms"),
        None => "none".to_owned(),
    }
}

fn object(outcome: &Outcome) -> Value {
    let calls = |calls: &Calls| {
        json!({
            "made": calls.made,
            "answered": calls.answered,
            "failed": calls.failed,
            "wrong": calls.wrong,
            "late": calls.late,
            "slowest_ms": calls.slowest_us as f64 / 1_000.0,
            "last_failure_ms": calls.last_failure_ms,
        })
    };
    let frames = &outcome.frames;
    json!({
        "scenario": outcome.scenario,
        "calls": calls(&outcome.calls),
        "silent_node": calls(&outcome.touched),
        "other_nodes": calls(&outcome.untouched),
        "after_agreement": calls(&outcome.after),
        "agree_ms": outcome.agreement.after.map(|after| after.as_millis() as u64),
        "lost": outcome.agreement.lost,
        "resurrected": outcome.agreement.resurrected,
        "members_down": outcome.downs,
        "changes": outcome.changes,
        "frames": {
            "passed": frames.passed,
            "cut": frames.cut,
            "lost": frames.lost,
            "overflowed": frames.overflowed,
            "overtaken": frames.reordered,
        },
        "violations": outcome.violations,
    })
}
