//! `Node`: what it offers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keydispatch_core::message::Address;
use keydispatch_core::{ClusterName, ClusterStats, NodeName};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::data::DataLane;
use crate::data::stats::DataStats;
use crate::driver::command::Command;
use crate::driver::phase::{Fatal, Phase};
use crate::driver::shared::NodeShared;
use crate::handle::ServiceHandle;
use crate::handle::keyed::KeyedHandle;
use crate::handle::ways::Ways;
use crate::keyed::Keyed;
use crate::keyed::options::KeyedOptions;
use crate::keyed::serve::ServedKeyed;
use crate::protocol::Protocol;
use crate::pubsub::PubSub;
use crate::registry::Registry;
use crate::runtime::Kept;
use crate::service::Service;
use crate::service::host::Host;
use crate::service::options::ServeOptions;
use crate::service::serve::{ServeError, Served};
use crate::service::supervisor::{SuperviseOptions, Supervised};
use crate::tls::Tls;
use crate::watch::members::{Member, MemberChanges};

pub(crate) mod builder;
mod join;
pub(crate) mod leave;
pub(crate) mod plan;
mod start;

/// A member of a cluster: serves services, finds and calls those of the others.
///
/// Cheap to clone. When the last clone is dropped the node stops as if its process had died, unless
/// [`permdown_on_shutdown`](crate::NodeBuilder::permdown_on_shutdown) is set: then it says goodbye, as [`leave`](Self::leave) does.
/// Handles and registries taken from it do not keep it alive. Its services run on the tokio runtime that it was started
/// on, and it ends with that; it runs on threads of its own, so that a handler that blocks holds up nothing but its
/// service; see [`own_threads`](crate::NodeBuilder::own_threads).
#[derive(Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

struct NodeInner {
    cluster: ClusterName,
    address: Address,
    shared: Arc<NodeShared>,
    registry: Registry,
    data: DataLane,
    host: Host,
    ways: Ways,
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

impl Drop for NodeInner {
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
    /// Whether this node has the entries of every node that is up, and has had as many members as it
    /// [expects](crate::NodeBuilder::expect). False after a start whose seeds were all silent, until one of them answers; false
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
        crate::service::serve::serve(&self.inner.host, options, service).await
    }

    /// Starts a service that is started again when it panics, under the same instance name: after a pause that doubles,
    /// and at most 3 times in 5 s unless the options say otherwise.
    pub async fn supervise<S: Service>(
        &self,
        options: SuperviseOptions,
        factory: impl FnMut() -> S + Send + 'static,
    ) -> Result<Supervised, ServeError> {
        let host = self.inner.host.clone();
        crate::service::supervisor::supervise(host, options, factory).await
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
        crate::keyed::serve::serve_keyed(
            &self.inner.host,
            &self.inner.data.tokens,
            options,
            service,
        )
        .await
    }

    /// A typed handle to the keys of a [`Keyed`] service, wherever their states are. Cheap to clone.
    pub fn keyed<P: Protocol>(&self) -> KeyedHandle<P> {
        KeyedHandle::new(&self.inner.ways)
    }

    /// A typed handle to the services of a protocol, wherever they run. Cheap to clone.
    pub fn services<P: Protocol>(&self) -> ServiceHandle<P> {
        ServiceHandle::new(&self.inner.ways)
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

    fn data(&self) -> &DataLane {
        &self.inner.data
    }

    fn shut_down(&self) {
        self.inner.shutdown.send_replace(true);
    }

    async fn command(&self, command: Command) -> Option<()> {
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
