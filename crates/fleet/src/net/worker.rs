//! A node in a process of its own that is told by lines on its standard input, whatever happens to its network.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keydispatch::{
    CallOptions, MemberChange, NewService, Node, RegistryError, ServiceId, ServiceInfo,
    ServiceState, ServiceUpdate,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use xxhash_rust::xxh3::Xxh3;

use super::load::{ByOwner, Echo, EchoCall, Echoes, Load, LoadOptions, Pauses, TOLD_TO_PANIC};
use crate::Error;

/// The types that churn registers under.
const CHURN_TYPES: [&str; 3] = ["churn-0", "churn-1", "churn-2"];

/// The type of services that are registered in bulk.
pub const BULK: &str = "bulk";

/// Entries that churn keeps at most on one node.
const MAX_CHURN: usize = 60;

/// The changes that a node keeps for those who missed some. Few, so that they are as many as they will ever be before a
/// soak looks at the memory for the first time: what grows later is a leak.
const MAX_DELTA_SIZES: usize = 500;

/// Keys whose owners are compared.
const COMPARED_KEYS: u64 = 2_000;

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start services that echo.
    Echoes(usize),
    /// Register many endpoints as one batch.
    Bulk(usize),
    /// Start to call by key.
    StartLoad(LoadOptions),
    /// What the calls came to since the last time this was asked.
    TakeLoad,
    /// The same, and no more calls.
    StopLoad,
    /// Start to register, remove, enable, disable and so on.
    StartChurn {
        /// Changes a second.
        per_second: u32,
        /// Of the choices.
        seed: u64,
    },
    /// No more of it.
    StopChurn,
    /// What this node registered, by its own account.
    Own,
    /// What this node lists, in short.
    View,
    /// What this node lists.
    List,
    /// How it fares.
    Health,
    /// Leave the cluster, and end.
    Leave,
}

/// What a node lists, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Short {
    /// How many services.
    pub services: usize,
    /// Hash over them as they were registered.
    pub plain: u64,
    /// Hash over them with their references.
    pub full: u64,
    /// Hash over the owners of some keys.
    pub owners: u64,
    /// The nodes that are up.
    pub members: usize,
}

/// How a worker fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Tasks that have not ended.
    pub tasks: usize,
    /// Resident memory, in KiB.
    pub memory_kib: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// How often a member went down.
    pub downs: u64,
    /// Changes that churn has made.
    pub changes: u64,
    /// Calls that wait for their reply.
    pub pending: usize,
}

/// What a worker answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// Services, one a line.
    Lines(BTreeSet<String>),
    /// See [`Short`].
    Short(Short),
    /// Calls.
    Calls(ByOwner),
    /// See [`Health`].
    Health(Health),
    /// It did not work.
    Failed(String),
}

/// Hash over lines, in order.
pub fn hash<'a>(lines: impl IntoIterator<Item = &'a String>) -> u64 {
    let mut hasher = Xxh3::new();
    for line in lines {
        hasher.write(line.as_bytes());
        hasher.write_u8(b'\n');
    }
    hasher.finish()
}

fn line(id: &ServiceId, service_type: &str, state: ServiceState, weight: u16) -> String {
    format!("{service_type} {id} {state:?} {weight}")
}

/// What a service was last made to be by this process.
#[derive(Clone, Debug)]
struct Made {
    service_type: String,
    state: ServiceState,
    weight: u16,
}

/// What this process registered and has not removed.
#[derive(Clone, Default)]
struct Account {
    made: Arc<Mutex<BTreeMap<ServiceId, Made>>>,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> BTreeSet<String> {
        self.lock()
            .iter()
            .map(|(id, made)| line(id, &made.service_type, made.state, made.weight))
            .collect()
    }

    fn add(&self, id: &ServiceId, service_type: &str) {
        let made = Made {
            service_type: service_type.to_owned(),
            state: ServiceState::Online,
            weight: 100,
        };
        self.lock().insert(id.clone(), made);
    }
}

