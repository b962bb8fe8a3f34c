//! One of the processes: a keyed service that counts each key up, and obeys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keydispatch::{BoxError, KeyBytes, KeyContext, Keyed, Node, Protocol, ReplyTo, ServiceUpdate};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use super::super::options::NodeOptions;
use crate::{Error, PATIENCE};

pub(super) struct Counts;

impl Protocol for Counts {
    const NAME: &'static str = "counts";
    type Call = ();
    type Reply = Answer;
    type Cast = ();
}

/// What a key says of itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Drawn when it was opened.
    pub(super) life: u64,
    pub(super) count: u64,
}

#[derive(Serialize, Deserialize)]
struct Count {
    answer: Answer,
    filler: Vec<u8>,
}

struct Counter {
    state_bytes: usize,
    merged: Arc<AtomicU64>,
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

    /// The longer history: whichever of the two it is, merging it again is the same as once.
    fn merge(&self, _: &KeyBytes, ours: Count, theirs: Count) -> Count {
        self.merged.fetch_add(1, Ordering::Relaxed);
        if theirs.answer.count > ours.answer.count {
            theirs
        } else {
            ours
        }
    }
}

/// What a process has seen: of calls that waited, and of two states of one key.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) parked: u64,
    pub(super) p99_micros: u64,
    pub(super) merged: u64,
    /// Keys that have a state there.
    pub(super) keys: usize,
}

/// Serves keys until it is told to leave, by a line or by SIGTERM.
pub(crate) async fn run_node(options: NodeOptions, say: impl Fn(&str)) -> Result<(), Error> {
    let mut terminated = signal(SignalKind::terminate())?;
    let node = options.describe().start().await?;
    let state_bytes = options.state_bytes;
    let merged: Arc<AtomicU64> = Arc::default();
    let counter = Counter {
        state_bytes,
        merged: Arc::clone(&merged),
    };
    let served = node.serve_keyed(counter).await?;
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
            Some("seen") => {
                let seen = see(&node, &merged).await;
                say(&format!("seen {}", serde_json::to_string(&seen)?));
                continue;
            }
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
    let seen = see(&node, &merged).await;
    if let Err(error) = node.leave().await {
        tracing::warn!(%error, "leaving");
    }
    say(&format!("left {}", serde_json::to_string(&seen)?));
    Ok(())
}

async fn see(node: &Node, merged: &AtomicU64) -> Seen {
    let stats = node.stats().await;
    stats.map_or_else(Seen::default, |stats| Seen {
        parked: stats.data.parked,
        p99_micros: u64::try_from(stats.data.parked_p99.as_micros()).unwrap_or(u64::MAX),
        merged: merged.load(Ordering::Relaxed),
        keys: stats.data.keys,
    })
}
