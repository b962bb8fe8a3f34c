//! Instances that come, change and stop, and nodes that leave.

use std::collections::BTreeSet;
use std::time::Duration;

use keydispatch_core::Rule;
use keydispatch_core::{
    EntryUpdate, InstanceName, Metadata, NewEntry, NodeName, ServiceId, ServiceState, Weight,
};
use rand::RngExt;

use super::TokenEvent;
use super::letter::Letter;
use super::machine::{Leaving, service_type};
use crate::event::Event;
use crate::world::World;

/// How often a node that leaves, or an instance that stops, looks whether it may go.
const TICK: Duration = Duration::from_millis(5);
/// How long a leave waits for the others before it goes all the same.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// How long after everything is said a node that leaves is gone.
const LINGERS: Duration = Duration::from_millis(35);
impl World {
    /// A node that is synced registers its instances.
    pub(crate) fn register(&mut self, process: usize) {
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        if tokens.machines[process]
            .as_ref()
            .is_none_or(|machine| machine.leaving != Leaving::No)
        {
            return;
        }
        let instances = if tokens.profile.instances {
            tokens.rng.random_range(1..=3)
        } else {
            1
        };
        for _ in 0..instances {
            self.add_instance(process);
        }
    }

    /// One more instance, by a name that none of the node's has.
    pub(crate) fn add_instance(&mut self, process: usize) {
        let local = self.processes[process].local(self.now);
        let node = self.processes[process].name.clone();
        let Some(cluster) = self.processes[process].cluster.as_ref() else {
            return;
        };
        let taken: Vec<InstanceName> = cluster
            .tracker()
            .own()
            .map(|info| info.name().clone())
            .collect();
        let names =
            (1..=3).filter_map(|number| InstanceName::try_new(format!("{node}/{number}")).ok());
        let Some(name) = names.into_iter().find(|name| !taken.contains(name)) else {
            return;
        };
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        tokens.sequence += 1;
        let weight = if tokens.profile.weights {
            100 * tokens.rng.random_range(1..=3)
        } else {
            100
        };
        let entry = NewEntry {
            sequence: tokens.sequence,
            service_type: service_type(),
            name: Some(name),
            state: ServiceState::Online,
            weight: Weight::try_new(weight).unwrap_or_default(),
            protocol_version: Some(1),
            metadata: Metadata::default(),
        };
        if let Some(cluster) = self.processes[process].cluster.as_mut() {
            let _ = cluster.add(local, vec![entry]);
        }
        self.pump(process);
    }

    /// Changes an instance's entry.
    pub(crate) fn change_instance(&mut self, process: usize, id: &ServiceId, update: EntryUpdate) {
        let local = self.processes[process].local(self.now);
        let (now, told) = (self.now, format!("{id} becomes {update:?}"));
        self.trace.line(now, || told);
        if let Some(cluster) = self.processes[process].cluster.as_mut() {
            let _ = cluster.update(local, id.sequence, update);
        }
        self.pump(process);
    }

