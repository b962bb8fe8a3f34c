//! The task of one service: one message at a time, and an end that everybody hears of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keydispatch_core::Escaped;
use keydispatch_core::ServiceId;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::context::{Context, InfoTurn, Infos, Origin, OwnMessage};
use super::{BoxError, Ended, Service};
use crate::call::Failure;
use crate::claim::Life;
use crate::codec::{self, DecodeError};
use crate::data::lane_runtime::LaneRuntime;
use crate::data::local::Local;
use crate::data::mailbox::{Envelope, Payload, StopReason, queue};
use crate::data::reply::ReplyTo;
use crate::protocol::Protocol;
use crate::registry::Registry;
use crate::trace::{self, Parent};

/// How often an ending mailbox lets other threads go first that are about to put something in: one of them may be a task
/// of this very thread, which cannot.
const MAX_YIELDS: u32 = 1_000;

pub(super) struct Runner {
    pub(super) registry: Registry,
    pub(super) local: Arc<Local>,
    pub(super) runtime: Arc<LaneRuntime>,
    /// True once the service has ended, for the replies that it still owes.
    pub(super) flag: Arc<AtomicBool>,
    /// Over before anything of it is taken out.
    pub(super) life: Life,
    pub(super) ended: watch::Sender<Option<Ended>>,
}

/// Drops what still waits in the mailbox when it is dropped: its callers hear that it has not run.
struct Inbox<P: Protocol> {
    receiver: queue::Receiver<Envelope<P>>,
    id: ServiceId,
}

impl<P: Protocol> Drop for Inbox<P> {
    fn drop(&mut self) {
        self.receiver.close();
        let mut yields = 0;
        loop {
            match self.receiver.try_recv() {
                Ok(envelope) => drop(envelope),
                // Rule: nothing stays behind. A sender that has room and is about to use it needs a few instructions; what
                // it leaves here would wait, unanswered, until the last sender is gone.
                Err(TryRecvError::Empty) if yields < MAX_YIELDS => {
                    yields += 1;
                    std::thread::yield_now();
                }
                Err(_) => break,
            }
        }
    }
}

/// Takes a service out of everything when it ends, in whatever way.
struct ServiceEnding {
    runner: Runner,
    id: ServiceId,
    how: Option<Ended>,
}

impl Drop for ServiceEnding {
    fn drop(&mut self) {
        self.runner.flag.store(true, Ordering::Release);
        self.runner.life.end();
        self.runner.local.remove(self.id.sequence);
        self.runner.registry.remove_soon(&self.id);
        let how = self.how.unwrap_or(if std::thread::panicking() {
            tracing::error!(service = %self.id, "a service panicked, and has ended");
            Ended::Panicked
        } else {
            Ended::Aborted
        });
        self.runner.ended.send_replace(Some(how));
    }
}

impl Runner {
    pub(super) async fn run<S: Service>(
        self,
        service: S,
        id: ServiceId,
        receiver: queue::Receiver<Envelope<S::Protocol>>,
        started: oneshot::Sender<Result<(), BoxError>>,
    ) {
        // Dropped in the reverse order: first everybody knows that it has ended, then its state goes, then its mailbox.
        let mut inbox = Inbox {
            receiver,
            id: id.clone(),
        };
        let mut service = service;
        let flag = Arc::clone(&self.flag);
        let mut ending = ServiceEnding {
            runner: self,
            id: id.clone(),
            how: None,
        };
        let mut cx = Context::<S>::new(id, inbox.receiver.max_capacity());
        let outcome = service.started(&mut cx).await;
        let failed = outcome.is_err();
        if started.send(outcome).is_err() || failed {
            return;
        }
        let reason = ending
            .handle_all(&mut service, &mut cx, &mut inbox, &flag)
            .await;
        // The entry goes first, so that nobody finds a service that is stopping. A node that leaves waits for its end.
        ending.runner.life.end();
        let _counted = ending.runner.local.remove(ending.id.sequence);
        // It may have been removed by hand already.
        let _ = ending.runner.registry.remove_service(&ending.id).await;
        service.stopped(reason).await;
        ending.how = Some(Ended::Stopped(reason));
    }
}

