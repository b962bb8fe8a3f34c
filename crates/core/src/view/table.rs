//! A table slot → owners, filled by its readers: one lookup of a slot scores it, the next ones read it.
//!
//! Nothing builds a table as a whole, and a change of the type touches none of it: the views of a type share one table, each
//! with its *epoch*, which says how many changes it has seen, and with the seats that moved in the latest of them. The slots
//! are divided into pages, each stamped with the epoch that its slots are of. Who looks a slot up by a later view brings
//! that slot up to date for itself, by comparing its owners with the seats that moved since, and writes nothing: a page is
//! brought up to date as a whole after a number of such lookups, and where what a slot has lost must be scored. So
//! neither a reader nor the writer ever waits for a whole table, and where a type changes all the time a lookup does the work
//! of its own slot alone.
//!
//! A page whose stamp is later than a reader's view is of no use to that reader; see [`Table::of_an_old_view`].
//!
//! The first owner of each slot has a place of its own, the next two are in a cache for those slots that several owners are
//! asked of.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

mod budget;
mod cells;
mod pages;
mod ranked;
mod words;

pub(crate) use budget::TableBudget;
#[cfg(test)]
pub(super) use cells::LATE_LOOKUPS;
pub(super) use cells::{Cells, First, Locked, Page};
use cells::{FIRST_EPOCH, Width};
#[cfg(test)]
pub(super) use pages::PAGE_SLOTS;
pub(super) use ranked::{KEPT, LOST, NOBODY, RANKED, Ranked};

/// Seats that moved and are known, at most: with more since a page was read it is cheaper to score it anew.
const MAX_MOVED: usize = 64;

/// As many are not looked at again and again: the page is brought up to date, before some are not known any more.
pub(super) const MANY_MOVED: usize = MAX_MOVED / 2;

/// Epochs that a stamp can hold; then the views begin a new table.
const MAX_EPOCH: u32 = u32::MAX >> 1;

/// Lookups by an old view before it gets a table of its own: whoever reads by name, and is overtaken by a change, looks
/// up once.
const OLD_VIEW_LOOKUPS: u32 = 1_024;

/// A seat that was given up, taken, or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// The epoch that began with it, the last time that it moved.
    epoch: u32,
    pub(super) seat: u16,
    /// Somebody has it by now.
    pub(super) is_taken: bool,
}

/// The table of one view: none until a slot is looked up.
#[derive(Debug)]
pub(super) struct Table {
    budget: Arc<TableBudget>,
    cells: OnceLock<Option<Arc<Cells>>>,
    width: Width,
    epoch: u32,
    /// The seats that moved, each once: the latest first.
    moved: Box<[Moved]>,
    /// Changes at earlier epochs than this one are not in `moved`.
    moved_since: u32,
    /// See [`Table::of_an_old_view`].
    old: OldView,
}

#[derive(Debug, Default)]
struct OldView {
    lookups: AtomicU32,
    cells: OnceLock<Option<Arc<Cells>>>,
}

impl Table {
    /// For so many seats.
    pub(super) fn new(budget: Arc<TableBudget>, seats: usize) -> Self {
        Table {
            budget,
            cells: OnceLock::new(),
            width: Width::of(seats),
            epoch: FIRST_EPOCH,
            moved: Box::default(),
            moved_since: FIRST_EPOCH,
            old: OldView::default(),
        }
    }

    pub(super) fn budget(&self) -> Arc<TableBudget> {
        Arc::clone(&self.budget)
    }

    /// What the cells are to be read with.
    #[inline]
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The cells, or none where the budget is spent.
    #[inline]
    pub(super) fn cells(&self) -> Option<&Cells> {
        self.cells
            .get_or_init(|| Cells::allocate(&self.budget, self.width))
            .as_deref()
    }

    /// The cells, if a slot has been looked up.
    #[inline]
    pub(super) fn started(&self) -> Option<&Cells> {
        self.cells.get()?.as_deref()
    }

