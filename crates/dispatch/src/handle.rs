//! Typed handles to the services of a protocol, wherever they run.

use std::sync::Arc;

use keydispatch_core::{Key, NameError, ServiceInfo, ServiceType, View};

use crate::call::{CallError, CallOptions, CastError};
use crate::protocol::Protocol;
use crate::registry::entry::{NoService, RegistryError};
use crate::trace;
use crate::watch::services::Subscription;

mod bounded;
mod budget;
mod copies;
pub(crate) mod instance;
pub(crate) mod keyed;
mod learnt;
mod route;
mod send;
pub(crate) mod ways;

use budget::RetryBudget;
use learnt::Learnt;
use send::Channel;
use ways::Ways;

/// Calls and casts the services of one protocol by key. Cheap to clone; made by
/// [`Node::services`](crate::Node::services).
///
/// It does not keep its node alive: once that has stopped, nothing is found any more.
pub struct ServiceHandle<P: Protocol> {
    channel: Channel<P>,
    options: CallOptions,
    /// Shared with the clones.
    budget: Arc<RetryBudget>,
    /// The same.
    learnt: Arc<Learnt>,
}

impl<P: Protocol> Clone for ServiceHandle<P> {
    fn clone(&self) -> Self {
        ServiceHandle {
            channel: self.channel.clone(),
            options: self.options,
            budget: Arc::clone(&self.budget),
            learnt: Arc::clone(&self.learnt),
        }
    }
}

impl<P: Protocol> std::fmt::Debug for ServiceHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceHandle")
            .field("type", &P::NAME)
            .field("node", self.channel.registry.node())
            .finish_non_exhaustive()
    }
}

/// A reply, and the instance that it came from; see [`ServiceHandle::call_answered`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<R> {
    /// The reply.
    pub reply: R,
    /// Who answered: the owner of the key, or with [`CallOptions::fallback`] or [`Routing::Bounded`](crate::Routing::Bounded)
    /// one of the next.
    pub by: Arc<ServiceInfo>,
}

impl<P: Protocol> ServiceHandle<P> {
    pub(crate) fn new(ways: &Ways) -> Self {
        ServiceHandle {
            channel: Channel::new(ways),
            options: CallOptions::default(),
            budget: Arc::default(),
            learnt: Arc::default(),
        }
    }

    /// The same handle with other options. It shares this one's retry budget.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use keydispatch::{CallOptions, Protocol, ServiceHandle};
    /// # fn example<P: Protocol>(uploaders: ServiceHandle<P>) {
    /// let once = uploaders.with(CallOptions::new().timeout(Duration::from_secs(1)));
    /// # }
    /// ```
    #[must_use]
    pub fn with(&self, options: CallOptions) -> Self {
        ServiceHandle {
            options,
            ..self.clone()
        }
    }

    /// The view at this moment, to look many keys up in: of the instances that take this caller's version; of all where
    /// none does.
    pub fn view(&self) -> Arc<View> {
        match self.channel.registry.view(P::NAME) {
            Some(view) => view.accepting_shared(P::VERSION, P::CODEC),
            None => {
                let service_type = ServiceType::try_new(P::NAME).unwrap_or_else(|_| nameless());
                Arc::new(View::empty(service_type))
            }
        }
    }

    /// The owner of a key, among the instances that take this caller's version. Where none does, the one that would own
    /// the key: calls to it are [`CallError::Incompatible`].
    pub fn find(&self, key: impl Into<Key>) -> Result<Arc<ServiceInfo>, NoService> {
        self.look(|view| view.owner(key).cloned())
            .ok_or_else(|| NoService {
                service_type: P::NAME.to_owned(),
            })
    }

    /// Sends a message to the owner of a key, and does not wait for anything: an error gives the message back.
    ///
    /// `Ok` says that it is on its way; whether it arrives is not known. Where the owner has just ended or takes nothing new,
    /// it goes to who owns the key then. So does one that waits for a connection; where nobody takes it within three seconds it
    /// is lost, and counted in [`DataStats::casts_unsent`](crate::DataStats::casts_unsent).
    pub fn cast(&self, key: impl Into<Key>, message: P::Cast) -> Result<(), CastError<P::Cast>> {
        self.cast_by_key(key.into(), message)
    }

    /// Calls the owner of a key, and waits for its reply: five seconds, unless [`with`](Self::with) said otherwise.
    ///
    /// A call that has not run, because its instance ended or takes nothing new, is sent on to whoever owns the key by then, as
    /// long as there is time. So is one that waits for a connection to its instance's node: up to three seconds of dials that
    /// fail, from when on calls to that node fail at once as [`CallError::NotSent`]. Where nobody owns the key it fails at once
    /// as [`CallError::NoService`]; where somebody drains, after at most half a second, in which news of who takes over may
    /// still come.
    ///
    /// Dropping the future cancels the call: if it was not started yet, it will not be.
    pub async fn call(&self, key: impl Into<Key>, message: P::Call) -> Result<P::Reply, CallError> {
        let called = self.call_owner::<()>(key.into(), message).await;
        called.map(|(reply, ())| reply)
    }

    /// As [`call`](Self::call), and says who answered.
    pub async fn call_answered(
        &self,
        key: impl Into<Key>,
        message: P::Call,
    ) -> Result<Answer<P::Reply>, CallError> {
        let (reply, by) = self.call_owner(key.into(), message).await?;
        Ok(Answer { reply, by })
    }

    /// Sends a message to the first `n` owners of a key; returns how many it was accepted for.
    pub fn multi_cast(&self, key: impl Into<Key>, n: usize, message: P::Cast) -> usize {
        self.cast_to_many(key.into(), n, &message)
    }

    /// Calls the first `n` owners of a key at once, and waits for all, or for as many replies as
    /// [`CallOptions::replies`] says: each result that came beside the instance it is of. All have one deadline; the calls that
    /// are not waited for any more are cancelled.
    ///
    /// An instance that has just ended, or takes nothing new, is made up for by the next owner.
    pub async fn multi_call(
        &self,
        key: impl Into<Key>,
        n: usize,
        message: P::Call,
    ) -> Vec<(Arc<ServiceInfo>, Result<P::Reply, CallError>)> {
        let (key, deadline) = (key.into(), self.deadline());
        match trace::call(P::NAME, "multi_call", Some(key.slot())) {
            None => self.call_many(key, n, &message, deadline).await,
            Some(span) => {
                let calls = async { Ok(self.call_many(key, n, &message, deadline).await) };
                Box::pin(trace::within(span, calls))
                    .await
                    .unwrap_or_default()
            }
        }
    }

    /// Waits until at least so many instances are online here, of whatever version: an error once the node has stopped, as
    /// none ever will be.
    pub async fn wait_online(&self, instances: usize) -> Result<(), RegistryError> {
        let mut events = self.subscribe()?;
        loop {
            let online = self.look_at_all(|view| Some(view.online_count()));
            if online.unwrap_or(0) >= instances {
                return Ok(());
            }
            if events.next().await.is_none() {
                return Err(RegistryError::NodeStopped);
            }
        }
    }

    /// The services that join, leave or change; see [`Registry::subscribe`](crate::Registry::subscribe).
    pub fn subscribe(&self) -> Result<Subscription, NameError> {
        self.channel.registry.subscribe(P::NAME)
    }
}

fn nameless() -> ServiceType {
    ServiceType::try_new("nameless").expect("a name")
}
