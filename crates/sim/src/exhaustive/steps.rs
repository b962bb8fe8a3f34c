//! What comes of a step.

use std::sync::Arc;

use bytes::Bytes;
use keydispatch_core::ownership::{Ownership, TokenEvent};
use keydispatch_core::{Instant, ServiceInfo};

use super::model::{Letter, Life, Node, State, Step};
use super::scenario::{DRAINING, NODES, ONLINE, entry, node, rooms};

impl State {
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Start => self.start(),
            Step::Serve(rank) => self.list(rank, rank, ONLINE),
            Step::Leave => self.leave(),
            Step::Go => self.go(),
            Step::Control(from, to) => {
                if let Some(letter) = self.control[from][to].pop_front() {
                    self.read(from, to, letter);
                }
            }
            Step::Data(from, to) => {
                if let Some(message) = self.data[from][to].pop_front() {
                    self.tell(to, |now, machine| {
                        machine.handle_message(now, &node(from), message)
                    });
                }
            }
            Step::Die(rank) => self.die(rank),
            Step::Notice(here, who) => self.forget(here, who),
            Step::Timer => {
                if let Some((rank, due)) = self.next_timer() {
                    let under_way = self.control.iter().flatten().any(|link| !link.is_empty())
                        || self.data.iter().flatten().any(|link| !link.is_empty());
                    self.early -= u32::from(under_way && self.early > 0);
                    self.now = self.now.max(due);
                    self.tell(rank, |now, machine| machine.handle_timeout(now));
                }
            }
        }
    }

    /// The newcomer dials all: each of them is a seed.
    pub(super) fn start(&mut self) {
        let joiner = self.scenario.joiner;
        self.nodes[joiner] = Some(self.new_node(joiner));
        self.lives[joiner] = Life::Runs;
        let others: Vec<usize> = (0..NODES)
            .filter(|other| *other != joiner && self.lives[*other] == Life::Runs)
            .collect();
        for other in &others {
            self.control[joiner][*other].push_back(Letter::Hello);
        }
        if others.is_empty() {
            self.sync(joiner);
        }
        self.rehash(joiner);
    }

    pub(super) fn leave(&mut self) {
        let leaver = self.scenario.leaver;
        self.leaving = true;
        self.tell(leaver, |_, machine| machine.set_leaving());
        self.list(leaver, leaver, DRAINING);
    }

    pub(super) fn go(&mut self) {
        let leaver = self.scenario.leaver;
        let Some(gone) = self.nodes[leaver].take() else {
            return;
        };
        for other in (0..NODES).filter(|other| gone.up[*other]) {
            self.control[leaver][other].push_back(Letter::Goodbye);
        }
        self.lives[leaver] = Life::Left;
        if let Some(copy) = gone.copy {
            self.broken = Some(format!("n{leaver} left with the states of lineage {copy}"));
        }
        self.cut_off(leaver);
    }

    pub(super) fn die(&mut self, rank: usize) {
        self.deaths -= 1;
        self.lives[rank] = Life::Died;
        let copy = self.nodes[rank].take().and_then(|node| node.copy);
        self.lost.extend(copy);
        self.cut_off(rank);
    }

    /// What is under way to a node that is no more goes nowhere.
    pub(super) fn cut_off(&mut self, rank: usize) {
        for from in 0..NODES {
            self.control[from][rank].clear();
            self.data[from][rank].clear();
        }
        self.rehash(rank);
    }

    /// A node is down here: its links are closed.
    pub(super) fn forget(&mut self, here: usize, who: usize) {
        self.control[who][here].clear();
        self.data[who][here].clear();
        if let Some(node) = &mut self.nodes[here] {
            node.up[who] = false;
        }
        self.tell(here, |now, machine| machine.handle_down(now, &node(who)));
        self.list(here, who, 0);
        self.look_around(here);
    }

    /// R1: who knows nobody any more dials its seeds; where none of them runs, it is alone and may go on.
    pub(super) fn look_around(&mut self, here: usize) {
        let others = (0..NODES).filter(|other| *other != here);
        let mut running = others
            .filter(|other| self.lives[*other] == Life::Runs)
            .peekable();
        let alone = self.peers_of(here) == 0;
        let ready = self.nodes[here]
            .as_ref()
            .is_some_and(|node| node.machine.is_ready());
        let synced = self.nodes[here].as_ref().is_some_and(|node| node.synced);
        if alone && !ready && running.peek().is_none() {
            self.sync(here);
        } else if alone && (synced || running.peek().is_some()) && !ready {
            let running: Vec<usize> = running.collect();
            for other in running {
                self.control[here][other].push_back(Letter::Hello);
            }
        }
    }

    pub(super) fn read(&mut self, from: usize, to: usize, letter: Letter) {
        match letter {
            Letter::Hello => {
                let version = self.nodes[to].as_ref().map_or(0, |node| node.listed[from]);
                self.hear_of(to, from, version);
                let Some(here) = &self.nodes[to] else {
                    return;
                };
                let mut up = here.up;
                (up[to], up[from]) = (true, false);
                let listed = here.listed;
                self.control[to][from].push_back(Letter::Welcome { up, listed });
                self.rehash(to);
            }
            Letter::Welcome { up, listed } => {
                for other in (0..NODES).filter(|other| up[*other] && *other != to) {
                    // One that has gone meanwhile is told of by nobody any more: its own goodbye went to those it knew.
                    let met = other == from || self.lives[other] == Life::Runs;
                    if met {
                        self.hear_of(to, other, listed[other]);
                    }
                }
                self.sync(to);
                // It may have registered before it met this one.
                if let Some(version) = self.nodes[to].as_ref().map(|node| node.listed[to])
                    && version > 0
                {
                    self.control[to][from].push_back(Letter::Entry(version));
                }
            }
            Letter::Entry(version) => self.list(to, from, version),
            Letter::Goodbye => self.forget(to, from),
            Letter::Token(message) => {
                self.tell(to, |now, machine| {
                    machine.handle_message(now, &node(from), message)
                });
            }
        }
    }

    pub(super) fn hear_of(&mut self, here: usize, other: usize, version: u64) {
        if let Some(there) = &mut self.nodes[here] {
            there.up[other] = true;
        }
        self.tell(here, |now, machine| {
            machine.handle_up(now, &node(other), true)
        });
        if version > 0 {
            self.list(here, other, version);
        }
    }

    pub(super) fn sync(&mut self, here: usize) {
        if let Some(there) = &mut self.nodes[here] {
            there.synced = true;
        }
        self.tell(here, |now, machine| machine.handle_synced(now));
    }

    /// An entry is listed here in that version; where it is this node's own, the others are told.
    pub(super) fn list(&mut self, here: usize, whose: usize, version: u64) {
        let Some(there) = &mut self.nodes[here] else {
            return;
        };
        if version != 0 && version <= there.listed[whose] {
            return;
        }
        there.listed[whose] = version;
        let infos: Vec<Arc<ServiceInfo>> = (0..NODES)
            .filter(|rank| there.listed[*rank] > 0)
            .map(|rank| entry(&self.names, rank, there.listed[rank]))
            .collect();
        if here == whose {
            for other in (0..NODES).filter(|other| there.up[*other]) {
                if self.lives[other] == Life::Runs {
                    self.control[here][other].push_back(Letter::Entry(version));
                }
            }
        }
        self.tell(here, |now, machine| {
            machine.handle_view(now, &rooms(), &infos)
        });
    }

    /// Tells a machine something, and does what it says.
    pub(super) fn tell(&mut self, rank: usize, tell: impl FnOnce(Instant, &mut Ownership)) {
        let now = self.now;
        let Some(mut here) = self.nodes[rank].take() else {
            return;
        };
        tell(now, &mut here.machine);
        loop {
            let mut busy = false;
            while let Some((to, message)) = here.machine.poll_transmit() {
                busy = true;
                let Some(to) = (0..NODES).find(|other| node(*other) == to) else {
                    continue;
                };
                if self.lives[to] != Life::Runs {
                    continue;
                }
                if message.is_data() {
                    self.data[rank][to].push_back(message);
                } else {
                    self.control[rank][to].push_back(Letter::Token(message));
                }
            }
            while let Some(event) = here.machine.poll_event() {
                busy = true;
                self.happens(rank, &mut here, event);
            }
            if !busy {
                break;
            }
        }
        self.nodes[rank] = Some(here);
        self.rehash(rank);
    }

    pub(super) fn happens(&mut self, rank: usize, here: &mut Node, event: TokenEvent) {
        match event {
            TokenEvent::Anew { .. } => {
                let lives = self.living();
                if let Some(lineage) = lives.first() {
                    self.broken = Some(format!(
                        "n{rank} began the slot anew while lineage {lineage} lives"
                    ));
                }
                self.begun += 1;
                here.copy = Some(self.begun);
            }
            TokenEvent::Give { transfer, .. } => {
                let states: Vec<(Bytes, Bytes)> = here
                    .copy
                    .map(|lineage| {
                        let value = lineage.to_le_bytes().to_vec();
                        (Bytes::from_static(b"key"), Bytes::from(value))
                    })
                    .into_iter()
                    .collect();
                here.machine.give(self.now, transfer, &states);
            }
            TokenEvent::Adopted { states, .. } => {
                let lineage = states.first().and_then(|(_, value)| {
                    let bytes: [u8; 8] = value.as_ref().try_into().ok()?;
                    Some(u64::from_le_bytes(bytes))
                });
                if here.copy.is_some() {
                    self.broken = Some(format!("n{rank} had a copy and another one arrived"));
                }
                here.copy = lineage;
            }
            TokenEvent::Released { .. } => here.copy = None,
            TokenEvent::Lost { .. } => {
                self.broken = Some(format!("n{rank} lost the states"));
            }
            TokenEvent::Impatient { .. } => {
                self.broken = Some(format!("n{rank} lost patience, though nobody is mute"));
            }
            _ => {}
        }
    }
}
