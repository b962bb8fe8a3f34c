//! Second and third owners: a cache for those slots that several owners are asked of, in sets of 8 or 16 words.
//!
//! It takes a fifth of what they would take in a place of their own for each slot. A set serves a run of whole pages; whoever
//! changes a page so finds all its words in one set. Where a set is full, its oldest word goes: after one round, as many
//! keys as fit are there, but for a few. Keys are spread over sets by chance: where an eighth of the words is wanted, one key
//! in eight finds another one in its place if a word has one place alone, and hardly any finds a set of 8 full. Where a
//! quarter is wanted, it takes sets of 16.
//!
//! Rule: a word is written under a slot's tag only by who holds the lock of the slot's page and has looked at the whole set. So
//! there is one word of a slot at most, and it is of the epoch of that page. Without it, a word of an earlier epoch could
//! come back after its page had been brought up to date. To overwrite the words of other slots is allowed to all: what
//! is not there is not known.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::pages::{PAGE_SLOTS, PAGES, zeroed};
use super::ranked::LOST;

/// Words of a kind. Zero says nothing.
pub(super) trait Word: Default {
    /// How many sets there are: a run of at most `1 << TAG_BITS` slots has one.
    const SETS: usize;
    const TAG_BITS: u32;
    const SEAT_BITS: u32;
    /// Seats in a word: the second and the third, and where there is room the first, which need not be looked up then.
    const SEATS: u32;

    fn load(&self) -> u64;
    fn store(&self, word: u64);
}

impl Word for AtomicU32 {
    const SETS: usize = 10 << 10;
    const TAG_BITS: u32 = 8;
    const SEAT_BITS: u32 = 12;
    const SEATS: u32 = 2;

    #[inline]
    fn load(&self) -> u64 {
        AtomicU32::load(self, Ordering::Relaxed).into()
    }

    #[inline]
    fn store(&self, word: u64) {
        // There are no more bits: a tag and two seats.
        AtomicU32::store(self, word as u32, Ordering::Relaxed);
    }
}

impl Word for AtomicU64 {
    const SETS: usize = 5 << 9;
    const TAG_BITS: u32 = 9;
    const SEAT_BITS: u32 = 16;
    const SEATS: u32 = 3;

    #[inline]
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Relaxed)
    }

    #[inline]
    fn store(&self, word: u64) {
        AtomicU64::store(self, word, Ordering::Relaxed);
    }
}

/// Seats whose numbers fit into a narrow word, beside who is nobody and who is not known.
pub(super) const MAX_NARROW_WORDS: usize = (1 << <AtomicU32 as Word>::SEAT_BITS) - 2;

/// Second and third seat of a slot.
pub(super) type Rest = (u16, u16);

/// Of a slot that has no word.
pub(super) const NO_REST: Rest = (LOST, LOST);

/// See the module.
#[derive(Debug)]
pub(super) enum Words {
    Narrow(Ways<AtomicU32, 8>),
    Wide(Ways<AtomicU64, 16>),
}

impl Words {
    pub(super) const fn bytes(narrow: bool) -> usize {
        if narrow {
            Ways::<AtomicU32, 8>::BYTES
        } else {
            Ways::<AtomicU64, 16>::BYTES
        }
    }

    pub(super) fn new(narrow: bool) -> Self {
        if narrow {
            Words::Narrow(Ways::new())
        } else {
            Words::Wide(Ways::new())
        }
    }

    /// The first seat of a slot, plus one, and the others. The first one comes from `first` where its word does not have it.
    #[inline]
    pub(super) fn find(&self, at: usize, first: impl FnOnce() -> u16) -> (u16, Rest) {
        match self {
            Words::Narrow(ways) => ways.find(at, first),
            Words::Wide(ways) => ways.find(at, first),
        }
    }

    /// Of each slot of the page that begins there.
    pub(super) fn of_page(&self, first: usize) -> [Rest; PAGE_SLOTS] {
        match self {
            Words::Narrow(ways) => ways.of_page(first),
            Words::Wide(ways) => ways.of_page(first),
        }
    }

