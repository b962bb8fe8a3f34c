//! What happens in a history: planned changes, and what the profile has of faults.

use std::time::Duration;

use keydispatch_core::{EntryUpdate, Instant, ServiceState, Weight};
use rand::RngExt;

use super::TokenEvent;
use super::machine::Leaving;
use crate::event::{Event, Undo};
use crate::world::World;

impl World {
    fn roll(&mut self, of: u32) -> u32 {
        self.tokens
            .as_mut()
            .map_or(0, |tokens| tokens.rng.random_range(0..of))
    }

    fn between(&mut self, low: u64, high: u64) -> Duration {
        let micros = self
            .tokens
            .as_mut()
            .map_or(low, |tokens| tokens.rng.random_range(low..high));
        Duration::from_micros(micros)
    }

    fn choose(&mut self, from: &[usize]) -> Option<usize> {
        let at = self.roll(from.len().max(1) as u32) as usize;
        from.get(at).copied()
    }

    /// The next thing that happens, and when the one after it does.
    pub(crate) fn next_phase(&mut self, until: Instant) {
        let now = self.now;
        if now >= until {
            return;
        }
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let profile = tokens.profile.clone();
        let uniform: f64 = tokens.rng.random_range(0.0001..1.0);
        let next = profile
            .between
            .mul_f64(-uniform.ln())
            .max(Duration::from_micros(100));
        self.queue
            .push(now + next, Event::Tokens(TokenEvent::Phase(until)));
        let mut up = self.living();
        up.retain(|process| {
            let tokens = self.tokens.as_ref();
            let machine = tokens.and_then(|tokens| tokens.machines[*process].as_ref());
            machine.is_some_and(|machine| {
                machine.leaving == Leaving::No && machine.silent_until <= now
            }) && !self.processes[*process].paused
        });
        let Some(pick) = self.choose(&up) else {
            return;
        };
        if profile.rolling {
            return self.roll_on();
        }
        let mut drawn = self.roll(1_000);
        let mut is = |share: u32| {
            let hit = drawn < share;
            drawn = drawn.saturating_sub(share).max(if hit { 1_000 } else { 0 });
            hit
        };
        if is(profile.kills) {
            return if up.len() > 2 {
                self.kill_one(pick)
            };
        }
        if is(profile.partitions) {
            return self.split();
        }
        if is(profile.cut_offs) {
            return self.cut_one_off(pick, 50_000, 3_000_000);
        }
        if is(profile.flaps) {
            return self.cut_one_off(pick, 500_000, 1_100_000);
        }
        if is(profile.pairs) {
            return self.cut_two(pick, &up);
        }
        if is(profile.pauses) {
            return self.pause(pick);
        }
        if is(profile.silences) {
            let time = self.between(20_000, 5_000_000);
            return self.silence_one(pick, now + time);
        }
        if is(profile.mutes) {
            let any = (0..self.processes.len()).any(|process| self.is_mute(process));
            if !any && up.len() > 2 {
                self.silence_one(pick, Instant::from_micros(u64::MAX));
            }
            return;
        }
        if is(profile.mass_restarts) {
            return self.restart_all();
        }
        self.planned_change(pick, &up);
    }

