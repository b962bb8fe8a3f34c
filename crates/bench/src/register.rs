//! `register`: what it costs to add services, to see those of others, and to lose a node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use keydispatch::{NewService, Node, Registry, limits};
use serde_json::json;
use tokio::task::JoinSet;

use keydispatch_fleet::{self as fleet, Certificates, Child, Error, this_program};
use keydispatch_measure::{Output, Target, cells, exponent, figure, median, quantile};

mod cluster;
mod far;
mod pair;

use far::BATCH;
pub use far::{Far, run_far};

/// Commands on their way at once.
const IN_FLIGHT: usize = 64;

/// See the module.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Print one object last.
    #[arg(long)]
    json: bool,
    /// Smaller sizes and fewer kills: for a look, not for a record.
    #[arg(long)]
    quick: bool,
    /// A million entries for the memory of one, instead of 200,000.
    #[arg(long)]
    full: bool,
    /// Measure the memory of entries and nothing else.
    #[arg(long)]
    memory: bool,
    /// Measure what two nodes see of each other and nothing else: a death, and a batch of large entries.
    #[arg(long, conflicts_with = "memory")]
    pair: bool,
}

/// What the measurements share.
struct Bench {
    output: Output,
    options: Options,
    certificates: Certificates,
    figures: serde_json::Map<String, serde_json::Value>,
    targets: Vec<Target>,
    growth: Vec<(String, f64)>,
}

/// Runs the command.
pub fn run(options: Options, say: fn(&str)) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let victims: Vec<String> = (0..64).map(|number| format!("victim{number}")).collect();
        let idlers: Vec<String> = (0..10).map(|number| format!("idle{number}")).collect();
        let names: Vec<&str> = ["near", "far0", "far1"]
            .into_iter()
            .chain(victims.iter().map(String::as_str))
            .chain(idlers.iter().map(String::as_str))
            .collect();
        let mut bench = Bench {
            output: Output {
                say,
                json: options.json,
            },
            options,
            certificates: Certificates::make(&names)?,
            figures: serde_json::Map::new(),
            targets: Vec::new(),
            growth: Vec::new(),
        };
        if options.memory {
            bench.memory().await?;
        } else if options.pair {
            bench.pair().await?;
        } else {
            bench.adds().await?;
            bench.cluster().await?;
            bench.pair().await?;
            bench.memory().await?;
            bench.idle().await?;
        }
        bench.report_growth();
        let finished = bench
            .output
            .finish("register", bench.figures, &bench.targets);
        Ok(finished?)
    })
}

impl Bench {
    /// Starts another process with a node.
    async fn follow(&self, name: &str, seeds: &[String]) -> Result<(Child, String), Error> {
        follow(name, seeds, self.certificates.path()).await
    }

    async fn near(&self, seeds: &[String]) -> Result<Node, Error> {
        let path = self.certificates.path();
        Ok(fleet::describe("near", "127.0.0.1:0", seeds, path)
            .start()
            .await?)
    }

