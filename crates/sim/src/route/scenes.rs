//! The tables: rows of plans, columns of policies, and what should come of them.

use std::time::Duration;

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

/// The rows that the policy was chosen by: what they are, and what ours is to hold there.
fn main_rows(seed: u64, calls: u32) -> Vec<(&'static str, Plan)> {
    let ten = || Plan::new(10, seed, calls);
    let mut slow = Plan { load: 0.6, ..ten() };
    slow.speeds[0] = 0.25;
    vec![
        ("1: 10 instances, 100 callers, Zipf 1.0, load 0.7", ten()),
        (
            "2: 100 instances, 100 callers, 100,000 keys, Zipf 0.8, load 0.7",
            Plan {
                keys: 100_000,
                zipf: 0.8,
                ..Plan::new(100, seed, calls)
            },
        ),
        (
            "3: 10 instances, one of them four times slower, Zipf 1.0, load 0.6",
            slow,
        ),
        (
            "4: 10 instances, one key has 20 % of all calls, the others are even, load 0.6",
            Plan {
                hot: 0.2,
                zipf: 0.0,
                load: 0.6,
                ..ten()
            },
        ),
        (
            "5: 10 instances with caches of 500 of 10,000 keys, a cold key costs four times a warm one, Zipf 1.0, load 0.4",
            cached(10_000, 500, 0.4, &ten()),
        ),
        (
            "6: the same with caches of 200 of 2,000 keys, load 0.5",
            cached(2_000, 200, 0.5, &ten()),
        ),
    ]
}

