//! Each process has an ownership machine beside its cluster, fed by the cluster's events and views.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::ownership::{Ownership, OwnershipConfig, SlotSet, TokenEvent as Told};
use keydispatch_core::{
    ClusterEvent, EntryUpdate, InstanceName, Instant, Metadata, NewEntry, NodeId, NodeName, Rule,
    RuleSet, ServiceId, ServiceState, ServiceType, Weight,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::TokenEvent;
use super::books::{Books, Cells};
use super::calls::Call;
use super::post::{Lane, LaneId, Letter};
use super::profile::TokenProfile;
use crate::world::{Event, World};

/// How often a node that leaves, or an instance that stops, looks whether it may go.
const TICK: Duration = Duration::from_millis(5);
/// How long a leave waits for the others before it goes all the same.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// How long after everything is said a node that leaves is gone.
const LINGERS: Duration = Duration::from_millis(35);
/// Bytes of a piece: states of keys that are large take several.
const PIECE_BYTES: usize = 64;

/// The one type whose states move.
pub(crate) fn service_type() -> ServiceType {
    ServiceType::try_new("rooms").expect("a short name")
}

/// All that a history of tokens has beside the clusters.
pub(crate) struct Tokens {
    /// Apart from the world's: what is drawn here changes nothing there.
    pub(crate) rng: StdRng,
    pub(crate) rules: RuleSet,
    pub(crate) profile: TokenProfile,
    pub(crate) slots: u32,
    pub(crate) patience: Duration,
    /// By process.
    pub(crate) machines: Vec<Option<Machine>>,
    pub(crate) lanes: BTreeMap<LaneId, Lane>,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) last_call: u64,
    pub(crate) calls_until: Instant,
    pub(crate) books: Books,
    /// Somebody was cut off from somebody.
    pub(crate) cut: bool,
    /// Messages by kind: claims, answers, offers, pieces, acknowledgements, settled.
    pub(crate) sent: [u64; 6],
    pub(crate) most_in_flight: u32,
    pub(crate) refused: u64,
    pub(crate) turn: usize,
    pub(crate) sequence: u64,
}

/// What a process has beside its cluster.
pub(crate) struct Machine {
    pub(crate) ownership: Ownership,
    facts: Vec<Fact>,
    returns: u32,
    pub(crate) paused_at: Option<Instant>,
    pub(crate) states: BTreeMap<(ServiceId, u32), Cells>,
    pub(crate) giving: BTreeMap<(ServiceId, u32), u64>,
    pub(crate) parked: BTreeMap<(ServiceId, u32), Vec<(u64, Instant)>>,
    pub(crate) instances: Vec<ServiceId>,
    pub(crate) stopping: BTreeSet<ServiceId>,
    /// Processes that want no call any more.
    pub(crate) goaway: BTreeSet<usize>,
    /// Lives that were up here.
    pub(crate) met: BTreeSet<NodeId>,
    pub(crate) leaving: Leaving,
    /// It starts again.
    pub(crate) restart: bool,
    pub(crate) silent_until: Instant,
    registered: bool,
    wakes_at: Option<Instant>,
}

/// How far a leave has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    No,
    /// Its slots go away.
    Draining(Instant),
    /// The others are told to send nothing any more.
    Parting(Instant, BTreeSet<usize>),
}

/// What a cluster has told.
enum Fact {
    Up(NodeId),
    Down(NodeId),
    Synced,
    Renewed(NodeId),
    View,
}

impl Tokens {
    pub(crate) fn new(seed: u64, rules: RuleSet, profile: TokenProfile) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x746f_6b65_6e73);
        Tokens {
            slots: 8 << rng.random_range(0..3),
            rng,
            rules,
            profile,
            patience: Duration::from_millis(2_000),
            machines: Vec::new(),
            lanes: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            calls_until: Instant::from_micros(u64::MAX),
            books: Books::default(),
            cut: false,
            sent: [0; 6],
            most_in_flight: 0,
            refused: 0,
            turn: 0,
            sequence: 0,
        }
    }
}

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
            tokens.books.false_downs += 1;
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
            tokens.books.false_downs += 1;
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
            tokens.books.doubts += 1;
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
                    tokens.books.impatience += 1;
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
                    let books = self.tokens.as_mut().map(|tokens| &mut tokens.books);
                    if !idle && let Some(books) = books {
                        let stuck = planned && others && books.is_healthy();
                        books.nobody |= !others;
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
                tokens.books.doubts += 1;
            }
            self.machine_turn(process);
        }
    }
}

