//! Nodes that leave and come back, one after the other, while everybody calls: no call may fail, and each runs once.

use std::path::Path;
use std::time::Instant;

use keydispatch::Node;
use serde::Serialize;
use tokio::process::Command;

use crate::{Certificates, Child, Error, PATIENCE, describe};

mod counts;
mod keyed;
mod node;
mod options;

use counts::{Callers, Counts, Tallies};
pub use keyed::{FaultOutcome, Frozen, KeyedOutcome, Killed, roll as roll_keyed};
pub use node::run as run_node;
use options::{By, LEAVE_PATIENCE, STAYS, configured};
pub use options::{NodeOptions, Options};

/// What became of the calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// Calls that were made, by those who stay and by those who leave.
    pub calls: u64,
    /// Those that failed.
    pub failed: u64,
    /// How they failed.
    pub by_kind: std::collections::BTreeMap<String, u64>,
    /// Those that failed and may have run.
    pub may_have_run: u64,
    /// The slowest of all, in milliseconds.
    pub slowest_ms: u64,
    /// Keys whose calls did not run exactly once each.
    pub miscounted_keys: usize,
    /// Casts that were accepted.
    pub casts: u64,
    /// Those that were not handled.
    pub casts_lost: u64,
    /// How often a node left and came back.
    pub departures: u64,
    /// Callers that stopped because their own node had left.
    pub after_leaving: u64,
}

impl Outcome {
    /// True where every call was answered and ran once, and every accepted cast was handled.
    pub fn is_flawless(&self) -> bool {
        self.failed == 0 && self.miscounted_keys == 0 && self.casts_lost == 0
    }
}

/// Nodes leave in turn, each once everybody sees the one before again, or back to back.
const ROUNDS: [(&str, By, bool); 4] = [
    ("in turn", By::Line, true),
    ("back to back", By::Line, false),
    ("in turn, by SIGTERM", By::Signal, true),
    ("back to back, by SIGTERM", By::Signal, false),
];

/// Runs it, and says what it saw; an error where a call failed or did not run once, or a cast was lost.
pub async fn run(program: &Path, options: &Options, say: fn(&str)) -> Result<(), Error> {
    if options.keyed {
        let outcome = roll_keyed(program, options, say).await?;
        if options.json {
            say(&serde_json::to_string(&outcome)?);
        } else {
            say(&format!("{outcome:#?}"));
        }
        let faults = outcome.faults.as_ref();
        return if !outcome.is_flawless() {
            Err("a call failed or ran twice, or a state was lost or came back".into())
        } else if faults.is_some_and(|faults| !faults.is_as_promised()) {
            Err(
                "a fault cost more than what the dead held, or left a key with two histories"
                    .into(),
            )
        } else {
            Ok(())
        };
    }
    let outcome = roll(program, options, say).await?;
    if options.json {
        say(&serde_json::to_string(&outcome)?);
    } else {
        say(&format!("{outcome:#?}"));
    }
    if outcome.is_flawless() {
        Ok(())
    } else {
        Err("a call failed, or did not run exactly once, or a cast was lost".into())
    }
}

/// As [`run`], and returns what it saw.
pub async fn roll(program: &Path, options: &Options, say: fn(&str)) -> Result<Outcome, Error> {
    let mut fleet = Fleet::start(program, options).await?;
    let callers = Callers::start(&fleet.stays.services(), options.callers, options.seed);
    let began = Instant::now();
    let mut departures = 0;
    // Every kind of round at least once.
    for round in 0.. {
        let (what, by, settle) = ROUNDS[round % ROUNDS.len()];
        if round >= ROUNDS.len() && callers.made() >= options.calls {
            break;
        }
        for at in 0..fleet.nodes.len() {
            if settle {
                fleet.settled().await?;
            }
            fleet.replace(at, by).await?;
            departures += 1;
        }
        if !options.json {
            let (calls, seconds) = (callers.made(), began.elapsed().as_secs_f64());
            say(&format!("{what}: {calls} calls in {seconds:.0} s"));
        }
    }
    let seen = fleet.finish(callers).await?;
    Ok(Outcome {
        calls: seen.calls,
        failed: seen.failed,
        may_have_run: seen.may_have_run,
        slowest_ms: seen.slowest_micros.div_ceil(1_000),
        miscounted_keys: seen.miscounted(),
        casts: seen.casts,
        casts_lost: seen.casts.saturating_sub(seen.casts_ran),
        departures,
        after_leaving: seen.after_leaving,
        by_kind: seen.by_kind,
    })
}

