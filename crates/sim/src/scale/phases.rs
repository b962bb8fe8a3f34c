//! What happens to a cluster of a given size, and what is measured of each.

use std::time::Duration;

use keydispatch_core::{Instant, NodeName};
use serde::Serialize;

use super::cluster::{Mark, ScaleCluster, Shape};
use crate::Error;
use crate::event::Host;
use keydispatch_measure::{allocations, thread_time};

/// How long the two halves do not reach each other.
const PARTITION: Duration = Duration::from_secs(30);

/// How long it is listened to a cluster that has nothing to do.
const IDLE: Duration = Duration::from_secs(10);

/// Between the end of a process and the start of its successor.
const RESTART: Duration = Duration::from_millis(100);

/// How long a restarted node may take until it may route.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) nodes: usize,
    pub(super) services: usize,
    pub(super) what: &'static str,
    /// Until the last view changed, all of which agree then; in simulated milliseconds.
    pub(super) agree_ms: f64,
    /// Bytes that a node sent until then, on average.
    pub(super) sent_mean: f64,
    /// The most that one sent.
    pub(super) sent_max: u64,
    /// The most that one took in.
    pub(super) taken_max: u64,
    /// The most bytes that waited in one direction of one connection.
    pub(super) largest_queue: usize,
    /// Nodes that were reported down though they lived and could be heard.
    pub(super) false_downs: u64,
    /// Real seconds of one core, for all nodes together, with the simulator's own part.
    pub(super) cpu_s: f64,
}

/// A cluster that has nothing to do.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    pub(super) nodes: usize,
    pub(super) services: usize,
    /// Of a core, for each node, with the simulator's own part.
    pub(super) cpu_percent: f64,
    /// Sent by each node in a second.
    pub(super) bytes_per_s: f64,
    /// The same in messages.
    pub(super) messages_per_s: f64,
}

/// What became of one shape.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) rows: Vec<Row>,
    pub(super) idle: Idle,
    /// Bytes of the heap that a node gave back when it died, for each service that it listed.
    pub(super) heap_each: f64,
}

/// Runs all phases on one cluster; tells the name of each before it begins, and what came of it: the last one may take an
/// hour.
pub(super) fn run(shape: Shape, tell: &dyn Fn(&str)) -> Result<Outcome, Error> {
    let mut sim = ScaleCluster::new(shape)?;
    let last = shape.nodes - 1;
    tell("nodes start");
    sim.start_nodes(last)?;
    tell("services are added");
    sim.add_services(last)?;
    let mut rows = Vec::new();
    let mut phase = |sim: &mut ScaleCluster,
                     what,
                     act: &mut dyn FnMut(&mut ScaleCluster) -> Begun| {
        tell(what);
        let before = sim.mark();
        let since = act(sim)?;
        let agreed = sim.settle().map_err(|why| format!("{what}: {why}"))?;
        let row = row(sim, what, &before, agreed.since(since));
        tell(&format!(
            "{what}: all agree after {:.2} s, a node sends {:.2} MB and at most {:.2} MB, {} false downs, {:.1} s of CPU",
            row.agree_ms / 1e3,
            row.sent_mean / 1e6,
            row.sent_max as f64 / 1e6,
            row.false_downs,
            row.cpu_s
        ));
        rows.push(row);
        Ok::<(), Error>(())
    };
    phase(&mut sim, "one service more", &mut |sim| {
        let since = sim.world.now;
        sim.add(0, 1)?;
        Ok(since)
    })?;
    phase(&mut sim, "cold join", &mut |sim| {
        let since = sim.world.now;
        sim.start(last)?;
        Ok(since)
    })?;
    tell("idle");
    let idle = idle(&mut sim)?;
    tell(&format!(
        "idle: {:.3} % of a core, {:.0} B/s of each node",
        idle.cpu_percent, idle.bytes_per_s
    ));
    phase(&mut sim, "partition of 30 s heals", &mut partition)?;
    let dead = victims(shape.nodes);
    let mut heap_each = 0.0;
    phase(&mut sim, "10 % die at once", &mut |sim| {
        let since = sim.world.now;
        for (number, host) in dead.iter().enumerate() {
            let process = sim.process(*host)?;
            let before = allocations::tally().heap;
            sim.world.vanish(process);
            if number == 0 {
                let freed = before - allocations::tally().heap;
                heap_each = freed as f64 / shape.services as f64;
            }
        }
        Ok(since)
    })?;
    phase(&mut sim, "the 10 % come back", &mut |sim| {
        let since = sim.world.now;
        for host in &dead {
            sim.start(*host)?;
        }
        Ok(since)
    })?;
    phase(&mut sim, "rolling restart", &mut |sim| {
        rolling_restart(sim, tell)
    })?;
    Ok(Outcome {
        rows,
        idle,
        heap_each,
    })
}

