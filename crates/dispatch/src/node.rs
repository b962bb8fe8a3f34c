//! `Node`: start, what it offers, leave.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use keydispatch_core::limits::MAX_PAYLOAD_BYTES;
use keydispatch_core::links::hello_timeout;
use keydispatch_core::message::{Address, Offers};
use keydispatch_core::{Cluster, ClusterConfig, ClusterName, ClusterStats, NodeName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::builder::{Checked, Network, NodeBuilder, StartError};
use crate::control;
use crate::data::tokens::TokenInputs;
use crate::data::{DataConfig, DataPlane, DataStats};
use crate::deadline;
use crate::discovery::Seed;
use crate::driver::event_log::EventLog;
use crate::driver::{Backlog, Clock, Command, Driver, Links, Phase, QUEUE, Shared, Tokens};
use crate::ending::{Fatal, Vital};
use crate::handle::{KeyedHandle, ServiceHandle};
use crate::join;
use crate::keyed::{Keyed, KeyedOptions, ServedKeyed};
use crate::protocol::Protocol;
use crate::pubsub::PubSub;
use crate::reach::OutOfReach;
use crate::registry::Registry;
use crate::runtime::{Kept, Runtimes};
use crate::service::supervisor::{SuperviseOptions, Supervised};
use crate::service::{ServeError, ServeOptions, Served, Service, blocking};
use crate::tls::{self, Tls};
use crate::transport::Transport;
use crate::transport::tcp::TcpTransport;
use crate::watch::members::{Member, MemberChanges};

/// A member of a cluster: serves services, finds and calls those of the others.
///
/// Cheap to clone. When the last clone is dropped the node stops as if its process had died, unless
/// [`permdown_on_shutdown`](NodeBuilder::permdown_on_shutdown) is set: then it says goodbye, as [`leave`](Self::leave) does.
/// Handles and registries taken from it do not keep it alive. Its services run on the tokio runtime that it was started
/// on, and it ends with that; it runs on threads of its own, so that a handler that blocks holds up nothing but its
/// service; see [`own_threads`](NodeBuilder::own_threads).
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: ClusterName,
    address: Address,
    shared: Arc<Shared>,
    registry: Registry,
    data: Arc<DataPlane>,
    pubsub: PubSub,
    phase: watch::Receiver<Phase>,
    /// True for a network between hosts without encryption.
    plaintext: bool,
    /// None without encryption.
    tls: Option<Arc<Tls>>,
    /// Dropped last: tells the driver to stop.
    shutdown: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    _threads: Kept,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Sizes, versions and counters of a node, for operators.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeStats {
    /// Replication: versions and sizes by owner.
    pub cluster: ClusterStats,
    /// Calls, casts and connections.
    pub data: DataStats,
    /// The nodes, living and recently dead.
    pub members: Vec<Member>,
    /// True where this node does without encryption, so that whoever reaches its address can join, call and read.
    pub plaintext: bool,
    /// When this node's certificate ends, or one of its intermediates where that is sooner; none without encryption. It is
    /// warned about from 30 days before, or from the last third of its life, whichever is shorter.
    pub certificate_not_after: Option<SystemTime>,
    /// The longest time since the start for which the node looked neither at its timers nor at its connections: a few
    /// milliseconds on an idle machine, whatever is registered.
    pub longest_turn: Duration,
}

impl Node {
    /// Describes a node of that name, which is unique in its cluster and the same after a restart.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use keydispatch::{Node, TlsFiles};
    /// let node = Node::builder("a")
    ///     .cluster("files")
    ///     .bind("10.0.0.1:7400")
    ///     .seeds(["10.0.0.2:7400"])
    ///     .tls(TlsFiles::new("certs/ca.pem", "certs/a.pem", "certs/a.key"))
    ///     .start()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(name: impl Into<String>) -> NodeBuilder {
        NodeBuilder::new(name.into())
    }

    pub(crate) async fn start(checked: Checked) -> Result<Node, StartError> {
        let (runtimes, kept) = Runtimes::start(checked.own_threads).map_err(StartError::Threads)?;
        let (transport, tls) = bind(&checked, &runtimes).await?;
        let until = deadline::after(checked.start_timeout);
        let listening = transport
            .as_ref()
            .map(|transport| transport.local_address());
        let (seeds, address) = join::meet(&checked, listening, until).await?;
        let max_payload_bytes = checked.max_payload_bytes.min(MAX_PAYLOAD_BYTES);
        let plaintext = checked.is_plaintext();
        let known_seeds = seeds.addresses.clone();
        let nonce = rand::random();
        let clock = Clock::start();
        let cluster = Cluster::new(
            ClusterConfig {
                cluster: checked.cluster.clone(),
                name: checked.name.clone(),
                address: address.clone(),
                seeds: seeds.addresses,
                seeds_awaited: seeds.awaited,
                settings: checked.settings.clone(),
                wall_clock_micros: wall_clock_micros(checked.clock_behind),
                nonce,
                offers: Offers {
                    max_payload_bytes: Some(max_payload_bytes as u64),
                    ..Offers::default()
                },
                seed: rand::random(),
            },
            clock.now(),
        );
        let hello = Arc::new(ArcSwap::from_pointee(cluster.hello().clone()));
        let (commands, command_receiver) = mpsc::channel(QUEUE);
        let (inputs, input_receiver) = mpsc::channel(QUEUE);
        let (shutdown, shutdown_receiver) = watch::channel(false);
        let (phase_sender, phase) = watch::channel(Phase::Joining);
        let shared = Arc::new(Shared::new(
            checked.name.clone(),
            nonce,
            checked.zone.clone(),
            cluster.directory(),
            commands.clone(),
        ));
        let registry = Registry::new(Arc::clone(&shared));
        let (token_inputs, token_receivers) = TokenInputs::new();
        let data = DataPlane::new(DataConfig {
            transport: transport.clone(),
            hello: Arc::clone(&hello),
            directory: cluster.directory(),
            pool_size: checked.pool_size,
            max_payload_bytes,
            checks_messages: checked.checks_messages,
            topic_bytes: checked.topic_bytes,
            waiting_bytes: checked.waiting_bytes,
            drain_timeout: checked.drain_timeout,
            runtimes: runtimes.clone(),
            tokens: token_inputs,
        });
        let tokens = Tokens::new(
            &cluster,
            nonce,
            checked.settings.down_period(),
            Arc::clone(&data),
            token_receivers,
        );
        let mut out_of_reach = OutOfReach::new(checked.resolves_names().then_some(&address));
        out_of_reach.met(&known_seeds);
        let (fatal, fatal_receiver) = mpsc::unbounded_channel();
        let driver = Driver {
            cluster,
            clock,
            out_of_reach,
            shared: Arc::clone(&shared),
            transport: transport.clone(),
            data: Arc::clone(&data),
            hello: Arc::clone(&hello),
            event_log: EventLog::new(checked.name.clone(), checked.log_level),
            goodbye_on_drop: checked.settings.permdown_on_shutdown(),
            commands: command_receiver,
            inputs: input_receiver,
            input_sender: inputs.clone(),
            shutdown: shutdown_receiver,
            fatal: fatal_receiver,
            phase: phase_sender,
            links: Links::default(),
            backlog: Backlog::default(),
            tokens,
        };
        let mut tasks = Vec::new();
        if let Some(tls) = &tls {
            tasks.push(runtimes.spawn(tls::watch(Arc::clone(tls))));
        }
        if let Some(transport) = &transport {
            let patience = hello_timeout(checked.settings.down_period());
            let transport = Arc::clone(transport);
            let accepting = control::accept(transport, inputs, Arc::clone(&data), hello, patience);
            let vital = Vital::unless_panicked(&fatal, "acceptor");
            tasks.push(runtimes.spawn(async move {
                let _vital = vital;
                accepting.await;
            }));
            if checked.resolves_names() && checked.seeds.iter().any(Seed::is_name) {
                let seeds = (checked.seeds.clone(), seeds.awaited);
                tasks.push(runtimes.spawn(join::resolve_again(seeds.0, seeds.1, until, commands)));
            }
        }
        let watching = blocking::watch(Arc::clone(&data), checked.name.clone(), nonce);
        let helping = Arc::clone(&data).help();
        let mut ended = phase.clone();
        runtimes.spawn(async move {
            tokio::select! {
                () = watching => {}
                () = helping => {}
                _ = ended.wait_for(Phase::is_final) => {}
            }
        });
        let vital = Vital::as_long_as_the_node(&fatal, "services' runtime");
        runtimes.spawn_service(vital.until(phase.clone()));
        runtimes.spawn({
            let kept = kept.clone();
            async move {
                driver.run().await;
                drop(kept);
            }
        });
        let pubsub = PubSub::new(Arc::clone(&data), checked.name.clone());
        let node = Node {
            inner: Arc::new(Inner {
                cluster: checked.cluster,
                address,
                shared,
                registry,
                data,
                pubsub,
                phase,
                plaintext,
                tls,
                shutdown,
                tasks,
                _threads: kept,
            }),
        };
        node.wait_synced(checked.start_timeout, until).await?;
        let shared = &node.inner.shared;
        join::expect(shared, checked.expect, checked.start_timeout, until).await?;
        Ok(node)
    }

    /// Whether this node has the entries of every node that is up, and has had as many members as it
    /// [expects](NodeBuilder::expect). False after a start whose seeds were all silent, until one of them answers; false
    /// again once the node has stopped.
    pub fn is_ready(&self) -> bool {
        *self.inner.phase.borrow() == Phase::Synced
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.inner.shared.name
    }

    /// Its cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.inner.cluster
    }

    /// Where the others reach it: the advertised address, or the bound one with the port that was taken.
    pub fn address(&self) -> &Address {
        &self.inner.address
    }

    /// Starts a service on this node and registers it under its protocol's name, with the defaults of [`ServeOptions`].
    ///
    /// Found locally when this returns, and on the other nodes within milliseconds. It lives until it stops, panics, or
    /// the node ends; it leaves the registry by itself. Whoever drops the future before it is done has started nothing
    /// that lasts: the service ends, and its entry goes, wherever the start had got to.
    pub async fn serve<S: Service>(&self, service: S) -> Result<Served<S::Protocol>, ServeError> {
        self.serve_with(ServeOptions::new(), service).await
    }

    /// Starts and registers a service under a name, with a weight, a zone, tags, or a larger mailbox.
    pub async fn serve_with<S: Service>(
        &self,
        options: ServeOptions,
        service: S,
    ) -> Result<Served<S::Protocol>, ServeError> {
        crate::service::serve(&self.inner.registry, &self.inner.data, options, service).await
    }

    /// Starts a service that is started again when it panics, under the same instance name: after a pause that doubles,
    /// and at most 3 times in 5 s unless the options say otherwise.
    pub async fn supervise<S: Service>(
        &self,
        options: SuperviseOptions,
        factory: impl FnMut() -> S + Send + 'static,
    ) -> Result<Supervised, ServeError> {
        let (registry, data) = (self.inner.registry.clone(), Arc::clone(&self.inner.data));
        crate::service::supervisor::supervise(registry, data, options, factory).await
    }

    /// Starts a service with a state for each key on this node, with the defaults of [`KeyedOptions`]; see [`Keyed`].
    ///
    /// It is found as one of [`serve`](Self::serve) is. It has no state yet: those of the keys that it owns from now on come to
    /// it from whoever has them.
    pub async fn serve_keyed<K: Keyed>(&self, service: K) -> Result<ServedKeyed<K>, ServeError> {
        self.serve_keyed_with(KeyedOptions::new(), service).await
    }

    /// The same under a name, with a weight, a zone, tags, or other bounds.
    pub async fn serve_keyed_with<K: Keyed>(
        &self,
        options: KeyedOptions,
        service: K,
    ) -> Result<ServedKeyed<K>, ServeError> {
        crate::keyed::serve_keyed(&self.inner.registry, &self.inner.data, options, service).await
    }

    /// A typed handle to the keys of a [`Keyed`] service, wherever their states are. Cheap to clone.
    pub fn keyed<P: Protocol>(&self) -> KeyedHandle<P> {
        KeyedHandle::new(&self.inner.registry, &self.inner.data)
    }

    /// A typed handle to the services of a protocol, wherever they run. Cheap to clone.
    pub fn services<P: Protocol>(&self) -> ServiceHandle<P> {
        ServiceHandle::new(&self.inner.registry, &self.inner.data)
    }

    /// The untyped registry, which also holds external endpoints.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Topics across the cluster.
    pub fn pubsub(&self) -> &PubSub {
        &self.inner.pubsub
    }

    /// The other nodes, living and recently dead.
    pub fn members(&self) -> Vec<Member> {
        Vec::clone(&self.inner.shared.roster.load())
    }

    /// The nodes that come and go from now on.
    pub fn subscribe_members(&self) -> MemberChanges {
        self.inner.shared.member_changes.subscribe()
    }

    /// Sizes, versions and counters; none once the node has stopped.
    pub async fn stats(&self) -> Option<NodeStats> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Stats { reply }).await?;
        Some(NodeStats {
            cluster: answer.await.ok()?,
            data: self.inner.data.stats(),
            members: self.members(),
            plaintext: self.inner.plaintext,
            certificate_not_after: self.inner.tls.as_ref().map(|tls| tls.not_after()),
            longest_turn: self.inner.shared.longest_turn.read(),
        })
    }

    /// Looks at the files of the certificates now, and not within 30 s: for whoever has just replaced them.
    ///
    /// Returns when what has changed is in use. Links of peers that are revoked by it are being closed then. Files that are
    /// of no use leave what was in use, and are warned about. Does nothing without encryption.
    pub async fn reread_certificates(&self) {
        if let Some(tls) = &self.inner.tls {
            tls.look().await;
        }
    }

    /// Waits until the node has stopped, and says why.
    pub async fn stopped(&self) -> StopCause {
        let mut phase = self.inner.phase.clone();
        match phase.wait_for(Phase::is_final).await.as_deref() {
            Ok(Phase::NameTaken(by)) => StopCause::NameTaken { by: by.clone() },
            Ok(Phase::Failed(Fatal::RuntimeEnded)) => StopCause::RuntimeEnded,
            Ok(Phase::Failed(Fatal::Panicked)) => StopCause::Panicked,
            _ => StopCause::Left,
        }
    }

    async fn wait_synced(&self, timeout: Duration, until: Instant) -> Result<(), StartError> {
        let mut phase = self.inner.phase.clone();
        // The phase is cloned, not borrowed: a borrow across the waits below would keep `start` from being spawned.
        let joined = async {
            let reached = phase.wait_for(|phase| *phase != Phase::Joining).await;
            reached.map(|phase| phase.clone())
        };
        match tokio::time::timeout_at(until, joined).await {
            Ok(Ok(phase)) => match phase {
                Phase::Synced | Phase::Joining => Ok(()),
                Phase::NameTaken(by) => Err(StartError::NameTaken {
                    name: self.name().clone(),
                    by,
                }),
                Phase::Stopped | Phase::Failed(_) => Err(StartError::Stopped),
            },
            Ok(Err(_)) => Err(StartError::Stopped),
            Err(_) => {
                let missing = join::missing(&self.inner.shared).await;
                let missing = missing.ok_or(StartError::Stopped)?;
                if missing.is_empty() {
                    tracing::warn!(node = %self.name(), waited = ?timeout, "no seed answered: starting alone, and still trying");
                    return Ok(());
                }
                Err(StartError::NotSynced {
                    waited: timeout,
                    missing,
                })
            }
        }
    }

    pub(crate) fn data(&self) -> &Arc<DataPlane> {
        &self.inner.data
    }

    pub(crate) fn shut_down(&self) {
        self.inner.shutdown.send_replace(true);
    }

    pub(crate) async fn command(&self, command: Command) -> Option<()> {
        self.inner.shared.commands.send(command).await.ok()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("name", self.name())
            .field("cluster", &self.inner.cluster)
            .field("address", &self.inner.address)
            .finish_non_exhaustive()
    }
}

