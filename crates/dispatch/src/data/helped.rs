//! Tasks of the data lane run beside the services: a call costs no change of threads. Where the services hold their
//! threads, the node's own go on with these tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::mutex::Mutex;
use crate::runtime::Runtimes;
use crate::transport::socket;

/// How often the node's threads look whether the services' run these tasks: far more often than a peer asks for a sign of
/// life, and seldom enough to cost an idle node nothing that is seen.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often they go on with a task while the services' threads are held.
const HELP_EVERY: Duration = Duration::from_millis(10);

type BoxedWork = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One task, polled by whoever has it.
struct Task {
    /// None once it has ended.
    work: Mutex<Option<BoxedWork>>,
    /// Of the task on the services' runtime.
    waker: OnceLock<Waker>,
    /// True from when it was woken until that runtime polls it.
    due: AtomicBool,
    /// How often that runtime has polled it.
    polls: AtomicU64,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.due.store(true, Ordering::Release);
        self.wake_services();
    }
}

impl Task {
    fn wake_services(&self) {
        // Until there is one it waits for its first poll, which comes anyway.
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// On the services' runtime.
    fn poll(&self, cx: &Context<'_>, waker: &Waker) -> Poll<()> {
        self.waker.get_or_init(|| cx.waker().clone());
        let polls = self.polls.load(Ordering::Relaxed) + 1;
        self.polls.store(polls, Ordering::Relaxed);
        self.due.store(false, Ordering::Release);
        let Some(mut work) = self.work.try_lock() else {
            // Whoever helps wakes this task when done.
            return Poll::Pending;
        };
        let Some(running) = work.as_mut() else {
            return Poll::Ready(());
        };
        let ended = running.as_mut().poll(&mut Context::from_waker(waker));
        if ended.is_ready() {
            *work = None;
        }
        ended
    }

    /// On the node's own threads.
    fn help(self: &Arc<Self>) {
        let Some(mut work) = self.work.try_lock() else {
            // It is being polled.
            return;
        };
        if let Some(running) = work.as_mut() {
            let waker = Waker::from(Arc::clone(self));
            let mut cx = Context::from_waker(&waker);
            let polling = || socket::unattended(|| running.as_mut().poll(&mut cx));
            let ended = catch_unwind(AssertUnwindSafe(polling));
            match ended {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) => *work = None,
                // Whoever owns it has said so.
                Err(_) => *work = None,
            }
        }
        drop(work);
        self.wake_services();
    }

    fn end(&self) {
        let work = self.work.lock().take();
        // Outside the lock: it may wake others, this task among them.
        drop(work);
    }
}

/// Ends a task, and with it the wakers that keep it in memory, however its polling ends.
struct EndWhenDropped(Arc<Task>);

impl Drop for EndWhenDropped {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A task as it was found at the last look.
struct Looked {
    task: Weak<Task>,
    polls: u64,
    due: bool,
}

/// See the module.
pub(super) struct Helper {
    runtimes: Runtimes,
    tasks: Mutex<Vec<Looked>>,
}

impl Helper {
    pub(super) fn new(runtimes: Runtimes) -> Arc<Self> {
        Arc::new(Helper {
            runtimes,
            tasks: Mutex::default(),
        })
    }

    /// Runs a task beside the services.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if !self.runtimes.are_two() {
            self.runtimes.spawn_service(work);
            return;
        }
        let task = Arc::new(Task {
            work: Mutex::new(Some(Box::pin(work))),
            waker: OnceLock::new(),
            due: AtomicBool::new(true),
            polls: AtomicU64::new(0),
        });
        self.tasks().push(Looked {
            task: Arc::downgrade(&task),
            polls: 0,
            due: false,
        });
        let waker = Waker::from(Arc::clone(&task));
        let running = EndWhenDropped(task);
        self.runtimes
            .spawn_service(std::future::poll_fn(move |cx| running.0.poll(cx, &waker)));
    }

    /// Runs on the node's own threads, as long as the node.
    pub(super) async fn watch(self: Arc<Self>) {
        let answered = Arc::new(AtomicU64::new(0));
        let mut asked = 0;
        let mut held = false;
        loop {
            tokio::time::sleep(if held { HELP_EVERY } else { LOOK_EVERY }).await;
            // Where all threads are held nobody looks at the sockets, and so no task is ever woken.
            held = answered.load(Ordering::Acquire) != asked;
            let tasks = self.look(held);
            if !held && !self.tasks().is_empty() {
                asked += 1;
                let (answered, asked) = (Arc::clone(&answered), asked);
                self.runtimes
                    .spawn_service(async move { answered.store(asked, Ordering::Release) });
            }
            for task in tasks {
                task.help();
            }
        }
    }

    /// The tasks that need help: all of them, or those that are due and were not polled since the last look.
    fn look(&self, all: bool) -> Vec<Arc<Task>> {
        let mut stuck = Vec::new();
        self.tasks().retain_mut(|looked| {
            let Some(task) = looked.task.upgrade() else {
                return false;
            };
            let (polls, due) = (
                task.polls.load(Ordering::Relaxed),
                task.due.load(Ordering::Acquire),
            );
            if all || (due && looked.due && polls == looked.polls) {
                stuck.push(task);
            }
            (looked.polls, looked.due) = (polls, due);
            true
        });
        stuck
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Vec<Looked>> {
        self.tasks.lock()
    }
}
