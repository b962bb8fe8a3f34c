//! What the state machine is started with, and its bounds.

use std::time::Duration;

use super::message::MAX_PIECE_BYTES;
use crate::key::{KEYED_SHIFT, KEYED_SLOTS, SLOTS};

/// R8: most pieces that are on their way to one node and not acknowledged. It bounds what is kept for a slow one, and lets
/// what is still to be sent be served meanwhile. Pieces that are not full count by their bytes, as so many parts of a full one.
pub const WINDOW: u32 = 4;

/// R8: a piece counts as at least one of so many parts. Most slots have few keys, or none: if each counted as a whole, moving
/// thousands of them would take a round trip for every [`WINDOW`].
pub(super) const PARTS: u32 = 64;

/// R13: how long somebody who is up may be silent before it counts as down for a slot.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// R13: patience is at least so many times the `down_period`: whoever is dead is found out by membership first.
const MIN_PATIENCE_IN_DOWN_PERIODS: u32 = 3;

/// Most bytes of states of which not all pieces have come, from all peers together: twice what one slot can hold in pieces of
/// half a megabyte. What is beyond is refused: its giver serves on, and is asked again.
const MAX_ARRIVING_BYTES: usize = 1024 * 1024 * 1024;

/// R7: a pointer is kept for this long.
pub(super) const POINTER_LIVES: Duration = Duration::from_secs(60);

/// What the state machine is started with.
#[derive(Clone, Debug)]
pub struct OwnershipConfig {
    pub(super) slots: u32,
    /// Each is so many of placement's, as a power of two; the first of them stands for it.
    pub(super) shift: u32,
    pub(super) down_period: Duration,
    pub(super) patience: Duration,
    pub(super) piece_bytes: usize,
    /// In parts of a full piece.
    pub(super) window: u32,
    /// Pieces that are not full count by their bytes.
    pub(super) by_bytes: bool,
    pub(super) arriving_bytes: usize,
}

impl OwnershipConfig {
    /// All [`KEYED_SLOTS`], and the usual bounds; `down_period` is membership's.
    pub fn new(down_period: Duration) -> Self {
        OwnershipConfig {
            slots: KEYED_SLOTS as u32,
            shift: KEYED_SHIFT,
            down_period,
            patience: DEFAULT_PATIENCE.max(down_period * MIN_PATIENCE_IN_DOWN_PERIODS),
            piece_bytes: MAX_PIECE_BYTES,
            window: WINDOW * PARTS,
            by_bytes: true,
            arriving_bytes: MAX_ARRIVING_BYTES,
        }
    }

    /// The first so many slots of placement, each by itself, for a simulator: 1 to [`SLOTS`]. Every piece counts as a full one,
    /// so that few slots are many.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots.clamp(1, SLOTS as u32);
        self.shift = 0;
        self.by_bytes = false;
        self
    }

    /// How long whoever is up may be silent; at least three `down_period`s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.max(self.down_period * MIN_PATIENCE_IN_DOWN_PERIODS);
        self
    }

    /// Most bytes of states of which not all pieces have come; 1 GiB unless this says otherwise.
    #[must_use]
    pub fn arriving_bytes(mut self, bytes: usize) -> Self {
        self.arriving_bytes = bytes;
        self
    }

    /// What a piece of so many bytes counts as, in parts of a full one.
    pub(super) fn parts(&self, bytes: usize) -> u32 {
        if !self.by_bytes {
            return PARTS;
        }
        let parts = (bytes * PARTS as usize).div_ceil(self.piece_bytes);
        u32::try_from(parts).unwrap_or(PARTS).clamp(1, PARTS)
    }

    /// What a slot counts as whose states are not there yet: nobody knows how many bytes they are.
    pub(super) fn preparing(&self) -> u32 {
        if self.by_bytes { PARTS / 8 } else { PARTS }
    }

    /// Bytes of a piece of states: 1 to [`MAX_PIECE_BYTES`].
    #[must_use]
    pub fn piece_bytes(mut self, bytes: usize) -> Self {
        self.piece_bytes = bytes.clamp(1, MAX_PIECE_BYTES);
        self
    }
}