struct Fleet<'a> {
    program: &'a Path,
    options: &'a Options,
    certificates: Certificates,
    stays: Node,
    nodes: Vec<Child>,
    seen: Counts,
    started: u64,
}

impl<'a> Fleet<'a> {
    async fn start(program: &'a Path, options: &'a Options) -> Result<Self, Error> {
        let names: Vec<String> = (0..options.nodes).map(|at| format!("n{at}")).collect();
        let mut certified: Vec<&str> = names.iter().map(String::as_str).collect();
        certified.push(STAYS);
        let certificates = Certificates::make(&certified)?;
        let stays = describe(STAYS, "127.0.0.1:0", &[], certificates.path());
        let stays = configured(stays, options.pool_size, options.down_period_ms)
            .start()
            .await?;
        let mut fleet = Fleet {
            program,
            options,
            certificates,
            stays,
            nodes: Vec::new(),
            seen: Counts::default(),
            started: 0,
        };
        for name in &names {
            let process = fleet.spawn(name, "127.0.0.1:0").await?;
            fleet.nodes.push(process);
        }
        fleet.settled().await?;
        Ok(fleet)
    }

    async fn spawn(&mut self, name: &str, bind: &str) -> Result<Child, Error> {
        self.started += 1;
        let options = self.options;
        let mut command = Command::new(self.program);
        command
            .arg("rolling-node")
            .args(["--name", name, "--bind", bind])
            .arg("--certificates")
            .arg(self.certificates.path())
            .args(["--seed", self.stays.address().as_str()]);
        for (key, value) in [
            ("--pool-size", options.pool_size as u64),
            ("--instances", options.instances as u64),
            ("--callers", (options.callers / 8) as u64),
            ("--handler-ms", options.handler_ms),
            ("--random", options.seed.wrapping_add(self.started << 32)),
        ] {
            command.args([key, &value.to_string()]);
        }
        if let Some(period) = options.down_period_ms {
            command.args(["--down-period-ms", &period.to_string()]);
        }
        Child::start(command, name).await
    }

    /// Waits until the node that stays sees every service.
    async fn settled(&self) -> Result<(), Error> {
        let services = self.stays.services::<Tallies>();
        let instances = self.options.nodes * self.options.instances;
        tokio::time::timeout(PATIENCE, services.wait_online(instances)).await??;
        Ok(())
    }

    /// Lets one leave, and starts it again at the same address.
    async fn replace(&mut self, at: usize, by: By) -> Result<(), Error> {
        let leaving = self.nodes.remove(at);
        let (name, address) = (leaving.name().to_owned(), leaving.address().to_owned());
        let seen = leave(leaving, by).await?;
        self.seen.add(&seen);
        let again = self.spawn(&name, &address).await?;
        self.nodes.insert(at, again);
        Ok(())
    }

    /// Lets everybody finish the calls that they are at, and then everybody leave.
    async fn finish(mut self, callers: Callers) -> Result<Counts, Error> {
        callers.stop();
        for node in &mut self.nodes {
            node.tell("quiet").await?;
        }
        let seen = callers.finish().await;
        self.seen.add(&seen);
        for node in self.nodes.drain(..) {
            let seen = leave(node, By::Line).await?;
            self.seen.add(&seen);
        }
        self.stays.leave().await?;
        Ok(self.seen)
    }
}

async fn leave(mut process: Child, by: By) -> Result<Counts, Error> {
    match by {
        By::Line => process.tell("leave").await?,
        By::Signal => process.terminate()?,
    }
    let line = tokio::time::timeout(LEAVE_PATIENCE, process.next_line()).await??;
    let json = line
        .as_deref()
        .and_then(|line| line.strip_prefix("left "))
        .ok_or_else(|| format!("{} did not leave: {line:?}", process.name()))?;
    let seen = serde_json::from_str(json)?;
    tokio::time::timeout(LEAVE_PATIENCE, process.ended()).await??;
    Ok(seen)
}
