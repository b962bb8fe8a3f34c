//! Which service a thread is at work for: known to what its handler calls, and to whoever watches the threads.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use keydispatch_core::ServiceId;

use crate::mutex::Mutex;

/// The sequence number of no service: those of services start at 1.
const NOBODY: u64 = 0;

/// Every thread that has been at work for a service, of all nodes in this process.
static THREADS: Mutex<Vec<Weak<ThreadWork>>> = Mutex::new(Vec::new());

thread_local! {
    static WORK: Arc<ThreadWork> = ThreadWork::register();
}

/// A service of this process: its node, as the nonce that the node was started with, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) nonce: u64,
    pub(crate) sequence: u64,
}

impl Current {
    pub(crate) fn of(id: &ServiceId) -> Self {
        Current {
            nonce: id.nonce,
            sequence: id.sequence,
        }
    }
}

/// What one thread is at work for. Written by that thread alone.
#[derive(Debug)]
struct ThreadWork {
    /// Grows with every beginning and every end.
    turn: AtomicU64,
    nonce: AtomicU64,
    sequence: AtomicU64,
}

impl ThreadWork {
    fn register() -> Arc<Self> {
        let work = Arc::new(ThreadWork {
            turn: AtomicU64::new(0),
            nonce: AtomicU64::new(0),
            sequence: AtomicU64::new(NOBODY),
        });
        let mut threads = THREADS.lock();
        threads.retain(|thread| thread.strong_count() > 0);
        threads.push(Arc::downgrade(&work));
        work
    }

    fn current(&self) -> Option<Current> {
        let sequence = self.sequence.load(Ordering::Relaxed);
        (sequence != NOBODY).then(|| Current {
            nonce: self.nonce.load(Ordering::Relaxed),
            sequence,
        })
    }

    /// Sets what it is at work for, and returns what it was.
    fn set(&self, current: Option<Current>) -> Option<Current> {
        let before = self.current();
        let to = current.unwrap_or(Current {
            nonce: 0,
            sequence: NOBODY,
        });
        self.nonce.store(to.nonce, Ordering::Relaxed);
        self.sequence.store(to.sequence, Ordering::Relaxed);
        let turn = self.turn.load(Ordering::Relaxed) + 1;
        self.turn.store(turn, Ordering::Release);
        before
    }
}

/// The service whose own code runs right now, in this task: its handler, `started`, `stopped`, or what one of these awaits.
/// Tasks that it has spawned are not it.
pub(crate) fn current() -> Option<Current> {
    // On a thread that is ending there is none.
    WORK.try_with(|work| work.current()).ok().flatten()
}

/// True where that service would wait for itself.
pub(crate) fn is(id: &ServiceId) -> bool {
    current() == Some(Current::of(id))
}

/// A thread that is at work for a service, in one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Tells threads apart.
    pub(super) thread: usize,
    /// Another one each time: two looks that see the same saw one poll that lasted.
    pub(super) turn: u64,
    pub(super) sequence: u64,
}

/// The threads that are at work for services of that node right now.
pub(super) fn at_work(nonce: u64) -> Vec<Seen> {
    let threads = THREADS.lock();
    let threads = threads.iter().filter_map(Weak::upgrade);
    threads
        .filter_map(|work| {
            let turn = work.turn.load(Ordering::Acquire);
            let current = work.current()?;
            // Read again: it may have gone on between.
            let same = work.turn.load(Ordering::Acquire) == turn;
            (same && current.nonce == nonce).then(|| Seen {
                thread: Arc::as_ptr(&work).addr(),
                turn,
                sequence: current.sequence,
            })
        })
        .collect()
}

/// Runs what a service does, known as [`current`] meanwhile.
pub(super) fn turns<T>(
    service: Current,
    ended: Arc<AtomicBool>,
    task: impl Future<Output = T> + Send,
) -> impl Future<Output = T> + Send {
    let mut running = InTurns {
        _ended: SetWhenDropped(ended),
        task: Box::pin(task),
    };
    poll_fn(move |cx| {
        let running = &mut running;
        let _turn = HandlerTurn::begin(service);
        running.task.as_mut().poll(cx)
    })
}

/// The same of one of the keys of a service, whose end is not that of the service.
pub(crate) fn turns_of<T>(
    service: Current,
    task: impl Future<Output = T> + Send,
) -> impl Future<Output = T> + Send {
    let mut task = Box::pin(task);
    poll_fn(move |cx| {
        let _turn = HandlerTurn::begin(service);
        task.as_mut().poll(cx)
    })
}

/// The fields are dropped in this order: where a runtime ends, its tasks are dropped as they are, and a handler that is
/// dropped with its chance to reply has not chosen not to.
struct InTurns<F> {
    _ended: SetWhenDropped,
    task: Pin<Box<F>>,
}

struct SetWhenDropped(Arc<AtomicBool>);

impl Drop for SetWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One poll. Ends when dropped, so that a panic ends it, too.
struct HandlerTurn {
    before: Option<Current>,
}

impl HandlerTurn {
    fn begin(service: Current) -> Self {
        let before = WORK.try_with(|work| work.set(Some(service)));
        HandlerTurn {
            before: before.ok().flatten(),
        }
    }
}

impl Drop for HandlerTurn {
    fn drop(&mut self) {
        let _ = WORK.try_with(|work| work.set(self.before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Current = Current {
        nonce: 7,
        sequence: 1,
    };

    #[tokio::test]
    async fn a_service_is_current_in_its_own_task_between_waits_and_after_them_alone() {
        assert_eq!(current(), None);
        let seen = turns(ONE, Arc::default(), async {
            let before = current();
            tokio::task::yield_now().await;
            let spawned = tokio::spawn(async { current() }).await.unwrap();
            (before, current(), spawned)
        });
        assert_eq!(seen.await, (Some(ONE), Some(ONE), None));
        assert_eq!(current(), None);
    }

    #[tokio::test]
    async fn a_panic_ends_the_turn() {
        let task = tokio::spawn(turns(ONE, Arc::default(), async { panic!("told to") }));
        assert!(task.await.unwrap_err().is_panic());
        // The runtime of a test has one thread.
        assert_eq!(current(), None);
    }
}
