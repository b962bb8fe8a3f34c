//! What waits while there is no connection: how long, and what becomes of it then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keydispatch_core::Escaped;
use tokio::time::Instant;

use super::pending::Waiting;
use super::{BACK_OFF, Broken, Lane, Outcome, SILENT_BACK_OFF, status};
use crate::data::aim::Aim;
use crate::data::lane_runtime::LaneRuntime;
use crate::data::reach::{Earlier, Unreached, reach};
use crate::data::wire::{Outgoing, kind};
use crate::transport::Connection;

/// How often it is looked at who is to have what waits, while a dial hangs.
const LOOK_OVER: Duration = Duration::from_millis(100);

impl Lane {
    /// A connection, or why there is none. What waits for it leaves when others are to have it.
    pub(super) async fn connect(
        &self,
        runtime: &Arc<LaneRuntime>,
    ) -> Result<Box<dyn Connection>, Unreached> {
        self.pause_is_over().await;
        let mut reaching = std::pin::pin!(reach(&self.target, runtime, Earlier::End));
        loop {
            tokio::select! {
                reached = &mut reaching => return reached,
                () = tokio::time::sleep(LOOK_OVER) => self.look_over(runtime, None),
            }
        }
    }

    pub(super) fn pauses(&self, broken: &Broken) -> bool {
        let now = Instant::now();
        let heard = |since| self.target.contact.heard_since(since);
        let passes = now >= broken.at + BACK_OFF.0 && broken.silent_since.is_some_and(heard);
        now < broken.until && !passes
    }

    async fn pause_is_over(&self) {
        loop {
            let pauses = {
                let broken = self.broken();
                self.pauses(&broken).then_some(broken.until)
            };
            let Some(until) = pauses else {
                return;
            };
            // The peer's first word may end it before.
            tokio::time::sleep_until(until.min(Instant::now() + BACK_OFF.0)).await;
        }
    }

    /// There is no connection any more, or again none.
    pub(super) fn failed(&self, unreached: &Unreached) {
        if self.suspended.load(Ordering::SeqCst) {
            let silent = Instant::now().checked_sub(self.heard.since());
            self.target
                .contact
                .unreached(silent.unwrap_or_else(Instant::now));
        }
        {
            let mut broken = self.broken();
            let pause = BACK_OFF.0 * 2_u32.saturating_pow(broken.failures.min(10));
            // Whoever waits is not kept waiting for long once it can be reached.
            let longest = if unreached.silent || self.target.contact.is_patient() {
                SILENT_BACK_OFF
            } else {
                BACK_OFF.1
            };
            broken.failures = broken.failures.saturating_add(1);
            broken.at = Instant::now();
            broken.until = broken.at + pause.min(longest);
            broken.why = unreached.why.as_str().into();
            broken.silent_since = unreached.silent.then(|| self.target.contact.now());
            self.suspend(false);
        }
        tracing::debug!(peer = %self.target.peer.name, why = %Escaped(&unreached.why), "no data connection");
    }

    /// True where it is dialled again for what waits.
    pub(super) fn goes_on(&self, runtime: &Arc<LaneRuntime>, why: &str) -> bool {
        if self.status.load(Ordering::SeqCst) != status::RUNNING
            || self.peer_goes.load(Ordering::SeqCst)
        {
            return false;
        }
        self.look_over(runtime, Some(why));
        self.target.contact.is_patient() && self.outbox.has_new()
    }

