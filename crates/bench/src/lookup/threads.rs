//! Two threads that look keys up at once, as times one.

use keydispatch::Protocol;
use serde_json::json;

use super::fixture::{Keys, Lookups, hash_alone, node_with, warm};
use super::sizes::loaded_3;
use keydispatch_fleet::Error;
use keydispatch_measure::{Output, Target, cells, median};

/// Lookups by two threads at once, as times those of one.
pub(super) struct Threads {
    hash: f64,
    held: f64,
    handle: f64,
    name: f64,
    multi: f64,
    loaded: f64,
}

impl Threads {
    pub(super) fn measure(
        runtime: &tokio::runtime::Runtime,
        keys: &Keys,
        quick: bool,
    ) -> Result<Self, Error> {
        let node = runtime.block_on(node_with(100))?;
        let registry = node.registry().clone();
        let handle = node.services::<Lookups>();
        let view = handle.view();
        warm(&view);
        let rounds = if quick { 9 } else { 41 };
        let mut ratios = [(); 6].map(|()| Vec::new());
        for _ in 0..rounds {
            let passes = [
                scaling(|| keys.pass(hash_alone)),
                scaling(|| keys.pass(|key| view.owner(key))),
                scaling(|| keys.pass(|key| handle.find(key))),
                scaling(|| keys.pass(|key| registry.find_service(Lookups::NAME, key))),
                scaling(|| keys.pass(|key| registry.find_multi_service(3, Lookups::NAME, key))),
                scaling(|| keys.pass(|key| loaded_3(&registry, key))),
            ];
            for (ratios, ratio) in ratios.iter_mut().zip(passes) {
                ratios.push(ratio);
            }
        }
        let [hash, held, handle, name, multi, loaded] = ratios.map(|ratios| median(&ratios));
        Ok(Threads {
            hash,
            held,
            handle,
            name,
            multi,
            loaded,
        })
    }

    pub(super) fn report(
        &self,
        output: &Output,
        figures: &mut serde_json::Map<String, serde_json::Value>,
        targets: &mut Vec<Target>,
    ) {
        let rows: Vec<Vec<String>> = [("hash alone", self.hash), ("held view", self.held)]
            .into_iter()
            .chain([("typed handle", self.handle), ("by type name", self.name)])
            .chain([
                ("find_multi(3)", self.multi),
                ("view by name, 3", self.loaded),
            ])
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
            json!({
                "hash": self.hash, "held": self.held, "handle": self.handle, "name": self.name,
                "multi": self.multi, "loaded": self.loaded,
            }),
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
