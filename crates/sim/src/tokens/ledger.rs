//! What is known of all lineages of states, and of what went wrong so far.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The state of one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) lineage: u64,
    pub(crate) count: u64,
    /// The lineages that were merged into it.
    pub(crate) merged: BTreeSet<u64>,
    /// Makes it large.
    pub(crate) padding: Bytes,
}

/// The states of a slot, by key.
pub(crate) type Cells = BTreeMap<u8, Cell>;

/// What is known of all lineages, and of what went wrong so far.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) lineages: u64,
    /// The count of each lineage, and whose it is.
    pub(crate) last: BTreeMap<u64, (u64, u32, u8)>,
    /// Those that ended with a process, or were taken back without their latest changes.
    pub(crate) lost: BTreeSet<u64>,
    /// By the giver's process and its number: who adopted.
    pub(crate) adopted: BTreeMap<(u64, u64), usize>,
    pub(crate) taken_back: BTreeSet<(u64, u64)>,
    /// Members were taken for dead that lived, or could not know of each other.
    pub(crate) false_downs: u64,
    pub(crate) impatience: u64,
    pub(crate) crashed: u64,
    /// The last one that was online went away: states are lost by nature.
    pub(crate) nobody: bool,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) moved: u64,
    pub(crate) most_hops: u32,
    pub(crate) slowest: Duration,
    pub(crate) parked: Vec<Duration>,
    pub(crate) minted: u64,
    pub(crate) adoptions: u64,
    pub(crate) merges: u64,
    /// Lineages that came to be merged once more.
    pub(crate) again: u64,
    pub(crate) forks: u64,
    /// Calls that were run while another instance held the slot, too.
    pub(crate) double: u64,
    pub(crate) doubts: u64,
}

impl Ledger {
    /// Nothing has happened after which two may hold a slot.
    pub(crate) fn is_healthy(&self) -> bool {
        self.false_downs == 0 && self.impatience == 0
    }

    pub(crate) fn begin(&mut self, slot: u32, key: u8, count: u64) -> u64 {
        self.lineages += 1;
        self.last.insert(self.lineages, (count, slot, key));
        self.lineages
    }
}

pub(crate) fn encode(cells: &Cells) -> Vec<(Bytes, Bytes)> {
    let states = cells.iter().map(|(key, cell)| {
        let state = postcard::to_allocvec(cell).unwrap_or_default();
        (Bytes::copy_from_slice(&[*key]), Bytes::from(state))
    });
    states.collect()
}

pub(crate) fn decode(states: &[(Bytes, Bytes)]) -> Cells {
    let cells = states.iter().filter_map(|(key, state)| {
        let key = key.first().copied()?;
        Some((key, postcard::from_bytes(state).ok()?))
    });
    cells.collect()
}
