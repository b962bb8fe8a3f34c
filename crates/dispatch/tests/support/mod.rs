//! What the tests of whole nodes share: waiting for conditions, what is logged, and a service that does as it is told.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    BoxError, Context, Key, Node, NodeBuilder, Protocol, ReplyTo, Service, ServiceHandle,
    StopReason,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// How long a condition may take to come true before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds, and fails with what was seen last when it does not come to hold.
pub(crate) async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(seen) if tokio::time::Instant::now() >= deadline => {
                panic!("not within {PATIENCE:?}: {what}; last seen: {seen}");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// What is logged on this thread, which is all of a test's nodes: tests have a runtime of one thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Logs here until the guard is dropped, from `debug` on.
    pub(crate) fn capture() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines so far that contain all of that.
    pub(crate) fn lines(&self, parts: &[&str]) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for a line that contains all of that.
    pub(crate) async fn line(&self, parts: &[&str]) -> String {
        eventually(&format!("a log line with {parts:?}"), async || {
            let found = self.lines(parts).into_iter().next();
            found.ok_or_else(|| self.lines(&[]).join("\n"))
        })
        .await
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A node in memory at the address `<name>:1`.
pub(crate) fn describe(network: &MemoryNetwork, name: &str, seeds: &[&str]) -> NodeBuilder {
    Node::builder(name)
        .memory(network)
        .bind(format!("{name}:1"))
        .seeds(seeds.iter().copied())
}

/// Starts nodes in memory that know each other: the first is everybody's seed.
pub(crate) async fn start_all<const N: usize>(
    network: &MemoryNetwork,
    names: [&str; N],
    with: impl Fn(NodeBuilder) -> NodeBuilder,
) -> [Node; N] {
    let seed = format!("{}:1", names[0]);
    let mut nodes = Vec::new();
    for name in names {
        let seeds: &[&str] = if nodes.is_empty() { &[] } else { &[&seed] };
        nodes.push(with(describe(network, name, seeds)).start().await.unwrap());
    }
    for node in &nodes {
        members(node, N - 1).await;
    }
    nodes.try_into().unwrap()
}

/// Waits until so many other nodes are up here.
pub(crate) async fn members(node: &Node, count: usize) {
    eventually("the members are up", async || {
        let members = node.members();
        if members.iter().filter(|member| member.is_up()).count() == count {
            Ok(())
        } else {
            Err(format!("{}: {members:?}", node.name()))
        }
    })
    .await;
}

/// What a worker is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Note it, and answer all notes.
    Note(u64),
    /// Answer all notes.
    Notes,
    /// Answer at the next [`Tell::Answer`].
    Later,
    /// Do not answer.
    Ignore,
    /// Answer once the gate was opened, and nothing else meanwhile.
    Wait,
    /// Panic.
    Panic,
    /// That many bytes.
    Bytes(Vec<u8>),
    /// Answer so many numbers.
    Numbers(usize),
}

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// Note it.
    Note(u64),
    /// Answer those who wait.
    Answer,
    /// Tell yourself these.
    Yourself(Vec<u64>),
    /// Note these after so many milliseconds each.
    After(Vec<(u64, u64)>),
    /// The same, and cancel those numbers before they are due.
    AfterBut(Vec<(u64, u64)>, Vec<u64>),
    /// Stop.
    Stop,
}

/// The protocol of [`Worker`].
pub(crate) struct Workers;

impl Protocol for Workers {
    const NAME: &'static str = "worker";
    type Call = Ask;
    type Reply = Vec<u64>;
    type Cast = Tell;
}

/// Notes what it is told; whoever made it can look on, and opens its gate.
#[derive(Clone)]
pub(crate) struct Worker {
    notes: Vec<u64>,
    later: Arc<Mutex<Vec<ReplyTo<Vec<u64>>>>>,
    diary: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
}

impl Default for Worker {
    fn default() -> Self {
        Worker {
            notes: Vec::new(),
            later: Arc::default(),
            diary: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Worker {
    pub(crate) fn diary(&self) -> Vec<String> {
        let diary = self.diary.lock().unwrap_or_else(PoisonError::into_inner);
        diary.clone()
    }

    /// Waits until that happened.
    pub(crate) async fn has(&self, entry: &str) {
        eventually(&format!("the worker has {entry:?}"), async || {
            let diary = self.diary();
            if diary.iter().any(|other| other == entry) {
                Ok(())
            } else {
                Err(format!("{diary:?}"))
            }
        })
        .await;
    }

    /// Lets it go on with one [`Ask::Wait`].
    pub(crate) fn open(&self) {
        self.gate.add_permits(1);
    }

    fn happened(&self, what: impl Into<String>) {
        let mut diary = self.diary.lock().unwrap_or_else(PoisonError::into_inner);
        diary.push(what.into());
    }
}

impl Service for Worker {
    type Protocol = Workers;

    async fn started(&mut self, _: &mut Context<Self>) -> Result<(), BoxError> {
        self.happened("started");
        Ok(())
    }

    async fn handle_call(&mut self, ask: Ask, reply_to: ReplyTo<Vec<u64>>, _: &mut Context<Self>) {
        match ask {
            Ask::Note(note) => {
                self.notes.push(note);
                reply_to.reply(self.notes.clone());
            }
            Ask::Notes => reply_to.reply(self.notes.clone()),
            Ask::Later => {
                let later = Arc::clone(&self.later);
                let mut later = later.lock().unwrap_or_else(PoisonError::into_inner);
                later.push(reply_to);
                self.happened("later");
            }
            Ask::Ignore => drop(reply_to),
            Ask::Wait => {
                self.happened("waiting");
                if let Ok(permit) = self.gate.acquire().await {
                    permit.forget();
                }
                reply_to.reply(self.notes.clone());
            }
            Ask::Panic => panic!("told to panic"),
            Ask::Bytes(bytes) => reply_to.reply(vec![bytes.len() as u64]),
            Ask::Numbers(count) => reply_to.reply(vec![u64::MAX; count]),
        }
    }

    async fn handle_cast(&mut self, tell: Tell, cx: &mut Context<Self>) {
        match tell {
            Tell::Note(note) => self.notes.push(note),
            Tell::Answer => {
                let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
                for reply_to in later.drain(..) {
                    reply_to.reply(self.notes.clone());
                }
            }
            Tell::Yourself(notes) => {
                for note in notes {
                    cx.cast(Tell::Note(note));
                }
            }
            Tell::After(notes) => {
                for (millis, note) in notes {
                    cx.cast_after(Duration::from_millis(millis), Tell::Note(note));
                }
            }
            Tell::AfterBut(notes, cancelled) => {
                for (millis, note) in notes {
                    let timer = cx.cast_after(Duration::from_millis(millis), Tell::Note(note));
                    if cancelled.contains(&note) {
                        cx.cancel(timer);
                    }
                }
            }
            Tell::Stop => cx.stop(),
        }
    }

    async fn stopped(&mut self, reason: StopReason) {
        self.happened(format!("stopped: {reason:?}"));
    }
}

/// A key that the worker on that node owns, as this handle sees it.
pub(crate) fn key_of(workers: &ServiceHandle<Workers>, node: &str) -> Key {
    (0..10_000_u64)
        .map(Key::from)
        .find(|key| workers.find(*key).unwrap().node().as_str() == node)
        .expect("every worker owns keys")
}
