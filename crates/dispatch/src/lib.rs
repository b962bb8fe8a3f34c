//! A distributed service registry that sends each request to the live service instance that owns its key.
//!
//! Services register under a type on any node; the registry replicates to every node; `find_service(type, key)` answers
//! locally by consistent hashing; a node that goes down takes its services out of the registry everywhere; and a
//! [`Service`], in the shape of a GenServer, is reached by key with `call`, `cast`, `multi_call` and `multi_cast`.
//!
//! ```
//! use keydispatch::{Context, Node, Protocol, ReplyTo, Service};
//!
//! struct Greetings;
//!
//! impl Protocol for Greetings {
//!     const NAME: &'static str = "greeter";
//!     type Call = String;
//!     type Reply = String;
//!     type Cast = ();
//! }
//!
//! struct Greeter;
//!
//! impl Service for Greeter {
//!     type Protocol = Greetings;
//!
//!     async fn handle_call(&mut self, name: String, reply_to: ReplyTo<String>, _: &mut Context<Self>) {
//!         reply_to.reply(format!("hello, {name}"));
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let node = Node::builder("a").bind("127.0.0.1:0").plaintext().start().await?;
//! node.serve(Greeter).await?;
//! let greeters = node.services::<Greetings>();
//! assert_eq!(greeters.call("some key", "you".to_owned()).await?, "hello, you");
//! node.leave().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is logged
//!
//! Nothing is printed; [`tracing`] events say what happens. The target `keydispatch::registry` (levels by
//! [`NodeBuilder::log_level`]): at `error` what stops the node, at `warn` what an operator should look at, at `info`
//! members that come and go (fields `node`, `peer`, `address`), at `debug` services that do. Other targets under
//! `keydispatch` carry what connections say: at `warn` peers that are refused and why, at `debug` connections that end.
//!
//! Calls, handlers, links and nodes have spans, at `debug`; [`trace`] lists them, and says how a trace crosses nodes.

mod backlog;
mod call;
mod claim;
mod codec;
pub mod config;
mod data;
mod deadline;
mod discovery;
mod drain;
mod driver;
mod ending;
mod fanout;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod keyed;
mod log_limit;
mod mutex;
mod node;
mod protocol;
mod pubsub;
mod reach;
mod registry;
mod runtime;
mod service;
pub mod tls;
pub mod trace;
mod transport;
mod watch;

pub use call::{CallError, CallOptions, CastError, DEFAULT_CALL_TIMEOUT, Replies};
#[doc(inline)]
pub use config::{Adapter, Config, ConfigError, LogLevel, MAX_POOL_SIZE};
pub use data::mailbox::StopReason;
pub use data::reply::ReplyTo;
pub use data::stats::DataStats;
pub use data::topics::{
    DEFAULT_TOPIC_BYTES, SubscriptionId, TopicEvent, TopicMessage, TopicSubscription,
};
pub use discovery::SeedError;
pub use drain::DEFAULT_DRAIN_TIMEOUT;
pub use handle::instance::InstanceHandle;
pub use handle::keyed::KeyedHandle;
pub use handle::{Answer, ServiceHandle};
pub use keydispatch_core::{
    Accepts, AddError, ClusterName, ClusterStats, Codec, EntryError, Escaped, Explanation,
    FoundOwners, Generation, InstanceName, KEYED_SLOTS, Key, KeyBytes, KeyError, KeyMove, KeyPart,
    MAX_KEY_BYTES, MemberState, NameError, NodeId, NodeName, OwnerStats, Owners, PlanError,
    PlannedChange, Preferred, Reference, Routing, SLOTS, ServiceId, ServiceIdError, ServiceInfo,
    ServiceState, ServiceType, SettingsError, Slot, Spread, Topic, UpdateError, View, Weight, Zone,
    limits,
    message::{Address, AddressError},
    placement,
};
pub use keyed::context::KeyContext;
pub use keyed::events::{KeyedEvent, KeyedEvents};
pub use keyed::options::KeyedOptions;
pub use keyed::serve::ServedKeyed;
pub use keyed::{Closed, Idle, Keyed};
pub use node::builder::{DEFAULT_START_TIMEOUT, NodeBuilder};
pub use node::leave::{DrainError, Unfinished};
pub use node::plan::StartError;
pub use node::{Node, NodeStats, StopCause};
pub use protocol::{Message, Protocol};
pub use pubsub::{BroadcastError, PubSub};
pub use reach::AdvertiseError;
pub use registry::Registry;
pub use registry::entry::{NewService, NoService, RegistryError, ServiceUpdate};
pub use registry::registration::Registration;
pub use service::context::{Context, Timer};
pub use service::info::{HandleInfo, InfoError, InfoSender};
pub use service::options::ServeOptions;
pub use service::serve::{DEFAULT_MAILBOX, ServeError, Served, StopError};
pub use service::supervisor::{SuperviseOptions, Supervised, SupervisedEnd};
pub use service::{BoxError, Ended, Service};
pub use tls::{TlsError, TlsFiles};
pub use transport::BindError;
pub use watch::members::{Member, MemberChange, MemberChanges};
pub use watch::services::{AllSubscription, RegistryChange, ServiceEvent, Subscription};

/// For the tests of whole clusters, yours among them.
pub mod testkit {
    #[cfg(feature = "testkit-faults")]
    pub use crate::node::panic_inside;
    #[cfg(any(test, feature = "testkit-certificates"))]
    pub use crate::tls::authority::{
        AUTHORITY_LIFETIME, Authority, AuthorityError, Issued, NODE_LIFETIME, Revoked,
    };
    pub use crate::transport::memory::MemoryNetwork;
}
