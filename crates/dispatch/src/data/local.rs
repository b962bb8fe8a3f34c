//! The services that run on this node, as messages reach them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use papaya::Guard as _;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::mailbox::{AnyMailbox, StopReason};
use super::stats::DataStats;
use crate::runtime::Runtimes;

struct LocalService {
    mailbox: Arc<dyn AnyMailbox>,
    task: AbortHandle,
    /// True once the service has ended, for the replies that it still owes.
    ended: Arc<AtomicBool>,
}

/// See the module.
pub(crate) struct Local {
    /// By their numbers.
    services: papaya::HashMap<u64, LocalService>,
    /// How many services run; whoever waits for them to stop reads it.
    running: watch::Sender<usize>,
    /// The services are to stop.
    leaving: AtomicBool,
    closed: AtomicBool,
    runtimes: Runtimes,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    pub(crate) fn new(runtimes: Runtimes) -> Arc<Self> {
        Arc::new(Local {
            services: papaya::HashMap::new(),
            running: watch::channel(0).0,
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            runtimes,
        })
    }

    /// Runs a service's task; [`stop_services`](Self::stop_services) and [`close`](Self::close) end it.
    pub(crate) fn spawn_service(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        self.runtimes.spawn_service(task).abort_handle()
    }

    pub(crate) fn add(
        &self,
        sequence: u64,
        mailbox: Arc<dyn AnyMailbox>,
        task: AbortHandle,
        ended: Arc<AtomicBool>,
    ) {
        if self.closed.load(Ordering::SeqCst) {
            task.abort();
            return;
        }
        let service = LocalService {
            mailbox,
            task,
            ended,
        };
        let mailbox = Arc::clone(&service.mailbox);
        // Counted first: it may end, and be counted down, as soon as it is there.
        self.running.send_modify(|running| *running += 1);
        self.services.pin().insert(sequence, service);
        // Rule: whoever leaves waits for no service that comes later. Either this is seen here, or the service there.
        fence(Ordering::SeqCst);
        if self.leaving.load(Ordering::SeqCst) {
            mailbox.stop(StopReason::NodeStopped);
        }
    }

    /// Nobody reaches the service any more. It counts as running until what is returned is dropped.
    pub(crate) fn remove(&self, sequence: u64) -> Option<StillRunning<'_>> {
        self.services.pin().remove(&sequence)?;
        // Its mailbox goes now, not when enough others have gone, too.
        self.services.guard().flush();
        Some(StillRunning(&self.running))
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<Arc<dyn AnyMailbox>> {
        self.services
            .pin()
            .get(&sequence)
            .map(|service| Arc::clone(&service.mailbox))
    }

    /// Looks at a mailbox without keeping it.
    pub(crate) fn with<T>(
        &self,
        sequence: u64,
        look: impl FnOnce(&dyn AnyMailbox) -> T,
    ) -> Option<T> {
        self.services
            .pin()
            .get(&sequence)
            .map(|service| look(&*service.mailbox))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.services.len()
    }

    /// Lets every service handle what it has and stop, also one that is just being started; returns how many have not when time is up.
    pub(crate) async fn stop_services(&self, until: Instant) -> usize {
        self.leaving.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for (_, service) in &self.services.pin() {
            service.mailbox.stop(StopReason::NodeStopped);
        }
        let mut running = self.running.subscribe();
        let stopped = running.wait_for(|running| *running == 0);
        match tokio::time::timeout_at(until, stopped).await {
            Ok(_) => 0,
            Err(_) => *self.running.borrow(),
        }
    }

    /// Waits until every service has handled what is in its mailbox now; false where time is up before.
    pub(crate) async fn services_caught_up(&self, until: Instant) -> bool {
        let marks: Vec<_> = self
            .services
            .pin()
            .iter()
            .map(|(_, service)| service.mailbox.mark())
            .collect();
        for mark in marks {
            // An error says that the service has ended.
            if tokio::time::timeout_at(until, mark).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends a service that did not stop in time.
    pub(crate) fn abort_service(&self, sequence: u64) {
        if let Some(service) = self.services.pin().get(&sequence) {
            service.ended.store(true, Ordering::Release);
            service.task.abort();
        }
    }

    /// Takes no service any more.
    pub(super) fn refuse_more(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Ends all services as they are.
    pub(super) fn close(&self) {
        for (_, service) in &self.services.pin() {
            // A handler that is aborted has not chosen not to reply.
            service.ended.store(true, Ordering::Release);
            service.task.abort();
        }
    }

    pub(super) fn add_to(&self, stats: &mut DataStats) {
        stats.services = self.count();
        for (_, service) in &self.services.pin() {
            if let Some(keyed) = service.mailbox.keyed() {
                stats.keys += keyed.keys();
            }
        }
    }
}

/// A service that nobody reaches any more, and that is not at its end yet.
pub(crate) struct StillRunning<'a>(&'a watch::Sender<usize>);

impl Drop for StillRunning<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}