/// When what is measured began.
type Begun = Result<Instant, Error>;

fn row(sim: &mut ScaleCluster, what: &'static str, before: &Mark, agreed: Duration) -> Row {
    let largest_queue = sim.world.largest_queue;
    let after = sim.mark();
    let hosts = 0..sim.shape.nodes;
    let sent: Vec<u64> = hosts
        .clone()
        .map(|host| after.sent[host].0 - before.sent[host].0)
        .collect();
    let taken = hosts.map(|host| after.taken[host] - before.taken[host]);
    Row {
        nodes: sim.shape.nodes,
        services: sim.shape.services,
        what,
        agree_ms: agreed.as_secs_f64() * 1e3,
        sent_mean: sent.iter().sum::<u64>() as f64 / sent.len() as f64,
        sent_max: sent.iter().copied().max().unwrap_or(0),
        taken_max: taken.max().unwrap_or(0),
        largest_queue,
        false_downs: after.false_downs - before.false_downs,
        cpu_s: (after.computed - before.computed).as_secs_f64(),
    }
}

fn idle(sim: &mut ScaleCluster) -> Result<Idle, Error> {
    // What the last phase left behind is over.
    sim.run(IDLE / 2)?;
    let (before, start) = (sim.mark(), thread_time());
    sim.run(IDLE)?;
    let computed = thread_time() - start;
    let after = sim.mark();
    let node_seconds = sim.shape.nodes as f64 * IDLE.as_secs_f64();
    let sum = |mark: &Mark| {
        let sent = mark.sent.iter();
        sent.fold((0, 0), |sum, sent| (sum.0 + sent.0, sum.1 + sent.1))
    };
    let (before, after) = (sum(&before), sum(&after));
    Ok(Idle {
        nodes: sim.shape.nodes,
        services: sim.shape.services,
        cpu_percent: 100.0 * computed.as_secs_f64() / node_seconds,
        bytes_per_s: (after.0 - before.0) as f64 / node_seconds,
        messages_per_s: (after.1 - before.1) as f64 / node_seconds,
    })
}

/// Every other host is cut off from the rest; one service in a hundred is replaced meanwhile, on both sides.
fn partition(sim: &mut ScaleCluster) -> Begun {
    let nodes = sim.shape.nodes;
    for from in 0..nodes {
        for to in (0..nodes).filter(|to| to % 2 != from % 2) {
            sim.world.network.cut(from, to);
        }
    }
    let seconds = PARTITION.as_secs();
    let changes = sim.shape.services / 100;
    let mut host: Host = 0;
    for second in 0..seconds {
        let due = changes * (second as usize + 1) / (seconds as usize - 1);
        let done = changes * second as usize / (seconds as usize - 1);
        // What is changed in the last second would still be on its way.
        for _ in done..due.min(changes) {
            host = (host + 1) % nodes;
            sim.replace_one(host)?;
        }
        sim.run(Duration::from_secs(1))?;
    }
    for side in 0..2 {
        let agree = sim.compare(|host| host % 2 == side);
        agree.map_err(|why| format!("side {side} of the partition: {why}"))?;
    }
    let now = sim.world.now;
    let queue = &mut sim.world.queue;
    sim.world.network.heal_all(now, queue);
    Ok(now)
}

/// One node in ten, and one at least; none of them a seed where there are others.
fn victims(nodes: usize) -> Vec<Host> {
    let victims = (0..(nodes / 10).max(1)).map(|tenth| (10 * tenth + 5).min(nodes - 1));
    victims.collect()
}

/// One after the other leaves and starts again; the next when it may route.
fn rolling_restart(sim: &mut ScaleCluster, tell: &dyn Fn(&str)) -> Begun {
    let since = sim.world.now;
    for host in 0..sim.shape.nodes {
        if host % 10 == 0 {
            tell(&format!("rolling restart, {host} done"));
        }
        let old = sim.process(host)?;
        sim.world.leave(old);
        sim.run(RESTART)?;
        let process = sim.start(host)?;
        let deadline = sim.world.now + SYNC_PATIENCE;
        while sim.world.processes[process].synced_at.is_none() {
            if sim.world.now >= deadline {
                return Err(why_not_synced(sim, process).into());
            }
            sim.run(Duration::from_millis(20))?;
        }
    }
    Ok(since)
}

fn why_not_synced(sim: &ScaleCluster, process: usize) -> String {
    let process = &sim.world.processes[process];
    let missing: Vec<NodeName> = process
        .cluster
        .as_ref()
        .map_or_else(Vec::new, |cluster| cluster.missing());
    format!("{} is not synced, it misses {missing:?}", process.name)
}
