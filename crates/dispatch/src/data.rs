//! The data lane: calls, casts and broadcasts between nodes, beside the control connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use keydispatch_core::limits::MAX_PAYLOAD_BYTES;
use keydispatch_core::message::{Address, Frame, Hello, Offers};
use keydispatch_core::{Directory, NodeId, NodeName, ServiceInfo, Topic};
use papaya::Guard as _;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::backlog::{Backlog, Share};
use crate::call::{CallError, Unsent};
use crate::runtime::Runtimes;
use crate::transport::{Connection, Transport};

mod activity;
pub(crate) mod aim;
pub(crate) mod caller;
mod contact;
mod helped;
mod hints;
pub(crate) mod inbound;
pub(crate) mod lane;
mod leaving;
pub(crate) mod mailbox;
mod onward;
mod outbox;
mod parked;
mod places;
mod pump;
mod reach;
pub(crate) mod reply;
mod stats;
pub(crate) mod tokens;
pub(crate) mod topics;
mod undialled;
pub(crate) mod wire;

use caller::Caller;
use contact::Contact;
use helped::Helper;
use hints::Hints;
use inbound::Serving;
use lane::Lane;
use leaving::Callers;
pub(crate) use leaving::done_by;
use mailbox::{AnyMailbox, StopReason};
use onward::Onward;
use places::Places;
pub(crate) use stats::Counters;
pub use stats::DataStats;
use tokens::TokenInputs;
use topics::Topics;

/// Peers of a lower minor version do not know how a node goes away in good order.
const MINOR_GOES_AWAY: u16 = 1;

/// What the data lane is started with.
pub(crate) struct DataConfig {
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pool_size: usize,
    pub(crate) max_payload_bytes: usize,
    pub(crate) checks_messages: bool,
    pub(crate) topic_bytes: usize,
    pub(crate) waiting_bytes: usize,
    pub(crate) drain_timeout: Duration,
    pub(crate) runtimes: Runtimes,
    pub(crate) tokens: TokenInputs,
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    address: Address,
    contact: Arc<Contact>,
    lanes: Box<[Arc<Lane>]>,
}

struct Local {
    mailbox: Arc<dyn AnyMailbox>,
    task: AbortHandle,
    /// True once the service has ended, for the replies that it still owes.
    ended: Arc<AtomicBool>,
}

/// See the module.
pub(crate) struct DataPlane {
    /// None once the node has stopped: handles that outlive it must not keep its address taken.
    transport: Mutex<Option<Arc<dyn Transport>>>,
    hello: Arc<ArcSwap<Hello>>,
    /// What this node lists: where a message that waits is to go by now.
    directory: Arc<Directory>,
    pool_size: usize,
    max_payload_bytes: usize,
    checks_messages: bool,
    drain_timeout: Duration,
    peers: papaya::HashMap<NodeName, Arc<Peer>>,
    places: Places,
    onward: Onward,
    /// Counts the attempts to connect to any peer: later ones have larger numbers, whatever became of the peer meanwhile.
    attempts: AtomicU64,
    local: papaya::HashMap<u64, Local>,
    hints: Hints,
    /// What waits on this node in all.
    backlog: Arc<Backlog>,
    /// What waits of this node's own messages to its own services.
    own_share: Arc<Share>,
    pub(crate) topics: Topics,
    pub(crate) counters: Counters,
    stopping: watch::Sender<bool>,
    /// The services are to stop.
    leaving: AtomicBool,
    closed: AtomicBool,
    /// No calls of this node go out any more.
    departed: AtomicBool,
    callers: Mutex<Callers>,
    /// How many services run; whoever waits for them to stop reads it.
    running: watch::Sender<usize>,
    runtimes: Runtimes,
    helper: Arc<Helper>,
    tokens: TokenInputs,
    /// When a dropped cast was last logged.
    complained: Mutex<Option<tokio::time::Instant>>,
}

impl std::fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlane").finish_non_exhaustive()
    }
}

