//! What the library's driver does, in virtual time: inputs in, outputs and events out, timers when they are due.

use std::time::Duration;

use keydispatch_core::admission::{Credentials, NodeNames};
use keydispatch_core::limits::MAX_CONTROL_FRAME_BYTES;
use keydispatch_core::links::{DialFailure, LinkId, Origin, Output};
use keydispatch_core::message::{ControlMessage, Frame, kind};
use keydispatch_core::{Cluster, ClusterEvent, ClusterName, NodeId};

use super::constants::Cost;
use super::event::{ConnectionId, Event, Side};
use super::process::{Dialled, Input, Wire, host};
use super::trace::describe;
use super::world::{CLUSTER, World};

/// A timer that is this late was late because the process did not run.
const PAUSE: Duration = Duration::from_millis(300);

/// How long what arrived during a pause is read before any timer is judged.
const DRAIN_AFTER_PAUSE: Duration = Duration::from_millis(50);

/// Times that timers may run at one moment; more, and a real driver would never sleep.
const MAX_SPINS: u32 = 100;

impl World {
    /// Something arrives at a process.
    pub(crate) fn deliver(&mut self, process: usize, input: Input) {
        if self.processes[process].cluster.is_none() {
            return;
        }
        let now = self.now;
        self.processes[process].inbox.push_back((now, input));
        self.work_off(process);
    }

    /// Has the process do what it can do now.
    pub(crate) fn work_off(&mut self, process: usize) {
        let now = self.now;
        while self.processes[process].is_running() {
            let at = self.processes[process].busy_until;
            if now < at {
                return match self.constants.cost {
                    Some(_) => self.wake_exactly_at(process, at),
                    None => self.wake_at(process, at),
                };
            }
            if self.constants.cost.is_some() {
                // The driver takes inputs and timers in no fixed order: a flood of frames does not keep timers waiting.
                self.run_timers(process);
            }
            let state = &mut self.processes[process];
            let Some((arrived, input)) = state.inbox.pop_front() else {
                break;
            };
            if now.since(arrived) >= PAUSE {
                state.hung_at = Some(now);
            }
            state.busy_until = now + Duration::from_micros(state.cost_micros);
            if let Some(cost) = self.constants.cost {
                self.charge(process, cost, cost.input_micros, input.bytes());
            }
            self.handle_input(process, input);
            self.pump(process);
        }
        if self.processes[process].is_running() {
            self.run_timers(process);
        }
    }

    /// Keeps the process from other work for as long as this takes it.
    fn charge(&mut self, process: usize, cost: Cost, micros: u64, bytes: usize) {
        let state = &mut self.processes[process];
        let takes = micros + bytes as u64 / cost.bytes_per_micro;
        state.busy_until = state.busy_until.max(self.now) + Duration::from_micros(takes);
    }

    /// Rule: after a pause, what arrived is taken up before any timer is judged.
    fn run_timers(&mut self, process: usize) {
        let now = self.now;
        let state = &mut self.processes[process];
        let local = state.local(now);
        let Some(cluster) = state.cluster.as_mut() else {
            return;
        };
        let Some(due) = cluster.poll_timeout() else {
            return;
        };
        if let Some(until) = state.drains_until {
            if now < until {
                return self.wake_at(process, until);
            }
            state.drains_until = None;
            state.hung_at = Some(now);
            cluster.handle_resumed(local);
            cluster.handle_timeout(local);
            return self.pump(process);
        }
        if due > local {
            return self.wake_for_timeout(process);
        }
        if local.since(due) >= PAUSE {
            state.drains_until = Some(now + DRAIN_AFTER_PAUSE);
            state.hung_at = Some(now);
            return self.wake_at(process, now + DRAIN_AFTER_PAUSE);
        }
        if state.spins.0 == now {
            state.spins.1 += 1;
        } else {
            state.spins = (now, 1);
        }
        if state.spins.1 > MAX_SPINS {
            let what = format!("{} never sleeps: a timer stays due at {due}", state.name);
            return self.violate(what);
        }
        cluster.handle_timeout(local);
        self.pump(process);
    }

