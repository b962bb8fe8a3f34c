//! The tables: rows of plans, columns of policies, and what should come of them.

use keydispatch_core::Routing;
use keydispatch_measure::{Output, Target, cells, figure};
use serde_json::{Map, Value, json};

use super::plan::{Cache, Ours, Plan, Policy};
use super::world::{Outcome, run};

/// What is found, and what it should be.
struct Found<'a> {
    output: &'a Output,
    figures: Map<String, Value>,
    targets: Vec<Target>,
}

const BY_POLICY: [&str; 9] = [
    "policy",
    "p50, ms",
    "p99",
    "p99.9",
    "busiest/mean",
    "at the first, %",
    "refusals a call",
    "messages a call",
    "warm, %",
];

fn row(name: String, outcome: &Outcome) -> Vec<String> {
    vec![
        name,
        figure(outcome.p50),
        figure(outcome.p99),
        figure(outcome.p999),
        figure(outcome.busiest),
        figure(outcome.first),
        figure(outcome.refusals),
        figure(outcome.messages),
        figure(outcome.warm),
    ]
}

impl Found<'_> {
    /// Runs policies over one plan, under names of their own.
    fn named(&mut self, title: &str, plan: &Plan, policies: &[(String, Policy)]) -> Vec<Outcome> {
        let plans = policies
            .iter()
            .map(|(name, p)| (name.clone(), plan.clone(), *p));
        self.rows(title, &plans.collect::<Vec<_>>())
    }

    fn policies(&mut self, title: &str, plan: &Plan, policies: &[Policy]) -> Vec<Outcome> {
        let named: Vec<_> = policies
            .iter()
            .map(|policy| (policy.name(), *policy))
            .collect();
        self.named(title, plan, &named)
    }

    fn rows(&mut self, title: &str, rows: &[(String, Plan, Policy)]) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = rows
            .iter()
            .map(|(_, plan, policy)| run(plan, policy))
            .collect();
        let mut table = vec![cells(BY_POLICY)];
        let mut figures = Map::new();
        for ((name, ..), outcome) in rows.iter().zip(&outcomes) {
            table.push(row(name.clone(), outcome));
            figures.insert(name.clone(), json!(outcome));
        }
        self.output.table(title, &table);
        self.figures.insert(title.to_owned(), figures.into());
        outcomes
    }

    fn finish(self) -> Result<bool, serde_json::Error> {
        let met = self.targets.iter().all(Target::is_met);
        self.output.finish("route", self.figures, &self.targets)?;
        Ok(met)
    }
}

/// The five rows that the policy was chosen by.
fn main_rows(seed: u64, calls: u32) -> [(&'static str, Plan); 5] {
    let ten = || Plan::new(10, seed, calls);
    let mut slow = Plan { load: 0.6, ..ten() };
    slow.speeds[0] = 0.25;
    [
        ("10 instances, 100 callers, Zipf 1.0, load 0.7", ten()),
        (
            "100 instances, 100 callers, Zipf 0.8, load 0.7",
            Plan {
                zipf: 0.8,
                ..Plan::new(100, seed, calls)
            },
        ),
        (
            "10 instances, one of them four times slower, Zipf 1.0, load 0.6",
            slow,
        ),
        (
            "10 instances, one key has 20 % of all calls, the others are even, load 0.7",
            Plan {
                hot: 0.2,
                zipf: 0.0,
                ..ten()
            },
        ),
        (
            "10 instances with caches of 400 of 2,000 keys, a cold key costs four times a warm one, Zipf 0.9, load 0.6",
            cached(seed, calls),
        ),
    ]
}

fn cached(seed: u64, calls: u32) -> Plan {
    Plan {
        keys: 2_000,
        zipf: 0.9,
        load: 0.6,
        cache: Some(Cache {
            keys: 400,
            cold: 4.0,
        }),
        ..Plan::new(10, seed, calls)
    }
}

fn staying(depth: u8, stay: u8) -> Ours {
    Ours::new(Routing::Bounded {
        owners: 4,
        depth,
        stay: Some(stay),
    })
}

/// A row of the user's own.
pub(super) fn own(
    output: &Output,
    plan: &Plan,
    routing: Routing,
) -> Result<bool, serde_json::Error> {
    let mut found = Found {
        output,
        figures: Map::new(),
        targets: Vec::new(),
    };
    found.policies(
        "Your row",
        plan,
        &[
            Policy::Plain,
            Policy::Local,
            Policy::TwoChoices,
            Policy::Oracle(4),
            Policy::Ours(Ours::new(routing)),
        ],
    );
    found.finish()
}

/// All tables.
pub(super) fn all(output: &Output, seed: u64, calls: u32) -> Result<bool, serde_json::Error> {
    let mut found = Found {
        output,
        figures: Map::new(),
        targets: Vec::new(),
    };
    for (at, (title, plan)) in main_rows(seed, calls).iter().enumerate() {
        let outcomes = found.policies(
            title,
            plan,
            &[
                Policy::Plain,
                Policy::Oracle(4),
                Policy::Local,
                Policy::Told(4),
                Policy::TwoChoices,
                Policy::Ours(Ours::at(4)),
                Policy::Ours(Ours::at(8)),
                Policy::Ours(staying(16, 8)),
            ],
        );
        let oracle = &outcomes[1];
        let (ours, most, affinity, name) = if at < 4 {
            (&outcomes[5], 1.15, 80.0, "ours at 4")
        } else {
            (&outcomes[7], 2.0, 95.0, "ours at 16, stay 8")
        };
        let row = at + 1;
        found.targets.push(Target::at_most(
            format!("row {row}, p99 of {name} over the oracle's"),
            ours.p99 / oracle.p99,
            most,
        ));
        found.targets.push(Target::at_least(
            format!("row {row}, % at the first owner of {name}"),
            ours.first,
            affinity,
        ));
    }
    found.finish()
}
