//! How evenly keys are spread, and how many move.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use keydispatch::{Adapter, Key, NewService, Node, Registry, ServiceUpdate, View};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use keydispatch_fleet::Error;
use keydispatch_measure::{Output, Target, cells, figure, quantile};

/// Slots of the key space.
const SLOTS: usize = 1 << 20;

/// Keys that are spread.
const KEYS: u64 = 1_000_000;

/// Sets that one node holds: each has a lookup table, and those are limited.
const SETS_OF_A_NODE: usize = 50;

/// Instances, and the targets for most-loaded over mean: median and 95th percentile.
const SIZES: [(usize, Option<(f64, f64)>); 4] = [
    (3, None),
    (10, Some((1.007, 1.01))),
    (100, Some((1.03, 1.04))),
    (1_000, Some((1.11, 1.13))),
];

/// One key of each slot, and how many of the million keys are in it: all keys of a slot have the same owner.
pub(super) struct KeySpace {
    key_of: Vec<Key>,
    keys_in: Vec<u32>,
}

impl KeySpace {
    pub(super) fn new() -> Self {
        let mut key_of = vec![None; SLOTS];
        let mut keys_in = vec![0; SLOTS];
        for number in 0..KEYS {
            let key = Key::from(format!("key/{number}"));
            let slot = key.slot().index();
            keys_in[slot] += 1;
            key_of[slot].get_or_insert(key);
        }
        // The slots that none of a million keys fell into.
        let mut missing = key_of.iter().filter(|key| key.is_none()).count();
        let mut more = KEYS..;
        while missing > 0 {
            let key = Key::from(more.next().unwrap_or_default());
            let place = &mut key_of[key.slot().index()];
            missing -= usize::from(place.is_none());
            place.get_or_insert(key);
        }
        let key_of = key_of.into_iter().flatten().collect();
        KeySpace { key_of, keys_in }
    }

    /// The number of the owner of each slot: its place in the view's list.
    fn owners(&self, view: &View) -> Vec<u16> {
        // Endpoints are named so that their number is their place.
        self.key_of
            .iter()
            .map(|key| {
                view.owner(*key)
                    .and_then(|info| info.tag("n")?.parse().ok())
                    .unwrap_or(u16::MAX)
            })
            .collect()
    }
}

/// Largest and smallest load over the mean, by keys and by slots.
struct Loads {
    keys: (f64, f64),
    slots: (f64, f64),
}

fn loads(space: &KeySpace, view: &View, instances: usize) -> Loads {
    let mut keys = vec![0_u64; instances];
    let mut slots = vec![0_u64; instances];
    for (slot, owner) in space.owners(view).into_iter().enumerate() {
        keys[usize::from(owner)] += u64::from(space.keys_in[slot]);
        slots[usize::from(owner)] += 1;
    }
    let ratios = |loads: &[u64]| {
        let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
        let most = loads.iter().max().copied().unwrap_or(0) as f64;
        let least = loads.iter().min().copied().unwrap_or(0) as f64;
        (most / mean, least / mean)
    };
    Loads {
        keys: ratios(&keys),
        slots: ratios(&slots),
    }
}

pub(super) fn measure(
    output: &Output,
    runtime: &tokio::runtime::Runtime,
    quick: bool,
    figures: &mut serde_json::Map<String, serde_json::Value>,
    targets: &mut Vec<Target>,
) -> Result<(), Error> {
    let space = KeySpace::new();
    let sets = if quick { 50 } else { 1_000 };
    let mut rows = vec![cells([
        "instances",
        "most/mean p50",
        "p95",
        "least/mean p50",
        "p5",
        "of all keys: most/mean p50",
        "p95",
    ])];
    let mut found = Vec::new();
    for (instances, target) in SIZES {
        let all = super::fixture::paced(
            output,
            &format!("balance of {sets} sets of {instances}"),
            || many_sets(&space, instances, sets),
        )?;
        let of = |part: fn(&Loads) -> f64, at: f64| {
            quantile(&all.iter().map(part).collect::<Vec<_>>(), at)
        };
        let (p50, p95) = (
            of(|loads| loads.keys.0, 0.5),
            of(|loads| loads.keys.0, 0.95),
        );
        // The share of all possible keys, which a million keys are a sample of.
        let by_slots = (
            of(|loads| loads.slots.0, 0.5),
            of(|loads| loads.slots.0, 0.95),
        );
        let least = (
            of(|loads| loads.keys.1, 0.5),
            of(|loads| loads.keys.1, 0.05),
        );
        let shown = [p50, p95, least.0, least.1, by_slots.0, by_slots.1];
        let mut row = vec![instances.to_string()];
        row.extend(shown.map(|ratio| format!("{ratio:.3}")));
        rows.push(row);
        found.push(json!({
            "instances": instances, "sets": sets, "most_p50": p50, "most_p95": p95,
            "least_p50": least.0, "least_p5": least.1,
            "slots_most_p50": by_slots.0, "slots_most_p95": by_slots.1,
        }));
        if let Some((median, p95_target)) = target {
            let name = |what| {
                format!("largest share of the key space over mean, {instances} instances, {what}")
            };
            targets.push(Target::at_most(name("median"), by_slots.0, median));
            targets.push(Target::at_most(name("p95"), by_slots.1, p95_target));
        }
    }
    output.table(
        &format!("Balance over {sets} random name sets, 10⁶ keys"),
        &rows,
    );
    figures.insert("balance".to_owned(), json!(found));
    moved(output, runtime, &space, figures, targets)
}

