//! A handle to one particular instance.

use std::sync::Arc;

use keydispatch_core::{NameError, ServiceId, ServiceInfo};

use super::ServiceHandle;
use crate::call::{CallError, CastError};
use crate::data::aim::To;
use crate::protocol::Protocol;
use crate::trace;
use crate::watch::services::ServiceEvent;

impl<P: Protocol> ServiceHandle<P> {
    /// One particular instance, whatever it owns.
    pub fn at(&self, id: ServiceId) -> InstanceHandle<P> {
        InstanceHandle {
            services: self.clone(),
            id,
        }
    }
}

/// One particular instance; see [`ServiceHandle::at`].
pub struct InstanceHandle<P: Protocol> {
    pub(super) services: ServiceHandle<P>,
    pub(super) id: ServiceId,
}

// Derived, it would ask the protocol to be `Clone`, which it need not be.
impl<P: Protocol> Clone for InstanceHandle<P> {
    fn clone(&self) -> Self {
        InstanceHandle {
            services: self.services.clone(),
            id: self.id.clone(),
        }
    }
}

impl<P: Protocol> std::fmt::Debug for InstanceHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceHandle")
            .field("type", &P::NAME)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> InstanceHandle<P> {
    /// The instance.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// Its entry, as long as there is one.
    pub fn info(&self) -> Option<Arc<ServiceInfo>> {
        self.services
            .look_at_all(|view| view.service(&self.id).cloned())
    }

    /// Calls it, in whatever state it is. The call is never sent to another instance: where this one has ended it fails, and
    /// has not run.
    pub async fn call(&self, message: P::Call) -> Result<P::Reply, CallError> {
        let info = self.required()?;
        let deadline = self.services.deadline();
        let call = self.services.call_one(&info, message, deadline);
        match trace::call(P::NAME, "call", None) {
            None => call.await,
            Some(span) => Box::pin(trace::within(span, call)).await,
        }
    }

    /// Sends it a message.
    pub fn cast(&self, message: P::Cast) -> Result<(), CastError<P::Cast>> {
        match self.required() {
            Ok(info) => {
                let to = To::Instance(Arc::clone(&info));
                self.services.channel.cast(&info, to, message)
            }
            Err(error) => Err(CastError { error, message }),
        }
    }

    /// Waits until it is not in the registry any more: it has ended, its node is down, or this node has stopped.
    pub async fn monitor(&self) -> Result<(), NameError> {
        let mut events = self.services.subscribe()?;
        loop {
            match events.next().await {
                Some(ServiceEvent::Current(view)) if view.service(&self.id).is_none() => break,
                Some(ServiceEvent::Left(info)) if info.id() == &self.id => break,
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    fn required(&self) -> Result<Arc<ServiceInfo>, CallError> {
        self.info().ok_or_else(|| CallError::NoInstance {
            id: self.id.clone(),
        })
    }
}
