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

#[cfg(any(test, feature = "testkit-certificates"))]
mod authority;
mod backlog;
mod builder;
mod call;
mod claim;
mod codec;
mod complaints;
mod control;
mod data;
mod deadline;
mod discovery;
mod drain;
mod driver;
mod ending;
mod events;
mod fanout;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod join;
mod journal;
mod keyed;
mod mailbox;
mod members;
mod memory;
mod node;
mod protocol;
mod pubsub;
mod reach;
mod registry;
mod runtime;
mod service;
mod settings;
mod supervise;
pub mod tls;
mod transport;

pub use builder::{DEFAULT_START_TIMEOUT, NodeBuilder, StartError};
pub use call::{CallError, CallOptions, CastError, DEFAULT_CALL_TIMEOUT, Replies};
pub use data::DataStats;
pub use discovery::SeedError;
pub use drain::{DEFAULT_DRAIN_TIMEOUT, DrainError, Unfinished};
pub use events::{AllSubscription, RegistryChange, ServiceEvent, Subscription};
pub use handle::{Answer, InstanceHandle, KeyedHandle, ServiceHandle};
pub use keydispatch_core::{
    Accepts, AddError, ClusterName, ClusterStats, Codec, EntryError, Escaped, Explanation,
    FoundOwners, Generation, InstanceName, KEYED_SLOTS, Key, KeyBytes, KeyError, KeyMove, KeyPart,
    MAX_KEY_BYTES, MemberState, NameError, NodeId, NodeName, OwnerStats, Owners, PlanError,
    PlannedChange, Preferred, Reference, Routing, SLOTS, ServiceId, ServiceIdError, ServiceInfo,
    ServiceState, ServiceType, SettingsError, Slot, Spread, Topic, UpdateError, View, Weight, Zone,
    limits, message::Address, placement, settings as config,
};
pub use keyed::{
    Closed, Idle, KeyContext, Keyed, KeyedEvent, KeyedEvents, KeyedOptions, ServedKeyed,
};
pub use mailbox::ReplyTo;
pub use members::{Member, MemberChange, MemberChanges};
pub use node::{Node, NodeStats, StopCause};
pub use protocol::{Message, Protocol};
pub use pubsub::{
    BroadcastError, DEFAULT_TOPIC_BYTES, PubSub, SubscriptionId, TopicEvent, TopicMessage,
    TopicSubscription,
};
pub use reach::AdvertiseError;
pub use registry::{NewService, NoService, Registration, Registry, RegistryError, ServiceUpdate};
pub use service::{
    BoxError, Context, DEFAULT_MAILBOX, Ended, HandleInfo, InfoError, InfoSender, ServeError,
    ServeOptions, Served, Service, StopError, StopReason, Timer,
};
pub use settings::{Adapter, Config, ConfigError, LogLevel, MAX_POOL_SIZE};
pub use supervise::{SuperviseOptions, Supervised, SupervisedEnd};
pub use tls::{TlsError, TlsFiles};
pub use transport::BindError;

/// For the tests of whole clusters, yours among them.
pub mod testkit {
    #[cfg(any(test, feature = "testkit-certificates"))]
    pub use crate::authority::{
        AUTHORITY_LIFETIME, Authority, AuthorityError, Issued, NODE_LIFETIME, Revoked,
    };
    pub use crate::memory::MemoryNetwork;
    #[cfg(feature = "testkit-faults")]
    pub use crate::node::panic_inside;
}