/// The loads of many sets of random names, by two threads.
fn many_sets(space: &KeySpace, instances: usize, sets: usize) -> Result<Vec<Loads>, Error> {
    let chunks = sets.div_ceil(SETS_OF_A_NODE);
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Ok(Vec::with_capacity(sets)));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let chunk = next.fetch_add(1, Ordering::Relaxed);
                    if chunk >= chunks {
                        return;
                    }
                    let count = SETS_OF_A_NODE.min(sets - chunk * SETS_OF_A_NODE);
                    let some = some_sets(space, instances, count, chunk as u64)
                        .map_err(|error| error.to_string());
                    let mut all = all
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    match (&mut *all, some) {
                        (Ok(all), Ok(some)) => all.extend(some),
                        (Ok(_), Err(error)) => *all = Err(error),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    let all = all
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(all?)
}

fn some_sets(
    space: &KeySpace,
    instances: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<Loads>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut random = StdRng::seed_from_u64((instances as u64) << 32 | seed);
    runtime.block_on(async {
        let node = Node::builder("balance")
            .adapter(Adapter::Local)
            .start()
            .await?;
        let mut all = Vec::with_capacity(count);
        for set in 0..count {
            let service_type = format!("set {set}");
            let endpoints = (0..instances).map(|number| {
                let name = format!("{:016x}", random.random::<u64>());
                NewService::endpoint(&service_type, name).tag("n", number.to_string())
            });
            node.registry()
                .add_services(endpoints.collect::<Vec<_>>())
                .await?;
            let view = node.registry().view(&service_type).ok_or("no view")?;
            all.push(loads(space, &view, instances));
        }
        Ok(all)
    })
}

/// Keys that moved though they did not have to, of those of a million that moved.
#[derive(Default)]
struct Moved {
    moved: u64,
    beyond: u64,
}

fn moved(
    output: &Output,
    runtime: &tokio::runtime::Runtime,
    space: &KeySpace,
    figures: &mut serde_json::Map<String, serde_json::Value>,
    targets: &mut Vec<Target>,
) -> Result<(), Error> {
    let heads = [
        "instances",
        "change",
        "moved",
        "expected",
        "beyond the minimum",
    ];
    let mut rows = vec![cells(heads)];
    let mut beyond = 0;
    let mut found = Vec::new();
    for instances in [3, 10, 100, 1_000] {
        for (change, share, moved) in runtime.block_on(changes(space, instances))? {
            rows.push(vec![
                instances.to_string(),
                change.to_owned(),
                figure(moved.moved as f64),
                figure(share * KEYS as f64),
                moved.beyond.to_string(),
            ]);
            found.push(json!({
                "instances": instances, "change": change, "moved": moved.moved, "beyond": moved.beyond,
            }));
            beyond += moved.beyond;
        }
    }
    output.table("Keys of 10⁶ that move", &rows);
    figures.insert("moved".to_owned(), json!(found));
    targets.push(Target::at_most(
        "keys moved beyond the minimum on join, leave, and change of weight",
        beyond as f64,
        0.0,
    ));
    Ok(())
}

const TYPE: &str = "moving";

async fn changes(
    space: &KeySpace,
    instances: usize,
) -> Result<Vec<(&'static str, f64, Moved)>, Error> {
    let node = Node::builder("moving")
        .adapter(Adapter::Local)
        .start()
        .await?;
    let registry = node.registry();
    let endpoints = (0..instances).map(|number| {
        NewService::endpoint(TYPE, format!("host {number}")).tag("n", number.to_string())
    });
    registry.add_services(endpoints).await?;
    let (one, joiner) = (0, instances as u16);
    let count = instances as f64;
    let mut result = Vec::new();

    let start = owners(space, registry)?;
    let tag = joiner.to_string();
    let added = registry
        .add_service(NewService::endpoint(TYPE, "joiner").tag("n", tag))
        .await?;
    let joined = owners(space, registry)?;
    let to_joiner = compare(space, &start, &joined, |_, to| to == joiner);
    result.push(("join", 1.0 / (count + 1.0), to_joiner));
    added.remove().await?;
    let left = owners(space, registry)?;
    let from_joiner = compare(space, &joined, &left, |from, _| from == joiner);
    result.push(("leave", 1.0 / (count + 1.0), from_joiner));

    let id = registry
        .services(TYPE)
        .iter()
        .find(|info| info.tag("n") == Some("0"))
        .map(|info| info.id().clone())
        .ok_or("no such endpoint")?;
    registry
        .update_service(&id, ServiceUpdate::new().weight(200))
        .await?;
    let heavier = owners(space, registry)?;
    let to_one = compare(space, &left, &heavier, |_, to| to == one);
    result.push((
        "weight 100 to 200",
        2.0 / (count + 1.0) - 1.0 / count,
        to_one,
    ));
    registry
        .update_service(&id, ServiceUpdate::new().weight(50))
        .await?;
    let lighter = owners(space, registry)?;
    let from_one = compare(space, &heavier, &lighter, |from, _| from == one);
    let share = 2.0 / (count + 1.0) - 0.5 / (count - 0.5);
    result.push(("weight 200 to 50", share, from_one));
    Ok(result)
}

fn owners(space: &KeySpace, registry: &Registry) -> Result<Vec<u16>, Error> {
    Ok(space.owners(&*registry.view(TYPE).ok_or("no view")?))
}

fn compare(
    space: &KeySpace,
    before: &[u16],
    after: &[u16],
    must: impl Fn(u16, u16) -> bool,
) -> Moved {
    let mut result = Moved::default();
    for (slot, (&from, &to)) in before.iter().zip(after).enumerate() {
        if from != to {
            let keys = u64::from(space.keys_in[slot]);
            result.moved += keys;
            if !must(from, to) {
                result.beyond += keys;
            }
        }
    }
    result
}
