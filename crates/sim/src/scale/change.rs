//! What one change costs by how many entries there are, and what an entry takes of a node's memory.

use std::time::Duration;

use keydispatch_core::links::{LinkId, Output};
use keydispatch_core::message::Frame;
use keydispatch_core::{Cluster, Instant, NewEntry};
use rand::RngExt;
use serde::Serialize;

use super::cluster::{ScaleCluster, Shape, entry};
use crate::Error;
use crate::event::Host;
use keydispatch_measure::allocations::{Tally, tally};
use keydispatch_measure::{Target, exponent, median, thread_time};

/// What is asked of memory: bytes for each entry on each node, beyond what is the user's own.
const MEMORY_EACH: f64 = 300.0;

/// The hosts: two own half of the entries each, the third has none of its own.
const OWNER: Host = 0;
/// See [`OWNER`].
const READER: Host = 2;

/// Instances of each type where nothing else is said.
const PER_TYPE: usize = 10;

/// Times that services are replaced, and how many each time: few enough that no timer of membership is missed.
const ROUNDS: usize = 15;
/// See [`ROUNDS`].
const REPLACED: usize = 50;

/// Changes are collected for this long before they go out.
const COALESCE: Duration = Duration::from_millis(1);

/// One removal or addition, on average over both.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Change {
    pub(super) entries: usize,
    /// Computed by the owner, until the frames for two peers are there.
    pub(super) owner_ns: f64,
    /// Computed by one peer, until its readers see it.
    pub(super) reader_ns: f64,
    /// Bytes that the owner allocates, whether or not it keeps them.
    pub(super) owner_bytes: f64,
    /// The same of one peer.
    pub(super) reader_bytes: f64,
    /// Sent to one peer.
    pub(super) sent_bytes: f64,
}

/// What a node takes that holds the entries of others.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Memory {
    pub(super) entries: usize,
    /// Instances of each type.
    pub(super) per_type: usize,
    /// Tags of each service.
    pub(super) tags: usize,
    /// The user's own bytes of each entry: name, zone, address and tags.
    pub(super) own: f64,
    /// Bytes that are asked of the allocator for each entry, beyond those.
    pub(super) asked: f64,
    /// The same with what the allocator adds.
    pub(super) heap: f64,
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) changes: Vec<Change>,
    pub(super) memory: Vec<Memory>,
}

impl Found {
    /// The exponents by entries: (what, exponent).
    pub(super) fn growth(&self) -> [(&'static str, f64); 4] {
        let grows = |cost: fn(&Change) -> f64| {
            let points = self.changes.iter();
            let points: Vec<_> = points
                .map(|change| (change.entries as f64, cost(change)))
                .collect();
            exponent(&points)
        };
        [
            ("computing of the owner", grows(|change| change.owner_ns)),
            ("computing of a peer", grows(|change| change.reader_ns)),
            (
                "bytes allocated by the owner",
                grows(|change| change.owner_bytes),
            ),
            (
                "bytes allocated by a peer",
                grows(|change| change.reader_bytes),
            ),
        ]
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        let memory = self.memory.iter().map(|memory| {
            let Memory { per_type, tags, .. } = memory;
            let name = format!(
                "bytes of an entry beyond the user's own: {per_type} of each type, {tags} tags"
            );
            Target::at_most(name, memory.heap, MEMORY_EACH)
        });
        // Caches are smaller than a million entries: computing grows where its work does not.
        let bounds = [0.25, 0.25, 0.05, 0.05];
        let growth = self.growth().into_iter().zip(bounds);
        let growth = growth.map(|((what, exponent), bound)| {
            Target::at_most(
                format!("a change: exponent of {what} by entries"),
                exponent,
                bound,
            )
        });
        memory.chain(growth).collect()
    }
}

/// Measures at each of the sizes, which rise.
pub(super) fn measure(sizes: &[usize], tell: &dyn Fn(&str)) -> Result<Found, Error> {
    let mut found = Found {
        changes: Vec::new(),
        memory: Vec::new(),
    };
    let empty = Trio::new(0, PER_TYPE, 0)?.end(READER)?;
    for entries in sizes {
        tell(&format!("changes of {entries} entries"));
        let mut trio = Trio::new(*entries, PER_TYPE, 0)?;
        found.changes.push(trio.change()?);
    }
    let most = sizes.last().copied().unwrap_or(0);
    for (per_type, tags) in [(PER_TYPE, 0), (10 * PER_TYPE, 0), (PER_TYPE, 2)] {
        tell(&format!(
            "memory of {most} entries, {per_type} of each type, {tags} tags"
        ));
        let mut trio = Trio::new(most, per_type, tags)?;
        let own = trio.users_bytes()?;
        let freed = trio.end(READER)?;
        let each = |with: i64, without: i64| ((with - without) as f64 - own as f64) / most as f64;
        found.memory.push(Memory {
            entries: most,
            per_type,
            tags,
            own: own as f64 / most as f64,
            asked: each(freed.live, empty.live),
            heap: each(freed.heap, empty.heap),
        });
    }
    Ok(found)
}

/// Two owners and a node without services, all of which agree.
struct Trio {
    sim: ScaleCluster,
    entries: usize,
}

impl Trio {
    fn new(entries: usize, per_type: usize, tags: usize) -> Result<Self, Error> {
        let shape = Shape {
            nodes: 3,
            readers: 1,
            services: entries,
            types: (entries / per_type).max(1),
            tags,
        };
        let mut sim = ScaleCluster::new(shape)?;
        // Clocks of processes begin at least so late, and are set forward later.
        sim.run(Duration::from_secs(60))?;
        sim.start_nodes(shape.nodes)?;
        sim.add_services(shape.nodes)?;
        // Nothing is on its way any more.
        sim.run(Duration::from_secs(1))?;
        Ok(Trio { sim, entries })
    }