    fn wake_for_timeout(&mut self, process: usize) {
        let state = &self.processes[process];
        let due = state
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.poll_timeout());
        if let Some(due) = due.map(|due| state.global(due)) {
            self.wake_at(process, due);
        }
    }

    fn handle_input(&mut self, process: usize, input: Input) {
        let now = self.now;
        let state = &mut self.processes[process];
        let local = state.local(now);
        match input {
            Input::Frame {
                connection,
                side,
                frame,
                bytes,
            } => self.handle_frame(process, connection, side, &frame, bytes),
            Input::Closed { connection } => {
                let Some((_, link)) = state.connections.remove(&connection) else {
                    return;
                };
                if let Some(link) = link
                    && state.links.remove(&link).is_some()
                    && let Some(cluster) = state.cluster.as_mut()
                {
                    cluster.handle_disconnected(local, link);
                }
            }
            Input::HelloDue { connection } => {
                if let Some((side, None)) = state.connections.get(&connection).copied() {
                    state.connections.remove(&connection);
                    self.network.close(now, connection, side, &mut self.queue);
                }
            }
            Input::Dialled {
                address,
                outcome: Dialled::Connected(connection),
            } => {
                let credentials = self.credentials(connection, 1);
                self.open(
                    process,
                    connection,
                    0,
                    Origin::Dialled(address),
                    credentials,
                );
            }
            Input::Dialled { address, outcome } => {
                let failure = match outcome {
                    Dialled::Refused => DialFailure::Refused,
                    _ => DialFailure::Unreachable("no answer".to_owned()),
                };
                if let Some(cluster) = state.cluster.as_mut() {
                    cluster.handle_dial_failed(local, &address, &failure);
                }
            }
            Input::Drained { link } => {
                if let Some(wire) = state.links.get_mut(&link)
                    && std::mem::take(&mut wire.congested)
                    && let Some(cluster) = state.cluster.as_mut()
                {
                    cluster.set_congested(local, link, false);
                }
            }
        }
    }

    /// The certificate of whoever is on that side: good for its own name.
    fn credentials(&self, connection: ConnectionId, side: Side) -> Credentials {
        let peer = self.network.opened_by(connection, side);
        let name = peer.map(|peer| self.processes[peer].name.clone());
        Credentials::Certificate {
            cluster: ClusterName::try_new(CLUSTER).expect("short and not empty"),
            nodes: NodeNames::Exact(name.into_iter().collect()),
        }
    }

    fn open(
        &mut self,
        process: usize,
        connection: ConnectionId,
        side: Side,
        origin: Origin,
        credentials: Credentials,
    ) -> LinkId {
        let now = self.now;
        let state = &mut self.processes[process];
        let local = state.local(now);
        state.last_link += 1;
        let link = LinkId(state.last_link);
        state.connections.insert(connection, (side, Some(link)));
        let wire = Wire {
            connection,
            side,
            congested: false,
        };
        state.links.insert(link, wire);
        if let Some(cluster) = state.cluster.as_mut() {
            cluster.handle_connected(local, link, origin, credentials);
        }
        link
    }

    fn handle_frame(
        &mut self,
        process: usize,
        connection: ConnectionId,
        side: Side,
        frame: &Frame,
        bytes: usize,
    ) {
        let now = self.now;
        self.take_up(connection, side, bytes);
        self.processes[process].taken_bytes += bytes as u64;
        let Some((_, link)) = self.processes[process]
            .connections
            .get(&connection)
            .copied()
        else {
            return;
        };
        let link = match link {
            Some(link) => link,
            // Rule: a connection that was accepted is nobody's before its first frame.
            None => {
                let credentials = self.credentials(connection, 1 - side);
                self.open(process, connection, side, Origin::Accepted, credentials)
            }
        };
        let state = &mut self.processes[process];
        self.trace.frame(now, || {
            format!(
                "{} takes {} ({bytes} bytes) on {}",
                state.name,
                describe(frame),
                link.0
            )
        });
        let local = state.local(now);
        let Some(cluster) = state.cluster.as_mut() else {
            return;
        };
        if let Some(liar) = &mut self.liar
            && liar.name == state.name
        {
            liar.keep(frame);
        }
        let before = cluster.node().clone();
        cluster.handle_frame(local, link, frame);
        match frame.kind {
            kind::CHALLENGE => self.coverage.challenges += 1,
            kind::HELLO if *cluster.node() != before && tells_of_higher(frame, &before) => {
                self.coverage.generation_conflicts += 1;
                // `Renewed` counts every other change of generation as a ghost's.
                self.coverage.ghosts = self.coverage.ghosts.wrapping_sub(1);
            }
            _ => {}
        }
    }

    fn take_up(&mut self, connection: ConnectionId, side: Side, bytes: usize) {
        let (congested, _) = self.constants.queue_bytes;
        let queued = self.network.taken_up(connection, side, bytes);
        if queued >= congested / 4 || queued + bytes < congested / 4 {
            return;
        }
        let Some(process) = self.network.process(connection, 1 - side) else {
            return;
        };
        if let Some((_, Some(link))) = self.processes[process].connections.get(&connection) {
            let link = *link;
            self.queue.push(self.now, Event::Drained { process, link });
        }
    }

    /// Does what the state machine wants done, and takes in what it has to say.
    pub(crate) fn pump(&mut self, process: usize) {
        let Some(mut cluster) = self.processes[process].cluster.take() else {
            return;
        };
        loop {
            while let Some(output) = cluster.poll_output() {
                self.handle_output(process, &mut cluster, output);
            }
            let Some(event) = cluster.poll_event() else {
                break;
            };
            self.handle_event(process, &cluster, event);
        }
        if self.processes[process].life != *cluster.node() {
            let next = cluster.node().clone();
            let last = std::mem::replace(&mut self.processes[process].life, next);
            self.ended.insert(last, self.now);
        }
        self.processes[process].cluster = Some(cluster);
        self.machine_turn(process);
        if self.constants.checks {
            self.check_step(process);
        }
        if self.processes[process].name_taken {
            self.coverage.name_clashes += 1;
            self.end(process, true);
            if !self.faults_on {
                self.publish_seeds();
            }
        } else {
            self.wake_for_timeout(process);
        }
    }

    fn handle_output(&mut self, process: usize, cluster: &mut Cluster, output: Output) {
        let now = self.now;
        match output {
            Output::Transmit { link, frame } => {
                let Some(wire) = self.processes[process].links.get(&link).copied() else {
                    return;
                };
                self.transmit(process, cluster, link, wire, frame);
            }
            Output::Dial { address } => {
                let host = host(&address);
                let after = self.network.latency();
                let knock = Event::Knock {
                    process,
                    host,
                    since: now,
                };
                self.queue.push(now + after, knock);
            }
            Output::Close { link } => {
                let state = &mut self.processes[process];
                if let Some(wire) = state.links.remove(&link) {
                    state.connections.remove(&wire.connection);
                    let queue = &mut self.queue;
                    self.network.close(now, wire.connection, wire.side, queue);
                }
            }
        }
    }

    fn transmit(
        &mut self,
        process: usize,
        cluster: &mut Cluster,
        link: LinkId,
        wire: Wire,
        frame: Frame,
    ) {
        let now = self.now;
        let peer = self.network.process(wire.connection, 1 - wire.side);
        let frame_kind = frame.kind;
        let mut frame = frame;
        if let Some(liar) = &mut self.liar
            && liar.name == self.processes[process].name
        {
            liar.keep(&frame);
            let to = peer.map(|peer| &self.processes[peer].life);
            frame = liar.change(frame, to);
        }
        if frame.body.len() > MAX_CONTROL_FRAME_BYTES {
            let bytes = frame.body.len();
            self.violate(format!("a frame of kind {frame_kind} with {bytes} bytes"));
        }
        if peer == Some(process) && !matches!(frame_kind, kind::HELLO | kind::REFUSE) {
            self.violate(format!("a message of kind {frame_kind} to itself"));
        }
        let queue = &mut self.queue;
        let (bytes, queued) = self
            .network
            .send(now, wire.connection, wire.side, frame, queue);
        let state = &mut self.processes[process];
        state.sent_messages += 1;
        state.sent_bytes += bytes as u64;
        if let Some(cost) = self.constants.cost {
            self.charge(process, cost, cost.output_micros, bytes);
        }
        let state = &mut self.processes[process];
        self.largest_queue = self.largest_queue.max(queued);
        let local = state.local(now);
        let (congested, most) = self.constants.queue_bytes;
        if queued > most {
            self.coverage.overruns += 1;
            state.links.remove(&link);
            state.connections.remove(&wire.connection);
            for other in self.network.sever(wire.connection) {
                if other != process {
                    self.deliver_later(other, wire);
                }
            }
            cluster.handle_disconnected(local, link);
        } else if queued > congested && !wire.congested {
            self.coverage.congestions += 1;
            if let Some(wire) = state.links.get_mut(&link) {
                wire.congested = true;
            }
            cluster.set_congested(local, link, true);
        }
    }

    /// The other side of a connection that was torn down learns of it.
    fn deliver_later(&mut self, process: usize, wire: Wire) {
        let connection = wire.connection;
        let now = self.now;
        self.processes[process]
            .inbox
            .push_back((now, Input::Closed { connection }));
        self.wake_at(process, now);
    }

    fn handle_event(&mut self, process: usize, cluster: &Cluster, event: ClusterEvent) {
        let now = self.now;
        self.note_fact(process, &event);
        let name = &self.processes[process].name;
        if !matches!(event, ClusterEvent::Registry { .. }) {
            self.trace.line(now, || format!("{name} {}", tell(&event)));
        }
        match event {
            ClusterEvent::Registry { event, .. } => {
                self.trace
                    .frame(now, || format!("{name} {:?}", Brief(&event)));
                // What the liar has, and what it sees, is nobody's business.
                if !self.is_liar(process) && !self.is_liars_name(event.info().node()) {
                    self.changed_at = now;
                }
                if !self.constants.checks {
                    return;
                }
                self.note_misled(process, cluster, event.info().node());
                let state = &mut self.processes[process];
                let (ledger, nonce) = (&mut self.ledger, state.nonce);
                let taken = state.reader.take(now, ledger, nonce, &event);
                let compared = ledger.compare(cluster, event.info());
                match compared.and(taken) {
                    _ if self.is_misled(process, event.info().node()) => {}
                    Ok(true) => self.judge_flash(process, cluster, event.info()),
                    Ok(false) => {}
                    Err(what) => self.violate(format!("{} {what}", cluster.node())),
                }
            }
            ClusterEvent::MemberDown { node } => self.judge_down(process, node),
            ClusterEvent::Renewed { .. } => {
                self.coverage.renewals += 1;
                self.coverage.ghosts = self.coverage.ghosts.wrapping_add(1);
            }
            ClusterEvent::NameTaken { .. } => self.processes[process].name_taken = true,
            ClusterEvent::Isolated => {
                self.coverage.isolations += 1;
                self.in_doubt.insert(cluster.node().clone());
            }
            ClusterEvent::Synced => self.processes[process].synced_at = Some(now),
            ClusterEvent::MemberUp { node, .. } => self.judge_up(process, &node),
            ClusterEvent::MemberLeft { node } => {
                self.processes[process].departed.insert(node, now);
            }
            _ => {}
        }
    }
}

