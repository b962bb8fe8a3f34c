//! One history: a cluster starts, faults come, the network is whole again, and all must agree.

use std::time::Duration;

use keydispatch_core::{Instant, MembershipConfig, NodeName, RawSettings, Settings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checks::{Violation, check_convergence, check_memory};
use super::constants::Constants;
use super::coverage::Coverage;
use super::event::Event;
use super::liar::Liar;
use super::network::Weather;
use super::profile::{Profile, Workload};
use super::trace::Trace;
use super::world::World;
use keydispatch_core::RuleSet;

/// Sizes of a mix: small clusters are common, large ones come, too.
const MIXED_NODES: (usize, usize) = (3, 50);

/// How long is listened once all should be quiet.
const SILENCE: Duration = Duration::from_secs(5);

/// How often it is listened before the noise is taken for what it always costs.
const MAX_LISTENINGS: u32 = 4;

/// What the messages of an idle cluster are long, at most on average: most are probes of 84 bytes, or of 120 with help.
const MEAN_MESSAGE_BYTES: f64 = 160.0;

/// The least nodes of a cluster in which one lies: two of the others must be there to agree with each other.
const LEAST_WITH_LIAR: usize = 5;

/// Keys whose owners are compared on every node, in one history of so many, and in the others.
const COMPARED_KEYS: (u64, u64, u64) = (10_000, 16, 400);

/// What a history is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Determines all that happens.
    pub seed: u64,
    /// How many names there are; by default drawn from the seed, 3 to 50.
    pub nodes: Option<usize>,
    /// What goes wrong.
    pub profile: Profile,
    /// Which rules of the protocol hold.
    pub rules: RuleSet,
    /// Prints what happens.
    pub trace: bool,
    /// Prints each frame, too.
    pub frames: bool,
}

impl Plan {
    /// All rules hold, nothing is printed.
    pub fn new(seed: u64, profile: Profile) -> Self {
        Plan {
            seed,
            nodes: None,
            profile,
            rules: RuleSet::default(),
            trace: false,
            frames: false,
        }
    }
}

/// What came of a history.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of the plan.
    pub seed: u64,
    /// How many names there were.
    pub nodes: usize,
    /// Simulated time.
    pub time: Duration,
    /// The promises that were broken; a history ends at the first.
    pub violations: Vec<Violation>,
    /// Reports of deaths of nodes that lived and could be heard.
    pub false_downs: u64,
    /// Those of them of nodes that everybody could have heard; the others are the word of nodes that were cut off from them.
    pub groundless_downs: u64,
    /// From each kill of a process until another one reported it.
    pub deaths_known: Vec<Duration>,
    /// Before the first fault: from the start of the later one of two processes until the one knew the other.
    pub joins_known: Vec<Duration>,
    /// From the last fault until the last view changed; none where the history ended before.
    pub agreed: Option<Duration>,
    /// Sent by all nodes in all the time.
    pub messages: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Sent while nothing happened, for each node and second.
    pub quiet_messages: f64,
    /// The same in bytes.
    pub quiet_bytes: f64,
    /// Living nodes times seconds.
    pub node_seconds: f64,
    /// The longest queue of a connection, in bytes.
    pub largest_queue: usize,
    /// The most messages that one node sent in one second.
    pub max_messages: u64,
    /// The events of the simulator.
    pub events: u64,
    /// What happened how often.
    pub coverage: Coverage,
}

/// Runs a history to its end, or to its first violation.
pub fn run(plan: &Plan) -> Outcome {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let nodes = plan.nodes.unwrap_or_else(|| {
        let (low, high) = MIXED_NODES;
        let cubed: f64 = rng.random_range(0.0_f64..1.0).powi(3);
        low + (cubed * (high - low + 1) as f64) as usize
    });
    let least = if plan.profile.liar {
        LEAST_WITH_LIAR
    } else {
        1
    };
    let nodes = nodes.max(least);
    let mut world = build(plan, nodes, &mut rng);
    start_all(&mut world, &mut rng);
    let mut outcome = Outcome {
        seed: plan.seed,
        nodes,
        time: Duration::ZERO,
        violations: Vec::new(),
        false_downs: 0,
        groundless_downs: 0,
        deaths_known: Vec::new(),
        joins_known: Vec::new(),
        agreed: None,
        messages: 0,
        bytes: 0,
        quiet_messages: 0.0,
        quiet_bytes: 0.0,
        node_seconds: 0.0,
        largest_queue: 0,
        max_messages: 0,
        events: 0,
        coverage: Coverage::default(),
    };
    go_wrong(&mut world);
    if world.violations.is_empty() {
        converge(&mut world, &mut outcome);
    }
    for process in world.living() {
        if let Some(cluster) = world.processes[process].cluster.take() {
            world.count_rules(&cluster);
        }
    }
    outcome.time = world.now.since(Instant::from_micros(1_000_000));
    outcome.node_seconds = nodes as f64 * outcome.time.as_secs_f64();
    for process in &world.processes {
        outcome.messages += process.sent_messages;
        outcome.bytes += process.sent_bytes;
    }
    outcome.false_downs = world.false_downs;
    outcome.groundless_downs = world.groundless_downs;
    outcome.deaths_known = world.deaths_known;
    outcome.joins_known = world.joins_known;
    outcome.largest_queue = world.largest_queue;
    outcome.max_messages = world.max_messages;
    outcome.events = world.events;
    outcome.coverage = world.coverage;
    outcome.violations = world.violations;
    outcome
}