enum NextTurn<S: Service> {
    Envelope(Option<Envelope<S::Protocol>>),
    Own(OwnMessage<S>),
}

/// Whose turn it is.
#[derive(Clone, Copy)]
enum MessageSource {
    Mailbox,
    Own,
    Infos,
}

impl MessageSource {
    const COUNT: usize = 3;

    fn next(self) -> Self {
        match self {
            MessageSource::Mailbox => MessageSource::Own,
            MessageSource::Own => MessageSource::Infos,
            MessageSource::Infos => MessageSource::Mailbox,
        }
    }
}

impl ServiceEnding {
    async fn handle_all<S: Service>(
        &self,
        service: &mut S,
        cx: &mut Context<S>,
        inbox: &mut Inbox<S::Protocol>,
        flag: &Arc<AtomicBool>,
    ) -> StopReason {
        let mut first = MessageSource::Infos;
        let mut stopping = None;
        loop {
            if let Some(reason) = cx.stop {
                return reason;
            }
            first = first.next();
            cx.from = None;
            let envelope = match self.next(cx, inbox, first, stopping.is_some()).await {
                NextTurn::Own(own) => {
                    handle_own(service, cx, own).await;
                    continue;
                }
                NextTurn::Envelope(Some(envelope)) => envelope,
                // Every sender is gone, or nothing is taken any more: nobody can ever send again.
                NextTurn::Envelope(None) => {
                    let reason = stopping.unwrap_or(StopReason::NodeStopped);
                    handle_the_rest(service, cx).await;
                    return cx.stop.unwrap_or(reason);
                }
            };
            match envelope {
                // Rule: what was taken is handled. Whoever comes now has the message back, and sends it elsewhere.
                Envelope::Stop(reason) => {
                    inbox.receiver.close();
                    stopping.get_or_insert(reason);
                }
                // Whoever waits for it may have gone.
                Envelope::Mark(reached) => drop(reached.send(())),
                Envelope::Cast {
                    message,
                    version,
                    caller,
                } => {
                    if let Some(message) = self.decode(message, inbox) {
                        let span = trace::handle(S::Protocol::NAME, "cast", &inbox.id, || {
                            Parent::of_cast(caller.as_ref().map(|caller| caller.peer()))
                        });
                        cx.from = Some(Origin { version, caller });
                        trace::handled(span, service.handle_cast(message, cx)).await;
                    }
                }
                Envelope::Call(mut waiting) => {
                    // Rule: a call whose time is over, or whose caller has gone, is not started.
                    if waiting.is_abandoned() {
                        continue;
                    }
                    let deadline = waiting.deadline;
                    let Some((message, route)) = waiting.open() else {
                        continue;
                    };
                    let here = waiting.take_span();
                    let span =
                        trace::handle(S::Protocol::NAME, "call", &inbox.id, || route.parent(here));
                    let version = <S::Protocol as Protocol>::VERSION;
                    if deadline <= Instant::now() {
                        route.fail(Failure::Expired, version, &inbox.id.node);
                        continue;
                    }
                    let call = match message {
                        Payload::Value(call) => call,
                        Payload::Encoded(bytes) => {
                            match codec::decode(<S::Protocol as Protocol>::CODEC, &bytes) {
                                Ok(call) => call,
                                Err(DecodeError(cause)) => {
                                    self.count_undecodable(&cause);
                                    let failure = Failure::Decode { cause };
                                    route.fail(failure, version, &inbox.id.node);
                                    continue;
                                }
                            }
                        }
                    };
                    cx.from = Some(Origin {
                        version: waiting.version,
                        caller: route.caller().map(Arc::clone),
                    });
                    let checked = self.runner.runtime.checked_limit();
                    let reply_to = ReplyTo::new::<S::Protocol>(route, Arc::clone(flag), checked)
                        .counted(inbox.receiver.load());
                    trace::handled(span, service.handle_call(call, reply_to, cx)).await;
                }
            }
        }
    }