    /// A planned change.
    fn planned_change(&mut self, pick: usize, up: &[usize]) {
        let (now, many) = (self.now, self.names.len());
        let ready = self.ready();
        let synced = self.processes[pick].synced_at.is_some();
        let may_leave = synced && ready.iter().any(|other| *other != pick);
        let machine = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.machines[pick].as_ref());
        let instances = machine
            .map(|machine| machine.instances.clone())
            .unwrap_or_default();
        let stopping = machine
            .map(|machine| machine.stopping.clone())
            .unwrap_or_default();
        let profile = self.tokens.as_ref().map(|tokens| tokens.profile.clone());
        let Some(profile) = profile else {
            return;
        };
        let drawn = self.roll(100);
        let at = self.roll(instances.len().max(1) as u32) as usize;
        let id = instances
            .get(at)
            .filter(|id| !stopping.contains(*id))
            .cloned();
        match drawn {
            0..25 if may_leave => self.begin_leave(pick, true),
            25..40 if may_leave && up.len() > 2 => self.begin_leave(pick, false),
            40..65 => {
                let absent = self.absent();
                let at = self.roll(absent.len().max(1) as u32) as usize;
                if let Some(name) = absent.get(at).cloned()
                    && self.living().len() < many
                {
                    let host = self
                        .names
                        .iter()
                        .position(|other| *other == name)
                        .unwrap_or(0);
                    self.start_named(name, host);
                }
            }
            65..72 if profile.instances && synced && !instances.is_empty() => {
                if self.roll(2) == 0 {
                    self.add_instance(pick);
                } else if let Some(id) = id.filter(|_| may_leave) {
                    self.disable(pick, &id);
                    if let Some(machine) = self.machine(pick) {
                        machine.stopping.insert(id);
                    }
                    self.queue.push(now, Event::Tokens(TokenEvent::Tick(pick)));
                }
            }
            72..80 if profile.weights => {
                if let Some(id) = id {
                    let weight = Weight::try_new(100 * (1 + self.roll(3) as u16)).ok();
                    let update = EntryUpdate {
                        weight,
                        ..EntryUpdate::default()
                    };
                    self.change_instance(pick, &id, update);
                }
            }
            80.. if synced && ready.len() > 1 => {
                if let Some(id) = id {
                    self.toggle(pick, &id);
                    if profile.between < Duration::from_millis(50) || self.roll(2) == 0 {
                        let after = self.between(100, 8_000);
                        self.queue
                            .push(now + after, Event::Tokens(TokenEvent::Toggle(pick, id)));
                    }
                }
            }
            _ => {}
        }
    }

    fn disable(&mut self, process: usize, id: &keydispatch_core::ServiceId) {
        let update = EntryUpdate {
            state: Some(ServiceState::Offline),
            ..EntryUpdate::default()
        };
        self.change_instance(process, id, update);
    }

    /// An instance goes offline, or online; it may be the last one of its node that does, not of the cluster.
    pub(crate) fn toggle(&mut self, process: usize, id: &keydispatch_core::ServiceId) {
        let others = self.others_online(process);
        let Some(machine) = self.machine(process) else {
            return;
        };
        if machine.leaving != Leaving::No || machine.stopping.contains(id) {
            return;
        }
        let cluster = self.processes[process].cluster.as_ref();
        let info = cluster.and_then(|cluster| {
            cluster
                .tracker()
                .own()
                .find(|info| info.id() == id)
                .cloned()
        });
        let Some(info) = info else {
            return;
        };
        if info.is_online() {
            if others {
                self.disable(process, id);
            }
        } else {
            let update = EntryUpdate {
                state: Some(ServiceState::Online),
                ..EntryUpdate::default()
            };
            self.change_instance(process, id, update);
        }
    }

    /// All, one after the other, without a pause.
    fn roll_on(&mut self) {
        let living = self.living();
        let ready = self.ready();
        if living.len() < self.names.len() || ready.len() < living.len() {
            return;
        }
        let turn = self.tokens.as_mut().map_or(0, |tokens| {
            tokens.turn += 1;
            tokens.turn
        });
        let name = self.names[turn % self.names.len()].clone();
        if let Some(process) = living
            .into_iter()
            .find(|process| self.processes[*process].name == name)
        {
            self.begin_leave(process, true);
        }
    }

    fn kill_one(&mut self, process: usize) {
        let now = self.now;
        let (name, host) = (
            self.processes[process].name.clone(),
            self.processes[process].host,
        );
        let silent = self.roll(5) == 0;
        self.trace.line(now, || {
            format!(
                "{name} is killed{}",
                if silent { ", and its host with it" } else { "" }
            )
        });
        let restarts = self
            .tokens
            .as_ref()
            .is_some_and(|tokens| tokens.profile.restarts);
        self.kill_machine(process);
        if silent {
            self.vanish(process);
        } else {
            self.end(process, false);
        }
        if restarts || self.roll(2) == 0 {
            let after = if restarts {
                self.between(100, 5_000)
            } else {
                self.between(100, 60_000)
            };
            self.queue
                .push(now + after, Event::Tokens(TokenEvent::Start(name, host)));
        }
    }

    fn kill_machine(&mut self, process: usize) {
        if let Some(tokens) = self.tokens.as_mut() {
            tokens.ledger.crashed += 1;
        }
        self.end_machine(process, false);
    }

    fn cut_for(&mut self, directions: Vec<(usize, usize)>, time: Duration) {
        let now = self.now;
        if let Some(tokens) = self.tokens.as_mut() {
            tokens.cut = true;
        }
        self.trace
            .line(now, || format!("cut for {time:?}: {directions:?}"));
        for (from, to) in &directions {
            self.network.cut(*from, *to);
        }
        self.queue
            .push(now + time, Event::Undo(Undo::Cut(directions)));
    }

    fn split(&mut self) {
        let hosts = self.listening.len();
        let side: Vec<bool> = (0..hosts).map(|_| self.roll(2) == 0).collect();
        let pairs = (0..hosts).flat_map(|a| (0..hosts).map(move |b| (a, b)));
        let directions = pairs.filter(|(a, b)| side[*a] != side[*b]).collect();
        let time = if self.roll(10) < 3 {
            self.between(10_000, 500_000)
        } else {
            self.between(600_000, 3_000_000)
        };
        self.cut_for(directions, time);
    }

    fn cut_one_off(&mut self, process: usize, low: u64, high: u64) {
        let host = self.processes[process].host;
        let (one_way, outward) = (self.roll(10) < 4, self.roll(2) == 0);
        let mut directions = Vec::new();
        for other in (0..self.listening.len()).filter(|other| *other != host) {
            if !one_way || outward {
                directions.push((host, other));
            }
            if !one_way || !outward {
                directions.push((other, host));
            }
        }
        let time = self.between(low, high);
        self.cut_for(directions, time);
    }

    fn cut_two(&mut self, process: usize, up: &[usize]) {
        let Some(other) = self.choose(up).filter(|other| *other != process) else {
            return;
        };
        let (a, b) = (self.processes[process].host, self.processes[other].host);
        let directions = if self.roll(10) < 4 {
            vec![(a, b)]
        } else {
            vec![(a, b), (b, a)]
        };
        let time = if self.roll(10) < 6 {
            self.between(10_000, 800_000)
        } else {
            self.between(800_000, 5_000_000)
        };
        self.cut_for(directions, time);
    }

    fn pause(&mut self, process: usize) {
        let now = self.now;
        let time = self.between(20_000, 1_800_000);
        let name = self.processes[process].name.clone();
        self.trace
            .line(now, || format!("{name} stands still for {time:?}"));
        self.processes[process].paused = true;
        if let Some(machine) = self.machine(process) {
            machine.paused_at = Some(now);
        }
        self.queue
            .push(now + time, Event::Undo(Undo::Pause(process)));
    }

    fn silence_one(&mut self, process: usize, until: Instant) {
        let now = self.now;
        let name = self.processes[process].name.clone();
        self.trace
            .line(now, || format!("{name} is mute until {until}"));
        if let Some(machine) = self.machine(process) {
            machine.silent_until = until;
        }
    }

    fn restart_all(&mut self) {
        let now = self.now;
        let kills = self.roll(2) == 0;
        for process in self.living() {
            let (name, host) = (
                self.processes[process].name.clone(),
                self.processes[process].host,
            );
            if kills {
                self.kill_machine(process);
                self.end(process, false);
                let after = self.between(20_000, 23_000);
                self.queue
                    .push(now + after, Event::Tokens(TokenEvent::Start(name, host)));
            } else {
                if let Some(tokens) = self.tokens.as_mut() {
                    tokens.ledger.nobody = true;
                }
                self.begin_leave(process, true);
            }
        }
    }
}
