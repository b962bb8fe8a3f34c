//! Replicas of a model that keep the beginnings of prompts in a cache, and three ways to send prompts to them.
//!
//! ```text
//! cargo run --release -p keydispatch --example model_server
//! ```
//!
//! Eight replicas on nodes of their own; many prompts begin alike, as those of one assistant or one document do. What of a
//! prompt's beginning its replica has computed of late costs nothing again; each other block of it takes a while, which stands
//! for the work here. By turns, each replica would have to know all beginnings. By their key alone, each knows its own, and
//! whoever has the most popular ones is asked for more than it can do. Bounded, it passes on what it cannot.
//!
//! Prompts come when they are due, whether or not others are answered, and latencies count from then on.
#![expect(clippy::print_stdout, reason = "an example")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keydispatch::{
    BoxError, CallError, CallOptions, Context, Key, Node, Protocol, ReplyTo, Routing, Service,
    ServiceHandle, ServiceId,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

const REPLICAS: usize = 8;

/// Beginnings, the blocks of each, and the blocks of its own that each prompt has after it.
const PREFIXES: usize = 400;
const PREFIX_BLOCKS: usize = 32;
const OWN_BLOCKS: usize = 4;

/// Blocks that a replica keeps: 120 beginnings, if there were nothing else.
const CACHE_BLOCKS: usize = 120 * PREFIX_BLOCKS;

/// What an answer takes, and each block that is not in the cache beside it.
const ANSWER: Duration = Duration::from_millis(4);
const BLOCK: Duration = Duration::from_micros(400);

/// What is asked for, as a share of what the replicas could do if all beginnings were in their caches.
const LOAD: f64 = 0.5;

/// How long prompts come in each way, and how much of that is not counted, as caches are cold.
const SECONDS: f64 = 15.0;
const WARM_UP: f64 = 6.0;

/// The calls and casts of the replicas.
struct Models;

impl Protocol for Models {
    const NAME: &'static str = "model";
    /// As for caches that are dear to fill: keys stay where they are until there is much in the way.
    const ROUTING: Routing = Routing::Bounded {
        owners: 4,
        depth: 16,
        stay: Some(8),
    };
    type Call = Prompt;
    type Reply = Answered;
    /// Forget everything.
    type Cast = ();
}

/// What is asked: its blocks, each by a hash of itself and of all before it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Prompt {
    blocks: Vec<u64>,
}

impl Prompt {
    /// Prompts of one beginning have one key, and so go to one replica.
    fn key(&self) -> Key {
        Key::from(self.blocks[PREFIX_BLOCKS - 1])
    }
}

/// How many blocks were in the cache, from the first on.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answered {
    cached: usize,
}

/// The blocks that were used last.
#[derive(Default)]
struct Cache {
    used: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl Cache {
    /// How many blocks of a prompt are here, from the first on. From now on all of them are.
    fn take(&mut self, blocks: &[u64]) -> usize {
        let is_here = |block: &&u64| self.used.contains_key(*block);
        let cached = blocks.iter().take_while(is_here).count();
        // The first ones last: without them the others are of no use, so they go last, too.
        for block in blocks.iter().rev() {
            self.uses += 1;
            if let Some(before) = self.used.insert(*block, self.uses) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.uses, *block);
        }
        while self.used.len() > CACHE_BLOCKS
            && let Some((_, block)) = self.by_use.pop_first()
        {
            self.used.remove(&block);
        }
        cached
    }
}

#[derive(Default)]
struct Replica {
    cache: Cache,
}

impl Service for Replica {
    type Protocol = Models;

    async fn handle_call(
        &mut self,
        prompt: Prompt,
        reply_to: ReplyTo<Answered>,
        _: &mut Context<Self>,
    ) {
        let cached = self.cache.take(&prompt.blocks);
        let missing = (prompt.blocks.len() - cached) as u32;
        let takes = ANSWER + BLOCK * missing;
        // A timer of tokio would be late by up to a millisecond each time.
        let work = tokio::task::spawn_blocking(move || std::thread::sleep(takes));
        if work.await.is_err() {
            return;
        }
        reply_to.reply(Answered { cached });
    }

    async fn handle_cast(&mut self, (): (), _: &mut Context<Self>) {
        *self = Replica::default();
    }
}

/// How prompts find their replica.
#[derive(Clone)]
enum Way {
    /// Each has its turn.
    Turns(Arc<[ServiceId]>, Arc<AtomicUsize>),
    /// By the key of the prompt, as the options say.
    ByKey(CallOptions),
}

impl Way {
    async fn ask(
        &self,
        models: &ServiceHandle<Models>,
        prompt: Prompt,
    ) -> Result<Answered, CallError> {
        match self {
            Way::Turns(replicas, turn) => {
                let at = turn.fetch_add(1, Ordering::Relaxed) % replicas.len();
                models.at(replicas[at].clone()).call(prompt).await
            }
            Way::ByKey(options) => models.with(*options).call(prompt.key(), prompt).await,
        }
    }
}

