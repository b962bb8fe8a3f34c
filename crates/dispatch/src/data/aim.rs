//! Where a message that waits is to go, and whether that is still so.
//!
//! Rule: a call or a cast that was certainly not written goes to whoever is to have it by then. A frame alone names a service
//! of one process; its aim says why it was that one.

use std::fmt;
use std::sync::Arc;

use keydispatch_core::{Codec, Directory, Key, NodeId, ServiceInfo, Spread, View};

use crate::mutex::Mutex;
use crate::protocol::Protocol;

/// What a message is of: enough to look at the view that its sender sees.
#[derive(Debug)]
pub(crate) struct Spoken {
    service_type: &'static str,
    version: u32,
    codec: Codec,
    /// It is for a service that has a state for each key: these are placed among all such, whatever they take.
    keyed: bool,
}

impl Spoken {
    fn look<T>(&self, directory: &Directory, read: impl FnOnce(&View) -> T) -> Option<T> {
        directory.read(self.service_type, |view| {
            if self.keyed {
                view.keyed().map(read)
            } else {
                Some(read(view.accepting(self.version, self.codec)))
            }
        })?
    }
}

/// What messages of a protocol are of.
struct Speaks<P>(P);

impl<P: Protocol> Speaks<P> {
    const AS: &'static Spoken = &Spoken {
        service_type: P::NAME,
        version: P::VERSION,
        codec: P::CODEC,
        keyed: false,
    };

    const KEYED: &'static Spoken = &Spoken {
        keyed: true,
        ..*Self::AS
    };
}

/// Whom a message is for.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// The owner of a key.
    Owner(Key),
    /// One of the first owners of a key: each has a message of its own.
    OneOf(Arc<Copies>),
    /// That service and no other.
    Instance(Arc<ServiceInfo>),
}

/// The messages that are for the first owners of one key, one for each.
pub(crate) struct Copies {
    key: Key,
    n: usize,
    spread: Spread,
    /// The services that one was sent to, by process and number.
    asked: Mutex<Vec<(u64, u64)>>,
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies")
            .field("key", &self.key)
            .field("n", &self.n)
            .finish_non_exhaustive()
    }
}

impl Copies {
    pub(crate) fn new(key: Key, n: usize, spread: Spread) -> Arc<Self> {
        Arc::new(Copies {
            key,
            n,
            spread,
            asked: Mutex::default(),
        })
    }

    /// The first of the owners that none was sent to yet; from now on one was.
    pub(crate) fn next<'a>(
        &self,
        owners: impl IntoIterator<Item = &'a Arc<ServiceInfo>>,
    ) -> Option<Arc<ServiceInfo>> {
        let mut asked = self.asked.lock();
        let mut owners = owners.into_iter();
        let next = owners.find(|info| !asked.contains(&(info.id().nonce, info.id().sequence)))?;
        asked.push((next.id().nonce, next.id().sequence));
        Some(Arc::clone(next))
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    spoken: &'static Spoken,
    to: To,
}

impl Aim {
    pub(crate) fn new<P: Protocol>(to: To) -> Self {
        Aim {
            spoken: Speaks::<P>::AS,
            to,
        }
    }

    /// Of a message for a key that has a state.
    pub(crate) fn keyed<P: Protocol>(to: To) -> Self {
        Aim {
            spoken: Speaks::<P>::KEYED,
            to,
        }
    }

    /// True where it is still for that service of that life of a node.
    pub(super) fn is(&self, directory: &Directory, node: &NodeId, sequence: u64) -> bool {
        self.names(directory, |info| {
            info.id().sequence == sequence
                && *info.node() == node.name
                && info.reference().generation == node.generation.number
        })
    }

    /// True where it is still for that service.
    pub(super) fn is_for(&self, directory: &Directory, service: &ServiceInfo) -> bool {
        self.names(directory, |info| info.id() == service.id())
    }

    fn names(&self, directory: &Directory, is: impl Fn(&ServiceInfo) -> bool) -> bool {
        let looked = match &self.to {
            To::Owner(key) => self.spoken.look(directory, |view| {
                view.owner(*key).is_some_and(|info| is(info))
            }),
            To::OneOf(copies) => self.spoken.look(directory, |view| {
                let owners = view.owners_spread(copies.key, copies.n, copies.spread);
                owners.into_iter().any(|info| is(info))
            }),
            To::Instance(one) => Some(is(one) && self.is_listed(directory, one)),
        };
        looked.unwrap_or(false)
    }

    /// The service that it goes to by now. Of the first owners, one that no copy was sent to: each is named once.
    pub(super) fn now(&self, directory: &Directory) -> Option<Arc<ServiceInfo>> {
        match &self.to {
            To::Owner(key) => self
                .spoken
                .look(directory, |view| view.owner(*key).cloned())?,
            To::OneOf(copies) => self.spoken.look(directory, |view| {
                copies.next(view.owners_spread(copies.key, copies.n, copies.spread))
            })?,
            To::Instance(one) => self.is_listed(directory, one).then(|| Arc::clone(one)),
        }
    }

    /// True for one service and no other.
    pub(super) fn is_for_one(&self) -> bool {
        matches!(&self.to, To::Instance(_))
    }

    /// True where nobody will ever take it.
    pub(super) fn is_hopeless(&self, directory: &Directory) -> bool {
        matches!(&self.to, To::Instance(one) if !self.is_listed(directory, one))
    }

    /// In whatever state it is, and whatever it takes.
    fn is_listed(&self, directory: &Directory, one: &ServiceInfo) -> bool {
        let listed = directory.read(self.spoken.service_type, |view| {
            view.service(one.id()).is_some()
        });
        listed.unwrap_or(false)
    }
}
