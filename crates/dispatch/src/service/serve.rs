//! How a service is started, and what whoever started it has in hand.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keydispatch_core::limits::DEFAULT_MAILBOX_BYTES;
use keydispatch_core::{NameError, ServiceId, ServiceInfo};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use super::current::{self, Current};
use super::host::Host;
use super::options::ServeOptions;
use super::runner::Runner;
use super::{BoxError, Ended, Service};
use crate::claim::Life;
use crate::data::mailbox::{AnyMailbox, Mailbox, StopReason, queue};
use crate::deadline;
use crate::drain;
use crate::protocol::Protocol;
use crate::registry::entry::RegistryError;
use crate::registry::registration::Registration;

/// Messages that wait for a service unless [`ServeOptions::mailbox`] says otherwise.
pub const DEFAULT_MAILBOX: usize = 1_024;

/// Why a service was not started.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Its `started` failed.
    #[error("the service did not start: {0}")]
    Start(BoxError),
    /// It ended while it was starting: by a panic, or because the node stopped.
    #[error("the service ended while it was starting")]
    EndedEarly,
    /// It cannot be registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

keydispatch_core::debug_as_display!(ServeError, StopError);

/// Why a service was not stopped.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// Its own handler asked for it, and would have waited for itself. Nothing was done.
    #[error(
        "the service {id} was to be stopped by its own handler, which would wait for itself: use Context::stop there"
    )]
    OwnHandler {
        /// The service.
        id: ServiceId,
    },
    /// It had more to do than [`drain_timeout`](crate::NodeBuilder::drain_timeout) allows, and was ended as it was.
    #[error("the service {id} was not done in time, and was ended as it was")]
    Unfinished {
        /// The service.
        id: ServiceId,
    },
}

impl StopError {
    pub(crate) fn check(id: &ServiceId) -> Result<(), StopError> {
        if current::is(id) {
            return Err(StopError::OwnHandler { id: id.clone() });
        }
        Ok(())
    }
}

/// A service that runs on this node.
///
/// Dropping it changes nothing: the service runs until it is stopped, panics, or its node ends.
pub struct Served<P: Protocol> {
    info: Arc<ServiceInfo>,
    host: Host,
    mailbox: Arc<dyn AnyMailbox>,
    ended: watch::Receiver<Option<Ended>>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

impl<P: Protocol> Served<P> {
    pub(crate) fn new(
        info: Arc<ServiceInfo>,
        host: &Host,
        mailbox: Arc<dyn AnyMailbox>,
        ended: watch::Receiver<Option<Ended>>,
    ) -> Self {
        Served {
            info,
            host: host.clone(),
            mailbox,
            ended,
            protocol: std::marker::PhantomData,
        }
    }

    /// The instance.
    pub fn id(&self) -> &ServiceId {
        self.info.id()
    }

    /// Its entry as it was registered.
    pub fn info(&self) -> &Arc<ServiceInfo> {
        &self.info
    }

    /// Its entry, to disable, drain, or change it.
    pub fn registration(&self) -> Registration {
        Registration::new(self.host.registry.clone(), &self.info)
    }

    /// Stops it, and loses no call by that: it gives up its keys, and once every node that is up knows, it takes nothing new,
    /// handles what it was sent by then, leaves the registry, and its `stopped` runs. Returns when that is done, whatever
    /// becomes of this future meanwhile.
    ///
    /// # Errors
    ///
    /// From its own handler, at once and with nothing done: it would wait for itself. [`Context::stop`](crate::Context::stop) is what a handler
    /// ends its service with. [`StopError::Unfinished`] where it was not done within
    /// [`drain_timeout`](crate::NodeBuilder::drain_timeout), and was ended as it was.
    pub async fn stop(&self) -> Result<(), StopError> {
        StopError::check(self.info.id())?;
        let until = deadline::after(self.host.runtime.drain_timeout());
        let host = self.host.clone();
        let (id, mailbox, mut ended) = (
            self.info.id().clone(),
            Arc::clone(&self.mailbox),
            self.ended.clone(),
        );
        let (in_time, stopped) = oneshot::channel();
        self.host.local.spawn_service(async move {
            drain::take_keys_of(&host.registry, &host.runtime, &host.callers, &id, until).await;
            if mailbox.keyed().is_some() {
                // R14: it is gone once it has nothing any more.
                drain::states_given(&host.registry, Some(id.sequence), until).await;
            }
            mailbox.stop(StopReason::Stopped);
            let ends = ended.wait_for(Option::is_some);
            let is_in_time = tokio::time::timeout_at(until, ends).await.is_ok();
            if !is_in_time {
                host.local.abort_service(id.sequence);
            }
            // Nobody may wait for it any more.
            let _ = in_time.send(is_in_time);
        });
        match stopped.await {
            Ok(false) => Err(StopError::Unfinished {
                id: self.info.id().clone(),
            }),
            Ok(true) => Ok(()),
            Err(_) => {
                // What it ran on has ended, and the service with it.
                self.ended().await;
                Ok(())
            }
        }
    }

    /// Waits until it has ended, and says how.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Ended::Aborted),
            Err(_) => Ended::Aborted,
        }
    }
}

impl<P: Protocol> fmt::Debug for Served<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("id", self.info.id())
            .finish_non_exhaustive()
    }
}

/// Starts a service and registers it. Dropped half-way, neither runs nor is listed what it started.
pub(crate) async fn serve<S: Service>(
    host: &Host,
    options: ServeOptions,
    service: S,
) -> Result<Served<S::Protocol>, ServeError> {
    let registry = &host.registry;
    let sequence = registry.next_sequence();
    let capacity = options.mailbox.unwrap_or(DEFAULT_MAILBOX);
    let max_bytes = options.mailbox_bytes.unwrap_or(DEFAULT_MAILBOX_BYTES);
    let entry = options.into_entry::<S::Protocol>(sequence, registry.zone())?;
    let id = ServiceId {
        node: registry.node().clone(),
        nonce: registry.nonce(),
        sequence,
    };
    let (sender, receiver) = queue::channel(capacity, max_bytes, host.runtime.own_share());
    let mailbox = Mailbox { sender };
    let (started, start) = oneshot::channel();
    let (ended_sender, ended) = watch::channel(None);
    let flag = Arc::new(AtomicBool::new(false));
    let life = Life::default();
    let runner = Runner {
        registry: registry.clone(),
        local: Arc::clone(&host.local),
        runtime: Arc::clone(&host.runtime),
        flag: Arc::clone(&flag),
        life: life.clone(),
        ended: ended_sender,
    };
    let current = Current::of(&id);
    let running = runner.run(service, id, receiver, started);
    let task = host
        .local
        .spawn_service(current::turns(current, Arc::clone(&flag), running));
    let unfinished = AbortUnlessDone::new(task.clone());
    match start.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(ServeError::Start(error)),
        Err(_) => return Err(ServeError::EndedEarly),
    }
    host.local
        .add(sequence, Arc::new(mailbox.clone()), task, flag);
    if life.is_over() {
        // It ended before it was put in, and found nothing to take out.
        host.local.remove(sequence);
    }
    // It may end while this waits, and whoever serves it may give up: see `claim` for what keeps the order.
    let info = registry.add_entry(entry, &life).await?;
    unfinished.done();
    Ok(Served::new(info, host, Arc::new(mailbox), ended))
}

/// Ends a service whose start was given up.
pub(crate) struct AbortUnlessDone(Option<AbortHandle>);

impl AbortUnlessDone {
    pub(crate) fn new(task: AbortHandle) -> Self {
        AbortUnlessDone(Some(task))
    }

    pub(crate) fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortUnlessDone {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
