//! From a key to the instances that own it, and what happens to a call that one of them did not run.

use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::{Key, ServiceInfo, ServiceState, View};
use tokio::time::Instant;

use super::send::{Deadline, Failed, Tried};
use super::{Answer, ServiceHandle};
use crate::call::{CallError, CastError};
use crate::data::aim::{Copies, To};
use crate::protocol::Protocol;
use crate::trace;

/// First and longest pause before the same instance is asked again.
pub(super) const RETRY_PAUSE: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(500));

/// First and longest pause before the view is looked at again, where a change is on its way: nothing is sent meanwhile.
pub(super) const LOOK_PAUSE: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_millis(50));

/// How long a call waits for an owner where nobody is online but somebody drains: whoever takes over was there before the
/// other began to drain, and news of the two may come here in either order.
pub(super) const HANDOVER: Duration = Duration::from_millis(500);

/// Instances that may be asked one after the other without a pause.
const ASKED_AT_ONCE: usize = 8;

/// Pauses that grow.
pub(super) struct Pause {
    next: Duration,
    longest: Duration,
}

impl Pause {
    pub(super) fn new((next, longest): (Duration, Duration)) -> Self {
        Pause { next, longest }
    }

    /// Waits; false where that would take until the deadline, or beyond.
    pub(super) async fn wait(&mut self, deadline: Deadline) -> bool {
        // Callers that failed together do not come back together.
        let pause = self.next.mul_f64(rand::random_range(0.75..1.0));
        if Instant::now() + pause >= deadline.at {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.next = (self.next * 2).min(self.longest);
        true
    }
}

/// How a call is sent on.
struct Attempts {
    /// First where nothing is sent meanwhile, then where something is.
    pauses: (Pause, Pause),
    /// Until when who takes over may show.
    handover: Option<Instant>,
    /// Rule: while there are others to ask, a call waits for no connection. Once all were asked in vain, it does.
    waits: bool,
}

/// What can be done about a call that failed everywhere it may go.
enum Remedy {
    /// The view is about to name somebody else.
    Look,
    /// Ask the same ones again, soon: they are about to be reached, or to go.
    Again,
    /// Ask them again, after a longer pause: nothing was sent.
    Later,
    /// The same, at the expense of the budget: something was sent.
    Retry,
    None,
}

/// What a caller wants to know of who answered it.
pub(super) trait Who: Sized {
    /// What stands for whoever it was, where nobody wants to know.
    fn anyone() -> Option<Self>;

    fn named(by: Arc<ServiceInfo>) -> Self;
}

impl Who for () {
    fn anyone() -> Option<Self> {
        Some(())
    }

    fn named(_: Arc<ServiceInfo>) -> Self {}
}

impl Who for Arc<ServiceInfo> {
    fn anyone() -> Option<Self> {
        None
    }

    fn named(by: Arc<ServiceInfo>) -> Self {
        by
    }
}

impl<P: Protocol> ServiceHandle<P> {
    /// Reads the current view of those that take our messages, without a reference count.
    pub(super) fn look<T>(&self, read: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        self.look_at_all(|view| read(view.accepting(P::VERSION, P::CODEC)))
    }

    /// The same of all, whatever they take.
    pub(super) fn look_at_all<T>(&self, read: impl FnOnce(&View) -> Option<T>) -> Option<T> {
        let directory = self.channel.registry.directory();
        directory.read(P::NAME, |view| read(view))?
    }

    pub(super) fn owner(&self, key: Key) -> Option<Arc<ServiceInfo>> {
        self.look(|view| view.owner(key).cloned())
    }

    pub(super) fn owners(&self, key: Key, n: usize) -> Vec<Arc<ServiceInfo>> {
        let spread = self.options.spread;
        self.look(|view| {
            let owners = view.owners_spread(key, n, spread);
            Some(owners.into_iter().cloned().collect())
        })
        .unwrap_or_default()
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.options.timeout)
    }

    pub(super) fn nobody(&self) -> CallError {
        CallError::NoService {
            service_type: P::NAME.to_owned(),
        }
    }

    pub(super) fn unowned(&self, message: Option<P::Call>) -> Failed<P::Call> {
        Failed {
            error: self.nobody(),
            message,
            settling: false,
            tried: None,
        }
    }

