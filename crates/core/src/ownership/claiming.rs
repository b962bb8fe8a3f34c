//! What is asked for a slot, of whom, and what they said so far.

use std::collections::BTreeMap;
use std::time::Duration;

use smallvec::SmallVec;

use super::message::Place;
use crate::id::{NodeId, NodeName};
use crate::time::Instant;

/// R13: a question that was not answered is asked again after this long, doubled each time
pub(super) const REPEAT: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(1));
/// and one that was answered by "wait" after this long.
pub(super) const WAIT: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(50));
/// Who said that the slot is coming is reminded after this long: it may have found a better claimant, who went away.
const REMIND: Duration = Duration::from_millis(50);
/// A slot that is claimed.
#[derive(Clone, Debug)]
pub(super) struct Claiming {
    pub(super) round: u64,
    /// R12: its states are here and in doubt; they are not served.
    pub(super) copy: bool,
    /// R2: everybody is asked, not the expected holder alone.
    pub(super) all: bool,
    /// Who owes an answer for this slot in particular. With `all`, the group says who else does.
    pub(super) open: SmallVec<[Open; 1]>,
    /// Who said that it will send the slot.
    pub(super) coming: Option<Place>,
    /// Pieces have come.
    pub(super) begun: bool,
    /// R1: the claim has ended, and the copy waits until this node has looked for the others.
    pub(super) suspended: bool,
}

/// Somebody who is asked for a slot.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) peer: NodeId,
    /// R3: 0 before it was asked.
    pub(super) question: u64,
    pub(super) last: Heard,
    pub(super) next: Instant,
    pub(super) tries: u32,
    pub(super) heard: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Wait,
    Coming,
}

/// The claims of one round, as far as they ask everybody.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) opened: bool,
    pub(super) claims: usize,
    pub(super) asked: BTreeMap<NodeName, Asked>,
    /// The slots are named: not all of them are what the claimant is first for.
    pub(super) named: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) node: NodeId,
    pub(super) question: u64,
    pub(super) done: bool,
    pub(super) named: bool,
    /// It answered that its view is another one.
    pub(super) waits: bool,
    pub(super) next: Instant,
    pub(super) tries: u32,
    pub(super) heard: Instant,
    /// R4: who is only heard of is not waited for longer than membership takes to find it.
    pub(super) until: Option<Instant>,
}

impl Open {
    pub(super) fn new(peer: NodeId, now: Instant) -> Self {
        Open {
            peer,
            question: 0,
            last: Heard::Nothing,
            next: now,
            tries: 0,
            heard: now,
        }
    }

    /// One that has just said this.
    pub(super) fn that_said(peer: NodeId, last: Heard, now: Instant) -> Self {
        let mut open = Open::new(peer, now);
        open.hear(last, now);
        open
    }

    pub(super) fn hear(&mut self, said: Heard, now: Instant) {
        self.heard = now;
        if self.last != said {
            self.last = said;
            self.tries = 0;
        }
        self.next = now + self.pause();
    }

    pub(super) fn pause(&self) -> Duration {
        match self.last {
            Heard::Nothing => doubled(REPEAT, self.tries.saturating_sub(1)),
            Heard::Wait => doubled(WAIT, self.tries),
            Heard::Coming => REMIND,
        }
    }
}

pub(super) fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    (first * (1 << times.min(10))).min(most)
}

impl Claiming {
    pub(super) fn is_settled(&self) -> bool {
        self.all && self.open.is_empty() && !self.suspended
    }
}
