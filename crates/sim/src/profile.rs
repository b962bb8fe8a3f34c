//! Profiles: what goes wrong in a history, and how often.

use std::time::Duration;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Two hosts do not reach each other.
    CutPair,
    /// One host does not reach another, which reaches it.
    CutOneWay,
    /// One host is cut off from all.
    CutOff,
    /// One host is heard by nobody, or hears nobody.
    CutOffOneWay,
    /// Two or three groups that do not reach each other.
    Partition,
    /// A link holds its bytes back for a moment.
    Stall,
    /// A connection breaks.
    Reset,
    /// Every connection of a host breaks.
    ResetAll,
    /// A process is killed; it may start again.
    Kill,
    /// A host dies without a word; it may come back.
    HostDeath,
    /// A process ends and starts on another host.
    Move,
    /// A process leaves.
    Leave,
    /// A second process of a name starts while the first one lives.
    Clash,
    /// A process does not run for a while.
    Pause,
    /// A process is slow for a while.
    Slow,
    /// Half of all processes are killed at once, and start again.
    MassRestart,
    /// One process after the other is killed and started again.
    RollingRestart,
    /// The network is slow for a while.
    Congestion,
    /// The dead start again, as many as there are.
    Revive,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What it is asked for by.
    pub name: &'static str,
    /// How long faults come.
    pub(crate) faulty_time: Duration,
    /// Mean time between two faults in a cluster of ten.
    pub(crate) between_faults: Duration,
    /// Kinds of faults and their weights.
    pub(crate) faults: &'static [(Fault, u32)],
    /// How many of 100 starts have a clock that went back.
    pub(crate) clock_goes_back_percent: u32,
    /// How many of a million frames are lost once.
    pub(crate) lost_ppm: u32,
    /// Some pairs of hosts never reach each other, not even in the end.
    pub(crate) severed_pairs: bool,
    /// Before the first fault the seeds die, for good, and nobody gives out others.
    pub(crate) seeds_die: bool,
    /// The last of the names is that of a member that lies.
    pub(crate) liar: bool,
}

use Fault::*;

const PROFILES: &[Profile] = &[
    Profile {
        name: "mixed",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(700),
        faults: &[
            (CutPair, 8),
            (CutOneWay, 6),
            (CutOff, 5),
            (CutOffOneWay, 4),
            (Partition, 5),
            (Stall, 8),
            (Reset, 8),
            (ResetAll, 3),
            (Kill, 10),
            (HostDeath, 6),
            (Move, 4),
            (Leave, 4),
            (Clash, 2),
            (Pause, 8),
            (Slow, 4),
            (MassRestart, 1),
            (RollingRestart, 1),
            (Congestion, 2),
            (Revive, 10),
        ],
        clock_goes_back_percent: 20,
        lost_ppm: 2_000,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "calm",
        faulty_time: Duration::from_secs(10),
        between_faults: Duration::from_secs(1_000),
        faults: &[(Reset, 1)],
        clock_goes_back_percent: 0,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "lossy",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(300),
        faults: &[(Stall, 10), (Reset, 3), (Pause, 1)],
        clock_goes_back_percent: 0,
        lost_ppm: 50_000,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "partitions",
        faulty_time: Duration::from_secs(25),
        between_faults: Duration::from_millis(1_500),
        faults: &[
            (CutPair, 4),
            (CutOneWay, 4),
            (CutOff, 3),
            (CutOffOneWay, 3),
            (Partition, 8),
        ],
        clock_goes_back_percent: 0,
        lost_ppm: 1_000,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "restarts",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(800),
        faults: &[
            (Kill, 10),
            (HostDeath, 6),
            (Move, 4),
            (Leave, 4),
            (MassRestart, 2),
            (RollingRestart, 2),
            (Revive, 10),
        ],
        clock_goes_back_percent: 10,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "clock",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(800),
        faults: &[
            (Kill, 10),
            (HostDeath, 5),
            (Move, 6),
            (Clash, 4),
            (Partition, 3),
            (CutOff, 3),
            (Revive, 10),
        ],
        clock_goes_back_percent: 70,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "pauses",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(700),
        faults: &[(Pause, 10), (Slow, 6), (Congestion, 2)],
        clock_goes_back_percent: 0,
        lost_ppm: 1_000,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "sleepers",
        faulty_time: Duration::from_secs(12),
        between_faults: Duration::from_millis(500),
        faults: &[(Pause, 10), (HostDeath, 5), (Revive, 3)],
        clock_goes_back_percent: 0,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "cutoffs",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(4_000),
        faults: &[(CutOff, 1)],
        clock_goes_back_percent: 0,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "severed",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(1_000),
        faults: &[
            (CutOff, 4),
            (Partition, 4),
            (Reset, 4),
            (Kill, 8),
            (Move, 3),
            (Leave, 3),
            (Revive, 10),
        ],
        clock_goes_back_percent: 40,
        lost_ppm: 0,
        severed_pairs: true,
        seeds_die: false,
        liar: false,
    },
    Profile {
        name: "orphans",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(3_000),
        faults: &[(Partition, 4), (CutOff, 1)],
        clock_goes_back_percent: 0,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: true,
        liar: false,
    },
    Profile {
        name: "liars",
        faulty_time: Duration::from_secs(20),
        between_faults: Duration::from_millis(1_500),
        faults: &[
            (CutPair, 6),
            (Reset, 6),
            (ResetAll, 2),
            (Kill, 6),
            (HostDeath, 4),
            (Move, 2),
            (Leave, 2),
            (Clash, 2),
            (Pause, 4),
            (Revive, 12),
        ],
        clock_goes_back_percent: 10,
        lost_ppm: 0,
        severed_pairs: false,
        seeds_die: false,
        liar: true,
    },
];

impl Profile {
    /// The profile of that name.
    pub fn named(name: &str) -> Option<Profile> {
        PROFILES
            .iter()
            .find(|profile| profile.name == name)
            .cloned()
    }

    /// All names, the default first.
    pub fn names() -> Vec<&'static str> {
        PROFILES.iter().map(|profile| profile.name).collect()
    }
}

/// How much users do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Mean time between two changes of the whole cluster.
    pub(crate) between: Duration,
    /// Most services of one node.
    pub(crate) most: usize,
    /// How many types there are.
    pub(crate) types: u32,
    /// Most bytes of one service's tags.
    pub(crate) tag_bytes: usize,
    /// Most changes at once.
    pub(crate) burst: usize,
}
