//! `lookup`: what it costs to find the owner of a key, beside the cost of hashing the key and beside other crates.

use clap::Args;
use serde_json::json;

use keydispatch_fleet::Error;
use keydispatch_measure::{Output, cells, exponent};

mod balance;
mod changes;
mod fixture;
mod sizes;
mod threads;
mod writer;

use changes::{Change, report_changes};
use fixture::Keys;
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
