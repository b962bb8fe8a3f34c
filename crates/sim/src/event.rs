//! What is going to happen, and the words of the network that it is said in.

use keydispatch_core::links::LinkId;
use keydispatch_core::{Instant, NodeName};

use super::tokens::TokenEvent;

/// A machine with an address; at most one process listens there.
pub(crate) type Host = usize;

/// One connection; never reused.
pub(crate) type ConnectionId = usize;

/// The side of a connection: 0 dialled, 1 accepted.
pub(crate) type Side = usize;

/// What is going to happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// The first thing in the pipe of that side comes to the other host.
    Arrive {
        connection: ConnectionId,
        side: Side,
    },
    /// The kernel of that side tries again to get bytes through.
    Retry {
        connection: ConnectionId,
        side: Side,
    },
    /// That side learns that the connection is gone.
    Reset {
        connection: ConnectionId,
        side: Side,
    },
    /// A link's queue is short again.
    Drained { process: usize, link: LinkId },
    /// A process has something to do.
    Wake { process: usize },
    /// A packet that asks for a connection arrives.
    Knock {
        process: usize,
        host: Host,
        since: Instant,
    },
    /// A dial ends.
    Dialled {
        process: usize,
        host: Host,
        /// Who accepted it; nobody where it failed.
        acceptor: Option<usize>,
        refused: bool,
    },
    /// The Hello of who dialled should have come by now.
    HelloDue {
        acceptor: usize,
        connection: ConnectionId,
    },
    /// The next fault.
    Fault,
    /// A fault ends.
    Undo(Undo),
    /// The next change of the workload.
    Work,
    /// A process calls another one.
    Calls { process: usize },
    /// A call, or a reply, may have arrived.
    Cross(Crossing),
    /// The liar says something.
    Lie,
    /// Something of ownership that moves with its states.
    Tokens(TokenEvent),
    /// Once a second.
    Look,
}

/// The end of a fault.
#[derive(Debug)]
pub(crate) enum Undo {
    /// Directions that are open again.
    Cut(Vec<(Host, Host)>),
    /// The process goes on.
    Pause(usize),
    /// The process is as fast as before.
    Slow(usize),
    /// The network is as fast as before.
    Congestion,
    /// A process of that name starts.
    Down { name: NodeName, host: Host },
    /// The next process of a rolling restart is killed.
    Roll(Vec<NodeName>),
}

/// Something small on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crossing {
    pub(crate) caller: usize,
    pub(crate) link: u64,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Call,
    Ping,
    Reply,
    Pong,
}