    /// `add_service` on one node.
    async fn adds(&mut self) -> Result<(), Error> {
        let types = if self.options.quick { 20_000 } else { 100_000 };
        let rounds = if self.options.quick { 1 } else { 3 };
        let node = self.near(&[]).await?;
        let mut rows = vec![cells([
            "services added on one node",
            "how",
            "how many",
            "adds/s",
        ])];
        let mut found = Vec::new();
        let mut best = [0_f64; 5];
        for round in 0..rounds {
            let registry = node.registry();
            let of_many = move |number: usize| {
                NewService::endpoint(format!("type {round} {number}"), format!("host:{number}"))
            };
            let one_type = |kind: &str| {
                let name = format!("{kind} {round}");
                move |number: usize| NewService::endpoint(name.clone(), format!("host:{number}"))
            };
            let limit = limits::MAX_INSTANCES_PER_TYPE;
            let rates = [
                one_by_one(registry, types, 1, of_many).await?,
                {
                    clear(registry, types, |number| format!("type {round} {number}")).await?;
                    one_by_one(registry, types, IN_FLIGHT, of_many).await?
                },
                {
                    clear(registry, types, |number| format!("type {round} {number}")).await?;
                    batched(registry, types, BATCH, of_many).await?
                },
                one_by_one(registry, limit, IN_FLIGHT, one_type("flight")).await?,
                batched(registry, limit, BATCH, one_type("batch")).await?,
            ];
            clear(registry, types, |number| format!("type {round} {number}")).await?;
            clear(registry, 1, |_| format!("flight {round}")).await?;
            clear(registry, 1, |_| format!("batch {round}")).await?;
            for (best, rate) in best.iter_mut().zip(rates) {
                *best = best.max(rate);
            }
        }
        let many = format!("{types} types");
        let limit = limits::MAX_INSTANCES_PER_TYPE;
        let whats = [
            (many.as_str(), "one after the other", types),
            (many.as_str(), "64 in flight", types),
            (many.as_str(), "batches of 1,000", types),
            ("one type", "64 in flight", limit),
            ("one type", "batches of 1,000", limit),
        ];
        for ((what, how, count), rate) in whats.into_iter().zip(best) {
            rows.push(vec![
                what.to_owned(),
                how.to_owned(),
                count.to_string(),
                figure(rate),
            ]);
            found.push(json!({"what": what, "how": how, "count": count, "adds_per_s": rate}));
        }
        self.output.table(
            "Adding services on a node without peers; the best of the rounds",
            &rows,
        );
        self.figures.insert("adds".to_owned(), json!(found));
        let many = best[1].max(best[2]);
        self.targets.push(Target::at_least(
            "adds per second over many types, 64 in flight or batched",
            many,
            300_000.0,
        ));
        let one = best[3].max(best[4]);
        self.targets.push(Target::at_least(
            "adds per second in one type, 64 in flight or batched",
            one,
            50_000.0,
        ));
        self.targets.push(Target::at_least(
            "adds per second in one type, 64 in flight",
            best[3],
            50_000.0,
        ));

        let mut points = [Vec::new(), Vec::new()];
        for count in [1_000, 3_000, 10_000, 30_000] {
            let of_many = move |number: usize| {
                NewService::endpoint(format!("growth {count} {number}"), format!("host:{number}"))
            };
            let rate = one_by_one(node.registry(), count, IN_FLIGHT, of_many).await?;
            points[0].push((count as f64, count as f64 / rate));
            clear(node.registry(), count, |number| {
                format!("growth {count} {number}")
            })
            .await?;
        }
        for count in [1_000, 2_000, 5_000, 10_000] {
            let of_one = move |number: usize| {
                NewService::endpoint(format!("growth {count}"), format!("host:{number}"))
            };
            let rate = one_by_one(node.registry(), count, IN_FLIGHT, of_one).await?;
            points[1].push((count as f64, count as f64 / rate));
            clear(node.registry(), 1, |_| format!("growth {count}")).await?;
        }
        self.grows("n services of n types, 64 in flight", &points[0]);
        self.grows("n services of one type, 64 in flight", &points[1]);
        node.leave().await?;
        Ok(())
    }

    fn grows(&mut self, what: &str, points: &[(f64, f64)]) {
        self.growth.push((what.to_owned(), exponent(points)));
    }

    fn report_growth(&mut self) {
        let mut rows = vec![cells(["time for", "exponent"])];
        for (what, exponent) in &self.growth {
            rows.push(vec![what.clone(), format!("{exponent:.2}")]);
        }
        self.output.table(
            "Growth: the time is proportional to n to the power of",
            &rows,
        );
        let fitted: serde_json::Map<_, _> = self
            .growth
            .iter()
            .map(|(what, exponent)| (what.clone(), json!(exponent)))
            .collect();
        self.figures.insert("growth".to_owned(), fitted.into());
    }
}

/// Starts another process with a node of that name; returns it with the node's address.
async fn follow(
    name: &str,
    seeds: &[String],
    certificates: &Path,
) -> Result<(Child, String), Error> {
    let mut arguments: Vec<PathBuf> = ["register-far", "--name", name, "--certificates"]
        .map(PathBuf::from)
        .to_vec();
    arguments.push(certificates.to_owned());
    for seed in seeds {
        arguments.extend(["--seed", seed].map(PathBuf::from));
    }
    let far = Child::start(this_program(arguments)?, name).await?;
    let address = far.address().to_owned();
    Ok((far, address))
}

/// Adds so many with so many commands on their way; returns how many a second.
async fn one_by_one<F>(
    registry: &Registry,
    count: usize,
    in_flight: usize,
    service: F,
) -> Result<f64, Error>
where
    F: Fn(usize) -> NewService + Clone + Send + 'static,
{
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let (registry, service) = (registry.clone(), service.clone());
        tasks.spawn(async move {
            for number in (task..count).step_by(in_flight) {
                registry.add_service(service(number)).await?;
            }
            Ok::<_, keydispatch::RegistryError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

async fn batched<F>(
    registry: &Registry,
    count: usize,
    batch: usize,
    service: F,
) -> Result<f64, Error>
where
    F: Fn(usize) -> NewService,
{
    let start = Instant::now();
    for first in (0..count).step_by(batch) {
        let services = (first..count.min(first + batch)).map(&service);
        registry.add_services(services.collect::<Vec<_>>()).await?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Removes all services of so many types.
async fn clear(
    registry: &Registry,
    types: usize,
    name: impl Fn(usize) -> String,
) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    for number in 0..types {
        for info in registry.services(&name(number)) {
            let registry = registry.clone();
            tasks.spawn(async move { registry.remove_service(info.id()).await.map(|_| ()) });
            if tasks.len() >= 256 {
                while let Some(done) = tasks.join_next().await {
                    done??;
                }
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Waits for a moment, so that what came before does not weigh on what comes next.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
