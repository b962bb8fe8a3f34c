//! One history of tokens: a cluster starts, nodes come and go and what the profile has goes wrong, then it is quiet, and every
//! slot must be where it should be.

use std::time::Duration;

use keydispatch_core::RuleSet;
use keydispatch_core::{NodeName, RawSettings, Settings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::TokenEvent;
use super::machine::Tokens;
use super::profile::TokenProfile;
use crate::checks::Violation;
use crate::constants::Constants;
use crate::event::Event;
use crate::network::Weather;
use crate::profile::{Profile, Workload};
use crate::trace::Trace;
use crate::world::World;

/// The shortest that membership allows: histories are over sooner, and latencies are to it as they are in the field.
const DOWN_PERIOD: Duration = Duration::from_millis(600);
/// How long things happen.
const FAULTY_TIME: Duration = Duration::from_secs(3);
/// How long it is quiet before it is looked whether all is at rest: where nobody was cut off, and where somebody was.
const REST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(14));
/// Calls end this long after the last thing happened.
const LAST_CALLS: Duration = Duration::from_millis(300);

/// What a history of tokens is made of.
#[derive(Clone, Debug)]
pub struct TokenPlan {
    /// Determines all that happens.
    pub seed: u64,
    /// What goes wrong.
    pub profile: TokenProfile,
    /// Which rules hold.
    pub rules: RuleSet,
    /// Prints what happens.
    pub trace: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct TokenOutcome {
    /// Of the plan.
    pub seed: u64,
    /// What was broken; a history ends at the first.
    pub violations: Vec<Violation>,
    /// Calls that were answered, and that failed.
    pub calls: (u64, u64),
    /// Calls that were sent on, and how often one was at most.
    pub moved: (u64, u32),
    /// The slowest call in a healthy history.
    pub slowest: Duration,
    /// How long calls waited for a slot, in healthy histories.
    pub parked: Vec<Duration>,
    /// Claims, answers, offers, pieces, acknowledgements, settled.
    pub messages: [u64; 6],
    /// Slots begun anew, adopted, merged, and lineages that came to be merged once more.
    pub slots: [u64; 4],
    /// Copies that went on at two places.
    pub forks: u64,
    /// Calls run while two held.
    pub double: u64,
    /// Pieces that nobody wanted.
    pub refused: u64,
    /// Deaths that were none; times that patience ended; processes killed; doubts.
    pub faults: [u64; 4],
    /// Most pieces on their way to one node.
    pub most_in_flight: u32,
    /// The last one that was online went away.
    pub nobody: bool,
}

/// Runs a history to its end, or to its first violation.
pub fn run(plan: &TokenPlan) -> TokenOutcome {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let (least, most) = plan.profile.nodes;
    let nodes = rng.random_range(least..=most);
    // Some names are free at first.
    let spare = if plan.profile.rolling {
        0
    } else {
        rng.random_range(0..=3)
    };
    let mut world = build(plan, nodes + spare, &mut rng);
    for number in 0..nodes {
        let (name, host) = (world.names[number].clone(), number);
        let after = if rng.random_bool(0.7) {
            rng.random_range(0..60_000)
        } else {
            rng.random_range(0..3_000)
        };
        let at = world.now + Duration::from_micros(after);
        world
            .queue
            .push(at, Event::Tokens(TokenEvent::Start(name, host)));
    }
    let first = world.now + Duration::from_millis(400);
    let until = first + FAULTY_TIME;
    world
        .queue
        .push(first, Event::Tokens(TokenEvent::Phase(until)));
    if let Some(tokens) = world.tokens.as_mut() {
        tokens.calls_until = until + LAST_CALLS;
    }
    world.run_until(until);
    let uncertain = world.tokens.as_ref().is_some_and(|tokens| {
        tokens.cut
            || tokens.ledger.false_downs > 0
            || tokens.ledger.impatience > 0
            || !plan.profile.is_planned()
    });
    world.run_until(until + if uncertain { REST.1 } else { REST.0 });
    if world.violations.is_empty() {
        judge(&mut world, plan);
    }
    outcome(plan, world)
}

fn build(plan: &TokenPlan, names: usize, rng: &mut StdRng) -> World {
    let names: Vec<NodeName> = (0..names)
        .map(|number| NodeName::try_new(format!("n{number}")).expect("a short name"))
        .collect();
    let raw = RawSettings {
        down_period: Some(DOWN_PERIOD),
        ..RawSettings::default()
    };
    let constants = Constants {
        settings: Settings::try_new(raw).expect("within bounds and in relation"),
        rules: RuleSet::default(),
        // Whoever lives is found: what becomes of clusters without seeds is another matter.
        seeds: (0..names.len()).collect(),
        queue_bytes: (4 * 1024 * 1024, 32 * 1024 * 1024),
        max_chatter: 1_000_000,
        checks: false,
        cost: None,
    };
    let weather = Weather {
        latency: Duration::from_micros(rng.random_range(100..1_500)),
        bandwidth: 125_000_000,
        lost_ppm: plan.profile.late_permille * 50,
    };
    let workload = Workload {
        between: Duration::from_secs(1),
        most: 1,
        types: 1,
        tag_bytes: 0,
        burst: 1,
    };
    let profile = Profile::named("calm").expect("there is such a profile");
    let load = (profile, workload, names.clone());
    let trace = Trace::new(plan.trace, false);
    let mut world = World::new(names.len(), weather, constants, load, rng.random(), trace);
    world.tokens = Some(Box::new(Tokens::new(
        plan.seed,
        plan.rules,
        plan.profile.clone(),
    )));
    world
}

/// It is quiet.
fn judge(world: &mut World, plan: &TokenPlan) {
    if let Err(what) = world.check_rest() {
        return world.violate(what);
    }
    let Some(tokens) = world.tokens.as_ref() else {
        return;
    };
    let ledger = &tokens.ledger;
    // I4: planned changes fail no call.
    let planned = plan.profile.is_planned() && ledger.is_healthy() && !ledger.nobody;
    if planned && ledger.failed > 0 {
        let what = format!(
            "{} calls failed: {}",
            ledger.failed,
            ledger.first_failure.clone().unwrap_or_default()
        );
        return world.violate(what);
    }
    let most = tokens
        .machines
        .iter()
        .flatten()
        .map(|machine| machine.ownership.counts().most_in_flight);
    let most = most.max().unwrap_or(0).max(tokens.most_in_flight);
    if most > keydispatch_core::ownership::WINDOW {
        // I6.
        world.violate(format!("{most} pieces were on their way to one node"));
    }
}

fn outcome(plan: &TokenPlan, mut world: World) -> TokenOutcome {
    let violations = std::mem::take(&mut world.violations);
    let mut tokens = world.tokens.take().expect("it was made with them");
    for machine in std::mem::take(&mut tokens.machines).into_iter().flatten() {
        tokens.count(&machine);
    }
    let ledger = tokens.ledger;
    TokenOutcome {
        seed: plan.seed,
        violations,
        calls: (ledger.answered, ledger.failed),
        moved: (ledger.moved, ledger.most_hops),
        slowest: ledger.slowest,
        parked: ledger.parked,
        messages: tokens.sent,
        slots: [ledger.minted, ledger.adoptions, ledger.merges, ledger.again],
        forks: ledger.forks,
        double: ledger.double,
        refused: tokens.refused,
        faults: [
            ledger.false_downs,
            ledger.impatience,
            ledger.crashed,
            ledger.doubts,
        ],
        most_in_flight: tokens.most_in_flight,
        nobody: ledger.nobody,
    }
}

impl TokenPlan {
    /// All rules hold, nothing is printed.
    pub fn new(seed: u64, profile: TokenProfile) -> Self {
        TokenPlan {
            seed,
            profile,
            rules: RuleSet::default(),
            trace: false,
        }
    }
}

impl World {
    /// Something of tokens happens.
    pub(crate) fn tokens_happen(&mut self, event: TokenEvent) {
        match event {
            TokenEvent::Arrive(lane) => self.letters_arrive(lane),
            TokenEvent::Wake(process) => self.machine_wakes(process),
            TokenEvent::Traffic(process) => self.traffic(process),
            TokenEvent::Attempt(number, to) => self.attempt(number, to),
            TokenEvent::Register(process) => self.register(process),
            TokenEvent::Tick(process) => self.machine_tick(process),
            TokenEvent::Gone(process) => self.finish_leave(process),
            TokenEvent::Start(name, host) => self.start_named(name, host),
            TokenEvent::Toggle(process, id) => self.toggle(process, &id),
            TokenEvent::Phase(until) => self.next_phase(until),
            TokenEvent::LookAround(process) => {
                let local = self.processes[process].local(self.now);
                if let Some(cluster) = self.processes[process].cluster.as_mut() {
                    cluster.look_around(local);
                }
                self.pump(process);
            }
        }
    }
}
