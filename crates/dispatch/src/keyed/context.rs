//! Where the handler of one key finds itself.

use std::sync::Arc;

use keydispatch_core::{KeyBytes, NodeName, ServiceId};

use super::Keyed;
use super::store::Store;
use crate::data::caller::Caller;

/// Where the handler of one key finds itself.
pub struct KeyContext<K: Keyed> {
    pub(super) store: Arc<Store<K>>,
    pub(super) key: KeyBytes,
    pub(super) version: u32,
    /// None for this node.
    pub(super) caller: Option<Arc<Caller>>,
    pub(super) close: bool,
}

impl<K: Keyed> KeyContext<K> {
    /// The key.
    pub fn key(&self) -> &KeyBytes {
        &self.key
    }

    /// This instance.
    pub fn id(&self) -> &ServiceId {
        &self.store.id
    }

    /// The node that it runs on.
    pub fn node(&self) -> &NodeName {
        &self.store.id.node
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
        self.store.serves(&self.key)
    }

    /// Ends the state of the key after this message: it is handed to [`Keyed::closed`], and the next message opens the key
    /// anew.
    pub fn close(&mut self) {
        self.close = true;
    }
}

impl<K: Keyed> std::fmt::Debug for KeyContext<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyContext")
            .field("key", &self.key)
            .field("id", &self.store.id)
            .finish_non_exhaustive()
    }
}