    /// Writes the word of a slot; see the rule above. Where the slot has none, and no place is free, another slot's goes
    /// if it may.
    pub(super) fn put(&self, at: usize, first: u16, rest: Rest, may_displace: bool) {
        match self {
            Words::Narrow(ways) => ways.put(at, first, rest, may_displace),
            Words::Wide(ways) => ways.put(at, first, rest, may_displace),
        }
    }
}

#[derive(Debug)]
pub(super) struct Ways<W, const WAYS: usize> {
    sets: Box<[[W; WAYS]]>,
    /// The oldest word of each full set.
    oldest: Box<[AtomicU8]>,
}

impl<W: Word, const WAYS: usize> Ways<W, WAYS> {
    const BYTES: usize = W::SETS * (WAYS * size_of::<W>() + size_of::<AtomicU8>());

    fn new() -> Self {
        Ways {
            sets: std::iter::repeat_with(|| std::array::from_fn(|_| W::default()))
                .take(W::SETS)
                .collect(),
            oldest: zeroed(W::SETS),
        }
    }

    #[inline]
    fn set_of(at: usize) -> usize {
        at / PAGE_SLOTS * W::SETS / PAGES
    }

    /// What distinguishes the slots of one set.
    #[inline]
    fn tag(at: usize) -> u64 {
        at as u64 & ((1 << W::TAG_BITS) - 1)
    }

    #[inline]
    fn tag_in(word: u64) -> u64 {
        word >> (W::SEATS * W::SEAT_BITS)
    }

    fn word(at: usize, first: u16, (second, third): Rest) -> u64 {
        let second = Self::in_word(second);
        if second == 0 {
            return 0;
        }
        let mut word = Self::tag(at);
        if W::SEATS > 2 {
            word = word << W::SEAT_BITS | Self::in_word(first);
        }
        (word << W::SEAT_BITS | Self::in_word(third)) << W::SEAT_BITS | second
    }

    /// A seat, as a word has it: zero stands for who is not known, one for nobody. What does not fit is not known: there
    /// are more names than promised then.
    fn in_word(seat: u16) -> u64 {
        let shown = u64::from(seat.wrapping_sub(LOST));
        if shown >> W::SEAT_BITS == 0 { shown } else { 0 }
    }

    #[inline]
    fn seat_in(word: u64) -> u16 {
        ((word & ((1 << W::SEAT_BITS) - 1)) as u16).wrapping_add(LOST)
    }

    #[inline]
    fn rest_in(word: u64) -> Rest {
        (Self::seat_in(word), Self::seat_in(word >> W::SEAT_BITS))
    }

    #[inline]
    fn find(&self, at: usize, first: impl FnOnce() -> u16) -> (u16, Rest) {
        // First of all, where it is looked up: it is the load that mostly has to wait, and the others need not wait for it.
        let (first, looked_up) = if W::SEATS > 2 {
            (Some(first), 0)
        } else {
            (None, first())
        };
        let tag = Self::tag(at);
        let mut found = 0;
        // Without a branch: where the word is, nobody can foresee. A word of zeros may look like the slot's, and adds
        // nothing.
        for word in &self.sets[Self::set_of(at)] {
            let word = word.load();
            found |= if Self::tag_in(word) == tag { word } else { 0 };
        }
        let first = match first {
            Some(_) if found != 0 => Self::seat_in(found >> (2 * W::SEAT_BITS)).saturating_add(1),
            Some(first) => first(),
            None => looked_up,
        };
        (first, Self::rest_in(found))
    }

    fn of_page(&self, first: usize) -> [Rest; PAGE_SLOTS] {
        let mut page = [NO_REST; PAGE_SLOTS];
        for word in &self.sets[Self::set_of(first)] {
            let word = word.load();
            let at = Self::tag_in(word).wrapping_sub(Self::tag(first));
            let at = (at & ((1 << W::TAG_BITS) - 1)) as usize;
            if word != 0 && at < PAGE_SLOTS {
                page[at] = Self::rest_in(word);
            }
        }
        page
    }

