//! The same with a state for each key: nodes leave and come back, get other weights, are drained and disabled, while every key
//! is counted up. No call may fail, no state may be lost, none may come back from the dead, and no call may run twice.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keydispatch::{
    BoxError, Key, KeyBytes, KeyContext, Keyed, KeyedHandle, Node, Protocol, ReplyTo, ServiceUpdate,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::node::NodeOptions;
use super::{By, LEAVE_PATIENCE, Options, STAYS, configured};
use crate::fleet::{Certificates, Error, PATIENCE, Process, describe};

/// Lives of one key that are remembered, to know one that comes back.
const LIVES: usize = 8;

/// What became of the calls and the states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyedOutcome {
    /// Calls that were made.
    pub calls: u64,
    /// Those that failed.
    pub failed: u64,
    /// Times that a key began anew which had a state.
    pub lost: u64,
    /// Times that an earlier state of a key came back.
    pub resurrected: u64,
    /// Times that a key had counted more than it was called.
    pub twice: u64,
    /// The slowest call, in milliseconds.
    pub slowest_ms: u64,
    /// What 99 of 100 calls that waited for their key's state did not wait longer than, in the process where that was worst;
    /// in milliseconds.
    pub parked_p99_ms: u64,
    /// Calls that waited for their key's state.
    pub parked: u64,
    /// Planned changes that were made.
    pub changes: u64,
    /// Calls a second.
    pub calls_per_s: u64,
}

impl KeyedOutcome {
    /// True where nothing failed, was lost, came back, or ran twice.
    pub fn is_flawless(&self) -> bool {
        self.failed + self.lost + self.resurrected + self.twice == 0
    }
}

struct Counts;

impl Protocol for Counts {
    const NAME: &'static str = "counts";
    type Call = ();
    type Reply = Answer;
    type Cast = ();
}

/// What a key says of itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Answer {
    /// Drawn when it was opened.
    life: u64,
    count: u64,
}

#[derive(Serialize, Deserialize)]
struct Count {
    answer: Answer,
    filler: Vec<u8>,
}

struct Counter {
    state_bytes: usize,
}

impl Keyed for Counter {
    type Protocol = Counts;
    type State = Count;

    async fn open(&self, _: &KeyBytes) -> Result<Count, BoxError> {
        Ok(Count {
            answer: Answer {
                life: rand::random(),
                count: 0,
            },
            filler: vec![7; self.state_bytes],
        })
    }

    async fn handle_call(
        &self,
        state: &mut Count,
        (): (),
        reply_to: ReplyTo<Answer>,
        _: &mut KeyContext<Self>,
    ) {
        state.answer.count += 1;
        reply_to.reply(state.answer);
    }
}

/// What a process has seen of calls that waited.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Waited {
    parked: u64,
    p99_micros: u64,
}

/// Serves keys until it is told to leave, by a line or by SIGTERM.
pub(super) async fn run_node(options: NodeOptions, say: impl Fn(&str)) -> Result<(), Error> {
    let mut terminated = signal(SignalKind::terminate())?;
    let node = options.describe().start().await?;
    let state_bytes = options.state_bytes;
    let served = node.serve_keyed(Counter { state_bytes }).await?;
    let mut entry = served.registration();
    say(&format!("ready {}", node.address()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = terminated.recv() => Some("leave".to_owned()),
        };
        match line.as_deref() {
            Some("leave") => break,
            Some("drain") => node.drain(PATIENCE).await?,
            Some("disable") => drop(entry.disable().await?),
            Some("enable") => drop(entry.enable().await?),
            Some("heavy") => drop(entry.update(ServiceUpdate::new().weight(300)).await?),
            Some("light") => drop(entry.update(ServiceUpdate::new().weight(100)).await?),
            Some(other) => return Err(format!("what does {other:?} mean?").into()),
            // Whoever started it has ended.
            None => return Ok(()),
        }
        say("done");
    }
    let waited = node
        .stats()
        .await
        .map_or_else(Waited::default, |stats| Waited {
            parked: stats.data.parked,
            p99_micros: u64::try_from(stats.data.parked_p99.as_micros()).unwrap_or(u64::MAX),
        });
    if let Err(error) = node.leave().await {
        tracing::warn!(%error, "leaving");
    }
    say(&format!("left {}", serde_json::to_string(&waited)?));
    Ok(())
}