fn tells_of_higher(frame: &Frame, node: &NodeId) -> bool {
    matches!(
        ControlMessage::decode(frame),
        Ok(Some(ControlMessage::Hello(hello)))
            if hello.highest_of_yours.is_some_and(|highest| highest > node.generation)
    )
}

fn tell(event: &ClusterEvent) -> String {
    match event {
        ClusterEvent::MemberUp { node, .. } => format!("sees {node} up"),
        ClusterEvent::MemberDown { node } => format!("sees {node} down"),
        ClusterEvent::MemberLeft { node } => format!("sees {node} leave"),
        ClusterEvent::Synced => "is synced".to_owned(),
        ClusterEvent::Renewed { node } => format!("is now {node}"),
        ClusterEvent::NameTaken { .. } => "stops: a living node has its name".to_owned(),
        ClusterEvent::Isolated => "is cut off".to_owned(),
        ClusterEvent::Warning { message, .. } => format!("warns: {message}"),
        other => format!("{other:?}"),
    }
}

struct Brief<'a>(&'a keydispatch_core::RegistryEvent);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use keydispatch_core::RegistryEvent as E;
        let info = self.0.info();
        match self.0 {
            E::Joined(_) => write!(f, "lists {} {}", info.id(), info.reference()),
            E::Left(_) => write!(f, "no longer lists {} {}", info.id(), info.reference()),
            E::Updated { .. } => write!(f, "updates {} to {}", info.id(), info.reference()),
        }
    }
}