    fn put(&self, at: usize, first: u16, rest: Rest, may_displace: bool) {
        let (number, word) = (Self::set_of(at), Self::word(at, first, rest));
        let set = &self.sets[number];
        let is_ours = |other: &W| {
            let other = other.load();
            other != 0 && Self::tag_in(other) == Self::tag(at)
        };
        let place = match set.iter().position(is_ours) {
            Some(ours) => ours,
            None if word == 0 => return,
            None => match set.iter().position(|other| other.load() == 0) {
                Some(free) => free,
                None if !may_displace => return,
                None => {
                    // Whoever comes here at the same moment may take the same one: nothing is lost but a word.
                    let oldest = &self.oldest[number];
                    let place = oldest.load(Ordering::Relaxed);
                    oldest.store(place.wrapping_add(1), Ordering::Relaxed);
                    usize::from(place) % WAYS
                }
            },
        };
        set[place].store(word);
    }
}

#[cfg(test)]
mod tests {
    use super::super::NOBODY;
    use super::*;

    fn rest(words: &Words, at: usize) -> Rest {
        let (first, rest) = words.find(at, || 10);
        assert_eq!(first, 10);
        rest
    }

    #[test]
    fn a_word_gives_back_what_was_put_in() {
        let most = MAX_NARROW_WORDS as u16 - 1;
        let words = Words::new(true);
        for those in [(0, 1), (7, LOST), (3, NOBODY), (most, most)] {
            words.put(9, 9, those, true);
            assert_eq!(rest(&words, 9), those);
        }
        // Too many for this width: not known, which is never wrong.
        words.put(9, 9, (5, most + 1), true);
        assert_eq!(rest(&words, 9), (5, LOST));
        words.put(9, 9, (most + 1, 5), true);
        assert_eq!(rest(&words, 9), NO_REST);
        let words = Words::new(false);
        for those in [(0, 1), (7, LOST), (3, NOBODY), (40_000, LOST - 3)] {
            words.put(9, 9, those, true);
            assert_eq!(rest(&words, 9), those);
        }
    }

    /// Rule: slots of one set have different tags.
    #[test]
    fn no_slot_is_taken_for_another_one() {
        fn check<W: Word, const WAYS: usize>() {
            let mut runs = std::collections::HashMap::new();
            for at in (0..crate::key::SLOTS).step_by(PAGE_SLOTS) {
                let set = Ways::<W, WAYS>::set_of(at);
                assert!(set < W::SETS);
                // All slots of a page have one set.
                assert_eq!(set, Ways::<W, WAYS>::set_of(at + PAGE_SLOTS - 1));
                let first = *runs.entry(set).or_insert(at);
                assert!(at + PAGE_SLOTS - first <= 1 << W::TAG_BITS);
            }
            assert_eq!(runs.len(), W::SETS);
        }
        check::<AtomicU32, 8>();
        check::<AtomicU64, 16>();
    }

    #[test]
    fn a_full_set_gives_its_oldest_word_away_where_it_may() {
        for (words, ways) in [(Words::new(true), 8), (Words::new(false), 16)] {
            // The first pages have the first set.
            for at in 0..ways {
                words.put(at, 9, (at as u16, LOST), false);
            }
            words.put(100, 9, (1, 2), false);
            assert_eq!(rest(&words, 100), NO_REST);
            for at in [100, 101] {
                words.put(at, 9, (1, 2), true);
            }
            let found: Vec<u16> = (0..ways).map(|at| rest(&words, at).0).collect();
            assert_eq!(found[..3], [LOST, LOST, 2]);
            assert_eq!(rest(&words, 100), (1, 2));
            assert_eq!(words.of_page(96)[4..6], [(1, 2), (1, 2)]);
            // What is given up is free.
            words.put(5, 9, NO_REST, false);
            words.put(102, 9, (3, 4), false);
            assert_eq!(rest(&words, 102), (3, 4));
            assert_eq!((rest(&words, 5), rest(&words, 4)), (NO_REST, (4, LOST)));
        }
    }
}
