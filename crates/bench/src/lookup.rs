//! `lookup`: what it costs to find the owner of a key, beside the cost of hashing the key and beside other crates.

use std::hash::{BuildHasher, Hash, Hasher};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use keydispatch::{
    Adapter, Key, NewService, Node, Protocol, Registry, ServiceHandle, View, limits,
};
use maglev::ConsistentHasher;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::fleet::Error;
use crate::{Output, Target, allocations, cells, exponent, figure, median, thread_time, timed};

mod balance;

/// Instances of the type that is looked up.
const SIZES: [usize; 6] = [1, 3, 10, 100, 1_000, 10_000];

/// Distinct keys in each pass.
const KEYS: usize = 100_000;

/// Points of one instance on a ring: what ketama gives a server of weight 1.
const RING_POINTS: usize = 160;

/// Making a larger maglev takes 80 GB: it writes every instance's permutation of the table down.
const MAX_MAGLEV: usize = 1_000;

/// See the module.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Print one object last.
    #[arg(long)]
    json: bool,
    /// Fewer rounds and name sets: for a look, not for a record.
    #[arg(long)]
    quick: bool,
    /// Leave out the balance over many name sets, which takes the longest.
    #[arg(long)]
    no_balance: bool,
}

struct Lookups;

impl Protocol for Lookups {
    const NAME: &'static str = "uploader";
    type Call = ();
    type Reply = ();
    type Cast = ();
}

/// Runs the command.
pub fn run(options: Options, say: fn(&str)) -> Result<(), Error> {
    let output = Output {
        say,
        json: options.json,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut figures = serde_json::Map::new();
    let mut targets = Vec::new();
    let keys = Keys::random(KEYS, 1);

    let mut sizes = Vec::new();
    for instances in SIZES {
        sizes.push(Size::measure(&runtime, &keys, instances, options.quick)?);
    }
    report_sizes(&output, &sizes, &mut figures, &mut targets);

    let threads = Threads::measure(&runtime, &keys, options.quick)?;
    threads.report(&output, &mut figures, &mut targets);
    let writer = WriterCost::measure(&runtime, &keys, options.quick)?;
    report_writer(&output, &writer, &mut figures, &mut targets);
    let changes = Change::measure_all(options.quick)?;
    report_changes(&output, &changes, &mut figures, &mut targets);
    report_growth(&output, &sizes, &changes, &mut figures);
    if !options.no_balance {
        balance::measure(&output, &runtime, options.quick, &mut figures, &mut targets)?;
    }
    output.finish("lookup", figures, &targets)
}

/// Distinct keys of 10 to 60 bytes, one after the other in memory.
struct Keys {
    text: String,
    ends: Vec<u32>,
}

impl Keys {
    fn random(count: usize, seed: u64) -> Self {
        const LETTERS: &[u8; 64] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.";
        let mut random = StdRng::seed_from_u64(seed);
        let mut text = String::new();
        let mut ends = Vec::with_capacity(count);
        for number in 0..count {
            let length = random.random_range(10..=60);
            let start = text.len();
            // A number of its own makes it distinct.
            text.push_str(&format!("{number:x}"));
            while text.len() - start < length {
                text.push(char::from(LETTERS[random.random_range(0..LETTERS.len())]));
            }
            ends.push(text.len() as u32);
        }
        Keys { text, ends }
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let key = &self.text[start..end as usize];
            start = end as usize;
            key
        })
    }

    /// Nanoseconds of this thread for each key.
    #[inline]
    fn pass<'a, T>(&'a self, mut look: impl FnMut(&'a str) -> T) -> f64 {
        let start = thread_time();
        for key in self.iter() {
            black_box(look(key));
        }
        (thread_time() - start).as_secs_f64() * 1e9 / self.ends.len() as f64
    }
}

/// The floor. By the same way as in the lookups beside it: inlined by itself, it may come out three times as slow.
#[inline]
fn hash_alone(key: &str) -> u64 {
    Key::from(key).hash()
}

