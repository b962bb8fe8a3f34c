//! `agent`: what asking an agent costs, beside a static answer of the same server; what it costs when nobody asks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use keydispatch_agent::{ApiAddress, Client};
use serde_json::{Value, json};

use keydispatch_fleet::{Certificates, Child, Error, this_program};
use keydispatch_measure::{Output, Target, cells, figure, median, process};

mod far;
mod load;

pub use far::{Far, run_far};
use load::{Load, Watcher};

/// Instances of the type that is looked up.
const INSTANCES: usize = 100;
/// Keys of one batch: the most that one request may have.
const BATCH: usize = 10_000;
/// Connections that ask at once: enough that the server always has something to do, few enough that they do not queue for long.
const CONNECTIONS: usize = 8;
/// Streams of one type that are open at once.
const WATCHERS: usize = 1_000;
/// Agents of the idle cluster.
const MEMBERS: usize = 10;

/// See the module.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// Print one object last.
    #[arg(long)]
    json: bool,
    /// Shorter: for a look, not for a record.
    #[arg(long)]
    quick: bool,
}

struct Bench {
    output: Output,
    options: Options,
    certificates: Certificates,
    directory: tempfile::TempDir,
    figures: serde_json::Map<String, Value>,
    targets: Vec<Target>,
}

/// Runs the command.
pub fn run(options: Options, say: fn(&str)) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let names: Vec<String> = (0..MEMBERS).map(|at| format!("agent{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut bench = Bench {
            output: Output {
                say,
                json: options.json,
            },
            options,
            certificates: Certificates::make(&names)?,
            directory: tempfile::tempdir()?,
            figures: serde_json::Map::new(),
            targets: Vec::new(),
        };
        let (agent, socket, _) = bench.agent(0, &[], Some(0)).await?;
        bench.register(&socket).await?;
        bench.lookups(&agent, &socket).await?;
        bench.batch(&socket).await?;
        bench.watchers(&agent, &socket).await?;
        drop(agent);
        bench.idle().await?;
        Ok(bench
            .output
            .finish("agent", bench.figures, &bench.targets)?)
    })
}

impl Bench {
    /// Starts an agent in a process of its own, on one core where that is said; its socket, and where other nodes reach it.
    async fn agent(
        &self,
        number: usize,
        seeds: &[String],
        core: Option<usize>,
    ) -> Result<(Child, PathBuf, String), Error> {
        let name = format!("agent{number}");
        let directory = self
            .directory
            .path()
            .join(format!("{name}.{}", seeds.len()));
        let mut arguments: Vec<PathBuf> = vec![
            "agent-far".into(),
            "--name".into(),
            name.clone().into(),
            "--certificates".into(),
            self.certificates.path().into(),
            "--directory".into(),
            directory.clone(),
        ];
        if let Some(core) = core {
            arguments.extend(["--core".into(), core.to_string().into()]);
        }
        for seed in seeds {
            arguments.extend(["--seed".into(), seed.into()]);
        }
        let agent = Child::start(this_program(arguments)?, &name).await?;
        let mesh = agent.address().to_owned();
        Ok((agent, directory.join("agent.sock"), mesh))
    }

    async fn register(&self, socket: &Path) -> Result<(), Error> {
        let client = Client::new(ApiAddress::Unix(socket.to_owned()), None);
        for at in 0..INSTANCES {
            let body = json!({
                "type": "chat", "address": format!("http://127.0.0.1:{}", 8_000 + at), "lease": { "agent": true },
            });
            let path = format!("/v1/endpoints/chat-{at}");
            let answer = client.ask("PUT", &path, Some(&body)).await?;
            if !answer.is_ok() {
                return Err(format!("{path}: {} {}", answer.status, answer.text).into());
            }
        }
        Ok(())
    }

