//! Calls by what their handle has learnt: of load, where routing is bounded, and of latencies, where calls are hedged.

use std::sync::{Arc, MutexGuard};

use keydispatch_core::route::{
    self, Ask, Choice, HotKeys, MAX_OWNERS, MAX_REFUSALS, OwnerCandidate, OwnerStanding,
};
use keydispatch_core::{Instant as Since, Key, Routing, ServiceInfo};
use tokio::time::Instant;

use super::send::{Bound, Deadline, Failed, Tried};
use super::{Answer, ServiceHandle};
use crate::call::CallError;
use crate::data::aim::{Copies, To};
use crate::mutex::Mutex;
use crate::protocol::Protocol;

/// The message of a call that goes to one instance after the other.
enum CarriedMessage<'a, M> {
    /// It goes with the call.
    Own(M),
    /// It stays, as it may be sent to two at once. Behind a lock, as a message need not be `Sync`, and the future of a call is
    /// `Send` all the same.
    Kept(&'a Mutex<M>),
}

/// What came of a call: who answered, or what is needed to send it on.
type Called<P> = Result<Answer<<P as Protocol>::Reply>, Failed<<P as Protocol>::Call>>;

/// The instances that a call was sent to.
type Asked = Mutex<Vec<(Tried, OwnerStanding)>>;

impl<P: Protocol> ServiceHandle<P> {
    fn routing(&self) -> Routing {
        self.options.routing.unwrap_or(P::ROUTING)
    }

    fn is_hedging(&self) -> bool {
        self.options.hedges && self.options.idempotent
    }

    /// True where a call is made by what was learnt.
    pub(super) fn is_learning(&self) -> bool {
        self.routing() != Routing::Owner || self.is_hedging()
    }

    /// Calls whom the routing says, and another one beside it where that takes long. What fails for another reason than load
    /// goes on as any call does.
    pub(super) async fn call_learning(
        &self,
        key: Key,
        message: P::Call,
        deadline: Deadline,
    ) -> Result<Answer<P::Reply>, CallError> {
        self.budget.count_call();
        let asked = Asked::default();
        let result = if self.is_hedging() {
            let message = Mutex::new(message);
            let result = self.call_hedged(key, &message, &asked, deadline).await;
            result.map_err(|failed| Failed {
                message: Some(message.into_inner()),
                ..failed
            })
        } else {
            self.walk(key, CarriedMessage::Own(message), &asked, deadline)
                .await
        };
        match result {
            Ok(answer) => Ok(answer),
            Err(failed) => self.send_on(key, failed, deadline).await,
        }
    }

    /// The owners of a key that a call may go to.
    fn candidates(&self, key: Key) -> Vec<Arc<ServiceInfo>> {
        let routing = self.routing();
        let now = self.channel.peers.hints.clock();
        let owners = match routing {
            // The second is for whoever hedges.
            Routing::Owner => 2,
            Routing::Bounded { .. } => self.learnt.hot(|hot| hot.owners(routing, key.hash(), now)),
        };
        self.owners(key, owners.min(MAX_OWNERS))
    }

    fn known(&self, owners: &[Arc<ServiceInfo>], asked: &Asked) -> Vec<OwnerCandidate> {
        let asked = asked.lock();
        let channel = &self.channel;
        let zone = self.channel.registry.zone();
        let zone = zone.filter(|_| self.options.zone_first);
        owners
            .iter()
            .map(|info| {
                let tried = Tried::of(info);
                let before = asked.iter().rev().find(|(other, _)| *other == tried);
                let standing = match before {
                    Some((_, standing)) => *standing,
                    None if channel.peers.is_out(info) => OwnerStanding::Out,
                    None => OwnerStanding::Open,
                };
                OwnerCandidate {
                    hint: channel.hint_of(info),
                    standing,
                    near: zone.is_some_and(|zone| info.zone() == Some(zone.as_str())),
                }
            })
            .collect()
    }

