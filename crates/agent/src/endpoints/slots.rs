//! What is held of each id, and the locks that changes are made under.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::held::{Held, verdict_name};
use super::store::Store;

/// Checks by kind and state, and leases by kind.
type Tally = (
    HashMap<(&'static str, &'static str), usize>,
    HashMap<&'static str, usize>,
);

/// What is held of one id. Whoever changes it holds its lock from the first look to the last word to the registry.
#[derive(Default)]
pub(crate) struct Slot {
    pub(super) held: Arc<tokio::sync::Mutex<Option<Held>>>,
    /// Wakes those who wait for its lease or its next check.
    pub(super) renewed: Notify,
}

/// See the module.
pub(crate) struct Endpoints {
    pub(super) slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    pub(super) store: Store,
    pub(super) next: std::sync::atomic::AtomicU64,
    pub(crate) expired: std::sync::atomic::AtomicU64,
    /// Something that a twin has to hear of has changed.
    pub(super) tell_twins: Notify,
    /// Twins that have to hear that an endpoint was taken away. One that does not lets its lease end.
    pub(super) taken_away: Mutex<Vec<(String, String)>>,
}

impl Endpoints {
    pub(crate) fn new(store: Store) -> Self {
        Endpoints {
            slots: Mutex::default(),
            store,
            next: std::sync::atomic::AtomicU64::new(1),
            expired: std::sync::atomic::AtomicU64::new(0),
            tell_twins: Notify::new(),
            taken_away: Mutex::default(),
        }
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn slot(&self, id: &str) -> Option<Arc<Slot>> {
        self.lock().get(id).cloned()
    }

    /// The ids, in order.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Forgets the place of an id that nothing is held of.
    pub(super) fn forget_empty(&self, id: &str, slot: &Arc<Slot>) {
        let mut slots = self.lock();
        let unused = slot.held.try_lock().is_ok_and(|held| held.is_none());
        // Whoever else has it in hand is about to put something there.
        if unused
            && slots
                .get(id)
                .is_some_and(|there| Arc::ptr_eq(there, slot) && Arc::strong_count(slot) <= 2)
        {
            slots.remove(id);
        }
    }

    /// Ends the tasks beside all endpoints, which hold the agent alive.
    pub(crate) fn abandon(&self) {
        for slot in std::mem::take(&mut *self.lock()).into_values() {
            // Whoever has it in hand sees that the agent stops.
            if let Ok(mut held) = slot.held.try_lock() {
                held.take();
            }
        }
    }

    /// Checks by kind and state, and leases by kind.
    pub(crate) fn tally(&self) -> Tally {
        let (mut checks, mut leases) = (HashMap::new(), HashMap::new());
        let slots: Vec<_> = self.lock().values().cloned().collect();
        for slot in slots {
            // One that is being changed right now is counted next time.
            let Ok(held) = slot.held.try_lock() else {
                continue;
            };
            let Some(held) = held.as_ref() else {
                continue;
            };
            *leases.entry(held.checked.lease.kind()).or_default() += 1;
            if let Some(check) = &held.checked.check {
                *checks
                    .entry((check.probe.kind(), verdict_name(&held.health.verdict)))
                    .or_default() += 1;
            }
        }
        (checks, leases)
    }
}