/// What a worker process does: one node that obeys until its standard input closes.
pub async fn run(
    name: String,
    bind: String,
    seeds: Vec<String>,
    certificates: PathBuf,
    say: fn(&str),
) -> Result<(), Error> {
    // A worker that is frozen when its controller dies would not see its input close.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // Services panic here because they are told to, all the time.
    std::panic::set_hook(Box::new(|panic| {
        if panic.payload_as_str() != Some(TOLD_TO_PANIC) {
            tracing::error!(%panic, "a panic");
        }
    }));
    let answer = |told: &Response| -> Result<(), Error> {
        say(&serde_json::to_string(told)?);
        Ok(())
    };
    let node = crate::describe(&name, &bind, &seeds, &certificates)
        .max_delta_sizes(MAX_DELTA_SIZES)
        .start()
        .await?;
    let mut worker = Worker::new(node);
    say(&format!("ready {}", worker.node.address()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let tell = serde_json::from_str(&line)?;
        let leaves = matches!(tell, Request::Leave);
        let told = worker
            .obey(tell)
            .await
            .unwrap_or_else(|error| Response::Failed(error.to_string()));
        answer(&told)?;
        if leaves {
            break;
        }
    }
    Ok(())
}

struct Worker {
    node: Node,
    account: Account,
    pauses: Pauses,
    load: Option<Load>,
    churn: Option<Churn>,
    changes: Arc<AtomicU64>,
    downs: Arc<AtomicU64>,
}

impl Worker {
    fn new(node: Node) -> Self {
        let downs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&downs);
        let mut members = node.subscribe_members();
        tokio::spawn(async move {
            while let Some(change) = members.next().await {
                if matches!(change, MemberChange::Down { .. }) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Worker {
            node,
            account: Account::default(),
            pauses: Pauses::watch(),
            load: None,
            churn: None,
            changes: Arc::default(),
            downs,
        }
    }

    async fn obey(&mut self, tell: Request) -> Result<Response, Error> {
        Ok(match tell {
            Request::Echoes(count) => {
                for _ in 0..count {
                    let served = self.node.serve(Echo).await?;
                    self.account.add(served.id(), "echo");
                }
                Response::Done
            }
            Request::Bulk(count) => {
                let name = self.node.name();
                let from = self.account.lock().len();
                let batch = (from..from + count)
                    .map(|number| NewService::endpoint(BULK, format!("{name}:{number}")));
                for added in self.node.registry().add_services(batch).await? {
                    self.account.add(added.id(), BULK);
                }
                Response::Done
            }
            Request::StartLoad(options) => {
                self.load = Some(Load::start(&self.node, &self.pauses, options));
                Response::Done
            }
            Request::TakeLoad => {
                Response::Calls(self.load.as_ref().map(Load::take).unwrap_or_default())
            }
            Request::StopLoad => Response::Calls(match self.load.take() {
                Some(load) => load.stop().await,
                None => ByOwner::new(),
            }),
            Request::StartChurn { per_second, seed } => {
                let state = ChurnState {
                    node: self.node.clone(),
                    account: self.account.clone(),
                    rng: StdRng::seed_from_u64(seed),
                    changes: Arc::clone(&self.changes),
                };
                self.churn = Some(Churn::start(state, per_second));
                Response::Done
            }
            Request::StopChurn => {
                if let Some(churn) = self.churn.take() {
                    churn.stop().await?;
                }
                Response::Done
            }
            Request::Own => Response::Lines(self.account.lines()),
            Request::View => Response::Short(self.short()),
            Request::List => Response::Lines(self.listed(|info| {
                line(
                    info.id(),
                    info.service_type().as_str(),
                    info.state(),
                    info.weight().value(),
                )
            })),
            Request::Health => Response::Health(self.health().await?),
            Request::Leave => {
                self.node.clone().leave().await?;
                Response::Done
            }
        })
    }

    fn listed(&self, line: impl Fn(&ServiceInfo) -> String) -> BTreeSet<String> {
        CHURN_TYPES
            .iter()
            .chain(&["echo", BULK])
            .flat_map(|service_type| self.node.registry().services(service_type))
            .map(|info| line(&info))
            .collect()
    }

    fn short(&self) -> Short {
        let plain = self.listed(|info| {
            line(
                info.id(),
                info.service_type().as_str(),
                info.state(),
                info.weight().value(),
            )
        });
        let full = self.listed(|info| format!("{info:?}"));
        let owners: Vec<String> = (0..COMPARED_KEYS)
            .map(|key| {
                let owner = self.node.registry().find_service("echo", key);
                owner.map_or_else(|_| String::new(), |info| info.id().to_string())
            })
            .collect();
        Short {
            services: plain.len(),
            plain: hash(&plain),
            full: hash(&full),
            owners: hash(&owners),
            members: self
                .node
                .members()
                .iter()
                .filter(|member| member.is_up())
                .count(),
        }
    }

    async fn health(&self) -> Result<Health, Error> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let memory_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        let stats = self.node.stats().await.ok_or("the node has stopped")?;
        Ok(Health {
            tasks: tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks(),
            memory_kib,
            descriptors: std::fs::read_dir("/proc/self/fd")?.count(),
            downs: self.downs.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
            pending: stats.data.calls_pending,
        })
    }
}

struct Churn {
    running: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<(), RegistryError>>,
}

impl Churn {
    fn start(mut state: ChurnState, per_second: u32) -> Churn {
        let running = Arc::new(AtomicBool::new(true));
        let goes_on = Arc::clone(&running);
        let task = tokio::spawn(async move {
            while goes_on.load(Ordering::SeqCst) {
                state.change().await?;
                state.changes.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1) / per_second).await;
            }
            Ok(())
        });
        Churn { running, task }
    }

    async fn stop(self) -> Result<(), Error> {
        self.running.store(false, Ordering::SeqCst);
        Ok(self.task.await??)
    }
}

