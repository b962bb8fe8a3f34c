//! A simulated cluster of a given size, without the checks of every step, with all that is measured of it.

use std::time::Duration;

use keydispatch_core::{
    Cluster, Instant, Metadata, NewEntry, NodeName, ServiceState, ServiceType, Settings, Weight,
    Zone,
};
use rand::RngExt;

use super::agreement;
use crate::Error;
use crate::constants::{Constants, Cost};
use crate::event::Host;
use crate::network::Weather;
use crate::profile::{Profile, Workload};
use crate::trace::Trace;
use crate::world::World;
use keydispatch_core::RuleSet;
use keydispatch_measure::thread_time;

/// How long is waited for all to agree, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is asked whether all agree; the time of agreement is that of the last change, whenever it is asked.
const STEP: Duration = Duration::from_millis(100);

/// Entry by entry is costly to compare: where all but agree so often, they never will.
const COMPARISONS: u32 = 20;

/// Services that are added at once while a cluster is set up.
const BATCH: usize = 2_000;

/// One way, within a data centre.
const LATENCY: Duration = Duration::from_micros(250);

/// Bytes a second of one connection and direction.
const BANDWIDTH: u64 = 125_000_000;

/// What the work of a process takes it in simulated time; that of real nodes on one core, rounded up.
const COST: Cost = Cost {
    input_micros: 20,
    output_micros: 3,
    bytes_per_micro: 30,
};

/// As in the driver.
const QUEUE_BYTES: (usize, usize) = (4 * 1024 * 1024, 32 * 1024 * 1024);

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) nodes: usize,
    /// How many of them, the last ones, have no services of their own.
    pub(super) readers: usize,
    /// In all.
    pub(super) services: usize,
    pub(super) types: usize,
    /// Tags of each service.
    pub(super) tags: usize,
}

impl Shape {
    /// As it is written in tables.
    pub(super) fn name(&self) -> String {
        format!(
            "{} × {}",
            self.nodes,
            keydispatch_measure::figure(self.services as f64)
        )
    }

    /// How many services that host has.
    fn share(&self, host: Host) -> usize {
        let owners = self.nodes - self.readers;
        if host >= owners {
            return 0;
        }
        self.services / owners + usize::from(host < self.services % owners)
    }
}

/// Sums since the world began.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// Bytes and messages that each host has sent.
    pub(super) sent: Vec<(u64, u64)>,
    /// Bytes that each host has taken in.
    pub(super) taken: Vec<u64>,
    pub(super) false_downs: u64,
    /// Computed by this thread, without what the comparisons took.
    pub(super) computed: Duration,
}

/// See the module.
pub(super) struct ScaleCluster {
    pub(super) shape: Shape,
    pub(super) world: World,
    compared: Duration,
}

impl ScaleCluster {
    /// Hosts on which nothing runs.
    pub(super) fn new(shape: Shape) -> Result<Self, Error> {
        let names = (0..shape.nodes).map(|number| NodeName::try_new(format!("node{number:03}")));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        let weather = Weather {
            latency: LATENCY,
            bandwidth: BANDWIDTH,
            lost_ppm: 0,
        };
        let constants = Constants {
            settings: Settings::default(),
            rules: RuleSet::default(),
            seeds: (0..shape.nodes.min(3)).collect(),
            queue_bytes: QUEUE_BYTES,
            max_chatter: u64::MAX,
            checks: false,
            cost: Some(COST),
        };
        let workload = Workload {
            between: Duration::MAX,
            most: 0,
            types: 0,
            tag_bytes: 0,
            burst: 0,
        };
        let calm = Profile::named("calm").ok_or("no calm profile")?;
        let load = (calm, workload, names);
        let trace = Trace::new(false, false);
        Ok(ScaleCluster {
            shape,
            world: World::new(shape.nodes, weather, constants, load, 1, trace),
            compared: Duration::ZERO,
        })
    }

    /// Starts the first nodes, without services; returns once they know each other.
    pub(super) fn start_nodes(&mut self, nodes: usize) -> Result<(), Error> {
        for host in 0..nodes {
            self.start_empty(host);
            self.run(Duration::from_millis(10))?;
        }
        self.settle()?;
        Ok(())
    }

    /// Gives each of the first nodes its services; returns once all agree.
    pub(super) fn add_services(&mut self, nodes: usize) -> Result<(), Error> {
        let mut lacking: Vec<usize> = (0..nodes).map(|host| self.shape.share(host)).collect();
        while lacking.iter().any(|lacking| *lacking > 0) {
            for (host, lacking) in lacking.iter_mut().enumerate() {
                let batch = BATCH.min(*lacking);
                *lacking -= batch;
                self.add(host, batch)?;
            }
            self.run(STEP)?;
        }
        self.settle()?;
        Ok(())
    }