    /// Lookups and static answers in turns, so that both have the same machine.
    async fn lookups(&mut self, agent: &Child, socket: &Path) -> Result<(), Error> {
        let window = Duration::from_millis(if self.options.quick { 500 } else { 3_000 });
        let rounds = if self.options.quick { 1 } else { 5 };
        let asked = [
            ("a static answer", "/problems/bad-key"),
            ("the owner of a key", "/v1/types/chat/owner?key=room-7"),
            ("a route", "/v1/route?type=chat&key=room-7"),
        ];
        let mut found: Vec<Vec<(Load, f64)>> = asked.iter().map(|_| Vec::new()).collect();
        for round in 0..=rounds {
            for (at, (_, path)) in asked.iter().enumerate() {
                let busy = process::busy(agent.id());
                let load = load::run(socket, path, CONNECTIONS, window).await?;
                let busy = (process::busy(agent.id()) - busy).as_secs_f64();
                // The first round warms up.
                if round > 0 {
                    let each = busy * 1e6 / load.count as f64;
                    found[at].push((load, each));
                }
            }
        }
        let mut rows = vec![cells([
            "asked for",
            "a second",
            "p50 \u{b5}s",
            "p99 \u{b5}s",
            "CPU of the agent, \u{b5}s",
        ])];
        let mut figures = serde_json::Map::new();
        for ((name, path), rounds) in asked.iter().zip(&found) {
            let [rate, p50, p99, cpu] = medians(rounds);
            rows.push(vec![
                (*name).to_owned(),
                figure(rate),
                figure(p50),
                figure(p99),
                figure(cpu),
            ]);
            figures.insert(
                (*path).to_owned(),
                json!({ "per_s": rate, "p50_us": p50, "p99_us": p99, "cpu_us": cpu }),
            );
        }
        self.output.table(
            &format!(
                "{CONNECTIONS} clients with a connection each over the unix socket, the agent on one core; medians of {rounds} rounds"
            ),
            &rows,
        );
        self.figures.insert("lookups".to_owned(), figures.into());
        self.targets.push(Target::at_least(
            "owner lookups a second on one core",
            medians(&found[1])[0],
            50_000.0,
        ));
        // Of each round, so that a neighbour that comes and goes weighs on both.
        let ratios: Vec<f64> = found[1]
            .iter()
            .zip(&found[0])
            .map(|((lookup, _), (still, _))| lookup.p99_us / still.p99_us)
            .collect();
        self.targets.push(Target::at_most(
            "p99 of an owner lookup by that of a static answer",
            median(&ratios),
            2.0,
        ));
        Ok(())
    }

    async fn batch(&mut self, socket: &Path) -> Result<(), Error> {
        let keys: Vec<String> = (0..BATCH).map(|at| format!("room-{at}")).collect();
        let body = json!({ "keys": keys }).to_string();
        let rounds = if self.options.quick { 5 } else { 50 };
        let mut took = Vec::new();
        let mut connection = load::Connection::open(socket).await?;
        for _ in 0..rounds {
            let began = Instant::now();
            let answer = connection
                .ask("POST", "/v1/types/chat/owners", &body)
                .await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            let answer: Value = serde_json::from_slice(&answer)?;
            if answer["of_keys"].as_array().map(Vec::len) != Some(BATCH) {
                return Err("not all keys were answered".into());
            }
        }
        self.output.line(format!(
            "\nA batch of {BATCH} keys: {} ms, the median of {rounds}",
            figure(median(&took))
        ));
        self.figures
            .insert("batch_ms".to_owned(), median(&took).into());
        self.targets.push(Target::at_most(
            "a batch of 10,000 keys, ms",
            median(&took),
            10.0,
        ));
        Ok(())
    }