    /// Asks one owner after the other until one takes the call, at most three.
    ///
    /// Rule: a refusal is a retry inside the budget; where that is used up, nobody may refuse.
    /// Rule: whoever cannot take the call for another reason counts as having refused it, at nobody's expense: it has not run.
    async fn walk(
        &self,
        key: Key,
        message: CarriedMessage<'_, P::Call>,
        asked: &Asked,
        deadline: Deadline,
    ) -> Result<Answer<P::Reply>, Failed<P::Call>> {
        let routing = self.routing();
        let (percent, per_second) = self.options.retry_budget;
        let mut owned = self.candidates(key);
        if routing == Routing::Owner {
            owned.truncate(1);
        }
        let (mut message, mut refusals) = (message, 0);
        loop {
            let has = refusals < MAX_REFUSALS && self.budget.has(percent, per_second);
            let ask = Ask {
                refusals,
                most_refusals: if has { MAX_REFUSALS } else { 0 },
                now: self.channel.peers.hints.clock(),
                draw: rand::random(),
            };
            let known = self.known(&owned, asked);
            let choice = route::next(routing, &known, ask);
            let is_forced = choice.is_some_and(|choice| choice.refuse_at.is_none());
            if is_forced && self.has_more(key, &mut owned, asked, ask.now) {
                continue;
            }
            let Some(Choice { at, refuse_at }) = choice else {
                return Err(self.unowned(match message {
                    CarriedMessage::Own(message) => Some(message),
                    CarriedMessage::Kept(_) => None,
                }));
            };
            if routing != Routing::Owner {
                self.learnt.hot(|hot| match refuse_at {
                    Some(_) if refusals == 0 => hot.asked(key.hash(), ask.now),
                    None if refusals > 0 => hot.unplaced(key.hash(), ask.now),
                    _ => {}
                });
            }
            let by = &owned[at];
            self.stand(asked, by, OwnerStanding::Out);
            // Rule: while there are others to ask, a call waits for no connection.
            let (bound, to) = match (routing, refuse_at) {
                (Routing::Owner, _) => (Bound::None, self.first_to(key)),
                (_, Some(refuse_at)) => (Bound::Refusable(refuse_at), None),
                (_, None) => {
                    let copies = Copies::new(key, owned.len(), self.options.spread);
                    (Bound::Told, Some(To::OneOf(copies)))
                }
            };
            let mut failed = match self.hand(by, to, message, deadline, bound).await {
                Ok(reply) => {
                    let by = Arc::clone(by);
                    return Ok(Answer { reply, by });
                }
                Err(failed) => failed,
            };
            let may_go_on = refuse_at.is_some()
                && failed.0.error.goes_elsewhere()
                && !failed.0.error.may_have_run();
            message = match failed.1.take() {
                Some(message) if may_go_on => message,
                Some(CarriedMessage::Own(message)) => {
                    failed.0.message = Some(message);
                    return Err(failed.0);
                }
                _ => return Err(failed.0),
            };
            if matches!(failed.0.error, CallError::Overloaded { .. }) {
                self.stand(asked, by, OwnerStanding::Refused);
                // There was one; another call may have taken it meanwhile.
                let _ = self.withdraw();
                refusals += 1;
            }
        }
    }

    /// Gives a call that nobody may refuse more owners, where those it has are crowded: true where there are.
    fn has_more(
        &self,
        key: Key,
        owned: &mut Vec<Arc<ServiceInfo>>,
        asked: &Asked,
        now: Since,
    ) -> bool {
        let (routing, few) = (self.routing(), owned.len());
        if routing == Routing::Owner || few >= MAX_OWNERS {
            return false;
        }
        let more = self.owners(key, MAX_OWNERS.min(few * 2));
        if !route::is_crowded(routing, &self.known(&more, asked), few, now) {
            return false;
        }
        let hot = |hot: &mut HotKeys| hot.crowded(routing, key.hash(), now);
        let owners = self.learnt.hot(hot);
        if owners > few {
            *owned = self.owners(key, owners.min(MAX_OWNERS));
        }
        owned.len() > few
    }

