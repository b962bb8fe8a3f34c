//! What happened, line by line, for a reader.

use std::io::Write;

use keydispatch_core::Instant;
use keydispatch_core::message::{ControlMessage, Frame};

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

pub(crate) fn describe(frame: &Frame) -> String {
    match ControlMessage::decode(frame) {
        Ok(Some(ControlMessage::Membership(packet))) => keydispatch_core::describe_packet(&packet)
            .unwrap_or_else(|| "a garbled packet".to_owned()),
        Ok(Some(ControlMessage::Snapshot(chunk))) => format!(
            "snapshot {} v{} {}/{}",
            chunk.of.owner, chunk.of.version, chunk.index, chunk.count
        ),
        Ok(Some(ControlMessage::Delta(delta))) => {
            format!("delta {} {}..{}", delta.owner, delta.from, delta.to)
        }
        Ok(Some(other)) => format!("{other:?}"),
        other => format!("{other:?}"),
    }
}