/// Why a node stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopCause {
    /// It left.
    Left,
    /// A living node of the same name was met, and this one was the one to stop.
    NameTaken {
        /// Where the other is reached, where that is known.
        by: Option<Address>,
    },
    /// The runtime that it was started on has ended, and its services with it.
    RuntimeEnded,
    /// A task inside the node panicked: a fault of this library. The log has the place.
    Panicked,
}

/// Lets the node end by a panic of its driver: for tests of what waits on it.
#[cfg(feature = "testkit-faults")]
pub async fn panic_inside(node: &Node) {
    // An error says that the node has stopped already.
    let _ = node.command(Command::Panic).await;
}

/// The transport, and what it is encrypted by.
type Bound = (Option<Arc<dyn Transport>>, Option<Arc<Tls>>);

async fn bind(checked: &Checked, runtimes: &Runtimes) -> Result<Bound, StartError> {
    Ok(match &checked.network {
        None => (None, None),
        Some(Network::Memory(network)) => (Some(network.bind(&checked.bind)?), None),
        Some(Network::Plaintext) => {
            let transport = runtimes
                .enter(|| TcpTransport::plaintext(&checked.bind))?
                .with_link_local(checked.dial_link_local);
            (Some(Arc::new(transport)), None)
        }
        Some(Network::Tls(files)) => {
            let (files, cluster) = (files.clone(), checked.cluster.clone());
            // Files are read where blocking is allowed.
            let loading = tokio::task::spawn_blocking(move || Tls::load(&files, &cluster));
            // It ends early only where the runtime does.
            let tls = loading.await.map_err(|_| StartError::Stopped)??;
            tls.check_node(&checked.name)?;
            let transport = runtimes
                .enter(|| TcpTransport::tls(&checked.bind, Arc::clone(&tls)))?
                .with_link_local(checked.dial_link_local);
            (Some(Arc::new(transport)), Some(tls))
        }
    })
}

fn wall_clock_micros(behind: Duration) -> u64 {
    SystemTime::now()
        .checked_sub(behind)
        .and_then(|now| now.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}
