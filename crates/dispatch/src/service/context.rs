//! Where a service finds itself: messages and timers to itself, and its end.

use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::time::Duration;

use keydispatch_core::ServiceId;
use tokio::time::Instant;

use super::{Protocol, Service, StopReason};
use crate::deadline;

/// Where a service finds itself, and how it sends messages to itself.
pub struct Context<S: Service> {
    pub(super) id: ServiceId,
    pub(super) own: VecDeque<CastOf<S>>,
    timers: BinaryHeap<Due<S>>,
    /// Numbers timers, so that those of one instant fire in order.
    last_timer: u64,
    cancelled: Vec<u64>,
    pub(super) stop: Option<StopReason>,
}

pub(super) type CastOf<S> = <<S as Service>::Protocol as Protocol>::Cast;

/// A timer of a service; see [`Context::cast_after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer(u64);

struct Due<S: Service> {
    at: Instant,
    number: u64,
    message: CastOf<S>,
}

impl<S: Service> PartialEq for Due<S> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<S: Service> Eq for Due<S> {}

impl<S: Service> PartialOrd for Due<S> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<S: Service> Ord for Due<S> {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<S: Service> Context<S> {
    pub(super) fn new(id: ServiceId) -> Self {
        Context {
            id,
            own: VecDeque::new(),
            timers: BinaryHeap::new(),
            last_timer: 0,
            cancelled: Vec::new(),
            stop: None,
        }
    }

    /// This instance.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// Sends a message to this service itself. It is handled after this one, in turn with what waits in the mailbox.
    pub fn cast(&mut self, message: CastOf<S>) {
        self.own.push_back(message);
    }

    /// Sends a message to this service itself after a while, of thirty years at most. Timers end with the service.
    pub fn cast_after(&mut self, after: Duration, message: CastOf<S>) -> Timer {
        self.last_timer += 1;
        self.timers.push(Due {
            at: deadline::after(after),
            number: self.last_timer,
            message,
        });
        Timer(self.last_timer)
    }

    /// Takes a timer back. One that has fired is not undone.
    pub fn cancel(&mut self, timer: Timer) {
        if self.timers.iter().any(|due| due.number == timer.0) {
            self.cancelled.push(timer.0);
        }
    }

    /// Ends the service after this message.
    pub fn stop(&mut self) {
        self.stop.get_or_insert(StopReason::Stopped);
    }

    pub(super) fn next_timer(&mut self) -> Option<Instant> {
        loop {
            let due = self.timers.peek()?;
            let Some(at) = self
                .cancelled
                .iter()
                .position(|number| *number == due.number)
            else {
                return Some(due.at);
            };
            self.cancelled.swap_remove(at);
            self.timers.pop();
        }
    }

    pub(super) fn due(&mut self) -> Option<CastOf<S>> {
        let at = self.next_timer()?;
        if at > Instant::now() {
            return None;
        }
        self.timers.pop().map(|due| due.message)
    }
}

impl<S: Service> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id)
            .field("timers", &self.timers.len())
            .finish_non_exhaustive()
    }
}
