//! The world: hosts, the processes on them, the network between them, and what happens next.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use keydispatch_core::links::hello_timeout;
use keydispatch_core::message::Offers;
use keydispatch_core::{Cluster, ClusterConfig, ClusterName, Instant, NodeId, NodeName};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checks::{Ledger, Reader, Violation};
use super::constants::Constants;
use super::coverage::Coverage;
use super::data_links::DataLinks;
use super::event::{Event, Host};
use super::liar::Liar;
use super::network::{Delivery, Network, Weather};
use super::process::{Dialled, Input, Process, address};
use super::profile::{Profile, Workload};
use super::queue::Queue;
use super::tokens::Tokens;
use super::trace::Trace;

/// Microseconds since the Unix epoch when a world begins.
const EPOCH_MICROS: u64 = 1_700_000_000_000_000;

/// The name of every simulated cluster.
pub(crate) const CLUSTER: &str = "simulated";

/// How long a dial may take.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Timers of the runtime have this resolution.
const TIMER_RESOLUTION_MICROS: u64 = 1_000;

/// How often what only grows slowly is looked at.
const SECOND: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) rng: StdRng,
    pub(crate) queue: Queue<Event>,
    pub(crate) network: Network,
    pub(crate) data: DataLinks,
    pub(crate) constants: Constants,
    pub(crate) profile: Profile,
    pub(crate) workload: Workload,
    /// The member that lies, where there is one.
    pub(crate) liar: Option<Liar>,
    /// Ownership that moves with its states, where the history is of that.
    pub(crate) tokens: Option<Box<Tokens>>,
    /// The names that there are; the first hosts are their homes, in this order.
    pub(crate) names: Vec<NodeName>,
    /// All that ever ran; the dead stay, without their state machine.
    pub(crate) processes: Vec<Process>,
    /// The process on each host.
    pub(crate) listening: Vec<Option<usize>>,
    /// How far the wall clock of each host is behind, in microseconds.
    pub(crate) clock_behind: Vec<u64>,
    pub(crate) by_nonce: HashMap<u64, usize>,
    /// The lives that somebody reported down, or that took themselves for cut off.
    pub(crate) in_doubt: HashSet<NodeId>,
    /// Which process has nothing but the liar's word of which owner.
    pub(crate) misled: HashSet<(usize, NodeName)>,
    /// The lives that are over, and since when.
    pub(crate) ended: HashMap<NodeId, Instant>,
    pub(crate) ledger: Ledger,
    pub(crate) coverage: Coverage,
    pub(crate) violations: Vec<Violation>,
    pub(crate) false_downs: u64,
    /// Those of them of nodes that everybody could have heard.
    pub(crate) groundless_downs: u64,
    /// From each kill until somebody reported it.
    pub(crate) deaths_known: Vec<Duration>,
    /// Before the first fault: from the start of the later one of two processes until the one knew the other.
    pub(crate) joins_known: Vec<Duration>,
    /// The last time that any reader's view changed.
    pub(crate) changed_at: Instant,
    pub(crate) largest_queue: usize,
    /// Messages of every node and second, at most.
    pub(crate) max_messages: u64,
    /// Since when nothing goes wrong any more.
    pub(crate) whole_since: Option<Instant>,
    /// Faults and changes happen only while this is true.
    pub(crate) faults_on: bool,
    /// Nothing has gone wrong yet.
    pub(crate) unspoilt: bool,
    pub(crate) trace: Trace,
    pub(crate) events: u64,
}