    /// Ends a process; returns what it gives back.
    fn end(&mut self, host: Host) -> Result<Tally, Error> {
        let cluster = self.take(host)?;
        let before = tally();
        drop(cluster);
        let after = tally();
        Ok(Tally {
            live: before.live - after.live,
            heap: before.heap - after.heap,
            ..after
        })
    }

    fn take(&mut self, host: Host) -> Result<Box<Cluster>, Error> {
        let process = self.sim.process(host)?;
        let cluster = self.sim.world.processes[process].cluster.take();
        Ok(cluster.ok_or("the node has ended")?)
    }

    /// What of all that the reader lists is the user's own.
    fn users_bytes(&self) -> Result<usize, Error> {
        let process = self.sim.process(READER)?;
        let cluster = self.sim.world.processes[process].cluster.as_ref();
        let directory = cluster.ok_or("the node has ended")?.directory();
        let views = directory.types().into_iter();
        let views = views.filter_map(|one| directory.view(one.as_str()));
        let bytes = views.map(|view| {
            let services = view.services().iter();
            let bytes = services.map(|info| {
                let tags = info.tags().map(|(key, value)| key.len() + value.len());
                info.name().as_str().len()
                    + info.zone().map_or(0, str::len)
                    + info.address().map_or(0, str::len)
                    + tags.sum::<usize>()
            });
            bytes.sum::<usize>()
        });
        Ok(bytes.sum())
    }

    /// The middle of some rounds.
    fn change(&mut self) -> Result<Change, Error> {
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            rounds.push(self.round()?);
            // The timers get their turn.
            self.sim.run(Duration::from_secs(2))?;
        }
        let middle = |of: fn(&Change) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
        Ok(Change {
            entries: self.entries,
            owner_ns: middle(|change| change.owner_ns),
            reader_ns: middle(|change| change.reader_ns),
            owner_bytes: middle(|change| change.owner_bytes),
            reader_bytes: middle(|change| change.reader_bytes),
            sent_bytes: middle(|change| change.sent_bytes),
        })
    }

