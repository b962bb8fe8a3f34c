//! Callers that never rest: what they asked, what they were answered, and how long it took.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keydispatch::{
    CallError, CallOptions, Context, Node, Protocol, ReplyTo, Service, ServiceHandle, ServiceId,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How late a call may end after its deadline: what a busy machine needs to run its task.
const SLACK: Duration = Duration::from_millis(500);

/// How often a process looks whether it ran.
const TICK: Duration = Duration::from_millis(20);

/// Keys that are called by.
const KEYS: u32 = 1_000;

/// What an echo that is told to panic says.
pub const TOLD_TO_PANIC: &str = "told to panic";

/// A call that is answered with what it asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EchoCall {
    /// Say it.
    Say {
        /// The key that was called by.
        key: u32,
        /// Chosen at random.
        nonce: u64,
    },
    /// Panic.
    Panic,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoReply {
    by: ServiceId,
    key: u32,
    nonce: u64,
}

/// The services that are called.
pub struct Echoes;

impl Protocol for Echoes {
    const NAME: &'static str = "echo";
    type Call = EchoCall;
    type Reply = EchoReply;
    type Cast = ();
}

/// One of them.
pub struct Echo;

impl Service for Echo {
    type Protocol = Echoes;

    async fn handle_call(
        &mut self,
        call: EchoCall,
        reply_to: ReplyTo<EchoReply>,
        cx: &mut Context<Self>,
    ) {
        match call {
            EchoCall::Say { key, nonce } => reply_to.reply(EchoReply {
                by: cx.id().clone(),
                key,
                nonce,
            }),
            EchoCall::Panic => panic!("{TOLD_TO_PANIC}"),
        }
    }
}

/// How a load is made.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LoadOptions {
    /// Tasks that call one after the other.
    pub callers: usize,
    /// Their pause after each call, in milliseconds.
    pub pause_ms: u64,
    /// How long a call may take, in milliseconds.
    pub timeout_ms: u64,
}

/// What became of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Made.
    pub made: u64,
    /// Answered, rightly.
    pub answered: u64,
    /// Answered by another instance than was asked, or with another call's answer.
    pub wrong: u64,
    /// Ended later than their deadline allows.
    pub late: u64,
    /// Failed, by the kind of the error.
    pub failed: BTreeMap<String, u64>,
    /// The slowest call, in microseconds, answered or not.
    pub slowest_us: u64,
    /// When the last call failed, in milliseconds since the last report.
    pub last_failure_ms: Option<u64>,
}

impl Calls {
    /// Adds others to these.
    pub fn add(&mut self, other: &Calls) {
        self.made += other.made;
        self.answered += other.answered;
        self.wrong += other.wrong;
        self.late += other.late;
        for (kind, count) in &other.failed {
            *self.failed.entry(kind.clone()).or_default() += count;
        }
        self.slowest_us = self.slowest_us.max(other.slowest_us);
        self.last_failure_ms = self.last_failure_ms.max(other.last_failure_ms);
    }

    /// Failed, of whatever kind.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// Calls by the node that owned the key when they were made; the empty name where nobody did.
pub type ByOwner = BTreeMap<String, Calls>;

struct Record {
    since: Instant,
    by_owner: ByOwner,
}

/// A load that runs until it is dropped.
pub struct Load {
    record: Arc<Mutex<Record>>,
    running: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// Starts the callers.
    pub fn start(node: &Node, pauses: &Pauses, options: LoadOptions) -> Load {
        let record = Arc::new(Mutex::new(Record {
            since: Instant::now(),
            by_owner: ByOwner::new(),
        }));
        let running = Arc::new(AtomicBool::new(true));
        let timeout = Duration::from_millis(options.timeout_ms);
        let echoes = node
            .services::<Echoes>()
            .with(CallOptions::new().timeout(timeout));
        let tasks = (0..options.callers)
            .map(|_| {
                let caller = Caller {
                    echoes: echoes.clone(),
                    pauses: pauses.clone(),
                    record: Arc::clone(&record),
                    running: Arc::clone(&running),
                    timeout,
                };
                tokio::spawn(caller.run(Duration::from_millis(options.pause_ms)))
            })
            .collect();
        Load {
            record,
            running,
            tasks,
        }
    }