    /// Rule: what waits here, and is to be had by others by now, leaves. Without that a call whose key has moved to who can be
    /// reached waits for who cannot. Calls that are not to wait fail where no connection has come about, which `failed` says.
    pub(super) fn look_over(&self, runtime: &Arc<LaneRuntime>, failed: Option<&str>) {
        // Many may be for one service whose entry has to be searched for: that is done once.
        let mut listed = HashMap::new();
        let mut is_still_for = |outgoing: &Outgoing, sequence| {
            let is = |aim: &Aim| aim.is(&runtime.directory, &self.target.peer, sequence);
            outgoing.aim.as_ref().map(|aim| match aim.is_for_one() {
                true => *listed.entry(sequence).or_insert_with(|| is(aim)),
                false => is(aim),
            })
        };
        let leaving = self.outbox.take_out(|outgoing| match outgoing.frame.kind {
            kind if kind::is_call(kind) => outgoing.as_call().is_some_and(|header| {
                self.waits_for(header.number)
                    && is_still_for(outgoing, header.sequence).unwrap_or(failed.is_none())
            }),
            kind::CAST => outgoing
                .as_cast()
                .is_none_or(|(header, _)| is_still_for(outgoing, header.sequence).unwrap_or(true)),
            // What stood for a call that was taken back.
            kind::PONG => false,
            _ => true,
        });
        let why: Arc<str> = failed.unwrap_or("others are to have it").into();
        self.fail_or_send_on(runtime, leaving, &why, None);
    }

    /// Nothing waits any more. `settling` where views and connections are about to agree again: then casts go on, too, and
    /// what is for this peer still may come back.
    pub(super) fn give_up(&self, runtime: &Arc<LaneRuntime>, why: &str, settling: bool) {
        let left = self.outbox.drain();
        self.fail_or_send_on(runtime, left, &why.into(), Some(settling));
    }

    fn fail_or_send_on(
        &self,
        runtime: &Arc<LaneRuntime>,
        unwritten: Vec<Outgoing>,
        why: &Arc<str>,
        settling: Option<bool>,
    ) {
        if unwritten.is_empty() {
            return;
        }
        for outgoing in &unwritten {
            if let Some(header) = outgoing.as_call() {
                // With an aim, it is for others by now.
                let settling = settling.unwrap_or(outgoing.aim.is_some());
                let why = Arc::clone(why);
                self.complete(header.number, Outcome::NotSent { why, settling });
            }
        }
        if settling == Some(false) {
            let casts = unwritten
                .iter()
                .filter(|outgoing| outgoing.frame.kind == kind::CAST);
            runtime.counters.count_unsent(casts.count() as u64);
        } else {
            runtime.send_on(unwritten);
        }
    }

    /// Membership says that the node is down: all pending calls to it fail at once. Returns what was not written.
    pub(in crate::data) fn close(&self) -> Vec<Outgoing> {
        self.status.store(status::CLOSED, Ordering::SeqCst);
        self.outbox.close();
        let left = self.outbox.drain();
        let why: Arc<str> = super::DOWN.into();
        for header in left.iter().filter_map(Outgoing::as_call) {
            let (why, settling) = (Arc::clone(&why), true);
            self.complete(header.number, Outcome::NotSent { why, settling });
        }
        self.fail_all();
        left
    }

    /// Calls that went out have no reply to wait for any more. Those that still wait here have not gone out.
    pub(super) fn fail_sent(&self) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        let unsent = self.outbox.calls();
        let lost: Vec<Waiting> = {
            let mut pending = self.lock();
            let numbers = pending.numbers();
            let sent = numbers.filter(|number| !unsent.contains(number));
            let sent: Vec<u64> = sent.collect();
            sent.into_iter()
                .filter_map(|number| pending.remove(number))
                .collect()
        };
        Self::lose(lost);
        self.finish_if_idle();
    }

    /// All calls have no reply to wait for any more, wherever they are.
    pub(super) fn fail_all(&self) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        let lost: Vec<Waiting> = self.lock().calls.drain().collect();
        Self::lose(lost);
        self.finish_if_idle();
    }

    fn lose(lost: Vec<Waiting>) {
        for waiting in lost {
            // The caller may have gone.
            let _ = waiting.sender.send(Outcome::Lost);
        }
    }

    /// Takes a call back whose time is over; false where it may have been written.
    pub(super) fn take_back(&self, number: u64) -> bool {
        // Where there is a connection it is written by now, or about to be.
        !self.connected.load(Ordering::SeqCst) && self.outbox.take_back(number)
    }
}
