//! What the shell hears, as in the manual: 0 yes, 1 failed, 2 wrongly used, 3 not there, 4 nodes disagree or have not all
//! seen it, 5 no agent answers.

pub(crate) const FAILED: u8 = 1;
pub(crate) const NOT_FOUND: u8 = 3;
pub(crate) const DISAGREE: u8 = 4;
pub(crate) const UNREACHABLE: u8 = 5;
