//! The machine of each process: what its cluster tells it, what comes by post, and what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keydispatch_core::Rule;
use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::ownership::{Ownership, OwnershipConfig, SlotSet, TokenEvent as Told};
use keydispatch_core::{ClusterEvent, Instant, NodeId, ServiceId};
use rand::RngExt;

use super::TokenEvent;
use super::brief::{brief, brief_event};
use super::letter::Letter;
use super::machine::{Fact, Leaving, Machine, service_type};
use crate::event::Event;
use crate::world::World;

/// Bytes of a piece: states of keys that are large take several.
const PIECE_BYTES: usize = 64;

impl World {
    pub(crate) fn machine(&mut self, process: usize) -> Option<&mut Machine> {
        self.tokens.as_mut()?.machines.get_mut(process)?.as_mut()
    }

    pub(crate) fn is_mute(&self, process: usize) -> bool {
        let machine = self
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.machines.get(process)?.as_ref());
        machine.is_some_and(|machine| machine.silent_until > self.now)
    }

    pub(crate) fn start_machine(&mut self, process: usize) {
        let (life, nonce) = (
            self.processes[process].life.clone(),
            self.processes[process].nonce,
        );
        let down_period = self.constants.settings.down_period();
        let now = self.now;
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let config = OwnershipConfig::new(down_period)
            .slots(tokens.slots)
            .patience(tokens.patience)
            .piece_bytes(PIECE_BYTES);
        let mut ownership = Ownership::new(config, life, nonce);
        ownership.set_rules(tokens.rules);
        ownership.keep(&service_type());
        tokens.machines.resize_with(process + 1, || None);
        tokens.machines[process] = Some(Machine {
            ownership,
            facts: Vec::new(),
            returns: 0,
            paused_at: None,
            states: BTreeMap::new(),
            giving: BTreeMap::new(),
            parked: BTreeMap::new(),
            instances: Vec::new(),
            stopping: BTreeSet::new(),
            goaway: BTreeSet::new(),
            met: BTreeSet::new(),
            leaving: Leaving::No,
            restart: false,
            silent_until: Instant::ZERO,
            registered: false,
            wakes_at: None,
        });
        if !tokens.rules.holds(Rule::Synced) {
            // Nobody waits for being synced, and registers at once.
            if let Some(machine) = tokens.machines[process].as_mut() {
                machine.registered = true;
            }
            let after = Duration::from_micros(tokens.rng.random_range(8_000..40_000));
            self.queue
                .push(now + after, Event::Tokens(TokenEvent::Register(process)));
        }
        self.queue
            .push(now, Event::Tokens(TokenEvent::Traffic(process)));
    }

    /// The process is gone, with what it held.
    pub(crate) fn end_machine(&mut self, process: usize, planned: bool) {
        let Some(machine) = self.machine(process) else {
            return;
        };
        let held: Vec<(ServiceId, u32)> = machine.states.keys().cloned().collect();
        for (id, slot) in held {
            self.drop_states(process, &id, slot, planned);
        }
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        if let Some(machine) = tokens.machines[process].take() {
            tokens.count(&machine);
        }
        tokens.calls.retain(|_, call| call.caller != process);
    }

    /// The cluster has something to tell.
    pub(crate) fn note_fact(&mut self, process: usize, event: &ClusterEvent) {
        let fact = match event {
            ClusterEvent::MemberUp { node, .. } => Fact::Up(node.clone()),
            ClusterEvent::MemberDown { node } | ClusterEvent::MemberLeft { node } => {
                self.judge_death(process, node);
                Fact::Down(node.clone())
            }
            ClusterEvent::Synced | ClusterEvent::LookedAround => Fact::Synced,
            ClusterEvent::Renewed { node } => Fact::Renewed(node.clone()),
            ClusterEvent::Registry { .. } => Fact::View,
            _ => return,
        };
        if let Some(machine) = self.machine(process) {
            machine.facts.push(fact);
        }
    }

    /// A death that is none excuses much.
    fn judge_death(&mut self, process: usize, node: &NodeId) {
        let lives = self
            .processes
            .iter()
            .any(|other| other.life == *node && other.cluster.is_some());
        let now = self.now;
        if lives && let Some(tokens) = self.tokens.as_mut() {
            tokens.ledger.false_downs += 1;
            let name = self.processes[process].name.clone();
            self.trace
                .line(now, || format!("{name} takes {node} for dead, falsely"));
        }
    }

    /// Where there was a cut, whoever is synced on one side need not know the other.
    fn judge_synced(&mut self, process: usize) {
        let Some(tokens) = self.tokens.as_ref() else {
            return;
        };
        let others = self.processes.iter().enumerate();
        let mut others = others.filter(|(at, other)| {
            *at != process && other.cluster.is_some() && other.synced_at.is_some()
        });
        let unknown = others.any(|(at, _)| !self.lists_life(process, at));
        if tokens.cut
            && unknown
            && let Some(tokens) = self.tokens.as_mut()
        {
            tokens.ledger.false_downs += 1;
        }
    }

    /// The machine takes in what its cluster told, and its words go out.
    pub(crate) fn machine_turn(&mut self, process: usize) {
        if self.machine(process).is_none() {
            return;
        }
        let local = self.processes[process].local(self.now);
        loop {
            let mut busy = self.take_facts(process, local);
            while let Some((to, message)) = self
                .machine(process)
                .and_then(|machine| machine.ownership.poll_transmit())
            {
                busy = true;
                self.count_message(process, &to, &message);
                self.post(process, &to, Letter::Tokens(message.encode()));
            }
            while let Some(event) = self
                .machine(process)
                .and_then(|machine| machine.ownership.poll_event())
            {
                busy = true;
                self.take_told(process, local, event);
            }
            if !busy || !self.violations.is_empty() {
                break;
            }
        }
        self.wake_machine(process);
    }

    fn take_facts(&mut self, process: usize, local: Instant) -> bool {
        let Some(machine) = self.machine(process) else {
            return false;
        };
        let facts = std::mem::take(&mut machine.facts);
        if facts.iter().any(|fact| matches!(fact, Fact::Synced)) {
            self.judge_synced(process);
        }
        let Some(cluster) = self.processes[process].cluster.as_ref() else {
            return false;
        };
        let returns = cluster.membership().returns();
        let view = cluster.directory().view(service_type().as_str());
        let own = cluster.node().clone();
        let Some(tokens) = self.tokens.as_mut() else {
            return false;
        };
        let Some(machine) = tokens.machines[process].as_mut() else {
            return false;
        };
        let mut viewed = false;
        let busy = !facts.is_empty();
        let (mut ups, mut downs) = (Vec::new(), Vec::new());
        for fact in facts {
            match fact {
                Fact::Up(node) => {
                    machine.met.insert(node.clone());
                    machine.ownership.handle_up(local, &node, true);
                    ups.push(node);
                }
                Fact::Down(node) => {
                    machine.ownership.handle_down(local, &node);
                    downs.push(node);
                    viewed = true;
                }
                Fact::Synced => {
                    machine.ownership.handle_synced(local);
                    if !std::mem::replace(&mut machine.registered, true) {
                        let after = Duration::from_micros(tokens.rng.random_range(100..10_000));
                        self.queue.push(
                            self.now + after,
                            Event::Tokens(TokenEvent::Register(process)),
                        );
                    }
                }
                Fact::Renewed(node) => machine.ownership.handle_renewed(node),
                Fact::View => viewed = true,
            }
        }
        if viewed {
            let services = view.as_ref().map_or(&[][..], |view| view.services());
            let mine = services.iter().filter(|info| *info.node() == own.name);
            let nonce = self.processes[process].nonce;
            machine.instances = mine
                .map(|info| info.id().clone())
                .filter(|id| id.nonce == nonce)
                .collect();
            machine
                .ownership
                .handle_view(local, &service_type(), services);
        }
        // R12: it is told that it was taken for dead.
        if std::mem::replace(&mut machine.returns, returns) != returns {
            tokens.ledger.doubts += 1;
            machine.ownership.handle_doubt(local);
        }
        // Who comes while this node leaves is told, too.
        for node in ups {
            let came = self.processes.iter().rposition(|other| other.life == node);
            let machine = self.machine(process);
            if let (Some(came), Some(Leaving::Parting(_, acks))) =
                (came, machine.map(|machine| &mut machine.leaving))
            {
                acks.insert(came);
                self.post_to(process, came, Letter::GoAway);
            }
        }
        for node in downs {
            let gone: Vec<usize> = (0..self.processes.len())
                .filter(|at| self.processes[*at].life == node)
                .collect();
            for gone in gone {
                self.fail_calls_to(process, gone);
            }
        }
        busy
    }

    fn count_message(&mut self, process: usize, to: &NodeId, message: &TokenMessage) {
        let now = self.now;
        let name = self.processes[process].name.clone();
        self.trace
            .line(now, || format!("{name} to {}: {}", to.name, brief(message)));
        let Some(tokens) = self.tokens.as_mut() else {
            return;
        };
        let kind = match message {
            TokenMessage::Claims(_) => 0,
            TokenMessage::Answers(_) => 1,
            TokenMessage::Offers(_) => 2,
            TokenMessage::Piece(_) => 3,
            TokenMessage::Ack(_) => 4,
            TokenMessage::Settled(_) => 5,
        };
        tokens.sent[kind] += 1;
    }

    fn take_told(&mut self, process: usize, local: Instant, event: Told) {
        let now = self.now;
        if !matches!(event, Told::Gate { .. }) {
            let name = self.processes[process].name.clone();
            self.trace
                .line(now, || format!("{name}: {}", brief_event(&event)));
        }
        match event {
            Told::Anew {
                instance, slots, ..
            } => {
                self.judge_mint(&instance, &slots);
                self.check_holders(&slots);
            }
            Told::Give {
                instance,
                slot,
                transfer,
                ..
            } => {
                let states = self.states_of(process, &instance, slot);
                if let Some(machine) = self.machine(process) {
                    machine.giving.insert((instance, slot), transfer);
                    machine.ownership.give(local, transfer, &states);
                }
            }
            Told::Adopted {
                instance,
                slot,
                from,
                transfer,
                states,
                how,
                ..
            } => {
                self.adopted(process, (&instance, slot), (&from, transfer), &states, how);
                self.check_holders(&SlotSet::one(slot));
            }
            Told::Released { instance, slot, .. } => {
                if let Some(machine) = self.machine(process) {
                    machine.giving.remove(&(instance.clone(), slot));
                }
                self.drop_states(process, &instance, slot, true);
            }
            Told::TakenBack { instance, slot, .. } => {
                let machine = self.machine(process);
                if let Some(transfer) =
                    machine.and_then(|machine| machine.giving.remove(&(instance.clone(), slot)))
                {
                    self.taken_back(process, &instance, slot, transfer);
                }
                self.check_holders(&SlotSet::one(slot));
            }
            Told::Lost {
                instance, slots, ..
            } => {
                for slot in slots.iter() {
                    self.drop_states(process, &instance, slot, true);
                }
            }
            Told::Gate {
                instance, slots, ..
            } => {
                self.check_holders(&slots);
                for slot in slots.iter() {
                    self.unpark(process, &instance, slot);
                }
            }
            Told::Impatient { .. } => {
                if let Some(tokens) = self.tokens.as_mut() {
                    tokens.ledger.impatience += 1;
                }
            }
            Told::Alone => self
                .queue
                .push(now, Event::Tokens(TokenEvent::LookAround(process))),
            _ => {}
        }
    }

    fn wake_machine(&mut self, process: usize) {
        let Some(due) = self
            .machine(process)
            .and_then(|machine| machine.ownership.poll_timeout())
        else {
            return;
        };
        let due = self.processes[process].global(due).max(self.now);
        if let Some(machine) = self.machine(process)
            && machine.wakes_at.is_none_or(|at| due < at)
        {
            machine.wakes_at = Some(due);
            self.queue
                .push(due, Event::Tokens(TokenEvent::Wake(process)));
        }
    }

    pub(crate) fn machine_wakes(&mut self, process: usize) {
        let now = self.now;
        let local = self.processes[process].local(now);
        if self.processes[process].paused {
            // It is looked at when it goes on.
            self.queue.push(
                now + Duration::from_millis(21),
                Event::Tokens(TokenEvent::Wake(process)),
            );
            return;
        }
        if let Some(machine) = self.machine(process) {
            if machine.wakes_at.is_some_and(|at| at <= now) {
                machine.wakes_at = None;
            }
            machine.ownership.handle_timeout(local);
        }
        self.machine_turn(process);
    }

    pub(crate) fn take_letter(&mut self, from: usize, to: usize, letter: Letter) {
        let local = self.processes[to].local(self.now);
        match letter {
            Letter::Tokens(bytes) => {
                if self.is_mute(to) {
                    return;
                }
                let sender = self.processes[from].life.clone();
                match TokenMessage::decode(&bytes) {
                    Ok(message) => {
                        if let Some(machine) = self.machine(to) {
                            machine.ownership.handle_message(local, &sender, message);
                        }
                        self.machine_turn(to);
                    }
                    Err(error) => self.violate(format!("a message does not decode: {error}")),
                }
            }
            Letter::Call {
                number,
                slot,
                to: id,
            } => self.serve(to, number, slot, &id),
            Letter::Reply { number, reply } => self.replied(number, reply),
            Letter::GoAway => {
                if let Some(machine) = self.machine(to) {
                    machine.goaway.insert(from);
                }
                self.post_to(to, from, Letter::GoneAway);
            }
            Letter::GoneAway => {
                if let Some(Leaving::Parting(_, acks)) =
                    self.machine(to).map(|machine| &mut machine.leaving)
                {
                    acks.remove(&from);
                }
            }
        }
    }

    /// R12: a process that stood still for long has reason to doubt.
    pub(crate) fn machine_resumes(&mut self, process: usize) {
        let now = self.now;
        let local = self.processes[process].local(now);
        let long = self.constants.settings.down_period().mul_f64(2.0 / 3.0);
        let Some(machine) = self.machine(process) else {
            return;
        };
        let doubts = machine
            .paused_at
            .take()
            .is_some_and(|at| now.since(at) > long);
        if doubts {
            machine.ownership.handle_doubt(local);
            if let Some(tokens) = self.tokens.as_mut() {
                tokens.ledger.doubts += 1;
            }
            self.machine_turn(process);
        }
    }
}
