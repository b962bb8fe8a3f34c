//! The calling side of one data connection: dialled when first needed, suspended when silent, never on a caller's path.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use keydispatch_core::keepalive::PING_AFTER;
use keydispatch_core::message::{Address, Frame};
use keydispatch_core::{NodeId, NodeName, ServiceInfo};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::activity::Activity;
use super::contact::Contact;
use super::error::LaneError;
use super::lane_runtime::LaneRuntime;
use super::outbox::{Outbox, PushError};
use super::pump::{self, Reading, Terms};
use super::reach::{Target, Unreached};
use super::wire::{self, FrameError, Outgoing, kind};
use crate::backlog::Share;
use crate::call::{CallError, Failure, Unsent};
use crate::trace;
use crate::transport::Connection;

mod calls;
mod pending;
mod renew;
mod stuck;
mod waiting;

pub(crate) use pending::Outcome;
use pending::Pending;

use crate::mutex::Mutex;

/// Frames that wait for the connection's task.
const MAX_FRAMES: usize = 1 << 16;
/// Bytes of them: a few hundred callers with 256 KiB each.
const MAX_BYTES: usize = 128 * 1024 * 1024;

/// First and longest pause between a failure and the next dial. Messages wait meanwhile, as long as there is patience with the
/// peer; then they fail at once.
///
/// Rule: where nobody answered, the pause ends with the first word of the peer on its control connection: its packets pass
/// again, and callers would wait for nothing.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Longest pause where nobody answered, as a dial that hangs takes its own time, and where messages wait.
const SILENT_BACK_OFF: Duration = Duration::from_millis(250);

/// A connection that lasts so long shows that the peer can be reached.
const LASTING: Duration = PING_AFTER;

/// Why nothing goes to a node any more.
const DOWN: &str = "the node is down";

mod status {
    pub(super) const IDLE: u8 = 0;
    pub(super) const RUNNING: u8 = 1;
    pub(super) const BROKEN: u8 = 2;
    pub(super) const CLOSED: u8 = 3;
}

#[derive(Debug)]
struct Broken {
    at: Instant,
    until: Instant,
    failures: u32,
    why: Arc<str>,
    /// Since when, by the contact's clock, where nobody answered.
    silent_since: Option<keydispatch_core::Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    target: Arc<Target>,
    outbox: Outbox,
    pending: Mutex<Pending>,
    /// Counts how often calls were given up for lost.
    losses: AtomicU64,
    status: AtomicU8,
    suspended: AtomicBool,
    /// A connection is served.
    connected: AtomicBool,
    /// The peer, or this node, goes away: nothing new is sent. It stays so for the rest of this life of either.
    going: AtomicBool,
    /// It is the peer.
    peer_goes: AtomicBool,
    /// Told when `suspended` changes.
    turned: Notify,
    broken: Mutex<Broken>,
    heard: Activity,
}

impl Lane {
    /// The connection at that place among those to a peer.
    pub(super) fn new(
        peer: NodeId,
        address: Address,
        lane: u16,
        contact: Arc<Contact>,
        share: Arc<Share>,
    ) -> Arc<Self> {
        Arc::new(Lane {
            target: Arc::new(Target {
                peer,
                address,
                lane,
                contact,
            }),
            outbox: Outbox::new(MAX_FRAMES, MAX_BYTES, share),
            pending: Mutex::default(),
            losses: AtomicU64::new(0),
            status: AtomicU8::new(status::IDLE),
            suspended: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            going: AtomicBool::new(false),
            peer_goes: AtomicBool::new(false),
            turned: Notify::new(),
            broken: Mutex::new(Broken {
                at: Instant::now(),
                until: Instant::now(),
                failures: 0,
                why: "never dialled".into(),
                silent_since: None,
            }),
            heard: Activity::default(),
        })
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
            || self.status.load(Ordering::Relaxed) == status::BROKEN
    }

    pub(super) fn is_open(&self) -> bool {
        self.status.load(Ordering::Relaxed) == status::RUNNING
    }

    /// True while something waits that was never written.
    pub(super) fn waits_for_a_connection(&self) -> bool {
        !self.connected.load(Ordering::SeqCst) && self.outbox.has_new()
    }

    pub(super) fn pending(&self) -> usize {
        self.lock().calls.len()
    }

    pub(super) fn queued(&self) -> usize {
        self.outbox.len()
    }

    /// The peer knows of calls that may be refused by load.
    pub(crate) fn knows_bounds(&self) -> bool {
        self.target.contact.knows_bounds()
    }

    /// Says, before the call of that number is queued, whose child its span is.
    pub(crate) fn trace(&self, number: u64, info: &ServiceInfo) {
        if !self.target.contact.knows_traces() {
            return;
        }
        if let Some(parent) = trace::attempt_elsewhere(info) {
            // What has no room for this has none for the call, whose caller is told.
            let _ = self.outbox.push(wire::trace(number, parent));
        }
    }