    /// Calls the owner of a key, and whoever is to have the call where that one has not run it; within a span where somebody
    /// listens.
    pub(super) async fn call_owner<W: Who>(
        &self,
        key: Key,
        message: P::Call,
    ) -> Result<(P::Reply, W), CallError> {
        match trace::call(P::NAME, "call", Some(key.slot())) {
            None => self.call_owner_plainly(key, message).await,
            Some(span) => {
                Box::pin(trace::within(span, self.call_owner_plainly(key, message))).await
            }
        }
    }

    async fn call_owner_plainly<W: Who>(
        &self,
        key: Key,
        message: P::Call,
    ) -> Result<(P::Reply, W), CallError> {
        let deadline = self.deadline();
        if self.is_learning() {
            let answer = Box::pin(self.call_learning(key, message, deadline)).await?;
            return Ok((answer.reply, W::named(answer.by)));
        }
        self.budget.count_call();
        // A call that may be sent again whatever became of it keeps its message.
        let keep = self.options.idempotent;
        let mut message = Some(message);
        // Where the owner runs here, the call is sent while the view is looked at: its entry's reference count is shared
        // by all callers.
        let sent = self.look(|view| {
            let info = view.owner(key)?;
            let message = message.take()?;
            Some(match W::anyone() {
                Some(who) if !keep && self.channel.is_local(info) => {
                    Ok((who, self.channel.start_with(info, message, deadline)))
                }
                _ => Err((Arc::clone(info), message)),
            })
        });
        let result = match sent {
            Some(Ok((who, Ok(started)))) => {
                let finished = self.channel.finish(started, deadline).await;
                finished.map(|reply| (reply, who))
            }
            Some(Ok((_, Err(failed)))) => Err(failed),
            Some(Err((by, message))) => {
                let to = self.first_to(key);
                let called = self.channel.call(&by, to, message, keep, deadline).await;
                called.map(|reply| (reply, W::named(by)))
            }
            None => Err(self.unowned(message)),
        };
        match result {
            Ok(called) => Ok(called),
            Err(failed) => {
                let answer = Box::pin(self.send_on(key, failed, deadline)).await?;
                Ok((answer.reply, W::named(answer.by)))
            }
        }
    }

    /// Whom the first attempt of a call is for; none where it is not to wait for a connection, as others may be asked.
    pub(super) fn first_to(&self, key: Key) -> Option<To> {
        (self.options.fallback == 0).then_some(To::Owner(key))
    }

    /// Whom any of the owners that may be asked has it for.
    fn any_to(&self, key: Key) -> To {
        match self.options.fallback {
            0 => To::Owner(key),
            fallback => {
                let n = fallback.saturating_add(1);
                To::OneOf(Copies::new(key, n, self.options.spread))
            }
        }
    }

    /// Sends a call on that has failed, for as long as its deadline and the rules allow.
    ///
    /// Rule: what has not run goes to whoever owns the key by then, whatever the options say. Without it every planned change
    /// fails the calls that happen to be on their way.
    /// Rule: what may have run is sent again only where the caller said that it is idempotent.
    /// Rule: whoever was asked is asked again only at the expense of the retry budget, unless nothing is sent for it.
    /// Rule: whom no connection leads to is waited for, three seconds from the first dial that failed; beyond that only by a
    /// call that is idempotent.
    ///
    /// Boxed by its callers: a call that is answered at once does not carry its state.
    pub(super) async fn send_on(
        &self,
        key: Key,
        first: Failed<P::Call>,
        deadline: Deadline,
    ) -> Result<Answer<P::Reply>, CallError> {
        let mut failed = first;
        let mut asked = Vec::new();
        let mut attempts = Attempts {
            pauses: (Pause::new(LOOK_PAUSE), Pause::new(RETRY_PAUSE)),
            handover: None,
            waits: self.options.fallback == 0,
        };
        loop {
            asked.extend(failed.tried.take());
            let may_have_run = failed.error.may_have_run();
            let allowed =
                failed.error.goes_elsewhere() && (self.options.idempotent || !may_have_run);
            let Some(message) = failed.message.take().filter(|_| allowed) else {
                return Err(failed.error);
            };
            // What the view says does not change any more.
            if self.channel.runtime.is_closed() {
                return Err(if may_have_run {
                    failed.error
                } else {
                    CallError::NodeStopped
                });
            }
            let owners = self.owners(key, self.options.fallback.saturating_add(1));
            let next = owners.iter().find(|info| !asked.contains(&Tried::of(info)));
            if let Some(by) = next {
                if may_have_run && !self.withdraw() {
                    return Err(failed.error);
                }
                if asked.len() >= ASKED_AT_ONCE && !attempts.pauses.0.wait(deadline).await {
                    return Err(failed.error);
                }
                let keep = self.options.idempotent;
                let to = attempts.waits.then(|| self.any_to(key));
                failed = match self.channel.call(by, to, message, keep, deadline).await {
                    Ok(reply) => {
                        let by = Arc::clone(by);
                        return Ok(Answer { reply, by });
                    }
                    Err(failed) => failed,
                };
                continue;
            }
            if owners.is_empty() {
                failed.error = self.nobody();
                failed.settling = false;
            }
            let remedy = self.remedy(&failed.error, failed.settling, &mut attempts);
            let pauses = &mut attempts.pauses;
            let waited = match remedy {
                Remedy::None => false,
                Remedy::Look => pauses.0.wait(deadline).await,
                Remedy::Again => {
                    asked.clear();
                    pauses.0.wait(deadline).await
                }
                Remedy::Later => {
                    asked.clear();
                    pauses.1.wait(deadline).await
                }
                Remedy::Retry => {
                    asked.clear();
                    self.withdraw() && pauses.1.wait(deadline).await
                }
            };
            if !waited {
                return Err(failed.error);
            }
            failed.message = Some(message);
        }
    }

