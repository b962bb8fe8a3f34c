//! What happens to the keys of an instance, for whoever wants to know.

use keydispatch_core::{KeyBytes, NodeId, ServiceId};
use tokio::sync::broadcast;

/// Events that wait for a reader; a slower one misses the oldest.
const CAPACITY: usize = 1_024;

/// What happens to the keys of one instance. Slots are those of [`KEYED_SLOTS`](crate::KEYED_SLOTS); of one without a state
/// nothing is told, but that it begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyedEvent {
    /// These slots are served here now, and nobody who could be asked had any state of them: at the first start, or because
    /// whoever had them has died.
    Anew {
        /// How many.
        slots: usize,
    },
    /// The states of a slot have come, and are served here now.
    Gained {
        /// The slot.
        slot: u32,
        /// How many keys had one.
        keys: usize,
        /// Who gave them.
        from: ServiceId,
    },
    /// The states of a slot are served here no more, and are on their way.
    Losing {
        /// The slot.
        slot: u32,
    },
    /// They have arrived.
    Lost {
        /// The slot.
        slot: u32,
        /// How many keys had one.
        keys: usize,
        /// Who has them now.
        to: ServiceId,
    },
    /// They have not, as far as can be known: the slot is served here again.
    TakenBack {
        /// The slot.
        slot: u32,
    },
    /// Two instances served a slot, and their states have met here: each key that both had is merged.
    Conflict {
        /// The slot.
        slot: u32,
        /// How many keys both had.
        keys: usize,
        /// The other one.
        from: ServiceId,
    },
    /// A state cannot be given: it does not encode, or is over [`KeyedOptions::max_state_bytes`](crate::KeyedOptions). All
    /// states of its slot stay here, and are served on.
    KeptBack {
        /// The key.
        key: KeyBytes,
        /// Why.
        why: String,
    },
    /// A handler panicked: the state of its key is gone.
    Panicked {
        /// The key.
        key: KeyBytes,
    },
    /// A node is up and has not answered for so long that it was not waited for: it may serve the same slots.
    Impatient {
        /// The node.
        peer: NodeId,
        /// How many slots.
        slots: usize,
    },
    /// This reader was slow, and has missed so many.
    Missed(u64),
}

/// The events of one instance from when it was asked for on.
#[derive(Debug)]
pub struct KeyedEvents(broadcast::Receiver<KeyedEvent>);

impl KeyedEvents {
    /// The next one; none once the instance has ended.
    pub async fn next(&mut self) -> Option<KeyedEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(KeyedEvent::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next one that is there already.
    pub fn try_next(&mut self) -> Option<KeyedEvent> {
        match self.0.try_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(KeyedEvent::Missed(missed)),
            Err(_) => None,
        }
    }
}

/// Where they come from.
#[derive(Debug)]
pub(super) struct Teller(broadcast::Sender<KeyedEvent>);

impl Default for Teller {
    fn default() -> Self {
        Teller(broadcast::channel(CAPACITY).0)
    }
}

impl Teller {
    pub(super) fn tell(&self, event: KeyedEvent) {
        // An error says that nobody listens.
        let _ = self.0.send(event);
    }

    pub(super) fn listen(&self) -> KeyedEvents {
        KeyedEvents(self.0.subscribe())
    }
}
