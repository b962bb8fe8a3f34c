//! The threads that nodes run on: apart from those of their services, whose handlers may block.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use crate::mutex::Mutex;

/// Most threads that the nodes of one process run on: enough to encrypt some gigabytes a second.
const MAX_THREADS: usize = 4;

/// What the threads are called, with a number behind.
const THREAD_NAME: &str = "dispatch-node";

/// The threads of all nodes of this process, as long as there is a node.
static SHARED: Mutex<Weak<Threads>> = Mutex::new(Weak::new());

/// A runtime that ends, without waiting for it, when the last node does.
#[derive(Debug)]
struct Threads {
    /// None once it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    fn shared() -> io::Result<Arc<Self>> {
        let mut shared = SHARED.lock();
        if let Some(threads) = shared.upgrade() {
            return Ok(threads);
        }
        let number = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(thread_count())
            .thread_name_fn(move || {
                let number = number.fetch_add(1, Ordering::Relaxed);
                format!("{THREAD_NAME}-{number}")
            })
            .enable_all()
            .build()?;
        let threads = Arc::new(Threads {
            runtime: Some(runtime),
        });
        *shared = Arc::downgrade(&threads);
        Ok(threads)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // It may be dropped inside a task, its own among them, where nothing may block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Half of the processors, at least one: the services have the other half, and what they do not use.
fn thread_count() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, MAX_THREADS)
}

/// Where the tasks of one node run, and where they log to. Clones keep no thread alive; see [`Kept`].
#[derive(Clone, Debug)]
pub(crate) struct Runtimes {
    /// Membership, replication, and whoever helps the data lane.
    node: Handle,
    /// The services, and the data lane: the runtime that the node was started on.
    services: Handle,
    /// The subscriber of whoever started the node, where it had one: the node's threads know only the global one.
    log: Option<Dispatch>,
}

/// Keeps a node's threads alive until it is dropped.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "held, not read")]
pub(crate) struct Kept(Option<Arc<Threads>>);

impl Runtimes {
    /// Called on the runtime that the services are to run on; without threads of its own the node runs there, too.
    pub(crate) fn start(own_threads: bool) -> io::Result<(Self, Kept)> {
        let services = Handle::current();
        let threads = own_threads.then(Threads::shared).transpose()?;
        let node = threads
            .as_ref()
            .and_then(|threads| threads.runtime.as_ref())
            .map_or_else(|| services.clone(), |runtime| runtime.handle().clone());
        let runtimes = Runtimes {
            node,
            services,
            log: subscriber(),
        };
        Ok((runtimes, Kept(threads)))
    }

    /// True where the node has threads of its own.
    pub(crate) fn are_two(&self) -> bool {
        self.node.id() != self.services.id()
    }

    /// Runs a task of the node.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.node.spawn(logged_to(self.log.clone(), task))
    }

    /// Runs a task of the user's: a service, or what sees to one.
    pub(crate) fn spawn_service(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.services.spawn(task)
    }

    /// Lets what is made in there, sockets above all, belong to the node's threads.
    pub(crate) fn enter<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.node.enter();
        make()
    }
}

/// Lets a task that a task of the node spawns log where that one does.
pub(crate) fn logged<T>(
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    logged_to(subscriber(), task)
}

fn logged_to<T>(
    log: Option<Dispatch>,
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let task = Box::pin(task);
    async move {
        match log {
            Some(log) => task.with_subscriber(log).await,
            None => task.await,
        }
    }
}

/// None where there is none yet: the global one may come later.
fn subscriber() -> Option<Dispatch> {
    let log = tracing::dispatcher::get_default(Dispatch::clone);
    (!log.is::<NoSubscriber>()).then_some(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_nodes_of_a_process_share_threads_that_end_with_the_last_one() {
        let (one, kept) = Runtimes::start(true).unwrap();
        let (other, kept_too) = Runtimes::start(true).unwrap();
        assert_eq!(one.node.id(), other.node.id());
        drop(kept);
        other.spawn(async {}).await.unwrap();
        // The last of it may go in a task of its own.
        let task = other.spawn(async move { drop(kept_too) });
        let _ = task.await;
        assert!(other.spawn(async {}).await.unwrap_err().is_cancelled());
        let (again, _kept) = Runtimes::start(true).unwrap();
        assert_ne!(again.node.id(), one.node.id());
        again.spawn(async {}).await.unwrap();
    }

    #[tokio::test]
    async fn threads_have_a_name_and_the_services_stay_where_they_were() {
        let (runtimes, _kept) = Runtimes::start(true).unwrap();
        let (sender, name) = tokio::sync::oneshot::channel();
        runtimes.spawn(async move {
            let name = std::thread::current().name().map(str::to_owned);
            let _ = sender.send(name);
        });
        let name = name.await.unwrap().unwrap();
        assert!(name.starts_with(THREAD_NAME), "{name}");
        assert_eq!(runtimes.services.id(), Handle::current().id());
        let (runtimes, _kept) = Runtimes::start(false).unwrap();
        assert_eq!(runtimes.node.id(), Handle::current().id());
    }
}
