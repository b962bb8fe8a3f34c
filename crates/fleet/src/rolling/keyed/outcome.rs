//! What became of the calls, the states, and the keys in faults.

use std::collections::BTreeSet;

use serde::Serialize;

/// What became of the calls and the states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyedOutcome {
    /// Calls that were made.
    pub calls: u64,
    /// Those that failed.
    pub failed: u64,
    /// Times that a key began anew which had a state.
    pub lost: u64,
    /// Times that an earlier state of a key came back.
    pub resurrected: u64,
    /// Times that a key had counted more than it was called.
    pub twice: u64,
    /// The slowest call, in milliseconds.
    pub slowest_ms: u64,
    /// What 99 of 100 calls that waited for their key's state did not wait longer than, in the process where that was worst;
    /// in milliseconds.
    pub parked_p99_ms: u64,
    /// Calls that waited for their key's state.
    pub parked: u64,
    /// Times that two states of one key were merged.
    pub merged: u64,
    /// Planned changes that were made.
    pub changes: u64,
    /// Calls a second.
    pub calls_per_s: u64,
    /// What became of the keys in faults, where these were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<FaultOutcome>,
    /// The keys that began anew.
    #[serde(skip)]
    pub begun_anew: BTreeSet<u32>,
}

impl KeyedOutcome {
    /// True where nothing failed, was lost, came back, or ran twice.
    pub fn is_flawless(&self) -> bool {
        self.failed + self.lost + self.resurrected + self.twice == 0
    }
}

impl KeyedOutcome {
    pub(super) fn add(&mut self, other: &KeyedOutcome) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.lost += other.lost;
        self.resurrected += other.resurrected;
        self.twice += other.twice;
        self.begun_anew.extend(&other.begun_anew);
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// What became of the keys of a node that died, and of one that stood still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FaultOutcome {
    /// After SIGKILL.
    pub killed: Killed,
    /// After SIGSTOP, and SIGCONT.
    pub frozen: Frozen,
}

/// What became of the keys when a node was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Killed {
    /// Keys whose states were there.
    pub held: usize,
    /// Those that began anew.
    pub begun_anew: usize,
    /// Other keys that began anew.
    pub others_begun_anew: usize,
    /// Times that an earlier state came back.
    pub resurrected: u64,
    /// Times that a key had counted more than it was called.
    pub twice: u64,
    /// Calls that failed, of how many.
    pub failed: u64,
    /// Calls.
    pub calls: u64,
}

/// What became of the keys when a node stood still, for four times `down_period`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Frozen {
    /// Keys whose states were there.
    pub held: usize,
    /// Times that two states of a key were merged.
    pub merged: u64,
    /// Keys that still had two histories once all ran again.
    pub two_histories: usize,
    /// Calls that failed, of how many; those of the time in which the node stood still.
    pub failed: u64,
    /// Calls.
    pub calls: u64,
}

impl FaultOutcome {
    /// True where the keys of the dead began anew and no others, and no key has two histories.
    pub fn is_as_promised(&self) -> bool {
        let killed = &self.killed;
        killed.begun_anew == killed.held
            && killed.others_begun_anew == 0
            && killed.resurrected + killed.twice == 0
            && self.frozen.merged > 0
            && self.frozen.two_histories == 0
    }
}
