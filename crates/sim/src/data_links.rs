//! The data links of all processes, and what each knows of its peer.

use keydispatch_core::Instant;
use keydispatch_core::RuleSet;
use keydispatch_core::keepalive::Keepalive;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The data links of all processes, one each.
pub(crate) struct DataLinks {
    pub(crate) rng: StdRng,
    pub(crate) rules: RuleSet,
    /// By the process that calls.
    pub(crate) links: Vec<Option<DataLink>>,
    pub(crate) last: u64,
}

pub(crate) struct DataLink {
    pub(crate) number: u64,
    pub(crate) peer: usize,
    pub(crate) watch: Keepalive,
    pub(crate) heard_at: Instant,
    /// Calls whose replies are outstanding.
    pub(crate) waiting: u32,
    pub(crate) suspended: bool,
}

impl DataLinks {
    pub(crate) fn new(seed: u64, rules: RuleSet) -> Self {
        DataLinks {
            rng: StdRng::seed_from_u64(seed),
            rules,
            links: Vec::new(),
            last: 0,
        }
    }
}