    /// The mailbox, what the service tells itself, and what its tasks tell it take turns, so that none starves another.
    async fn next<S: Service>(
        &self,
        cx: &mut Context<S>,
        inbox: &mut Inbox<S::Protocol>,
        first: MessageSource,
        stopping: bool,
    ) -> NextTurn<S> {
        loop {
            if let Some(message) = cx.due() {
                cx.own.push_back(message);
            }
            if !cx.own.is_empty() || cx.infos.is_some() {
                let mut source = first;
                for _ in 0..MessageSource::COUNT {
                    let found = match source {
                        MessageSource::Mailbox => match inbox.receiver.try_recv() {
                            Ok(envelope) => Some(NextTurn::Envelope(Some(envelope))),
                            // Its own messages alone do not keep it.
                            Err(TryRecvError::Disconnected) if stopping => {
                                Some(NextTurn::Envelope(None))
                            }
                            Err(_) => None,
                        },
                        MessageSource::Own => cx.own.pop_front().map(NextTurn::Own),
                        MessageSource::Infos => {
                            let infos = cx.infos.as_mut();
                            let info = infos.and_then(|infos| infos.receiver.try_recv().ok());
                            info.map(|info| NextTurn::Own(OwnMessage::Info(info)))
                        }
                    };
                    if let Some(found) = found {
                        return found;
                    }
                    source = source.next();
                }
            }
            let at = cx.next_timer();
            if at.is_none() && cx.infos.is_none() {
                return NextTurn::Envelope(inbox.receiver.recv().await);
            }
            tokio::select! {
                biased;
                envelope = inbox.receiver.recv() => return NextTurn::Envelope(envelope),
                info = told(&mut cx.infos) => return NextTurn::Own(OwnMessage::Info(info)),
                () = until(at) => {}
            }
        }
    }

    fn decode<P: Protocol>(&self, message: Payload<P::Cast>, _: &Inbox<P>) -> Option<P::Cast> {
        match message {
            Payload::Value(message) => Some(message),
            Payload::Encoded(bytes) => match codec::decode(P::CODEC, &bytes) {
                Ok(message) => Some(message),
                Err(DecodeError(cause)) => {
                    self.count_undecodable(&cause);
                    None
                }
            },
        }
    }

    fn count_undecodable(&self, cause: &str) {
        let counters = &self.runner.runtime.counters;
        let times = counters.undecodable.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() {
            tracing::warn!(service = %self.id, cause = %Escaped(cause), times, "a message does not decode");
        }
    }
}

async fn handle_own<S: Service>(service: &mut S, cx: &mut Context<S>, own: OwnMessage<S>) {
    match own {
        OwnMessage::Cast(message) => service.handle_cast(message, cx).await,
        OwnMessage::Info(info) => info.handle(service, cx).await,
    }
}

/// What a service has told itself, and its tasks it, when its mailbox has run empty is handled; what comes then is not.
async fn handle_the_rest<S: Service>(service: &mut S, cx: &mut Context<S>) {
    if let Some(infos) = &mut cx.infos {
        while let Ok(info) = infos.receiver.try_recv() {
            cx.own.push_back(OwnMessage::Info(info));
        }
    }
    for _ in 0..cx.own.len() {
        if cx.stop.is_some() {
            return;
        }
        if let Some(own) = cx.own.pop_front() {
            handle_own(service, cx, own).await;
        }
    }
}

/// The next private message; never where nobody can send one.
async fn told<S: Service>(infos: &mut Option<Infos<S>>) -> Box<dyn InfoTurn<S>> {
    if let Some(infos) = infos
        && let Some(info) = infos.receiver.recv().await
    {
        return info;
    }
    std::future::pending().await
}

/// Waits until then; for ever where there is no then.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