/// Runs it, and returns what it saw.
pub async fn roll(program: &Path, options: &Options, say: fn(&str)) -> Result<KeyedOutcome, Error> {
    let mut stage = Stage::start(program, options).await?;
    let callers = Callers::start(&stage.stays.keyed(), options);
    let began = Instant::now();
    loop {
        stage.round(&callers).await?;
        if !options.json {
            let (calls, seconds) = (callers.made(), began.elapsed().as_secs_f64());
            say(&format!(
                "{} changes: {calls} calls in {seconds:.0} s",
                stage.changes
            ));
        }
        if callers.made() >= options.calls {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut seen = callers.finish().await;
    let nodes: Vec<Process> = stage.nodes.drain(..).collect();
    // The last one has nobody to give its states to, which is no planned change that could keep them.
    for node in nodes {
        stage.leave(node, By::Line).await?;
    }
    stage.stays.leave().await?;
    seen.changes = stage.changes;
    seen.parked = stage.parked;
    seen.parked_p99_ms = stage.worst_p99_micros.div_ceil(1_000);
    seen.calls_per_s = (seen.calls as f64 / seconds) as u64;
    Ok(seen)
}

struct Stage<'a> {
    program: &'a Path,
    options: &'a Options,
    certificates: Certificates,
    stays: Node,
    nodes: Vec<Process>,
    changes: u64,
    parked: u64,
    worst_p99_micros: u64,
}

impl<'a> Stage<'a> {
    async fn start(program: &'a Path, options: &'a Options) -> Result<Self, Error> {
        let names: Vec<String> = (0..options.nodes).map(|at| format!("n{at}")).collect();
        let mut certified: Vec<&str> = names.iter().map(String::as_str).collect();
        certified.push(STAYS);
        let certificates = Certificates::make(&certified)?;
        let stays = describe(STAYS, "127.0.0.1:0", &[], certificates.path());
        let stays = configured(stays, options.pool_size, options.down_period_ms)
            .start()
            .await?;
        let mut stage = Stage {
            program,
            options,
            certificates,
            stays,
            nodes: Vec::new(),
            changes: 0,
            parked: 0,
            worst_p99_micros: 0,
        };
        for name in &names {
            let process = stage.spawn(name, "127.0.0.1:0").await?;
            stage.nodes.push(process);
        }
        stage.settled().await?;
        Ok(stage)
    }

    async fn spawn(&self, name: &str, bind: &str) -> Result<Process, Error> {
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
        Process::run(command, name).await
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
        node.say(line).await?;
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

    async fn leave(&mut self, mut process: Process, by: By) -> Result<(), Error> {
        self.changes += 1;
        match by {
            By::Line => process.say("leave").await?,
            By::Signal => process.terminate()?,
        }
        let line = tokio::time::timeout(LEAVE_PATIENCE, process.next_line()).await??;
        let json = line
            .as_deref()
            .and_then(|line| line.strip_prefix("left "))
            .ok_or_else(|| format!("{} did not leave: {line:?}", process.name()))?;
        let waited: Waited = serde_json::from_str(json)?;
        self.parked += waited.parked;
        self.worst_p99_micros = self.worst_p99_micros.max(waited.p99_micros);
        tokio::time::timeout(LEAVE_PATIENCE, process.ended()).await??;
        Ok(())
    }
}

/// Tasks that count keys up, each its own.
struct Callers {
    tasks: JoinSet<()>,
    seen: Arc<Mutex<KeyedOutcome>>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
}

impl Callers {
    fn start(keys: &KeyedHandle<Counts>, options: &Options) -> Self {
        let mut all = Callers {
            tasks: JoinSet::new(),
            seen: Arc::default(),
            stop: Arc::default(),
            made: Arc::default(),
        };
        let callers = options.callers.clamp(1, options.keys.max(1));
        let pause = Duration::from_secs_f64(callers as f64 / options.rate.max(1) as f64);
        for caller in 0..callers {
            let own: Vec<u32> = (0..options.keys as u32)
                .filter(|key| *key as usize % callers == caller)
                .collect();
            let (keys, stop) = (keys.clone(), Arc::clone(&all.stop));
            let (seen, made) = (Arc::clone(&all.seen), Arc::clone(&all.made));
            all.tasks.spawn(async move {
                let outcome = call(&keys, &own, pause, &stop, &made).await;
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(&outcome);
            });
        }
        all
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Waits until some more calls were answered.
    async fn go_on(&self) -> Result<(), Error> {
        let until = self.made() + 100;
        let going = async {
            while self.made() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, going).await?)
    }

    async fn finish(mut self) -> KeyedOutcome {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl KeyedOutcome {
    fn add(&mut self, other: &KeyedOutcome) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.lost += other.lost;
        self.resurrected += other.resurrected;
        self.twice += other.twice;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// What a caller knows of one of its keys.
#[derive(Default)]
struct Known {
    /// The last is the present one.
    lives: Vec<u64>,
    count: u64,
    /// A call failed that may have run.
    unsure: bool,
}

impl Known {
    /// Compares what the key says with what it must say.
    fn check(&mut self, answer: Answer, outcome: &mut KeyedOutcome) {
        if self.lives.last() == Some(&answer.life) {
            let expected = self.count + 1;
            if answer.count < expected {
                // The same life, as it was before.
                outcome.resurrected += 1;
            } else if answer.count > expected && !self.unsure {
                outcome.twice += 1;
            }
        } else if self.lives.contains(&answer.life) {
            outcome.resurrected += 1;
        } else {
            outcome.lost += u64::from(!self.lives.is_empty());
            outcome.twice += u64::from(answer.count > 1 && !self.unsure);
            self.lives.push(answer.life);
            if self.lives.len() > LIVES {
                self.lives.remove(0);
            }
        }
        self.count = answer.count;
        self.unsure = false;
    }
}

async fn call(
    keys: &KeyedHandle<Counts>,
    own: &[u32],
    pause: Duration,
    stop: &AtomicBool,
    made: &AtomicU64,
) -> KeyedOutcome {
    let mut outcome = KeyedOutcome::default();
    let mut known: HashMap<u32, Known> = HashMap::new();
    let mut ticks = tokio::time::interval(pause.max(Duration::from_micros(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for key in own.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        let began = Instant::now();
        let result = keys.call(*key, ()).await;
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome.slowest_ms = outcome.slowest_ms.max(took);
        outcome.calls += 1;
        made.fetch_add(1, Ordering::Relaxed);
        let known = known.entry(*key).or_default();
        match result {
            Ok(answer) => {
                let (had, before) = (known.count, outcome.clone());
                known.check(answer, &mut outcome);
                if (before.lost, before.resurrected, before.twice)
                    != (outcome.lost, outcome.resurrected, outcome.twice)
                {
                    let slot = Key::from(*key).slot().keyed_index();
                    tracing::warn!(key, slot, had, ?answer, "not what was to come");
                }
            }
            Err(error) => {
                known.unsure |= error.may_have_run();
                outcome.failed += 1;
                tracing::warn!(%error, key, "a call failed");
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_comes_back_or_ran_twice_is_told_apart() {
        let seen = |answers: &[(u64, u64)]| {
            let (mut known, mut outcome) = (Known::default(), KeyedOutcome::default());
            for (life, count) in answers {
                let answer = Answer {
                    life: *life,
                    count: *count,
                };
                known.check(answer, &mut outcome);
            }
            (outcome.lost, outcome.resurrected, outcome.twice)
        };
        assert_eq!(seen(&[(1, 1), (1, 2), (1, 3)]), (0, 0, 0));
        assert_eq!(seen(&[(1, 1), (2, 1), (2, 2)]), (1, 0, 0));
        assert_eq!(seen(&[(1, 1), (2, 1), (1, 2)]), (1, 1, 0));
        assert_eq!(seen(&[(1, 1), (1, 2), (1, 2)]), (0, 1, 0));
        assert_eq!(seen(&[(1, 1), (1, 3)]), (0, 0, 1));
        assert_eq!(seen(&[(1, 2)]), (0, 0, 1));
    }
}
