//! How a node is described and started.

use std::time::Duration;

use keydispatch_core::limits::DEFAULT_MAX_PAYLOAD_BYTES;
use keydispatch_core::message::Address;
use keydispatch_core::{ClusterName, NodeName, Settings, SettingsError, Zone};

use crate::backlog;
use crate::config::{
    Adapter, Config, ConfigError, DEFAULT_POOL_SIZE, LogLevel, RegistrySection, check_pool_size,
};
use crate::data::topics::DEFAULT_TOPIC_BYTES;
use crate::discovery::Seed;
use crate::drain::DEFAULT_DRAIN_TIMEOUT;
use crate::node::Node;
use crate::node::plan::{NodePlan, StartError, TransportKind};
use crate::reach;
use crate::tls::TlsFiles;
use crate::transport::memory::MemoryNetwork;

/// How long [`NodeBuilder::start`] waits to be synced before it says what is missing.
pub const DEFAULT_START_TIMEOUT: Duration = Duration::from_secs(10);

/// A node to be started; see [`Node::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct NodeBuilder {
    name: String,
    cluster: String,
    bind: String,
    advertise: Option<String>,
    dial_link_local: bool,
    seeds: Vec<String>,
    zone: Option<String>,
    network: Option<TransportKind>,
    adapter: Adapter,
    pool_size: usize,
    registry: RegistrySection,
    max_payload_bytes: usize,
    check_messages: Option<bool>,
    topic_bytes: usize,
    waiting_bytes: Option<usize>,
    start_timeout: Duration,
    expect: usize,
    drain_timeout: Duration,
    own_threads: bool,
    /// How far the wall clock is behind, in tests.
    clock_behind: Duration,
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
}

impl NodeBuilder {
    pub(crate) fn new(name: String) -> Self {
        NodeBuilder {
            name,
            cluster: "dispatch".to_owned(),
            bind: "127.0.0.1:0".to_owned(),
            advertise: None,
            dial_link_local: false,
            seeds: Vec::new(),
            zone: None,
            network: None,
            adapter: Adapter::Mesh,
            pool_size: DEFAULT_POOL_SIZE,
            registry: RegistrySection::default(),
            max_payload_bytes: DEFAULT_MAX_PAYLOAD_BYTES,
            check_messages: None,
            topic_bytes: DEFAULT_TOPIC_BYTES,
            waiting_bytes: None,
            start_timeout: DEFAULT_START_TIMEOUT,
            expect: 0,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            own_threads: true,
            clock_behind: Duration::ZERO,
        }
    }

    /// The cluster's name, `pubsub.name`; by default `dispatch`. Nodes of different clusters refuse each other.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// The address to listen on, `node.bind`: `host:port`, `[v6]:port`, port 0 for any; by default `127.0.0.1:0`.
    pub fn bind(mut self, address: impl Into<String>) -> Self {
        self.bind = address.into();
        self
    }

    /// The address that others dial, `node.advertise`: `host:port`, `[v6]:port`. By default the bound one; where that is
    /// `0.0.0.0` or `[::]`, the one by which this machine reaches its seeds.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Whether other nodes are dialled at link-local addresses (169.254/16), `node.dial_link_local`; by default not, since what
    /// answers there is mostly no node, but a service of the host, as a cloud's metadata. Seeds are no exception. A node may
    /// advertise such an address only where this is set, which it then has to be on all nodes.
    pub fn dial_link_local(mut self, allowed: bool) -> Self {
        self.dial_link_local = allowed;
        self
    }

