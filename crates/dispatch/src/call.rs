//! What a call can ask for, and how it can fail.

use std::time::Duration;

use keydispatch_core::{NodeName, Routing, ServiceId, Spread};
use serde::{Deserialize, Serialize};

/// How long a call may take unless it says otherwise, as in the Elixir library.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Retries of a handle unless it says otherwise: in percent of its calls, and a second on top.
const DEFAULT_RETRY_BUDGET: (u32, u32) = (20, 10);

/// How a call is made; see [`ServiceHandle::with`](crate::ServiceHandle::with).
///
/// ```
/// use std::time::Duration;
/// use keydispatch::{CallOptions, Spread};
/// let options = CallOptions::new()
///     .timeout(Duration::from_millis(200))
///     .idempotent()
///     .fallback(2)
///     .spread(Spread::Nodes);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct CallOptions {
    pub(crate) timeout: Duration,
    pub(crate) idempotent: bool,
    pub(crate) fallback: usize,
    pub(crate) spread: Spread,
    /// Retries in percent of the calls, and a second on top.
    pub(crate) retry_budget: (u32, u32),
    /// The protocol's, where it is none.
    pub(crate) routing: Option<Routing>,
    pub(crate) zone_first: bool,
    pub(crate) hedges: bool,
    pub(crate) replies: Replies,
}

impl Default for CallOptions {
    fn default() -> Self {
        CallOptions {
            timeout: DEFAULT_CALL_TIMEOUT,
            idempotent: false,
            fallback: 0,
            spread: Spread::None,
            retry_budget: DEFAULT_RETRY_BUDGET,
            routing: None,
            zone_first: false,
            hedges: false,
            replies: Replies::All,
        }
    }
}

impl CallOptions {
    /// Five seconds, no retry, no fallback, owners wherever they are.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the call may take in all, retries and fallbacks included. The deadline travels with the call: one that
    /// has expired is not started.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The call may run more than once: where it is unknown whether it ran, it is made again on whoever owns the key
    /// then, until the timeout or until the [`retry_budget`](Self::retry_budget) is used up.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Where the owner cannot be reached, ask up to so many next owners. Unless the call is
    /// [`idempotent`](Self::idempotent), only where it cannot have run.
    ///
    /// The call does not wait for a connection that does not come about at first, as others do, while there is somebody else
    /// to ask.
    pub fn fallback(mut self, owners: usize) -> Self {
        self.fallback = owners;
        self
    }

    /// How many calls of a handle and its clones may be made again: so many percent of its calls in the last ten seconds, and so
    /// many a second on top; by default 20 % and 10. Beyond that the first failure is returned. Zero and zero turns retries off.
    ///
    /// It bounds retries after [`CallError::Overloaded`], and those of [`idempotent`](Self::idempotent) calls that may have
    /// run: what makes an overload worse. A call that has not run because its instance ended, or takes nothing new, is sent to
    /// the next owner all the same.
    pub fn retry_budget(mut self, percent: u32, per_second: u32) -> Self {
        self.retry_budget = (percent, per_second);
        self
    }

    /// How calls are routed, instead of what the protocol says ([`Protocol::ROUTING`](crate::Protocol::ROUTING)). Casts always go
    /// to the owner.
    ///
    /// With [`Routing::Bounded`] a call may go to the next owners of its key where the first has too many. A refusal comes before
    /// anything runs, and is a retry in the sense of [`retry_budget`](Self::retry_budget): where that is used up, calls go by
    /// what their owners told. A call that none of the owners takes as it should goes on as any other.
    pub fn routing(mut self, routing: Routing) -> Self {
        self.routing = Some(routing);
        self
    }

    /// With [`Routing::Bounded`]: owners in this node's zone come before the others of the first owners. Each zone then has a
    /// first owner of its own for each key.
    pub fn zone_first(mut self) -> Self {
        self.zone_first = true;
        self
    }

