//! How long one change takes until readers see it.

use std::hint::black_box;
use std::time::Instant;

use keydispatch::{NewService, Protocol, View, limits};
use serde_json::json;

use super::fixture::{Lookups, node_with, warm};
use keydispatch_fleet::Error;
use keydispatch_measure::{Output, Target, cells, figure, median};

/// One instance more or fewer, from the command until readers see it.
pub(super) struct Change {
    pub(super) instances: usize,
    pub(super) add_micros: f64,
    add_p99_micros: f64,
    pub(super) remove_micros: f64,
    remove_p99_micros: f64,
}

impl Change {
    pub(super) fn measure_all(quick: bool) -> Result<Vec<Self>, Error> {
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
            add_p99_micros: keydispatch_measure::quantile(&adds, 0.99),
            remove_micros: median(&removes),
            remove_p99_micros: keydispatch_measure::quantile(&removes, 0.99),
        })
    }
}

/// Most slots once.
fn warm_some(view: &View) {
    for number in 0..100_000_u64 {
        black_box(view.owner(number));
    }
}

pub(super) fn report_changes(
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
