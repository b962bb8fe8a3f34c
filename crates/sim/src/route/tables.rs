//! The tables: rows of plans, columns of policies, and what should come of them.

use std::ops::Range;
use std::time::Duration;

use keydispatch_core::Routing;
use keydispatch_measure::{Output, Target, cells, figure, median};
use serde_json::{Map, Value, json};

use super::plan::{Cache, Ours, Plan, Policy};
use super::seeds::{Outcomes, run_all};
use super::world::{Outcome, run};

/// What is found, and what it should be.
struct Found<'a> {
    output: &'a Output,
    seeds: Range<u64>,
    calls: u32,
    figures: Map<String, Value>,
    targets: Vec<Target>,
}

const BY_POLICY: [&str; 11] = [
    "policy",
    "p50, ms",
    "p99",
    "worst",
    "p99.9",
    "busiest/mean",
    "at the first, %",
    "worst",
    "refusals a call",
    "messages a call",
    "warm, %",
];

fn row(name: String, outcomes: &Outcomes) -> Vec<String> {
    let median = |value: fn(&Outcome) -> f64| figure(outcomes.median(value));
    vec![
        name,
        median(|one| one.p50),
        median(|one| one.p99),
        figure(outcomes.most(|one| one.p99)),
        median(|one| one.p999),
        median(|one| one.busiest),
        median(|one| one.first),
        figure(outcomes.least(|one| one.first)),
        median(|one| one.refusals),
        median(|one| one.messages),
        median(|one| one.warm),
    ]
}

impl<'a> Found<'a> {
    fn new(output: &'a Output, seeds: Range<u64>, calls: u32) -> Self {
        Found {
            output,
            seeds,
            calls,
            figures: Map::new(),
            targets: Vec::new(),
        }
    }

    /// Runs policies over one plan, under names of their own.
    fn named(&mut self, title: &str, plan: &Plan, policies: &[(String, Policy)]) -> Vec<Outcomes> {
        let plans = policies
            .iter()
            .map(|(name, p)| (name.clone(), plan.clone(), *p));
        self.rows(title, &plans.collect::<Vec<_>>())
    }

    fn policies(&mut self, title: &str, plan: &Plan, policies: &[Policy]) -> Vec<Outcomes> {
        let named: Vec<_> = policies
            .iter()
            .map(|policy| (policy.name(), *policy))
            .collect();
        self.named(title, plan, &named)
    }

    fn rows(&mut self, title: &str, rows: &[(String, Plan, Policy)]) -> Vec<Outcomes> {
        let runs: Vec<_> = rows
            .iter()
            .map(|(_, plan, policy)| (plan, policy))
            .collect();
        let outcomes = run_all(&runs, &self.seeds);
        let mut table = vec![cells(BY_POLICY)];
        let mut figures = Map::new();
        for ((name, ..), outcomes) in rows.iter().zip(&outcomes) {
            table.push(row(name.clone(), outcomes));
            figures.insert(name.clone(), json!(outcomes));
        }
        self.output.table(title, &table);
        self.figures.insert(title.to_owned(), figures.into());
        outcomes
    }

    /// A figure that is to be at most so much: its median, and its worst.
    fn at_most(&mut self, name: &str, values: &[f64], most: f64) {
        let worst = values.iter().copied().fold(0.0, f64::max);
        for (which, value) in [("", median(values)), (", worst", worst)] {
            let target = Target::at_most(format!("{name}{which}"), value, most);
            self.targets.push(target);
        }
    }

    fn at_least(&mut self, name: &str, values: &[f64], least: f64) {
        let worst = values.iter().copied().fold(f64::INFINITY, f64::min);
        for (which, value) in [("", median(values)), (", worst", worst)] {
            let target = Target::at_least(format!("{name}{which}"), value, least);
            self.targets.push(target);
        }
    }

