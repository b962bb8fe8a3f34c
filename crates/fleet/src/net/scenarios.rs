//! What goes wrong, for how long, and what must hold all the same.

use std::time::{Duration, Instant};

use super::load::{ByOwner, Calls, LoadOptions};
use super::namespaces::{NamespacedNodes, name};
use super::relay::{Frames, Path};
use super::worker::Request;
use super::workers::{Agreement, agree, tell_all};
use crate::Error;

/// Nodes of every scenario.
pub const NODES: usize = 5;

/// The node that suffers, where one does.
const TOUCHED: usize = 1;

/// The nodes that are killed, where two are.
const KILLED: [usize; 2] = [1, 3];

/// Echo services of each node.
const ECHOES: usize = 4;

/// Entries of each node beside them, to begin with.
const BULK: usize = 20;

const LOAD: LoadOptions = LoadOptions {
    callers: 6,
    pause_ms: 8,
    timeout_ms: 5_000,
};

/// Changes a second on each node.
const CHURN: u32 = 10;

/// How long the views may take to agree once the network is whole.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rule: a link is judged silent after one second, looked at four times a second; the rest is for a busy machine.
const SILENT_BOUND: Duration = Duration::from_millis(1_600);

/// What a call between two healthy nodes may take while a third is unreachable, on a busy machine.
const UNTOUCHED_BOUND: Duration = Duration::from_millis(500);

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One node's cable is out.
    CablePulled,
    /// What one node sends is lost, what it is sent arrives.
    OneDirection,
    /// Frames are lost everywhere, so many per cent.
    Loss(u8),
    /// Every frame takes so many milliseconds.
    Delay(u64),
    /// A quarter of all frames is overtaken.
    Reordering,
    /// One node has 1 Mbit/s, while another registers 10,000 services.
    SlowLink,
    /// One node's process is stopped for so many milliseconds.
    Frozen(u64),
    /// Two nodes are killed, and started again later.
    Killed,
}

impl Fault {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Fault); 11] = [
        ("healthy", Fault::Loss(0)),
        ("cable-pulled", Fault::CablePulled),
        ("one-direction", Fault::OneDirection),
        ("loss-5", Fault::Loss(5)),
        ("loss-20", Fault::Loss(20)),
        ("delay-100ms", Fault::Delay(100)),
        ("reordering", Fault::Reordering),
        ("slow-link", Fault::SlowLink),
        ("frozen-1s", Fault::Frozen(1_000)),
        ("frozen-6s", Fault::Frozen(6_000)),
        ("kill-two", Fault::Killed),
    ];

    fn lasts(self) -> Duration {
        match self {
            Fault::Frozen(millis) => Duration::from_millis(millis),
            Fault::CablePulled | Fault::OneDirection | Fault::Killed => Duration::from_secs(6),
            _ => Duration::from_secs(10),
        }
    }

    /// True where that node cannot be reached, and so answers nobody.
    fn silences(self, node: usize) -> bool {
        match self {
            Fault::CablePulled | Fault::OneDirection | Fault::Frozen(_) => node == TOUCHED,
            _ => false,
        }
    }

    async fn begin(self, nodes: &mut NamespacedNodes) -> Result<(), Error> {
        let touches = |from: usize, to: usize| from == TOUCHED || to == TOUCHED;
        let cut = Path {
            cut: true,
            ..Path::default()
        };
        match self {
            Fault::CablePulled => nodes.relay.set(cut, touches),
            Fault::OneDirection => nodes.relay.set(cut, |from, _| from == TOUCHED),
            Fault::Loss(percent) => {
                let loss = f64::from(percent) / 100.0;
                let path = Path {
                    loss,
                    ..Path::default()
                };
                nodes.relay.set(path, |_, _| true);
            }
            Fault::Delay(millis) => {
                let delay = Duration::from_millis(millis);
                let path = Path {
                    delay,
                    ..Path::default()
                };
                nodes.relay.set(path, |_, _| true);
            }
            Fault::Reordering => {
                let path = Path {
                    late: 0.25,
                    late_by: Duration::from_millis(20),
                    ..Path::default()
                };
                nodes.relay.set(path, |_, _| true);
            }
            Fault::SlowLink => {
                nodes.relay.limit(TOUCHED, Some(1_000_000));
                let tell = Request::Bulk(10_000 - NODES * BULK);
                nodes.worker(0)?.tell(&tell).await?;
            }
            Fault::Frozen(_) => nodes.worker(TOUCHED)?.freeze()?,
            Fault::Killed => {
                for port in KILLED {
                    nodes.kill(port).await?;
                }
            }
        }
        Ok(())
    }

    async fn end(self, nodes: &mut NamespacedNodes) -> Result<(), Error> {
        match self {
            // Agreement has to be reached over the slow link.
            Fault::SlowLink => {}
            Fault::Frozen(_) => nodes.worker(TOUCHED)?.thaw()?,
            Fault::Killed => {
                for port in KILLED {
                    nodes.start(port).await?;
                    nodes.worker(port)?.tell(&Request::Echoes(ECHOES)).await?;
                }
            }
            _ => nodes.relay.set(Path::default(), |_, _| true),
        }
        Ok(())
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Its name.
    pub scenario: String,
    /// Calls of the whole run.
    pub calls: Calls,
    /// Calls from healthy nodes for keys of the node that was silent, during the fault.
    pub touched: Calls,
    /// Calls from healthy nodes for keys of healthy nodes, during the fault.
    pub untouched: Calls,
    /// Calls once the views agreed again.
    pub after: Calls,
    /// When they agreed.
    pub agreement: Agreement,
    /// How often a member went down, over all nodes.
    pub downs: u64,
    /// Changes to the registry during the fault.
    pub changes: u64,
    /// What the relay did.
    pub frames: Frames,
    /// What should not have been.
    pub violations: Vec<String>,
}

