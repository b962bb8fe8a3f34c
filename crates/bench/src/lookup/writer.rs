//! What changes cost those who read meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keydispatch::{NewService, Protocol, Registry, ServiceHandle};
use serde_json::json;

use super::fixture::{Keys, Lookups, node_with, warm};
use keydispatch_fleet::Error;
use keydispatch_measure::{Output, Target, cells, figure, median};

/// What readers pay while another thread makes 1,000 changes a second.
pub(super) struct WriterCost {
    instances: usize,
    subject: &'static str,
    quiet: f64,
    busy: f64,
    changes_per_second: f64,
}

impl WriterCost {
    pub(super) fn measure(
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

pub(super) fn report_writer(
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
