//! A node that does what a test tells it, by calls through the very library that is tested.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keydispatch::{
    CallOptions, Context, NewService, Node, Protocol, Reference, Registration, ReplyTo,
    ServeOptions, Served, Service, ServiceEvent, ServiceHandle, ServiceId, ServiceInfo,
    ServiceState,
};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::versions::{GreeterOne, GreeterTwo};
use crate::{Child, Error, PATIENCE, describe};

/// The variable that tells a test node by how many seconds its wall clock is behind.
const CLOCK_BEHIND: &str = "KEYDISPATCH_CLOCK_BEHIND";

/// What a test node is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Register an external endpoint.
    AddEndpoint {
        /// Its type.
        service_type: String,
        /// Its address.
        address: String,
    },
    /// Register many endpoints of one type, as one batch.
    AddEndpoints {
        /// Their type.
        service_type: String,
        /// The first number in their addresses.
        from: usize,
        /// How many.
        count: usize,
    },
    /// Give it keys.
    Enable(ServiceId),
    /// Take its keys.
    Disable(ServiceId),
    /// Take it out.
    Remove(ServiceId),
    /// Start a counter.
    ServeCounter,
    /// Stop a counter.
    StopCounter(ServiceId),
    /// Let a counter panic.
    PanicCounter(ServiceId),
    /// All services of a type.
    Services(String),
    /// Those that own keys.
    Online(String),
    /// The owner of a key.
    Find {
        /// The type.
        service_type: String,
        /// The key.
        key: String,
    },
    /// The instance names of the owners of many keys.
    Owners {
        /// The type.
        service_type: String,
        /// The keys.
        keys: Vec<String>,
    },
    /// Subscribe to a type; what happens is kept.
    Watch(String),
    /// What happened to a watched type so far.
    Seen(String),
    /// Call the counter that owns a key.
    Count {
        /// The key.
        key: String,
    },
    /// The nodes that are up.
    Members,
    /// The nodes that are known, living or not, each with its state.
    States,
    /// How many owners' entries are kept, living or not, besides its own.
    OwnersKept,
    /// The process's number.
    ProcessId,
    /// Start a greeter of that version, 1 or 2.
    ServeGreeter {
        /// The version.
        version: u32,
    },
    /// Leave the cluster.
    Leave,
}

/// A service, as it is seen by a test node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The service.
    pub id: ServiceId,
    /// Its instance name.
    pub name: String,
    /// Its state.
    pub state: ServiceState,
    /// Its current reference.
    pub reference: Reference,
    /// The reference before.
    pub previous: Option<Reference>,
}

impl From<&ServiceInfo> for Listed {
    fn from(info: &ServiceInfo) -> Self {
        Listed {
            id: info.id().clone(),
            name: info.name().as_str().to_owned(),
            state: info.state(),
            reference: info.reference(),
            previous: info.previous(),
        }
    }
}

/// Something that happened to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happened {
    /// It joined.
    Joined(Listed),
    /// It left.
    Left(Listed),
    /// It changed to this.
    Updated(Listed),
}

/// What a test node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// The service that was added.
    Added(ServiceId),
    /// The new reference.
    Reference(Reference),
    /// Services.
    Listed(Vec<Listed>),
    /// The owner of a key, if there is one.
    Owner(Option<Listed>),
    /// What happened, in order.
    Seen(Vec<Happened>),
    /// A number.
    Number(u64),
    /// Names.
    Names(Vec<String>),
    /// It did not work.
    Failed(String),
}

/// How test nodes are told.
pub struct TestNodes;

impl Protocol for TestNodes {
    const NAME: &'static str = "test-node";
    type Call = Request;
    type Reply = Response;
    type Cast = ();
}

/// What counters are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CounterCall {
    /// Add to it, and answer the sum.
    Add(u64),
    /// Response the sum.
    Sum,
    /// Panic.
    Panic,
    /// Response never.
    Hang,
}

/// A service type for tests.
pub struct Counters;

impl Protocol for Counters {
    const NAME: &'static str = "counter";
    type Call = CounterCall;
    type Reply = u64;
    type Cast = u64;
}

/// Counts what it is told.
#[derive(Default)]
pub struct Counter {
    sum: u64,
    hanging: Vec<ReplyTo<u64>>,
}

