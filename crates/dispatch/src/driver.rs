//! The one task that owns the core's state machine: commands and frames in, frames and events out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use keydispatch_core::Escaped;
use keydispatch_core::links::{DialFailure, LinkId, Origin, Output};
use keydispatch_core::message::{Address, Frame, Hello};
use keydispatch_core::{
    AddError, Cluster, ClusterEvent, ClusterStats, Directory, EntryUpdate, Instant, NewEntry,
    NodeName, ServiceInfo, ServiceState, UpdateError, Zone,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::claim::{Claim, Life};
use crate::control::{self, Outgoing};
use crate::data::DataPlane;
use crate::data::tokens::TokenInput;
use crate::driver::event_log::EventLog;
use crate::ending::{Ending, Fatal};
use crate::reach::OutOfReach;
use crate::runtime::logged;
use crate::transport::{Connection, DialError, Transport};
use crate::watch::members::{Member, MemberChange, MemberWatchers};
use crate::watch::services::Watchers;

pub(crate) mod event_log;
mod tokens;
mod turn;

pub(crate) use tokens::{StatesLeft, Tokens};
pub(crate) use turn::Backlog;
use turn::{Longest, SLICE, Turn};

/// Commands and frames that wait for the driver; senders wait beyond that.
pub(crate) const QUEUE: usize = 1_024;

/// Commands and frames handled before what they lead to is sent: one delta carries them all.
const BATCH: usize = 256;

/// A timer that is this late was late because the process did not run.
const PAUSE: Duration = Duration::from_millis(300);

/// How long what arrived during a pause is read before any timer is judged.
const DRAIN_AFTER_PAUSE: Duration = Duration::from_millis(50);

/// Bytes queued for one control link beyond which only the necessary goes there.
const CONGESTED_BYTES: usize = 4 * 1024 * 1024;

/// Bytes queued for one control link beyond which it is closed: the peer has stopped reading.
const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;

/// How long a leaving node flushes its goodbyes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A command to the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Add {
        entries: Vec<NewEntry>,
        /// Of the service that runs behind the entry; none for endpoints.
        life: Option<Life>,
        reply: oneshot::Sender<Added>,
    },
    Update {
        sequence: u64,
        update: EntryUpdate,
        reply: oneshot::Sender<Changed>,
    },
    Remove {
        sequence: u64,
        reply: oneshot::Sender<Changed>,
    },
    Stats {
        reply: oneshot::Sender<ClusterStats>,
    },
    Missing {
        reply: oneshot::Sender<Vec<NodeName>>,
    },
    Seeds {
        addresses: Vec<Address>,
        /// The name of one has no address yet.
        awaited: bool,
    },
    /// Takes keys away, and asks every peer to say when it knows; answered with the version that is to be known.
    Drain {
        what: Draining,
        reply: oneshot::Sender<u64>,
    },
    /// Which members that are up have not said that they have that version.
    Without {
        version: u64,
        reply: oneshot::Sender<Vec<NodeName>>,
    },
    /// What is left of the states of all services of this node, or of one.
    StatesLeft {
        sequence: Option<u64>,
        reply: oneshot::Sender<StatesLeft>,
    },
    Leave {
        reply: oneshot::Sender<()>,
    },
    #[cfg(feature = "testkit-faults")]
    Panic,
}

/// Whose keys are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    /// Of all services of this node; for good, whatever is added or enabled later owns nothing either.
    Node { for_good: bool },
    /// Of one service.
    Service { sequence: u64 },
}

type Added = Result<Claim, AddError>;
type Changed = Result<Arc<ServiceInfo>, UpdateError>;

/// What a command came to, until it is visible.
enum Answer {
    Added(oneshot::Sender<Added>, Added),
    Changed(oneshot::Sender<Changed>, Changed),
    Stats(oneshot::Sender<ClusterStats>),
    Missing(oneshot::Sender<Vec<NodeName>>),
    Draining(oneshot::Sender<u64>),
    Without(u64, oneshot::Sender<Vec<NodeName>>),
    StatesLeft(Option<u64>, oneshot::Sender<StatesLeft>),
}

