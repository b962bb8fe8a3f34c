//! A node that does what a test tells it, by calls through the very library that is tested.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keydispatch::{
    Context, NewService, Node, Protocol, Reference, Registration, ReplyTo, ServeOptions, Served,
    Service, ServiceEvent, ServiceId, ServiceInfo, ServiceState,
};
use serde::{Deserialize, Serialize};

use super::versions::{GreeterOne, GreeterTwo};

/// What a puppet is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
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

/// A service, as it is seen by a puppet.
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

/// What a puppet answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
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

/// How puppets are told.
pub struct Strings;

impl Protocol for Strings {
    const NAME: &'static str = "puppet";
    type Call = Order;
    type Reply = Answer;
    type Cast = ();
}

/// What counters are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CounterCall {
    /// Add to it, and answer the sum.
    Add(u64),
    /// Answer the sum.
    Sum,
    /// Panic.
    Panic,
    /// Answer never.
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
pub struct Puppet {
    node: Node,
    registered: HashMap<ServiceId, Registration>,
    counters: HashMap<ServiceId, Served<Counters>>,
    watched: HashMap<String, Arc<Mutex<Vec<Happened>>>>,
}

impl Puppet {
    /// Starts a puppet on that node.
    pub async fn serve(node: &Node) -> Result<(), keydispatch::ServeError> {
        let puppet = Puppet {
            node: node.clone(),
            registered: HashMap::new(),
            counters: HashMap::new(),
            watched: HashMap::new(),
        };
        let options = ServeOptions::new().name(format!("puppet of {}", node.name()));
        node.serve_with(options, puppet).await?;
        Ok(())
    }

    async fn obey(
        &mut self,
        order: Order,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let registry = self.node.registry().clone();
        Ok(match order {
            Order::AddEndpoint {
                service_type,
                address,
            } => {
                let added = registry
                    .add_service(NewService::endpoint(service_type, address))
                    .await?;
                let id = added.id().clone();
                self.registered.insert(id.clone(), added);
                Answer::Added(id)
            }
            Order::AddEndpoints {
                service_type,
                from,
                count,
            } => {
                let batch = (from..from + count)
                    .map(|number| NewService::endpoint(&service_type, format!("host:{number}")));
                registry.add_services(batch).await?;
                Answer::Done
            }
            Order::Enable(id) => Answer::Reference(registry.enable_service(&id).await?),
            Order::Disable(id) => Answer::Reference(registry.disable_service(&id).await?),
            Order::Remove(id) => {
                registry.remove_service(&id).await?;
                self.registered.remove(&id);
                Answer::Done
            }
            Order::ServeCounter => {
                let served = self.node.serve(Counter::default()).await?;
                let id = served.id().clone();
                self.counters.insert(id.clone(), served);
                Answer::Added(id)
            }
            Order::StopCounter(id) => {
                if let Some(counter) = self.counters.remove(&id) {
                    counter.stop().await?;
                }
                Answer::Done
            }
            Order::PanicCounter(id) => {
                let counter = self.node.services::<Counters>().at(id);
                let outcome = counter.call(CounterCall::Panic).await;
                Answer::Failed(format!("{outcome:?}"))
            }
            Order::Services(service_type) => {
                Answer::Listed(list(&registry.services(&service_type)))
            }
            Order::Online(service_type) => {
                Answer::Listed(list(&registry.online_services(&service_type)))
            }
            Order::Find { service_type, key } => Answer::Owner(
                registry
                    .find_service(&service_type, key.as_str())
                    .ok()
                    .map(|info| Listed::from(&*info)),
            ),
            Order::Owners { service_type, keys } => {
                let owner = |key: &String| match registry.find_service(&service_type, key.as_str())
                {
                    Ok(info) => info.name().to_string(),
                    Err(error) => error.to_string(),
                };
                Answer::Names(keys.iter().map(owner).collect())
            }
            Order::Watch(service_type) => {
                self.watch(service_type)?;
                Answer::Done
            }
            Order::Seen(service_type) => {
                let seen = self
                    .watched
                    .get(&service_type)
                    .map(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner).clone());
                Answer::Seen(seen.unwrap_or_default())
            }
            Order::Count { key } => {
                let counters = self.node.services::<Counters>();
                Answer::Number(counters.call(key.as_str(), CounterCall::Add(1)).await?)
            }
            Order::Members => Answer::Names(
                self.node
                    .members()
                    .iter()
                    .filter(|member| member.is_up())
                    .map(|member| member.name().to_string())
                    .collect(),
            ),
            Order::States => Answer::Names(
                self.node
                    .members()
                    .iter()
                    .map(|member| format!("{} {:?}", member.name(), member.state))
                    .collect(),
            ),
            Order::OwnersKept => {
                let stats = self.node.stats().await.ok_or("the node has stopped")?;
                Answer::Number(stats.cluster.owners.len() as u64)
            }
            Order::ServeGreeter { version: 1 } => {
                Answer::Added(self.node.serve(GreeterOne).await?.id().clone())
            }
            Order::ServeGreeter { .. } => {
                Answer::Added(self.node.serve(GreeterTwo).await?.id().clone())
            }
            Order::ProcessId => Answer::Number(u64::from(std::process::id())),
            Order::Leave => {
                let node = self.node.clone();
                // The answer goes out before the node does.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Err(error) = node.leave().await {
                        tracing::warn!(%error, "leaving");
                    }
                });
                Answer::Done
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

impl Service for Puppet {
    type Protocol = Strings;

    async fn handle_call(
        &mut self,
        order: Order,
        reply_to: ReplyTo<Answer>,
        _: &mut Context<Self>,
    ) {
        let answer = self
            .obey(order)
            .await
            .unwrap_or_else(|error| Answer::Failed(error.to_string()));
        reply_to.reply(answer);
    }
}

fn list(services: &[Arc<ServiceInfo>]) -> Vec<Listed> {
    services.iter().map(|info| Listed::from(&**info)).collect()
}
