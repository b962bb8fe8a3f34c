//! A table slot → owners, filled by its readers: one lookup of a slot scores it, the next ones read.
//!
//! Nothing builds a table as a whole, and a change of the type touches none of it: the views of a type share one table, each
//! with its *epoch*, which says how many changes it has seen. The slots are divided into pages of [`PAGE_SLOTS`]. A page is
//! stamped with the epoch that its slots are of, and whoever looks a slot up by a later view brings that page up to date
//! first. So neither a reader nor the writer ever waits for a whole table.
//!
//! A page is a seqlock. Whoever changes it takes its lock, a bit of its stamp, and nobody waits for that: a reader that
//! finds it taken scores its slot and keeps nothing. A reader that finds the page stamped alike before and after it read
//! has read slots of its epoch. A page whose stamp is later than a reader's view is of no use to that reader; see
//! [`Table::of_an_old_view`].
//!
//! The first owner of each slot has a place of its own, a byte where there are at most [`MAX_NARROW`] seats. The next two
//! are in a direct-mapped cache of [`WORDS`] words: enough for as many slots that several owners are asked of, and a
//! quarter of what they would take in a place of their own. Rule: a word is written by who holds the lock of its slot's page, and
//! so whatever stands there under a slot's tag is of the epoch of that page. Without it, a word of an earlier epoch could
//! come back after its page had been brought up to date.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::key::{SLOTS, Slot};

/// Owners that are found at once.
pub(super) const RANKED: usize = 4;

/// Owners of a slot that a table keeps, at most.
pub(super) const KEPT: usize = 3;

/// The first seats of a slot.
pub(super) type Ranked = [u16; RANKED];

/// No seat: there are fewer than [`RANKED`] names. Larger than any seat, which is below `MAX_INSTANCES_PER_TYPE`.
pub(super) const NOBODY: u16 = u16::MAX;

/// Whoever comes here is not known (any more). All behind it are the same.
pub(super) const LOST: u16 = NOBODY - 1;

/// What is known of a slot that nobody has looked up.
const UNKNOWN: Ranked = [LOST; RANKED];

/// Slots that are brought up to date together: few enough that one lookup does it in passing, and many enough that the
/// stamps take little room.
const PAGE_SLOTS: usize = 32;

const PAGES: usize = SLOTS / PAGE_SLOTS;

/// Words of the cache of second and third owners.
const WORDS: usize = 1 << 16;

/// Bits of a seat in a word, which holds two of them and a tag.
const SEAT_BITS: u32 = 14;

/// Stands for nobody in a word; zero stands for who is not known, and a seat for itself plus one.
const NOBODY_IN_WORD: u32 = (1 << SEAT_BITS) - 1;

/// Seats whose numbers, and one more, fit into a byte.
const MAX_NARROW: usize = 254;

/// Changes of seats that are carried over, at most: with more since a page was read it is cheaper to score it anew.
const MAX_CARRIED: usize = 64;

/// The epoch of a new table.
const FIRST_EPOCH: u32 = 1;

/// Epochs that a stamp can hold; then the views begin a new table.
const MAX_EPOCH: u32 = u32::MAX >> 1;

/// Lookups by an old view before it gets a table of its own: whoever reads by name, and is overtaken by a change, looks
/// up once.
const OLD_VIEW_LOOKUPS: u32 = 1_024;

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

    fn take(&self, bytes: usize) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The first owner of each slot, plus one; zero where it is not known.
#[derive(Debug)]
enum Firsts {
    Narrow(Box<[AtomicU8; SLOTS]>),
    Wide(Box<[AtomicU16; SLOTS]>),
}

impl Firsts {
    #[inline]
    fn load(&self, at: usize) -> u16 {
        match self {
            Firsts::Narrow(seats) => u16::from(seats[at].load(Ordering::Relaxed)),
            Firsts::Wide(seats) => seats[at].load(Ordering::Relaxed),
        }
    }

    fn store(&self, at: usize, seat: u16) {
        match self {
            // Nobody sits there: see `Table::after`.
            Firsts::Narrow(seats) => {
                seats[at].store(u8::try_from(seat).unwrap_or_default(), Ordering::Relaxed)
            }
            Firsts::Wide(seats) => seats[at].store(seat, Ordering::Relaxed),
        }
    }
}

