//! Three token machines and what is between them, as a value: what can happen next, and what comes of it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::ownership::{
    Gate, Holding, Ownership, OwnershipConfig, TokenEvent, TokenRules,
};
use keydispatch_core::{InstanceName, Instant, ServiceId, ServiceInfo};
use xxhash_rust::xxh3::xxh3_128;

use super::scenario::{
    DOWN, DRAINING, NODES, ONLINE, PATIENT, Scenario, entry, names, node, rooms,
};

/// The one slot.
const SLOT: u32 = 0;

/// What travels on a control link.
#[derive(Clone, Debug)]
enum Letter {
    /// A newcomer says that it is there.
    Hello,
    /// Whom the sender knows, and what it lists, for a newcomer.
    Welcome {
        up: [bool; NODES],
        listed: [u64; NODES],
    },
    /// The sender's entry, in that version.
    Entry(u64),
    /// The sender leaves.
    Goodbye,
    Token(TokenMessage),
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Start,
    /// A node that is synced registers its instance.
    Serve(usize),
    Leave,
    /// A node that leaves has nothing any more.
    Go,
    Control(usize, usize),
    Data(usize, usize),
    Die(usize),
    /// One notices the death of another.
    Notice(usize, usize),
    /// The next timer fires.
    Timer,
}

#[derive(Clone, Debug)]
struct Node {
    machine: Ownership,
    up: [bool; NODES],
    /// Versions of the entries that it lists; 0 for none.
    listed: [u64; NODES],
    synced: bool,
    /// The copy that is here, by its lineage.
    copy: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    NotYet,
    Runs,
    Left,
    Died,
}

/// How a state came about.
struct Trail {
    before: Option<Arc<Trail>>,
    step: String,
    depth: usize,
}

/// See the module.
#[derive(Clone)]
pub(super) struct State {
    scenario: Scenario,
    rules: TokenRules,
    names: Arc<[InstanceName; NODES]>,
    now: Instant,
    nodes: [Option<Node>; NODES],
    lives: [Life; NODES],
    leaving: bool,
    control: [[VecDeque<Letter>; NODES]; NODES],
    data: [[VecDeque<TokenMessage>; NODES]; NODES],
    deaths: u32,
    early: u32,
    /// How many lineages were begun, and those that died with a node.
    begun: u64,
    lost: Vec<u64>,
    broken: Option<String>,
    trail: Arc<Trail>,
    hashes: [u128; NODES],
}

impl State {
    /// All but the newcomer run, know each other, and are at rest.
    pub(super) fn new(scenario: &Scenario, rules: TokenRules) -> State {
        let mut state = State {
            scenario: *scenario,
            rules,
            names: Arc::new(names()),
            now: Instant::from_micros(1_000_000),
            nodes: [None, None, None],
            lives: [Life::NotYet; NODES],
            leaving: false,
            control: Default::default(),
            data: Default::default(),
            deaths: 0,
            early: 0,
            begun: 0,
            lost: Vec::new(),
            broken: None,
            trail: Arc::new(Trail {
                before: None,
                step: "two run".to_owned(),
                depth: 0,
            }),
            hashes: [0; NODES],
        };
        let founders: Vec<usize> = (0..NODES).filter(|n| *n != scenario.joiner).collect();
        for rank in &founders {
            state.nodes[*rank] = Some(state.new_node(*rank));
            state.lives[*rank] = Life::Runs;
        }
        for rank in &founders {
            for other in founders.iter().filter(|other| *other != rank) {
                state.hear_of(*rank, *other, ONLINE);
            }
            state.sync(*rank);
        }
        for rank in &founders {
            state.list(*rank, *rank, ONLINE);
        }
        while let Some(step) = state.first_delivery().or_else(|| state.timer_step()) {
            state.take(step);
        }
        state.deaths = scenario.deaths;
        state.early = scenario.early;
        for rank in 0..NODES {
            state.rehash(rank);
        }
        state
    }

    fn new_node(&self, rank: usize) -> Node {
        let config = OwnershipConfig::new(DOWN).slots(1);
        let mut machine = Ownership::new(config, node(rank), rank as u64);
        machine.set_rules(self.rules);
        machine.keep(&rooms());
        Node {
            machine,
            up: [false; NODES],
            listed: [0; NODES],
            synced: false,
            copy: None,
        }
    }

