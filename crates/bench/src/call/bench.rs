//! What the measurements share, and a subject measured beside its floor.

use std::time::Duration;

use bytes::Bytes;
use keydispatch::Node;
use serde_json::json;

use super::load::{Load, Pace, load};
use super::subject::Subject;
use keydispatch_fleet::{Child, Error};
use keydispatch_measure::{Output, Target, figure, median};

/// How long and how often each pair is measured.
#[derive(Clone, Copy)]
pub(super) struct Rounds {
    pub(super) count: usize,
    pub(super) window: Duration,
}

/// What the measurements share.
pub(super) struct Bench {
    pub(super) output: Output,
    pub(super) rounds: Rounds,
    pub(super) node: Node,
    pub(super) far: Child,
    pub(super) echo: Subject,
    pub(super) calls: Subject,
    pub(super) figures: serde_json::Map<String, serde_json::Value>,
    pub(super) targets: Vec<Target>,
}

/// A subject and its floor, measured in turns.
pub(super) struct Pair {
    pub(super) callers: usize,
    pub(super) payload: usize,
    pub(super) floor: Vec<Load>,
    pub(super) subject: Vec<Load>,
}

impl Pair {
    /// The middle of the rounds' values.
    pub(super) fn of(loads: &[Load], part: fn(&Load) -> f64) -> f64 {
        median(&loads.iter().map(part).collect::<Vec<_>>())
    }

    /// The middle of the rounds' ratios of subject to floor.
    pub(super) fn ratio(&self, part: fn(&Load) -> f64) -> f64 {
        let rounds = self.subject.iter().zip(&self.floor);
        median(
            &rounds
                .map(|(ours, theirs)| part(ours) / part(theirs))
                .collect::<Vec<_>>(),
        )
    }

    pub(super) fn row(&self) -> Vec<String> {
        let of = Pair::of;
        vec![
            size(self.payload),
            self.callers.to_string(),
            figure(of(&self.floor, Load::rate)),
            figure(of(&self.subject, Load::rate)),
            format!("{:.2}", self.ratio(Load::rate)),
            figure(of(&self.floor, Load::p50)),
            figure(of(&self.subject, Load::p50)),
            format!("{:.2}", self.ratio(Load::p50)),
            figure(of(&self.floor, Load::p99)),
            figure(of(&self.subject, Load::p99)),
            figure(of(&self.floor, Load::busy)),
            figure(of(&self.subject, Load::busy)),
            format!("{:.2}", self.ratio(Load::busy)),
        ]
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let of = |loads: &[Load]| {
            json!({
                "calls_per_s": Pair::of(loads, Load::rate), "p50_us": Pair::of(loads, Load::p50),
                "p99_us": Pair::of(loads, Load::p99), "cpu_us": Pair::of(loads, Load::busy),
            })
        };
        json!({
            "payload": self.payload, "callers": self.callers, "echo": of(&self.floor),
            "dispatch": of(&self.subject), "ratio_calls": self.ratio(Load::rate),
            "ratio_p50": self.ratio(Load::p50), "ratio_cpu": self.ratio(Load::busy),
        })
    }
}

pub(super) const PAIR_HEADS: [&str; 13] = [
    "payload",
    "callers",
    "echo calls/s",
    "dispatch",
    "ratio",
    "echo p50 µs",
    "dispatch",
    "ratio",
    "echo p99 µs",
    "dispatch",
    "echo CPU µs",
    "dispatch",
    "ratio",
];

pub(super) fn size(bytes: usize) -> String {
    match bytes {
        small if small < 1024 => format!("{small} B"),
        large => format!("{} KiB", large / 1024),
    }
}

impl Bench {
    /// The floor and the subject in turns, so that whatever else the machine does hits both.
    pub(super) async fn pair(
        &self,
        (floor, subject): (&Subject, &Subject),
        callers: usize,
        payload: usize,
        pace: Pace,
    ) -> Result<Pair, Error> {
        let mut pair = Pair {
            callers,
            payload,
            floor: Vec::new(),
            subject: Vec::new(),
        };
        let (message, window) = (Bytes::from(vec![7; payload]), self.rounds.window);
        let far = self.far.id();
        load(floor, far, callers, &message, window / 4, pace).await?;
        load(subject, far, callers, &message, window / 4, pace).await?;
        for round in 0..self.rounds.count {
            if round % 2 == 0 {
                pair.floor
                    .push(load(floor, far, callers, &message, window, pace).await?);
                pair.subject
                    .push(load(subject, far, callers, &message, window, pace).await?);
            } else {
                pair.subject
                    .push(load(subject, far, callers, &message, window, pace).await?);
                pair.floor
                    .push(load(floor, far, callers, &message, window, pace).await?);
            }
        }
        Ok(pair)
    }
}
