//! The same with a state for each key: nodes leave and come back, get other weights, are drained and disabled, while every key
//! is counted up. No call may fail, no state may be lost, none may come back from the dead, and no call may run twice.

use std::path::Path;
use std::time::Instant;

use keydispatch::{KeyedHandle, Node};
use tokio::process::Command;

use super::options::{By, LEAVE_PATIENCE, Options, STAYS, configured};
use crate::{Certificates, Child, Error, PATIENCE, describe};

mod callers;
mod counter;
mod faults;
mod outcome;

use callers::Callers;
pub(super) use counter::run_node;
use counter::{Counts, Seen};
pub use outcome::{FaultOutcome, Frozen, KeyedOutcome, Killed};

/// Runs it, and returns what it saw.
pub async fn roll(program: &Path, options: &Options, say: fn(&str)) -> Result<KeyedOutcome, Error> {
    let mut fleet = Fleet::start(program, options).await?;
    let callers = Callers::start(&fleet.stays.keyed(), options, false);
    let began = Instant::now();
    // One round at least, where there is to be any.
    while callers.made() < options.calls || (fleet.changes == 0 && options.calls > 0) {
        fleet.round(&callers).await?;
        if !options.json {
            let (calls, seconds) = (callers.made(), began.elapsed().as_secs_f64());
            say(&format!(
                "{} changes: {calls} calls in {seconds:.0} s",
                fleet.changes
            ));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut seen = callers.finish().await;
    if options.faults {
        // What is merged from here on is not by a planned change.
        seen.merged = fleet.merged().await? + fleet.merged;
        seen.faults = Some(fleet.faults().await?);
    }
    let nodes: Vec<Child> = fleet.nodes.drain(..).collect();
    // The last one has nobody to give its states to, which is no planned change that could keep them.
    for node in nodes {
        fleet.leave(node, By::Line).await?;
    }
    fleet.stays.leave().await?;
    seen.changes = fleet.changes;
    if !options.faults {
        seen.merged = fleet.merged;
    }
    seen.parked = fleet.parked;
    seen.parked_p99_ms = fleet.worst_p99_micros.div_ceil(1_000);
    seen.calls_per_s = (seen.calls as f64 / seconds) as u64;
    Ok(seen)
}

struct Fleet<'a> {
    program: &'a Path,
    options: &'a Options,
    certificates: Certificates,
    stays: Node,
    nodes: Vec<Child>,
    changes: u64,
    parked: u64,
    merged: u64,
    worst_p99_micros: u64,
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
            changes: 0,
            parked: 0,
            merged: 0,
            worst_p99_micros: 0,
        };
        for name in &names {
            let process = fleet.spawn(name, "127.0.0.1:0").await?;
            fleet.nodes.push(process);
        }
        fleet.settled().await?;
        Ok(fleet)
    }

    async fn spawn(&self, name: &str, bind: &str) -> Result<Child, Error> {
        let mut command = Command::new(self.program);
        command
            .arg("rolling-node")
            .arg("--keyed")
            .args(["--name", name, "--bind", bind])
            .arg("--certificates")
            .arg(self.certificates.path())
            .args(["--seed", self.stays.address().as_str()]);
        for (key, value) in [
            ("--pool-size", self.options.pool_size),
            ("--state-bytes", self.options.state_bytes),
        ] {
            command.args([key, &value.to_string()]);
        }
        if let Some(period) = self.options.down_period_ms {
            command.args(["--down-period-ms", &period.to_string()]);
        }
        Child::start(command, name).await
    }

    /// Waits until the node that stays sees every instance.
    async fn settled(&self) -> Result<(), Error> {
        let keys: KeyedHandle<Counts> = self.stays.keyed();
        tokio::time::timeout(PATIENCE, keys.wait_online(self.options.nodes)).await??;
        Ok(())
    }

    /// Every kind of planned change once.
    async fn round(&mut self, callers: &Callers) -> Result<(), Error> {
        for at in 0..self.nodes.len() {
            self.replace(at, By::Line).await?;
            self.settled().await?;
            callers.go_on().await?;
        }
        // Fewer by two, and more again.
        if self.nodes.len() > 2 {
            let mut gone = Vec::new();
            for _ in 0..2 {
                let leaving = self.nodes.remove(0);
                gone.push((leaving.name().to_owned(), leaving.address().to_owned()));
                self.leave(leaving, By::Line).await?;
            }
            callers.go_on().await?;
            for (name, address) in gone {
                let again = self.spawn(&name, &address).await?;
                self.nodes.push(again);
                self.changes += 1;
            }
            self.settled().await?;
        }
        for told in [
            ["heavy", "light"],
            ["drain", "enable"],
            ["disable", "enable"],
        ] {
            for at in 0..self.nodes.len() {
                for line in told {
                    self.tell(at, line).await?;
                    callers.go_on().await?;
                }
                self.settled().await?;
            }
        }
        // Back to back, whatever is still on its way.
        for at in 0..self.nodes.len() {
            self.replace(at, By::Signal).await?;
        }
        self.settled().await
    }

    async fn tell(&mut self, at: usize, line: &str) -> Result<(), Error> {
        self.changes += 1;
        let node = &mut self.nodes[at];
        node.tell(line).await?;
        match tokio::time::timeout(LEAVE_PATIENCE, node.next_line())
            .await??
            .as_deref()
        {
            Some("done") => Ok(()),
            other => Err(format!("{} did not do {line:?}: {other:?}", node.name()).into()),
        }
    }

    /// Lets one leave, and starts it again at the same address.
    async fn replace(&mut self, at: usize, by: By) -> Result<(), Error> {
        let leaving = self.nodes.remove(at);
        let (name, address) = (leaving.name().to_owned(), leaving.address().to_owned());
        self.leave(leaving, by).await?;
        let again = self.spawn(&name, &address).await?;
        self.nodes.insert(at, again);
        self.changes += 1;
        Ok(())
    }

    async fn leave(&mut self, mut process: Child, by: By) -> Result<(), Error> {
        self.changes += 1;
        match by {
            By::Line => process.tell("leave").await?,
            By::Signal => process.terminate()?,
        }
        let line = tokio::time::timeout(LEAVE_PATIENCE, process.next_line()).await??;
        let json = line
            .as_deref()
            .and_then(|line| line.strip_prefix("left "))
            .ok_or_else(|| format!("{} did not leave: {line:?}", process.name()))?;
        let seen: Seen = serde_json::from_str(json)?;
        self.parked += seen.parked;
        self.merged += seen.merged;
        self.worst_p99_micros = self.worst_p99_micros.max(seen.p99_micros);
        tokio::time::timeout(LEAVE_PATIENCE, process.ended()).await??;
        Ok(())
    }
}