    /// A call that is [`idempotent`](Self::idempotent), and takes longer than 95 of 100 did of late, is made on the next owner,
    /// too, inside the [`retry_budget`](Self::retry_budget): the first reply counts, and the other call is cancelled. Without
    /// effect for calls that are not idempotent, and for the first hundred calls of a handle and its clones.
    pub fn hedge(mut self) -> Self {
        self.hedges = true;
        self
    }

    /// Which replies [`multi_call`](crate::ServiceHandle::multi_call) waits for; by default all.
    pub fn replies(mut self, replies: Replies) -> Self {
        self.replies = replies;
        self
    }

    /// No two of the owners that are asked share a node, or a zone.
    pub fn spread(mut self, spread: Spread) -> Self {
        self.spread = spread;
        self
    }
}

/// Which replies of a call to several instances are waited for. Once these are there, the other calls are cancelled: those that
/// were not started yet will not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replies {
    /// All.
    #[default]
    All,
    /// The first.
    First,
    /// The first so many; zero counts as one.
    FirstK(usize),
    /// More than half of as many as were asked for, whether or not there are so many instances.
    Quorum,
}

impl Replies {
    /// How many replies are enough where `n` instances were asked for; none where all are waited for.
    pub(crate) fn enough(self, n: usize) -> Option<usize> {
        match self {
            Replies::All => None,
            Replies::First => Some(1),
            Replies::FirstK(k) => Some(k.max(1)),
            Replies::Quorum => Some(n / 2 + 1),
        }
    }
}

/// Why a call, a cast or a broadcast to one node failed. [`may_have_run`](Self::may_have_run) says what is known of the
/// other side.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nothing is online under that type. It did not run.
    #[error("no service for key: no instance of {service_type:?} is online")]
    NoService {
        /// The type.
        service_type: String,
    },
    /// That instance is not in the registry (any more). It did not run.
    #[error("the service {id} is not in the registry: it has ended, or its node is down")]
    NoInstance {
        /// The instance.
        id: ServiceId,
    },
    /// The service's own handler made the call, and would have waited for itself until the timeout. It did not run.
    #[error(
        "the service {id} was called by its own handler, which would wait for itself: cast, or call from a task of its own"
    )]
    CallsItself {
        /// The service.
        id: ServiceId,
    },
    /// This node has left, or stopped: nothing can be called through it any more. It did not run.
    #[error("not sent: this node has stopped")]
    NodeStopped,
    /// No connection to the node came about: within the call's time, or within three seconds of dials that failed, after which
    /// calls fail at once; or the connection is silent, and suspended. It did not run.
    #[error("not sent to {node}: {why}")]
    NotSent {
        /// The node.
        node: NodeName,
        /// What is wrong.
        why: String,
    },
    /// A queue on the way, or the mailbox, is full. It did not run.
    #[error("not sent to {node}: a queue is full; try again later, or ask for less")]
    Overloaded {
        /// Where.
        node: NodeName,
    },
    /// The connection broke or was silent for a second, or the node went down, after sending. It may have run.
    #[error(
        "the connection to {node} broke or fell silent before the reply came: the call may have run"
    )]
    Disconnected {
        /// The node.
        node: NodeName,
    },
    /// No reply in time. It may have run.
    #[error("no reply within {after:?}: the call may have run")]
    Timeout {
        /// The time that the call had.
        after: Duration,
    },
    /// The service ended, by itself or by a panic, while it had the call. It may have run.
    #[error("the service stopped before it replied: the call may have run")]
    Stopped,
    /// The service ended, or takes nothing new any more, before it was the call's turn. It did not run.
    #[error("the service on {node} ended before it was the call's turn: the call did not run")]
    Gone {
        /// Where it was.
        node: NodeName,
    },
    /// The key's state was on its way from one instance to another until the call's time was over. It did not run.
    #[error(
        "the state of the key was on its way until the call's time was over, last seen from {node}: it did not run"
    )]
    Moved {
        /// Who did not have it.
        node: NodeName,
    },
    /// The key has no state that the message could be handed to: it could not be opened, or not be read. It did not run.
    #[error("the key has no state to be called with: {cause}")]
    NoState {
        /// Why.
        cause: String,
    },
    /// The services of that type have a state for each key, and this handle sends no keys; or the other way round. It did not
    /// run.
    #[error("{}", wrong_handle(service_type, *keyed))]
    WrongHandle {
        /// The type.
        service_type: String,
        /// True where the services have a state for each key.
        keyed: bool,
    },
    /// The handler dropped the chance to reply. It ran.
    #[error("the service did not reply to the call")]
    NoReply,
    /// No instance takes messages of this version in this codec, or this one does not. It did not run.
    #[error("{}", incompatible(*ours, *theirs))]
    Incompatible {
        /// The caller's version.
        ours: u32,
        /// The service's version; 0 for an external endpoint, or for other messages or another codec of the same version.
        theirs: u32,
    },
    /// The service could not decode the message, so it did not run; or the caller could not decode the reply.
    #[error("a message does not decode: {cause}")]
    Decode {
        /// What the decoder said.
        cause: String,
        /// True for the reply.
        reply: bool,
    },
    /// The message could not be encoded. It did not run.
    #[error("the message cannot be encoded: {cause}")]
    Encode {
        /// What the encoder said.
        cause: String,
    },
    /// The message is larger than `max_payload_bytes` of this node or of the other, so it did not run; or its reply was.
    #[error("a message is over the limit of {limit} bytes (max_payload_bytes)")]
    TooLarge {
        /// The smaller limit of the two, in bytes.
        limit: usize,
        /// True for the reply.
        reply: bool,
    },
}