impl World {
    pub(crate) fn new(
        hosts: usize,
        weather: Weather,
        constants: Constants,
        (profile, workload, names): (Profile, Workload, Vec<NodeName>),
        seed: u64,
        trace: Trace,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let network = Network::new(hosts, weather, rng.random());
        // Of its own: what the data links draw changes nothing else.
        let data = DataLinks::new(!seed, constants.rules);
        let ledger = Ledger::new(constants.settings.permdown_period());
        let mut world = World {
            now: Instant::from_micros(1_000_000),
            rng,
            queue: Queue::new(),
            network,
            data,
            constants,
            profile,
            workload,
            liar: None,
            tokens: None,
            names,
            processes: Vec::new(),
            listening: vec![None; hosts],
            clock_behind: vec![0; hosts],
            by_nonce: HashMap::new(),
            in_doubt: HashSet::new(),
            misled: HashSet::new(),
            ended: HashMap::new(),
            ledger,
            coverage: Coverage::default(),
            violations: Vec::new(),
            false_downs: 0,
            groundless_downs: 0,
            deaths_known: Vec::new(),
            joins_known: Vec::new(),
            changed_at: Instant::ZERO,
            largest_queue: 0,
            max_messages: 0,
            whole_since: None,
            faults_on: false,
            unspoilt: true,
            trace,
            events: 0,
        };
        let now = world.now;
        world.queue.push(now + SECOND, Event::Look);
        world
    }

    /// Lets time pass; stops early at a violation.
    pub(crate) fn run_until(&mut self, until: Instant) {
        while self.violations.is_empty()
            && let Some((at, event)) = self.queue.pop(until)
        {
            self.now = at;
            self.events += 1;
            self.happen(event);
        }
        if self.violations.is_empty() {
            self.now = until;
        }
    }