fn build(plan: &Plan, nodes: usize, rng: &mut StdRng) -> World {
    let names: Vec<NodeName> = (0..nodes)
        .map(|number| NodeName::try_new(format!("node{number:02}")).expect("a short name"))
        .collect();
    // Whoever moves, or clashes, needs another host.
    let hosts = nodes + nodes.div_ceil(2);
    let weather = Weather {
        latency: Duration::from_micros(if rng.random_bool(0.7) {
            rng.random_range(50..2_000)
        } else {
            rng.random_range(2_000..40_000)
        }),
        bandwidth: if rng.random_bool(0.8) {
            125_000_000
        } else {
            rng.random_range(500_000..12_000_000)
        },
        lost_ppm: plan.profile.lost_ppm,
    };
    let heavy = nodes <= 12 && rng.random_bool(0.25);
    let workload = Workload {
        between: Duration::from_millis(rng.random_range(5..150)),
        most: if heavy {
            rng.random_range(40..150)
        } else {
            rng.random_range(2..20)
        },
        types: rng.random_range(1..6),
        tag_bytes: if heavy { 4_000 } else { 40 },
        burst: if heavy { 200 } else { 30 },
    };
    let constants = Constants {
        settings: settings(&plan.profile, rng),
        rules: plan.rules,
        seeds: (0..rng.random_range(1..=3.min(nodes))).collect(),
        queue_bytes: if rng.random_bool(0.4) {
            (64 * 1024, 512 * 1024)
        } else {
            (4 * 1024 * 1024, 32 * 1024 * 1024)
        },
        max_chatter: 500 + 200 * nodes as u64,
        checks: true,
        cost: None,
    };
    let mut trace = Trace::new(plan.trace, plan.frames);
    trace.line(Instant::default(), || {
        format!("{nodes} nodes, {weather:?}, {workload:?}, {constants:?}")
    });
    let load = (plan.profile.clone(), workload, names);
    let mut world = World::new(hosts, weather, constants, load, rng.random(), trace);
    if plan.profile.liar
        && let Some(name) = world.names.last().cloned()
    {
        let liar = Liar::new(name.clone(), !plan.seed);
        world.ledger.liar = Some(name);
        world.liar = Some(liar);
        world.queue.push(world.now, Event::Lie);
    }
    if plan.profile.severed_pairs {
        sever_pairs(&mut world, nodes);
    }
    world
}

/// Every eighth pair of neighbours is severed, at least one; newcomers find the seeds.
fn sever_pairs(world: &mut World, nodes: usize) {
    let first = world.constants.seeds.len();
    let hosts: Vec<usize> = (first..nodes).collect();
    for pair in hosts.chunks_exact(2).step_by(4) {
        world.network.sever_for_good(pair[0], pair[1]);
    }
}

fn settings(profile: &Profile, rng: &mut StdRng) -> Settings {
    let mut raw = RawSettings::default();
    if rng.random_bool(0.3) {
        let short = Duration::from_millis(rng.random_range(4_000..15_000));
        // Rule seeds, those who have forgotten each other never meet again, and may not.
        raw.permdown_period = Some(short).filter(|_| !profile.seeds_die);
    }
    if rng.random_bool(0.5) {
        raw.max_delta_sizes = Some(rng.random_range(1..30));
    }
    Settings::try_new(raw).expect("within bounds and in relation")
}

fn start_all(world: &mut World, rng: &mut StdRng) {
    let names = world.names.clone();
    let together = rng.random_bool(0.5);
    for (host, name) in names.into_iter().enumerate() {
        world.start(name, host);
        if !together {
            let after = Duration::from_millis(rng.random_range(0..400));
            world.run_until(world.now + after);
        }
    }
    world.run_until(world.now + Duration::from_secs(3));
}

fn go_wrong(world: &mut World) {
    if !world.violations.is_empty() {
        return;
    }
    world.faults_on = true;
    world.unspoilt = false;
    if world.profile.seeds_die {
        world.lose_seeds();
    }
    let first = world.exponential(world.between_faults());
    world.queue.push(world.now + first, Event::Fault);
    world.queue.push(world.now, Event::Work);
    let time = world
        .profile
        .faulty_time
        .mul_f64(world.rng.random_range(0.5..1.5));
    world.run_until(world.now + time);
}

