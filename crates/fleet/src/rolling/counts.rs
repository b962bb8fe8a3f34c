//! What was called and what ran, by key; made in every process and summed up in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keydispatch::{
    CallError, Context, Node, Protocol, ReplyTo, ServeOptions, Service, ServiceHandle,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::Error;
use crate::net::load::kind;

/// Keys that are called.
pub(super) const KEYS: usize = 1_000;

/// One in so many messages is a cast.
const CASTS_EVERY: u32 = 20;

/// The messages of the service that is called: the number of a key.
pub(super) struct Tallies;

impl Protocol for Tallies {
    const NAME: &'static str = "tally";
    type Call = u32;
    type Reply = u32;
    type Cast = u32;
}

/// How often what ran in this process, by key.
pub(super) struct Ran {
    calls: Vec<AtomicU64>,
    casts: AtomicU64,
}

impl Ran {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Ran {
            calls: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
            casts: AtomicU64::new(0),
        })
    }
}

/// Counts what it is asked, and takes its time.
pub(super) struct Tally {
    pub(super) ran: Arc<Ran>,
    pub(super) takes: Duration,
}

impl Service for Tally {
    type Protocol = Tallies;

    async fn handle_call(&mut self, key: u32, reply_to: ReplyTo<u32>, _: &mut Context<Self>) {
        if let Some(count) = self.ran.calls.get(key as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
        reply_to.reply(key);
    }

    async fn handle_cast(&mut self, _: u32, _: &mut Context<Self>) {
        self.ran.casts.fetch_add(1, Ordering::Relaxed);
    }
}

/// Serves so many of them on a node.
pub(super) async fn serve(
    node: &Node,
    ran: &Arc<Ran>,
    instances: usize,
    takes: Duration,
) -> Result<(), Error> {
    for _ in 0..instances {
        let ran = Arc::clone(ran);
        node.serve_with(ServeOptions::new(), Tally { ran, takes })
            .await?;
    }
    Ok(())
}

/// What was seen, in one process or in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) calls: u64,
    pub(super) failed: u64,
    pub(super) by_kind: BTreeMap<String, u64>,
    pub(super) may_have_run: u64,
    pub(super) slowest_micros: u64,
    /// Calls that were answered, by key.
    pub(super) answered: Vec<u64>,
    /// Calls that ran, by key.
    pub(super) ran: Vec<u64>,
    pub(super) casts: u64,
    pub(super) casts_ran: u64,
    /// Calls that a process could not make any more because its own node had left; their number says how many callers it had.
    pub(super) after_leaving: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.failed += other.failed;
        for (kind, count) in &other.by_kind {
            *self.by_kind.entry(kind.clone()).or_default() += count;
        }
        self.may_have_run += other.may_have_run;
        self.slowest_micros = self.slowest_micros.max(other.slowest_micros);
        add_each(&mut self.answered, &other.answered);
        add_each(&mut self.ran, &other.ran);
        self.casts += other.casts;
        self.casts_ran += other.casts_ran;
        self.after_leaving += other.after_leaving;
    }

    pub(super) fn take_ran(&mut self, ran: &Ran) {
        let calls: Vec<u64> = ran
            .calls
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        add_each(&mut self.ran, &calls);
        self.casts_ran += ran.casts.load(Ordering::Relaxed);
    }

    /// Keys whose calls did not run exactly once each.
    pub(super) fn miscounted(&self) -> usize {
        let mut ran = self.ran.clone();
        let mut answered = self.answered.clone();
        ran.resize(KEYS, 0);
        answered.resize(KEYS, 0);
        ran.iter().zip(&answered).filter(|(a, b)| a != b).count()
    }

    fn failed(&mut self, error: &CallError) {
        self.failed += 1;
        self.may_have_run += u64::from(error.may_have_run());
        *self.by_kind.entry(kind(error).to_owned()).or_default() += 1;
        tracing::warn!(%error, "a call failed");
    }
}

fn add_each(sums: &mut Vec<u64>, more: &[u64]) {
    sums.resize(sums.len().max(more.len()), 0);
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

/// Tasks that call one after the other until they are told to stop, or their own node has left.
pub(super) struct Callers {
    tasks: JoinSet<()>,
    counts: Arc<Mutex<Counts>>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
}

impl Callers {
    pub(super) fn start(services: &ServiceHandle<Tallies>, callers: usize, seed: u64) -> Self {
        let mut all = Callers {
            tasks: JoinSet::new(),
            counts: Arc::default(),
            stop: Arc::default(),
            made: Arc::default(),
        };
        for caller in 0..callers {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(caller as u64));
            let (services, stop) = (services.clone(), Arc::clone(&all.stop));
            let (counts, made) = (Arc::clone(&all.counts), Arc::clone(&all.made));
            all.tasks.spawn(async move {
                let seen = call(&services, rng, &stop, &made).await;
                counts
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(&seen);
            });
        }
        all
    }

    /// Calls that were made so far.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Tells them to stop after the call that they are at.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until they have stopped.
    pub(super) async fn finish(mut self) -> Counts {
        while self.tasks.join_next().await.is_some() {}
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn call(
    services: &ServiceHandle<Tallies>,
    mut rng: StdRng,
    stop: &AtomicBool,
    made: &AtomicU64,
) -> Counts {
    let mut seen = Counts {
        answered: vec![0; KEYS],
        ..Counts::default()
    };
    while !stop.load(Ordering::Relaxed) {
        let key = rng.random_range(0..KEYS as u32);
        if rng.random_range(0..CASTS_EVERY) == 0 && services.cast(key, key).is_ok() {
            seen.casts += 1;
        }
        let began = Instant::now();
        let outcome = services.call(key, key).await;
        if matches!(outcome, Err(CallError::NodeStopped)) {
            seen.after_leaving += 1;
            break;
        }
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.slowest_micros = seen.slowest_micros.max(took);
        seen.calls += 1;
        made.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(_) => seen.answered[key as usize] += 1,
            Err(error) => seen.failed(&error),
        }
    }
    seen
}
