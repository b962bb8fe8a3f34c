//! What does not change during a history.

use keydispatch_core::Settings;

use super::event::Host;
use keydispatch_core::RuleSet;

/// What does not change during a history.
#[derive(Clone, Debug)]
pub(crate) struct Constants {
    pub(crate) settings: Settings,
    pub(crate) rules: RuleSet,
    /// Where the seeds are.
    pub(crate) seeds: Vec<Host>,
    /// Bytes queued for a link beyond which it is congested, and beyond which it is closed.
    pub(crate) queue_bytes: (usize, usize),
    /// Messages that a node may send in one second.
    pub(crate) max_chatter: u64,
    /// Whether every step is checked against what was written; costs as much memory as the registry once more.
    pub(crate) checks: bool,
    /// What handling what arrives and sending costs every process; nothing where there is none.
    pub(crate) cost: Option<Cost>,
}

/// The time that a process takes for its work, beside what a fault makes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// For each input.
    pub(crate) input_micros: u64,
    /// For each frame that is sent.
    pub(crate) output_micros: u64,
    /// Bytes that are taken in, or sent, in a microsecond.
    pub(crate) bytes_per_micro: u64,
}