/// The address, and so the name, of an instance.
fn address(number: usize) -> SocketAddr {
    let [.., a, b, c] = (number as u32).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, a, b, c), 7400))
}

/// A node without a network, with so many endpoints of one type.
async fn node_with(instances: usize) -> Result<Node, Error> {
    let node = Node::builder("bench")
        .adapter(Adapter::Local)
        .start()
        .await?;
    let endpoints = (0..instances)
        .map(|number| NewService::endpoint(Lookups::NAME, address(number).to_string()));
    node.registry().add_services(endpoints).await?;
    Ok(node)
}

/// Scores every slot once, so that what follows reads the table.
fn warm(view: &View) {
    for number in 0..1_200_000_u64 {
        black_box(view.owner(number));
    }
}

/// XXH3-64 in one go, for peers that want a hasher.
#[derive(Clone, Copy, Default)]
struct OurHash;

struct OneShot(u64);

impl BuildHasher for OurHash {
    type Hasher = OneShot;

    #[inline]
    fn build_hasher(&self) -> OneShot {
        OneShot(0)
    }
}

impl Hasher for OneShot {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 = self.0.rotate_left(5) ^ xxh3_64(bytes);
    }

    #[inline]
    fn write_u32(&mut self, seed: u32) {
        self.0 ^= u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {
        // The end of a string, which was hashed as a whole.
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A point of an instance on a ring, as in hashring's example.
#[derive(Clone, Copy, Hash)]
struct Point {
    id: usize,
    address: SocketAddr,
}

/// What is measured at each size, in the order of the columns.
const SUBJECTS: [&str; 12] = [
    "hash alone",
    "held view",
    "typed handle",
    "by type name",
    "view, 3 owners",
    "find_multi(3)",
    "maglev, our hash",
    "maglev, default",
    "ketama",
    "hashring, 1 point",
    "hashring, 160 points",
    "view, first time",
];

const HASH: usize = 0;
const HELD: usize = 1;
const HANDLE: usize = 2;
const NAME: usize = 3;
const VIEW_3: usize = 4;
const MULTI_3: usize = 5;
const MAGLEV_OURS: usize = 6;
const MAGLEV: usize = 7;
const KETAMA: usize = 8;
const RING_1: usize = 9;
const RING_160: usize = 10;
const FIRST: usize = 11;

/// Nanoseconds of each subject at one size.
struct Size {
    instances: usize,
    nanos: [f64; SUBJECTS.len()],
    allocations: [u64; 4],
}

impl Size {
    fn measure(
        runtime: &tokio::runtime::Runtime,
        keys: &Keys,
        instances: usize,
        quick: bool,
    ) -> Result<Self, Error> {
        let node = runtime.block_on(node_with(instances))?;
        let registry = node.registry().clone();
        let handle = node.services::<Lookups>();
        let view = handle.view();
        // The first passes fill the table; their mean is what a slot costs that nobody has looked up.
        let mut nanos = [f64::INFINITY; SUBJECTS.len()];
        nanos[FIRST] = first_time(&view);
        warm(&view);

        let addresses: Vec<SocketAddr> = (0..instances).map(address).collect();
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let maglevs = (instances <= MAX_MAGLEV).then(|| {
            let default = maglev::Maglev::new(names.clone());
            (default, maglev::Maglev::with_hasher(names, OurHash))
        });
        let buckets: Vec<_> = addresses
            .iter()
            .map(|address| pingora_ketama::Bucket::new(*address, 1))
            .collect();
        let ketama = pingora_ketama::Continuum::new(&buckets);
        let ring = |points: usize| {
            let mut ring = hashring::HashRing::new();
            let points = addresses
                .iter()
                .flat_map(|&address| (0..points).map(move |id| Point { id, address }));
            ring.batch_add(points.collect());
            ring
        };
        let (ring_1, ring_160) = (ring(1), ring(RING_POINTS));

        let rounds = if quick { 7 } else { 25 };
        for _ in 0..rounds {
            let mut at_least = |subject: usize, pass: f64| {
                nanos[subject] = nanos[subject].min(pass);
            };
            at_least(HASH, keys.pass(hash_alone));
            at_least(HELD, keys.pass(|key| view.owner(key)));
            at_least(HANDLE, keys.pass(|key| handle.find(key)));
            at_least(
                NAME,
                keys.pass(|key| registry.find_service(Lookups::NAME, key)),
            );
            at_least(VIEW_3, keys.pass(|key| view.owners(key, 3)));
            at_least(
                MULTI_3,
                keys.pass(|key| registry.find_multi_service(3, Lookups::NAME, key)),
            );
            if let Some((default, ours)) = &maglevs {
                at_least(MAGLEV_OURS, keys.pass(|key| ours.get(key)));
                at_least(MAGLEV, keys.pass(|key| default.get(key)));
            }
            at_least(KETAMA, keys.pass(|key| ketama.node(key.as_bytes())));
            at_least(RING_1, keys.pass(|key| ring_1.get(&key)));
            at_least(RING_160, keys.pass(|key| ring_160.get(&key)));
        }
        let allocations = [
            allocations_of(|| keys.pass(|key| view.owner(key))),
            allocations_of(|| keys.pass(|key| view.owners(key, 3))),
            allocations_of(|| keys.pass(|key| handle.find(key))),
            allocations_of(|| keys.pass(|key| registry.find_service(Lookups::NAME, key))),
        ];
        Ok(Size {
            instances,
            nanos,
            allocations,
        })
    }

    fn ratio(&self, subject: usize, to: usize) -> f64 {
        self.nanos[subject] / self.nanos[to]
    }
}

/// Nanoseconds of a lookup of a slot that nobody has looked up, from the slots that most likely were not.
fn first_time(view: &View) -> f64 {
    const LOOKUPS: u64 = 3_000;
    let start = thread_time();
    for number in 0..LOOKUPS {
        black_box(view.owner(number));
    }
    (thread_time() - start).as_secs_f64() * 1e9 / LOOKUPS as f64
}

fn allocations_of(work: impl FnOnce() -> f64) -> u64 {
    let before = allocations::count();
    black_box(work());
    allocations::count() - before
}

fn report_sizes(
    output: &Output,
    sizes: &[Size],
    figures: &mut serde_json::Map<String, serde_json::Value>,
    targets: &mut Vec<Target>,
) {
    let heads = ["ns for each lookup".to_owned()].into_iter();
    let columns = sizes.iter().map(|size| size.instances.to_string());
    let mut rows = vec![heads.chain(columns).collect::<Vec<_>>()];
    for (subject, name) in SUBJECTS.iter().enumerate() {
        let mut row = vec![(*name).to_owned()];
        row.extend(sizes.iter().map(|size| {
            let nanos = size.nanos[subject];
            match subject {
                HELD..=MULTI_3 => {
                    format!("{} ({:.2}×)", figure(nanos), size.ratio(subject, HASH))
                }
                _ if nanos.is_finite() => figure(nanos),
                _ => "–".to_owned(),
            }
        }));
        rows.push(row);
    }
    output.table(
        "Lookup by number of online instances, 10⁵ keys of 10–60 bytes (in brackets: times hashing alone)",
        &rows,
    );

    let worst = |subject: usize| {
        sizes
            .iter()
            .filter(|size| size.instances >= 3)
            .map(|size| size.ratio(subject, HASH))
            .fold(0.0, f64::max)
    };
    let at_100 = sizes.iter().find(|size| size.instances == 100);
    targets.push(Target::at_most(
        "held view / hashing, worst of 3 to 10,000",
        worst(HELD),
        2.0,
    ));
    targets.push(Target::at_most(
        "by type name / hashing, worst of 3 to 10,000",
        worst(NAME),
        5.0,
    ));
    targets.push(Target::at_most(
        "first three owners in a view / hashing, worst of 3 to 10,000",
        worst(VIEW_3),
        6.0,
    ));
    targets.push(Target::at_most(
        "find_multi_service(3) by type name / hashing, worst of 3 to 10,000",
        worst(MULTI_3),
        6.0,
    ));
    if let Some(size) = at_100 {
        // The faster of the ways to set hashring up.
        let ring = if size.nanos[RING_1] < size.nanos[RING_160] {
            RING_1
        } else {
            RING_160
        };
        targets.push(Target::at_least(
            "hashring (1 point, its fastest) / held view, 100 instances",
            size.ratio(ring, HELD),
            4.0,
        ));
        targets.push(Target::at_least(
            "hashring (160 points) / held view, 100 instances",
            size.ratio(RING_160, HELD),
            4.0,
        ));
        targets.push(Target::at_least(
            "ketama / held view, 100 instances",
            size.ratio(KETAMA, HELD),
            4.0,
        ));
    }
    let to_maglev = sizes
        .iter()
        .filter(|size| size.instances == 100)
        .map(|size| size.ratio(HELD, MAGLEV_OURS))
        .fold(0.0, f64::max);
    targets.push(Target::at_most(
        "held view / maglev with our hasher, 100 instances",
        to_maglev,
        1.0,
    ));
    let allocated: u64 = sizes.iter().flat_map(|size| size.allocations).sum();
    targets.push(Target::at_most(
        "allocations: view, three owners in a view, handle, by name; 10⁵ lookups at each size",
        allocated as f64,
        0.0,
    ));
    output.line(format!(
        "\nAllocations in 10⁵ lookups at each size (view, three owners in a view, handle, by name): {allocated}"
    ));
    let lookups: Vec<_> = sizes
        .iter()
        .map(|size| {
            let nanos: serde_json::Map<_, _> = SUBJECTS
                .iter()
                .zip(size.nanos)
                .map(|(name, nanos)| ((*name).to_owned(), json!(nanos)))
                .collect();
            json!({"instances": size.instances, "ns": nanos, "allocations": size.allocations})
        })
        .collect();
    figures.insert("lookups".to_owned(), json!(lookups));
}

/// Lookups by two threads at once, as times those of one.
struct Threads {
    hash: f64,
    held: f64,
    handle: f64,
    name: f64,
}

impl Threads {
    fn measure(runtime: &tokio::runtime::Runtime, keys: &Keys, quick: bool) -> Result<Self, Error> {
        let node = runtime.block_on(node_with(100))?;
        let registry = node.registry().clone();
        let handle = node.services::<Lookups>();
        let view = handle.view();
        warm(&view);
        let rounds = if quick { 9 } else { 41 };
        let mut ratios = [(); 4].map(|()| Vec::new());
        for _ in 0..rounds {
            let passes = [
                scaling(|| keys.pass(hash_alone)),
                scaling(|| keys.pass(|key| view.owner(key))),
                scaling(|| keys.pass(|key| handle.find(key))),
                scaling(|| keys.pass(|key| registry.find_service(Lookups::NAME, key))),
            ];
            for (ratios, ratio) in ratios.iter_mut().zip(passes) {
                ratios.push(ratio);
            }
        }
        let [hash, held, handle, name] = ratios.map(|ratios| median(&ratios));
        Ok(Threads {
            hash,
            held,
            handle,
            name,
        })
    }

    fn report(
        &self,
        output: &Output,
        figures: &mut serde_json::Map<String, serde_json::Value>,
        targets: &mut Vec<Target>,
    ) {
        let rows: Vec<Vec<String>> = [("hash alone", self.hash), ("held view", self.held)]
            .into_iter()
            .chain([("typed handle", self.handle), ("by type name", self.name)])
            .map(|(name, ratio)| vec![name.to_owned(), format!("{ratio:.2}")])
            .collect();
        let mut table = vec![cells(["100 instances", "two threads / one"])];
        table.extend(rows);
        output.table("Lookups by two threads at once against one", &table);
        targets.push(Target::at_least(
            "two threads / one: held view over hashing",
            self.held / self.hash,
            0.95,
        ));
        figures.insert(
            "two_threads".to_owned(),
            json!({"hash": self.hash, "held": self.held, "handle": self.handle, "name": self.name}),
        );
    }
}

/// How many times the lookups of one thread two threads make at once: both measured within a few milliseconds.
fn scaling(pass: impl Fn() -> f64 + Sync) -> f64 {
    const PASSES: usize = 4;
    let several = || (0..PASSES).map(|_| pass()).sum::<f64>() / PASSES as f64;
    let alone = several();
    let start = std::sync::Barrier::new(2);
    let run = || {
        start.wait();
        several()
    };
    let together = std::thread::scope(|scope| {
        let other = scope.spawn(run);
        let ours = run();
        (ours + other.join().unwrap_or(f64::INFINITY)) / 2.0
    });
    2.0 * alone / together
}

/// What readers pay while another thread makes 1,000 changes a second.
struct WriterCost {
    instances: usize,
    subject: &'static str,
    quiet: f64,
    busy: f64,
    changes_per_second: f64,
}

impl WriterCost {
    fn measure(
        runtime: &tokio::runtime::Runtime,
        keys: &Keys,
        quick: bool,
    ) -> Result<Vec<Self>, Error> {
        let mut costs = Vec::new();
        for instances in [100, 1_000] {
            let node = runtime.block_on(node_with(instances))?;
            let registry = node.registry().clone();
            let handle = node.services::<Lookups>();
            warm(&handle.view());
            let rounds = if quick { 7 } else { 21 };
            let writer = Writer::start(registry.clone());
            let mut quiet = [(); 3].map(|()| Vec::new());
            let mut busy = [(); 3].map(|()| Vec::new());
            let mut rates = Vec::new();
            for _ in 0..rounds {
                for (passes, writing) in [(&mut quiet, false), (&mut busy, true)] {
                    writer.set(writing);
                    std::thread::sleep(Duration::from_millis(5));
                    let (made, start) = (writer.made(), Instant::now());
                    for (passes, pass) in passes.iter_mut().zip(read_all(keys, &handle, &registry))
                    {
                        passes.push(pass);
                    }
                    if writing {
                        let made = (writer.made() - made) as f64;
                        rates.push(made / start.elapsed().as_secs_f64());
                    }
                }
            }
            writer.stop()?;
            let subjects = [
                "typed handle",
                "by type name",
                "view, loaded every 100 keys",
            ];
            for (at, subject) in subjects.into_iter().enumerate() {
                costs.push(WriterCost {
                    instances,
                    subject,
                    quiet: median(&quiet[at]),
                    busy: median(&busy[at]),
                    changes_per_second: median(&rates),
                });
            }
        }
        Ok(costs)
    }
}

/// Some passes through each of the ways that see changes.
fn read_all(keys: &Keys, handle: &ServiceHandle<Lookups>, registry: &Registry) -> [f64; 3] {
    const PASSES: usize = 5;
    let mean = |pass: &dyn Fn() -> f64| (0..PASSES).map(|_| pass()).sum::<f64>() / PASSES as f64;
    [
        mean(&|| keys.pass(|key| handle.find(key))),
        mean(&|| keys.pass(|key| registry.find_service(Lookups::NAME, key))),
        mean(&|| {
            let (mut view, mut left) = (handle.view(), 100);
            keys.pass(|key| {
                left -= 1;
                if left == 0 {
                    left = 100;
                    view = handle.view();
                }
                view.owner(key).is_some()
            })
        }),
    ]
}

/// Adds and removes one instance in turn, a thousand changes a second while it is told to.
struct Writer {
    active: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    made: Arc<std::sync::atomic::AtomicU64>,
    thread: std::thread::JoinHandle<Result<(), String>>,
}

impl Writer {
    fn start(registry: Registry) -> Self {
        const PERIOD: Duration = Duration::from_millis(1);
        let active = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let made = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (is_active, is_ended, count) =
            (Arc::clone(&active), Arc::clone(&ended), Arc::clone(&made));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let mut added = None;
                let mut next = Instant::now();
                while !is_ended.load(Ordering::Relaxed) {
                    let now = Instant::now();
                    if !is_active.load(Ordering::Relaxed) {
                        next = now;
                        std::thread::sleep(PERIOD);
                        continue;
                    }
                    if now < next {
                        std::thread::sleep(next - now);
                    }
                    next += PERIOD;
                    added = match added.take() {
                        None => {
                            let extra = NewService::endpoint(Lookups::NAME, "extra");
                            let extra = registry.add_service(extra).await;
                            Some(extra.map_err(|error| error.to_string())?)
                        }
                        Some(extra) => {
                            let extra: keydispatch::Registration = extra;
                            extra.remove().await.map_err(|error| error.to_string())?;
                            None
                        }
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        Writer {
            active,
            ended,
            made,
            thread,
        }
    }

    fn set(&self, active: bool) {
        self.active.store(active, Ordering::Relaxed);
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<(), Error> {
        self.ended.store(true, Ordering::Relaxed);
        let outcome = self.thread.join().map_err(|_| "the writer panicked")?;
        Ok(outcome?)
    }
}

fn report_writer(
    output: &Output,
    costs: &[WriterCost],
    figures: &mut serde_json::Map<String, serde_json::Value>,
    targets: &mut Vec<Target>,
) {
    let heads = [
        "instances",
        "reading by",
        "quiet, ns",
        "changing, ns",
        "more, %",
        "changes/s",
    ];
    let mut rows = vec![cells(heads)];
    for cost in costs {
        rows.push(vec![
            cost.instances.to_string(),
            cost.subject.to_owned(),
            figure(cost.quiet),
            figure(cost.busy),
            format!("{:.1}", 100.0 * (cost.busy / cost.quiet - 1.0)),
            figure(cost.changes_per_second),
        ]);
    }
    output.table(
        "Lookups while another thread makes 1,000 membership changes a second",
        &rows,
    );
    let worst = costs
        .iter()
        .map(|cost| 100.0 * (cost.busy / cost.quiet - 1.0))
        .fold(f64::NEG_INFINITY, f64::max);
    targets.push(Target::at_most(
        "what 1,000 changes a second cost readers, %, worst way and size",
        worst,
        25.0,
    ));
    let costs: Vec<_> = costs
        .iter()
        .map(|cost| {
            json!({
                "instances": cost.instances, "by": cost.subject, "quiet_ns": cost.quiet,
                "busy_ns": cost.busy, "changes_per_s": cost.changes_per_second,
            })
        })
        .collect();
    figures.insert("writer".to_owned(), json!(costs));
}

/// One instance more or fewer, from the command until readers see it.
struct Change {
    instances: usize,
    add_micros: f64,
    add_p99_micros: f64,
    remove_micros: f64,
    remove_p99_micros: f64,
}

impl Change {
    fn measure_all(quick: bool) -> Result<Vec<Self>, Error> {
        // In one thread, so that waking another one is not measured with it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        [10, 100, 1_000, limits::MAX_INSTANCES_PER_TYPE]
            .into_iter()
            .map(|instances| runtime.block_on(Change::measure(instances, quick)))
            .collect()
    }

    async fn measure(instances: usize, quick: bool) -> Result<Self, Error> {
        // With the one that comes and goes there are as many as the heading says.
        let node = node_with(instances - 1).await?;
        let handle = node.services::<Lookups>();
        warm(&handle.view());
        let rounds = if quick { 10 } else { 100 };
        let (mut adds, mut removes) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let extra = NewService::endpoint(Lookups::NAME, format!("extra {round}"));
            let before = handle.view().version();
            let start = Instant::now();
            let added = node.registry().add_service(extra).await?;
            assert_ne!(
                handle.view().version(),
                before,
                "an add that returned is visible"
            );
            adds.push(start.elapsed().as_secs_f64() * 1e6);
            warm_some(&handle.view());
            let before = handle.view().version();
            let start = Instant::now();
            added.remove().await?;
            assert_ne!(
                handle.view().version(),
                before,
                "a removal that returned is visible"
            );
            removes.push(start.elapsed().as_secs_f64() * 1e6);
            warm_some(&handle.view());
        }
        Ok(Change {
            instances,
            add_micros: median(&adds),
            add_p99_micros: crate::quantile(&adds, 0.99),
            remove_micros: median(&removes),
            remove_p99_micros: crate::quantile(&removes, 0.99),
        })
    }
}

/// Most slots once.
fn warm_some(view: &View) {
    for number in 0..100_000_u64 {
        black_box(view.owner(number));
    }
}

fn report_changes(
    output: &Output,
    changes: &[Change],
    figures: &mut serde_json::Map<String, serde_json::Value>,
    targets: &mut Vec<Target>,
) {
    let mut rows = vec![cells([
        "instances",
        "add p50, µs",
        "p99",
        "remove p50, µs",
        "p99",
    ])];
    for change in changes {
        rows.push(vec![
            change.instances.to_string(),
            figure(change.add_micros),
            figure(change.add_p99_micros),
            figure(change.remove_micros),
            figure(change.remove_p99_micros),
        ]);
        let target = match change.instances {
            1_000 => 1.0,
            10_000 => 10.0,
            _ => continue,
        };
        let worse = change.add_micros.max(change.remove_micros) / 1e3;
        targets.push(Target::at_most(
            format!(
                "one instance of {} more or fewer until readers see it, p50 ms",
                change.instances
            ),
            worse,
            target,
        ));
    }
    output.table(
        "One instance added or removed, until readers see it; every slot was looked up",
        &rows,
    );
    let changes: Vec<_> = changes
        .iter()
        .map(|change| {
            json!({
                "instances": change.instances,
                "add_us": {"p50": change.add_micros, "p99": change.add_p99_micros},
                "remove_us": {"p50": change.remove_micros, "p99": change.remove_p99_micros},
            })
        })
        .collect();
    figures.insert("changes".to_owned(), json!(changes));
}

fn report_growth(
    output: &Output,
    sizes: &[Size],
    changes: &[Change],
    figures: &mut serde_json::Map<String, serde_json::Value>,
) {
    let of = |subject: usize| {
        let points: Vec<_> = sizes
            .iter()
            .filter(|size| size.instances >= 10)
            .map(|size| (size.instances as f64, size.nanos[subject]))
            .collect();
        exponent(&points)
    };
    let mut rows = vec![cells(["cost by instances, 10 to 10,000", "exponent"])];
    let mut fitted = serde_json::Map::new();
    let mut add = |name: &str, exponent: f64| {
        rows.push(vec![name.to_owned(), format!("{exponent:.2}")]);
        fitted.insert(name.to_owned(), json!(exponent));
    };
    for subject in [HELD, HANDLE, NAME, VIEW_3, MULTI_3, FIRST] {
        add(SUBJECTS[subject], of(subject));
    }
    let points = |cost: fn(&Change) -> f64| {
        let points: Vec<_> = changes
            .iter()
            .map(|change| (change.instances as f64, cost(change)))
            .collect();
        exponent(&points)
    };
    add("one instance added", points(|change| change.add_micros));
    add(
        "one instance removed",
        points(|change| change.remove_micros),
    );
    output.table(
        "Growth: the cost is proportional to instances to the power of",
        &rows,
    );
    figures.insert("growth".to_owned(), fitted.into());
}

/// Also says how long it took.
fn paced<T>(output: &Output, what: &str, work: impl FnOnce() -> T) -> T {
    let (result, took) = timed(work);
    output.line(format!("\n({what}: {:.0} s)", took.as_secs_f64()));
    result
}
