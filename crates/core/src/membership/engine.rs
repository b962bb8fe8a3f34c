//! The SWIM engine `foca`, with what it needs around it: its timers, its members' places, and when its dead may be forgotten.
//!
//! [`Engine::run`] lets it do something. What comes of that is taken by [`Engine::next_notification`] and
//! [`Engine::next_packet`], and then [`Engine::keep_timers`] is called, before it is let do anything else. Nothing here knows
//! the rules around it.

use std::collections::BTreeMap;

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Foca, Member, NoCustomBroadcast, OwnedNotification, PostcardCodec, State,
    Timer,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::identity::{Identity, MemberKey};
use super::places::Places;
use crate::time::Instant;

pub(super) type Swim = Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>;
pub(super) type Runtime = AccumulatingRuntime<Identity>;

/// See the module.
pub(super) struct Engine {
    pub(super) swim: Swim,
    runtime: Runtime,
    places: Places,
    /// Which engine a timer belongs to: those of earlier ones are void.
    instance: u64,
    timers: BTreeMap<(Instant, u64), (u64, Timer<Identity>)>,
    timer_sequence: u64,
    /// When a dead member may be forgotten, one row a name.
    removals: BTreeMap<MemberKey, (Instant, Identity)>,
}

impl Engine {
    pub(super) fn new(config: foca::Config, me: &Identity, rng: &mut StdRng) -> Self {
        Engine {
            swim: swim(config, me, rng),
            runtime: Runtime::new(),
            places: Places::default(),
            instance: 0,
            timers: BTreeMap::new(),
            timer_sequence: 0,
            removals: BTreeMap::new(),
        }
    }

    /// Begins anew, and knows nobody; timers of before are void.
    pub(super) fn restart(&mut self, config: foca::Config, me: &Identity, rng: &mut StdRng) {
        self.instance += 1;
        self.timers.clear();
        self.removals.clear();
        self.runtime = Runtime::new();
        self.swim = swim(config, me, rng);
    }

    /// Which one it is: counted up by each restart.
    pub(super) fn instance(&self) -> u64 {
        self.instance
    }

    /// Lets it do something.
    pub(super) fn run(
        &mut self,
        operation: impl FnOnce(&mut Swim, &mut Runtime) -> Result<(), foca::Error>,
    ) {
        if let Err(error) = operation(&mut self.swim, &mut self.runtime) {
            tracing::debug!(%error, "the membership engine");
        }
    }

    pub(super) fn next_notification(&mut self) -> Option<OwnedNotification<Identity>> {
        self.runtime.to_notify()
    }

    pub(super) fn next_packet(&mut self) -> Option<(Identity, Bytes)> {
        self.runtime.to_send()
    }

    /// Keeps the timers that it asked for.
    pub(super) fn keep_timers(&mut self, now: Instant) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            let at = now + after;
            if let Timer::RemoveDown(identity) = timer {
                self.removals.insert(identity.key(), (at, identity));
            } else {
                self.timer_sequence += 1;
                self.timers
                    .insert((at, self.timer_sequence), (self.instance, timer));
            }
        }
    }

    /// All members, in whatever state.
    pub(super) fn members(&self) -> impl ExactSizeIterator<Item = &Member<Identity>> {
        self.swim.iter_membership_state()
    }

    pub(super) fn member(&self, key: MemberKey) -> Option<&Member<Identity>> {
        self.places.find(key, || self.swim.iter_membership_state())
    }

    /// True where its own probe of that member failed, and the suspicion was not refuted.
    pub(super) fn has_failed_probe(&self, known: &Member<Identity>) -> bool {
        let failed = |timer: &Timer<Identity>| match timer {
            Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } => member_id == known.id() && *incarnation == known.incarnation(),
            _ => false,
        };
        known.state() == State::Suspect
            && self
                .timers
                .values()
                .any(|(instance, timer)| *instance == self.instance && failed(timer))
    }

    /// When the next timer is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    /// The next timer that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer<Identity>> {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                return None;
            }
            let (instance, timer) = entry.remove();
            if instance == self.instance {
                return Some(timer);
            }
        }
        None
    }

    /// Gives suspects whose time is over until `later`.
    pub(super) fn postpone_deaths(&mut self, now: Instant, later: Instant) {
        let due: Vec<(Instant, u64)> = self
            .timers
            .range(..=(now, u64::MAX))
            .filter(|(_, (_, timer))| matches!(timer, Timer::ChangeSuspectToDown { .. }))
            .map(|(at, _)| *at)
            .collect();
        for at in due {
            if let Some(timer) = self.timers.remove(&at) {
                self.timers.insert((later, at.1), timer);
            }
        }
    }

    /// The dead that may be forgotten.
    pub(super) fn due_removals(&self, now: Instant) -> Vec<Identity> {
        let due = self.removals.values().filter(|(at, _)| *at <= now);
        due.map(|(_, identity)| identity.clone()).collect()
    }

    /// The one of the dead that may be forgotten first.
    pub(super) fn oldest_dead(&self) -> Option<Identity> {
        let oldest = self.removals.values().min_by_key(|(at, _)| *at);
        oldest.map(|(_, identity)| identity.clone())
    }

    /// Forgets one of the dead.
    pub(super) fn forget(&mut self, identity: Identity) {
        self.removals.remove(&identity.key());
        self.run(|swim, runtime| swim.handle_timer(Timer::RemoveDown(identity), runtime));
    }

    /// Nothing happens by itself any more.
    pub(super) fn stop(&mut self) {
        self.timers.clear();
    }
}

fn swim(config: foca::Config, me: &Identity, rng: &mut StdRng) -> Swim {
    Foca::new(
        me.clone(),
        config,
        StdRng::seed_from_u64(rng.random()),
        PostcardCodec,
    )
}
