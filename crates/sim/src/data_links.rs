//! The data links of all processes, and what each knows of its peer.

use keydispatch_core::Instant;
use keydispatch_core::silence::{SilenceRules, SilenceWatch};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The data links of all processes, one each.
pub(crate) struct DataLinks {
    pub(crate) rng: StdRng,
    pub(crate) rules: SilenceRules,
    /// By the process that calls.
    pub(crate) links: Vec<Option<DataLink>>,
    pub(crate) last: u64,
}

pub(crate) struct DataLink {
    pub(crate) number: u64,
    pub(crate) peer: usize,
    pub(crate) watch: SilenceWatch,
    pub(crate) heard_at: Instant,
    /// Calls whose replies are outstanding.
    pub(crate) waiting: u32,
    pub(crate) suspended: bool,
}

impl DataLinks {
    pub(crate) fn new(seed: u64, rules: SilenceRules) -> Self {
        DataLinks {
            rng: StdRng::seed_from_u64(seed),
            rules,
            links: Vec::new(),
            last: 0,
        }
    }
}
