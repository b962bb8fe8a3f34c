//! Subscriptions: the current view, then what changes; a slow reader is told that it lagged.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use keydispatch_core::{Directory, RegistryEvent, ServiceInfo, ServiceType, View};

use crate::fanout::{Bounds, Fanout, Heard, Reader, Weigh};

/// Events that a subscriber may be behind before it is told that it lagged. An entry is bounded, and shared.
const BACKLOG: Bounds = Bounds {
    messages: 1_024,
    bytes: usize::MAX,
};

/// The same for who is told of all types: a large batch is one change.
const BACKLOG_OF_ALL: Bounds = Bounds {
    messages: 65_536,
    bytes: usize::MAX,
};

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

impl Weigh for Versioned {}

/// The subscribers of one node, by type.
#[derive(Debug)]
pub(crate) struct Watchers {
    by_type: Fanout<ServiceType, Versioned>,
    of_all: Fanout<(), Versioned>,
}

impl Default for Watchers {
    fn default() -> Self {
        Watchers {
            by_type: Fanout::new(BACKLOG),
            of_all: Fanout::new(BACKLOG_OF_ALL),
        }
    }
}

impl Watchers {
    pub(crate) fn subscribe(
        &self,
        service_type: ServiceType,
        directory: Arc<Directory>,
    ) -> Subscription {
        Subscription {
            reader: self.by_type.subscribe(service_type.clone()),
            service_type,
            directory,
            seen: 0,
            catch_up: true,
        }
    }

    pub(crate) fn subscribe_all(&self, directory: Arc<Directory>) -> AllSubscription {
        AllSubscription {
            reader: self.of_all.subscribe(()),
            directory,
        }
    }

    /// Tells the subscribers of one change, which led to the view of that version; it is in the directory already.
    pub(crate) fn publish(&self, event: RegistryEvent, version: u64) {
        self.of_all.publish(&(), None, || Versioned {
            version,
            event: event.clone(),
        });
        // Shares the name, or copies its few bytes: the event itself moves.
        let service_type = event.service_type().clone();
        self.by_type
            .publish(&service_type, None, || Versioned { version, event });
    }

    /// The node has stopped: every subscription ends after what it has not read yet.
    pub(crate) fn close(&self) {
        self.by_type.close();
        self.of_all.close();
    }
}

/// A subscription to one service type; see [`Registry::subscribe`](crate::Registry::subscribe).
///
/// It is a [`Stream`], too, of what [`next`](Self::next) gives.
#[derive(Debug)]
pub struct Subscription {
    service_type: ServiceType,
    directory: Arc<Directory>,
    reader: Reader<ServiceType, Versioned>,
    /// The version of the last view that was handed out: what led to it is not told again.
    seen: u64,
    catch_up: bool,
}

impl Subscription {
    /// The next event; none once the node has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<ServiceEvent> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<ServiceEvent> {
        loop {
            if let Some(current) = self.current() {
                return Some(current);
            }
            let heard = self.reader.try_next()?;
            if let Some(event) = self.judge(heard) {
                return Some(event);
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<ServiceEvent>> {
        loop {
            if let Some(current) = self.current() {
                return Poll::Ready(Some(current));
            }
            let Some(heard) = ready!(self.reader.poll_next(cx)) else {
                return Poll::Ready(None);
            };
            if let Some(event) = self.judge(heard) {
                return Poll::Ready(Some(event));
            }
        }
    }

    fn current(&mut self) -> Option<ServiceEvent> {
        if !std::mem::take(&mut self.catch_up) {
            return None;
        }
        // What waits led to this view, or to one after it: nobody has to wade through it.
        self.reader.skip_all();
        let view = self
            .directory
            .view(self.service_type.as_str())
            .unwrap_or_else(|| Arc::new(View::empty(self.service_type.clone())));
        self.seen = view.version();
        Some(ServiceEvent::Current(view))
    }

    fn judge(&mut self, heard: Heard<Versioned>) -> Option<ServiceEvent> {
        let event = match heard {
            Heard::Lagged(missed) => {
                self.catch_up = true;
                return Some(ServiceEvent::Lagged { missed });
            }
            Heard::Message(event) if event.version <= self.seen => return None,
            Heard::Message(event) => event.event,
        };
        Some(event.into())
    }
}

impl From<RegistryEvent> for ServiceEvent {
    fn from(event: RegistryEvent) -> Self {
        match event {
            RegistryEvent::Joined(info) => ServiceEvent::Joined(info),
            RegistryEvent::Left(info) => ServiceEvent::Left(info),
            RegistryEvent::Updated { before, after } => ServiceEvent::Updated { before, after },
        }
    }
}

/// A change of any type; see [`AllSubscription`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryChange {
    /// What happened: [`Joined`](ServiceEvent::Joined), [`Left`](ServiceEvent::Left), [`Updated`](ServiceEvent::Updated) or
    /// [`Lagged`](ServiceEvent::Lagged).
    pub event: ServiceEvent,
    /// The version of the type's view that it led to: what is in a view of that version or a later one is not news. After
    /// [`Lagged`](ServiceEvent::Lagged), the version of the last view that was made by then.
    pub version: u64,
}

/// A subscription to the services of all types; see [`Registry::subscribe_all`](crate::Registry::subscribe_all).
///
/// It is a [`Stream`], too, of what [`next`](Self::next) gives.
#[derive(Debug)]
pub struct AllSubscription {
    directory: Arc<Directory>,
    reader: Reader<(), Versioned>,
}

impl AllSubscription {
    /// The next change; none once the node has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<RegistryChange> {
        poll_fn(|cx| self.poll_change(cx)).await
    }

    /// The next change, if there is one already.
    pub fn try_next(&mut self) -> Option<RegistryChange> {
        let heard = self.reader.try_next()?;
        Some(self.tell(heard))
    }

    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<RegistryChange>> {
        let heard = ready!(self.reader.poll_next(cx));
        Poll::Ready(heard.map(|heard| self.tell(heard)))
    }

    fn tell(&self, heard: Heard<Versioned>) -> RegistryChange {
        match heard {
            Heard::Message(Versioned { version, event }) => RegistryChange {
                event: event.into(),
                version,
            },
            Heard::Lagged(missed) => RegistryChange {
                event: ServiceEvent::Lagged { missed },
                version: self.directory.version(),
            },
        }
    }
}

impl Stream for AllSubscription {
    type Item = RegistryChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RegistryChange>> {
        self.get_mut().poll_change(cx)
    }
}

impl Stream for Subscription {
    type Item = ServiceEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ServiceEvent>> {
        self.get_mut().poll_event(cx)
    }
}
