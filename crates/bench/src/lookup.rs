//! `lookup`: what it costs to find the owner of a key, beside the cost of hashing the key and beside other crates.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use keydispatch::{Adapter, Key, NewService, Node, Protocol, View};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::fleet::Error;
use keydispatch_measure::{Output, cells, exponent, thread_time, timed};

mod balance;
mod changes;
mod sizes;
mod threads;
mod writer;

use changes::{Change, report_changes};
use sizes::{FIRST, HANDLE, HELD, LOADED_3, MULTI_3, NAME, SUBJECTS, Size, VIEW_3, report_sizes};
use threads::Threads;
use writer::{WriterCost, report_writer};

/// Instances of the type that is looked up.
const SIZES: [usize; 6] = [1, 3, 10, 100, 1_000, 10_000];

/// Distinct keys in each pass.
const KEYS: usize = 100_000;

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
    Ok(output.finish("lookup", figures, &targets)?)
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

/// Scores nearly every slot once, so that what follows reads the table.
fn warm(view: &View) {
    for number in 0..14_000_000_u64 {
        black_box(view.owner(number));
    }
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
    for subject in [HELD, HANDLE, NAME, VIEW_3, MULTI_3, LOADED_3, FIRST] {
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
