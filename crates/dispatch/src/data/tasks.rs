//! The tasks of a node's data lane: counted until they have ended, and missed where one panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    state: Arc<TasksState>,
}

#[derive(Debug, Default)]
struct TasksState {
    running: AtomicUsize,
    panics: AtomicU64,
    /// Told when the last of them has ended.
    ended: Notify,
}

/// One of them, from when it is made until it is dropped, run or not.
///
/// Rule: whoever has a task hears how it ended. A panic is logged with the name of its task, and counted; what depends on the
/// task is closed by guards of its own, before this one is dropped.
struct Owned {
    name: &'static str,
    state: Arc<TasksState>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.state.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = self.name, "a task of the node has panicked");
        }
        if self.state.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.ended.notify_waiters();
        }
    }
}

impl Tasks {
    /// A task of these, to be spawned.
    pub(crate) fn own<F>(
        &self,
        name: &'static str,
        task: F,
    ) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future + Send + 'static,
    {
        self.state.running.fetch_add(1, Ordering::AcqRel);
        let owned = Owned {
            name,
            state: Arc::clone(&self.state),
        };
        async move {
            let _owned = owned;
            task.await
        }
    }

    /// Waits until all of them have ended.
    pub(crate) async fn ended(&self) {
        loop {
            let mut ended = std::pin::pin!(self.state.ended.notified());
            // From here on nothing is missed.
            ended.as_mut().enable();
            if self.state.running.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// How many have panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.state.panics.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_are_waited_for_and_those_that_panic_are_counted() {
        let tasks = Tasks::default();
        tasks.ended().await;
        let (end, ends) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(tasks.own("waits", async move { drop(ends.await) }));
        let panicking = tokio::spawn(tasks.own("panics", async { panic!("as it was told") }));
        assert!(panicking.await.is_err());
        assert_eq!(tasks.panics(), 1);
        // One that is never run has ended, too.
        drop(tasks.own("is dropped", async {}));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(10), tasks.ended());
        assert!(waited.await.is_err());
        end.send(()).unwrap();
        tasks.ended().await;
        assert_eq!(tasks.panics(), 1);
    }
}
