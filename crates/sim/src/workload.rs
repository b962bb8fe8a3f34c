//! What users do: register, change and remove services, at random and in bursts.

use std::collections::BTreeMap;

use keydispatch_core::{
    EntryUpdate, InstanceName, Metadata, NewEntry, ServiceState, ServiceType, Weight,
};
use rand::RngExt;

use super::event::Event;
use super::world::World;

impl World {
    /// The next change, and when the one after it comes.
    pub(crate) fn next_work(&mut self) {
        if !self.faults_on {
            return;
        }
        let mut running = self.living();
        running.retain(|process| self.processes[*process].is_running());
        if let Some(process) = self.pick(&running) {
            let changes = if self.rng.random_bool(0.05) {
                self.rng.random_range(1..=self.workload.burst)
            } else {
                1
            };
            self.change(process, changes);
        }
        let after = self.exponential(self.workload.between);
        self.queue.push(self.now + after, Event::Work);
    }

    /// Makes so many changes at one node, all at one moment.
    pub(crate) fn change(&mut self, process: usize, changes: usize) {
        for _ in 0..changes {
            let own = self.own_sequences(process);
            let adds =
                own.is_empty() || (own.len() < self.workload.most && self.rng.random_bool(0.4));
            if adds {
                let room = self.workload.most.saturating_sub(own.len()).max(1);
                let batch = self.rng.random_range(1..=room.min(4));
                self.add(process, batch);
                continue;
            }
            let at = self.rng.random_range(0..own.len());
            let sequence = own[at];
            if self.rng.random_bool(0.3) {
                self.remove(process, sequence);
            } else {
                self.update(process, sequence);
            }
        }
        self.pump(process);
    }

    fn own_sequences(&self, process: usize) -> Vec<u64> {
        let cluster = self.processes[process].cluster.as_ref();
        cluster.map_or_else(Vec::new, |cluster| {
            let own = cluster.tracker().own();
            own.map(|info| info.id().sequence).collect()
        })
    }

    /// Registers so many services at once.
    pub(crate) fn add(&mut self, process: usize, batch: usize) {
        let entries = (0..batch).map(|_| self.new_entry(process)).collect();
        let state = &mut self.processes[process];
        let local = state.local(self.now);
        if let Some(cluster) = state.cluster.as_mut() {
            // A name may be taken, as names may be.
            let _ = cluster.add(local, entries);
        }
    }

    fn new_entry(&mut self, process: usize) -> NewEntry {
        let state = &mut self.processes[process];
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        let service_type = self.rng.random_range(0..self.workload.types);
        let shared = self.rng.random_bool(0.05);
        let name = shared.then(|| {
            let number = self.rng.random_range(0..4);
            InstanceName::try_new(format!("shared{number}")).expect("a short name")
        });
        NewEntry {
            sequence,
            service_type: ServiceType::try_new(format!("type{service_type}"))
                .expect("a short name"),
            name,
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: Some(1),
            metadata: self.metadata(),
        }
    }

    fn metadata(&mut self) -> Metadata {
        let mut tags = BTreeMap::new();
        if self.workload.tag_bytes > 0 && self.rng.random_bool(0.7) {
            let bytes = self.rng.random_range(1..=self.workload.tag_bytes);
            tags.insert("tag".into(), "x".repeat(bytes).into());
        }
        Metadata::try_new(None, None, tags).expect("within the limit")
    }

    fn update(&mut self, process: usize, sequence: u64) {
        let mut update = EntryUpdate::default();
        match self.rng.random_range(0..6) {
            0..=1 => update.state = Some(ServiceState::Online),
            2 => update.state = Some(ServiceState::Offline),
            3 => update.state = Some(ServiceState::Draining),
            4 => {
                let weight = self.rng.random_range(1..=1000);
                update.weight = Weight::try_new(weight).ok();
            }
            _ => {
                let tag = self.metadata().tags().get("tag").cloned();
                update.tags.insert("tag".into(), tag);
            }
        }
        let state = &mut self.processes[process];
        let local = state.local(self.now);
        if let Some(cluster) = state.cluster.as_mut()
            && let Err(error) = cluster.update(local, sequence, update)
        {
            self.violate(format!("an own service cannot be changed: {error}"));
        }
    }

    fn remove(&mut self, process: usize, sequence: u64) {
        let state = &mut self.processes[process];
        let local = state.local(self.now);
        if let Some(cluster) = state.cluster.as_mut()
            && let Err(error) = cluster.remove(local, sequence)
        {
            self.violate(format!("an own service cannot be removed: {error}"));
        }
    }
}
