//! One of the processes that call: callers with a handle each, on a node without instances.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use keydispatch::{Answer, CallError, CallOptions, Key, Node, Routing, ServiceHandle, ServiceId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::worker::Works;
use keydispatch_fleet::net::load::kind;
use keydispatch_fleet::{Error, describe};

/// What such a process is started with.
#[derive(Clone, Debug, Args)]
pub struct CallerOptions {
    #[arg(long)]
    name: String,
    #[arg(long)]
    certificates: PathBuf,
    #[arg(long = "seed")]
    seeds: Vec<String>,
    /// Instances that it waits for.
    #[arg(long)]
    workers: usize,
}

/// How calls are made: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Of the times and ranks of the first caller; the next ones have the next.
    pub(super) seed: u64,
    pub(super) routing: Bound,
    pub(super) callers: usize,
    /// Calls a second of each caller.
    pub(super) rate: f64,
    pub(super) seconds: f64,
    pub(super) keys: u32,
    /// Tells the keys of one run from those of others.
    pub(super) keys_of: u64,
    pub(super) zipf: f64,
}

/// A [`Routing`] that can be told to another process: owners, depth and stay, where it is bounded.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Bound(Option<(u8, u8, Option<u8>)>);

impl From<Routing> for Bound {
    fn from(routing: Routing) -> Self {
        Bound(match routing {
            Routing::Owner => None,
            Routing::Bounded {
                owners,
                depth,
                stay,
            } => Some((owners, depth, stay)),
        })
    }
}

impl From<Bound> for Routing {
    fn from(Bound(bound): Bound) -> Self {
        bound.map_or(Routing::Owner, |(owners, depth, stay)| Routing::Bounded {
            owners,
            depth,
            stay,
        })
    }
}

/// What became of the calls, in one process or in all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Latencies of the calls that were answered, in microseconds.
    pub(super) micros: Vec<u32>,
    /// Those of them that their first owner answered.
    pub(super) first: u64,
    /// Calls that were answered and the work on them in microseconds, by the name of the node.
    pub(super) by_instance: BTreeMap<String, (u64, u64)>,
    pub(super) failed: BTreeMap<String, u64>,
    /// Calls that were made, and messages that were sent for them: with those that are not counted above.
    pub(super) made: u64,
    pub(super) messages: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.micros.extend(other.micros);
        self.first += other.first;
        for (name, (calls, work)) in other.by_instance {
            let sum = self.by_instance.entry(name).or_default();
            *sum = (sum.0 + calls, sum.1 + work);
        }
        for (kind, count) in other.failed {
            *self.failed.entry(kind).or_default() += count;
        }
        self.made += other.made;
        self.messages += other.messages;
    }

    /// A call has ended that was due then, for a key whose first owner that was.
    fn ended(
        &mut self,
        due: Instant,
        owner: Option<&ServiceId>,
        outcome: Result<Answer<u32>, CallError>,
    ) {
        match outcome {
            Ok(Answer { reply, by }) => {
                let micros = due.elapsed().as_micros();
                self.micros.push(u32::try_from(micros).unwrap_or(u32::MAX));
                self.first += u64::from(owner == Some(by.id()));
                let sum = self.by_instance.entry(by.node().to_string());
                let (calls, work) = sum.or_default();
                (*calls, *work) = (*calls + 1, *work + u64::from(reply));
            }
            Err(error) => {
                *self.failed.entry(kind(&error).to_owned()).or_default() += 1;
                tracing::warn!(%error, "a call failed");
            }
        }
    }
}

/// Calls as each line of standard input says, and answers each with a line, until it closes.
pub async fn run(options: CallerOptions, say: fn(&str)) -> Result<(), Error> {
    let node = describe(
        &options.name,
        "127.0.0.1:0",
        &options.seeds,
        &options.certificates,
    )
    .start()
    .await?;
    let services = node.services::<Works>();
    services.wait_online(options.workers).await?;
    // Rule: nobody refuses a call on whose node nothing is known yet. With a connection to each, all calls are alike.
    for info in services.view().services() {
        services.at(info.id().clone()).call(false).await?;
    }
    say(&format!("ready {}", node.address()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order: Order = serde_json::from_str(&line)?;
        let counts = call(&node, &order).await?;
        say(&serde_json::to_string(&counts)?);
    }
    Ok(())
}

async fn call(node: &Node, order: &Order) -> Result<Counts, Error> {
    let counts = Arc::new(Mutex::new(Counts::default()));
    let popularity: Arc<[f64]> = popularity(order.keys, order.zipf).into();
    let sent_before = messages(node).await?;
    let mut callers = JoinSet::new();
    for caller in 0..order.callers {
        let caller = Caller {
            rng: StdRng::seed_from_u64(order.seed + caller as u64),
            // Its own: what one has learnt, and its budget, are not the others'.
            services: node
                .services()
                .with(CallOptions::new().routing(order.routing.into())),
            order: order.clone(),
            popularity: Arc::clone(&popularity),
            counts: Arc::clone(&counts),
            runtime: Handle::current(),
        };
        // A thread of its own: a timer of tokio is late by up to a millisecond, which is all of the work of a call.
        callers.spawn_blocking(move || caller.run());
    }
    let mut made = 0;
    while let Some(calls) = callers.join_next().await {
        let mut calls = calls?;
        made += calls.len() as u64;
        while let Some(ended) = calls.join_next().await {
            ended?;
        }
    }
    let messages = messages(node).await? - sent_before;
    let mut counts = std::mem::take(&mut *locked(&counts));
    (counts.made, counts.messages) = (made, messages);
    Ok(counts)
}

async fn messages(node: &Node) -> Result<u64, Error> {
    let stats = node.stats().await.ok_or("the node has stopped")?;
    Ok(stats.data.calls_sent)
}

/// One of the callers.
struct Caller {
    rng: StdRng,
    services: ServiceHandle<Works>,
    order: Order,
    popularity: Arc<[f64]>,
    counts: Arc<Mutex<Counts>>,
    runtime: Handle,
}

impl Caller {
    /// Makes its calls when they are due, and returns those that may not have ended.
    fn run(mut self) -> JoinSet<()> {
        let began = Instant::now();
        let mut calls = JoinSet::new();
        let mut due = 0.0;
        loop {
            due += -(1.0 - self.rng.random::<f64>()).ln() / self.order.rate;
            let key = self.key();
            if due >= self.order.seconds {
                return calls;
            }
            let is_counted = due >= self.order.seconds / 10.0;
            let due = began + Duration::from_secs_f64(due);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (services, counts) = (self.services.clone(), Arc::clone(&self.counts));
            let call = async move {
                let owner = services.find(key).ok();
                let outcome = services.call_answered(key, true).await;
                if is_counted {
                    let owner = owner.as_ref().map(|info| info.id());
                    locked(&counts).ended(due, owner, outcome);
                }
            };
            calls.spawn_on(call, &self.runtime);
        }
    }

    fn key(&mut self) -> Key {
        let at = self.rng.random::<f64>();
        let rank = self.popularity.partition_point(|share| *share < at);
        Key::from(format!("key/{}/{rank}", self.order.keys_of))
    }
}

/// The cumulated popularity of the keys: that of rank r is called r⁻ˢ times as often as the first.
fn popularity(keys: u32, zipf: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let mut shares: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += f64::from(rank).powf(-zipf);
            sum
        })
        .collect();
    shares.iter_mut().for_each(|share| *share /= sum);
    shares
}

fn locked(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