impl DataPlane {
    pub(crate) fn new(config: DataConfig) -> Arc<Self> {
        let backlog = Backlog::new(config.waiting_bytes);
        let own_share = backlog.share();
        Arc::new(DataPlane {
            transport: Mutex::new(config.transport),
            hello: config.hello,
            directory: config.directory,
            pool_size: config.pool_size,
            max_payload_bytes: config.max_payload_bytes.min(MAX_PAYLOAD_BYTES),
            checks_messages: config.checks_messages,
            drain_timeout: config.drain_timeout,
            peers: papaya::HashMap::new(),
            places: Places::default(),
            onward: Onward::default(),
            attempts: AtomicU64::new(0),
            local: papaya::HashMap::new(),
            hints: Hints::default(),
            topics: Topics::new(config.topic_bytes, Arc::clone(&own_share)),
            backlog,
            own_share,
            counters: Counters::default(),
            stopping: watch::channel(false).0,
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            departed: AtomicBool::new(false),
            callers: Mutex::default(),
            running: watch::channel(0).0,
            helper: Helper::new(config.runtimes.clone()),
            runtimes: config.runtimes,
            tokens: config.tokens,
            complained: Mutex::default(),
        })
    }

    pub(crate) fn max_payload_bytes(&self) -> usize {
        self.max_payload_bytes
    }

    /// The limit by which local messages are encoded and decoded as remote ones are; none where they move as they are.
    pub(crate) fn checked_limit(&self) -> Option<usize> {
        self.checks_messages.then_some(self.max_payload_bytes)
    }