/// The cells of a table, and the budget that they were taken from.
#[derive(Debug)]
pub(super) struct Cells {
    /// Twice the epoch; one more while somebody changes the page. Zero before it was ever read.
    stamps: Box<[AtomicU32; PAGES]>,
    firsts: Firsts,
    /// Second and third seat, and the tag of their slot; zero where nothing is.
    words: Box<[AtomicU32; WORDS]>,
    /// The epoch of the latest view that they were handed to.
    latest: AtomicU32,
    budget: Arc<TableBudget>,
}

impl Drop for Cells {
    fn drop(&mut self) {
        self.budget.give_back(Self::bytes(self.is_narrow()));
    }
}

impl Cells {
    /// What a table takes: 1.4 MiB where it is narrow, else 2.4 MiB.
    pub(super) const fn bytes(narrow: bool) -> usize {
        let first = if narrow { 1 } else { 2 };
        SLOTS * first + PAGES * size_of::<u32>() + WORDS * size_of::<u32>()
    }

    fn allocate(budget: &Arc<TableBudget>, narrow: bool) -> Option<Arc<Cells>> {
        budget.take(Self::bytes(narrow)).then(|| {
            Arc::new(Cells {
                stamps: zeroed(),
                firsts: if narrow {
                    Firsts::Narrow(zeroed())
                } else {
                    Firsts::Wide(zeroed())
                },
                words: zeroed(),
                latest: AtomicU32::new(FIRST_EPOCH),
                budget: Arc::clone(budget),
            })
        })
    }

    fn is_narrow(&self) -> bool {
        matches!(self.firsts, Firsts::Narrow(_))
    }

    #[inline]
    fn stamp(&self, slot: Slot) -> &AtomicU32 {
        &self.stamps[slot.index() / PAGE_SLOTS]
    }

    /// Reads of a page what nobody changed meanwhile.
    #[inline]
    fn read<T>(&self, slot: Slot, epoch: u32, read: impl FnOnce() -> T) -> Option<T> {
        let stamp = self.stamp(slot);
        if stamp.load(Ordering::Acquire) != epoch << 1 {
            return None;
        }
        let value = read();
        fence(Ordering::Acquire);
        (stamp.load(Ordering::Relaxed) == epoch << 1).then_some(value)
    }

    /// The first seat of a slot, where it is known.
    #[inline]
    pub(super) fn first(&self, slot: Slot, epoch: u32) -> Option<u16> {
        let seat = self.read(slot, epoch, || self.firsts.load(slot.index()))?;
        seat.checked_sub(1)
    }

    /// The first seats of a slot, where so many of them are known: at most [`KEPT`] are.
    #[inline]
    pub(super) fn ranked(&self, slot: Slot, epoch: u32, n: usize) -> Option<Ranked> {
        let ranked = self.read(slot, epoch, || self.load(slot.index()))?;
        (ranked[n - 1] != LOST).then_some(ranked)
    }

    /// All that is known of a slot.
    #[inline]
    fn load(&self, at: usize) -> Ranked {
        let Some(first) = self.firsts.load(at).checked_sub(1) else {
            return UNKNOWN;
        };
        let word = self.words[at % WORDS].load(Ordering::Relaxed);
        if word >> (2 * SEAT_BITS) != tag(at) {
            return [first, LOST, LOST, LOST];
        }
        let (second, third) = (seat_in(word), seat_in(word >> SEAT_BITS));
        let fourth = if third == NOBODY { NOBODY } else { LOST };
        [first, second, third, fourth]
    }

    fn store(&self, at: usize, ranked: Ranked) {
        let [first, second, third, _] = ranked;
        if first == LOST {
            self.firsts.store(at, 0);
            return;
        }
        // Without any name there is no table.
        self.firsts.store(at, first.saturating_add(1));
        let word = &self.words[at % WORDS];
        // The word of another slot stays where this one has nothing to say.
        if second != LOST || word.load(Ordering::Relaxed) >> (2 * SEAT_BITS) == tag(at) {
            let seats = in_word(second) | in_word(third) << SEAT_BITS;
            word.store(seats | tag(at) << (2 * SEAT_BITS), Ordering::Relaxed);
        }
    }

