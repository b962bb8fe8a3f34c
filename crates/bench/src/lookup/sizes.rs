//! One lookup at a time, by the number of instances, beside the floor and the peers.

use std::hash::{BuildHasher, Hash, Hasher};
use std::hint::black_box;
use std::net::SocketAddr;

use keydispatch::{Protocol, Registry, View};
use maglev::ConsistentHasher;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::fixture::{Keys, Lookups, address, hash_alone, node_with, warm};
use keydispatch_fleet::Error;
use keydispatch_measure::{Output, Target, allocations, figure, thread_time};

/// Points of one instance on a ring: what ketama gives a server of weight 1.
const RING_POINTS: usize = 160;

/// Making a larger maglev takes 80 GB: it writes every instance's permutation of the table down.
const MAX_MAGLEV: usize = 1_000;

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

/// Distinct keys of the rows that ask for several owners: a table keeps the second and third owners of 40,000 to 80,000
/// slots, and those of others are scored. One row shows what that costs.
const KEYS_OF_3: usize = 10_000;

/// What is measured at each size, in the order of the columns.
pub(super) const SUBJECTS: [&str; 15] = [
    "hash alone",
    "held view",
    "typed handle",
    "by type name",
    "view, 3 owners",
    "find_multi(3)",
    "view by name, 3",
    "maglev, our hash",
    "maglev, default",
    "ketama",
    "hashring, 1 point",
    "hashring, 160 points",
    "view, first time",
    "hash alone, 10⁴ keys",
    "view, 3 owners, 10⁵ keys",
];

const HASH: usize = 0;
pub(super) const HELD: usize = 1;
pub(super) const HANDLE: usize = 2;
pub(super) const NAME: usize = 3;
pub(super) const VIEW_3: usize = 4;
pub(super) const MULTI_3: usize = 5;
/// The view by type name, and its owners without a count of their own: what it costs to count the view instead.
pub(super) const LOADED_3: usize = 6;
const MAGLEV_OURS: usize = 7;
const MAGLEV: usize = 8;
const KETAMA: usize = 9;
const RING_1: usize = 10;
const RING_160: usize = 11;
pub(super) const FIRST: usize = 12;
const HASH_OF_3: usize = 13;
const MANY_3: usize = 14;

/// Nanoseconds of each subject at one size.
pub(super) struct Size {
    pub(super) instances: usize,
    pub(super) nanos: [f64; SUBJECTS.len()],
    allocations: [u64; 4],
}

impl Size {
    pub(super) fn measure(
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

        let few = Keys::random(KEYS_OF_3, 2);
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
            at_least(MANY_3, keys.pass(|key| view.owners(key, 3)));
            // Once for those that were displaced.
            few.pass(|key| view.owners(key, 3));
            at_least(HASH_OF_3, few.pass(hash_alone));
            at_least(VIEW_3, few.pass(|key| view.owners(key, 3)));
            at_least(
                MULTI_3,
                few.pass(|key| registry.find_multi_service(3, Lookups::NAME, key)),
            );
            at_least(LOADED_3, few.pass(|key| loaded_3(&registry, key)));
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

    /// Beside hashing as many distinct keys.
    fn times_hashing(&self, subject: usize) -> f64 {
        let of_3 = matches!(subject, VIEW_3..=LOADED_3);
        self.ratio(subject, if of_3 { HASH_OF_3 } else { HASH })
    }

    fn ratio(&self, subject: usize, to: usize) -> f64 {
        self.nanos[subject] / self.nanos[to]
    }
}

/// How many of the first three owners there are, in a view that is loaded by its type's name.
#[inline]
pub(super) fn loaded_3(registry: &Registry, key: &str) -> usize {
    let view = registry.view(Lookups::NAME);
    view.map_or(0, |view| view.owners(key, 3).len())
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

pub(super) fn report_sizes(
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
                HELD..=LOADED_3 | MANY_3 => {
                    format!("{} ({:.2}×)", figure(nanos), size.times_hashing(subject))
                }
                _ if nanos.is_finite() => figure(nanos),
                _ => "–".to_owned(),
            }
        }));
        rows.push(row);
    }
    output.table(
        "Lookup by number of online instances, 10⁵ keys of 10–60 bytes, 10⁴ where 3 owners are asked for (in brackets: times hashing as many alone)",
        &rows,
    );

    let worst = |subject: usize| {
        sizes
            .iter()
            .filter(|size| size.instances >= 3)
            .map(|size| size.times_hashing(subject))
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
        4.0,
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