    /// Where other nodes may be found, `node.seeds`: addresses or DNS names with a port. Names are looked up again and
    /// again; this node itself may be among them. Without seeds this is the first node of a cluster.
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.seeds = seeds.into_iter().map(Into::into).collect();
        self
    }

    /// The failure domain of this node's services, `node.zone`.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Encrypt and authenticate by these files, `node.ca`, `node.cert`, `node.key` and `node.crl`; they are re-read when they change.
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.network = Some(TransportKind::Tls(files));
        self
    }

    /// Do without encryption, `node.plaintext`: anybody who reaches the port can join and call.
    pub fn plaintext(mut self) -> Self {
        self.network = Some(TransportKind::Plaintext);
        self
    }

    /// A network inside this process, for tests.
    pub fn memory(mut self, network: &MemoryNetwork) -> Self {
        self.network = Some(TransportKind::Memory(network.clone()));
        self
    }

    /// How nodes reach each other, `pubsub.adapter`; by default [`Adapter::Mesh`].
    pub fn adapter(mut self, adapter: Adapter) -> Self {
        self.adapter = adapter;
        self
    }

    /// Data connections per peer, `pubsub.pool_size`: 1 to 64, by default 1. A service always uses the same one.
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections;
        self
    }

    /// How often versions are compared, `registry.broadcast_period`: 10 ms and more, by default 250 ms.
    pub fn broadcast_period(mut self, period: Duration) -> Self {
        self.registry.broadcast_period = Some(crate::config::Period(period));
        self
    }

    /// While nothing changes, versions are compared in every so many periods only, `registry.max_silent_periods`: 1 to
    /// 1000, by default 3.
    pub fn max_silent_periods(mut self, periods: u32) -> Self {
        self.registry.max_silent_periods = Some(periods);
        self
    }

    /// How long a node may be silent before it is taken for dead, `registry.down_period`: 600 ms and more; by default
    /// `broadcast_period` × `max_silent_periods` × 2, and at least 1 s.
    pub fn down_period(mut self, period: Duration) -> Self {
        self.registry.down_period = Some(crate::config::Period(period));
        self
    }

    /// How long the dead are remembered, `registry.permdown_period`: longer than `down_period`, by default 20 min.
    pub fn permdown_period(mut self, period: Duration) -> Self {
        self.registry.permdown_period = Some(crate::config::Period(period));
        self
    }

    /// Whether dropping the node without leaving says goodbye, `registry.permdown_on_shutdown`; by default no.
    pub fn permdown_on_shutdown(mut self, goodbye: bool) -> Self {
        self.registry.permdown_on_shutdown = Some(goodbye);
        self
    }

    /// Changes kept per owner for peers that missed some, `registry.max_delta_sizes`: 1 to 1,000,000, by default 10,000.
    pub fn max_delta_sizes(mut self, changes: usize) -> Self {
        self.registry.max_delta_sizes = Some(changes);
        self
    }

    /// How much the registry logs of what it sees, `registry.log_level`; by default [`LogLevel::Info`].
    pub fn log_level(mut self, level: LogLevel) -> Self {
        self.registry.log_level = Some(level);
        self
    }

    /// Longest payload of a call, a cast, a reply or a broadcast in bytes, `node.max_payload_bytes`; by default 16 MiB.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = bytes;
        self
    }

    /// Bytes of payloads that may wait for one subscription to a topic, `pubsub.topic_bytes`; by default 64 MiB. Beyond
    /// them, and beyond 1,024 messages, it loses the oldest and is told. One message may wait whatever its size.
    pub fn topic_bytes(mut self, bytes: usize) -> Self {
        self.topic_bytes = bytes;
        self
    }

    /// Bytes of payloads that may wait on this node in all, `node.waiting_bytes`: in mailboxes, for subscriptions to topics,
    /// as replies, and as messages to other nodes. By default a quarter of the memory that the process may use (its control
    /// group's limit, or the machine's), and at most 1 GiB.
    ///
    /// No peer takes more than is still free, so that one alone gets half of it. What is beyond it fails as
    /// [`CallError::Overloaded`](crate::CallError::Overloaded), or is dropped and counted as where a mailbox is full. Where
    /// nothing else waits one message is taken, whatever its size. What a handler has in hand does not wait.
    pub fn waiting_bytes(mut self, bytes: usize) -> Self {
        self.waiting_bytes = Some(bytes);
        self
    }

    /// How many nodes there are to be, this one included, before [`start`](Self::start) returns, `node.expect`; by default it
    /// waits for nobody. Once they have been there they are never waited for again.
    ///
    /// The same number suits every node of a cluster that is started at once. It is bounded by the start timeout.
    pub fn expect(mut self, members: usize) -> Self {
        self.expect = members;
        self
    }

    /// Whether calls, casts and replies within this node are encoded and decoded as those to other nodes are, so that a
    /// message which cannot cross fails here, too; by default in debug builds, and on a
    /// [`MemoryNetwork`](crate::testkit::MemoryNetwork). It costs what encoding costs.
    pub fn check_messages(mut self, check: bool) -> Self {
        self.check_messages = Some(check);
        self
    }

    /// How long [`start`](Self::start) waits to be synced, for seeds whose names have no address yet, and for the nodes that
    /// are [expected](Self::expect); by default 10 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How long [`leave`](Node::leave) and [`Served::stop`](crate::Served::stop) finish what there is to be done,
    /// `node.drain_timeout`; by default 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Whether the node has threads of its own, which all nodes of a process share: half as many as there are processors, 1
    /// to 4, called `dispatch-node-0` and so on. By default yes: then handlers that block their threads cost the node nothing
    /// but the answers of its own services.
    ///
    /// Without them it runs on the runtime that `start` is called on, beside its services: for tests under
    /// `tokio::time::pause` and for simulators of whole programs, where time and order are those of one runtime.
    pub fn own_threads(mut self, own: bool) -> Self {
        self.own_threads = own;
        self
    }

    /// Lets the wall clock, which generations are taken from, be behind by that: for tests of restarts with a clock that
    /// was set back.
    #[cfg(feature = "testkit-clock")]
    #[doc(hidden)]
    pub fn clock_behind(mut self, by: Duration) -> Self {
        self.clock_behind = by;
        self
    }

    /// Starts the node: binds, joins, and returns once the entries of every node that is up have arrived.
    ///
    /// A seed whose name has no address yet is looked up again every 200 ms. Where every seed is refused, this is the first node of its cluster, and it keeps trying them. Where seeds are
    /// silent, it starts alone after the start timeout, says so in the log, and keeps trying.
    ///
    /// # Errors
    ///
    /// A wrong setting, an address that is taken, unusable certificates, a living node of the same name,
    /// [`StartError::NotSynced`] with the nodes whose entries did not arrive in time, or [`StartError::TooFew`].
    pub async fn start(self) -> Result<Node, StartError> {
        Node::start(self.check()?).await
    }

    fn check(self) -> Result<NodePlan, StartError> {
        check_pool_size(self.pool_size)?;
        let network = match (self.adapter, self.network) {
            (Adapter::Local, None) => None,
            (Adapter::Local, Some(_)) => {
                return Err(ConfigError::LocalAdapter {
                    setting: "a network",
                }
                .into());
            }
            (Adapter::Mesh, None) => return Err(ConfigError::NoTls.into()),
            (Adapter::Mesh, network) => network,
        };
        if network.is_none() && !self.seeds.is_empty() {
            return Err(ConfigError::LocalAdapter {
                setting: "node.seeds",
            }
            .into());
        }
        let in_memory = matches!(network, Some(TransportKind::Memory(_)));
        let has_hosts = matches!(
            network,
            Some(TransportKind::Tls(_) | TransportKind::Plaintext)
        );
        let advertise = self
            .advertise
            .map(|address| match has_hosts {
                true => reach::parse(&address, self.dial_link_local),
                // Elsewhere addresses are any text.
                false => Ok(Address::try_new(address)?),
            })
            .transpose()?;
        Ok(NodePlan {
            name: NodeName::try_new(self.name)?,
            cluster: ClusterName::try_new(self.cluster)?,
            bind: self.bind,
            advertise,
            dial_link_local: self.dial_link_local,
            seeds: self
                .seeds
                .iter()
                .map(|seed| seed.parse::<Seed>())
                .collect::<Result<_, _>>()?,
            zone: self.zone.map(Zone::try_new).transpose()?,
            network,
            pool_size: self.pool_size,
            settings: Settings::try_new(self.registry.raw())
                .map_err(|error: SettingsError| ConfigError::from(error))?,
            log_level: self.registry.log_level.unwrap_or_default(),
            max_payload_bytes: self.max_payload_bytes,
            checks_messages: self
                .check_messages
                .unwrap_or(cfg!(debug_assertions) || in_memory),
            topic_bytes: self.topic_bytes,
            waiting_bytes: self.waiting_bytes.unwrap_or_else(backlog::default_bytes),
            start_timeout: self.start_timeout,
            expect: self.expect,
            drain_timeout: self.drain_timeout,
            own_threads: self.own_threads,
            clock_behind: self.clock_behind,
        })
    }
}

