//! Three token machines and what is between them, as a value: what can happen next, and what comes of it.

use std::collections::VecDeque;
use std::sync::Arc;

use keydispatch_core::RuleSet;
use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::ownership::{Ownership, OwnershipConfig};
use keydispatch_core::{InstanceName, Instant};
use xxhash_rust::xxh3::xxh3_128;

use super::scenario::{DOWN, NODES, ONLINE, PATIENT, Scenario, names, node, rooms};

/// The one slot.
pub(super) const SLOT: u32 = 0;

/// What travels on a control link.
#[derive(Clone, Debug)]
pub(super) enum Letter {
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
pub(super) struct Node {
    pub(super) machine: Ownership,
    pub(super) up: [bool; NODES],
    /// Versions of the entries that it lists; 0 for none.
    pub(super) listed: [u64; NODES],
    pub(super) synced: bool,
    /// The copy that is here, by its lineage.
    pub(super) copy: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
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
    pub(super) scenario: Scenario,
    pub(super) rules: RuleSet,
    pub(super) names: Arc<[InstanceName; NODES]>,
    pub(super) now: Instant,
    pub(super) nodes: [Option<Node>; NODES],
    pub(super) lives: [Life; NODES],
    pub(super) leaving: bool,
    pub(super) control: [[VecDeque<Letter>; NODES]; NODES],
    pub(super) data: [[VecDeque<TokenMessage>; NODES]; NODES],
    pub(super) deaths: u32,
    pub(super) early: u32,
    /// How many lineages were begun, and those that died with a node.
    pub(super) begun: u64,
    pub(super) lost: Vec<u64>,
    pub(super) broken: Option<String>,
    trail: Arc<Trail>,
    pub(super) hashes: [u128; NODES],
}

impl State {
    /// All but the newcomer run, know each other, and are at rest.
    pub(super) fn new(scenario: &Scenario, rules: RuleSet) -> State {
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

    pub(super) fn new_node(&self, rank: usize) -> Node {
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

    pub(super) fn next_timer(&self) -> Option<(usize, Instant)> {
        let nodes = self.nodes.iter().enumerate();
        let due =
            nodes.filter_map(|(rank, node)| Some((rank, node.as_ref()?.machine.poll_timeout()?)));
        due.min_by_key(|(_, due)| *due)
    }

    pub(super) fn peers_of(&self, rank: usize) -> usize {
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

    pub(super) fn rehash(&mut self, rank: usize) {
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
