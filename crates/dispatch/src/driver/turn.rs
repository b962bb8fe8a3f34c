//! What the driver does before it looks at its timers again.
//!
//! Rule: the work of one turn is bounded, in time and in bytes. What is left waits here, where it keeps its order, and the
//! next turn goes on with it. Without the bound a batch of large entries keeps probes unanswered, and the node is taken
//! for dead.

use std::collections::VecDeque;
use std::time::Duration;

use keydispatch_core::Adding;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::command::{Added, Command};
use super::link::Input;

/// After so long a turn ends: much less than a probe waits (50 ms at the shortest `down_period`), and much more than
/// what a turn costs beside its work.
const TURN: Duration = Duration::from_millis(5);

/// After so many bytes a turn ends: a few milliseconds of decoding and hashing, should the clock stand still.
const TURN_BYTES: usize = 2 * 1024 * 1024;

/// Entries of a batch that are added between two looks at the clock; larger batches are added in slices.
pub(super) const SLICE: usize = 128;

/// One turn.
pub(super) struct Turn {
    started: Instant,
    bytes: usize,
}

impl Turn {
    pub(super) fn begin() -> Self {
        Turn {
            started: Instant::now(),
            bytes: 0,
        }
    }

    /// Something of so many bytes was worked on.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(super) fn is_over(&self) -> bool {
        self.bytes >= TURN_BYTES || self.started.elapsed() >= TURN
    }

    pub(super) fn took(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What earlier turns left.
#[derive(Default)]
pub(crate) struct Leftovers {
    pub(super) commands: VecDeque<Command>,
    pub(super) inputs: VecDeque<Input>,
    /// A batch that is being added, before which no further command is handled.
    pub(super) adding: Option<(Adding, oneshot::Sender<Added>)>,
    /// The state machine has more to report.
    pub(super) events: bool,
}

impl Leftovers {
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.inputs.is_empty() && self.adding.is_none() && !self.events
    }

    /// Commands are handled in their order.
    pub(super) fn takes_commands(&self) -> bool {
        self.commands.is_empty() && self.adding.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_by_its_bytes_and_by_its_time() {
        let mut turn = Turn::begin();
        let mut steps = 0;
        while !turn.is_over() {
            turn.spend(256 * 1024);
            steps += 1;
        }
        assert_eq!(steps, 8, "though no time has passed");
        let turn = Turn::begin();
        tokio::time::advance(TURN).await;
        assert!(turn.is_over());
    }
}