    fn finish(self) -> Result<bool, serde_json::Error> {
        let met = self.targets.iter().all(Target::is_met);
        self.output.finish("route", self.figures, &self.targets)?;
        Ok(met)
    }
}

/// Rule: what is asked for is this share of what the instances can do together, in every row but those whose subject is another
/// load. It is said beforehand: a load that was chosen by what came of it shows nothing.
const LOAD: f64 = 0.7;

/// The rows that the policy was chosen by: what they are, and what ours is to hold there.
fn main_rows(seeds: &Range<u64>, calls: u32) -> Vec<(&'static str, Plan)> {
    let ten = || Plan::new(10, seeds.start, calls);
    let mut slow = ten();
    slow.speeds[0] = 0.25;
    vec![
        ("1: 10 instances, Zipf 1.0", ten()),
        (
            "2: 100 instances, 100,000 keys, Zipf 0.8",
            Plan {
                keys: 100_000,
                zipf: 0.8,
                ..Plan::new(100, seeds.start, calls)
            },
        ),
        (
            "3: 10 instances, one of them four times slower, Zipf 1.0",
            slow,
        ),
        (
            "4: 10 instances, one key has 20 % of all calls, the others are even",
            Plan {
                hot: 0.2,
                zipf: 0.0,
                ..ten()
            },
        ),
        (
            "5: 10 instances with caches of 500 of 10,000 keys, a cold key costs four times a warm one, Zipf 1.0",
            cached(10_000, 500, &ten()),
        ),
        (
            "6: the same with caches of 200 of 2,000 keys",
            cached(2_000, 200, &ten()),
        ),
    ]
}