impl Config {
    /// A builder with everything that the configuration says; `default_name` is used where it names no node.
    pub fn builder(&self, default_name: &str) -> Result<NodeBuilder, ConfigError> {
        self.describe(default_name)
            .map_err(|error| match &self.file {
                Some(path) => crate::config::in_file(path, error),
                None => error,
            })
    }

    fn describe(&self, default_name: &str) -> Result<NodeBuilder, ConfigError> {
        let node = &self.node;
        let name = node
            .name
            .as_ref()
            .map_or(default_name, NodeName::as_str)
            .to_owned();
        let mut builder = NodeBuilder::new(name);
        let adapter = self.pubsub.adapter.unwrap_or_default();
        builder.network = match (&node.ca, &node.cert, &node.key) {
            (None, None, None) if node.crl.is_some() => {
                return Err(match node.plaintext {
                    true => ConfigError::PlaintextAndTls,
                    false => ConfigError::IncompleteTls { missing: "ca" },
                });
            }
            (None, None, None) if node.plaintext => Some(TransportKind::Plaintext),
            (None, None, None) => None,
            (Some(_), Some(_), Some(_)) if node.plaintext => {
                return Err(ConfigError::PlaintextAndTls);
            }
            (Some(ca), Some(cert), Some(key)) => {
                let files = TlsFiles::new(ca, cert, key);
                Some(TransportKind::Tls(match &node.crl {
                    Some(crl) => files.crl(crl),
                    None => files,
                }))
            }
            (None, ..) => return Err(ConfigError::IncompleteTls { missing: "ca" }),
            (_, None, _) => return Err(ConfigError::IncompleteTls { missing: "cert" }),
            (_, _, None) => return Err(ConfigError::IncompleteTls { missing: "key" }),
        };
        if adapter == Adapter::Local && node.bind.is_some() {
            return Err(ConfigError::LocalAdapter {
                setting: "node.bind",
            });
        }
        if let Some(cluster) = &self.pubsub.name {
            builder.cluster = cluster.as_str().to_owned();
        }
        if let Some(bind) = &node.bind {
            builder.bind.clone_from(bind);
        }
        builder.advertise.clone_from(&node.advertise);
        builder.dial_link_local = node.dial_link_local;
        builder.seeds.clone_from(&node.seeds);
        builder.zone = node.zone.as_ref().map(|zone| zone.as_str().to_owned());
        builder.adapter = adapter;
        builder.pool_size = self.pubsub.pool_size.unwrap_or(DEFAULT_POOL_SIZE);
        check_pool_size(builder.pool_size)?;
        builder.registry = self.registry.clone();
        if let Some(members) = node.expect {
            builder.expect = members;
        }
        if let Some(timeout) = node.drain_timeout {
            builder.drain_timeout = timeout.0;
        }
        if let Some(bytes) = node.max_payload_bytes {
            builder.max_payload_bytes = bytes;
        }
        builder.waiting_bytes = node.waiting_bytes;
        if let Some(bytes) = self.pubsub.topic_bytes {
            builder.topic_bytes = bytes;
        }
        Ok(builder)
    }
}