keydispatch_core::debug_as_display!(CallError);

fn wrong_handle(service_type: &str, keyed: bool) -> String {
    if keyed {
        format!(
            "the services of {service_type} have a state for each key: call them by Node::keyed"
        )
    } else {
        format!(
            "the services of {service_type} have no state for each key: call them by Node::services"
        )
    }
}

fn incompatible(ours: u32, theirs: u32) -> String {
    if theirs == 0 {
        return format!(
            "the service takes no messages of this protocol's version {ours} as this caller encodes them: it is an external \
             endpoint, or has another codec or other types; use the same Protocol on both sides"
        );
    }
    format!(
        "the service speaks version {theirs} of its protocol, this caller version {ours}: run the same version on both, or \
         let the service accept both (Protocol::ACCEPTS)"
    )
}

impl CallError {
    /// The name of the variant, as metrics and spans have it: `no_service`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            CallError::NoService { .. } => "no_service",
            CallError::NoInstance { .. } => "no_instance",
            CallError::CallsItself { .. } => "calls_itself",
            CallError::NodeStopped => "node_stopped",
            CallError::NotSent { .. } => "not_sent",
            CallError::Overloaded { .. } => "overloaded",
            CallError::Disconnected { .. } => "disconnected",
            CallError::Timeout { .. } => "timeout",
            CallError::Stopped => "stopped",
            CallError::Gone { .. } => "gone",
            CallError::Moved { .. } => "moved",
            CallError::NoState { .. } => "no_state",
            CallError::WrongHandle { .. } => "wrong_handle",
            CallError::NoReply => "no_reply",
            CallError::Incompatible { .. } => "incompatible",
            CallError::Decode { .. } => "decode",
            CallError::Encode { .. } => "encode",
            CallError::TooLarge { .. } => "too_large",
        }
    }

    /// Whether the request may have run. False says that it has not, and will not.
    pub fn may_have_run(&self) -> bool {
        match self {
            CallError::NoService { .. }
            | CallError::NoInstance { .. }
            | CallError::CallsItself { .. }
            | CallError::NodeStopped
            | CallError::NotSent { .. }
            | CallError::Overloaded { .. }
            | CallError::Gone { .. }
            | CallError::Moved { .. }
            | CallError::NoState { .. }
            | CallError::WrongHandle { .. }
            | CallError::Incompatible { .. }
            | CallError::Encode { .. } => false,
            CallError::Decode { reply, .. } | CallError::TooLarge { reply, .. } => *reply,
            CallError::Disconnected { .. }
            | CallError::Timeout { .. }
            | CallError::Stopped
            | CallError::NoReply => true,
        }
    }

    /// True where another instance may well take the same call.
    pub(crate) fn goes_elsewhere(&self) -> bool {
        self.is_passing() || matches!(self, CallError::Incompatible { .. })
    }

    /// True where the same call may succeed later, or elsewhere.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            CallError::NoService { .. }
                | CallError::NotSent { .. }
                | CallError::Overloaded { .. }
                | CallError::Gone { .. }
                | CallError::Disconnected { .. }
                | CallError::Stopped
        )
    }
}