    /// What happened since the last time this was asked.
    pub fn take(&self) -> ByOwner {
        let mut record = lock(&self.record);
        record.since = Instant::now();
        std::mem::take(&mut record.by_owner)
    }

    /// Waits until the calls under way have ended, and says what happened.
    pub async fn stop(self) -> ByOwner {
        self.running.store(false, Ordering::SeqCst);
        for task in self.tasks {
            // A caller that panicked is missing from the counts, which say so.
            let _ = task.await;
        }
        std::mem::take(&mut lock(&self.record).by_owner)
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Caller {
    echoes: ServiceHandle<Echoes>,
    pauses: Pauses,
    record: Arc<Mutex<Record>>,
    running: Arc<AtomicBool>,
    timeout: Duration,
}

impl Caller {
    async fn run(self, pause: Duration) {
        while self.running.load(Ordering::SeqCst) {
            self.call().await;
            tokio::time::sleep(pause).await;
        }
    }

    async fn call(&self) {
        let (key, nonce) = {
            let mut rng = rand::rng();
            (rng.random_range(0..KEYS), rng.random())
        };
        let paused = self.pauses.total();
        let begun = Instant::now();
        let owner = self
            .echoes
            .find(u64::from(key))
            .map(|info| info.node().as_str().to_owned())
            .unwrap_or_default();
        let outcome = self
            .echoes
            .call_answered(u64::from(key), EchoCall::Say { key, nonce })
            .await;
        let mut took = begun.elapsed();
        if took > self.timeout {
            // A process that is stopped makes its calls wait, and that is nobody's fault.
            tokio::time::sleep(TICK * 5).await;
            took = took.saturating_sub(self.pauses.total().saturating_sub(paused));
        }
        let mut record = lock(&self.record);
        let now_ms = u64::try_from(record.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let calls = record.by_owner.entry(owner).or_default();
        calls.made += 1;
        calls.late += u64::from(took > self.timeout + SLACK);
        calls.slowest_us = calls
            .slowest_us
            .max(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        match outcome {
            Ok(answer) => {
                let right = answer.reply.by == *answer.by.id()
                    && answer.reply.key == key
                    && answer.reply.nonce == nonce;
                if right {
                    calls.answered += 1;
                } else {
                    calls.wrong += 1;
                }
            }
            Err(error) => {
                *calls.failed.entry(kind(&error).to_owned()).or_default() += 1;
                calls.last_failure_ms = Some(now_ms);
            }
        }
    }
}

/// How a call failed, in two words.
pub fn kind(error: &CallError) -> &'static str {
    match error {
        CallError::NoService { .. } => "no service",
        CallError::NoInstance { .. } => "no instance",
        CallError::NotSent { .. } => "not sent",
        CallError::Overloaded { .. } => "overloaded",
        CallError::Disconnected { .. } => "disconnected",
        CallError::Timeout { .. } => "timeout",
        CallError::Stopped => "stopped",
        CallError::Gone { .. } => "gone",
        CallError::NoReply => "no reply",
        CallError::NodeStopped => "node stopped",
        CallError::Incompatible { .. } => "incompatible",
        _ => "other",
    }
}

/// How long this process did not run, in all.
#[derive(Clone)]
pub struct Pauses {
    micros: Arc<AtomicU64>,
}

impl Pauses {
    /// Starts to watch.
    pub fn watch() -> Pauses {
        let micros = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&micros);
        // Not a task: one that runs late says nothing about the process.
        std::thread::spawn(move || {
            let mut last = std::time::Instant::now();
            while Arc::strong_count(&counted) > 1 {
                std::thread::sleep(TICK);
                let gap = last.elapsed();
                last = std::time::Instant::now();
                if gap > TICK * 10 {
                    let gap = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
                    counted.fetch_add(gap, Ordering::SeqCst);
                }
            }
        });
        Pauses { micros }
    }

    fn total(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::SeqCst))
    }
}