/// The same with caches. What the instances can do is counted with each key at its first owner: the share of keys that are warm
/// there does not depend on the load.
fn cached(keys: usize, warm: usize, plan: &Plan) -> Plan {
    let cold = 4.0;
    let plan = Plan {
        keys,
        cache: Some(Cache { keys: warm, cold }),
        ..plan.clone()
    };
    let warm = run(&plan, &Policy::Plain).warm / 100.0;
    Plan {
        load: LOAD / (warm + cold * (1.0 - warm)),
        ..plan
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
    seeds: Range<u64>,
) -> Result<bool, serde_json::Error> {
    let mut found = Found::new(output, seeds, plan.calls);
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
pub(super) fn all(
    output: &Output,
    seeds: Range<u64>,
    calls: u32,
) -> Result<bool, serde_json::Error> {
    output.line(format!(
        "100 callers, load {LOAD} of what the instances can do with each key at its first owner, 1 ms a call (exponential), 0.1 ms there and back;\n\
         the median of {} seeds, and the worst",
        seeds.end - seeds.start
    ));
    let mut found = Found::new(output, seeds, calls);
    found.main();
    found.sweep();
    found.extreme();
    found.refusals();
    found.joining();
    found.zones();
    found.weights();
    found.hedges();
    found.copies();
    found.finish()
}

impl Found<'_> {
    fn plan(&self, instances: usize) -> Plan {
        self.plan_of(instances, self.calls)
    }

    fn plan_of(&self, instances: usize, calls: u32) -> Plan {
        Plan::new(instances, self.seeds.start, calls)
    }

    fn main(&mut self) {
        for (at, (title, plan)) in main_rows(&self.seeds, self.calls).iter().enumerate() {
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
            let each = ours.of(|one| one.p99);
            let ratios: Vec<f64> = each
                .iter()
                .zip(oracle.of(|one| one.p99))
                .map(|(a, b)| a / b)
                .collect();
            self.at_most(
                &format!("row {row}, p99 of {name} over the oracle's"),
                &ratios,
                most,
            );
            let first = ours.of(|one| one.first);
            self.at_least(
                &format!("row {row}, % at the first owner of {name}"),
                &first,
                affinity,
            );
        }
    }

    /// Exponents, callers and instances: p99 and share at the first of ours beside the oracle's and the local bound's.
    fn sweep(&mut self) {
        let title = "Over exponents, callers and instances, 100,000 keys: p99 in ms, (worst) / % at the first";
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
                .saturating_mul(self.calls / 40);
            for callers in [10, 100, 1_000] {
                for zipf in [0.6, 0.9, 1.1] {
                    let plan = Plan {
                        callers,
                        zipf,
                        keys: 100_000,
                        ..self.plan_of(instances, calls)
                    };
                    let runs: Vec<_> = policies.iter().map(|policy| (&plan, policy)).collect();
                    let outcomes = run_all(&runs, &self.seeds);
                    let name = format!("{instances}, {callers}, {zipf}");
                    let mut row = vec![name.clone()];
                    row.extend(outcomes.iter().map(|one| {
                        format!(
                            "{} ({})/{:.0}",
                            figure(one.median(|one| one.p99)),
                            figure(one.most(|one| one.p99)),
                            one.median(|one| one.first)
                        )
                    }));
                    row.push(figure(outcomes[3].median(|one| one.refusals)));
                    table.push(row);
                    figures.insert(name, json!(outcomes));
                }
            }
        }
        self.output.table(title, &table);
        self.figures.insert(title.to_owned(), figures.into());
    }

    fn extreme(&mut self) {
        let title = "One key has 60 % of all calls, 20 instances: more than eight instances' worth";
        let plan = Plan {
            hot: 0.6,
            zipf: 0.0,
            ..self.plan_of(20, self.calls.saturating_mul(3))
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
            ..self.plan_of(10, self.calls / 3)
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

    fn refusals(&mut self) {
        let (_, plan) = &main_rows(&self.seeds, self.calls)[0];
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

    fn joining(&mut self) {
        let plan = Plan {
            joins: true,
            ..self.plan_of(10, self.calls.max(200_000))
        };
        let ours = |slow_start| {
            Policy::Ours(Ours {
                slow_start,
                ..Ours::at(8)
            })
        };
        self.named(
            "An instance joins, four times slower at first and at its speed after ten seconds: calls after it has joined",
            &plan,
            &[
                ("plain".to_owned(), Policy::Plain),
                ("ours at 8".to_owned(), ours(false)),
                ("ours at 8, slow start".to_owned(), ours(true)),
            ],
        );
    }

    fn zones(&mut self) {
        let plan = Plan {
            between_zones_ms: Some(1.0),
            ..self.plan(10)
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

    fn weights(&mut self) {
        let mut even = self.plan(10);
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
            "Five of ten instances are twice as fast: by equal weights, and with their weight doubled",
            &rows,
        );
    }

    fn hedges(&mut self) {
        let plan = Plan {
            zipf: 0.6,
            pauses: Some((Duration::from_millis(50), Duration::from_secs(2))),
            ..self.plan(10)
        };
        let with = |ours: Ours, hedges| Policy::Ours(Ours { hedges, ..ours });
        let owner = Ours::new(Routing::Owner);
        self.named(
            "Instances that pause for 50 ms every two seconds, Zipf 0.6: hedges after the caller's p95",
            &plan,
            &[
                ("owner".to_owned(), with(owner, false)),
                ("owner, hedged".to_owned(), with(owner, true)),
                ("ours at 8".to_owned(), with(Ours::at(8), false)),
                ("ours at 8, hedged".to_owned(), with(Ours::at(8), true)),
            ],
        );
    }

    fn copies(&mut self) {
        let plan = |copies, cancels| Plan {
            zipf: 0.6,
            load: LOAD / 3.0,
            pauses: Some((Duration::from_millis(50), Duration::from_secs(2))),
            copies,
            cancels,
            ..self.plan_of(10, self.calls / 2)
        };
        let row =
            |name: &str, copies, cancels| (name.to_owned(), plan(copies, cancels), Policy::Plain);
        self.rows(
            "Calls to three owners at once, instances that pause as above: the load is that of all three copies",
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