    /// Services are replaced one by one, each change flushed for itself; then the peers take all of it in.
    fn round(&mut self) -> Result<Change, Error> {
        let swaps = self.swaps()?;
        let changes = (2 * swaps.len()) as f64;
        let took = COALESCE * 2 * swaps.len() as u32;
        let mut owner = self.take(OWNER)?;
        let mut frames = Vec::with_capacity(8 * swaps.len());
        let mut now = self.local(OWNER)?;
        let (start, before) = (thread_time(), tally());
        for (removed, added) in swaps {
            owner.remove(now, removed)?;
            now += COALESCE;
            flush(&mut owner, now, &mut frames);
            owner.add(now, vec![added])?;
            now += COALESCE;
            flush(&mut owner, now, &mut frames);
        }
        let (owner_time, after) = (thread_time() - start, tally());
        self.put_back(OWNER, owner, took)?;
        let owner_bytes = after.bytes - before.bytes;
        self.deliver(1, &frames, took)?;
        let (reader_time, reader_bytes, sent) = self.deliver(READER, &frames, took)?;
        Ok(Change {
            entries: self.entries,
            owner_ns: owner_time.as_nanos() as f64 / changes,
            reader_ns: reader_time.as_nanos() as f64 / changes,
            owner_bytes: owner_bytes as f64 / changes,
            reader_bytes: reader_bytes as f64 / changes,
            sent_bytes: sent as f64 / changes,
        })
    }

    /// Distinct services of the owner at random, and as many that take their places.
    fn swaps(&mut self) -> Result<Vec<(u64, NewEntry)>, Error> {
        let process = self.sim.process(OWNER)?;
        let state = &mut self.sim.world.processes[process];
        let cluster = state.cluster.as_ref().ok_or("the node has ended")?;
        let mut own: Vec<_> = cluster.tracker().own().cloned().collect();
        let mut swaps = Vec::with_capacity(REPLACED);
        for _ in 0..REPLACED.min(own.len()) {
            let at = self.sim.world.rng.random_range(0..own.len());
            let removed = own.swap_remove(at);
            let mut added = entry(state.next_sequence, 0, OWNER, self.sim.shape.tags)?;
            added.service_type = removed.service_type().clone();
            state.next_sequence += 1;
            swaps.push((removed.id().sequence, added));
        }
        Ok(swaps)
    }

    /// A peer takes in what is meant for it. Returns the time, the bytes it allocated, and those that came.
    fn deliver(
        &mut self,
        host: Host,
        frames: &[(LinkId, Frame)],
        took: Duration,
    ) -> Result<(Duration, u64, usize), Error> {
        let (owner, process) = (self.sim.process(OWNER)?, self.sim.process(host)?);
        let processes = &self.sim.world.processes;
        let mine: Vec<(LinkId, &Frame)> = frames
            .iter()
            .filter_map(|(link, frame)| {
                let wire = processes[owner].links.get(link)?;
                let (_, link) = processes[process].connections.get(&wire.connection)?;
                Some(((*link)?, frame))
            })
            .collect();
        let sent = mine.iter().map(|(_, frame)| frame.body.len()).sum();
        let mut now = self.local(host)?;
        let mut cluster = self.take(host)?;
        let (start, before) = (thread_time(), tally().bytes);
        for (link, frame) in mine {
            now += COALESCE;
            cluster.handle_frame(now, link, frame);
            while cluster.poll_output().is_some() {}
            while cluster.poll_event().is_some() {}
        }
        let result = (thread_time() - start, tally().bytes - before, sent);
        self.put_back(host, cluster, took)?;
        Ok(result)
    }

    fn local(&self, host: Host) -> Result<Instant, Error> {
        let process = self.sim.process(host)?;
        Ok(self.sim.world.processes[process].local(self.sim.world.now))
    }

    /// The process goes on, its clock set forward by what has passed for it meanwhile.
    fn put_back(&mut self, host: Host, cluster: Box<Cluster>, took: Duration) -> Result<(), Error> {
        let process = self.sim.process(host)?;
        let state = &mut self.sim.world.processes[process];
        let origin = state.origin.as_micros() - took.as_micros() as u64;
        state.origin = Instant::from_micros(origin);
        state.cluster = Some(cluster);
        self.sim.world.pump(process);
        Ok(())
    }
}

/// Sends what was collected, and takes in what there is to say.
fn flush(cluster: &mut Cluster, now: Instant, frames: &mut Vec<(LinkId, Frame)>) {
    cluster.handle_timeout(now);
    while let Some(output) = cluster.poll_output() {
        if let Output::Transmit { link, frame } = output {
            frames.push((link, frame));
        }
    }
    while cluster.poll_event().is_some() {}
}