    /// Everything that can happen next; nothing where all is at rest.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for from in 0..NODES {
            for to in 0..NODES {
                if self.lives[to] != Life::Runs {
                    continue;
                }
                if !self.control[from][to].is_empty() {
                    steps.push(Step::Control(from, to));
                }
                if !self.data[from][to].is_empty() {
                    steps.push(Step::Data(from, to));
                }
                let knows = self.nodes[to].as_ref().is_some_and(|node| node.up[from]);
                // Whom its goodbye did not reach finds out: somebody tells, or its dial is refused.
                let gone = match self.lives[from] {
                    Life::Died => true,
                    Life::Left => self.control[from][to].is_empty(),
                    Life::NotYet | Life::Runs => false,
                };
                if gone && knows {
                    steps.push(Step::Notice(to, from));
                }
            }
        }
        let under_way = !steps.is_empty();
        let joiner = self.scenario.joiner;
        if self.lives[joiner] == Life::NotYet {
            steps.push(Step::Start);
        }
        for (rank, node) in self.nodes.iter().enumerate() {
            let leaves = self.leaving && rank == self.scenario.leaver;
            let serves = node
                .as_ref()
                .is_some_and(|node| node.synced && node.listed[rank] == 0);
            if serves && !leaves {
                steps.push(Step::Serve(rank));
            }
        }
        let leaver = self.scenario.leaver;
        if let Some(node) = &self.nodes[leaver] {
            if !self.leaving && node.listed[leaver] == ONLINE {
                steps.push(Step::Leave);
            } else if self.leaving && node.machine.is_idle() && self.peers_of(leaver) > 0 {
                steps.push(Step::Go);
            }
        }
        if self.deaths > 0 {
            for (rank, life) in self.lives.iter().enumerate() {
                if *life == Life::Runs {
                    steps.push(Step::Die(rank));
                }
            }
        }
        if (!under_way && steps.is_empty()) || self.early > 0 {
            steps.extend(self.timer_step());
        }
        steps
    }

    /// The next timer, where something is not at rest.
    fn timer_step(&self) -> Option<Step> {
        let mut nodes = self.nodes.iter().flatten();
        let restless = nodes.any(|node| node.machine.unrest().is_some());
        let wait = restless || self.misplaced().is_some();
        let due = self.next_timer()?.1;
        (wait && due <= Instant::from_micros(1_000_000) + PATIENT).then_some(Step::Timer)
    }

    fn first_delivery(&self) -> Option<Step> {
        let mut steps = self.steps().into_iter();
        steps.find(|step| matches!(step, Step::Control(..) | Step::Data(..)))
    }

    fn next_timer(&self) -> Option<(usize, Instant)> {
        let nodes = self.nodes.iter().enumerate();
        let due =
            nodes.filter_map(|(rank, node)| Some((rank, node.as_ref()?.machine.poll_timeout()?)));
        due.min_by_key(|(_, due)| *due)
    }

    fn peers_of(&self, rank: usize) -> usize {
        let node = self.nodes[rank].as_ref();
        node.map_or(0, |node| node.up.iter().filter(|up| **up).count())
    }

    /// The same after that.
    pub(super) fn after(&self, step: Step) -> State {
        let mut next = self.clone();
        let what = next.describe(step);
        next.take(step);
        next.trail = Arc::new(Trail {
            before: Some(Arc::clone(&self.trail)),
            step: what,
            depth: self.trail.depth + 1,
        });
        next
    }

    fn describe(&self, step: Step) -> String {
        match step {
            Step::Start => format!("n{} starts", self.scenario.joiner),
            Step::Serve(rank) => format!("n{rank} registers its instance"),
            Step::Leave => format!("n{} begins to leave", self.scenario.leaver),
            Step::Go => format!("n{} has left", self.scenario.leaver),
            Step::Control(from, to) => {
                format!("n{from} to n{to}: {:?}", self.control[from][to].front())
            }
            Step::Data(from, to) => format!("n{from} to n{to}: {:?}", self.data[from][to].front()),
            Step::Die(rank) => format!("n{rank} dies"),
            Step::Notice(here, who) => format!("n{here} notices that n{who} is dead"),
            Step::Timer => format!("a timer fires: {:?}", self.next_timer()),
        }
    }

    fn take(&mut self, step: Step) {
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
    fn start(&mut self) {
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

    fn leave(&mut self) {
        let leaver = self.scenario.leaver;
        self.leaving = true;
        self.tell(leaver, |_, machine| machine.set_leaving());
        self.list(leaver, leaver, DRAINING);
    }

    fn go(&mut self) {
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

    fn die(&mut self, rank: usize) {
        self.deaths -= 1;
        self.lives[rank] = Life::Died;
        let copy = self.nodes[rank].take().and_then(|node| node.copy);
        self.lost.extend(copy);
        self.cut_off(rank);
    }

    /// What is under way to a node that is no more goes nowhere.
    fn cut_off(&mut self, rank: usize) {
        for from in 0..NODES {
            self.control[from][rank].clear();
            self.data[from][rank].clear();
        }
        self.rehash(rank);
    }

    /// A node is down here: its links are closed.
    fn forget(&mut self, here: usize, who: usize) {
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
    fn look_around(&mut self, here: usize) {
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

    fn read(&mut self, from: usize, to: usize, letter: Letter) {
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

    fn hear_of(&mut self, here: usize, other: usize, version: u64) {
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

    fn sync(&mut self, here: usize) {
        if let Some(there) = &mut self.nodes[here] {
            there.synced = true;
        }
        self.tell(here, |now, machine| machine.handle_synced(now));
    }

    /// An entry is listed here in that version; where it is this node's own, the others are told.
    fn list(&mut self, here: usize, whose: usize, version: u64) {
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
    fn tell(&mut self, rank: usize, tell: impl FnOnce(Instant, &mut Ownership)) {
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

    fn happens(&mut self, rank: usize, here: &mut Node, event: TokenEvent) {
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

    /// Lineages of which somebody who runs has a copy.
    fn living(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .flatten()
            .filter_map(|node| node.copy)
            .collect()
    }

    fn holders(&self) -> Vec<usize> {
        (0..NODES)
            .filter(|rank| self.holding(*rank) == Holding::Held)
            .collect()
    }

    fn id(&self, rank: usize) -> ServiceId {
        entry(&self.names, rank, ONLINE).id().clone()
    }

    fn holding(&self, rank: usize) -> Holding {
        let node = self.nodes[rank].as_ref();
        node.map_or(Holding::Away, |node| {
            node.machine.holding(&rooms(), &self.id(rank), SLOT)
        })
    }

    /// I1, and what was noticed on the way here.
    pub(super) fn broken(&self) -> Option<String> {
        if let Some(broken) = &self.broken {
            return Some(broken.clone());
        }
        let holders = self.holders();
        (holders.len() > 1).then(|| format!("{holders:?} hold the slot"))
    }

    /// Who should hold and does not.
    fn misplaced(&self) -> Option<String> {
        let online = (0..NODES).find(|rank| {
            let node = self.nodes[*rank].as_ref();
            node.is_some_and(|node| node.listed[*rank] == ONLINE)
        });
        let holders = self.holders();
        match online {
            Some(first) if holders != [first] => {
                Some(format!("n{first} is first and {holders:?} hold"))
            }
            _ => None,
        }
    }

    /// I4, I5 and I8, once nothing can happen any more.
    pub(super) fn broken_at_rest(&self) -> Option<String> {
        if let Some(misplaced) = self.misplaced() {
            return Some(format!("in the end {misplaced}: {}", self.unrest()));
        }
        let unrest = self.unrest();
        let anybody = self.nodes.iter().flatten().count() > 0;
        if !unrest.is_empty() && anybody && !self.holders().is_empty() {
            return Some(format!("in the end {unrest}"));
        }
        if self.lost.is_empty() && self.begun > 1 {
            return Some(format!(
                "the slot was begun {} times, and nobody died",
                self.begun
            ));
        }
        let [holder] = self.holders()[..] else {
            return None;
        };
        // R10: wherever a call comes, it finds the way.
        for (rank, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else {
                continue;
            };
            let gate = node.machine.gate(&rooms(), SLOT, &self.id(rank));
            let finds = match &gate {
                Gate::Run(_) => rank == holder,
                Gate::Park(_) => false,
                Gate::Moved(to) => rank != holder && *to == Some(self.id(holder)),
            };
            // One that leaves, and has nobody to tell, serves no calls.
            if !finds && node.listed[rank] > 0 {
                return Some(format!(
                    "in the end n{rank} answers {gate:?}, n{holder} holds"
                ));
            }
        }
        None
    }

    fn unrest(&self) -> String {
        let nodes = self.nodes.iter().flatten();
        let unrest: Vec<String> = nodes.filter_map(|node| node.machine.unrest()).collect();
        unrest.join("; ")
    }

    fn rehash(&mut self, rank: usize) {
        let text = self.nodes[rank].as_ref().map(|node| {
            let text = format!("{node:?}");
            // What is counted for operators depends on the way.
            match text.find("counts: TokenCounts {") {
                Some(from) => {
                    let to = text[from..].find('}').map_or(text.len(), |at| from + at);
                    format!("{}{}", &text[..from], &text[to..])
                }
                None => text,
            }
        });
        self.hashes[rank] = text.map_or(0, |text| xxh3_128(text.as_bytes()));
    }

    /// States of one fingerprint are one state.
    pub(super) fn fingerprint(&self) -> u128 {
        let rest = format!(
            "{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}",
            self.hashes,
            self.now,
            self.lives,
            self.leaving,
            self.control,
            self.data,
            self.deaths,
            self.early,
            self.begun,
            self.lost
        );
        xxh3_128(rest.as_bytes())
    }

    pub(super) fn depth(&self) -> usize {
        self.trail.depth
    }

    /// The steps that led here.
    pub(super) fn trail(&self) -> Vec<String> {
        let mut steps = Vec::new();
        let mut at = Some(&self.trail);
        while let Some(trail) = at {
            steps.push(trail.step.clone());
            at = trail.before.as_ref();
        }
        steps.reverse();
        steps
    }
}
