//! What goes wrong in a history of tokens, and how often.

use std::time::Duration;

/// See the module.
#[derive(Clone, Debug)]
pub struct TokenProfile {
    /// What it is asked for by.
    pub name: &'static str,
    /// How many names there are, at least and at most.
    pub(crate) nodes: (usize, usize),
    /// Mean time between two things that happen.
    pub(crate) between: Duration,
    /// Of a thousand messages, how many are 5 to 30 ms late.
    pub(crate) late_permille: u32,
    /// Up to three instances a node, which come and go.
    pub(crate) instances: bool,
    /// Instances differ in weight, and change theirs.
    pub(crate) weights: bool,
    /// States take several pieces, and time.
    pub(crate) large: bool,
    /// Whoever is restarted starts at once.
    pub(crate) restarts: bool,
    /// One node after the other leaves and comes back, and nothing else happens.
    pub(crate) rolling: bool,
    /// What happens beside planned changes, each of 1,000 times.
    pub(crate) kills: u32,
    /// Two groups that do not reach each other.
    pub(crate) partitions: u32,
    /// One node is cut off, both ways or one.
    pub(crate) cut_offs: u32,
    /// One is cut off for just as long as it takes to be taken for dead.
    pub(crate) flaps: u32,
    /// Two do not reach each other, both ways or one.
    pub(crate) pairs: u32,
    /// A process stands still.
    pub(crate) pauses: u32,
    /// A node is up and answers nothing about slots, for a while.
    pub(crate) silences: u32,
    /// The same for good.
    pub(crate) mutes: u32,
    /// All are killed, or leave, and start again.
    pub(crate) mass_restarts: u32,
}

const PLANNED: TokenProfile = TokenProfile {
    name: "planned",
    nodes: (3, 6),
    between: Duration::from_millis(90),
    late_permille: 20,
    instances: false,
    weights: false,
    large: false,
    restarts: false,
    rolling: false,
    kills: 0,
    partitions: 0,
    cut_offs: 0,
    flaps: 0,
    pairs: 0,
    pauses: 0,
    silences: 0,
    mutes: 0,
    mass_restarts: 0,
};

const PROFILES: &[TokenProfile] = &[
    PLANNED,
    TokenProfile {
        name: "planned-late",
        nodes: (3, 9),
        between: Duration::from_millis(40),
        late_permille: 100,
        ..PLANNED
    },
    TokenProfile {
        name: "instances",
        instances: true,
        weights: true,
        ..PLANNED
    },
    TokenProfile {
        name: "large",
        large: true,
        ..PLANNED
    },
    TokenProfile {
        name: "rolling",
        nodes: (5, 8),
        rolling: true,
        ..PLANNED
    },
    TokenProfile {
        name: "restarts",
        restarts: true,
        kills: 150,
        ..PLANNED
    },
    TokenProfile {
        name: "crashes",
        kills: 150,
        ..PLANNED
    },
    TokenProfile {
        name: "crashes-late",
        nodes: (3, 8),
        between: Duration::from_millis(25),
        late_permille: 100,
        instances: true,
        weights: true,
        large: true,
        kills: 150,
        ..PLANNED
    },
    TokenProfile {
        name: "partitions",
        partitions: 120,
        ..PLANNED
    },
    TokenProfile {
        name: "cutoffs",
        cut_offs: 120,
        ..PLANNED
    },
    TokenProfile {
        name: "flaps",
        flaps: 150,
        ..PLANNED
    },
    TokenProfile {
        name: "pairs",
        pairs: 150,
        ..PLANNED
    },
    TokenProfile {
        name: "pauses",
        pauses: 100,
        ..PLANNED
    },
    TokenProfile {
        name: "silence",
        silences: 100,
        ..PLANNED
    },
    TokenProfile {
        name: "mute",
        mutes: 300,
        ..PLANNED
    },
    TokenProfile {
        name: "mass",
        mass_restarts: 60,
        ..PLANNED
    },
    TokenProfile {
        name: "everything",
        nodes: (3, 8),
        between: Duration::from_millis(40),
        late_permille: 100,
        instances: true,
        weights: true,
        large: true,
        kills: 80,
        partitions: 40,
        cut_offs: 40,
        flaps: 40,
        pairs: 40,
        pauses: 40,
        silences: 30,
        ..PLANNED
    },
];

impl TokenProfile {
    /// The profile of that name.
    pub fn named(name: &str) -> Option<TokenProfile> {
        PROFILES
            .iter()
            .find(|profile| profile.name == name)
            .cloned()
    }

    /// All names.
    pub fn names() -> Vec<&'static str> {
        PROFILES.iter().map(|profile| profile.name).collect()
    }

    /// Nothing happens but planned changes.
    pub(crate) fn is_planned(&self) -> bool {
        self.kills == 0
            && self.partitions + self.cut_offs + self.flaps + self.pairs == 0
            && self.pauses + self.silences + self.mutes + self.mass_restarts == 0
    }
}
