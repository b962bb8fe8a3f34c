//! When something was last read, and written, on a connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When something was last heard, and said, on a connection.
#[derive(Debug)]
pub(crate) struct Activity {
    origin: tokio::time::Instant,
    read_micros: AtomicU64,
    written_micros: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Activity {
            origin: tokio::time::Instant::now(),
            read_micros: AtomicU64::new(0),
            written_micros: AtomicU64::new(0),
        }
    }
}

impl Activity {
    /// Something was heard; returns when, in microseconds of this clock.
    pub(super) fn record_read(&self) -> u64 {
        let now = self.elapsed_micros();
        self.read_micros.store(now, Ordering::Relaxed);
        now
    }

    /// Something was said.
    pub(super) fn record_write(&self) {
        self.written_micros
            .store(self.elapsed_micros(), Ordering::Relaxed);
    }

    /// The time on this clock.
    pub(super) fn clock(&self) -> keydispatch_core::Instant {
        keydispatch_core::Instant::from_micros(self.elapsed_micros())
    }

    /// When something was last heard, by this clock.
    pub(super) fn last_read(&self) -> keydispatch_core::Instant {
        keydispatch_core::Instant::from_micros(self.read_micros.load(Ordering::Relaxed))
    }

    /// Since when nothing was heard.
    pub(super) fn since(&self) -> Duration {
        let heard = self.read_micros.load(Ordering::Relaxed);
        Duration::from_micros(self.elapsed_micros().saturating_sub(heard))
    }

    /// Since when nothing was heard or said.
    pub(super) fn idle(&self) -> Duration {
        let said = self.written_micros.load(Ordering::Relaxed);
        self.since().min(Duration::from_micros(
            self.elapsed_micros().saturating_sub(said),
        ))
    }

    fn elapsed_micros(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
