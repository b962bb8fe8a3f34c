//! A call of a key that has a state, beside a call of a plain service by key.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use serde_json::json;

use super::Bench;
use crate::call::{Echoes, KeyedEchoes, Load, Pace, Subject, load};
use keydispatch_fleet::Error;
use keydispatch_measure::{Target, cells, figure, median};

/// Callers at once.
const CALLERS: [usize; 3] = [1, 16, 256];

impl Bench {
    pub(super) async fn calls(&mut self) -> Result<(), Error> {
        let (plain, keyed) = (
            self.node.services::<Echoes>(),
            self.node.keyed::<KeyedEchoes>(),
        );
        plain.wait_online(1).await?;
        keyed.wait_online(1).await?;
        let both = [
            Subject::Call(plain),
            Subject::Keyed(keyed, Arc::new(AtomicU64::new(0))),
        ];
        let message = Bytes::from_static(&[7; 64]);
        let mut rows = vec![cells([
            "callers",
            "plain calls/s",
            "keyed",
            "plain p50 µs",
            "keyed",
            "ratio of p50",
            "cost ratio",
            "CPU ratio",
        ])];
        let mut found = Vec::new();
        for callers in CALLERS {
            let mut loads: [Vec<Load>; 2] = [Vec::new(), Vec::new()];
            let far = self.far.id();
            for subject in &both {
                load(subject, far, callers, &message, self.window, Pace::Full).await?;
            }
            for round in 0..self.rounds {
                for at in [round % 2, 1 - round % 2] {
                    let window = self.window;
                    let seen = load(&both[at], far, callers, &message, window, Pace::Full).await?;
                    loads[at].push(seen);
                }
            }
            let of = |at: usize, part: fn(&Load) -> f64| {
                median(&loads[at].iter().map(part).collect::<Vec<_>>())
            };
            let ratio = |part: fn(&Load) -> f64| {
                let rounds = loads[0].iter().zip(&loads[1]);
                let ratios = rounds.map(|(plain, keyed)| part(keyed) / part(plain));
                median(&ratios.collect::<Vec<_>>())
            };
            let (p50, cost, busy) = (ratio(Load::p50), 1.0 / ratio(Load::rate), ratio(Load::busy));
            rows.push(vec![
                callers.to_string(),
                figure(of(0, Load::rate)),
                figure(of(1, Load::rate)),
                figure(of(0, Load::p50)),
                figure(of(1, Load::p50)),
                format!("{p50:.2}"),
                format!("{cost:.2}"),
                format!("{busy:.2}"),
            ]);
            found.push(json!({
                "callers": callers, "p50_ratio": p50, "cost_ratio": cost, "cpu_ratio": busy,
            }));
            match callers {
                1 => {
                    let name = "sequential p50 of a keyed call / a plain one";
                    self.targets.push(Target::at_most(name, p50, 1.15));
                }
                256 => {
                    let name = "cost of a keyed call / a plain one, 256 callers";
                    self.targets.push(Target::at_most(name, cost, 1.15));
                }
                _ => {}
            }
        }
        let title = "Calls of keys that have states, each another one of 4,096, beside calls of a plain service; TLS, 64 B";
        self.output.table(title, &rows);
        self.figures.insert("calls".to_owned(), json!(found));
        Ok(())
    }
}
