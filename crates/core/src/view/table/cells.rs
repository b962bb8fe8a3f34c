//! The cells of a table, in pages.
//!
//! A page is a seqlock. Whoever changes it takes its lock, a bit of its stamp, and nobody waits for that: a reader that
//! finds it taken scores its slot and keeps nothing. A reader that finds the page stamped alike before and after it read
//! has read slots of the stamp's epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering, fence};

use super::budget::TableBudget;
use super::pages::{PAGE_SLOTS, PAGES, zeroed};
use super::ranked::{KEPT, LOST, NOBODY, Ranked, UNKNOWN};
use super::words::{MAX_NARROW_WORDS, NO_REST, Rest, Words};
use crate::key::{SLOTS, Slot};

/// The epoch of a new table.
pub(super) const FIRST_EPOCH: u32 = 1;

/// Lookups by later views before a page is brought up to date: so many that it costs each of them little, where a type
/// changes all the time.
pub(crate) const LATE_LOOKUPS: u8 = 4 * PAGE_SLOTS as u8;

/// Seats whose numbers, and one more, fit into a byte.
const MAX_NARROW: usize = 254;

/// How much room the seats of a table take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    /// A byte for the first seat of each slot.
    Narrow,
    /// Two bytes for the first, and a word of 32 bits for the next two.
    Middle,
    /// Words of 64 bits.
    Wide,
}

impl Width {
    pub(super) const fn of(seats: usize) -> Self {
        if seats <= MAX_NARROW {
            Width::Narrow
        } else if seats <= MAX_NARROW_WORDS {
            Width::Middle
        } else {
            Width::Wide
        }
    }
}

/// The first owner of each slot, plus one; zero where it is not known.
#[derive(Debug)]
enum Firsts {
    Narrow(Box<[AtomicU8; SLOTS]>),
    Wide(Box<[AtomicU16; SLOTS]>),
}

impl Firsts {
    fn new(width: Width) -> Self {
        if width == Width::Narrow {
            Firsts::Narrow(of_length(zeroed(SLOTS)))
        } else {
            Firsts::Wide(of_length(zeroed(SLOTS)))
        }
    }

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
pub(crate) struct Cells {
    /// Twice the epoch; one more while somebody changes the page. Zero before it was ever read.
    stamps: Box<[AtomicU32; PAGES]>,
    /// Lookups of each page by views that are later than its stamp.
    late: Box<[AtomicU8; PAGES]>,
    firsts: Firsts,
    words: Words,
    width: Width,
    /// The epoch of the latest view that they were handed to.
    pub(super) latest: AtomicU32,
    budget: Arc<TableBudget>,
    #[cfg(test)]
    pub(crate) counts: Counts,
}

/// What lookups did beyond reading.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Slots that were scored.
    pub(crate) scored: AtomicU32,
    /// Slots that a lookup brought up to date for itself.
    pub(crate) carried_alone: AtomicU32,
    /// Slots that were brought up to date with their page.
    pub(crate) carried: AtomicU32,
}

impl Drop for Cells {
    fn drop(&mut self) {
        self.budget.give_back(Self::bytes(self.width));
    }
}

impl Cells {
    /// What a table takes: 1.5 MiB where it is narrow, else 2.5 MiB.
    pub(super) const fn bytes(width: Width) -> usize {
        let first = match width {
            Width::Narrow => size_of::<u8>(),
            Width::Middle | Width::Wide => size_of::<u16>(),
        };
        let of_page = size_of::<AtomicU32>() + size_of::<AtomicU8>();
        SLOTS * first + PAGES * of_page + Words::bytes(Self::has_narrow_words(width))
    }

    const fn has_narrow_words(width: Width) -> bool {
        !matches!(width, Width::Wide)
    }

    pub(super) fn allocate(budget: &Arc<TableBudget>, width: Width) -> Option<Arc<Cells>> {
        budget.take(Self::bytes(width)).then(|| {
            Arc::new(Cells {
                stamps: of_length(zeroed(PAGES)),
                late: of_length(zeroed(PAGES)),
                firsts: Firsts::new(width),
                words: Words::new(Self::has_narrow_words(width)),
                width,
                latest: AtomicU32::new(FIRST_EPOCH),
                budget: Arc::clone(budget),
                #[cfg(test)]
                counts: Counts::default(),
            })
        })
    }