    /// What to do where everybody who owns the key was asked.
    fn remedy(&self, error: &CallError, settling: bool, attempts: &mut Attempts) -> Remedy {
        match error {
            _ if settling => Remedy::Again,
            // It is still listed, and cannot come back: its number is never given again.
            CallError::Gone { .. } => Remedy::Look,
            CallError::NoService { .. } if self.options.idempotent => Remedy::Look,
            CallError::NoService { .. } => {
                let now = Instant::now();
                let until = *attempts.handover.get_or_insert(now + HANDOVER);
                if now < until && self.somebody_drains() {
                    Remedy::Look
                } else {
                    Remedy::None
                }
            }
            CallError::NotSent { .. } if !attempts.waits => {
                attempts.waits = true;
                Remedy::Later
            }
            CallError::NotSent { .. } if self.options.idempotent => Remedy::Later,
            CallError::Overloaded { .. } | CallError::Disconnected { .. } | CallError::Stopped => {
                Remedy::Retry
            }
            _ => Remedy::None,
        }
    }

    /// Takes one retry out of the budget.
    pub(super) fn withdraw(&self) -> bool {
        let (percent, per_second) = self.options.retry_budget;
        self.budget.withdraw(percent, per_second)
    }

    fn somebody_drains(&self) -> bool {
        let drains = |info: &Arc<ServiceInfo>| info.state() == ServiceState::Draining;
        self.look(|view| Some(view.services().iter().any(drains)))
            .unwrap_or(false)
    }

