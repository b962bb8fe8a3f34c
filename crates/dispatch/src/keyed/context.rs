//! Where the handler of one key finds itself.

use std::marker::PhantomData;
use std::sync::Arc;

use keydispatch_core::{KeyBytes, NodeName, ServiceId};

use crate::data::caller::Caller;

/// What a handler is told of its instance.
pub(super) trait Instance: Send + Sync {
    fn id(&self) -> &ServiceId;
    /// Whether a key is this instance's, and is not to move.
    fn serves(&self, key: &KeyBytes) -> bool;
}

/// Where the handler of one key finds itself.
pub struct KeyContext<K> {
    pub(super) instance: Arc<dyn Instance>,
    pub(super) key: KeyBytes,
    pub(super) version: u32,
    /// None for this node.
    pub(super) caller: Option<Arc<Caller>>,
    pub(super) close: bool,
    pub(super) service: PhantomData<fn() -> K>,
}

impl<K> KeyContext<K> {
    /// The key.
    pub fn key(&self) -> &KeyBytes {
        &self.key
    }

    /// This instance.
    pub fn id(&self) -> &ServiceId {
        self.instance.id()
    }

    /// The node that it runs on.
    pub fn node(&self) -> &NodeName {
        &self.instance.id().node
    }

    /// The node that sent the message, as its connection has proven it; this node itself for what was sent here.
    pub fn caller(&self) -> &NodeName {
        match &self.caller {
            Some(caller) => caller.peer(),
            None => self.node(),
        }
    }

    /// The version of the protocol that the message is of, one of [`Protocol::ACCEPTS`](crate::Protocol::ACCEPTS).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the key is still this instance's. False once it is to move: the handler that runs is waited for, and no other
    /// one is started here.
    pub fn owns(&self) -> bool {
        self.instance.serves(&self.key)
    }

    /// Ends the state of the key after this message: it is handed to [`Keyed::closed`](crate::Keyed::closed), and the next message opens the key
    /// anew.
    pub fn close(&mut self) {
        self.close = true;
    }
}

impl<K> std::fmt::Debug for KeyContext<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyContext")
            .field("key", &self.key)
            .field("id", self.instance.id())
            .finish_non_exhaustive()
    }
}