    /// The longest payload that both sides take, in bytes, as far as the peer has said.
    pub(crate) fn max_payload_bytes(&self, runtime: &LaneRuntime) -> usize {
        self.target
            .contact
            .max_payload_bytes(runtime.max_payload_bytes())
    }

    /// Sends a call; the receiver gets exactly one outcome. Where there is no connection it waits for one that is about to be
    /// dialled, or fails at once.
    pub(crate) fn call(
        self: &Arc<Self>,
        runtime: &Arc<LaneRuntime>,
        waits: bool,
        encode: impl FnOnce(u64) -> Result<Outgoing, CallError>,
    ) -> Result<PendingCall, Unsent> {
        self.ensure(runtime, waits)?;
        let losses = self.losses.load(Ordering::SeqCst);
        let (sender, receiver) = oneshot::channel();
        let number = self.expect(sender)?;
        let call = PendingCall {
            lane: Arc::clone(self),
            number,
            receiver,
            done: false,
        };
        let frame = encode(number)?;
        self.push(runtime, frame)?;
        // Rule: a connection that broke before this call was queued has not carried it.
        if self.losses.load(Ordering::SeqCst) != losses
            && !self.waits_for(number)
            && self.outbox.take_back(number)
        {
            return Err(self.settling("the connection broke"));
        }
        Ok(call)
    }

    /// Sends a frame that nobody answers.
    pub(crate) fn send(
        self: &Arc<Self>,
        runtime: &Arc<LaneRuntime>,
        frame: impl Into<Outgoing>,
    ) -> Result<(), Unsent> {
        self.ensure(runtime, true)?;
        self.push(runtime, frame)
    }

    fn push(
        self: &Arc<Self>,
        runtime: &Arc<LaneRuntime>,
        frame: impl Into<Outgoing>,
    ) -> Result<(), Unsent> {
        self.outbox.push(frame).map_err(|rejected| match rejected {
            PushError::Full => Unsent::from(CallError::Overloaded {
                node: self.target.peer.name.clone(),
            }),
            PushError::Closed => self.settling(DOWN),
            PushError::Sealed => self.goes_away(),
        })?;
        // The connection may have ended since it was looked at: then this frame was either failed with the others, or
        // waits for the next connection.
        self.see_to_what_waits(runtime);
        Ok(())
    }

    /// Rule: whoever queues a frame looks afterwards whether a task is there for it, and a task that ends looks afterwards
    /// whether something was queued. One of the two sees the other.
    fn see_to_what_waits(self: &Arc<Self>, runtime: &Arc<LaneRuntime>) {
        if self.status.load(Ordering::SeqCst) == status::RUNNING || !self.outbox.has_new() {
            return;
        }
        if let Err(unsent) = self.ensure(runtime, true) {
            self.give_up(runtime, &unsent.error.to_string(), unsent.settling);
        }
    }

    /// Sees to it that there is a connection, or will be soon; what does not wait goes without where there was none just now.
    fn ensure(self: &Arc<Self>, runtime: &Arc<LaneRuntime>, waits: bool) -> Result<(), Unsent> {
        if self.going.load(Ordering::Relaxed) {
            return Err(self.goes_away());
        }
        match self.status.load(Ordering::SeqCst) {
            status::RUNNING if self.suspended.load(Ordering::Relaxed) => {
                return Err(self.not_sent("it is silent, and suspended here").into());
            }
            status::RUNNING if waits || self.connected.load(Ordering::Relaxed) => return Ok(()),
            status::CLOSED => return Err(self.settling(DOWN)),
            _ => {}
        }
        let broken = self.broken();
        let waits = waits && self.target.contact.is_patient();
        if !waits && self.pauses(&broken) {
            return Err(self.not_sent(&broken.why).into());
        }
        match self.status.load(Ordering::SeqCst) {
            status::RUNNING => Ok(()),
            status::CLOSED => Err(self.settling(DOWN)),
            _ => {
                self.status.store(status::RUNNING, Ordering::SeqCst);
                let running = Arc::clone(self).run(Arc::clone(runtime));
                runtime.spawn("data connection to a peer", running);
                Ok(())
            }
        }
    }

