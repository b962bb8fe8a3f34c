//! What the connections of the data lane need of their node: the network, what this node says of itself, the limits, the
//! counters, what may wait, and the tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use keydispatch_core::Directory;
use keydispatch_core::limits::MAX_PAYLOAD_BYTES;
use keydispatch_core::message::Hello;
use tokio::sync::watch;

use super::helped::Helper;
use super::onward::Onward;
use super::stats::Counters;
use super::tasks::Tasks;
use super::wire::Outgoing;
use crate::backlog::{Backlog, Share};
use crate::mutex::Mutex;
use crate::runtime::Runtimes;
use crate::transport::Transport;

/// How long a message may be, and how long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_payload_bytes: usize,
    /// Messages within this node are encoded and decoded as remote ones are.
    pub(crate) checks_messages: bool,
    /// What may wait on this node in all.
    pub(crate) waiting_bytes: usize,
    pub(crate) drain_timeout: Duration,
}

/// See the module.
pub(crate) struct LaneRuntime {
    /// None once the node has stopped: handles that outlive it must not keep its address taken.
    transport: Mutex<Option<Arc<dyn Transport>>>,
    hello: Arc<ArcSwap<Hello>>,
    /// What this node lists: where a message that waits is to go by now.
    pub(super) directory: Arc<Directory>,
    max_payload_bytes: usize,
    checks_messages: bool,
    drain_timeout: Duration,
    /// Counts the attempts to connect to any peer: later ones have larger numbers, whatever became of the peer meanwhile.
    attempts: AtomicU64,
    /// What waits on this node in all.
    pub(super) backlog: Arc<Backlog>,
    /// What waits of this node's own messages to its own services.
    own_share: Arc<Share>,
    pub(crate) counters: Counters,
    pub(super) onward: Onward,
    closed: AtomicBool,
    /// No calls of this node go out any more.
    departed: AtomicBool,
    stopping: watch::Sender<bool>,
    helper: Arc<Helper>,
    tasks: Tasks,
}

impl std::fmt::Debug for LaneRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneRuntime").finish_non_exhaustive()
    }
}

impl LaneRuntime {
    pub(crate) fn new(
        transport: Option<Arc<dyn Transport>>,
        hello: Arc<ArcSwap<Hello>>,
        directory: Arc<Directory>,
        limits: Limits,
        runtimes: Runtimes,
    ) -> Arc<Self> {
        let backlog = Backlog::new(limits.waiting_bytes);
        let own_share = backlog.share();
        Arc::new(LaneRuntime {
            transport: Mutex::new(transport),
            hello,
            directory,
            max_payload_bytes: limits.max_payload_bytes.min(MAX_PAYLOAD_BYTES),
            checks_messages: limits.checks_messages,
            drain_timeout: limits.drain_timeout,
            attempts: AtomicU64::new(0),
            backlog,
            own_share,
            counters: Counters::default(),
            onward: Onward::default(),
            closed: AtomicBool::new(false),
            departed: AtomicBool::new(false),
            stopping: watch::channel(false).0,
            helper: Helper::new(runtimes),
            tasks: Tasks::default(),
        })
    }

    pub(crate) fn max_payload_bytes(&self) -> usize {
        self.max_payload_bytes
    }

    /// The limit by which local messages are encoded and decoded as remote ones are; none where they move as they are.
    pub(crate) fn checked_limit(&self) -> Option<usize> {
        self.checks_messages.then_some(self.max_payload_bytes)
    }

    /// What messages of this node to its own services are counted in.
    pub(crate) fn own_share(&self) -> Arc<Share> {
        Arc::clone(&self.own_share)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    pub(super) fn transport(&self) -> Option<Arc<dyn Transport>> {
        self.transport.lock().clone()
    }

    pub(super) fn hello(&self) -> Guard<Arc<Hello>> {
        self.hello.load()
    }

    pub(super) fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// The tasks of this node's connections.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Runs a task of this lane until it ends or the node does.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut stopping = self.stopping.subscribe();
        self.helper.spawn(self.tasks.own(name, async move {
            tokio::select! {
                () = task => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        }));
    }

    /// Goes on with the tasks of this lane where the services hold their threads. Runs on others, as long as the node.
    pub(crate) async fn help(self: Arc<Self>) {
        Arc::clone(&self.helper).watch().await;
    }

    /// Casts that were not written go on to whoever is to have them; anything else among them is dropped.
    pub(super) fn send_on(&self, unwritten: impl IntoIterator<Item = Outgoing>) {
        let lost = self.onward.send_on(unwritten);
        self.counters.count_unsent(lost);
        self.onward.begin();
    }

    /// No calls of this node go out any more.
    pub(super) fn depart(&self) {
        self.departed.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_departed(&self) -> bool {
        self.departed.load(Ordering::Relaxed)
    }

    /// True once the node has stopped: views that outlive it do not change any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) || self.departed.load(Ordering::SeqCst)
    }

    /// Nothing is dialled any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.transport.lock().take();
    }

    /// Ends all tasks.
    pub(super) fn stop_tasks(&self) {
        self.stopping.send_replace(true);
    }
}