    /// R14: a leave begins.
    pub(crate) fn begin_leave(&mut self, process: usize, restart: bool) {
        let now = self.now;
        let local = self.processes[process].local(now);
        let drains = self
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.rules.holds(Rule::Drains));
        let name = self.processes[process].name.clone();
        let Some(machine) = self.machine(process) else {
            return;
        };
        if machine.leaving != Leaving::No {
            return;
        }
        machine.leaving = Leaving::Draining(now);
        machine.restart = restart;
        machine.ownership.set_leaving();
        self.trace.line(now, || format!("{name} begins to leave"));
        if let Some(cluster) = self.processes[process].cluster.as_mut() {
            cluster.drain(local, true);
        }
        self.pump(process);
        if drains {
            self.queue
                .push(now + TICK, Event::Tokens(TokenEvent::Tick(process)));
        } else {
            self.finish_leave(process);
        }
    }

    /// A node that leaves, or an instance that stops, looks whether it may go.
    pub(crate) fn machine_tick(&mut self, process: usize) {
        let now = self.now;
        if self.processes[process].paused {
            return self.queue.push(
                now + Duration::from_millis(20),
                Event::Tokens(TokenEvent::Tick(process)),
            );
        }
        let others = self.others_online(process);
        let planned = self
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.profile.is_planned());
        let calls = self.tokens.iter().flat_map(|tokens| tokens.calls.values());
        let calls = calls.filter(|call| call.caller == process).count();
        let Some(machine) = self.machine(process) else {
            return;
        };
        match machine.leaving.clone() {
            Leaving::No => return self.end_stopped(process),
            Leaving::Draining(since) => {
                let idle = machine.ownership.is_idle();
                let late = now.since(since) > DRAIN_TIMEOUT;
                if idle || !others || late {
                    let unrest = machine.ownership.unrest();
                    let ledger = self.tokens.as_mut().map(|tokens| &mut tokens.ledger);
                    if !idle && let Some(ledger) = ledger {
                        let stuck = planned && others && ledger.is_healthy();
                        ledger.nobody |= !others;
                        if stuck {
                            let name = self.processes[process].name.clone();
                            self.violate(format!("{name} cannot leave: {unrest:?}"));
                        }
                    }
                    let acks: BTreeSet<usize> = self
                        .living()
                        .into_iter()
                        .filter(|other| *other != process && self.lists_life(process, *other))
                        .collect();
                    for other in &acks {
                        self.post_to(process, *other, Letter::GoAway);
                    }
                    if let Some(machine) = self.machine(process) {
                        machine.leaving = Leaving::Parting(now, acks);
                    }
                }
            }
            Leaving::Parting(since, acks) => {
                let waits = acks
                    .into_iter()
                    .any(|other| self.processes[other].cluster.is_some());
                if (!waits && calls == 0) || now.since(since) > DRAIN_TIMEOUT {
                    self.queue
                        .push(now + LINGERS, Event::Tokens(TokenEvent::Gone(process)));
                    return;
                }
            }
        }
        self.queue
            .push(now + TICK, Event::Tokens(TokenEvent::Tick(process)));
    }

    /// Stopped instances that hold nothing go.
    fn end_stopped(&mut self, process: usize) {
        let local = self.processes[process].local(self.now);
        let Some(machine) = self.machine(process) else {
            return;
        };
        let idle = machine
            .stopping
            .iter()
            .find(|id| machine.ownership.is_instance_idle(&service_type(), id))
            .cloned();
        if let Some(id) = idle {
            machine.stopping.remove(&id);
            if let Some(cluster) = self.processes[process].cluster.as_mut() {
                let _ = cluster.remove(local, id.sequence);
            }
            self.pump(process);
        }
        if self
            .machine(process)
            .is_some_and(|machine| !machine.stopping.is_empty())
        {
            self.queue
                .push(self.now + TICK, Event::Tokens(TokenEvent::Tick(process)));
        }
    }

    pub(crate) fn finish_leave(&mut self, process: usize) {
        let now = self.now;
        let leaving = self.machine(process).map(|machine| machine.leaving.clone());
        if let Some(Leaving::Parting(since, acks)) = leaving
            && now.since(since) <= DRAIN_TIMEOUT
            && acks
                .into_iter()
                .any(|other| self.processes[other].cluster.is_some())
        {
            let event = TokenEvent::Gone(process);
            return self.queue.push(now + TICK, Event::Tokens(event));
        }
        let (name, host) = (
            self.processes[process].name.clone(),
            self.processes[process].host,
        );
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let Some(machine) = tokens.machines[process].as_ref() else {
            return;
        };
        let restart = machine.restart;
        let after = if tokens.profile.rolling || tokens.profile.restarts {
            tokens.rng.random_range(1_000..20_000)
        } else {
            tokens.rng.random_range(5_000..60_000)
        };
        let planned = tokens.profile.is_planned();
        self.end_machine(process, planned);
        self.leave(process);
        if restart {
            let after = Duration::from_micros(after);
            self.queue
                .push(now + after, Event::Tokens(TokenEvent::Start(name, host)));
        }
    }

    pub(crate) fn start_named(&mut self, name: NodeName, host: usize) {
        if self.listening[host].is_none() && self.absent().contains(&name) {
            self.start(name, host);
        }
    }

    /// Whether another node that stays has an instance online.
    pub(crate) fn others_online(&self, process: usize) -> bool {
        self.ready().into_iter().any(|other| other != process)
    }

    /// The processes that stay, are synced and have an instance online.
    pub(crate) fn ready(&self) -> Vec<usize> {
        let living = self.living().into_iter();
        let ready = living.filter(|process| {
            let machine = self
                .tokens
                .as_ref()
                .and_then(|tokens| tokens.machines[*process].as_ref());
            let online = self.processes[*process]
                .cluster
                .as_ref()
                .is_some_and(|cluster| cluster.tracker().own().any(|info| info.is_online()));
            let machine = machine.filter(|machine| {
                machine.leaving == Leaving::No && machine.silent_until <= self.now
            });
            online && machine.is_some_and(|machine| machine.ownership.is_ready())
        });
        ready.collect()
    }
}
