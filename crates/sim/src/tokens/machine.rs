//! What a history of tokens has beside the clusters, and what each process has beside its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keydispatch_core::RuleSet;
use keydispatch_core::ownership::Ownership;
use keydispatch_core::{Instant, NodeId, ServiceId, ServiceType};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::event::LaneId;
use super::ledger::{Cells, Ledger};
use super::letter::{Call, Lane};
use super::profile::TokenProfile;

/// The one type whose states move.
pub(crate) fn service_type() -> ServiceType {
    ServiceType::try_new("rooms").expect("a short name")
}

/// All that a history of tokens has beside the clusters.
pub(crate) struct Tokens {
    /// Apart from the world's: what is drawn here changes nothing there.
    pub(crate) rng: StdRng,
    pub(crate) rules: RuleSet,
    pub(crate) profile: TokenProfile,
    pub(crate) slots: u32,
    pub(crate) patience: Duration,
    /// By process.
    pub(crate) machines: Vec<Option<Machine>>,
    pub(crate) lanes: BTreeMap<LaneId, Lane>,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) last_call: u64,
    pub(crate) calls_until: Instant,
    pub(crate) ledger: Ledger,
    /// Somebody was cut off from somebody.
    pub(crate) cut: bool,
    /// Messages by kind: claims, answers, offers, pieces, acknowledgements, settled.
    pub(crate) sent: [u64; 6],
    pub(crate) most_in_flight: u32,
    pub(crate) refused: u64,
    pub(crate) turn: usize,
    pub(crate) sequence: u64,
}

/// What a process has beside its cluster.
pub(crate) struct Machine {
    pub(crate) ownership: Ownership,
    pub(crate) facts: Vec<Fact>,
    pub(crate) returns: u32,
    pub(crate) paused_at: Option<Instant>,
    pub(crate) states: BTreeMap<(ServiceId, u32), Cells>,
    pub(crate) giving: BTreeMap<(ServiceId, u32), u64>,
    pub(crate) parked: BTreeMap<(ServiceId, u32), Vec<(u64, Instant)>>,
    pub(crate) instances: Vec<ServiceId>,
    pub(crate) stopping: BTreeSet<ServiceId>,
    /// Processes that want no call any more.
    pub(crate) goaway: BTreeSet<usize>,
    /// Lives that were up here.
    pub(crate) met: BTreeSet<NodeId>,
    pub(crate) leaving: Leaving,
    /// It starts again.
    pub(crate) restart: bool,
    pub(crate) silent_until: Instant,
    pub(crate) registered: bool,
    pub(crate) wakes_at: Option<Instant>,
}

/// How far a leave has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    No,
    /// Its slots go away.
    Draining(Instant),
    /// The others are told to send nothing any more.
    Parting(Instant, BTreeSet<usize>),
}

/// What a cluster has told.
pub(crate) enum Fact {
    Up(NodeId),
    Down(NodeId),
    Synced,
    Renewed(NodeId),
    View,
}

impl Tokens {
    pub(crate) fn new(seed: u64, rules: RuleSet, profile: TokenProfile) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x746f_6b65_6e73);
        Tokens {
            slots: 8 << rng.random_range(0..3),
            rng,
            rules,
            profile,
            patience: Duration::from_millis(2_000),
            machines: Vec::new(),
            lanes: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            calls_until: Instant::from_micros(u64::MAX),
            ledger: Ledger::default(),
            cut: false,
            sent: [0; 6],
            most_in_flight: 0,
            refused: 0,
            turn: 0,
            sequence: 0,
        }
    }
}

impl Tokens {
    /// What a machine has counted.
    pub(crate) fn count(&mut self, machine: &Machine) {
        let counts = machine.ownership.counts();
        self.most_in_flight = self.most_in_flight.max(counts.most_in_flight);
        self.refused += counts.refused;
    }
}