    /// What it costs that many watch one type, and what a change of it costs each of them.
    async fn watchers(&mut self, agent: &Child, socket: &Path) -> Result<(), Error> {
        let before = process::resident(agent.id());
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            watchers.push(Watcher::open(socket, "/v1/types/chat").await?);
        }
        let snapshots: usize = watchers.iter().map(|watcher| watcher.read).sum();
        let after = process::resident(agent.id());
        let busy = process::busy(agent.id());
        let began = Instant::now();
        let state = json!({ "state": "draining", "reason": "a benchmark" }).to_string();
        load::Connection::open(socket)
            .await?
            .ask("POST", "/v1/endpoints/chat-0/state", &state)
            .await?;
        let mut bytes = Vec::new();
        for watcher in &mut watchers {
            bytes.push(watcher.until("event: updated").await? as f64);
        }
        let took = began.elapsed().as_secs_f64() * 1e3;
        let busy = (process::busy(agent.id()) - busy).as_secs_f64() * 1e3;
        let memory = (after.saturating_sub(before)) as f64 / 1e6;
        self.output.line(format!(
            "\n{WATCHERS} watchers of a type with {INSTANCES} instances: {} MB more, {} kB of a snapshot each; a change is {} B \
             each, and with all of them after {} ms, for {} ms of CPU",
            figure(memory),
            figure(snapshots as f64 / WATCHERS as f64 / 1e3),
            figure(median(&bytes)),
            figure(took),
            figure(busy)
        ));
        self.figures.insert(
            "watchers".to_owned(),
            json!({
                "watchers": WATCHERS, "mb": memory, "change_bytes": median(&bytes), "change_ms": took, "change_cpu_ms": busy,
            }),
        );
        self.targets.push(Target::at_most(
            "memory of 1,000 watchers of one type, MB",
            memory,
            20.0,
        ));
        Ok(())
    }

    /// An agent among ten that nobody asks anything.
    async fn idle(&mut self) -> Result<(), Error> {
        let mut agents: Vec<Child> = Vec::new();
        let mut seeds: Vec<String> = Vec::new();
        for number in 0..MEMBERS {
            let (agent, _, mesh) = self.agent(number, &seeds, None).await?;
            agents.push(agent);
            seeds.push(mesh);
        }
        // Until what came with the start is over.
        tokio::time::sleep(Duration::from_secs(if self.options.quick { 2 } else { 10 })).await;
        let window = Duration::from_secs(if self.options.quick { 3 } else { 30 });
        let before: Vec<Duration> = agents
            .iter()
            .map(|agent| process::busy(agent.id()))
            .collect();
        tokio::time::sleep(window).await;
        let shares: Vec<f64> = agents
            .iter()
            .zip(before)
            .map(|(agent, before)| {
                (process::busy(agent.id()) - before).as_secs_f64() * 100.0 / window.as_secs_f64()
            })
            .collect();
        let memory: Vec<f64> = agents
            .iter()
            .map(|agent| process::resident(agent.id()) as f64 / 1e6)
            .collect();
        self.output.line(format!(
            "\nAn idle agent of {MEMBERS}: {} % of a core, {} MB resident, medians of all {MEMBERS}",
            figure(median(&shares)),
            figure(median(&memory))
        ));
        self.figures.insert(
            "idle".to_owned(),
            json!({ "members": MEMBERS, "core_percent": median(&shares), "mb": median(&memory) }),
        );
        self.targets.push(Target::at_most(
            "idle agent of 10, % of a core",
            median(&shares),
            0.5,
        ));
        self.targets.push(Target::at_most(
            "idle agent of 10, MB resident",
            median(&memory),
            25.0,
        ));
        Ok(())
    }
}

/// How many a second, p50 and p99 in microseconds, and what each took of the agent's CPU.
fn medians(rounds: &[(Load, f64)]) -> [f64; 4] {
    let of = |pick: fn(&Load) -> f64| {
        let each: Vec<f64> = rounds.iter().map(|(load, _)| pick(load)).collect();
        median(&each)
    };
    let cpu: Vec<f64> = rounds.iter().map(|(_, each)| *each).collect();
    [
        of(|load| load.rate),
        of(|load| load.p50_us),
        of(|load| load.p99_us),
        median(&cpu),
    ]
}