impl Service for Counter {
    type Protocol = Counters;

    async fn handle_call(
        &mut self,
        call: CounterCall,
        reply_to: ReplyTo<u64>,
        _: &mut Context<Self>,
    ) {
        match call {
            CounterCall::Add(more) => {
                self.sum += more;
                reply_to.reply(self.sum);
            }
            CounterCall::Sum => reply_to.reply(self.sum),
            CounterCall::Panic => panic!("told to panic"),
            CounterCall::Hang => self.hanging.push(reply_to),
        }
    }

    async fn handle_cast(&mut self, more: u64, _: &mut Context<Self>) {
        self.sum += more;
    }
}

/// See the module.
pub struct TestNode {
    node: Node,
    registered: HashMap<ServiceId, Registration>,
    counters: HashMap<ServiceId, Served<Counters>>,
    watched: HashMap<String, Arc<Mutex<Vec<Happened>>>>,
}

impl TestNode {
    /// Starts a test node on that node.
    pub async fn serve(node: &Node) -> Result<(), keydispatch::ServeError> {
        let test_node = TestNode {
            node: node.clone(),
            registered: HashMap::new(),
            counters: HashMap::new(),
            watched: HashMap::new(),
        };
        let options = ServeOptions::new().name(format!("test node {}", node.name()));
        node.serve_with(options, test_node).await?;
        Ok(())
    }

    async fn obey(
        &mut self,
        request: Request,
    ) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
        let registry = self.node.registry().clone();
        Ok(match request {
            Request::AddEndpoint {
                service_type,
                address,
            } => {
                let added = registry
                    .add_service(NewService::endpoint(service_type, address))
                    .await?;
                let id = added.id().clone();
                self.registered.insert(id.clone(), added);
                Response::Added(id)
            }
            Request::AddEndpoints {
                service_type,
                from,
                count,
            } => {
                let batch = (from..from + count)
                    .map(|number| NewService::endpoint(&service_type, format!("host:{number}")));
                registry.add_services(batch).await?;
                Response::Done
            }
            Request::Enable(id) => Response::Reference(registry.enable_service(&id).await?),
            Request::Disable(id) => Response::Reference(registry.disable_service(&id).await?),
            Request::Remove(id) => {
                registry.remove_service(&id).await?;
                self.registered.remove(&id);
                Response::Done
            }
            Request::ServeCounter => {
                let served = self.node.serve(Counter::default()).await?;
                let id = served.id().clone();
                self.counters.insert(id.clone(), served);
                Response::Added(id)
            }
            Request::StopCounter(id) => {
                if let Some(counter) = self.counters.remove(&id) {
                    counter.stop().await?;
                }
                Response::Done
            }
            Request::PanicCounter(id) => {
                let counter = self.node.services::<Counters>().at(id);
                let outcome = counter.call(CounterCall::Panic).await;
                Response::Failed(format!("{outcome:?}"))
            }
            Request::Services(service_type) => {
                Response::Listed(list(&registry.services(&service_type)))
            }
            Request::Online(service_type) => {
                Response::Listed(list(&registry.online_services(&service_type)))
            }
            Request::Find { service_type, key } => Response::Owner(
                registry
                    .find_service(&service_type, key.as_str())
                    .ok()
                    .map(|info| Listed::from(&*info)),
            ),
            Request::Owners { service_type, keys } => {
                let owner = |key: &String| match registry.find_service(&service_type, key.as_str())
                {
                    Ok(info) => info.name().to_string(),
                    Err(error) => error.to_string(),
                };
                Response::Names(keys.iter().map(owner).collect())
            }
            Request::Watch(service_type) => {
                self.watch(service_type)?;
                Response::Done
            }
            Request::Seen(service_type) => {
                let seen = self
                    .watched
                    .get(&service_type)
                    .map(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner).clone());
                Response::Seen(seen.unwrap_or_default())
            }
            Request::Count { key } => {
                let counters = self.node.services::<Counters>();
                Response::Number(counters.call(key.as_str(), CounterCall::Add(1)).await?)
            }
            Request::Members => Response::Names(
                self.node
                    .members()
                    .iter()
                    .filter(|member| member.is_up())
                    .map(|member| member.name().to_string())
                    .collect(),
            ),
            Request::States => Response::Names(
                self.node
                    .members()
                    .iter()
                    .map(|member| format!("{} {:?}", member.name(), member.state))
                    .collect(),
            ),
            Request::OwnersKept => {
                let stats = self.node.stats().await.ok_or("the node has stopped")?;
                Response::Number(stats.cluster.owners.len() as u64)
            }
            Request::ServeGreeter { version: 1 } => {
                Response::Added(self.node.serve(GreeterOne).await?.id().clone())
            }
            Request::ServeGreeter { .. } => {
                Response::Added(self.node.serve(GreeterTwo).await?.id().clone())
            }
            Request::ProcessId => Response::Number(u64::from(std::process::id())),
            Request::Leave => {
                let node = self.node.clone();
                // The answer goes out before the node does.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Err(error) = node.leave().await {
                        tracing::warn!(%error, "leaving");
                    }
                });
                Response::Done
            }
        })
    }

    fn watch(&mut self, service_type: String) -> Result<(), keydispatch::NameError> {
        let mut events = self.node.registry().subscribe(&service_type)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        self.watched.insert(service_type, Arc::clone(&seen));
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let happened = match event {
                    ServiceEvent::Joined(info) => Happened::Joined(Listed::from(&*info)),
                    ServiceEvent::Left(info) => Happened::Left(Listed::from(&*info)),
                    ServiceEvent::Updated { after, .. } => Happened::Updated(Listed::from(&*after)),
                    _ => continue,
                };
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(happened);
            }
        });
        Ok(())
    }
}