    /// Hands the message to one instance, and gives it back where it is still there.
    async fn hand<'a>(
        &self,
        by: &Arc<ServiceInfo>,
        to: Option<To>,
        message: CarriedMessage<'a, P::Call>,
        deadline: Deadline,
        bound: Bound,
    ) -> Result<P::Reply, (Failed<P::Call>, Option<CarriedMessage<'a, P::Call>>)> {
        match message {
            CarriedMessage::Own(message) => {
                let keep = self.options.idempotent;
                let called = self
                    .channel
                    .call_bounded(by, to, message, keep, deadline, bound);
                called.await.map_err(|mut failed| {
                    let back = failed.message.take().map(CarriedMessage::Own);
                    (failed, back)
                })
            }
            CarriedMessage::Kept(message) => {
                let started = self
                    .channel
                    .start_bounded(by, to, &locked(message), deadline, bound);
                let result = match started {
                    Ok(started) => self.channel.finish(started, deadline).await,
                    Err(failed) => Err(failed),
                };
                result.map_err(|failed| (failed, Some(CarriedMessage::Kept(message))))
            }
        }
    }

    fn stand(&self, asked: &Asked, by: &ServiceInfo, standing: OwnerStanding) {
        let mut asked = asked.lock();
        asked.push((Tried::of(by), standing));
    }

    /// Makes a call, and where that takes longer than most did, another one beside it. The first reply counts; dropping the
    /// other call cancels it.
    async fn call_hedged(
        &self,
        key: Key,
        message: &Mutex<P::Call>,
        asked: &Asked,
        deadline: Deadline,
    ) -> Result<Answer<P::Reply>, Failed<P::Call>> {
        let began = Instant::now();
        let first = self.walk(key, CarriedMessage::Kept(message), asked, deadline);
        let mut first = std::pin::pin!(first);
        let after = self.learnt.latencies(|latencies| latencies.p95());
        let in_time = match after {
            Some(after) => tokio::time::timeout(after, &mut first).await.ok(),
            None => Some((&mut first).await),
        };
        let result = match in_time {
            Some(result) => result,
            None => match self.hedge(key, message, asked, deadline) {
                None => first.await,
                Some(second) => {
                    let mut second = std::pin::pin!(second);
                    // Who fails leaves it to the other.
                    tokio::select! {
                        result = &mut first => match result {
                            Ok(answer) => Ok(answer),
                            Err(failed) => second.await.map_err(|_| failed),
                        },
                        result = &mut second => match result {
                            Ok(answer) => Ok(answer),
                            Err(_) => first.await,
                        },
                    }
                }
            },
        };
        if result.is_ok() {
            let took = began.elapsed();
            self.learnt.latencies(|latencies| latencies.record(took));
        }
        result
    }

    /// The call beside the first; none where nobody is left, or the budget is used up.
    fn hedge(
        &self,
        key: Key,
        message: &Mutex<P::Call>,
        asked: &Asked,
        deadline: Deadline,
    ) -> Option<impl Future<Output = Called<P>>> {
        let owners = self.candidates(key);
        let now = self.channel.peers.hints.clock();
        let at = route::hedge(self.routing(), &self.known(&owners, asked), now)?;
        if !self.withdraw() {
            return None;
        }
        let by = Arc::clone(&owners[at]);
        self.stand(asked, &by, OwnerStanding::Out);
        let bound = match self.routing() {
            Routing::Owner => Bound::None,
            Routing::Bounded { .. } => Bound::Told,
        };
        let started = self
            .channel
            .start_bounded(&by, None, &locked(message), deadline, bound);
        Some(async move {
            let reply = match started {
                Ok(started) => self.channel.finish(started, deadline).await?,
                Err(failed) => return Err(failed),
            };
            Ok(Answer { reply, by })
        })
    }
}

fn locked<M>(message: &Mutex<M>) -> MutexGuard<'_, M> {
    message.lock()
}