    /// Calls one instance, and no other: asks again where that is free of harm.
    pub(super) async fn call_one(
        &self,
        info: &Arc<ServiceInfo>,
        message: P::Call,
        deadline: Deadline,
    ) -> Result<P::Reply, CallError> {
        self.budget.count_call();
        let mut message = message;
        let mut pauses = (Pause::new(LOOK_PAUSE), Pause::new(RETRY_PAUSE));
        loop {
            let to = Some(To::Instance(Arc::clone(info)));
            let failed = match self.channel.call(info, to, message, false, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            let Some(back) = failed.message else {
                return Err(failed.error);
            };
            let is_listed = || {
                self.look_at_all(|view| view.service(info.id()).map(|_| ()))
                    .is_some()
            };
            let waited = match &failed.error {
                _ if self.channel.runtime.is_closed() => false,
                // It will not come back, and nobody else is to have it.
                _ if failed.settling && !is_listed() => {
                    return Err(CallError::NoInstance {
                        id: info.id().clone(),
                    });
                }
                _ if failed.settling => pauses.0.wait(deadline).await,
                CallError::Overloaded { .. } => self.withdraw() && pauses.1.wait(deadline).await,
                _ => false,
            };
            if !waited {
                return Err(failed.error);
            }
            message = back;
        }
    }

    /// Casts to whoever owns the key: where the view has moved on meanwhile, to who owns it now.
    pub(super) fn cast_by_key(&self, key: Key, message: P::Cast) -> Result<(), CastError<P::Cast>> {
        let (mut message, mut asked) = (message, Vec::new());
        let mut error = self.nobody();
        loop {
            let owner = self
                .owner(key)
                .filter(|info| !asked.contains(&Tried::of(info)));
            let Some(info) = owner.filter(|_| asked.len() < ASKED_AT_ONCE) else {
                return Err(CastError { error, message });
            };
            match self.channel.cast(&info, To::Owner(key), message) {
                Ok(()) => return Ok(()),
                Err(back) => (error, message) = (back.error, back.message),
            }
            if !error.goes_elsewhere() {
                return Err(CastError { error, message });
            }
            asked.push(Tried::of(&info));
        }
    }

    /// Casts to the first `n` owners; those that take nothing any more are made up for by the next ones.
    pub(super) fn cast_to_many(&self, key: Key, n: usize, message: &P::Cast) -> usize {
        let (copies, mut accepted) = (Copies::new(key, n, self.options.spread), 0);
        while accepted < n
            && let Some(info) = copies.next(&self.owners(key, n))
        {
            let to = To::OneOf(Arc::clone(&copies));
            accepted += usize::from(self.channel.cast_copy(&info, to, message).is_ok());
        }
        accepted
    }

    /// Calls the first `n` owners at once. Who turns out to take nothing any more is made up for by the next owner.
    pub(super) async fn call_many(
        &self,
        key: Key,
        n: usize,
        message: &P::Call,
        deadline: Deadline,
    ) -> Vec<(Arc<ServiceInfo>, Result<P::Reply, CallError>)> {
        let mut results: Vec<(_, Result<P::Reply, CallError>)> = Vec::new();
        let (mut asked, mut gone) = (Vec::new(), Vec::new());
        let mut pause = Pause::new(LOOK_PAUSE);
        let copies = Copies::new(key, n, self.options.spread);
        let mut wave = self.owners(key, n);
        loop {
            let started: Vec<_> = wave
                .drain(..)
                .map(|info| {
                    self.budget.count_call();
                    asked.push(Tried::of(&info));
                    let to = Some(To::OneOf(Arc::clone(&copies)));
                    let call = self.channel.start(&info, to, message, deadline);
                    (info, call)
                })
                .collect();
            let enough = self.options.replies.enough(n);
            let replied = results.iter().filter(|(_, result)| result.is_ok()).count();
            let left = enough.map(|enough| enough.saturating_sub(replied));
            for (info, result) in self.finish_some(started, left, deadline).await {
                match result {
                    Ok(reply) => results.push((info, Ok(reply))),
                    Err(failed)
                        if failed.settling || matches!(failed.error, CallError::Gone { .. }) =>
                    {
                        gone.push((info, failed));
                    }
                    Err(failed) => results.push((info, Err(failed.error))),
                }
            }
            let replied = results.iter().filter(|(_, result)| result.is_ok()).count();
            if enough.is_some_and(|enough| replied >= enough) {
                return results;
            }
            // In the view's place of each of them there is, or soon will be, the next owner.
            loop {
                if gone.is_empty() || self.channel.runtime.is_closed() {
                    break;
                }
                let owners = self.owners(key, n);
                for (info, failed) in &gone {
                    let tried = Tried::of(info);
                    if failed.settling && owners.iter().any(|owner| Tried::of(owner) == tried) {
                        asked.retain(|other| *other != tried);
                    }
                }
                wave.extend(
                    owners
                        .iter()
                        .filter(|info| !asked.contains(&Tried::of(info)))
                        .take(gone.len())
                        .cloned(),
                );
                let listed = gone
                    .iter()
                    .any(|(info, _)| owners.iter().any(|owner| owner.id() == info.id()));
                if (wave.is_empty() && !listed) || !pause.wait(deadline).await {
                    wave.clear();
                    break;
                }
                if !wave.is_empty() {
                    break;
                }
            }
            if wave.is_empty() {
                let rest = gone
                    .drain(..)
                    .map(|(info, failed)| (info, Err(failed.error)));
                results.extend(rest);
                return results;
            }
            gone.drain(..wave.len());
        }
    }
}
