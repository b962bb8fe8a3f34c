//! The parts of the key space.

/// Bits of a hash that say its slot.
pub(super) const SLOT_BITS: u32 = 20;

/// Slots of the key space. With n instances of equal weight each has SLOTS/n ± √(SLOTS/n) of them: so many that the most
/// loaded of 1,000 has a tenth more than the mean.
pub const SLOTS: usize = 1 << SLOT_BITS;

/// Bits of a hash that say where a key is placed whose state moves with it.
const KEYED_SLOT_BITS: u32 = 12;

/// Slots by which the keys are placed of a type whose states move with them.
///
/// There is a token for each, and each is asked for and given by itself when an instance comes or goes: with [`SLOTS`] of them a
/// join would take a million messages, most of them about nothing. The price is that shares are less even: with n instances
/// of equal weight each has KEYED_SLOTS/n ± √(KEYED_SLOTS/n) of them, so that of 10 the most loaded has about 1.08 times the
/// mean, of 100 about 1.4 times.
pub const KEYED_SLOTS: usize = 1 << KEYED_SLOT_BITS;

/// A keyed slot is so many slots, as a power of two.
pub(crate) const KEYED_SHIFT: u32 = SLOT_BITS - KEYED_SLOT_BITS;

/// One of [`SLOTS`] parts of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot of that index; none from [`SLOTS`] on.
    #[inline]
    pub const fn new(index: usize) -> Option<Slot> {
        if index < SLOTS {
            Some(Slot(index as u32))
        } else {
            None
        }
    }

    /// The slot that stands for this one where states move with their keys: the first of its keyed slot.
    #[inline]
    pub const fn keyed(self) -> Slot {
        Slot(self.0 >> KEYED_SHIFT << KEYED_SHIFT)
    }

    /// Which of the [`KEYED_SLOTS`] it is in.
    #[inline]
    pub const fn keyed_index(self) -> u32 {
        self.0 >> KEYED_SHIFT
    }

    /// The slot of a hash: its top bits.
    #[inline]
    pub(super) const fn of_hash(hash: u64) -> Slot {
        Slot((hash >> (u64::BITS - SLOT_BITS)) as u32)
    }

    /// Below [`SLOTS`].
    #[inline]
    pub const fn index(self) -> usize {
        // No slot is larger; said again, so that what is as long as the key space is read without a check.
        self.0 as usize % SLOTS
    }
}