    fn broken(&self) -> MutexGuard<'_, Broken> {
        self.broken.lock()
    }

    /// One connection after the other, as long as it is needed: those that take the place of one that is stuck, and those
    /// that are dialled again for what waits.
    async fn run(self: Arc<Self>, runtime: Arc<LaneRuntime>) {
        let running = RunningLane {
            lane: &self,
            runtime: &runtime,
        };
        loop {
            let dialled = Instant::now();
            let unreached = match self.connect(&runtime).await {
                Ok(connection) => {
                    let connected = Instant::now();
                    let Some(why) = self.serve_on(connection, &runtime).await else {
                        return running.retire();
                    };
                    self.fail_sent();
                    // Rule: one that ends as soon as it is there leads nowhere. Otherwise a peer that accepts and closes would
                    // be dialled without end.
                    if connected.elapsed() < LASTING {
                        self.target.contact.unreached(dialled);
                    }
                    Unreached::answered(why)
                }
                // Nothing was sent.
                Err(unreached) => unreached,
            };
            self.failed(&unreached);
            if !self.goes_on(&runtime, &unreached.why) {
                return running.end(&unreached.why);
            }
        }
    }

    /// Serves a connection and those that take its place; returns why the last of them broke, or none where it ended with
    /// nobody waiting for it.
    async fn serve_on(
        self: &Arc<Self>,
        mut connection: Box<dyn Connection>,
        runtime: &Arc<LaneRuntime>,
    ) -> Option<LaneError> {
        loop {
            self.connected.store(true, Ordering::SeqCst);
            let served = self.serve(connection, runtime).await;
            self.connected.store(false, Ordering::SeqCst);
            match served {
                ServingEnd::Ended(why) => return Some(why),
                ServingEnd::Idle => return None,
                ServingEnd::Moved(other) => connection = other,
            }
        }
    }

    async fn serve(
        self: &Arc<Self>,
        mut connection: Box<dyn Connection>,
        runtime: &Arc<LaneRuntime>,
    ) -> ServingEnd {
        connection.set_frame_limit(wire::max_frame_bytes(runtime.max_payload_bytes()));
        self.heard.record_read();
        let outdated = connection.outdated();
        let serving = pump::pump(
            &mut *connection,
            &self.outbox,
            &self.heard,
            Terms {
                reading: Reading::Always,
                // What was queued before the peer had said what it takes.
                frame_limit: wire::max_frame_bytes(self.max_payload_bytes(runtime)),
            },
            |frame| self.handle(&frame),
            |frame| self.refuse(runtime, &frame),
        );
        let renewed = tokio::select! {
            ended = serving => return match ended {
                Ok(()) if self.going.load(Ordering::Relaxed) => {
                    self.read_to_the_end(connection).await;
                    ServingEnd::Idle
                }
                Ok(()) => ServingEnd::Ended(LaneError::Down),
                // Nobody waits, and nothing was lost: it was idle for the peer.
                Err(LaneError::ClosedByPeer) if self.has_nothing_to_do() => ServingEnd::Idle,
                Err(why) => ServingEnd::Ended(why),
            },
            () = self.watch() => return ServingEnd::Idle,
            other = self.replacement(runtime) => return ServingEnd::Moved(other),
            renewed = self.renewed(runtime, outdated) => renewed,
        };
        match self.hand_over(runtime, connection, renewed).await {
            Ok(connection) => ServingEnd::Moved(connection),
            Err(why) => ServingEnd::Ended(why),
        }
    }

    fn has_nothing_to_do(&self) -> bool {
        self.outbox.len() == 0 && self.pending() == 0
    }

    fn handle(&self, frame: &Frame) -> Result<(), FrameError> {
        if self.suspended.load(Ordering::Relaxed) {
            self.heard.record_read();
            self.suspend(false);
        }
        match frame.kind {
            kind::REPLY => {
                let (number, reply) = wire::split::<u64>(&frame.body)?;
                self.complete(number, Outcome::Reply(reply));
            }
            kind::TOLD => {
                let ((number, depth), reply) = wire::split::<(u64, u8)>(&frame.body)?;
                self.complete(number, Outcome::Told { depth, reply });
            }
            kind::REFUSED => {
                let ((number, depth), _) = wire::split::<(u64, u8)>(&frame.body)?;
                self.complete(number, Outcome::Refused { depth });
            }
            kind::FAILURE => {
                let (number, failure) = wire::split::<u64>(&frame.body)?;
                let failure = postcard::from_bytes(&failure).unwrap_or(Failure::NoReply);
                self.complete(number, Outcome::Failed(failure));
            }
            kind::GO_AWAY => {
                self.peer_goes.store(true, Ordering::SeqCst);
                self.going.store(true, Ordering::SeqCst);
                self.outbox.seal(Some(wire::empty(kind::GONE_AWAY)));
                self.finish_if_idle();
            }
            kind::FENCE => {
                let (number, _) = wire::split::<u64>(&frame.body)?;
                // Where there is no room for it, the peer waits in vain, and not for long.
                let _ = self.outbox.push(wire::number_only(kind::FENCED, number));
            }
            // A pong has done its work by arriving; others are of a later minor version.
            _ => {}
        }
        Ok(())
    }

    /// Rule: what is longer than the peer takes fails alone: sent, it would cost all others their connection.
    fn refuse(&self, runtime: &LaneRuntime, outgoing: &Outgoing) {
        let limit = self.max_payload_bytes(runtime);
        match outgoing.as_call() {
            Some(header) => self.complete(header.number, Outcome::TooLarge { limit }),
            None => runtime
                .counters
                .count_too_large(&self.target.peer.name, limit),
        }
    }

    /// This node goes away: nothing new is sent, and the connection ends once every reply is here and every frame is out.
    pub(super) fn take_nothing_new(&self) {
        self.going.store(true, Ordering::SeqCst);
        self.outbox.seal(None);
        self.finish_if_idle();
    }

    /// Rule: the calling side closes, once it waits for nothing more. If the answering side did, what it has not read could
    /// reset the connection, and replies on their way with it.
    fn finish_if_idle(&self) {
        if self.going.load(Ordering::SeqCst) && self.pending() == 0 {
            self.outbox.finish();
        }
    }

    fn goes_away(&self) -> Unsent {
        self.settling("it goes away, and takes nothing new")
    }

    fn settling(&self, why: &str) -> Unsent {
        Unsent {
            error: self.not_sent(why),
            settling: true,
        }
    }

    /// The connection was idle, with nobody waiting for a reply: the next call dials again.
    fn retire(self: &Arc<Self>, runtime: &Arc<LaneRuntime>) {
        {
            let _state = self.broken();
            // It may have been closed meanwhile: then it stays so.
            let _ = self.status.compare_exchange(
                status::RUNNING,
                status::IDLE,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
        // What came in this very moment waits for the next connection.
        self.see_to_what_waits(runtime);
    }

    /// There is no connection, and none is dialled for what waits.
    fn end(self: &Arc<Self>, runtime: &Arc<LaneRuntime>, why: &str) {
        {
            let _state = self.broken();
            let _ = self.status.compare_exchange(
                status::RUNNING,
                status::BROKEN,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
        if self.peer_goes.load(Ordering::SeqCst) {
            self.give_up(runtime, why, true);
        } else if !self.target.contact.is_patient() {
            self.give_up(runtime, why, false);
        }
        self.see_to_what_waits(runtime);
    }

    fn not_sent(&self, why: &str) -> CallError {
        CallError::NotSent {
            node: self.target.peer.name.clone(),
            why: why.to_owned(),
        }
    }
}

/// How the serving of a connection ended.
enum ServingEnd {
    Ended(LaneError),
    /// It was closed with nobody waiting for it.
    Idle,
    /// This one has taken its place.
    Moved(Box<dyn Connection>),
}

/// Rule: however a lane's task ends, also by a panic, what waits for it fails, and the next call may dial again.
struct RunningLane<'a> {
    lane: &'a Arc<Lane>,
    runtime: &'a Arc<LaneRuntime>,
}

impl RunningLane<'_> {
    fn end(self, why: &str) {
        self.lane.end(self.runtime, why);
        std::mem::forget(self);
    }

    fn retire(self) {
        self.lane.retire(self.runtime);
        std::mem::forget(self);
    }
}

impl Drop for RunningLane<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(peer = %self.lane.target.peer.name, "the task of a data connection panicked");
        }
        self.lane.connected.store(false, Ordering::SeqCst);
        let unreached = Unreached::answered("the connection's task has ended");
        self.lane.fail_sent();
        self.lane.failed(&unreached);
        self.lane.look_over(self.runtime, Some(&unreached.why));
        self.lane.end(self.runtime, &unreached.why);
    }
}

/// A call that was sent. Dropping it cancels the call: if it was not started yet, it will not be.
#[derive(Debug)]
pub(crate) struct PendingCall {
    lane: Arc<Lane>,
    number: u64,
    receiver: oneshot::Receiver<Outcome>,
    done: bool,
}

impl PendingCall {
    /// What became of it.
    pub(crate) async fn outcome(&mut self) -> Outcome {
        let outcome = (&mut self.receiver).await.unwrap_or(Outcome::Lost);
        self.done = true;
        outcome
    }

    /// Takes it back; false where it may have been written.
    pub(crate) fn take_back(&mut self) -> bool {
        let back = self.lane.take_back(self.number) && self.lane.forget(self.number).is_some();
        self.done |= back;
        back
    }

    pub(crate) fn node(&self) -> &NodeName {
        &self.lane.target.peer.name
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if !self.done
            && self.lane.forget(self.number).is_some()
            && !self.lane.take_back(self.number)
        {
            // Where there is no room for it, the call is answered in vain.
            let _ = self
                .lane
                .outbox
                .push(wire::number_only(kind::CANCEL, self.number));
        }
    }
}
