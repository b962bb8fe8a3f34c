//! How a keyed service is started, and how it ends.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::limits::DEFAULT_MAILBOX_BYTES;
use keydispatch_core::ownership::{Adoption, Gate, SlotSet};
use keydispatch_core::{NodeId, ServiceId, ServiceInfo};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Keyed;
use super::events::KeyedEvents;
use super::options::{DEFAULT_KEYED_MAILBOX, KeyedOptions};
use super::store::Store;
use crate::call::Failure;
use crate::claim::Life;
use crate::data::caller::Caller;
use crate::data::mailbox::letter::{KeyedMailbox, Letter, Room, States};
use crate::data::mailbox::{AnyMailbox, StopReason};
use crate::data::tokens::TokenInputs;
use crate::data::wire::Format;
use crate::protocol::Protocol;
use crate::registry::Registry;
use crate::registry::registration::Registration;
use crate::service::Ended;
use crate::service::host::Host;
use crate::service::serve::{AbortUnlessDone, ServeError, Served, StopError};

/// How often what waits for too long is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Shortest time between two looks for idle keys.
const MIN_IDLE_LOOK: Duration = Duration::from_millis(50);

/// A keyed service that runs on this node.
///
/// Dropping it changes nothing: the service runs until it is stopped, or its node ends.
pub struct ServedKeyed<K: Keyed> {
    served: Served<K::Protocol>,
    store: Arc<Store<K>>,
}

impl<K: Keyed> ServedKeyed<K> {
    /// The instance.
    pub fn id(&self) -> &ServiceId {
        self.served.id()
    }

    /// Its entry as it was registered.
    pub fn info(&self) -> &Arc<ServiceInfo> {
        self.served.info()
    }

    /// Its entry, to disable, drain, or change it. An instance that is disabled or drained gives its states to who owns the
    /// keys then.
    pub fn registration(&self) -> Registration {
        self.served.registration()
    }

    /// Stops it, and loses no call and no state by that: it gives up its keys, hands their states to the next owners, takes
    /// nothing new, and leaves the registry once it has nothing any more.
    ///
    /// # Errors
    ///
    /// From a handler of its own, at once and with nothing done. [`StopError::Unfinished`] where it was not done within
    /// [`drain_timeout`](crate::NodeBuilder::drain_timeout): then what was left is handed to [`Keyed::closed`].
    pub async fn stop(&self) -> Result<(), StopError> {
        self.served.stop().await
    }

    /// Waits until it has ended, and says how.
    pub async fn ended(&self) -> Ended {
        self.served.ended().await
    }

    /// What happens to its keys from now on.
    pub fn events(&self) -> KeyedEvents {
        self.store.teller.listen()
    }

    /// How many keys have a state here, or are at work.
    pub fn keys(&self) -> usize {
        self.store.keys()
    }

    /// How many messages wait for their key: for its handler, or for its state.
    pub fn waiting(&self) -> usize {
        self.store.waiting()
    }
}

impl<K: Keyed> std::fmt::Debug for ServedKeyed<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedKeyed")
            .field("id", self.id())
            .finish_non_exhaustive()
    }
}

/// Starts a keyed service and registers it. Dropped half-way, neither runs nor is listed what it started.
pub(crate) async fn serve_keyed<K: Keyed>(
    host: &Host,
    tokens: &TokenInputs,
    options: KeyedOptions,
    service: K,
) -> Result<ServedKeyed<K>, ServeError> {
    let registry = &host.registry;
    let sequence = registry.next_sequence();
    let serve = options.serve.clone();
    let room = Room::new(
        serve.mailbox.unwrap_or(DEFAULT_KEYED_MAILBOX),
        serve.mailbox_bytes.unwrap_or(DEFAULT_MAILBOX_BYTES),
    );
    let entry = serve.into_keyed_entry::<K::Protocol>(sequence, registry.zone())?;
    let id = ServiceId {
        node: registry.node().clone(),
        nonce: registry.nonce(),
        sequence,
    };
    let flag = Arc::new(AtomicBool::new(false));
    let store = Store::new(
        service,
        id.clone(),
        host,
        tokens.clone(),
        options,
        Arc::clone(&flag),
        room,
    );
    let (stop, stopping) = watch::channel(None);
    let (ended_sender, ended) = watch::channel(None);
    let life = Life::default();
    let ending = KeyedEnding {
        store: Arc::clone(&store),
        registry: registry.clone(),
        life: life.clone(),
        ended: ended_sender,
        how: None,
    };
    let task = host.local.spawn_service(run(ending, stopping));
    let unfinished = AbortUnlessDone::new(task.clone());
    let mailbox: Arc<dyn AnyMailbox> = Arc::new(KeyedBox {
        store: Arc::clone(&store),
        stop,
    });
    host.local.add(sequence, Arc::clone(&mailbox), task, flag);
    if life.is_over() {
        // It ended before it was put in, and found nothing to take out.
        host.local.remove(sequence);
    }
    let info = registry.add_entry(entry, &life).await?;
    unfinished.done();
    Ok(ServedKeyed {
        served: Served::new(info, host, mailbox, ended),
        store,
    })
}