/// What the network tells the driver.
pub(crate) enum Input {
    /// Somebody dialled this node; the first frame was a Hello for the control lane.
    Accepted {
        connection: Box<dyn Connection>,
        hello: Frame,
    },
    Dialled {
        address: Address,
        outcome: Result<Box<dyn Connection>, DialError>,
    },
    Frame {
        link: LinkId,
        frame: Frame,
    },
    /// The queue of a congested link is short again.
    Drained {
        link: LinkId,
    },
    Closed {
        link: LinkId,
        why: String,
    },
}

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Joining,
    Synced,
    /// A living node has the name; where it is, if known.
    NameTaken(Option<Address>),
    Stopped,
    /// It ended without anybody having asked for it.
    Failed(Fatal),
}

impl Phase {
    /// True where the node has ended.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Phase::Joining | Phase::Synced => false,
            Phase::NameTaken(_) | Phase::Stopped | Phase::Failed(_) => true,
        }
    }
}

/// What readers and the driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: NodeName,
    pub(crate) nonce: u64,
    pub(crate) zone: Option<Zone>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) watchers: Watchers,
    pub(crate) roster: ArcSwap<Vec<Member>>,
    pub(crate) member_changes: MemberWatchers,
    pub(crate) longest_turn: Longest,
    sequences: AtomicU64,
    /// Services that ended, and entries that were given up, where nobody could wait for the driver.
    ended: Mutex<Vec<u64>>,
    ended_signal: tokio::sync::Notify,
}

impl Shared {
    pub(crate) fn new(
        name: NodeName,
        nonce: u64,
        zone: Option<Zone>,
        directory: Arc<Directory>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Shared {
            name,
            nonce,
            zone,
            directory,
            commands,
            watchers: Watchers::default(),
            roster: ArcSwap::default(),
            member_changes: MemberWatchers::default(),
            longest_turn: Longest::default(),
            sequences: AtomicU64::new(1),
            ended: Mutex::default(),
            ended_signal: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequences.fetch_add(1, Ordering::Relaxed)
    }

    /// Bounded by the services of this process, each of which ends once, and by the additions under way.
    pub(crate) fn remove_soon(&self, sequences: impl IntoIterator<Item = u64>) {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(sequences);
        self.ended_signal.notify_one();
    }

    /// The node has stopped: nothing is found any more, and whoever waits for news here hears the end of them.
    pub(crate) fn close(&self) {
        // First, so that nobody who hears the end still finds what was there.
        self.directory.clear();
        self.watchers.close();
        self.member_changes.close();
    }
}

struct Link {
    outgoing: mpsc::UnboundedSender<Frame>,
    queued: Arc<AtomicUsize>,
    congested: bool,
}

/// Everything that the driver is started with.
pub(crate) struct Driver {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    pub(crate) out_of_reach: OutOfReach,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) data: Arc<DataPlane>,
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) event_log: EventLog,
    pub(crate) goodbye_on_drop: bool,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) input_sender: mpsc::Sender<Input>,
    pub(crate) shutdown: watch::Receiver<bool>,
    /// What the node cannot do without has ended.
    pub(crate) fatal: mpsc::UnboundedReceiver<Fatal>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) links: Links,
    pub(crate) backlog: Backlog,
    pub(crate) tokens: Tokens,
}

/// The open control links and the tasks that serve them.
#[derive(Default)]
pub(crate) struct Links {
    open: HashMap<LinkId, Link>,
    last: u64,
    tasks: JoinSet<()>,
}

/// The core's time: microseconds since the node started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: tokio::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock {
            origin: tokio::time::Instant::now(),
        }
    }

    pub(crate) fn now(self) -> Instant {
        Instant::ZERO + self.origin.elapsed()
    }

    fn deadline(self, at: Instant) -> tokio::time::Instant {
        self.origin + at.since(Instant::ZERO)
    }
}

enum Wake {
    Commands,
    Inputs,
    /// Something about the states of keys.
    Tokens,
    Timer,
    Ended,
    Dropped,
    /// The turn before left something.
    More,
    Fatal(Fatal),
}

impl Driver {
    /// Runs until the node leaves, is dropped, or finds its name taken.
    pub(crate) async fn run(self) {
        let mut ending = Ending {
            shared: Arc::clone(&self.shared),
            data: Arc::clone(&self.data),
            phase: self.phase.clone(),
            how: None,
        };
        let (how, leave) = self.drive().await;
        ending.how = Some(how);
        drop(ending);
        if let Some(reply) = leave {
            // The caller may have gone; the node has left all the same.
            let _ = reply.send(());
        }
    }

