//! What goes wrong: drawn from the seed, each with its end.

use std::time::Duration;

use keydispatch_core::NodeName;
use keydispatch_core::links::Output;
use rand::RngExt;

use super::event::{Event, Host, Undo};
use super::process::{Input, address};
use super::profile::Fault;
use super::world::World;

/// Most that the clock of a host is behind, in microseconds: somewhat less than the clocks of a cluster may differ by.
const MAX_CLOCK_BEHIND: u64 = 23 * 3_600 * 1_000_000;

impl World {
    /// The next fault, and when the one after it comes.
    pub(crate) fn next_fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let fault = self.draw_fault();
        self.inflict(fault);
        let after = self.exponential(self.between_faults());
        self.queue.push(self.now + after, Event::Fault);
    }

    /// More nodes fail more often.
    pub(crate) fn between_faults(&self) -> Duration {
        let crowd = (self.names.len() as f64 / 10.0).max(0.4).sqrt();
        self.profile.between_faults.div_f64(crowd)
    }

    pub(crate) fn exponential(&mut self, mean: Duration) -> Duration {
        let uniform: f64 = self.rng.random_range(0.0001..1.0);
        mean.mul_f64(-uniform.ln())
    }

    fn draw_fault(&mut self) -> Fault {
        let faults = self.profile.faults;
        let total: u32 = faults.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.random_range(0..total);
        for (fault, weight) in faults {
            if drawn < *weight {
                return *fault;
            }
            drawn -= weight;
        }
        faults[0].0
    }

    /// Short faults are common, long ones come, too.
    fn duration(&mut self) -> Duration {
        let down = self.constants.settings.down_period().as_micros() as u64;
        let most = match self.rng.random_range(0..10) {
            0..=4 => down,
            5..=8 => 4 * down,
            _ => 8 * down,
        };
        Duration::from_micros(self.rng.random_range(50_000..most))
    }

    fn random_host(&mut self) -> Option<Host> {
        let hosts: Vec<Host> = self
            .living()
            .into_iter()
            .map(|process| self.processes[process].host)
            .collect();
        self.pick(&hosts)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        Some(from[self.rng.random_range(0..from.len())])
    }

    fn random_running(&mut self) -> Option<usize> {
        let mut running = self.living();
        running.retain(|process| self.processes[*process].is_running());
        self.pick(&running)
    }

    fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::CutPair | Fault::CutOneWay | Fault::Stall => self.cut_pair(fault),
            Fault::CutOff | Fault::CutOffOneWay => self.cut_off(fault),
            Fault::Partition => self.partition(),
            Fault::Reset | Fault::ResetAll => self.reset_links(fault),
            Fault::Kill | Fault::HostDeath | Fault::Move => {
                if let Some(process) = self.random_running() {
                    self.kill(process, fault);
                }
            }
            Fault::Leave => {
                if let Some(process) = self.random_running() {
                    self.leave(process);
                }
            }
            Fault::Clash => self.clash(),
            Fault::Pause => {
                if let Some(process) = self.random_running() {
                    self.coverage.pauses += 1;
                    let time = self.duration();
                    self.say(|world| {
                        format!("{} pauses for {time:?}", world.processes[process].name)
                    });
                    self.processes[process].paused = true;
                    self.undo_after(time, Undo::Pause(process));
                }
            }
            Fault::Slow => {
                if let Some(process) = self.random_running() {
                    self.coverage.slow_downs += 1;
                    let cost = self.rng.random_range(200..4_000);
                    let time = self.duration();
                    self.say(|world| {
                        format!(
                            "{} needs {cost} µs each input for {time:?}",
                            world.processes[process].name
                        )
                    });
                    self.processes[process].cost_micros = cost;
                    self.undo_after(time, Undo::Slow(process));
                }
            }
            Fault::MassRestart => {
                let living = self.living();
                for process in living {
                    if self.rng.random_bool(0.5) {
                        self.kill(process, Fault::Kill);
                    }
                }
            }
            Fault::RollingRestart => {
                let names = self.names.clone();
                self.undo(Undo::Roll(names));
            }
            Fault::Congestion => {
                let latency_factor = self.rng.random_range(2..10);
                let bandwidth_divisor = self.rng.random_range(1..200);
                self.network.slow_down(latency_factor, bandwidth_divisor);
                let time = self.duration();
                self.say(|_| format!("the network is slow for {time:?}"));
                self.undo_after(time, Undo::Congestion);
            }
            Fault::Revive => self.revive(),
        }
    }

    fn undo_after(&mut self, time: Duration, undo: Undo) {
        self.queue.push(self.now + time, Event::Undo(undo));
    }

    fn cut_all(&mut self, directions: Vec<(Host, Host)>, time: Duration) {
        self.coverage.cuts += 1;
        self.say(|_| {
            let shown = &directions[..directions.len().min(8)];
            format!(
                "{} directions are cut for {time:?}: {shown:?}",
                directions.len()
            )
        });
        for (from, to) in &directions {
            self.network.cut(*from, *to);
        }
        self.undo_after(time, Undo::Cut(directions));
    }

    fn cut_pair(&mut self, fault: Fault) {
        let (Some(a), Some(b)) = (self.random_host(), self.random_host()) else {
            return;
        };
        if a == b {
            return;
        }
        let time = if fault == Fault::Stall {
            Duration::from_micros(self.rng.random_range(20_000..1_000_000))
        } else {
            self.duration()
        };
        let mut directions = vec![(a, b)];
        if fault == Fault::CutOneWay {
            self.coverage.one_way_cuts += 1;
        } else {
            directions.push((b, a));
        }
        self.cut_all(directions, time);
    }

    fn cut_off(&mut self, fault: Fault) {
        let Some(host) = self.random_host() else {
            return;
        };
        let one_way = fault == Fault::CutOffOneWay;
        self.coverage.one_way_cuts += u64::from(one_way);
        let (mut outward, mut inward) = (true, true);
        if one_way {
            outward = self.rng.random_bool(0.5);
            inward = !outward;
        }
        let mut directions = Vec::new();
        for other in (0..self.listening.len()).filter(|other| *other != host) {
            if outward {
                directions.push((host, other));
            }
            if inward {
                directions.push((other, host));
            }
        }
        let time = self.duration();
        self.cut_all(directions, time);
    }

    fn partition(&mut self) {
        let groups = self.rng.random_range(2..=3);
        let side: Vec<u32> = (0..self.listening.len())
            .map(|_| self.rng.random_range(0..groups))
            .collect();
        let mut directions = Vec::new();
        for from in 0..side.len() {
            for to in 0..side.len() {
                if side[from] != side[to] {
                    directions.push((from, to));
                }
            }
        }
        let time = self.duration();
        self.cut_all(directions, time);
    }

    fn reset_links(&mut self, fault: Fault) {
        let Some(host) = self.random_host() else {
            return;
        };
        let others: Vec<Host> = if fault == Fault::ResetAll {
            (0..self.listening.len()).collect()
        } else {
            self.random_host().into_iter().collect()
        };
        self.say(|_| format!("the connections of host{host} with {others:?} break"));
        for other in others {
            for connection in self.network.between(host, other) {
                self.coverage.resets += 1;
                for process in self.network.sever(connection) {
                    self.deliver(process, Input::Closed { connection });
                }
            }
        }
    }

    /// The seeds are gone, and nobody will ever be found by them.
    pub(crate) fn lose_seeds(&mut self) {
        for host in self.constants.seeds.clone() {
            if let Some(process) = self.listening[host] {
                self.coverage.kills += 1;
                self.say(|_| format!("the seed host{host} is gone for good"));
                self.processes[process].killed_at = Some(self.now);
                self.end(process, false);
            }
        }
    }

    fn kill(&mut self, process: usize, fault: Fault) {
        let (name, host) = (
            self.processes[process].name.clone(),
            self.processes[process].host,
        );
        if fault == Fault::HostDeath {
            self.coverage.host_deaths += 1;
            self.say(|_| format!("host{host} with {name} dies"));
            self.vanish(process);
        } else {
            self.coverage.kills += 1;
            self.say(|_| format!("{name} on host{host} is killed"));
            self.processes[process].killed_at = Some(self.now);
            self.end(process, false);
        }
        let moves = fault == Fault::Move;
        let spare = self.spare_host();
        let to = if moves { spare.unwrap_or(host) } else { host };
        self.coverage.moves += u64::from(to != host);
        if moves || self.rng.random_bool(0.6) {
            let time = match self.rng.random_range(0..3) {
                0 => Duration::from_micros(self.rng.random_range(1_000..50_000)),
                1 => Duration::from_micros(self.rng.random_range(50_000..1_000_000)),
                _ => self.duration(),
            };
            self.undo_after(time, Undo::Down { name, host: to });
        }
    }

    pub(crate) fn leave(&mut self, process: usize) {
        self.coverage.goodbyes += 1;
        self.say(|world| format!("{} leaves", world.processes[process].name));
        let local = self.processes[process].local(self.now);
        let Some(mut cluster) = self.processes[process].cluster.take() else {
            return;
        };
        cluster.leave(local);
        let mut sent = Vec::new();
        while let Some(output) = cluster.poll_output() {
            sent.push(output);
        }
        for output in sent {
            if let Output::Transmit { link, frame } = output
                && let Some(wire) = self.processes[process].links.get(&link).copied()
            {
                let queue = &mut self.queue;
                self.network
                    .send(self.now, wire.connection, wire.side, frame, queue);
            }
        }
        self.processes[process].cluster = Some(cluster);
        self.processes[process].left = true;
        self.changed_at = self.now;
        self.end(process, true);
    }

    fn clash(&mut self) {
        let (Some(process), Some(host)) = (self.random_running(), self.spare_host()) else {
            return;
        };
        let name = self.processes[process].name.clone();
        self.say(|_| format!("another {name} is started"));
        self.start_again(name, host);
    }

    /// Starts some of the names that nobody has.
    fn revive(&mut self) {
        for name in self.absent() {
            if self.rng.random_bool(0.5) {
                let host = self.home(&name);
                self.undo(Undo::Down { name, host });
            }
        }
    }

    /// The names that no living process has.
    pub(crate) fn absent(&self) -> Vec<NodeName> {
        let mut names = self.names.clone();
        names.retain(|name| {
            !self
                .processes
                .iter()
                .any(|process| process.cluster.is_some() && process.name == *name)
        });
        names
    }

    fn home(&self, name: &NodeName) -> Host {
        self.names
            .iter()
            .position(|other| other == name)
            .unwrap_or(0)
    }

    fn spare_host(&mut self) -> Option<Host> {
        let spare: Vec<Host> = (self.names.len()..self.listening.len())
            .filter(|host| self.listening[*host].is_none())
            .collect();
        self.pick(&spare)
    }

    /// Starts a process under a name that was used before, perhaps with a clock that has gone back.
    pub(crate) fn start_again(&mut self, name: NodeName, host: Host) {
        self.coverage.restarts += 1;
        let percent = self.profile.clock_goes_back_percent;
        if self.rng.random_range(0..100) < percent {
            self.coverage.clocks_gone_back += 1;
            let back = match self.rng.random_range(0..3) {
                0 => self.rng.random_range(0..1_000),
                1 => self.rng.random_range(0..60_000_000),
                _ => self.rng.random_range(0..86_400_000_000),
            };
            // The clocks of a cluster may differ by a day.
            let behind = &mut self.clock_behind[host];
            *behind = (*behind + back).min(MAX_CLOCK_BEHIND);
        }
        self.start(name, host);
    }

    /// Ends a fault.
    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Cut(directions) => {
                self.say(|_| format!("{} directions are open again", directions.len()));
                for (from, to) in directions {
                    self.network.uncut(self.now, from, to);
                }
            }
            Undo::Pause(process) => self.resume(process),
            Undo::Slow(process) => self.processes[process].cost_micros = 0,
            Undo::Congestion => self.network.speed_up(self.now, &mut self.queue),
            Undo::Down { name, host } => {
                let free = self.listening[host].is_none();
                if self.faults_on && free && self.absent().contains(&name) {
                    self.start_again(name, host);
                }
            }
            Undo::Roll(mut names) => {
                let Some(name) = names.pop().filter(|_| self.faults_on) else {
                    return;
                };
                let living = self.living();
                let process = living
                    .into_iter()
                    .find(|process| self.processes[*process].name == name);
                if let Some(process) = process {
                    let host = self.processes[process].host;
                    if self.rng.random_bool(0.5) {
                        self.leave(process);
                    } else {
                        self.end(process, false);
                    }
                    let time = Duration::from_micros(self.rng.random_range(1_000..500_000));
                    self.undo_after(time, Undo::Down { name, host });
                }
                let time = Duration::from_micros(self.rng.random_range(50_000..1_500_000));
                self.undo_after(time, Undo::Roll(names));
            }
        }
    }

    fn resume(&mut self, process: usize) {
        if !std::mem::take(&mut self.processes[process].paused) {
            return;
        }
        self.say(|world| format!("{} goes on", world.processes[process].name));
        self.processes[process].hung_at = Some(self.now);
        self.machine_resumes(process);
        self.work_off(process);
    }

    /// Ends all faults; those who are dead stay dead, but for one who can be found.
    pub(crate) fn heal(&mut self) {
        self.say(|_| "all faults end".to_owned());
        self.faults_on = false;
        self.whole_since = Some(self.now);
        self.network.heal_all(self.now, &mut self.queue);
        for process in self.living() {
            self.processes[process].cost_micros = 0;
            self.resume(process);
        }
        for name in self.absent() {
            let host = self.home(&name);
            if self.profile.seeds_die && self.constants.seeds.contains(&host) {
                continue;
            }
            let seed = self.constants.seeds.first() == Some(&host);
            if self.listening[host].is_none() && (seed || self.rng.random_bool(0.5)) {
                self.start_again(name, host);
            }
        }
        self.publish_seeds();
    }

    /// Where nobody is left at a seed's address, those who run the cluster give out another one.
    pub(crate) fn publish_seeds(&mut self) {
        if self.profile.seeds_die {
            return;
        }
        let seeds = &self.constants.seeds;
        if seeds.iter().any(|seed| self.listening[*seed].is_some()) {
            return;
        }
        let living = self.living();
        if living.is_empty() {
            return;
        }
        // More than one: a pair of hosts may be severed.
        let first = living.iter().take(3);
        self.constants.seeds = first.map(|process| self.processes[*process].host).collect();
        for process in living {
            let seeds = self.constants.seeds.iter().map(|seed| address(*seed));
            let state = &mut self.processes[process];
            let local = state.local(self.now);
            if let Some(cluster) = state.cluster.as_mut() {
                cluster.set_seeds(local, seeds.collect());
            }
            self.pump(process);
        }
    }

    fn say(&mut self, text: impl FnOnce(&World) -> String) {
        if self.trace.is_on() {
            let text = text(self);
            let now = self.now;
            self.trace.line(now, || text);
        }
    }
}