/// Sees to what waits, until the instance is to stop; then lets it finish.
async fn run<K: Keyed>(
    mut ending: KeyedEnding<K>,
    mut stopping: watch::Receiver<Option<StopReason>>,
) {
    let store = Arc::clone(&ending.store);
    let idle = store.options.idle_after;
    let pause = idle.map_or(LOOK, |idle| (idle / 2).clamp(MIN_IDLE_LOOK, LOOK));
    let mut expires_at = Instant::now() + LOOK;
    let reason = loop {
        let stop = stopping.wait_for(Option::is_some);
        match tokio::time::timeout(pause, stop).await {
            // An error says that the mailbox is gone, and with it whoever could stop it.
            Ok(reason) => {
                let reason = reason.ok().and_then(|reason| *reason);
                break reason.unwrap_or(StopReason::NodeStopped);
            }
            Err(_) => {
                if let Some(idle) = idle {
                    store.sweep(idle);
                }
                if Instant::now() >= expires_at {
                    store.expire();
                    expires_at = Instant::now() + LOOK;
                }
            }
        }
    };
    // What was taken is handled; whoever comes now has its message back, and sends it elsewhere.
    let done = store.mark();
    let _ = done.await;
    store.close();
    let done = store.mark();
    let _ = done.await;
    ending.life.end();
    let _counted = store.local.remove(store.id.sequence);
    // It may have been removed by hand already.
    let _ = ending.registry.remove_service(&store.id).await;
    for (key, cell) in store.take_all() {
        store.close_cell(&key, cell).await;
    }
    ending.how = Some(Ended::Stopped(reason));
}

/// Takes an instance out of everything when it ends, in whatever way.
struct KeyedEnding<K: Keyed> {
    store: Arc<Store<K>>,
    registry: Registry,
    /// Over before anything of it is taken out.
    life: Life,
    ended: watch::Sender<Option<Ended>>,
    how: Option<Ended>,
}

impl<K: Keyed> Drop for KeyedEnding<K> {
    fn drop(&mut self) {
        self.store.flag.store(true, Ordering::Release);
        self.life.end();
        self.store.local.remove(self.store.id.sequence);
        self.store.abort();
        self.registry.remove_soon(&self.store.id);
        let how = self.how.unwrap_or(if std::thread::panicking() {
            Ended::Panicked
        } else {
            Ended::Aborted
        });
        self.ended.send_replace(Some(how));
    }
}

/// What connections and the driver deliver to.
struct KeyedBox<K: Keyed> {
    store: Arc<Store<K>>,
    stop: watch::Sender<Option<StopReason>>,
}

impl<K: Keyed> AnyMailbox for KeyedBox<K> {
    fn call(&self, _: Bytes, _: Format, _: Instant, caller: Arc<Caller>, number: u64) {
        // Of a node that knows no keyed services, or has not heard yet that this is one.
        caller.fail(number, &Failure::Incompatible { theirs: 0 });
    }

    fn call_here(
        &self,
        _: Bytes,
        _: Format,
        _: Instant,
        sender: oneshot::Sender<Result<Bytes, Failure>>,
    ) {
        // The caller may have gone.
        let _ = sender.send(Err(Failure::Incompatible { theirs: 0 }));
    }

    fn cast(&self, _: Bytes, _: Format, _: Option<Arc<Caller>>) -> bool {
        false
    }

    fn stop(&self, reason: StopReason) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(reason);
            first
        });
    }

    fn mark(&self) -> oneshot::Receiver<()> {
        self.store.mark()
    }

    fn keyed(&self) -> Option<&dyn KeyedMailbox> {
        Some(self)
    }

    fn name(&self) -> &'static str {
        K::Protocol::NAME
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<K: Keyed> KeyedMailbox for KeyedBox<K> {
    fn deliver(&self, letter: Letter) {
        self.store.deliver(letter);
    }

    fn anew(&self, slots: &SlotSet) {
        self.store.anew(slots);
    }

    fn give(&self, slot: u32, transfer: u64, gate: Gate) -> bool {
        self.store.give(slot, transfer, gate)
    }

    fn adopt(&self, slot: u32, from: &ServiceId, states: States, how: Adoption) {
        self.store.adopt(slot, from, states, how);
    }

    fn released(&self, slot: u32, to: &ServiceId) {
        self.store.released(slot, to);
    }

    fn taken_back(&self, slot: u32) {
        self.store.taken_back(slot);
    }

    fn gate(&self, slot: u32, gate: Gate) {
        self.store.set_gate(slot, gate);
    }

    fn lost(&self, slots: &SlotSet) {
        self.store.lost(slots);
    }

    fn impatient(&self, peer: &NodeId, slots: &SlotSet) {
        self.store.impatient(peer, slots);
    }

    fn keys(&self) -> usize {
        self.store.keys()
    }
}
