//! One process: a real state machine, with what its driver keeps.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use keydispatch_core::links::LinkId;
use keydispatch_core::message::{Address, Frame};
use keydispatch_core::{Cluster, Instant, NodeId, NodeName};

use super::checks::Reader;
use super::event::{ConnectionId, Host, Side};

/// What the network tells a process.
#[derive(Debug)]
pub(crate) enum Input {
    Frame {
        connection: ConnectionId,
        side: Side,
        frame: Frame,
        bytes: usize,
    },
    Closed {
        connection: ConnectionId,
    },
    /// A connection that was accepted has said nothing for as long as a handshake may take.
    HelloDue {
        connection: ConnectionId,
    },
    Dialled {
        address: Address,
        outcome: Dialled,
    },
    Drained {
        link: LinkId,
    },
}

impl Input {
    /// What of it came over the network.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Input::Frame { bytes, .. } => *bytes,
            _ => 0,
        }
    }
}

/// How a dial went.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dialled {
    Connected(ConnectionId),
    Refused,
    TimedOut,
}

/// A link, as the driver knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) connection: ConnectionId,
    pub(crate) side: Side,
    pub(crate) congested: bool,
}

/// See the module.
pub(crate) struct Process {
    pub(crate) name: NodeName,
    pub(crate) host: Host,
    /// None once it has ended.
    pub(crate) cluster: Option<Box<Cluster>>,
    pub(crate) nonce: u64,
    /// Its current life, or its last one.
    pub(crate) life: NodeId,
    /// Its own clock starts here.
    pub(crate) origin: Instant,
    pub(crate) started: Instant,
    pub(crate) links: BTreeMap<LinkId, Wire>,
    /// The other way round; a connection that was accepted has no link before its first frame.
    pub(crate) connections: BTreeMap<ConnectionId, (Side, Option<LinkId>)>,
    pub(crate) last_link: u64,
    pub(crate) inbox: VecDeque<(Instant, Input)>,
    pub(crate) paused: bool,
    /// The last time that it did not run, or ran late.
    pub(crate) hung_at: Option<Instant>,
    /// After a pause: what arrived is taken up before any timer is judged.
    pub(crate) drains_until: Option<Instant>,
    pub(crate) busy_until: Instant,
    /// What handling one input costs it, in microseconds.
    pub(crate) cost_micros: u64,
    pub(crate) wakes_at: Option<Instant>,
    pub(crate) next_sequence: u64,
    /// What it was told about the address of whoever has its name.
    pub(crate) name_taken: bool,
    pub(crate) left: bool,
    /// Its last life, for when it has ended.
    pub(crate) last_id: Option<NodeId>,
    /// When it was killed, on a host that lived on.
    pub(crate) killed_at: Option<Instant>,
    /// The lives that it reported down.
    pub(crate) knew: HashSet<NodeId>,
    /// The lives that it was told have left, and when.
    pub(crate) departed: HashMap<NodeId, Instant>,
    pub(crate) reader: Reader,
    pub(crate) sent_messages: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) taken_bytes: u64,
    /// `sent_messages` when the current second began.
    pub(crate) sent_before: u64,
    /// When it said that it may route.
    pub(crate) synced_at: Option<Instant>,
    /// Timers run at `now` without time going on.
    pub(crate) spins: (Instant, u32),
}

impl Process {
    /// The time on its own clock.
    pub(crate) fn local(&self, now: Instant) -> Instant {
        Instant::ZERO + now.since(self.origin)
    }

    /// A time on its own clock, as the world tells it.
    pub(crate) fn global(&self, local: Instant) -> Instant {
        self.origin + local.since(Instant::ZERO)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.cluster.is_some() && !self.paused
    }
}

/// The address of a host.
pub(crate) fn address(host: Host) -> Address {
    Address::try_new(format!("host{host}:7000")).expect("short and not empty")
}

/// The host at an address.
pub(crate) fn host(address: &Address) -> Host {
    address
        .as_str()
        .trim_start_matches("host")
        .trim_end_matches(":7000")
        .parse()
        .expect("every address in a simulation is made by `address`")
}