    /// The processes that live, by name.
    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.processes.len())
            .filter(|process| self.processes[*process].cluster.is_some())
            .collect()
    }

    /// The same, as the checks want them.
    pub(crate) fn clusters(&self) -> Vec<&Cluster> {
        let clusters = self.processes.iter();
        clusters
            .filter_map(|process| process.cluster.as_deref())
            .collect()
    }

    /// Those of them that do not lie.
    pub(crate) fn honest(&self) -> Vec<&Cluster> {
        let honest = self
            .processes
            .iter()
            .filter(|process| !self.is_liars_name(&process.name));
        honest
            .filter_map(|process| process.cluster.as_deref())
            .collect()
    }

    pub(crate) fn violate(&mut self, what: String) {
        let now = self.now;
        self.trace.line(now, || format!("VIOLATION {what}"));
        self.violations.push(Violation { at: now, what });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { connection, side } => {
                let arrived = self
                    .network
                    .arrive(self.now, connection, side, &mut self.queue);
                match arrived {
                    Some((process, Delivery::Frame { frame, bytes })) => {
                        let input = Input::Frame {
                            connection,
                            side: 1 - side,
                            frame,
                            bytes,
                        };
                        self.deliver(process, input);
                    }
                    Some((process, Delivery::Closed)) => {
                        self.deliver(process, Input::Closed { connection });
                    }
                    None => {}
                }
            }
            Event::Retry { connection, side } => {
                if let Some(process) =
                    self.network
                        .retry(self.now, connection, side, &mut self.queue)
                {
                    self.coverage.resets += 1;
                    self.deliver(process, Input::Closed { connection });
                }
            }
            Event::Reset { connection, side } => {
                if let Some(process) = self.network.reset(connection, side) {
                    self.coverage.resets += 1;
                    self.deliver(process, Input::Closed { connection });
                }
            }
            Event::Drained { process, link } => self.deliver(process, Input::Drained { link }),
            Event::Wake { process } => {
                if self.processes[process].wakes_at == Some(self.now) {
                    self.processes[process].wakes_at = None;
                    self.work_off(process);
                }
            }
            Event::Knock {
                process,
                host,
                since,
            } => self.knock(process, host, since),
            Event::Dialled {
                process,
                host,
                acceptor,
                refused,
            } => self.dialled(process, host, acceptor, refused),
            Event::HelloDue {
                acceptor,
                connection,
            } => self.deliver(acceptor, Input::HelloDue { connection }),
            Event::Fault => self.next_fault(),
            Event::Undo(undo) => self.undo(undo),
            Event::Work => self.next_work(),
            Event::Calls { process } => self.calls(process),
            Event::Cross(crossing) => self.cross(crossing),
            Event::Lie => self.lie(),
            Event::Tokens(event) => self.tokens_happen(event),
            Event::Look => {
                self.look();
                self.queue.push(self.now + SECOND, Event::Look);
            }
        }
    }

    /// Starts a process of that name on a host where none runs.
    pub(crate) fn start(&mut self, name: NodeName, host: Host) -> usize {
        debug_assert!(self.listening[host].is_none());
        self.network.set_host_up(host, true);
        let nonce = self.rng.random();
        let wall = EPOCH_MICROS + self.now.as_micros();
        let seeds = self.constants.seeds.iter().map(|seed| address(*seed));
        let config = ClusterConfig {
            cluster: ClusterName::try_new(CLUSTER).expect("short and not empty"),
            name: name.clone(),
            address: address(host),
            seeds: seeds.collect(),
            seeds_awaited: false,
            settings: self.constants.settings.clone(),
            wall_clock_micros: wall - self.clock_behind[host],
            nonce,
            offers: Offers::default(),
            seed: self.rng.random(),
        };
        // Clocks of different processes have nothing to do with each other.
        let origin =
            Instant::from_micros(self.now.as_micros() - self.rng.random_range(0..1_000_000));
        let local = Instant::ZERO + self.now.since(origin);
        let mut cluster = Cluster::new(config, local);
        let rules = &self.constants.rules;
        cluster.set_rules(*rules);
        let process = self.processes.len();
        let now = self.now;
        let life = cluster.node().clone();
        self.trace.line(now, || {
            format!("{name} starts on host{host} as {}", cluster.node())
        });
        self.processes.push(Process {
            name,
            host,
            life,
            cluster: Some(Box::new(cluster)),
            nonce,
            origin,
            started: now,
            links: Default::default(),
            connections: Default::default(),
            last_link: 0,
            inbox: Default::default(),
            paused: false,
            hung_at: None,
            drains_until: None,
            busy_until: now,
            cost_micros: 0,
            wakes_at: None,
            next_sequence: 1,
            name_taken: false,
            left: false,
            last_id: None,
            killed_at: None,
            knew: Default::default(),
            departed: Default::default(),
            reader: Reader::default(),
            sent_messages: 0,
            sent_bytes: 0,
            taken_bytes: 0,
            sent_before: 0,
            synced_at: None,
            spins: (now, 0),
        });
        self.by_nonce.insert(nonce, process);
        self.listening[host] = Some(process);
        if self.constants.checks {
            self.start_calling(process);
        }
        self.start_machine(process);
        self.pump(process);
        process
    }

    /// The process is gone; `flushes` says whether what it sent before still goes out.
    pub(crate) fn end(&mut self, process: usize, flushes: bool) {
        self.end_machine(process, false);
        let Some(cluster) = self.processes[process].cluster.take() else {
            return;
        };
        self.count_rules(&cluster);
        self.processes[process].last_id = Some(cluster.node().clone());
        self.ended.insert(cluster.node().clone(), self.now);
        let host = self.processes[process].host;
        self.listening[host] = None;
        self.processes[process].inbox.clear();
        self.processes[process].links.clear();
        for (connection, (side, _)) in std::mem::take(&mut self.processes[process].connections) {
            if flushes {
                self.network
                    .close(self.now, connection, side, &mut self.queue);
            } else {
                self.network
                    .abort(self.now, connection, side, &mut self.queue);
            }
        }
    }

    /// The host of the process is gone, and tells nobody.
    pub(crate) fn vanish(&mut self, process: usize) {
        let host = self.processes[process].host;
        for (connection, (side, _)) in std::mem::take(&mut self.processes[process].connections) {
            self.network.vanish(connection, side);
        }
        self.end(process, false);
        self.network.set_host_up(host, false);
    }

    pub(crate) fn count_rules(&mut self, cluster: &Cluster) {
        let counts = cluster.tracker().counts();
        let coverage = &mut self.coverage;
        coverage.gaps += counts.gaps;
        coverage.suffixes += counts.suffixes;
        coverage.snapshots += counts.snapshots;
        coverage.relayed_snapshots += counts.relayed;
        coverage.interrupted_snapshots += counts.interrupted;
        coverage.installed_snapshots += counts.installed;
        let counts = cluster.membership().counts();
        coverage.barred += counts.barred;
        coverage.strangers += counts.strangers;
        coverage.refuted += counts.refuted;
        coverage.told += counts.told;
        coverage.conflicts += counts.conflicts;
        coverage.rearmed += counts.rearmed;
        coverage.verdicts += counts.verdicts;
        coverage.unanswered += counts.unanswered;
    }

    /// A packet that asks for a connection has come as far as the host, or not.
    fn knock(&mut self, process: usize, host: Host, since: Instant) {
        let from = self.processes[process].host;
        let now = self.now;
        let reaches = self.network.is_open(from, host) && self.network.is_open(host, from);
        let acceptor = self.listening[host];
        let answers = acceptor.is_some_and(|acceptor| !self.processes[acceptor].paused);
        let outcome = |acceptor, refused| Event::Dialled {
            process,
            host,
            acceptor,
            refused,
        };
        if reaches && answers {
            // The answer, and the encryption's own handshake.
            let after = self.network.latency() + self.network.latency() + self.network.latency();
            self.queue.push(now + after, outcome(acceptor, false));
        } else if reaches && acceptor.is_none() {
            let after = self.network.latency();
            self.queue.push(now + after, outcome(None, true));
        } else {
            // A lost request is repeated after a second; a process that hangs answers when it goes on.
            let again = if reaches {
                now + Duration::from_millis(50)
            } else {
                now + SECOND
            };
            if again < since + DIAL_TIMEOUT {
                let knock = Event::Knock {
                    process,
                    host,
                    since,
                };
                self.queue.push(again, knock);
            } else {
                self.queue.push(since + DIAL_TIMEOUT, outcome(None, false));
            }
        }
    }

    fn dialled(&mut self, process: usize, host: Host, acceptor: Option<usize>, refused: bool) {
        if self.processes[process].cluster.is_none() {
            return;
        }
        let from = self.processes[process].host;
        let outcome = match acceptor {
            Some(acceptor)
                if self.listening[host] == Some(acceptor)
                    && self.network.is_open(from, host)
                    && self.network.is_open(host, from) =>
            {
                let connection = self.network.connect((process, from), (acceptor, host));
                self.processes[process]
                    .connections
                    .insert(connection, (0, None));
                self.processes[acceptor]
                    .connections
                    .insert(connection, (1, None));
                let patience = hello_timeout(self.constants.settings.down_period());
                let due = Event::HelloDue {
                    acceptor,
                    connection,
                };
                self.queue.push(self.now + patience, due);
                Dialled::Connected(connection)
            }
            _ if refused => {
                self.coverage.dial_refusals += 1;
                Dialled::Refused
            }
            _ => {
                self.coverage.dial_timeouts += 1;
                Dialled::TimedOut
            }
        };
        let address = address(host);
        self.deliver(process, Input::Dialled { address, outcome });
    }

    /// Has the process look at its timers when the next one is due, or sooner.
    pub(crate) fn wake_at(&mut self, process: usize, at: Instant) {
        let rounded = at.as_micros().div_ceil(TIMER_RESOLUTION_MICROS) * TIMER_RESOLUTION_MICROS;
        self.wake_exactly_at(process, Instant::from_micros(rounded));
    }

    /// The same for what is not a timer.
    pub(crate) fn wake_exactly_at(&mut self, process: usize, at: Instant) {
        let at = at.max(self.now);
        let known = &mut self.processes[process].wakes_at;
        if known.is_none_or(|known| at < known) {
            *known = Some(at);
            self.queue.push(at, Event::Wake { process });
        }
    }
}