    /// What messages of this node to its own services are counted in.
    pub(crate) fn own_share(&self) -> Arc<Share> {
        Arc::clone(&self.own_share)
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    fn transport(&self) -> Option<Arc<dyn Transport>> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn hello(&self) -> Guard<Arc<Hello>> {
        self.hello.load()
    }

    fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a task of this lane until it ends or the node does.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let mut stopping = self.stopping.subscribe();
        self.helper.spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        });
    }

    /// Goes on with the tasks of this lane where the services hold their threads. Runs on others, as long as the node.
    pub(crate) async fn help(self: Arc<Self>) {
        Arc::clone(&self.helper).watch().await;
    }

    /// Runs a service's task; [`stop_services`](Self::stop_services) and [`close`](Self::close) end it.
    pub(crate) fn spawn_service(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        self.runtimes.spawn_service(task).abort_handle()
    }

    pub(crate) fn add_local(
        &self,
        sequence: u64,
        mailbox: Arc<dyn AnyMailbox>,
        task: AbortHandle,
        ended: Arc<AtomicBool>,
    ) {
        if self.closed.load(Ordering::SeqCst) {
            task.abort();
            return;
        }
        let local = Local {
            mailbox,
            task,
            ended,
        };
        let mailbox = Arc::clone(&local.mailbox);
        // Counted first: it may end, and be counted down, as soon as it is there.
        self.running.send_modify(|running| *running += 1);
        self.local.pin().insert(sequence, local);
        // Rule: whoever leaves waits for no service that comes later. Either this is seen here, or the service there.
        fence(Ordering::SeqCst);
        if self.leaving.load(Ordering::SeqCst) {
            mailbox.stop(StopReason::NodeStopped);
        }
    }

    /// Nobody reaches the service any more. It counts as running until what is returned is dropped.
    pub(crate) fn remove_local(&self, sequence: u64) -> Option<StillRunning<'_>> {
        self.local.pin().remove(&sequence)?;
        // Its mailbox goes now, not when enough others have gone, too.
        self.local.guard().flush();
        Some(StillRunning(&self.running))
    }

    pub(crate) fn local(&self, sequence: u64) -> Option<Arc<dyn AnyMailbox>> {
        self.local
            .pin()
            .get(&sequence)
            .map(|local| Arc::clone(&local.mailbox))
    }

    /// Looks at a local mailbox without keeping it.
    pub(crate) fn with_local<T>(
        &self,
        sequence: u64,
        look: impl FnOnce(&dyn AnyMailbox) -> T,
    ) -> Option<T> {
        self.local
            .pin()
            .get(&sequence)
            .map(|local| look(&*local.mailbox))
    }

    /// The connection that a service is pinned to, so that order holds.
    ///
    /// Rule: the view is ahead of the connections, by microseconds, or by as long as this process is kept from running. A node
    /// that it lists and that is not up here is about to be, or to go.
    pub(crate) fn lane(&self, info: &ServiceInfo) -> Result<Arc<Lane>, Unsent> {
        if self.departed.load(Ordering::Relaxed) {
            return Err(CallError::NodeStopped.into());
        }
        self.lane_to(info)
    }

    /// The same, also while this node finishes what it has accepted.
    fn lane_to(&self, info: &ServiceInfo) -> Result<Arc<Lane>, Unsent> {
        let peers = self.peers.pin();
        let settling = |why: &str| Unsent {
            error: CallError::NotSent {
                node: info.node().clone(),
                why: why.to_owned(),
            },
            settling: true,
        };
        let Some(peer) = peers.get(info.node()) else {
            return Err(settling(NOT_UP));
        };
        if peer.node.generation.number != info.reference().generation {
            return Err(settling("it has restarted"));
        }
        let at = info.id().sequence as usize % peer.lanes.len();
        Ok(Arc::clone(&peer.lanes[at]))
    }

    /// Sends a broadcast of so many bytes to one node, on its first connection.
    pub(crate) fn send_to_node(
        self: &Arc<Self>,
        node: &NodeName,
        frame: Frame,
        payload_bytes: usize,
    ) -> Result<(), CallError> {
        let lane = {
            let peers = self.peers.pin();
            let peer = peers.get(node).ok_or_else(|| CallError::NotSent {
                node: node.clone(),
                why: NOT_UP.to_owned(),
            })?;
            Arc::clone(&peer.lanes[0])
        };
        let limit = lane.max_payload_bytes(self);
        if payload_bytes > limit {
            self.count_too_large(node, limit);
            return Err(CallError::TooLarge {
                limit,
                reply: false,
            });
        }
        lane.send(self, frame).map_err(|unsent| unsent.error)
    }

    /// True where that life of a node is up.
    fn is_up_as(&self, node: &NodeId) -> bool {
        self.peers
            .pin()
            .get(&node.name)
            .is_some_and(|peer| peer.node == *node)
    }

    /// True once the node has stopped: views that outlive it do not change any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) || self.departed.load(Ordering::SeqCst)
    }

    /// The nodes that are up.
    pub(crate) fn nodes(&self) -> Vec<NodeName> {
        self.peers.pin().keys().cloned().collect()
    }

    /// A node is up; `offers` is what it says in its Hello, where its control link is ready already.
    pub(crate) fn member_up(
        self: &Arc<Self>,
        node: NodeId,
        address: Address,
        offers: Option<Offers>,
    ) {
        let contact = Arc::new(Contact::default());
        if let Some(offers) = offers {
            contact.offers(&offers);
        }
        let share = self.backlog.share();
        let lanes = (0..u16::try_from(self.pool_size).unwrap_or(u16::MAX))
            .map(|lane| {
                let (node, address) = (node.clone(), address.clone());
                Lane::new(
                    node,
                    address,
                    lane,
                    Arc::clone(&contact),
                    Arc::clone(&share),
                )
            })
            .collect();
        let name = node.name.clone();
        let peer = Arc::new(Peer {
            node,
            address,
            contact,
            lanes,
        });
        let peers = self.peers.pin();
        if let Some(before) = peers.insert(name, peer) {
            self.close_lanes(before);
            self.peers.guard().flush();
        }
    }

    /// The control link to a node is ready.
    pub(crate) fn linked(&self, node: &NodeId, offers: &Offers) {
        if let Some(peer) = self.peers.pin().get(&node.name)
            && peer.node == *node
        {
            peer.contact.offers(offers);
            peer.contact.hear();
        }
    }

    /// A control connection to that address did not come about; it matters where a node is up that is to be reached there.
    pub(crate) fn not_dialled(&self, address: &Address, why: &str) {
        for (_, peer) in &self.peers.pin() {
            if peer.address == *address {
                peer.contact.undialled.failed(&peer.node, address, why);
            }
        }
    }

    /// A node was heard on its control connection.
    pub(crate) fn heard(&self, node: &NodeId) {
        if let Some(peer) = self.peers.pin().get(&node.name)
            && peer.node == *node
        {
            peer.contact.hear();
        }
    }

    pub(crate) fn member_down(self: &Arc<Self>, node: &NodeId) {
        let peers = self.peers.pin();
        let down = peers.remove_if(&node.name, |_, peer| peer.node == *node);
        if let Ok(Some((_, peer))) = down {
            self.close_lanes(peer);
            self.peers.guard().flush();
        }
    }

    /// That life of a peer is over. What was not written to it goes on.
    fn close_lanes(self: &Arc<Self>, peer: &Peer) {
        for lane in &peer.lanes {
            self.send_on(lane.close());
        }
    }

    /// A peer opened a connection, and its Hello was accepted.
    pub(crate) fn inbound(self: &Arc<Self>, mut connection: Box<dyn Connection>, theirs: Hello) {
        let Some(inbound) = self.places.add(&theirs) else {
            tracing::warn!(peer = %theirs.node, "closing a data connection: there are too many");
            return;
        };
        // Rule: a reply may be as long as both sides take; over that it fails its call alone.
        let contact = Contact::default();
        contact.offers(&theirs.offers);
        let limit = contact.max_payload_bytes(self.max_payload_bytes);
        let share = self.backlog.share_of(&theirs.node.name);
        let old = theirs.minor < MINOR_GOES_AWAY;
        let caller = Caller::new(theirs.node.name, share, limit, old);
        let admitted = self.admit(&caller);
        let serving = Serving::new(caller, inbound, admitted, Arc::clone(self));
        // It was accepted on the node's own threads.
        connection.move_here();
        self.spawn(serving.run(connection));
    }

    /// A broadcast from a peer.
    fn deliver(&self, from: &Caller, body: &Bytes) -> Result<(), String> {
        let (topic, payload) = wire::split::<Topic>(body)?;
        self.topics
            .publish_from(&topic, from.peer(), payload, from.share());
        Ok(())
    }

    fn count_dropped_cast(&self, peer: &NodeName) {
        const PAUSE: Duration = Duration::from_secs(10);
        let dropped = self.counters.casts_dropped.fetch_add(1, Ordering::Relaxed) + 1;
        let mut complained = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= PAUSE) {
            *complained = Some(tokio::time::Instant::now());
            tracing::warn!(%peer, dropped, "a cast was dropped: its mailbox was full or gone");
        }
    }

    /// A cast or a broadcast was not sent because that peer takes at most `limit` bytes.
    fn count_too_large(&self, peer: &NodeName, limit: usize) {
        let times = self
            .counters
            .too_large_for_peer
            .fetch_add(1, Ordering::Relaxed)
            + 1;
        if times.is_power_of_two() {
            tracing::warn!(%peer, limit, times, "a message was not sent: the peer's max_payload_bytes is smaller");
        }
    }

    /// Ends everything that runs here.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        for (_, peer) in &self.peers.pin() {
            for lane in &peer.lanes {
                let casts = lane.close().into_iter();
                self.count_unsent(
                    casts
                        .filter(|out| out.frame.kind == wire::kind::CAST)
                        .count() as u64,
                );
            }
        }
        self.peers.pin().clear();
        for (_, local) in &self.local.pin() {
            // A handler that is aborted has not chosen not to reply.
            local.ended.store(true, Ordering::Release);
            local.task.abort();
        }
        self.topics.close();
        self.stopping.send_replace(true);
    }
}

/// Why a node that membership does not have up cannot be reached.
const NOT_UP: &str = "it is not up";

/// A service that nobody reaches any more, and that is not at its end yet.
pub(crate) struct StillRunning<'a>(&'a watch::Sender<usize>);

impl Drop for StillRunning<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests;
