//! What a handle learns from its calls.

use std::sync::OnceLock;

use keydispatch_core::route::{HotKeys, Latencies};

use crate::mutex::Mutex;

/// What a handle and its clones know of their calls. Nothing is kept where nothing is asked for.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    hot: OnceLock<Mutex<HotKeys>>,
    latencies: OnceLock<Mutex<Latencies>>,
}

impl Learnt {
    pub(super) fn hot<T>(&self, look: impl FnOnce(&mut HotKeys) -> T) -> T {
        let hot = self.hot.get_or_init(Mutex::default);
        look(&mut hot.lock())
    }

    pub(super) fn latencies<T>(&self, look: impl FnOnce(&mut Latencies) -> T) -> T {
        let latencies = self.latencies.get_or_init(Mutex::default);
        look(&mut latencies.lock())
    }
}
