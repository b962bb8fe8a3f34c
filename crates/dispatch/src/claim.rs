//! What is listed is what runs: how the additions and removals of one service keep their order.
//!
//! An addition waits in a bounded queue, and whoever asked for it may give up at any moment. A removal may come from where
//! nothing can be awaited, and goes another way. Three rules make one order of the two:
//!
//! - A service's [`Life`] is over before its removal is asked for, and the driver looks at it once the entry is added: an
//!   addition that its removal has overtaken is taken back in the same batch, and nobody ever sees it.
//! - What was added is a [`Claim`] until whoever asked for it has it in hand: one that is dropped on the way removes its
//!   entries.
//! - Removals that wait are done before the commands that wait: whoever has seen a service end can give its name to the
//!   next one.
//!
//! Without the first two, an entry without a service stays for good, and its share of the keys with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use keydispatch_core::ServiceInfo;
use tokio::sync::Notify;

use crate::mutex::Mutex;

/// Whether a service still is to be found, as its task says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life(Arc<AtomicBool>);

impl Life {
    /// It is not to be found any more. Comes before it is taken out of anything.
    pub(crate) fn end(&self) {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Asked once it was put in: either this is true, or whoever takes it out finds it there.
    pub(crate) fn is_over(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst)
    }
}

/// What is to be removed where nobody could wait for the driver: services that ended, and entries that were given up.
///
/// Bounded by the services of this process, each of which ends once, and by the additions under way.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    sequences: Mutex<Vec<u64>>,
    signal: Notify,
}

impl Removals {
    /// Removes these soon.
    pub(crate) fn ask(&self, sequences: impl IntoIterator<Item = u64>) {
        self.lock().extend(sequences);
        self.signal.notify_one();
    }

    /// Waits until some were asked for since this was last waited for.
    pub(crate) async fn asked(&self) {
        self.signal.notified().await;
    }

    /// Those that were asked for, for the driver to remove.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.sequences.lock()
    }
}

/// Entries that were added for somebody who may have given up by now: they go unless they are taken.
#[derive(Debug)]
pub(crate) struct Claim {
    added: Vec<Arc<ServiceInfo>>,
    removals: Arc<Removals>,
}

impl Claim {
    pub(crate) fn new(added: Vec<Arc<ServiceInfo>>, removals: &Arc<Removals>) -> Self {
        Claim {
            added,
            removals: Arc::clone(removals),
        }
    }

    /// They stay from here on.
    pub(crate) fn take(mut self) -> Vec<Arc<ServiceInfo>> {
        std::mem::take(&mut self.added)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.added.is_empty() {
            let sequences = self.added.iter().map(|info| info.id().sequence);
            self.removals.ask(sequences);
        }
    }
}