    /// Takes the lock of a slot's page.
    pub(super) fn change(&self, slot: Slot, epoch: u32) -> Page<'_> {
        let stamp = self.stamp(slot);
        let before = stamp.load(Ordering::Relaxed);
        if before >> 1 > epoch {
            return Page::Later;
        }
        let locked = epoch << 1 | 1;
        if before & 1 == 1
            || stamp
                .compare_exchange(before, locked, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
        {
            return Page::Busy;
        }
        // A reader that sees what is written from here on sees the lock, too.
        fence(Ordering::Release);
        Page::Ours(Locked {
            cells: self,
            stamp,
            first: slot.index() / PAGE_SLOTS * PAGE_SLOTS,
            before: before >> 1,
            epoch,
        })
    }
}

/// What distinguishes the slots of one word. A word of zeros has the tag of some slots, and says that nothing is known.
#[inline]
fn tag(at: usize) -> u32 {
    (at / WORDS) as u32
}

/// The seat in the lower bits of a word.
#[inline]
fn seat_in(word: u32) -> u16 {
    match word & NOBODY_IN_WORD {
        NOBODY_IN_WORD => NOBODY,
        0 => LOST,
        seat => (seat - 1) as u16,
    }
}

/// A seat, as a word has it; what does not fit is not known. There are more names than promised then.
fn in_word(seat: u16) -> u32 {
    match u32::from(seat) + 1 {
        _ if seat == NOBODY => NOBODY_IN_WORD,
        _ if seat == LOST => 0,
        fits if fits < NOBODY_IN_WORD => fits,
        _ => 0,
    }
}

/// A page that somebody wants to change.
pub(super) enum Page<'a> {
    Ours(Locked<'a>),
    /// Somebody else changes it.
    Busy,
    /// It is of a later epoch.
    Later,
}

/// A page whose lock is held. Call [`behind`](Self::behind), and [`carry`](Self::carry) or [`clear`](Self::clear) where it
/// is, before anything else; dropping it gives the lock back, and says the epoch that its slots are of by then.
pub(super) struct Locked<'a> {
    cells: &'a Cells,
    stamp: &'a AtomicU32,
    first: usize,
    /// The epoch that its slots were of; 0 where there is nothing.
    before: u32,
    epoch: u32,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.stamp.store(self.before << 1, Ordering::Release);
    }
}

impl Locked<'_> {
    /// The epoch that its slots are of, where it is not that of the view.
    pub(super) fn behind(&self) -> Option<u32> {
        (self.before != self.epoch).then_some(self.before)
    }

    /// Makes of what is known of each slot what it is now.
    pub(super) fn carry(&mut self, mut now: impl FnMut(Slot, Ranked) -> Ranked) {
        for at in self.first..self.first + PAGE_SLOTS {
            let was = self.cells.load(at);
            if was != UNKNOWN
                && let Some(slot) = Slot::new(at)
            {
                self.cells.store(at, now(slot, was));
            }
        }
        self.before = self.epoch;
    }

    /// Forgets what is known.
    pub(super) fn clear(&mut self) {
        self.carry(|_, _| UNKNOWN);
    }

    /// What is known of a slot.
    pub(super) fn load(&self, slot: Slot) -> Ranked {
        self.cells.load(slot.index())
    }

    /// Keeps what was found out about a slot.
    pub(super) fn store(&self, slot: Slot, ranked: Ranked) {
        self.cells.store(slot.index(), ranked);
    }
}

