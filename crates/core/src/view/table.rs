//! A table slot → first owners, filled by its readers: one lookup of a slot scores it, the next ones read.
//!
//! Nothing builds a table as a whole, so that neither a reader nor the writer ever waits for one.

use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::key::{SLOTS, Slot};

/// Owners kept for each slot.
pub(super) const RANKED: usize = 4;

/// The first seats of a slot.
pub(super) type Ranked = [u16; RANKED];

/// No seat: there are fewer than [`RANKED`] names. Larger than any seat, which is below `MAX_INSTANCES_PER_TYPE`.
pub(super) const NOBODY: u16 = u16::MAX;

/// Whoever comes here is not known (any more): somebody in front of it has gone. All behind it are the same.
pub(super) const LOST: u16 = NOBODY - 1;

/// A slot that nobody has looked up; as seats this would be four times the same.
const UNKNOWN: u64 = 0;

/// Bytes of one table.
const TABLE_BYTES: usize = SLOTS * (size_of::<u64>() + size_of::<u16>());

/// How many bytes the tables of a node may take; without one a slot is scored at every lookup.
#[derive(Debug)]
pub(crate) struct TableBudget {
    left: AtomicUsize,
}

impl TableBudget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(TableBudget {
            left: AtomicUsize::new(bytes),
        })
    }

    fn take(&self) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(TABLE_BYTES)
            })
            .is_ok()
    }

    fn give_back(&self) {
        self.left.fetch_add(TABLE_BYTES, Ordering::Relaxed);
    }
}

/// The cells of one table, and the budget that they were taken from.
#[derive(Debug)]
pub(super) struct Cells {
    cells: Box<[AtomicU64; SLOTS]>,
    /// The first owner of each slot again, plus one; zero where it is not known. Most lookups ask for no more, and a
    /// small array stays in the cache.
    firsts: Box<[AtomicU16; SLOTS]>,
    budget: Arc<TableBudget>,
}

impl Drop for Cells {
    fn drop(&mut self) {
        self.budget.give_back();
    }
}

impl Cells {
    fn allocate(budget: &Arc<TableBudget>) -> Option<Arc<Cells>> {
        budget.take().then(|| {
            Arc::new(Cells {
                cells: zeroed(),
                firsts: zeroed(),
                budget: Arc::clone(budget),
            })
        })
    }

    #[inline]
    pub(super) fn first(&self, slot: Slot) -> Option<u16> {
        self.firsts[usize::from(slot.0)]
            .load(Ordering::Relaxed)
            .checked_sub(1)
    }

    /// The first seats of a slot, where so many of them are known.
    #[inline]
    pub(super) fn read(&self, slot: Slot, n: usize) -> Option<Ranked> {
        self.carried(slot).filter(|ranked| ranked[n - 1] != LOST)
    }

    #[inline]
    fn carried(&self, slot: Slot) -> Option<Ranked> {
        let packed = self.cells[usize::from(slot.0)].load(Ordering::Relaxed);
        (packed != UNKNOWN).then(|| unpack(packed))
    }

    /// Whoever comes first or later: all write the same.
    pub(super) fn fill(&self, slot: Slot, ranked: Ranked) -> Ranked {
        let at = usize::from(slot.0);
        self.cells[at].store(pack(ranked), Ordering::Relaxed);
        // Without any name there is no table.
        self.firsts[at].store(ranked[0].saturating_add(1), Ordering::Relaxed);
        ranked
    }

    /// The slots that were looked up, as far as they are known.
    pub(super) fn known(&self) -> impl Iterator<Item = (Slot, Ranked)> {
        (0..=u16::MAX).filter_map(|slot| Some((Slot(slot), self.carried(Slot(slot))?)))
    }
}

/// The table of one view: none until a slot is looked up.
#[derive(Debug)]
pub(super) struct Table {
    budget: Arc<TableBudget>,
    cells: OnceLock<Option<Arc<Cells>>>,
}

impl Table {
    pub(super) fn new(budget: Arc<TableBudget>) -> Self {
        Table {
            budget,
            cells: OnceLock::new(),
        }
    }

    pub(super) fn budget(&self) -> Arc<TableBudget> {
        Arc::clone(&self.budget)
    }

    /// The cells, or none where the budget is spent.
    #[inline]
    pub(super) fn cells(&self) -> Option<&Cells> {
        self.cells
            .get_or_init(|| Cells::allocate(&self.budget))
            .as_deref()
    }

    /// The cells, if a slot has been looked up.
    #[inline]
    pub(super) fn started(&self) -> Option<&Cells> {
        self.cells.get()?.as_deref()
    }

    /// Cells to be filled before any reader sees them.
    pub(super) fn start(&self) -> Option<&Cells> {
        self.cells()
    }

    /// The same cells for a view with the same owners.
    pub(super) fn share(&self) -> Table {
        let shared = Table::new(self.budget());
        if let Some(cells) = self.cells.get().and_then(Option::as_ref) {
            // Nobody else has the new table yet.
            let _ = shared.cells.set(Some(Arc::clone(cells)));
        }
        shared
    }
}

/// As long as the key space is.
fn zeroed<T: Default>() -> Box<[T; SLOTS]> {
    let all: Box<[T]> = (0..SLOTS).map(|_| T::default()).collect();
    match all.try_into() {
        Ok(all) => all,
        Err(_) => unreachable!("it has been made of that length"),
    }
}

fn pack(ranked: Ranked) -> u64 {
    ranked
        .iter()
        .rev()
        .fold(0, |packed, seat| packed << 16 | u64::from(*seat))
}

#[inline]
fn unpack(packed: u64) -> Ranked {
    [
        packed as u16,
        (packed >> 16) as u16,
        (packed >> 32) as u16,
        (packed >> 48) as u16,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_gives_back_what_was_put_in() {
        let cells = Cells::allocate(&TableBudget::new(TABLE_BYTES)).unwrap();
        assert_eq!(cells.read(Slot(7), 4), None);
        cells.fill(Slot(7), [3, 0, NOBODY, NOBODY]);
        assert_eq!(cells.read(Slot(7), 4), Some([3, 0, NOBODY, NOBODY]));
        cells.fill(Slot(9), [3, 0, LOST, LOST]);
        assert_eq!(cells.read(Slot(9), 2), Some([3, 0, LOST, LOST]));
        assert_eq!(cells.read(Slot(9), 3), None);
        assert_eq!(
            (cells.first(Slot(7)), cells.first(Slot(8))),
            (Some(3), None)
        );
        assert_eq!(cells.known().count(), 2);
    }

    #[test]
    fn a_table_is_refused_beyond_the_budget_and_given_back_when_dropped() {
        let budget = TableBudget::new(TABLE_BYTES);
        let first = Table::new(Arc::clone(&budget));
        assert!(first.cells().is_some());
        assert!(Table::new(Arc::clone(&budget)).cells().is_none());
        drop(first);
        assert!(Table::new(budget).cells().is_some());
    }
}