/// One prompt after the other: the same ones in each way.
struct Prompts {
    rng: StdRng,
    /// The cumulated popularity of the beginnings.
    popularity: Vec<f64>,
    next: u64,
}

impl Prompts {
    /// The r-th beginning is had by 1/r as many prompts as the first.
    fn new() -> Self {
        let mut sum = 0.0;
        let shares = (1..=PREFIXES).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        let mut popularity: Vec<f64> = shares.collect();
        popularity.iter_mut().for_each(|share| *share /= sum);
        Prompts {
            rng: StdRng::seed_from_u64(7),
            popularity,
            next: 0,
        }
    }

    /// How long it is until the next one, in seconds, and that one.
    fn next(&mut self, each_second: f64) -> (f64, Prompt) {
        let pause = -(1.0 - self.rng.random::<f64>()).ln() / each_second;
        let at = self.rng.random::<f64>();
        let prefix = self.popularity.partition_point(|share| *share < at) as u64;
        let mut blocks: Vec<u64> = (0..PREFIX_BLOCKS as u64)
            .map(|block| prefix << 32 | block)
            .collect();
        for _ in 0..OWN_BLOCKS {
            self.next += 1;
            blocks.push(1 << 63 | self.next);
        }
        (pause, Prompt { blocks })
    }
}

/// What became of the prompts that were counted.
#[derive(Default)]
struct Seen {
    millis: Vec<f64>,
    cached: usize,
    failed: usize,
}

impl Seen {
    fn quantile(&self, quantile: f64) -> f64 {
        let at = (self.millis.len().saturating_sub(1)) as f64 * quantile;
        self.millis.get(at.round() as usize).copied().unwrap_or(0.0)
    }

    /// How much of the beginnings was in a cache, in percent.
    fn hits(&self) -> f64 {
        let all = (self.millis.len() * PREFIX_BLOCKS).max(1);
        self.cached as f64 / all as f64 * 100.0
    }
}

async fn run(models: &ServiceHandle<Models>, way: &Way) -> Result<Seen, BoxError> {
    let at_best = ANSWER + BLOCK * OWN_BLOCKS as u32;
    let each_second = LOAD * REPLICAS as f64 / at_best.as_secs_f64();
    let (mut prompts, mut calls) = (Prompts::new(), JoinSet::new());
    let (began, mut due) = (Instant::now(), 0.0);
    loop {
        let (pause, prompt) = prompts.next(each_second);
        due += pause;
        if due > SECONDS {
            break;
        }
        let (is_counted, due) = (due > WARM_UP, began + Duration::from_secs_f64(due));
        sleep_until(due).await;
        let (models, way) = (models.clone(), way.clone());
        calls.spawn(async move {
            let answer = way.ask(&models, prompt).await;
            (is_counted, due.elapsed(), answer)
        });
    }
    let mut seen = Seen::default();
    while let Some(call) = calls.join_next().await {
        match call? {
            (false, ..) => {}
            (true, took, Ok(answer)) => {
                seen.millis.push(took.as_secs_f64() * 1e3);
                seen.cached += answer.cached;
            }
            (true, _, Err(_)) => seen.failed += 1,
        }
    }
    seen.millis.sort_by(f64::total_cmp);
    Ok(seen)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..=REPLICAS {
        let seeds: Vec<String> = nodes
            .iter()
            .take(1)
            .map(|n| n.address().to_string())
            .collect();
        let node = Node::builder(format!("node-{number}"))
            .cluster("models")
            .seeds(seeds)
            .plaintext()
            .start()
            .await?;
        // The first one calls.
        if number > 0 {
            node.serve(Replica::default()).await?;
        }
        nodes.push(node);
    }
    let models = nodes[0].services::<Models>();
    models.wait_online(REPLICAS).await?;
    let replicas: Arc<[ServiceId]> = models
        .view()
        .services()
        .iter()
        .map(|info| info.id().clone())
        .collect();

    println!(
        "{REPLICAS} replicas, {PREFIXES} beginnings of {PREFIX_BLOCKS} blocks, caches of {} of them\n",
        CACHE_BLOCKS / PREFIX_BLOCKS
    );
    println!("                 hit rate   p50, ms   p99, ms   failed");
    let plain = CallOptions::new().routing(Routing::Owner);
    // The last way comes last: a replica of less than ten seconds would refuse earlier.
    for (name, way) in [
        (
            "round robin",
            Way::Turns(Arc::clone(&replicas), Arc::default()),
        ),
        ("plain hashing", Way::ByKey(plain)),
        ("bounded", Way::ByKey(CallOptions::new())),
    ] {
        for replica in &*replicas {
            models.at(replica.clone()).cast(())?;
        }
        let seen = run(&models, &way).await?;
        println!(
            "{name:<15} {:>7.1} % {:>9.1} {:>9.1} {:>8}",
            seen.hits(),
            seen.quantile(0.5),
            seen.quantile(0.99),
            seen.failed,
        );
    }
    Ok(())
}