    /// Returns how it ended, and who asked for it.
    async fn drive(mut self) -> (Phase, Option<oneshot::Sender<()>>) {
        let mut how = Phase::Stopped;
        let mut commands = Vec::with_capacity(BATCH);
        let mut inputs = Vec::with_capacity(BATCH);
        let mut about_states = Vec::with_capacity(BATCH);
        let leave = loop {
            self.pump();
            if matches!(*self.phase.borrow(), Phase::NameTaken(_)) {
                break None;
            }
            // Rule: no timer waits for more than one turn.
            if self.is_timer_due() {
                self.handle_timer(&mut inputs).await;
                self.pump();
            }
            let woken = self
                .wait(&mut commands, &mut inputs, &mut about_states)
                .await;
            let turn = Turn::begin();
            self.backlog.commands.extend(commands.drain(..));
            self.backlog.inputs.extend(inputs.drain(..));
            match woken {
                Wake::Commands => {
                    if let Some(reply) = self.handle_commands() {
                        break Some(reply);
                    }
                }
                Wake::Inputs => self.handle_inputs(),
                Wake::Tokens => {
                    let now = self.clock.now();
                    for input in about_states.drain(..) {
                        self.tokens.take(now, input);
                    }
                }
                Wake::Timer => self.handle_timer(&mut inputs).await,
                Wake::Ended => self.remove_ended(),
                Wake::Dropped => break None,
                Wake::Fatal(fatal) => {
                    how = Phase::Failed(fatal);
                    break None;
                }
                Wake::More => {
                    self.handle_inputs();
                    if let Some(reply) = self.handle_commands() {
                        break Some(reply);
                    }
                }
            }
            if !matches!(woken, Wake::Timer) {
                self.shared.longest_turn.note(turn.took());
            }
        };
        while self.backlog.events {
            self.pump();
        }
        let said_goodbye = leave.is_some() || self.goodbye_on_drop;
        self.stop(said_goodbye).await;
        (how, leave)
    }

    async fn wait(
        &mut self,
        commands: &mut Vec<Command>,
        inputs: &mut Vec<Input>,
        about_states: &mut Vec<TokenInput>,
    ) -> Wake {
        let deadline = self.next_timeout().map(|at| self.clock.deadline(at));
        let timer = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let backlog = &self.backlog;
        // In no fixed order: a flood of frames must not keep commands or timers waiting.
        tokio::select! {
            _ = self.shutdown.wait_for(|stop| *stop) => Wake::Dropped,
            Some(fatal) = self.fatal.recv() => Wake::Fatal(fatal),
            _ = self.inputs.recv_many(inputs, BATCH), if backlog.inputs.is_empty() => Wake::Inputs,
            () = self.shared.ended_signal.notified(), if backlog.adding.is_none() => Wake::Ended,
            _ = self.commands.recv_many(commands, BATCH), if backlog.takes_commands() => Wake::Commands,
            () = self.tokens.inputs.receive(about_states) => Wake::Tokens,
            () = timer => Wake::Timer,
            () = tokio::task::yield_now(), if !backlog.is_empty() => Wake::More,
        }
    }

    /// Rule: after a pause, the sockets are drained before any timer is judged.
    async fn handle_timer(&mut self, inputs: &mut Vec<Input>) {
        let now = self.clock.now();
        let late = self.next_timeout().map(|at| now.since(at));
        if late.is_some_and(|late| late >= PAUSE) {
            tracing::debug!(
                late_ms = late.map(|late| late.as_millis()),
                "this process did not run"
            );
            let until = tokio::time::Instant::now() + DRAIN_AFTER_PAUSE;
            self.handle_inputs();
            while tokio::time::timeout_at(until, self.inputs.recv_many(inputs, BATCH))
                .await
                .is_ok()
            {
                self.backlog.inputs.extend(inputs.drain(..));
                while !self.backlog.inputs.is_empty() && tokio::time::Instant::now() < until {
                    self.handle_inputs();
                    self.pump();
                }
            }
            self.cluster.handle_resumed(self.clock.now());
            self.tokens
                .stood_still(self.clock.now(), late.unwrap_or_default());
        }
        let turn = Turn::begin();
        self.cluster.handle_timeout(self.clock.now());
        self.tokens.handle_timeout(self.clock.now());
        self.refresh_roster();
        self.shared.longest_turn.note(turn.took());
    }

    fn next_timeout(&self) -> Option<Instant> {
        keydispatch_core::earliest(self.cluster.poll_timeout(), self.tokens.poll_timeout())
    }

