//! Subscriptions: the current view, then what changes; a slow reader is told that it lagged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keydispatch_core::{Directory, RegistryEvent, ServiceInfo, ServiceType, View};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// Events that a subscriber may be behind before it is told that it lagged.
const BACKLOG: usize = 1_024;

/// What a subscriber of a service type is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ServiceEvent {
    /// All services of the type at this moment. Comes first, and again after [`Lagged`](Self::Lagged).
    Current(Arc<View>),
    /// A service joined.
    Joined(Arc<ServiceInfo>),
    /// A service left; this was its last version.
    Left(Arc<ServiceInfo>),
    /// A service changed its state, weight or metadata.
    Updated {
        /// Its version before.
        before: Arc<ServiceInfo>,
        /// Its version now.
        after: Arc<ServiceInfo>,
    },
    /// The subscriber was too slow, and so many events were dropped. The next one is
    /// [`Current`](Self::Current): nothing else is needed to catch up.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// An event, and the version of the view that it led to.
#[derive(Clone, Debug)]
struct Versioned {
    version: u64,
    event: RegistryEvent,
}

/// The subscribers of one node, by type.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_type: Mutex<HashMap<ServiceType, broadcast::Sender<Versioned>>>,
}

impl Watchers {
    pub(crate) fn subscribe(
        &self,
        service_type: ServiceType,
        directory: Arc<Directory>,
    ) -> Subscription {
        let mut by_type = self.by_type.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = by_type
            .entry(service_type.clone())
            .or_insert_with(|| broadcast::channel(BACKLOG).0)
            .subscribe();
        Subscription {
            service_type,
            directory,
            receiver,
            seen: 0,
            catch_up: true,
        }
    }

    /// Tells the subscribers of one change; the view is in the directory already.
    pub(crate) fn publish(&self, directory: &Directory, event: RegistryEvent) {
        let mut by_type = self.by_type.lock().unwrap_or_else(PoisonError::into_inner);
        if by_type.is_empty() {
            return;
        }
        let service_type = event.service_type().clone();
        if let Some(sender) = by_type.get(&service_type) {
            let version = directory
                .view(service_type.as_str())
                .map_or(u64::MAX, |view| view.version());
            if sender.send(Versioned { version, event }).is_err() {
                by_type.remove(&service_type);
            }
        }
    }

    /// The node has stopped: every subscription ends after what it has not read yet.
    pub(crate) fn close(&self) {
        self.by_type
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// A subscription to one service type; see [`Registry::subscribe`](crate::Registry::subscribe).
#[derive(Debug)]
pub struct Subscription {
    service_type: ServiceType,
    directory: Arc<Directory>,
    receiver: broadcast::Receiver<Versioned>,
    /// The version of the last view that was handed out: what led to it is not told again.
    seen: u64,
    catch_up: bool,
}

impl Subscription {
    /// The next event; none once the node has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<ServiceEvent> {
        loop {
            if let Some(current) = self.current() {
                return Some(current);
            }
            match self.receiver.recv().await {
                Ok(event) => {
                    if let Some(event) = self.judge(event) {
                        return Some(event);
                    }
                }
                Err(RecvError::Lagged(missed)) => {
                    self.catch_up = true;
                    return Some(ServiceEvent::Lagged { missed });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<ServiceEvent> {
        loop {
            if let Some(current) = self.current() {
                return Some(current);
            }
            match self.receiver.try_recv() {
                Ok(event) => {
                    if let Some(event) = self.judge(event) {
                        return Some(event);
                    }
                }
                Err(TryRecvError::Lagged(missed)) => {
                    self.catch_up = true;
                    return Some(ServiceEvent::Lagged { missed });
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    fn current(&mut self) -> Option<ServiceEvent> {
        if !std::mem::take(&mut self.catch_up) {
            return None;
        }
        // What waits led to this view, or to one after it: nobody has to wade through it.
        self.receiver = self.receiver.resubscribe();
        let view = self
            .directory
            .view(self.service_type.as_str())
            .unwrap_or_else(|| Arc::new(View::empty(self.service_type.clone())));
        self.seen = view.version();
        Some(ServiceEvent::Current(view))
    }

    fn judge(&self, event: Versioned) -> Option<ServiceEvent> {
        if event.version <= self.seen {
            return None;
        }
        Some(match event.event {
            RegistryEvent::Joined(info) => ServiceEvent::Joined(info),
            RegistryEvent::Left(info) => ServiceEvent::Left(info),
            RegistryEvent::Updated { before, after } => ServiceEvent::Updated { before, after },
        })
    }
}