/// The table of one view: none until a slot is looked up.
#[derive(Debug)]
pub(super) struct Table {
    budget: Arc<TableBudget>,
    cells: OnceLock<Option<Arc<Cells>>>,
    narrow: bool,
    epoch: u32,
    /// The seats that were given up, taken, or changed, and the epoch that began with it: the latest first.
    moved: Box<[(u32, u16)]>,
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
            narrow: seats <= MAX_NARROW,
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
            .get_or_init(|| Cells::allocate(&self.budget, self.narrow))
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
            .get_or_init(|| Cells::allocate(&self.budget, self.narrow))
            .as_deref()
    }

    /// The same table for a view with the same owners.
    pub(super) fn share(&self) -> Table {
        let shared = Table {
            narrow: self.narrow,
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

    /// The table of the view after a change: of these seats, of so many.
    pub(super) fn after(&self, moved: &[u16], seats: usize) -> Table {
        let outgrown = self.narrow && seats > MAX_NARROW;
        if outgrown || self.epoch == MAX_EPOCH || !self.may_go_on() {
            return Table::new(self.budget(), seats);
        }
        let mut next = self.share();
        next.epoch += 1;
        let mut all: Vec<(u32, u16)> = moved.iter().map(|seat| (next.epoch, *seat)).collect();
        all.extend(&self.moved);
        if all.len() > MAX_CARRIED {
            // The last epoch of which something is cut away is not covered.
            next.moved_since = next.moved_since.max(all[MAX_CARRIED].0);
            all.truncate(MAX_CARRIED);
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

    /// The seats that changed since an epoch, in order; none where they are not known any more.
    pub(super) fn moved_since(&self, epoch: u32) -> Option<SmallVec<[u16; 8]>> {
        if epoch < self.moved_since {
            return None;
        }
        let since = self.moved.iter().take_while(|(began, _)| *began > epoch);
        let mut seats: SmallVec<[u16; 8]> = since.map(|(_, seat)| *seat).collect();
        seats.sort_unstable();
        seats.dedup();
        Some(seats)
    }
}

fn zeroed<T: Default, const N: usize>() -> Box<[T; N]> {
    let all: Box<[T]> = (0..N).map(|_| T::default()).collect();
    match all.try_into() {
        Ok(all) => all,
        Err(_) => unreachable!("it has been made of that length"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(at: usize) -> Slot {
        Slot::new(at).unwrap()
    }

    fn fill(cells: &Cells, epoch: u32, at: usize, ranked: Ranked) {
        let Page::Ours(mut page) = cells.change(slot(at), epoch) else {
            panic!("nobody else is here");
        };
        page.carry(|_, was| was);
        page.store(slot(at), ranked);
    }

    #[test]
    fn a_cell_gives_back_what_was_put_in() {
        for narrow in [true, false] {
            let cells = Cells::allocate(&TableBudget::new(1 << 30), narrow).unwrap();
            assert_eq!(cells.ranked(slot(7), 1, 4), None);
            fill(&cells, 1, 7, [3, 0, NOBODY, NOBODY]);
            assert_eq!(cells.ranked(slot(7), 1, 4), Some([3, 0, NOBODY, NOBODY]));
            fill(&cells, 1, 9, [253, 0, LOST, LOST]);
            assert_eq!(cells.ranked(slot(9), 1, 2), Some([253, 0, LOST, LOST]));
            assert_eq!(cells.ranked(slot(9), 1, 3), None);
            fill(&cells, 1, 10, [1, 16_381, 16_382, 7]);
            assert_eq!(cells.ranked(slot(10), 1, 2), Some([1, 16_381, LOST, LOST]));
            fill(&cells, 1, 10, [1, 2, 3, 4]);
            assert_eq!(cells.ranked(slot(10), 1, 3), Some([1, 2, 3, LOST]));
            assert_eq!(cells.ranked(slot(10), 1, 4), None);
            let firsts = [7, 8, 9].map(|at| cells.first(slot(at), 1));
            assert_eq!(firsts, [Some(3), None, Some(253)]);
        }
    }

    #[test]
    fn slots_of_one_word_keep_their_first_owners() {
        let cells = Cells::allocate(&TableBudget::new(1 << 30), true).unwrap();
        let other = 7 + 3 * WORDS;
        fill(&cells, 1, 7, [3, 0, 1, 2]);
        fill(&cells, 1, other, [4, 5, 6, 7]);
        assert_eq!(cells.ranked(slot(other), 1, 3), Some([4, 5, 6, LOST]));
        assert_eq!(cells.ranked(slot(7), 1, 2), None);
        assert_eq!(cells.first(slot(7), 1), Some(3));
        // Carried over, it does not take the word away from the other.
        fill(&cells, 2, 7, [3, LOST, LOST, LOST]);
        assert_eq!(cells.ranked(slot(other), 1, 3), Some([4, 5, 6, LOST]));
    }

    #[test]
    fn a_page_serves_the_epoch_that_it_is_stamped_with_alone() {
        let cells = Cells::allocate(&TableBudget::new(1 << 30), true).unwrap();
        fill(&cells, 5, 7, [3, 0, 1, 2]);
        assert_eq!(cells.first(slot(7), 5), Some(3));
        assert_eq!(cells.first(slot(7), 4), None);
        assert_eq!(cells.first(slot(7), 6), None);
        assert!(matches!(cells.change(slot(7), 4), Page::Later));
        {
            let page = cells.change(slot(7), 6);
            assert!(matches!(&page, Page::Ours(page) if page.behind() == Some(5)));
            // While it is changed, nobody reads it and nobody waits.
            assert_eq!(cells.first(slot(7), 5), None);
            assert!(matches!(cells.change(slot(8), 6), Page::Busy));
        }
        // It was not brought up to date.
        assert_eq!(cells.first(slot(7), 5), Some(3));
        fill(&cells, 6, 8, [4, 0, 1, 2]);
        assert_eq!(cells.first(slot(7), 6), Some(3));
        assert_eq!(cells.first(slot(7), 5), None);
    }

    #[test]
    fn a_reader_finds_what_is_of_its_epoch_or_nothing_whatever_others_write_meanwhile() {
        const EPOCHS: u32 = 100_000;
        let cells = Cells::allocate(&TableBudget::new(1 << 30), true).unwrap();
        // What each slot is in each epoch.
        let of = |at: usize, epoch: u32| {
            [
                (at as u32 + epoch) as u16 % 250,
                1,
                epoch as u16 % 250,
                LOST,
            ]
        };
        let latest = AtomicU32::new(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for epoch in 1..=EPOCHS {
                    if let Page::Ours(mut page) = cells.change(slot(0), epoch) {
                        page.carry(|_, was| was);
                        for at in 0..PAGE_SLOTS {
                            page.store(slot(at), of(at, epoch));
                        }
                    }
                    latest.store(epoch, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                let mut found = 0_u32;
                loop {
                    let epoch = latest.load(Ordering::Relaxed);
                    for at in 0..PAGE_SLOTS {
                        if let Some(first) = cells.first(slot(at), epoch) {
                            assert_eq!(first, of(at, epoch)[0], "slot {at}, epoch {epoch}");
                            found += 1;
                        }
                        if let Some(ranked) = cells.ranked(slot(at), epoch, 3) {
                            assert_eq!(ranked, of(at, epoch), "slot {at}, epoch {epoch}");
                        }
                    }
                    if epoch == EPOCHS {
                        break;
                    }
                }
                assert!(found > 0);
            });
        });
    }

    #[test]
    fn what_moved_is_known_for_a_bounded_number_of_changes() {
        let budget = TableBudget::new(1 << 30);
        let mut table = Table::new(budget, 100);
        table.cells();
        for seat in 0..MAX_CARRIED as u16 {
            table = table.after(&[seat], 100);
        }
        assert_eq!(table.moved_since(1).unwrap().len(), MAX_CARRIED);
        let last = table.epoch();
        assert_eq!(table.moved_since(last - 2).unwrap()[..], [62, 63]);
        assert!(table.moved_since(last).unwrap().is_empty());
        table = table.after(&[7], 100);
        assert_eq!(table.moved_since(1), None);
        assert_eq!(table.moved_since(2).unwrap().len(), MAX_CARRIED - 1);
        // Several seats of one epoch are there together or not at all.
        table = table.after(&[1, 2, 3], 100);
        assert_eq!(table.moved_since(4), None);
        assert!(table.moved_since(5).is_some());
    }

    #[test]
    fn of_two_views_after_one_the_second_has_a_table_of_its_own() {
        let table = Table::new(TableBudget::new(1 << 30), 100);
        let first = table.cells().map(std::ptr::from_ref);
        let cells = |table: Table| table.cells().map(std::ptr::from_ref);
        let shared = table.share();
        assert_eq!(cells(table.after(&[1], 100)), first);
        assert_ne!(cells(table.after(&[2], 100)), first);
        assert_ne!(cells(shared.after(&[3], 100)), first);
        assert_eq!(cells(shared), first);
    }

    #[test]
    fn a_table_is_refused_beyond_the_budget_and_given_back_when_dropped() {
        let budget = TableBudget::new(Cells::bytes(true));
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
        assert!(Cells::bytes(true) <= 3 * MIB / 2);
        assert!(Cells::bytes(false) <= 5 * MIB / 2);
    }
}