fn converge(world: &mut World, outcome: &mut Outcome) {
    world.heal();
    let whole = world.now;
    let settings = world.constants.settings.clone();
    world.run_until(whole + 3 * settings.down_period() + Duration::from_secs(5));
    if !world.violations.is_empty() {
        return;
    }
    outcome.agreed = Some(world.changed_at.since(whole));
    let (many, of, few) = COMPARED_KEYS;
    let keys = if outcome.seed.is_multiple_of(of) {
        many
    } else {
        few
    };
    let checked = converged(world, keys);
    if let Err(what) = checked {
        return world.violate(what);
    }
    if world.violations.is_empty() {
        if world.liar.is_some() {
            // It is never silent, and keeps nothing of what was agreed on from holding.
            world.run_until(world.now + SILENCE);
            if let Err(what) = converged(world, few) {
                world.violate(what);
            }
            return;
        }
        listen(world, outcome);
    }
    // Only where that is not long to wait for.
    let permdown = settings.permdown_period();
    if permdown < Duration::from_secs(60) && world.violations.is_empty() {
        world.run_until(whole + permdown.mul_f64(1.5) + Duration::from_secs(12));
        if !world.violations.is_empty() {
            return;
        }
        let checked = check_memory(&world.clusters())
            .and_then(|()| check_convergence(&world.clusters(), 100, None));
        if let Err(what) = checked {
            world.violate(what);
        }
    }
}

/// Whether all agree. One that lies can make a node take a new generation now and then, which the others hear of within
/// moments: so it is looked at more than once.
fn converged(world: &mut World, keys: u64) -> Result<(), String> {
    const LOOKS: u32 = 12;
    const BETWEEN: Duration = Duration::from_millis(400);
    let looks = if world.liar.is_some() { LOOKS } else { 1 };
    let mut checked = Ok(());
    for look in 0..looks {
        if look > 0 {
            world.run_until(world.now + BETWEEN);
        }
        let liar = world.liar.as_ref().map(|liar| &liar.name);
        checked =
            check_convergence(&world.honest(), keys, liar).and_then(|()| world.check_data_links());
        if checked.is_ok() {
            break;
        }
    }
    checked
}

/// Rule: silence costs what an idle cluster costs. Should it seem to cost more, it is listened again: a suspicion that chance
/// brought has been passed on by then, and chatter without an end goes on.
fn listen(world: &mut World, outcome: &mut Outcome) {
    let allowed = idle_messages(world);
    for _ in 0..MAX_LISTENINGS {
        (outcome.quiet_messages, outcome.quiet_bytes) = silence(world);
        let (messages, bytes) = (outcome.quiet_messages, outcome.quiet_bytes);
        if !world.violations.is_empty()
            || messages <= allowed && bytes <= allowed * MEAN_MESSAGE_BYTES
        {
            return;
        }
    }
    let (messages, bytes) = (outcome.quiet_messages, outcome.quiet_bytes);
    world.violate(format!(
        "in silence each node sent {messages:.1} messages of {bytes:.0} bytes in all a second, where {allowed:.1} messages \
         are what an idle cluster costs"
    ));
}

/// What each node sends in a second while nothing happens: messages, and bytes.
fn silence(world: &mut World) -> (f64, f64) {
    let sent = |world: &World| {
        let sums = world
            .processes
            .iter()
            .map(|process| (process.sent_messages, process.sent_bytes));
        sums.fold((0, 0), |(messages, bytes), (more, larger)| {
            (messages + more, bytes + larger)
        })
    };
    let before = sent(world);
    let changed = world.changed_at;
    world.run_until(world.now + SILENCE);
    let after = sent(world);
    if world.changed_at != changed && world.violations.is_empty() {
        world.violate("a view changed while nothing happened".to_owned());
    }
    // Nobody may be left: who has died with the seeds does not come back.
    let living = world.living().len().max(1);
    let node_seconds = living as f64 * SILENCE.as_secs_f64();
    let each = |count: u64| count as f64 / node_seconds;
    (each(after.0 - before.0), each(after.1 - before.1))
}

/// The most that a node of an idle cluster sends in a second: a probe, and the answer to another one's; a digest, and
/// all that is known to somebody who asks once in ten seconds. Where there and back takes longer than a probe waits, or
/// much is sent twice, all probes ask for help; elsewhere it is chance when one does. Where much is sent twice, suspicions
/// come and are refuted without an end, too, and there is something to be passed on at every turn of gossip.
fn idle_messages(world: &World) -> f64 {
    const DIRECT: f64 = 2.0;
    const HELPED: f64 = 3.0 * 4.0;
    const BY_CHANCE: f64 = 0.2;
    const OTHERS: f64 = 2.0;
    let membership = MembershipConfig::new(&world.constants.settings);
    // There and back with its jitter, and that of the timers on both sides.
    let slow = 4 * world.network.base_latency() > membership.probe_timeout();
    let lossy = world.profile.lost_ppm > 10_000;
    let helped = if slow || lossy { 1.0 } else { BY_CHANCE };
    let probes = (DIRECT + HELPED * helped) / membership.probe_period().as_secs_f64();
    let gossip = if lossy {
        membership.gossip_fan_out() as f64 / membership.gossip_period().as_secs_f64()
    } else {
        0.0
    };
    probes + gossip + OTHERS
}