    fn is_timer_due(&self) -> bool {
        let now = self.clock.now();
        self.next_timeout().is_some_and(|at| at <= now)
    }

    fn handle_inputs(&mut self) {
        let (now, mut turn) = (self.clock.now(), Turn::begin());
        while let Some(input) = self.backlog.inputs.pop_front() {
            if let Input::Frame { frame, .. } = &input {
                turn.spend(frame.body.len());
            }
            self.handle_input(now, input);
            if turn.is_over() {
                return;
            }
        }
    }

    /// The dead are forgotten, and suspicions come and go, without a change that is published.
    fn refresh_roster(&self) {
        let known = self.shared.roster.load();
        let states = known.iter().map(|member| (&member.node, member.state));
        let current = self.cluster.members();
        if !states.eq(current.iter().map(|member| (&member.node, member.state))) {
            self.shared.roster.store(Arc::new(Member::roster(&current)));
        }
    }

    /// Goes on with the batch that is being added; true once it is done.
    fn continue_adding(&mut self) -> bool {
        let turn = Turn::begin();
        while let Some((adding, reply)) = self.backlog.adding.take() {
            match self.cluster.continue_add(self.clock.now(), adding, SLICE) {
                keydispatch_core::Added::NotYet(rest) => {
                    let is_staged = rest.is_staged();
                    self.backlog.adding = Some((rest, reply));
                    if is_staged {
                        break;
                    }
                }
                // Whoever asked may have gone.
                keydispatch_core::Added::All(added) => {
                    if let Ok(added) = &added {
                        self.tokens.added(added);
                    }
                    drop(reply.send(added.map(|added| Claim::new(added, &self.shared))));
                }
            }
            if turn.is_over() {
                break;
            }
        }
        self.backlog.adding.is_none()
    }

    /// Commands of one turn become visible together, before any of them is answered, and so do all services of one
    /// command, however many. Returns who asked to leave.
    fn handle_commands(&mut self) -> Option<oneshot::Sender<()>> {
        if !self.continue_adding() {
            return None;
        }
        let (now, turn) = (self.clock.now(), Turn::begin());
        let mut answers = Vec::with_capacity(self.backlog.commands.len());
        let mut leave = None;
        self.cluster.begin();
        // Rule: removals that wait are done first. What follows may take the name of a service that was seen to end.
        self.take_ended(now);
        while !turn.is_over()
            && self.backlog.adding.is_none()
            && let Some(command) = self.backlog.commands.pop_front()
        {
            match command {
                Command::Add {
                    entries,
                    life: None,
                    reply,
                } if entries.len() > SLICE => match self.cluster.begin_add(entries) {
                    Ok(adding) => self.backlog.adding = Some((adding, reply)),
                    Err(error) => answers.push(Answer::Added(reply, Err(error))),
                },
                Command::Add {
                    entries,
                    life,
                    reply,
                } => {
                    let added = self.add(now, entries, life.as_ref());
                    answers.push(Answer::Added(reply, added));
                }
                Command::Update {
                    sequence,
                    update,
                    reply,
                } => {
                    let updated = self.cluster.update(now, sequence, update);
                    answers.push(Answer::Changed(reply, updated));
                }
                Command::Remove { sequence, reply } => {
                    answers.push(Answer::Changed(reply, self.cluster.remove(now, sequence)));
                }
                Command::Stats { reply } => answers.push(Answer::Stats(reply)),
                Command::Missing { reply } => answers.push(Answer::Missing(reply)),
                Command::Seeds { addresses, awaited } => {
                    self.out_of_reach.met(&addresses);
                    self.cluster.set_seeds(now, addresses);
                    self.cluster.await_seeds(awaited);
                }
                Command::Drain { what, reply } => {
                    self.drain(now, what);
                    answers.push(Answer::Draining(reply));
                }
                Command::Without { version, reply } => {
                    answers.push(Answer::Without(version, reply));
                }
                Command::StatesLeft { sequence, reply } => {
                    answers.push(Answer::StatesLeft(sequence, reply));
                }
                Command::Leave { reply } => leave = Some(reply),
                #[cfg(feature = "testkit-faults")]
                Command::Panic => panic!("told to by a test"),
            }
        }
        self.cluster.commit(now);
        for answer in answers {
            // Whoever asked may have gone.
            match answer {
                Answer::Added(reply, added) => drop(reply.send(added)),
                Answer::Changed(reply, changed) => drop(reply.send(changed)),
                Answer::Stats(reply) => drop(reply.send(self.cluster.stats())),
                Answer::Missing(reply) => drop(reply.send(self.cluster.missing())),
                Answer::Draining(reply) => drop(reply.send(self.cluster.ask_who_has_it(now))),
                Answer::StatesLeft(sequence, reply) => {
                    // What was given up in this turn counts.
                    self.pump();
                    let _ = reply.send(self.tokens.left(&self.cluster, sequence));
                }
                Answer::Without(version, reply) => {
                    drop(reply.send(self.cluster.without(version)));
                }
            }
        }
        leave
    }