struct ChurnState {
    node: Node,
    account: Account,
    rng: StdRng,
    changes: Arc<AtomicU64>,
}

impl ChurnState {
    /// One change, by chance.
    async fn change(&mut self) -> Result<(), RegistryError> {
        let registry = self.node.registry().clone();
        let endpoints: Vec<ServiceId> = self
            .account
            .lock()
            .iter()
            .filter(|(_, made)| CHURN_TYPES.contains(&made.service_type.as_str()))
            .map(|(id, _)| id.clone())
            .collect();
        let choice = self.rng.random_range(0..20);
        if endpoints.is_empty() || (choice < 6 && endpoints.len() < MAX_CHURN) {
            let service_type = CHURN_TYPES[self.rng.random_range(0..CHURN_TYPES.len())];
            let address = format!("{}:{}", self.node.name(), self.rng.random::<u64>());
            let added = registry
                .add_service(NewService::endpoint(service_type, address))
                .await?;
            self.account.add(added.id(), service_type);
            return Ok(());
        }
        let id = endpoints[self.rng.random_range(0..endpoints.len())].clone();
        let note = |change: &dyn Fn(&mut Made)| {
            if let Some(made) = self.account.lock().get_mut(&id) {
                change(made);
            }
        };
        match choice {
            0..=9 => {
                registry.remove_service(&id).await?;
                self.account.lock().remove(&id);
            }
            10..=12 => {
                registry.disable_service(&id).await?;
                note(&|made| made.state = ServiceState::Offline);
            }
            13..=14 => {
                registry.enable_service(&id).await?;
                note(&|made| made.state = ServiceState::Online);
            }
            15..=17 => {
                let weight = self.rng.random_range(1..=1_000);
                let update = ServiceUpdate::new().weight(weight);
                registry.update_service(&id, update).await?;
                if let Some(made) = self.account.lock().get_mut(&id) {
                    made.weight = weight;
                }
            }
            _ => self.serve_and_end(choice == 19).await,
        }
        Ok(())
    }

    /// A service that comes and goes: one that panics, or one that stops.
    async fn serve_and_end(&mut self, panics: bool) {
        let Ok(served) = self.node.serve(Echo).await else {
            return;
        };
        if panics {
            let echoes = self
                .node
                .services::<Echoes>()
                .with(CallOptions::new().timeout(Duration::from_secs(1)));
            // The answer is that it stopped, or that its mailbox was full of others' calls.
            let _ = echoes.at(served.id().clone()).call(EchoCall::Panic).await;
        }
        // No handler runs here.
        let _ = served.stop().await;
        served.ended().await;
    }
}
