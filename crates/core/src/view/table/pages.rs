//! Pages of slots, each with one stamp.

use crate::key::SLOTS;

/// Slots with one stamp: few enough that one lookup brings them up to date in passing, and many enough that the stamps
/// take little room.
pub(crate) const PAGE_SLOTS: usize = 32;

pub(super) const PAGES: usize = SLOTS / PAGE_SLOTS;

/// So many of what says nothing yet, without a copy of it on the stack.
pub(super) fn zeroed<T: Default>(length: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(length).collect()
}