impl Service for TestNode {
    type Protocol = TestNodes;

    async fn handle_call(
        &mut self,
        request: Request,
        reply_to: ReplyTo<Response>,
        _: &mut Context<Self>,
    ) {
        let response = self
            .obey(request)
            .await
            .unwrap_or_else(|error| Response::Failed(error.to_string()));
        reply_to.reply(response);
    }
}

fn list(services: &[Arc<ServiceInfo>]) -> Vec<Listed> {
    services.iter().map(|info| Listed::from(&**info)).collect()
}

/// Starts `program test-node …` and waits until its node is synced.
pub async fn start(
    program: &Path,
    name: &str,
    bind: &str,
    seeds: &[String],
    certificates: &Path,
) -> Result<Child, Error> {
    start_behind(program, name, bind, seeds, certificates, Duration::ZERO).await
}

/// As [`start`], with a wall clock that is behind by that.
pub async fn start_behind(
    program: &Path,
    name: &str,
    bind: &str,
    seeds: &[String],
    certificates: &Path,
    clock_behind: Duration,
) -> Result<Child, Error> {
    let mut command = Command::new(program);
    command
        .env(CLOCK_BEHIND, clock_behind.as_secs().to_string())
        .arg("test-node")
        .args(["--name", name, "--bind", bind])
        .arg("--certificates")
        .arg(certificates);
    for seed in seeds {
        command.args(["--seed", seed]);
    }
    Child::start(command, name).await
}

/// What such a process does: one node that obeys, until its standard input closes.
pub async fn run(
    name: String,
    bind: String,
    seeds: Vec<String>,
    certificates: PathBuf,
    say: fn(&str),
) -> Result<(), Error> {
    let behind = match std::env::var(CLOCK_BEHIND) {
        Ok(seconds) => Duration::from_secs(seconds.parse()?),
        Err(_) => Duration::ZERO,
    };
    let node = describe(&name, &bind, &seeds, &certificates)
        .clock_behind(behind)
        .start()
        .await?;
    TestNode::serve(&node).await?;
    say(&format!("ready {}", node.address()));
    let mut stdin = tokio::io::stdin();
    // Nothing is ever written there: it ends when the parent does.
    tokio::io::copy(&mut stdin, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Asks the test node of that name.
pub async fn ask(
    test_nodes: &ServiceHandle<TestNodes>,
    node: &str,
    request: Request,
) -> Result<Response, Error> {
    let id = test_nodes
        .view()
        .services()
        .iter()
        .find(|info| info.node().as_str() == node)
        .map(|info| info.id().clone())
        .ok_or_else(|| format!("no test node on {node}"))?;
    let options = CallOptions::new().timeout(PATIENCE);
    Ok(test_nodes.with(options).at(id).call(request).await?)
}