/// Runs one scenario from the first node's start to the last one's end.
pub async fn run(
    program: &std::path::Path,
    scenario: &str,
    fault: Fault,
    seed: u64,
) -> Result<Outcome, Error> {
    let mut nodes = NamespacedNodes::set(program, NODES, seed).await?;
    let mut outcome = Outcome {
        scenario: scenario.to_owned(),
        ..Outcome::default()
    };
    for worker in &mut nodes.workers {
        worker.tell(&Request::Echoes(ECHOES)).await?;
        worker.tell(&Request::Bulk(BULK)).await?;
    }
    let before = agree(&mut nodes.workers, Instant::now(), PATIENCE).await?;
    if before.after.is_none() {
        return Err(format!("the views did not agree before the fault: {before:?}").into());
    }
    tell_all(&mut nodes.workers, &Request::StartLoad(LOAD)).await?;
    for (number, worker) in nodes.workers.iter_mut().enumerate() {
        let seed = seed + number as u64;
        let tell = Request::StartChurn {
            per_second: CHURN,
            seed,
        };
        worker.tell(&tell).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for worker in &mut nodes.workers {
        let calls = worker.calls(&Request::TakeLoad).await?;
        outcome.count(&calls);
    }

    let begun = Instant::now();
    fault.begin(&mut nodes).await?;
    tokio::time::sleep(fault.lasts()).await;
    for (port, worker) in nodes.workers.iter_mut().enumerate() {
        if matches!(fault, Fault::Frozen(_)) && port == TOUCHED {
            continue;
        }
        let calls = worker.calls(&Request::TakeLoad).await?;
        outcome.count(&calls);
        if fault.silences(port) {
            continue;
        }
        for (owner, calls) in calls {
            let silent = (0..NODES).any(|node| fault.silences(node) && name(node) == owner);
            if silent {
                outcome.touched.add(&calls);
            } else {
                outcome.untouched.add(&calls);
            }
        }
    }
    tell_all(&mut nodes.workers, &Request::StopChurn).await?;
    // A slow link stays slow: there the views agree once everything has come through it.
    let since = match fault {
        Fault::SlowLink => begun,
        _ => Instant::now(),
    };
    fault.end(&mut nodes).await?;
    tell_all(&mut nodes.workers, &Request::StopChurn).await?;
    outcome.agreement = agree(&mut nodes.workers, since, PATIENCE).await?;
    // Those under way were made before the views agreed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for worker in &mut nodes.workers {
        let calls = worker.calls(&Request::TakeLoad).await?;
        outcome.count(&calls);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for worker in &mut nodes.workers {
        let calls = worker.calls(&Request::StopLoad).await?;
        outcome.count(&calls);
        for calls in calls.values() {
            outcome.after.add(calls);
        }
    }
    let last = agree(&mut nodes.workers, Instant::now(), PATIENCE).await?;
    outcome.agreement.lost += last.lost;
    outcome.agreement.resurrected += last.resurrected;
    for worker in &mut nodes.workers {
        let health = worker.health().await?;
        outcome.downs += health.downs;
        outcome.changes += health.changes;
        if health.pending > 0 {
            let pending = health.pending;
            let name = worker.name();
            outcome.violations.push(format!(
                "{pending} calls of {name} are pending and nobody waits for them"
            ));
        }
    }
    outcome.frames = nodes.relay.frames();
    outcome.judge(fault);
    Ok(outcome)
}

impl Outcome {
    fn count(&mut self, calls: &ByOwner) {
        for calls in calls.values() {
            self.calls.add(calls);
        }
    }

    fn judge(&mut self, fault: Fault) {
        let mut found = Vec::new();
        let calls = &self.calls;
        if calls.wrong > 0 {
            found.push(format!("{} calls were wrongly answered", calls.wrong));
        }
        if calls.late > 0 {
            found.push(format!("{} calls outlived their deadline", calls.late));
        }
        if calls.made != calls.answered + calls.wrong + calls.failures() {
            found.push("the counts of calls do not add up".to_owned());
        }
        if self.agreement.after.is_none() {
            let seen = self.agreement.seen.join("; ");
            found.push(format!(
                "the views did not agree within {PATIENCE:?}: {seen}"
            ));
        }
        if self.agreement.lost + self.agreement.resurrected > 0 {
            found.push("entries were lost or resurrected".to_owned());
        }
        if self.after.failures() > 0 {
            found.push(format!(
                "calls failed after the views agreed: {:?}",
                self.after.failed
            ));
        }
        let millis = |bound: Duration| u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        if fault.silences(TOUCHED) {
            if self.touched.slowest_us > millis(SILENT_BOUND) {
                found.push(format!(
                    "a call for a key of the silent node took {} ms",
                    self.touched.slowest_us / 1_000
                ));
            }
            if self.untouched.slowest_us > millis(UNTOUCHED_BOUND) {
                found.push(format!(
                    "a call for a key of another node took {} ms",
                    self.untouched.slowest_us / 1_000
                ));
            }
        }
        if matches!(fault, Fault::Loss(0 | 5) | Fault::Frozen(1_000)) && self.downs > 0 {
            found.push(format!("{} members went down, and none had", self.downs));
        }
        self.violations.extend(found);
    }
}
