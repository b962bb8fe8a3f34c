//! The connections that peers have open to this node, and how they run empty where it goes away in good order.
//!
//! On each connection that a peer opened, this node says `GO_AWAY`: send me nothing new. The peer answers `GONE_AWAY` behind
//! its last frame, and closes the connection once it has every reply that it waits for. What arrives until then is taken.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::caller::Caller;
use super::places::Places;
use super::wire::{self, kind};
use crate::deadline::done_by;
use crate::mutex::Mutex;

/// How long a peer that does not know `GO_AWAY` has for what it has sent already.
const OLD_PEER: Duration = Duration::from_millis(200);

/// How long a connection that is closed with something unanswered may flush what is answered.
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);

/// The connections that peers have open to this node.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    state: Mutex<CallersState>,
    /// Which of them ends another.
    pub(super) places: Places,
}

#[derive(Debug, Default)]
struct CallersState {
    open: HashMap<u64, Arc<Caller>>,
    last: u64,
    /// This node goes away: a new connection is told so first of all.
    turned_away: bool,
    /// Connections whose Hello is about to be answered.
    greeted: usize,
    /// Every peer has sent its last: whoever opens a connection now is refused.
    refusing: bool,
    last_fence: u64,
}

/// One connection of a peer, as long as it is open.
pub(super) struct AdmittedCaller {
    callers: Arc<Callers>,
    number: u64,
}

impl Drop for AdmittedCaller {
    fn drop(&mut self) {
        let mut callers = self.callers.lock();
        callers.open.remove(&self.number);
    }
}

/// A connection whose Hello is about to be answered, until it is among the callers.
///
/// Rule: nobody has its Hello answered and is then forgotten. It may have sent a call right behind the answer, which would
/// look like one that was lost on the way and may have run.
pub(crate) struct Greeted(Arc<Callers>);

impl Drop for Greeted {
    fn drop(&mut self) {
        let mut callers = self.0.lock();
        callers.greeted -= 1;
    }
}

impl Callers {
    fn lock(&self) -> MutexGuard<'_, CallersState> {
        self.state.lock()
    }

    /// A peer has said Hello; none where it is too late for that.
    pub(crate) fn greet(self: &Arc<Self>) -> Option<Greeted> {
        let mut callers = self.lock();
        if callers.refusing {
            return None;
        }
        callers.greeted += 1;
        Some(Greeted(Arc::clone(self)))
    }

    /// A peer has opened a connection.
    pub(super) fn admit(self: &Arc<Self>, caller: &Arc<Caller>) -> AdmittedCaller {
        let mut callers = self.lock();
        callers.last += 1;
        let number = callers.last;
        callers.open.insert(number, Arc::clone(caller));
        if callers.turned_away {
            caller.push(wire::empty(kind::GO_AWAY));
        }
        AdmittedCaller {
            callers: Arc::clone(self),
            number,
        }
    }

    /// Tells every peer to send nothing new on the connections that it opened, and whoever opens one from now on.
    pub(crate) fn turn_away(&self) {
        let mut callers = self.lock();
        callers.turned_away = true;
        for caller in callers.open.values() {
            caller.push(wire::empty(kind::GO_AWAY));
        }
    }

    /// Waits until every peer has sent its last frame, and refuses new connections from then on; false where time is up
    /// before.
    pub(crate) async fn heard_the_last(&self, until: Instant) -> bool {
        let old = self.open_callers(|caller| caller.is_old()) > 0;
        let heard = done_by(until, || {
            let mut callers = self.lock();
            let has_more = |caller: &Arc<Caller>| !caller.is_old() && !caller.has_gone();
            callers.refusing = callers.greeted == 0 && !callers.open.values().any(has_more);
            callers.refusing
        });
        let heard = heard.await;
        self.lock().refusing = true;
        if old {
            // Nobody says when it has sent its last.
            tokio::time::sleep_until(until.min(Instant::now() + OLD_PEER)).await;
        }
        heard
    }

    /// Waits until every peer has its replies; returns how many connections still wait for some when time is up.
    pub(crate) async fn all_answered(&self, until: Instant) -> usize {
        let waiting = || self.open_callers(|caller| !caller.is_old());
        done_by(until, || waiting() == 0).await;
        let left = waiting();
        self.for_each_caller(|caller| caller.finish());
        let until = Instant::now() + FINISH_TIMEOUT;
        done_by(until, || self.open_callers(|_| true) == 0).await;
        left
    }

    /// Waits until whatever peers have sent so far has arrived here; false where time is up before.
    pub(crate) async fn fence(&self, until: Instant) -> bool {
        let fence = {
            let mut callers = self.lock();
            callers.last_fence += 1;
            callers.last_fence
        };
        let mut asked = Vec::new();
        self.for_each_caller(|caller| {
            if !caller.is_old() && !caller.has_gone() {
                caller.push(wire::number_only(kind::FENCE, fence));
                asked.push(Arc::clone(caller));
            }
        });
        done_by(until, || {
            asked.retain(|caller| !caller.has_passed(fence) && !caller.is_closed());
            asked.is_empty()
        })
        .await
    }

    fn open_callers(&self, which: impl Fn(&Caller) -> bool) -> usize {
        let mut count = 0;
        self.for_each_caller(|caller| count += usize::from(which(caller)));
        count
    }

    fn for_each_caller(&self, mut look: impl FnMut(&Arc<Caller>)) {
        let callers = self.lock();
        callers.open.values().for_each(&mut look);
    }
}
