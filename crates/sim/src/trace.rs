//! What happened, line by line, for a reader.

use std::io::Write;

use keydispatch_core::Instant;

/// Writes to standard output where it is on, and costs nothing where it is off.
pub(crate) struct Trace {
    on: bool,
    /// Also each frame.
    frames: bool,
}

impl Trace {
    pub(crate) fn new(on: bool, frames: bool) -> Self {
        Trace { on, frames }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    pub(crate) fn line(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if self.on {
            // A reader who has seen enough closes the pipe.
            let _ = writeln!(std::io::stdout().lock(), "{now} {}", text());
        }
    }

    pub(crate) fn frame(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if self.frames {
            self.line(now, text);
        }
    }
}