    /// A table for who looks many keys up in a view that is held while the type changes: the pages of the shared one go on
    /// with its changes. None for the first few lookups, and where the budget is spent.
    pub(super) fn of_an_old_view(&self) -> Option<&Cells> {
        if self.old.lookups.load(Ordering::Relaxed) < OLD_VIEW_LOOKUPS {
            self.old.lookups.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.old
            .cells
            .get_or_init(|| Cells::allocate(&self.budget, self.width))
            .as_deref()
    }

    /// The same table for a view with the same owners.
    pub(super) fn share(&self) -> Table {
        let shared = Table {
            width: self.width,
            epoch: self.epoch,
            moved: self.moved.clone(),
            moved_since: self.moved_since,
            ..Table::new(self.budget(), 0)
        };
        if let Some(cells) = self.cells.get().and_then(Option::as_ref) {
            // Nobody else has the new table yet.
            let _ = shared.cells.set(Some(Arc::clone(cells)));
        }
        shared
    }

    /// The table of the view after a change: of seats that moved, each with whether somebody has it now, and of so many.
    pub(super) fn after(&self, moved: &[(u16, bool)], seats: usize) -> Table {
        let outgrown = Width::of(seats) > self.width;
        if outgrown || self.epoch == MAX_EPOCH || !self.may_go_on() {
            return Table::new(self.budget(), seats);
        }
        let mut next = self.share();
        next.epoch += 1;
        let epoch = next.epoch;
        let now = moved.iter().map(|&(seat, is_taken)| Moved {
            epoch,
            seat,
            is_taken,
        });
        // Those that move again are known by their latest move.
        let moved_now = |seat: u16| moved.iter().any(|(moved, _)| *moved == seat);
        let before = self
            .moved
            .iter()
            .filter(|before| moved.len() <= MAX_MOVED && !moved_now(before.seat));
        let mut all: Vec<Moved> = now.chain(before.copied()).collect();
        if all.len() > MAX_MOVED {
            // The last epoch of which something is cut away is not covered.
            next.moved_since = next.moved_since.max(all[MAX_MOVED].epoch);
            all.truncate(MAX_MOVED);
        }
        next.moved = all.into();
        next
    }

    /// True for one view after each: two views that both came after this one would stamp pages alike.
    fn may_go_on(&self) -> bool {
        self.started().is_some_and(|cells| {
            let (now, next) = (self.epoch, self.epoch + 1);
            let latest = &cells.latest;
            latest
                .compare_exchange(now, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// The seats that moved since an epoch, each once; none where they are not known any more.
    #[inline]
    pub(super) fn moved_since(&self, epoch: u32) -> Option<&[Moved]> {
        if epoch < self.moved_since {
            return None;
        }
        let since = self.moved.iter().take_while(|moved| moved.epoch > epoch);
        Some(&self.moved[..since.count()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(moved: Option<&[Moved]>) -> Vec<u16> {
        moved.unwrap().iter().map(|moved| moved.seat).collect()
    }

    #[test]
    fn what_moved_is_known_for_a_bounded_number_of_changes() {
        let budget = TableBudget::new(1 << 30);
        let mut table = Table::new(budget, 100);
        table.cells();
        for seat in 0..MAX_MOVED as u16 {
            table = table.after(&[(seat, true)], 100);
        }
        assert_eq!(table.moved_since(1).unwrap().len(), MAX_MOVED);
        let last = table.epoch();
        assert_eq!(seats(table.moved_since(last - 2)), [63, 62]);
        assert!(table.moved_since(last).unwrap().is_empty());
        table = table.after(&[(70, true)], 100);
        assert_eq!(table.moved_since(1), None);
        assert_eq!(table.moved_since(2).unwrap().len(), MAX_MOVED);
        // Several seats of one epoch are there together or not at all.
        table = table.after(&[(71, true), (72, true), (73, true)], 100);
        assert_eq!(table.moved_since(4), None);
        assert!(table.moved_since(5).is_some());
    }

    /// One that comes and goes does not make what the others did unknown.
    #[test]
    fn a_seat_that_moves_again_is_known_by_its_latest_move() {
        let mut table = Table::new(TableBudget::new(1 << 30), 100);
        table.cells();
        table = table.after(&[(1, true)], 100);
        for turn in 0..3 * MAX_MOVED {
            table = table.after(&[(2, turn % 2 == 0)], 100);
        }
        assert_eq!(seats(table.moved_since(1)), [2, 1]);
        assert_eq!(seats(table.moved_since(2)), [2]);
        assert!(!table.moved_since(2).unwrap()[0].is_taken);
        // More at once than are known.
        let all: Vec<(u16, bool)> = (0..100).map(|seat| (seat, true)).collect();
        table = table.after(&all, 100);
        assert_eq!(table.moved_since(table.epoch() - 1), None);
    }

    #[test]
    fn of_two_views_after_one_the_second_has_a_table_of_its_own() {
        let table = Table::new(TableBudget::new(1 << 30), 100);
        let first = table.cells().map(std::ptr::from_ref);
        let cells = |table: Table| table.cells().map(std::ptr::from_ref);
        let shared = table.share();
        assert_eq!(cells(table.after(&[(1, true)], 100)), first);
        assert_ne!(cells(table.after(&[(2, true)], 100)), first);
        assert_ne!(cells(shared.after(&[(3, true)], 100)), first);
        assert_eq!(cells(shared), first);
    }

    #[test]
    fn a_table_is_refused_beyond_the_budget_and_given_back_when_dropped() {
        let budget = TableBudget::new(Cells::bytes(Width::Narrow));
        let first = Table::new(Arc::clone(&budget), 3);
        assert!(first.cells().is_some());
        assert!(Table::new(Arc::clone(&budget), 3).cells().is_none());
        drop(first);
        assert!(Table::new(Arc::clone(&budget), 255).cells().is_none());
        assert!(Table::new(budget, 3).cells().is_some());
    }

    #[test]
    fn a_table_takes_what_is_promised() {
        const MIB: usize = 1 << 20;
        assert!(Cells::bytes(Width::Narrow) <= 3 * MIB / 2);
        assert!(Cells::bytes(Width::Middle) <= 5 * MIB / 2);
        assert!(Cells::bytes(Width::Wide) <= 5 * MIB / 2);
    }

    #[test]
    fn a_type_that_outgrows_its_table_begins_a_new_one() {
        let table = Table::new(TableBudget::new(1 << 30), 254);
        let first = table.cells().map(std::ptr::from_ref);
        let table = table.after(&[(1, true)], 254);
        assert_eq!(table.cells().map(std::ptr::from_ref), first);
        for (before, after) in [(254, 255), (4_094, 4_095)] {
            let table = Table::new(TableBudget::new(1 << 30), before);
            let first = table.cells().map(std::ptr::from_ref);
            let next = table.after(&[(1, true)], after);
            assert_ne!(next.cells().map(std::ptr::from_ref), first);
        }
    }
}
