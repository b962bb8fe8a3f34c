//! Casts that were accepted and certainly not written, and whose connection does not come about: they go on to whoever is to
//! have them by then.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keydispatch_core::ServiceInfo;
use keydispatch_core::message::Frame;
use tokio::time::Instant;

use super::DataPlane;
use super::contact::PATIENCE;
use super::wire::{CastHeader, Outgoing, kind};

/// First and longest pause between two looks at where they can go.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Casts that wait at once, and bytes of them: as much as one connection holds.
const MAX_CASTS: usize = 1 << 16;
const MAX_BYTES: usize = 128 * 1024 * 1024;

/// Those of one node.
#[derive(Debug, Default)]
pub(super) struct Onward(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// A task is at it, and may have some in its hands.
    at_work: bool,
}

#[derive(Debug)]
struct Waiting {
    cast: Outgoing,
    /// Rule: an accepted cast waits for so long and no longer. Where nobody takes it by then it is lost, and counted.
    until: Instant,
    /// Whom it goes to, where that is settled.
    by: Option<Arc<ServiceInfo>>,
}

impl Onward {
    /// True while some have found nobody yet.
    pub(super) fn is_at_work(&self) -> bool {
        self.lock().at_work
    }

    /// Takes what is there; the task ends where that is nothing.
    fn take(&self) -> VecDeque<Waiting> {
        let mut state = self.lock();
        state.at_work = !state.waiting.is_empty();
        state.bytes = 0;
        std::mem::take(&mut state.waiting)
    }

    /// Before those that came meanwhile.
    fn put_back(&self, left: VecDeque<Waiting>) {
        let mut state = self.lock();
        state.bytes += bytes(&left);
        let later = std::mem::replace(&mut state.waiting, left);
        state.waiting.extend(later);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(casts: &VecDeque<Waiting>) -> usize {
    casts.iter().map(|waiting| waiting.cast.bytes()).sum()
}

impl DataPlane {
    /// Casts that were not written; anything else among them is dropped.
    pub(super) fn send_on(self: &Arc<Self>, unwritten: impl IntoIterator<Item = Outgoing>) {
        let until = Instant::now() + PATIENCE;
        let (mut lost, mut begins) = (0, false);
        {
            let mut state = self.onward.lock();
            for cast in unwritten {
                if cast.frame.kind != kind::CAST {
                    continue;
                }
                let bytes = cast.bytes();
                if state.waiting.len() >= MAX_CASTS || state.bytes + bytes > MAX_BYTES {
                    lost += 1;
                    continue;
                }
                state.bytes += bytes;
                state.waiting.push_back(Waiting {
                    cast,
                    until,
                    by: None,
                });
            }
            if !state.waiting.is_empty() {
                begins = !std::mem::replace(&mut state.at_work, true);
            }
        }
        self.count_unsent(lost);
        if begins {
            self.spawn(Arc::clone(self).pass_them_on());
        }
    }

    async fn pass_them_on(self: Arc<Self>) {
        let mut pause = PAUSE.0;
        loop {
            let mut waiting = self.onward.take();
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
            self.count_unsent(lost);
            if waiting.is_empty() {
                continue;
            }
            if waiting.len() < before {
                pause = PAUSE.0;
            }
            self.onward.put_back(waiting);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn is_hopeless(&self, cast: &Outgoing) -> bool {
        let aim = cast.aim.as_ref();
        aim.is_none_or(|aim| aim.is_hopeless(&self.directory))
    }

    /// True where somebody has taken it.
    fn pass_on(self: &Arc<Self>, waiting: &mut Waiting) -> bool {
        let Waiting { cast, by, .. } = waiting;
        let (Some(aim), Some((header, start))) = (&cast.aim, cast.as_cast()) else {
            return false;
        };
        if !by
            .as_ref()
            .is_some_and(|by| aim.is_for(&self.directory, by))
        {
            *by = aim.now(&self.directory);
        }
        let Some(by) = by else {
            return false;
        };
        let is_here = {
            let ours = self.hello();
            by.id().nonce == ours.nonce && by.id().node == ours.node.name
        };
        if is_here {
            let message = joined(&start, &cast.rest);
            let taken = self.with_local(by.id().sequence, |mailbox| {
                mailbox.cast(message, header.format, None)
            });
            return taken == Some(true);
        }
        let Ok(lane) = self.lane_to(by) else {
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
        lane.send(self, redirected).is_ok()
    }

    /// Accepted casts were lost before they were written.
    pub(super) fn count_unsent(&self, casts: u64) {
        if casts == 0 {
            return;
        }
        let unsent = &self.counters.casts_unsent;
        let before = unsent.fetch_add(casts, Ordering::Relaxed);
        let all = before + casts;
        // Once for each doubling.
        if before.checked_ilog2() != Some(all.ilog2()) {
            tracing::warn!(
                casts_unsent = all,
                "casts were accepted and not sent: no connection came about in time, or nobody was there to take them"
            );
        }
    }
}

fn joined(start: &[u8], rest: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(start.len() + rest.len());
    whole.extend_from_slice(start);
    whole.extend_from_slice(rest);
    whole.freeze()
}