    /// Starts a node with its share of the services.
    pub(super) fn start(&mut self, host: Host) -> Result<usize, Error> {
        let process = self.start_empty(host);
        self.add(host, self.shape.share(host))?;
        Ok(process)
    }

    fn start_empty(&mut self, host: Host) -> usize {
        let name = self.world.names[host].clone();
        self.world.start(name, host)
    }

    /// The process on a host.
    pub(super) fn process(&self, host: Host) -> Result<usize, Error> {
        Ok(self.world.listening[host].ok_or("nothing runs there")?)
    }

    /// Registers so many more services of a node.
    pub(super) fn add(&mut self, host: Host, count: usize) -> Result<(), Error> {
        let process = self.process(host)?;
        let first = self.world.processes[process].next_sequence;
        self.world.processes[process].next_sequence += count as u64;
        let entries = (first..first + count as u64).map(|sequence| {
            let number = host * self.shape.share(0) + sequence as usize;
            entry(sequence, number % self.shape.types, host, self.shape.tags)
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let state = &mut self.world.processes[process];
        let local = state.local(self.world.now);
        let cluster = state.cluster.as_mut().ok_or("the node has ended")?;
        cluster.add(local, entries)?;
        self.world.pump(process);
        Ok(())
    }

    /// Removes one service of a node, and registers another one in its place.
    pub(super) fn replace_one(&mut self, host: Host) -> Result<(), Error> {
        let process = self.process(host)?;
        let state = &mut self.world.processes[process];
        let local = state.local(self.world.now);
        let cluster = state.cluster.as_mut().ok_or("the node has ended")?;
        let own = cluster.tracker().own().len();
        if own > 0 {
            // The order is that of their numbers: near the first is as good as anywhere.
            let at = self.world.rng.random_range(0..own.min(50));
            let mut own = cluster.tracker().own();
            let sequence = own.nth(at).map(|info| info.id().sequence);
            drop(own);
            cluster.remove(local, sequence.ok_or("no such service")?)?;
        }
        self.add(host, 1)
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) -> Result<(), Error> {
        self.world.run_until(self.world.now + time);
        match self.world.violations.first() {
            Some(violation) => Err(violation.what.clone().into()),
            None => Ok(()),
        }
    }

    /// Lets time pass until all agree. Returns when the last view changed.
    pub(super) fn settle(&mut self) -> Result<Instant, Error> {
        let deadline = self.world.now + PATIENCE;
        let mut comparisons = 0;
        loop {
            self.run(STEP)?;
            let late = self.world.now >= deadline;
            if !late && !agreement::is_likely(&self.world.clusters()) {
                continue;
            }
            comparisons += 1;
            match self.compare(|_| true) {
                Ok(()) => return Ok(self.world.changed_at),
                Err(why) if late || comparisons >= COMPARISONS => return Err(why.into()),
                Err(_) => {}
            }
        }
    }

    /// Compares what those hosts list, entry by entry.
    pub(super) fn compare(&mut self, whom: impl Fn(Host) -> bool) -> Result<(), String> {
        let start = thread_time();
        let processes = self.world.processes.iter();
        let nodes: Vec<&Cluster> = processes
            .filter(|process| whom(process.host))
            .filter_map(|process| process.cluster.as_deref())
            .collect();
        let compared = agreement::check(&nodes);
        self.compared += thread_time() - start;
        compared
    }

    /// The sums so far; the largest queue is counted anew.
    pub(super) fn mark(&mut self) -> Mark {
        self.world.largest_queue = 0;
        let mut mark = Mark {
            sent: vec![(0, 0); self.shape.nodes],
            taken: vec![0; self.shape.nodes],
            false_downs: self.world.false_downs,
            computed: thread_time().saturating_sub(self.compared),
        };
        for process in &self.world.processes {
            let (bytes, messages) = &mut mark.sent[process.host];
            *bytes += process.sent_bytes;
            *messages += process.sent_messages;
            mark.taken[process.host] += process.taken_bytes;
        }
        mark
    }
}

/// A service as users register it.
pub(super) fn entry(
    sequence: u64,
    service_type: usize,
    host: Host,
    tags: usize,
) -> Result<NewEntry, Error> {
    let zone = Zone::try_new(format!("zone-{}", host % 3))?;
    let (high, low) = ((sequence >> 8) % 256, sequence % 256);
    let address = format!("10.{}.{high}.{low}:7000", host % 256);
    let tags = (0..tags).map(|tag| {
        let value = format!("value-{:04}", sequence % 10_000);
        (format!("tag-{tag}").into(), value.into())
    });
    Ok(NewEntry {
        sequence,
        service_type: ServiceType::try_new(format!("type-{service_type:05}"))?,
        name: None,
        state: ServiceState::Online,
        weight: Weight::default(),
        protocol_version: Some(1),
        metadata: Metadata::try_new(Some(zone), Some(address.into()), tags.collect())?,
    })
}
