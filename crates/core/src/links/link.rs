//! A connection to another node, and what is said of it between the links, the driver and membership.

use crate::admission::Credentials;
use crate::frame::Frame;
use crate::id::{Address, Generation, NodeId, NodeName};
use crate::membership::RefusedDial;
use crate::message::{ControlMessage, Hello};
use crate::time::Instant;

/// Names one connection; chosen by the driver, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// How a connection came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This node dialled that address.
    Dialled(Address),
    /// The other side dialled.
    Accepted,
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// The host answered that nobody listens there: whoever did is gone.
    Refused,
    /// No answer, or none that makes sense; says nothing about the node.
    Unreachable(String),
}

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Transmit {
        /// On this connection.
        link: LinkId,
        /// The frame.
        frame: Frame,
    },
    /// Dial an address, and report the outcome.
    Dial {
        /// The address.
        address: Address,
    },
    /// Close a connection once what was sent before is flushed; no report is expected.
    Close {
        /// The connection.
        link: LinkId,
    },
}

/// What the links report to the rest of the state machine.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A link to that node is ready.
    Ready { peer: NodeId, hello: Box<Hello> },
    /// The ready link to that node is gone.
    Lost { peer: NodeId },
    /// The node should be at an address, and a dial there was refused, or somebody else answered.
    DialRefused { peer: NodeId, refusal: RefusedDial },
    /// A message on a ready link.
    Message {
        from: NodeId,
        message: ControlMessage,
    },
    /// A peer says that a node is in a generation that cannot be yet.
    Implausible { from: NodeName, node: NodeId },
    /// The node answered what it was asked on its own link.
    Answered { peer: NodeId },
    /// The peer knows a higher generation of this node's name.
    HigherGeneration { by: NodeId, number: u64 },
    /// A living node has this node's name, and this node is the one to stop.
    NameTaken { by: Option<Address> },
    /// The rival at that address did not answer: it was the ghost of an earlier life.
    Ghost { generation: Generation },
    /// Something an operator should know.
    Warning { about: String, message: String },
}

/// What the links need to know of membership.
pub(crate) trait KnownNames {
    /// The life of that name that is up.
    fn up(&self, name: &NodeName) -> Option<NodeId>;
    /// The highest generation known of that name.
    fn highest(&self, name: &NodeName) -> Option<Generation>;
    /// True for a life that said goodbye.
    fn is_left(&self, node: &NodeId) -> bool;
    /// True for a life that is known from others alone.
    fn is_unconfirmed(&self, _: &NodeId) -> bool {
        false
    }
    /// False for a generation that cannot be yet.
    fn is_plausible(&self, _: Instant, _: Generation) -> bool {
        true
    }
    /// True where the word of a third party ends this node: only without the rule against it.
    fn heeds_refusals(&self) -> bool {
        false
    }
}

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum LinkState {
    /// The other side's Hello is outstanding.
    Greeting,
    /// A node of that name looks alive and is being asked; the Hello is answered after that.
    InQuestion(Box<Hello>),
    /// Messages flow.
    Ready(Box<Hello>),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) origin: Origin,
    pub(super) credentials: Credentials,
    pub(super) state: LinkState,
    pub(super) since: Instant,
}

impl Link {
    pub(super) fn peer(&self) -> Option<&NodeId> {
        match &self.state {
            LinkState::Ready(hello) => Some(&hello.node),
            _ => None,
        }
    }

    pub(super) fn is_dialled(&self) -> bool {
        matches!(self.origin, Origin::Dialled(_))
    }
}