impl Tokens {
    /// What a machine has counted.
    pub(crate) fn count(&mut self, machine: &Machine) {
        let counts = machine.ownership.counts();
        self.most_in_flight = self.most_in_flight.max(counts.most_in_flight);
        self.refused += counts.refused;
    }
}

fn brief(message: &TokenMessage) -> String {
    match message {
        TokenMessage::Claims(claims) => {
            let told = claims.iter().map(|claim| {
                let which = match &claim.which {
                    keydispatch_core::ownership::message::Which::First { .. } => "all".to_owned(),
                    keydispatch_core::ownership::message::Which::Slots(slots) => {
                        format!("{:?}", slots.iter().collect::<Vec<_>>())
                    }
                };
                format!(
                    "{} r{} q{} {which}",
                    claim.claimant.name, claim.round, claim.question
                )
            });
            format!("claims {}", told.collect::<Vec<_>>().join("; "))
        }
        TokenMessage::Answers(answers) => {
            let told = answers.iter().map(|answer| {
                let said = answer.said.iter().map(|(slots, said)| {
                    let slots: Vec<u32> = slots.iter().collect();
                    let said = match said {
                        keydispatch_core::ownership::message::Said::Ask(place) => {
                            format!("ask {}", place.node.name)
                        }
                        keydispatch_core::ownership::message::Said::Coming(id) => {
                            format!("coming from {}/{}", id.node, id.sequence)
                        }
                        other => format!("{other:?}"),
                    };
                    format!("{slots:?} {said}")
                });
                let said: Vec<String> = said.collect();
                let differs = if answer.differs { " differs" } else { "" };
                format!(
                    "r{} q{}{differs} {}",
                    answer.round,
                    answer.question,
                    said.join(", ")
                )
            });
            format!("answers {}", told.collect::<Vec<_>>().join("; "))
        }
        TokenMessage::Offers(offers) => {
            let told = offers
                .iter()
                .map(|offer| format!("{:?}", offer.slots.iter().collect::<Vec<_>>()));
            format!("offers {}", told.collect::<Vec<_>>().join("; "))
        }
        TokenMessage::Piece(piece) => format!(
            "piece {}/{} of slot {} t{} r{}",
            piece.piece, piece.of, piece.slot, piece.transfer, piece.round
        ),
        TokenMessage::Ack(ack) => {
            format!("ack slot {} t{} {:?}", ack.slot, ack.transfer, ack.outcome)
        }
        TokenMessage::Settled(settled) => {
            format!("settled slot {} t{}", settled.slot, settled.transfer)
        }
    }
}

fn brief_event(event: &Told) -> String {
    let list = |slots: &SlotSet| slots.iter().collect::<Vec<_>>();
    match event {
        Told::Anew {
            instance, slots, ..
        } => format!(
            "{}/{} begins {:?} anew",
            instance.node,
            instance.sequence,
            list(slots)
        ),
        Told::Give { slot, transfer, .. } => format!("gives slot {slot} as t{transfer}"),
        Told::Adopted {
            slot,
            transfer,
            how,
            ..
        } => format!("adopts slot {slot} of t{transfer}, {how:?}"),
        Told::Released { slot, .. } => format!("has given slot {slot} away"),
        Told::TakenBack { slot, .. } => format!("takes slot {slot} back"),
        Told::Lost { slots, .. } => format!("loses {:?}", list(slots)),
        Told::Impatient { peer, slots, .. } => {
            format!("has no patience with {} for {:?}", peer.name, list(slots))
        }
        other => format!("{other:?}"),
    }
}
