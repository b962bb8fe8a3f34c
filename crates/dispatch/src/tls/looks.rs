//! What the looks at the files of the certificates remember.

use std::time::{Duration, Instant, SystemTime};

use super::files::Digest;

/// How often the files are looked at, whether connections are made or not.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// What the looks remember.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) looked: Option<Instant>,
    /// What was wrong with the files when they were last of no use, and what they held: said once.
    pub(super) failed: Option<LookFailure>,
    /// When an end that is near was last warned about.
    pub(super) warned: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LookFailure {
    pub(super) trust: Option<Digest>,
    pub(super) own: Option<Digest>,
    pub(super) why: String,
}