    fn add(&mut self, now: Instant, entries: Vec<NewEntry>, life: Option<&Life>) -> Added {
        let added = self.cluster.add(now, entries)?;
        self.tokens.added(&added);
        // Rule: a service that has ended meanwhile is not listed. Its removal may have come, and found nothing.
        if life.is_some_and(Life::is_over) {
            for info in &added {
                // It was added above.
                let _ = self.cluster.remove(now, info.id().sequence);
            }
        }
        Ok(Claim::new(added, &self.shared))
    }

    fn drain(&mut self, now: Instant, what: Draining) {
        match what {
            Draining::Node { for_good } => {
                if for_good {
                    self.tokens.set_leaving();
                }
                self.cluster.drain(now, for_good);
            }
            Draining::Service { sequence } => {
                let update = EntryUpdate {
                    state: Some(ServiceState::Draining),
                    ..EntryUpdate::default()
                };
                // It may have been removed by hand already.
                let _ = self.cluster.update(now, sequence, update);
            }
        }
    }

    fn remove_ended(&mut self) {
        let now = self.clock.now();
        self.cluster.begin();
        self.take_ended(now);
        self.cluster.commit(now);
    }

    fn take_ended(&mut self, now: Instant) {
        let ended = std::mem::take(
            &mut *self
                .shared
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for sequence in ended {
            // It may have been removed by hand already, or never been added.
            let _ = self.cluster.remove(now, sequence);
        }
    }

    fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Accepted { connection, hello } => {
                let credentials = connection.credentials().clone();
                let link = self.open(connection);
                self.cluster
                    .handle_connected(now, link, Origin::Accepted, credentials);
                self.cluster.handle_frame(now, link, &hello);
            }
            Input::Dialled {
                address,
                outcome: Ok(connection),
            } => {
                let credentials = connection.credentials().clone();
                let link = self.open(connection);
                self.cluster
                    .handle_connected(now, link, Origin::Dialled(address), credentials);
            }
            Input::Dialled {
                address,
                outcome: Err(error),
            } => {
                self.data.not_dialled(&address, &error.to_string());
                let failure = match error {
                    DialError::Refused { .. } => DialFailure::Refused,
                    error => DialFailure::Unreachable(error.to_string()),
                };
                self.cluster.handle_dial_failed(now, &address, &failure);
            }
            Input::Frame { link, frame } => {
                self.cluster.handle_frame(now, link, &frame);
                if let Some(peer) = self.cluster.peer(link) {
                    self.data.heard(peer);
                }
            }
            Input::Drained { link } => {
                if let Some(open) = self.links.open.get_mut(&link)
                    && open.congested
                {
                    open.congested = false;
                    self.cluster.set_congested(now, link, false);
                }
            }
            Input::Closed { link, why } => {
                if self.links.open.remove(&link).is_some() {
                    tracing::debug!(link = link.0, why = %Escaped(&why), "a control connection is gone");
                    self.cluster.handle_broken(now, link, &why);
                }
            }
        }
    }

    fn open(&mut self, connection: Box<dyn Connection>) -> LinkId {
        self.links.last += 1;
        let link = LinkId(self.links.last);
        let (outgoing, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let report = control::Report::closed(&self.input_sender, link);
        let serving = control::serve(
            connection,
            link,
            Outgoing {
                frames: receiver,
                queued: Arc::clone(&queued),
                drained_below: CONGESTED_BYTES / 4,
            },
            self.input_sender.clone(),
        );
        let task = async move {
            let _report = report;
            serving.await;
        };
        self.links.tasks.spawn(logged(task));
        self.links.open.insert(
            link,
            Link {
                outgoing,
                queued,
                congested: false,
            },
        );
        link
    }

    /// Does what the state machine wants done, and reports what it has to say.
    fn pump(&mut self) {
        let (now, turn) = (self.clock.now(), Turn::begin());
        self.backlog.events = loop {
            while let Some(output) = self.cluster.poll_output() {
                self.handle_output(now, output);
            }
            if turn.is_over() {
                break true;
            }
            if let Some(event) = self.cluster.poll_event() {
                self.handle_event(event);
            } else if !self.tokens.pump(now, &mut self.cluster, &turn) {
                break false;
            }
        };
        self.shared.longest_turn.note(turn.took());
        while self.links.tasks.try_join_next().is_some() {}
    }

    fn handle_output(&mut self, now: Instant, output: Output) {
        match output {
            Output::Transmit { link, frame } => {
                let Some(open) = self.links.open.get_mut(&link) else {
                    return;
                };
                let bytes = frame.body.len() + control::FRAME_HEAD_BYTES;
                let queued = open.queued.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let gone = open.outgoing.send(frame).is_err();
                if queued > MAX_QUEUED_BYTES && !gone {
                    tracing::warn!(
                        link = link.0,
                        queued,
                        "closing a control connection: the peer does not read"
                    );
                    self.links.open.remove(&link);
                    self.cluster.handle_disconnected(now, link);
                } else if queued > CONGESTED_BYTES && !open.congested {
                    open.congested = true;
                    self.cluster.set_congested(now, link, true);
                }
            }
            Output::Dial { address } => {
                let Some(transport) = self.transport.clone() else {
                    return;
                };
                let inputs = self.input_sender.clone();
                let report = control::Report::not_dialled(&inputs, &address);
                let task = async move {
                    let _report = report;
                    let outcome = transport.dial(&address).await;
                    // The driver is gone only when the node is.
                    let _ = inputs.send(Input::Dialled { address, outcome }).await;
                };
                self.links.tasks.spawn(logged(task));
            }
            // The task flushes what was queued, and then ends.
            Output::Close { link } => {
                self.links.open.remove(&link);
            }
        }
    }

    fn handle_event(&mut self, event: ClusterEvent) {
        self.event_log.write(&event);
        self.tokens.note(self.clock.now(), &self.cluster, &event);
        match event {
            ClusterEvent::Registry { event, version } => {
                self.shared.watchers.publish(event, version);
            }
            ClusterEvent::MemberUp { node, address } => {
                self.out_of_reach.met(std::slice::from_ref(&address));
                let offers = self.cluster.offers(&node);
                self.data.member_up(node.clone(), address.clone(), offers);
                self.publish_member(MemberChange::Up { node, address });
            }
            ClusterEvent::Linked { node, offers } => self.data.linked(&node, &offers),
            ClusterEvent::MemberDown { node } => {
                self.data.member_down(&node);
                self.publish_member(MemberChange::Down { node });
            }
            ClusterEvent::MemberLeft { node } => {
                self.data.member_down(&node);
                self.publish_member(MemberChange::Left { node });
            }
            ClusterEvent::Synced => {
                self.phase.send_replace(Phase::Synced);
            }
            ClusterEvent::Renewed { .. } => {
                self.hello.store(Arc::new(self.cluster.hello().clone()));
            }
            ClusterEvent::NameTaken { by } => {
                self.phase.send_replace(Phase::NameTaken(by));
            }
            _ => {}
        }
    }

    fn publish_member(&self, change: MemberChange) {
        self.shared
            .roster
            .store(Arc::new(Member::roster(&self.cluster.members())));
        self.shared.member_changes.publish(change);
    }

    async fn stop(mut self, said_goodbye: bool) {
        if said_goodbye {
            self.cluster.leave(self.clock.now());
            while let Some(output) = self.cluster.poll_output() {
                self.handle_output(self.clock.now(), output);
            }
        }
        // Dropping the senders lets each task flush what is queued and close its connection.
        self.links.open.clear();
        self.inputs.close();
        if said_goodbye {
            let tasks = &mut self.links.tasks;
            let flushed = async { while tasks.join_next().await.is_some() {} };
            if tokio::time::timeout(FLUSH_TIMEOUT, flushed).await.is_err() {
                tracing::debug!("some peers did not take the goodbye in time");
            }
        }
        self.links.tasks.abort_all();
        self.data.close();
        if let Some(transport) = &self.transport {
            transport.unbind().await;
        }
    }
}