/// A call or a cast that did not get out.
#[derive(Debug)]
pub(crate) struct Unsent {
    pub(crate) error: CallError,
    /// True where views and connections are about to agree again: a node comes, goes, or takes nothing new.
    pub(crate) settling: bool,
}

impl From<CallError> for Unsent {
    fn from(error: CallError) -> Self {
        Unsent {
            error,
            settling: false,
        }
    }
}

/// A message that was not sent, given back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct CastError<M> {
    /// Why.
    pub error: CallError,
    /// The message.
    pub message: M,
}

keydispatch_core::debug_as_display!(CastError<M>);

/// How a remote service failed a call, as it travels. New variants go to the end: a peer that does not know one reads it as
/// a call that may have run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Stopped,
    NoReply,
    Overloaded,
    Incompatible {
        theirs: u32,
    },
    Decode {
        cause: String,
    },
    ReplyTooLarge {
        limit: u64,
    },
    ReplyEncode {
        cause: String,
    },
    Expired,
    /// The service ended, or was not there any more, before it was the call's turn.
    Gone,
    /// The key's state is not there: it is at that instance, or on its way to it, as far as is known.
    Moved {
        to: Option<ServiceId>,
    },
    /// There is no state to hand the message to.
    NoState {
        cause: String,
    },
}

impl Failure {
    /// As the caller sees it.
    pub(crate) fn into_error(self, ours: u32, node: &NodeName) -> CallError {
        match self {
            Failure::Stopped => CallError::Stopped,
            Failure::Gone => CallError::Gone { node: node.clone() },
            Failure::NoReply => CallError::NoReply,
            Failure::Overloaded => CallError::Overloaded { node: node.clone() },
            Failure::Incompatible { theirs } => CallError::Incompatible { ours, theirs },
            Failure::Decode { cause } => CallError::Decode {
                cause,
                reply: false,
            },
            Failure::ReplyTooLarge { limit } => CallError::TooLarge {
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
                reply: true,
            },
            Failure::ReplyEncode { cause } => CallError::Decode { cause, reply: true },
            Failure::Moved { .. } => CallError::Moved { node: node.clone() },
            Failure::NoState { cause } => CallError::NoState { cause },
            Failure::Expired => CallError::NotSent {
                node: node.clone(),
                why: "its time was over before it was started".to_owned(),
            },
        }
    }

    /// Bytes that are kept of a cause where all of it is too long to travel.
    const CAUSE_BYTES: usize = 400;

    /// The same with less to read.
    pub(crate) fn shortened(&self) -> Failure {
        let cut = |cause: &str| cause[..cause.floor_char_boundary(Self::CAUSE_BYTES)].to_owned();
        match self {
            Failure::Decode { cause } => Failure::Decode { cause: cut(cause) },
            Failure::ReplyEncode { cause } => Failure::ReplyEncode { cause: cut(cause) },
            Failure::NoState { cause } => Failure::NoState { cause: cut(cause) },
            other => other.clone(),
        }
    }
}
