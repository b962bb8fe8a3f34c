//! What a node is started from, checked; and why one does not start.

use std::time::Duration;

use keydispatch_core::message::Address;
use keydispatch_core::{ClusterName, NameError, NodeName, Settings, Zone};

use crate::config::{ConfigError, LogLevel};
use crate::discovery::{Seed, SeedError};
use crate::reach::AdvertiseError;
use crate::tls::{TlsError, TlsFiles};
use crate::transport::memory::MemoryNetwork;

/// Why a node did not start.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is wrong or missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A seed is no address.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The others cannot reach this node at the advertised address, or none is known that they could.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be bound.
    #[error(transparent)]
    Bind(#[from] crate::transport::BindError),
    /// A living node of the cluster has the name.
    #[error(
        "the node name {name} is taken by a living node{}: choose another name, or stop that node first",
        by.as_ref().map(|by| format!(" at {by}")).unwrap_or_default()
    )]
    NameTaken {
        /// The name.
        name: NodeName,
        /// Where the other is reached, where that is known.
        by: Option<Address>,
    },
    /// These nodes are up, and their entries did not arrive in time: this node would route from a partial view.
    #[error(
        "not synced after {waited:?}: the entries of {} are missing",
        list(missing)
    )]
    NotSynced {
        /// How long was waited.
        waited: Duration,
        /// The owners whose entries are missing.
        missing: Vec<NodeName>,
    },
    /// Fewer nodes came than were expected.
    #[error(
        "{present} of the {expected} nodes that are expected (node.expect) are here after {waited:?}, this one included: \
         start the others, or expect fewer"
    )]
    TooFew {
        /// How many were expected, this one included.
        expected: usize,
        /// How many were there, this one included.
        present: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// The operating system gave no threads for the node.
    #[error("no threads for the node: {0}; raise the limit of threads or processes")]
    Threads(#[source] std::io::Error),
    /// The node stopped while it was starting.
    #[error("the node stopped while it was starting")]
    Stopped,
}

keydispatch_core::debug_as_display!(StartError);

fn list(names: &[NodeName]) -> String {
    names
        .iter()
        .map(NodeName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What carries the frames between the nodes.
#[derive(Clone, Debug)]
pub(crate) enum TransportKind {
    /// TCP with TLS by these files.
    Tls(TlsFiles),
    /// TCP without encryption, by explicit choice.
    Plaintext,
    /// In this process.
    Memory(MemoryNetwork),
}

/// A description whose parts were all checked.
pub(crate) struct NodePlan {
    pub(crate) name: NodeName,
    pub(crate) cluster: ClusterName,
    pub(crate) bind: String,
    pub(crate) advertise: Option<Address>,
    pub(crate) dial_link_local: bool,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) zone: Option<Zone>,
    /// None for the adapter `local`.
    pub(crate) network: Option<TransportKind>,
    pub(crate) pool_size: usize,
    pub(crate) settings: Settings,
    pub(crate) log_level: LogLevel,
    pub(crate) max_payload_bytes: usize,
    pub(crate) checks_messages: bool,
    pub(crate) topic_bytes: usize,
    pub(crate) waiting_bytes: usize,
    pub(crate) start_timeout: Duration,
    pub(crate) expect: usize,
    pub(crate) drain_timeout: Duration,
    pub(crate) own_threads: bool,
    pub(crate) clock_behind: Duration,
}

impl NodePlan {
    /// True where what is said between hosts can be read on the way.
    pub(crate) fn is_plaintext(&self) -> bool {
        matches!(self.network, Some(TransportKind::Plaintext))
    }

    /// False where addresses are no host names: in memory, or without a network.
    pub(crate) fn resolves_names(&self) -> bool {
        matches!(
            self.network,
            Some(TransportKind::Tls(_) | TransportKind::Plaintext)
        )
    }
}
