//! A connection that says nothing: suspended, and replaced where the peer is heard elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keydispatch_core::Escaped;
use keydispatch_core::keepalive::{Keepalive, KeepaliveAction, PING_AFTER};

use super::{BACK_OFF, Lane};
use crate::data::lane_runtime::LaneRuntime;
use crate::data::reach::{Earlier, reach};
use crate::data::wire::{self, kind};
use crate::transport::Connection;

/// Rule: a suspended connection whose peer was heard on the control connection within this time is stuck, as TCP is after
/// losing packets in a row, which then tries again seconds later. Another one is dialled, and takes its place.
const HEARD_ELSEWHERE: Duration = Duration::from_millis(250);

/// A connection without traffic is closed after this long.
const IDLE: Duration = Duration::from_secs(120);

impl Lane {
    /// Another connection beside one that is stuck. By then nothing is heard on that one, nobody waits for it, and what it
    /// has not delivered is lost: the peer handles nothing of it once this one is used, so that order holds.
    pub(super) async fn replacement(&self, runtime: &Arc<LaneRuntime>) -> Box<dyn Connection> {
        loop {
            self.turns(true).await;
            // Rule: a peer of minor version 0 would handle both. There the connection is waited for.
            if !self.target.contact.replaces() {
                self.turns(false).await;
                continue;
            }
            let found = async {
                loop {
                    self.target.contact.heard_within(HEARD_ELSEWHERE).await;
                    match reach(&self.target, runtime, Earlier::End).await {
                        Ok(connection) => return connection,
                        Err(unreached) => {
                            tracing::debug!(peer = %self.target.peer.name, why = %Escaped(&unreached.why), "no second data connection");
                        }
                    }
                    tokio::time::sleep(BACK_OFF.0).await;
                }
            };
            tokio::select! {
                // It has recovered by itself.
                () = self.turns(false) => {}
                connection = found => {
                    // Calls that came just when it was suspended: whether they went out is not known.
                    self.fail_all();
                    if self.suspend(false) {
                        tracing::debug!(peer = %self.target.peer.name, "a second data connection takes the place of the first");
                        return connection;
                    }
                }
            }
        }
    }

    /// Waits until it is suspended, or is not.
    async fn turns(&self, suspended: bool) {
        loop {
            let mut turned = std::pin::pin!(self.turned.notified());
            // From here on nothing is missed.
            turned.as_mut().enable();
            if self.suspended.load(Ordering::SeqCst) == suspended {
                return;
            }
            turned.await;
        }
    }

    /// Suspends it, or no more; true where that is a change.
    pub(super) fn suspend(&self, suspended: bool) -> bool {
        let changed = self.suspended.swap(suspended, Ordering::SeqCst) != suspended;
        if changed {
            self.turned.notify_waiters();
        }
        changed
    }

    /// The connection has lasted.
    fn lasts(&self) {
        self.broken().failures = 0;
        self.target.contact.reached();
    }

    /// Rule: suspension is local, and over with the first byte that is heard. Ends when the connection has been idle
    /// for long.
    pub(super) async fn watch(&self) {
        let mut watch = Keepalive::new(self.heard.clock());
        let mut lasted = false;
        loop {
            tokio::time::sleep(PING_AFTER).await;
            if !std::mem::replace(&mut lasted, true) {
                self.lasts();
            }
            let now = self.heard.clock();
            let found = watch.look(now, self.heard.last_read(), self.pending() > 0);
            match found {
                KeepaliveAction::ProcessPaused => {
                    self.heard.record_read();
                }
                // What is heard may be a part of a frame.
                KeepaliveAction::Heard => {
                    self.suspend(false);
                }
                KeepaliveAction::Idle => {
                    if self.heard.idle() >= IDLE && self.outbox.len() == 0 {
                        return;
                    }
                }
                KeepaliveAction::Ping | KeepaliveAction::Suspend => {
                    if found == KeepaliveAction::Suspend && self.suspend(true) {
                        let silent = now.since(self.heard.last_read());
                        tracing::warn!(peer = %self.target.peer.name, ?silent, "a peer is silent: calls to it fail at once");
                        // What is still queued may go out when the peer is back, so it counts as sent.
                        self.fail_all();
                    }
                    // Nobody waits for room here: a full queue is busy enough.
                    let _ = self.outbox.push(wire::empty(kind::PING));
                }
            }
        }
    }
}