fn cached(keys: usize, warm: usize, load: f64, plan: &Plan) -> Plan {
    Plan {
        keys,
        load,
        cache: Some(Cache {
            keys: warm,
            cold: 4.0,
        }),
        ..plan.clone()
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
    found.main(seed, calls);
    found.sweep(seed, calls);
    found.extreme(seed, calls);
    found.refusals(seed, calls);
    found.joining(seed, calls);
    found.zones(seed, calls);
    found.weights(seed, calls);
    found.hedges(seed, calls);
    found.copies(seed, calls);
    found.finish()
}

impl Found<'_> {
    fn main(&mut self, seed: u64, calls: u32) {
        for (at, (title, plan)) in main_rows(seed, calls).iter().enumerate() {
            let outcomes = self.policies(
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
            let (ours, most, affinity, name) = match at {
                0..4 => (&outcomes[5], 1.15, 80.0, "ours at 4"),
                4 => (&outcomes[7], 2.0, 95.0, "ours at 16, stay 8"),
                // Nothing was stated of it.
                _ => continue,
            };
            let row = at + 1;
            self.targets.push(Target::at_most(
                format!("row {row}, p99 of {name} over the oracle's"),
                ours.p99 / oracle.p99,
                most,
            ));
            self.targets.push(Target::at_least(
                format!("row {row}, % at the first owner of {name}"),
                ours.first,
                affinity,
            ));
        }
    }

    /// Exponents, callers and instances: p99 and share at the first of ours beside the oracle's and the local bound's.
    fn sweep(&mut self, seed: u64, calls: u32) {
        let title = "Over exponents, callers and instances, 100,000 keys, load 0.7: p99 in ms / % at the first";
        let policies = [
            Policy::Plain,
            Policy::Oracle(4),
            Policy::Local,
            Policy::Ours(Ours::at(4)),
            Policy::Ours(Ours::at(8)),
        ];
        let mut table = vec![cells(["instances, callers, Zipf"])];
        table[0].extend(policies.iter().map(Policy::name));
        table[0].push("refusals a call, at 4".to_owned());
        let mut figures = Map::new();
        for instances in [3, 10, 100] {
            // As long for all: hot keys are found second by second.
            let calls = u32::try_from(instances)
                .unwrap_or(1)
                .saturating_mul(calls / 40);
            for callers in [10, 100, 1_000] {
                for zipf in [0.6, 0.9, 1.1] {
                    let plan = Plan {
                        callers,
                        zipf,
                        keys: 100_000,
                        ..Plan::new(instances, seed, calls)
                    };
                    let outcomes = policies.map(|policy| run(&plan, &policy));
                    let name = format!("{instances}, {callers}, {zipf}");
                    let mut row = vec![name.clone()];
                    row.extend(
                        outcomes
                            .iter()
                            .map(|one| format!("{}/{:.0}", figure(one.p99), one.first)),
                    );
                    row.push(figure(outcomes[3].refusals));
                    table.push(row);
                    figures.insert(name, json!(outcomes));
                }
            }
        }
        self.output.table(title, &table);
        self.figures.insert(title.to_owned(), figures.into());
    }

    fn extreme(&mut self, seed: u64, calls: u32) {
        let title = "One key has 60 % of all calls, 20 instances, load 0.7: more than eight instances' worth";
        let plan = Plan {
            hot: 0.6,
            zipf: 0.0,
            ..Plan::new(20, seed, calls.saturating_mul(3))
        };
        self.policies(
            title,
            &plan,
            &[
                Policy::Plain,
                Policy::Oracle(4),
                Policy::Local,
                Policy::TwoChoices,
                Policy::Ours(Ours::at(4)),
                Policy::Ours(Ours::at(8)),
            ],
        );
        let title = "All instances are asked for more than they can do: 10 instances, load 1.2";
        let plan = Plan {
            load: 1.2,
            ..Plan::new(10, seed, calls / 3)
        };
        self.policies(
            title,
            &plan,
            &[
                Policy::Plain,
                Policy::Oracle(4),
                Policy::TwoChoices,
                Policy::Ours(Ours::at(4)),
            ],
        );
    }

    fn refusals(&mut self, seed: u64, calls: u32) {
        let (_, plan) = &main_rows(seed, calls)[0];
        let ours = |refusals, budget| {
            Policy::Ours(Ours {
                refusals,
                budget,
                ..Ours::at(4)
            })
        };
        let mut policies = vec![("oracle at 4".to_owned(), Policy::Oracle(4))];
        for refusals in 0..=4 {
            let name = format!("at most {refusals} refusals");
            policies.push((name, ours(refusals, (20, 10))));
        }
        policies.push(("2, without a budget".to_owned(), ours(2, (1_000, 1_000))));
        policies.push(("2, budget 5 % and 1 a second".to_owned(), ours(2, (5, 1))));
        let title = "Refusals of a call, and the budget, in row 1";
        self.named(title, plan, &policies);
    }

    fn joining(&mut self, seed: u64, calls: u32) {
        let plan = Plan {
            joins: true,
            load: 0.6,
            ..Plan::new(10, seed, calls.max(200_000))
        };
        let ours = |slow_start| {
            Policy::Ours(Ours {
                slow_start,
                ..Ours::at(8)
            })
        };
        self.named(
            "An instance joins, four times slower at first and at its speed after ten seconds: calls after it has joined, load 0.6",
            &plan,
            &[
                ("plain".to_owned(), Policy::Plain),
                ("ours at 8".to_owned(), ours(false)),
                ("ours at 8, slow start".to_owned(), ours(true)),
            ],
        );
    }

    fn zones(&mut self, seed: u64, calls: u32) {
        let plan = Plan {
            between_zones_ms: Some(1.0),
            ..Plan::new(10, seed, calls)
        };
        let ours = |near| {
            Policy::Ours(Ours {
                near,
                ..Ours::at(8)
            })
        };
        self.named(
            "Two zones, 2 ms there and back between them, row 1",
            &plan,
            &[
                ("plain".to_owned(), Policy::Plain),
                ("ours at 8".to_owned(), ours(false)),
                ("ours at 8, near ones first".to_owned(), ours(true)),
            ],
        );
    }

    fn weights(&mut self, seed: u64, calls: u32) {
        let mut even = Plan::new(10, seed, calls);
        even.speeds[..5].fill(2.0);
        let mut weighted = even.clone();
        weighted.weights[..5].fill(200);
        let rows = [("equal weights", &even), ("weight 200", &weighted)];
        let policies = [
            Policy::Plain,
            Policy::Oracle(4),
            Policy::Ours(Ours::at(4)),
            Policy::Ours(Ours::at(8)),
        ];
        let rows: Vec<_> = rows
            .iter()
            .flat_map(|(name, plan)| {
                policies.iter().map(move |policy| {
                    let name = format!("{name}, {}", policy.name());
                    (name, (*plan).clone(), *policy)
                })
            })
            .collect();
        self.rows(
            "Five of ten instances are twice as fast, load 0.7: by equal weights, and with their weight doubled",
            &rows,
        );
    }

    fn hedges(&mut self, seed: u64, calls: u32) {
        let plan = Plan {
            zipf: 0.6,
            load: 0.4,
            pauses: Some((Duration::from_millis(50), Duration::from_secs(2))),
            ..Plan::new(10, seed, calls)
        };
        let with = |ours: Ours, hedges| Policy::Ours(Ours { hedges, ..ours });
        let owner = Ours::new(Routing::Owner);
        self.named(
            "Instances that pause for 50 ms every two seconds, Zipf 0.6, load 0.4: hedges after the caller's p95",
            &plan,
            &[
                ("owner".to_owned(), with(owner, false)),
                ("owner, hedged".to_owned(), with(owner, true)),
                ("ours at 8".to_owned(), with(Ours::at(8), false)),
                ("ours at 8, hedged".to_owned(), with(Ours::at(8), true)),
            ],
        );
    }

    fn copies(&mut self, seed: u64, calls: u32) {
        let plan = |copies, cancels| Plan {
            zipf: 0.6,
            load: 0.2,
            pauses: Some((Duration::from_millis(50), Duration::from_secs(2))),
            copies,
            cancels,
            ..Plan::new(10, seed, calls / 2)
        };
        let row =
            |name: &str, copies, cancels| (name.to_owned(), plan(copies, cancels), Policy::Plain);
        self.rows(
            "Calls to three owners at once, instances that pause as above, load 0.2 for one copy",
            &[
                row("one owner", (1, 1), true),
                row("first of three", (3, 1), true),
                row("first of three, not cancelled", (3, 1), false),
                row("quorum: two of three", (3, 2), true),
                row("all three", (3, 3), true),
            ],
        );
    }
}
