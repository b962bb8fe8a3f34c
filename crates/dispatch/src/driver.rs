//! The one task that owns the core's state machine: commands and frames in, frames and events out.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keydispatch_core::Escaped;
use keydispatch_core::links::{DialFailure, Origin, Output};
use keydispatch_core::message::Hello;
use keydispatch_core::{
    Cluster, ClusterEvent, ClusterStats, EntryUpdate, Instant, NewEntry, NodeName, ServiceState,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::claim::{Claim, Life};
use crate::data::DataLane;
use crate::data::tokens::TokenInput;
use crate::ending::Ending;
use crate::reach::OutOfReach;
use crate::transport::{DialError, Transport};
use crate::watch::members::{Member, MemberChange};

pub(crate) mod accept;
pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod event_log;
pub(crate) mod link;
pub(crate) mod phase;
pub(crate) mod shared;
pub(crate) mod tokens;
pub(crate) mod turn;

use self::clock::Clock;
use self::command::{Added, Changed, Command, Draining, StatesLeft};
use self::event_log::EventLog;
use self::link::{Input, OpenLinks, Queued};
use self::phase::{Fatal, Phase};
use self::shared::NodeShared;
use self::tokens::Tokens;
use self::turn::{Leftovers, SLICE, Turn};

/// Commands and frames handled before what they lead to is sent: one delta carries them all.
const BATCH: usize = 256;

/// A timer that is this late was late because the process did not run.
const PAUSE: Duration = Duration::from_millis(300);

/// How long what arrived during a pause is read before any timer is judged.
const DRAIN_AFTER_PAUSE: Duration = Duration::from_millis(50);

/// How long the tasks of connections are waited for once they were told to end.
const END_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a leaving node flushes its goodbyes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What a command came to, until it is visible.
enum PendingReply {
    Added(oneshot::Sender<Added>, Added),
    Changed(oneshot::Sender<Changed>, Changed),
    Stats(oneshot::Sender<ClusterStats>),
    Missing(oneshot::Sender<Vec<NodeName>>),
    Draining(oneshot::Sender<u64>),
    Without(u64, oneshot::Sender<Vec<NodeName>>),
    StatesLeft(Option<u64>, oneshot::Sender<StatesLeft>),
}

/// Everything that the driver is started with.
pub(crate) struct Driver {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    pub(crate) out_of_reach: OutOfReach,
    pub(crate) shared: Arc<NodeShared>,
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) data: DataLane,
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
    pub(crate) links: OpenLinks,
    pub(crate) backlog: Leftovers,
    pub(crate) tokens: Tokens,
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
            data: self.data.clone(),
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
            () = self.shared.removals.asked(), if backlog.adding.is_none() => Wake::Ended,
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
                    drop(reply.send(added.map(|added| Claim::new(added, &self.shared.removals))));
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
                    Err(error) => answers.push(PendingReply::Added(reply, Err(error))),
                },
                Command::Add {
                    entries,
                    life,
                    reply,
                } => {
                    let added = self.add(now, entries, life.as_ref());
                    answers.push(PendingReply::Added(reply, added));
                }
                Command::Update {
                    sequence,
                    update,
                    reply,
                } => {
                    let updated = self.cluster.update(now, sequence, update);
                    answers.push(PendingReply::Changed(reply, updated));
                }
                Command::Remove { sequence, reply } => {
                    answers.push(PendingReply::Changed(
                        reply,
                        self.cluster.remove(now, sequence),
                    ));
                }
                Command::Stats { reply } => answers.push(PendingReply::Stats(reply)),
                Command::Missing { reply } => answers.push(PendingReply::Missing(reply)),
                Command::Seeds { addresses, awaited } => {
                    self.out_of_reach.met(&addresses);
                    self.cluster.set_seeds(now, addresses);
                    self.cluster.await_seeds(awaited);
                }
                Command::Drain { what, reply } => {
                    self.drain(now, what);
                    answers.push(PendingReply::Draining(reply));
                }
                Command::Without { version, reply } => {
                    answers.push(PendingReply::Without(version, reply));
                }
                Command::StatesLeft { sequence, reply } => {
                    answers.push(PendingReply::StatesLeft(sequence, reply));
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
                PendingReply::Added(reply, added) => drop(reply.send(added)),
                PendingReply::Changed(reply, changed) => drop(reply.send(changed)),
                PendingReply::Stats(reply) => drop(reply.send(self.cluster.stats())),
                PendingReply::Missing(reply) => drop(reply.send(self.cluster.missing())),
                PendingReply::Draining(reply) => drop(reply.send(self.cluster.ask_who_has_it(now))),
                PendingReply::StatesLeft(sequence, reply) => {
                    // What was given up in this turn counts.
                    self.pump();
                    let _ = reply.send(self.tokens.left(&self.cluster, sequence));
                }
                PendingReply::Without(version, reply) => {
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
        Ok(Claim::new(added, &self.shared.removals))
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
        for sequence in self.shared.removals.take() {
            // It may have been removed by hand already, or never been added.
            let _ = self.cluster.remove(now, sequence);
        }
    }

    fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Accepted { connection, hello } => {
                let credentials = connection.credentials().clone();
                let link = self.links.open(connection, &self.input_sender);
                self.cluster
                    .handle_connected(now, link, Origin::Accepted, credentials);
                self.cluster.handle_frame(now, link, &hello);
            }
            Input::Dialled {
                address,
                outcome: Ok(connection),
            } => {
                let credentials = connection.credentials().clone();
                let link = self.links.open(connection, &self.input_sender);
                self.cluster
                    .handle_connected(now, link, Origin::Dialled(address), credentials);
            }
            Input::Dialled {
                address,
                outcome: Err(error),
            } => {
                self.data.peers.not_dialled(&address, &error.to_string());
                let failure = match error {
                    DialError::Refused { .. } => DialFailure::Refused,
                    error => DialFailure::Unreachable(error.to_string()),
                };
                self.cluster.handle_dial_failed(now, &address, &failure);
            }
            Input::Frame { link, frame } => {
                self.cluster.handle_frame(now, link, &frame);
                if let Some(peer) = self.cluster.peer(link) {
                    self.data.peers.heard(peer);
                    self.links.named(link, &peer.name);
                }
            }
            Input::Drained { link } => {
                if self.links.end_congestion(link) {
                    self.cluster.set_congested(now, link, false);
                }
            }
            Input::Closed { link, why } => {
                if self.links.close(link) {
                    tracing::debug!(link = link.0, why = %Escaped(&why), "a control connection is gone");
                    self.cluster.handle_broken(now, link, &why);
                }
            }
        }
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
        self.links.join_ended();
    }

    fn handle_output(&mut self, now: Instant, output: Output) {
        match output {
            Output::Transmit { link, frame } => match self.links.transmit(link, frame) {
                Queued::Fine => {}
                Queued::Congested => self.cluster.set_congested(now, link, true),
                Queued::TooMuch => self.cluster.handle_disconnected(now, link),
            },
            Output::Dial { address } => {
                if let Some(transport) = self.transport.clone() {
                    self.links.dial(transport, address, &self.input_sender);
                }
            }
            // The task flushes what was queued, and then ends.
            Output::Close { link } => {
                self.links.close(link);
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
                self.data
                    .peers
                    .member_up(node.clone(), address.clone(), offers);
                self.publish_member(MemberChange::Up { node, address });
            }
            ClusterEvent::Linked { node, offers } => self.data.peers.linked(&node, &offers),
            ClusterEvent::MemberDown { node } => {
                self.data.peers.member_down(&node);
                self.publish_member(MemberChange::Down { node });
            }
            ClusterEvent::MemberLeft { node } => {
                self.data.peers.member_down(&node);
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
        self.links.close_all();
        self.inputs.close();
        if said_goodbye {
            let flushed = self.links.join_all();
            if tokio::time::timeout(FLUSH_TIMEOUT, flushed).await.is_err() {
                tracing::debug!("some peers did not take the goodbye in time");
            }
        }
        self.links.abort_all();
        self.data.close();
        if let Some(transport) = &self.transport {
            transport.unbind().await;
        }
        // What still runs ends at its next step, unless it has none: where handlers hold all threads.
        let ended = self.data.runtime.tasks().ended();
        if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() {
            tracing::debug!("some tasks of connections had not ended in time");
        }
    }
}