    #[cfg(test)]
    pub(crate) fn count(&self, what: impl Fn(&Counts) -> &AtomicU32) {
        what(&self.counts).fetch_add(1, Ordering::Relaxed);
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

    /// The first seat of a slot, with what says of when it is.
    #[inline]
    pub(crate) fn first(&self, slot: Slot) -> First {
        let stamp = self.stamp(slot);
        let before = stamp.load(Ordering::Acquire);
        let seat = self.firsts.load(slot.index());
        fence(Ordering::Acquire);
        if stamp.load(Ordering::Relaxed) == before {
            First {
                stamp: before,
                seat,
            }
        } else {
            First::default()
        }
    }

    /// The first seats of a slot, where so many of them are known: at most [`KEPT`] are.
    #[inline]
    pub(crate) fn ranked(&self, slot: Slot, epoch: u32, n: usize) -> Option<Ranked> {
        let ranked = self.read(slot, epoch, || self.load(slot.index()))?;
        (ranked[n - 1] != LOST).then_some(ranked)
    }

    /// What is known of a slot whose page is of an earlier epoch, and that epoch: the first seat at least.
    #[inline]
    pub(crate) fn earlier(&self, slot: Slot, epoch: u32) -> Option<(u32, Ranked)> {
        let stamp = self.stamp(slot).load(Ordering::Relaxed);
        if stamp & 1 == 1 || stamp >> 1 >= epoch {
            return None;
        }
        let ranked = self.read(slot, stamp >> 1, || self.load(slot.index()))?;
        (ranked[0] != LOST).then_some((stamp >> 1, ranked))
    }

    /// Counts a lookup by a view that is later than the slot's page; true where there were [`LATE_LOOKUPS`] since the page
    /// was last brought up to date.
    #[inline]
    pub(crate) fn is_often_late(&self, slot: Slot) -> bool {
        let late = &self.late[slot.index() / PAGE_SLOTS];
        // Counts of others may be lost, which does no harm.
        let count = late.load(Ordering::Relaxed).wrapping_add(1);
        late.store(count, Ordering::Relaxed);
        count >= LATE_LOOKUPS
    }

    /// What is known of a slot.
    #[inline]
    fn load(&self, at: usize) -> Ranked {
        let (first, rest) = self.words.find(at, || self.firsts.load(at));
        with_rest(first, rest)
    }

    fn store(&self, at: usize, ranked: Ranked, may_displace: bool) {
        let [first, second, third, _] = ranked;
        let (shown, rest) = match first {
            LOST => (0, NO_REST),
            // Without any name there is no table.
            first => (first.saturating_add(1), (second, third)),
        };
        self.firsts.store(at, shown);
        self.words.put(at, first, rest, may_displace);
    }

    /// Takes the lock of a slot's page.
    pub(crate) fn change(&self, slot: Slot, epoch: u32) -> Page<'_> {
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

/// The first seat of a slot, and the stamp of its page. By default nothing.
#[derive(Clone, Copy, Default)]
pub(crate) struct First {
    stamp: u32,
    /// Plus one; zero where it is not known.
    seat: u16,
}

impl First {
    /// The seat, where it is known and of that epoch.
    #[inline]
    pub(crate) fn of(self, epoch: u32) -> Option<u16> {
        if self.stamp != epoch << 1 {
            return None;
        }
        self.seat.checked_sub(1)
    }

    /// The seat and its epoch, where it is known and of an earlier one.
    #[inline]
    pub(crate) fn before(self, epoch: u32) -> Option<(u32, u16)> {
        if self.stamp >= epoch << 1 || self.stamp & 1 == 1 {
            return None;
        }
        Some((self.stamp >> 1, self.seat.checked_sub(1)?))
    }
}

/// A page that somebody wants to change.
pub(crate) enum Page<'a> {
    Ours(Locked<'a>),
    /// Somebody else changes it.
    Busy,
    /// It is of a later epoch.
    Later,
}

/// A page whose lock is held. Call [`behind`](Self::behind), and [`carry`](Self::carry) or [`clear`](Self::clear) where it
/// is, before anything else; dropping it gives the lock back, and says the epoch that its slots are of by then.
pub(crate) struct Locked<'a> {
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
    pub(crate) fn behind(&self) -> Option<u32> {
        (self.before != self.epoch).then_some(self.before)
    }

    /// Makes of what is known of each slot what it is now.
    pub(crate) fn carry(&mut self, mut now: impl FnMut(Slot, Ranked) -> Ranked) {
        let cells = self.cells;
        for (at, rest) in (self.first..).zip(cells.words.of_page(self.first)) {
            let was = with_rest(cells.firsts.load(at), rest);
            if was != UNKNOWN
                && let Some(slot) = Slot::new(at)
            {
                #[cfg(test)]
                cells.count(|counts| &counts.carried);
                let is = now(slot, was);
                if is[..KEPT] != was[..KEPT] {
                    // Who was looked up alone takes nobody's place.
                    cells.store(at, is, false);
                }
            }
        }
        cells.late[self.first / PAGE_SLOTS].store(0, Ordering::Relaxed);
        self.before = self.epoch;
    }

    /// Forgets what is known.
    pub(crate) fn clear(&mut self) {
        self.carry(|_, _| UNKNOWN);
    }

    /// What is known of a slot.
    pub(crate) fn load(&self, slot: Slot) -> Ranked {
        self.cells.load(slot.index())
    }

    /// Keeps what was found out about a slot that so many owners were asked of.
    pub(crate) fn store(&self, slot: Slot, ranked: Ranked, n: usize) {
        // Rule: lookups of one owner do not displace what those of several need. Without it, a table that is filled by
        // the first kind has no room for the second.
        self.cells.store(slot.index(), ranked, n > 1);
    }
}

#[inline]
fn with_rest(first: u16, (second, third): Rest) -> Ranked {
    let Some(first) = first.checked_sub(1) else {
        return UNKNOWN;
    };
    let fourth = if third == NOBODY { NOBODY } else { LOST };
    [first, second, third, fourth]
}

fn of_length<T, const N: usize>(all: Box<[T]>) -> Box<[T; N]> {
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
        page.store(slot(at), ranked, 3);
    }

