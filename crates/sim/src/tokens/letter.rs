//! What travels between nodes, and the lanes that it travels on.

use std::collections::VecDeque;

use bytes::Bytes;
use keydispatch_core::{Instant, ServiceId};

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Letter {
    Tokens(Bytes),
    Call {
        number: u64,
        slot: u32,
        to: ServiceId,
    },
    Reply {
        number: u64,
        reply: Reply,
    },
    /// Send me no call any more.
    GoAway,
    /// That was my last one.
    GoneAway,
}

/// What became of a call.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Done,
    Moved(Option<ServiceId>),
    Overloaded,
}

#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) letters: VecDeque<(Instant, Letter)>,
    pub(crate) last: Instant,
    pub(crate) pending: bool,
    pub(crate) breaks_at: Option<Instant>,
    pub(crate) introductions: u32,
}

/// A call that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) caller: usize,
    pub(crate) slot: u32,
    pub(crate) key: u8,
    pub(crate) begun: Instant,
    pub(crate) ran: bool,
    pub(crate) hops: u32,
    /// The process that it was sent to.
    pub(crate) at: Option<usize>,
}
