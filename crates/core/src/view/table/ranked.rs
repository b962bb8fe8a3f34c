//! The first owners of a slot, as far as they are known.

/// Owners that are found at once.
pub(crate) const RANKED: usize = 4;

/// Owners of a slot that a table keeps, at most.
pub(crate) const KEPT: usize = 3;

/// The first seats of a slot.
pub(crate) type Ranked = [u16; RANKED];

/// No seat: there are fewer than [`RANKED`] names. Larger than any seat, which is below `MAX_INSTANCES_PER_TYPE`.
pub(crate) const NOBODY: u16 = u16::MAX;

/// Whoever comes here is not known (any more). All behind it are the same.
pub(crate) const LOST: u16 = NOBODY - 1;

/// What is known of a slot that nobody has looked up.
pub(crate) const UNKNOWN: Ranked = [LOST; RANKED];