    #[test]
    fn a_cell_gives_back_what_was_put_in() {
        for width in [Width::Narrow, Width::Middle, Width::Wide] {
            let cells = Cells::allocate(&TableBudget::new(1 << 30), width).unwrap();
            assert_eq!(cells.ranked(slot(7), 1, 4), None);
            fill(&cells, 1, 7, [3, 0, NOBODY, NOBODY]);
            assert_eq!(cells.ranked(slot(7), 1, 4), Some([3, 0, NOBODY, NOBODY]));
            fill(&cells, 1, 9, [253, 0, LOST, LOST]);
            assert_eq!(cells.ranked(slot(9), 1, 2), Some([253, 0, LOST, LOST]));
            assert_eq!(cells.ranked(slot(9), 1, 3), None);
            fill(&cells, 1, 10, [1, 2, 3, 4]);
            assert_eq!(cells.ranked(slot(10), 1, 3), Some([1, 2, 3, LOST]));
            assert_eq!(cells.ranked(slot(10), 1, 4), None);
            let firsts = [7, 8, 9].map(|at| cells.first(slot(at)).of(1));
            assert_eq!(firsts, [Some(3), None, Some(253)]);
        }
    }

    #[test]
    fn a_page_serves_the_epoch_that_it_is_stamped_with_alone() {
        let cells = Cells::allocate(&TableBudget::new(1 << 30), Width::Narrow).unwrap();
        fill(&cells, 5, 7, [3, 0, 1, 2]);
        assert_eq!(cells.first(slot(7)).of(5), Some(3));
        assert_eq!(cells.first(slot(7)).of(4), None);
        assert_eq!(cells.first(slot(7)).of(6), None);
        assert!(matches!(cells.change(slot(7), 4), Page::Later));
        {
            let page = cells.change(slot(7), 6);
            assert!(matches!(&page, Page::Ours(page) if page.behind() == Some(5)));
            // While it is changed, nobody reads it and nobody waits.
            assert_eq!(cells.first(slot(7)).of(5), None);
            assert!(matches!(cells.change(slot(8), 6), Page::Busy));
        }
        // It was not brought up to date.
        assert_eq!(cells.first(slot(7)).of(5), Some(3));
        // A later reader finds what was, and of when it is.
        assert_eq!(cells.earlier(slot(7), 7), Some((5, [3, 0, 1, LOST])));
        assert_eq!(cells.earlier(slot(7), 5), None);
        assert_eq!(cells.earlier(slot(9), 7), None);
        fill(&cells, 6, 8, [4, 0, 1, 2]);
        assert_eq!(cells.first(slot(7)).of(6), Some(3));
        assert_eq!(cells.first(slot(7)).of(5), None);
    }

    #[test]
    fn a_reader_finds_what_is_of_its_epoch_or_nothing_whatever_others_write_meanwhile() {
        const EPOCHS: u32 = 100_000;
        let cells = Cells::allocate(&TableBudget::new(1 << 30), Width::Narrow).unwrap();
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
                            page.store(slot(at), of(at, epoch), 3);
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
                        if let Some(first) = cells.first(slot(at)).of(epoch) {
                            assert_eq!(first, of(at, epoch)[0], "slot {at}, epoch {epoch}");
                            found += 1;
                        }
                        if let Some(ranked) = cells.ranked(slot(at), epoch, 3) {
                            assert_eq!(ranked, of(at, epoch), "slot {at}, epoch {epoch}");
                        }
                        if let Some((since, first)) = cells.first(slot(at)).before(epoch + 1) {
                            assert_eq!(first, of(at, since)[0], "slot {at}, epoch {since}");
                        }
                        if let Some((since, ranked)) = cells.earlier(slot(at), epoch + 1) {
                            assert!(since <= epoch);
                            assert_eq!(ranked[0], of(at, since)[0], "slot {at}, epoch {since}");
                            let rest = ranked[1] == LOST || ranked == of(at, since);
                            assert!(rest, "slot {at}, epoch {since}");
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
}
