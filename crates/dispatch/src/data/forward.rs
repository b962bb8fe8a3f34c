//! Where casts that go on find somebody: on this node, or by the connection to another.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keydispatch_core::message::Frame;
use tokio::time::Instant;

use super::lane_runtime::LaneRuntime;
use super::local::Local;
use super::onward::WaitingCast;
use super::peers::Peers;
use super::wire::{CastHeader, Outgoing, kind};

/// First and longest pause between two looks at where they can go.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Begins with what waits. It keeps nothing of the node in memory, since the node's connections keep this.
pub(super) struct Forwarder {
    runtime: Weak<LaneRuntime>,
    local: Weak<Local>,
    peers: Weak<Peers>,
}

impl Forwarder {
    pub(super) fn new(runtime: &Arc<LaneRuntime>, local: &Arc<Local>, peers: &Arc<Peers>) -> Self {
        Forwarder {
            runtime: Arc::downgrade(runtime),
            local: Arc::downgrade(local),
            peers: Arc::downgrade(peers),
        }
    }

    /// Casts wait, and nobody is at them yet.
    pub(super) fn begin(&self) {
        let parts = (
            self.runtime.upgrade(),
            self.local.upgrade(),
            self.peers.upgrade(),
        );
        let (Some(runtime), Some(local), Some(peers)) = parts else {
            return;
        };
        let forwarding = Forwarding {
            runtime: Arc::clone(&runtime),
            local,
            peers,
        };
        runtime.spawn("casts that go on", forwarding.pass_them_on());
    }
}

/// The task that is at it, until nothing waits any more.
struct Forwarding {
    runtime: Arc<LaneRuntime>,
    local: Arc<Local>,
    peers: Arc<Peers>,
}

impl Forwarding {
    async fn pass_them_on(self) {
        let mut pause = PAUSE.0;
        loop {
            let mut waiting = self.runtime.onward.take();
            if waiting.is_empty() {
                return;
            }
            let (now, before) = (Instant::now(), waiting.len());
            let mut lost = 0;
            waiting.retain_mut(|waiting| {
                if self.pass_on(waiting) {
                    return false;
                }
                let waits = now < waiting.until && !self.is_hopeless(&waiting.cast);
                lost += u64::from(!waits);
                waits
            });
            self.runtime.counters.count_unsent(lost);
            if waiting.is_empty() {
                continue;
            }
            if waiting.len() < before {
                pause = PAUSE.0;
            }
            self.runtime.onward.put_back(waiting);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn is_hopeless(&self, cast: &Outgoing) -> bool {
        let aim = cast.aim.as_ref();
        aim.is_none_or(|aim| aim.is_hopeless(&self.runtime.directory))
    }

    /// True where somebody has taken it.
    fn pass_on(&self, waiting: &mut WaitingCast) -> bool {
        let WaitingCast { cast, by, .. } = waiting;
        let (Some(aim), Some((header, start))) = (&cast.aim, cast.as_cast()) else {
            return false;
        };
        if !by
            .as_ref()
            .is_some_and(|by| aim.is_for(&self.runtime.directory, by))
        {
            *by = aim.now(&self.runtime.directory);
        }
        let Some(by) = by else {
            return false;
        };
        let is_here = {
            let ours = self.runtime.hello();
            by.id().nonce == ours.nonce && by.id().node == ours.node.name
        };
        if is_here {
            let message = joined(&start, &cast.rest);
            let taken = self.local.with(by.id().sequence, |mailbox| {
                mailbox.cast(message, header.format, None)
            });
            return taken == Some(true);
        }
        let Ok(lane) = self.peers.lane_to(by) else {
            return false;
        };
        let header = CastHeader {
            sequence: by.id().sequence,
            ..header
        };
        let header = postcard::to_allocvec(&header).unwrap_or_default();
        let redirected = Outgoing {
            frame: Frame {
                kind: kind::CAST,
                body: joined(&header, &start),
            },
            rest: cast.rest.clone(),
            aim: cast.aim.clone(),
        };
        lane.send(&self.runtime, redirected).is_ok()
    }
}

fn joined(start: &[u8], rest: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(start.len() + rest.len());
    whole.extend_from_slice(start);
    whole.extend_from_slice(rest);
    whole.freeze()
}
