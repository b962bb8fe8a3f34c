//! The end of a node, in whatever way: everything that waits for it hears of it.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::data::DataLane;
use crate::driver::phase::{Fatal, Phase};
use crate::driver::shared::NodeShared;

/// Tells the driver of the end of the task that holds it.
pub(crate) struct Vital {
    fatal: mpsc::UnboundedSender<Fatal>,
    task: &'static str,
    /// True where it may end by itself, or be aborted.
    may_end: bool,
}

impl Vital {
    /// Of a task that may end, but not by a panic.
    pub(crate) fn unless_panicked(
        fatal: &mpsc::UnboundedSender<Fatal>,
        task: &'static str,
    ) -> Self {
        Vital {
            fatal: fatal.clone(),
            task,
            may_end: true,
        }
    }

    /// Of a task that ends before the node only where its runtime does.
    pub(crate) fn as_long_as_the_node(
        fatal: &mpsc::UnboundedSender<Fatal>,
        task: &'static str,
    ) -> Self {
        Vital {
            may_end: false,
            fatal: fatal.clone(),
            task,
        }
    }

    /// Waits until the node has ended.
    pub(crate) async fn until(self, mut phase: watch::Receiver<Phase>) {
        // An error says the same.
        let _ = phase.wait_for(Phase::is_final).await;
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        let fatal = if std::thread::panicking() {
            tracing::error!(
                task = self.task,
                "a task of the node has panicked: the node stops"
            );
            Fatal::Panicked
        } else if self.may_end {
            return;
        } else {
            Fatal::RuntimeEnded
        };
        // The driver is gone where the node has ended already.
        let _ = self.fatal.send(fatal);
    }
}

/// Closes everything when it is dropped: after the driver, or with it, where it panics or its runtime ends.
pub(crate) struct Ending {
    pub(crate) shared: Arc<NodeShared>,
    pub(crate) data: DataLane,
    pub(crate) phase: watch::Sender<Phase>,
    /// How it ended; none where nobody came to say so.
    pub(crate) how: Option<Phase>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let how = self.how.take().unwrap_or_else(|| {
            if std::thread::panicking() {
                tracing::error!(node = %self.shared.name, "the driver of this node has panicked: the node stops");
                Phase::Failed(Fatal::Panicked)
            } else {
                Phase::Failed(Fatal::RuntimeEnded)
            }
        });
        self.data.close();
        self.shared.close();
        self.phase.send_if_modified(|phase| {
            let first = !phase.is_final();
            if first {
                *phase = how;
            }
            first
        });
    }
}
