//! The calling side of one data connection: dialled when first needed, suspended when silent, never on a caller's path.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::keepalive::PING_AFTER;
use keydispatch_core::message::{Address, Frame};
use keydispatch_core::{NodeId, NodeName};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::contact::Contact;
use super::outbox::{Outbox, Rejected};
use super::pump::{self, Reading, Terms};
use super::reach::{Target, Unreached};
use super::wire::{self, Outgoing, kind};
use super::{DataPlane, Heard};
use crate::backlog::Share;
use crate::call::{CallError, Failure, Unsent};
use crate::transport::Connection;

mod pending;
mod renew;
mod stuck;
mod waiting;

use pending::Pending;

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

/// What became of a call, as far as the connection knows.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Bytes),
    /// The same, with what waits there.
    Told {
        depth: u8,
        reply: Bytes,
    },
    /// It was refused by what waits there: it has not run.
    Refused {
        depth: u8,
    },
    Failed(Failure),
    /// The connection broke after the call was sent.
    Lost,
    /// The call did not get out.
    NotSent {
        why: Arc<str>,
        /// True where views and connections are about to agree again.
        settling: bool,
    },
    /// Nor did this one, and never will: the peer takes at most so many bytes.
    TooLarge {
        limit: usize,
    },
}

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
    heard: Heard,
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
            heard: Heard::default(),
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

    /// The longest payload that both sides take, in bytes, as far as the peer has said.
    pub(crate) fn max_payload_bytes(&self, plane: &DataPlane) -> usize {
        self.target
            .contact
            .max_payload_bytes(plane.max_payload_bytes)
    }

    /// Sends a call; the receiver gets exactly one outcome. Where there is no connection it waits for one that is about to be
    /// dialled, or fails at once.
    pub(crate) fn call(
        self: &Arc<Self>,
        plane: &Arc<DataPlane>,
        waits: bool,
        encode: impl FnOnce(u64) -> Result<Outgoing, CallError>,
    ) -> Result<PendingCall, Unsent> {
        self.ensure(plane, waits)?;
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
        self.push(plane, frame)?;
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
        plane: &Arc<DataPlane>,
        frame: impl Into<Outgoing>,
    ) -> Result<(), Unsent> {
        self.ensure(plane, true)?;
        self.push(plane, frame)
    }

    fn push(
        self: &Arc<Self>,
        plane: &Arc<DataPlane>,
        frame: impl Into<Outgoing>,
    ) -> Result<(), Unsent> {
        self.outbox.push(frame).map_err(|rejected| match rejected {
            Rejected::Full => Unsent::from(CallError::Overloaded {
                node: self.target.peer.name.clone(),
            }),
            Rejected::Closed => self.settling(DOWN),
            Rejected::Sealed => self.goes_away(),
        })?;
        // The connection may have ended since it was looked at: then this frame was either failed with the others, or
        // waits for the next connection.
        self.see_to_what_waits(plane);
        Ok(())
    }

    /// Rule: whoever queues a frame looks afterwards whether a task is there for it, and a task that ends looks afterwards
    /// whether something was queued. One of the two sees the other.
    fn see_to_what_waits(self: &Arc<Self>, plane: &Arc<DataPlane>) {
        if self.status.load(Ordering::SeqCst) == status::RUNNING || !self.outbox.has_new() {
            return;
        }
        if let Err(unsent) = self.ensure(plane, true) {
            self.give_up(plane, &unsent.error.to_string(), unsent.settling);
        }
    }

    /// Sees to it that there is a connection, or will be soon; what does not wait goes without where there was none just now.
    fn ensure(self: &Arc<Self>, plane: &Arc<DataPlane>, waits: bool) -> Result<(), Unsent> {
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
                plane.spawn(Arc::clone(self).run(Arc::clone(plane)));
                Ok(())
            }
        }
    }

    fn broken(&self) -> MutexGuard<'_, Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection after the other, as long as it is needed: those that take the place of one that is stuck, and those
    /// that are dialled again for what waits.
    async fn run(self: Arc<Self>, plane: Arc<DataPlane>) {
        let running = Running {
            lane: &self,
            plane: &plane,
        };
        loop {
            let dialled = Instant::now();
            let unreached = match self.connect(&plane).await {
                Ok(connection) => {
                    let connected = Instant::now();
                    let Some(why) = self.serve_on(connection, &plane).await else {
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
            if !self.goes_on(&plane, &unreached.why) {
                return running.end(&unreached.why);
            }
        }
    }

    /// Serves a connection and those that take its place; returns why the last of them broke, or none where it ended with
    /// nobody waiting for it.
    async fn serve_on(
        self: &Arc<Self>,
        mut connection: Box<dyn Connection>,
        plane: &Arc<DataPlane>,
    ) -> Option<String> {
        loop {
            self.connected.store(true, Ordering::SeqCst);
            let served = self.serve(connection, plane).await;
            self.connected.store(false, Ordering::SeqCst);
            match served {
                Served::Ended(why) => return Some(why),
                Served::Idle => return None,
                Served::Moved(other) => connection = other,
            }
        }
    }

    async fn serve(
        self: &Arc<Self>,
        mut connection: Box<dyn Connection>,
        plane: &Arc<DataPlane>,
    ) -> Served {
        connection.set_frame_limit(wire::max_frame_bytes(plane.max_payload_bytes));
        self.heard.now();
        let outdated = connection.outdated();
        let serving = pump::pump(
            &mut *connection,
            &self.outbox,
            &self.heard,
            Terms {
                reading: Reading::Always,
                // What was queued before the peer had said what it takes.
                frame_limit: wire::max_frame_bytes(self.max_payload_bytes(plane)),
            },
            |frame| self.handle(&frame),
            |frame| self.refuse(plane, &frame),
        );
        let renewed = tokio::select! {
            ended = serving => return match ended {
                Ok(()) if self.going.load(Ordering::Relaxed) => {
                    self.read_to_the_end(connection).await;
                    Served::Idle
                }
                Ok(()) => Served::Ended(DOWN.to_owned()),
                // Nobody waits, and nothing was lost: it was idle for the peer.
                Err(why) if why == pump::CLOSED_BY_PEER && self.has_nothing_to_do() => Served::Idle,
                Err(why) => Served::Ended(why),
            },
            () = self.watch() => return Served::Idle,
            other = self.replacement(plane) => return Served::Moved(other),
            renewed = self.renewed(plane, outdated) => renewed,
        };
        match self.hand_over(plane, connection, renewed).await {
            Ok(connection) => Served::Moved(connection),
            Err(why) => Served::Ended(why),
        }
    }

    fn has_nothing_to_do(&self) -> bool {
        self.outbox.len() == 0 && self.pending() == 0
    }

    fn handle(&self, frame: &Frame) -> Result<(), String> {
        if self.suspended.load(Ordering::Relaxed) {
            self.heard.now();
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
    fn refuse(&self, plane: &DataPlane, outgoing: &Outgoing) {
        let limit = self.max_payload_bytes(plane);
        match outgoing.as_call() {
            Some(header) => self.complete(header.number, Outcome::TooLarge { limit }),
            None => plane.count_too_large(&self.target.peer.name, limit),
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
    fn retire(self: &Arc<Self>, plane: &Arc<DataPlane>) {
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
        self.see_to_what_waits(plane);
    }

    /// There is no connection, and none is dialled for what waits.
    fn end(self: &Arc<Self>, plane: &Arc<DataPlane>, why: &str) {
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
            self.give_up(plane, why, true);
        } else if !self.target.contact.is_patient() {
            self.give_up(plane, why, false);
        }
        self.see_to_what_waits(plane);
    }

    fn not_sent(&self, why: &str) -> CallError {
        CallError::NotSent {
            node: self.target.peer.name.clone(),
            why: why.to_owned(),
        }
    }
}

/// How the serving of a connection ended.
enum Served {
    Ended(String),
    /// It was closed with nobody waiting for it.
    Idle,
    /// This one has taken its place.
    Moved(Box<dyn Connection>),
}

/// Rule: however a lane's task ends, also by a panic, what waits for it fails, and the next call may dial again.
struct Running<'a> {
    lane: &'a Arc<Lane>,
    plane: &'a Arc<DataPlane>,
}

impl Running<'_> {
    fn end(self, why: &str) {
        self.lane.end(self.plane, why);
        std::mem::forget(self);
    }

    fn retire(self) {
        self.lane.retire(self.plane);
        std::mem::forget(self);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(peer = %self.lane.target.peer.name, "the task of a data connection panicked");
        }
        self.lane.connected.store(false, Ordering::SeqCst);
        let unreached = Unreached::answered("the connection's task has ended");
        self.lane.fail_sent();
        self.lane.failed(&unreached);
        self.lane.look_over(self.plane, Some(&unreached.why));
        self.lane.end(self.plane, &unreached.why);
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
