//! The nodes that are up, and the connections of this one to them.

use std::sync::Arc;

use bytes::Bytes;
use keydispatch_core::message::{Address, Frame, Offers};
use keydispatch_core::{NodeId, NodeName, ServiceInfo};
use papaya::Guard as _;
use tokio::time::Instant;

use super::contact::Contact;
use super::hints::Hints;
use super::lane::Lane;
use super::lane_runtime::LaneRuntime;
use super::stats::DataStats;
use super::wire::kind;
use crate::call::{CallError, Unsent};
use crate::deadline::done_by;

/// Why a node that membership does not have up cannot be reached.
const NOT_UP: &str = "it is not up";

#[derive(Debug)]
struct Peer {
    node: NodeId,
    address: Address,
    contact: Arc<Contact>,
    lanes: Box<[Arc<Lane>]>,
}

/// See the module.
pub(crate) struct Peers {
    runtime: Arc<LaneRuntime>,
    pool_size: usize,
    up: papaya::HashMap<NodeName, Arc<Peer>>,
    pub(crate) hints: Hints,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

impl Peers {
    /// `pool_size` connections to each.
    pub(crate) fn new(runtime: &Arc<LaneRuntime>, pool_size: usize) -> Arc<Self> {
        Arc::new(Peers {
            runtime: Arc::clone(runtime),
            pool_size,
            up: papaya::HashMap::new(),
            hints: Hints::default(),
        })
    }

    /// The connection that a service is pinned to, so that order holds.
    ///
    /// Rule: the view is ahead of the connections, by microseconds, or by as long as this process is kept from running. A node
    /// that it lists and that is not up here is about to be, or to go.
    pub(crate) fn lane(&self, info: &ServiceInfo) -> Result<Arc<Lane>, Unsent> {
        if self.runtime.has_departed() {
            return Err(CallError::NodeStopped.into());
        }
        self.lane_to(info)
    }

    /// The same, also while this node finishes what it has accepted.
    pub(super) fn lane_to(&self, info: &ServiceInfo) -> Result<Arc<Lane>, Unsent> {
        let peers = self.up.pin();
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

    /// True where nothing is sent to an instance just now: its connection is suspended or broken, or its node is not up.
    pub(crate) fn is_out(&self, info: &ServiceInfo) -> bool {
        let ours = self.runtime.hello().nonce;
        info.id().nonce != ours && self.lane_to(info).map_or(true, |lane| lane.is_suspended())
    }

    /// Sends a broadcast of so many bytes to one node, on its first connection.
    pub(crate) fn send_to_node(
        &self,
        node: &NodeName,
        frame: Frame,
        payload_bytes: usize,
    ) -> Result<(), CallError> {
        let lane = {
            let peers = self.up.pin();
            let peer = peers.get(node).ok_or_else(|| CallError::NotSent {
                node: node.clone(),
                why: NOT_UP.to_owned(),
            })?;
            Arc::clone(&peer.lanes[0])
        };
        let limit = lane.max_payload_bytes(&self.runtime);
        if payload_bytes > limit {
            self.runtime.counters.count_too_large(node, limit);
            return Err(CallError::TooLarge {
                limit,
                reply: false,
            });
        }
        lane.send(&self.runtime, frame)
            .map_err(|unsent| unsent.error)
    }

    /// Sends a message about states to that life of a node; false where no connection takes it now.
    pub(crate) fn send_token(&self, to: &NodeId, message: &Bytes) -> bool {
        let lane = {
            let peers = self.up.pin();
            match peers.get(&to.name) {
                Some(peer) if peer.node == *to => Arc::clone(&peer.lanes[0]),
                _ => return false,
            }
        };
        if message.len() > lane.max_payload_bytes(&self.runtime) {
            return false;
        }
        let frame = Frame {
            kind: kind::TOKEN,
            body: message.clone(),
        };
        lane.send(&self.runtime, frame).is_ok()
    }

    /// True where that life of a node is up.
    pub(super) fn is_up_as(&self, node: &NodeId) -> bool {
        self.up
            .pin()
            .get(&node.name)
            .is_some_and(|peer| peer.node == *node)
    }

    /// The nodes that are up.
    pub(crate) fn nodes(&self) -> Vec<NodeName> {
        self.up.pin().keys().cloned().collect()
    }

    /// A node is up; `offers` is what it says in its Hello, where its control link is ready already.
    pub(crate) fn member_up(&self, node: NodeId, address: Address, offers: Option<Offers>) {
        let contact = Arc::new(Contact::default());
        if let Some(offers) = offers {
            contact.offers(&offers);
        }
        let share = self.runtime.backlog.share();
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
        let peers = self.up.pin();
        if let Some(before) = peers.insert(name, peer) {
            self.close_lanes(before);
            self.up.guard().flush();
        }
    }

    /// The control link to a node is ready.
    pub(crate) fn linked(&self, node: &NodeId, offers: &Offers) {
        if let Some(peer) = self.up.pin().get(&node.name)
            && peer.node == *node
        {
            peer.contact.offers(offers);
            peer.contact.hear();
        }
    }

    /// A control connection to that address did not come about; it matters where a node is up that is to be reached there.
    pub(crate) fn not_dialled(&self, address: &Address, why: &str) {
        for (_, peer) in &self.up.pin() {
            if peer.address == *address {
                peer.contact.undialled.failed(&peer.node, address, why);
            }
        }
    }

    /// A node was heard on its control connection.
    pub(crate) fn heard(&self, node: &NodeId) {
        if let Some(peer) = self.up.pin().get(&node.name)
            && peer.node == *node
        {
            peer.contact.hear();
        }
    }

    pub(crate) fn member_down(&self, node: &NodeId) {
        let peers = self.up.pin();
        let down = peers.remove_if(&node.name, |_, peer| peer.node == *node);
        if let Ok(Some((_, peer))) = down {
            self.close_lanes(peer);
            self.up.guard().flush();
        }
    }

    /// That life of a peer is over. What was not written to it goes on.
    fn close_lanes(&self, peer: &Peer) {
        for lane in &peer.lanes {
            self.runtime.send_on(lane.close());
        }
    }

    /// Takes no calls to other nodes any more, and waits for the replies to those that were made; returns how many still
    /// wait when time is up. What was accepted to be sent is sent.
    pub(crate) async fn finish_own_calls(&self, until: Instant) -> usize {
        self.runtime.depart();
        // Rule: what was accepted and waits for a connection is not given up because this node goes.
        let waits = || {
            let peers = self.up.pin();
            let mut lanes = peers.values().flat_map(|peer| peer.lanes.iter());
            self.runtime.onward.is_at_work() || lanes.any(|lane| lane.waits_for_a_connection())
        };
        done_by(until, || !waits()).await;
        let open = || {
            let mut open = 0;
            for (_, peer) in &self.up.pin() {
                for lane in &peer.lanes {
                    lane.take_nothing_new();
                    open += usize::from(lane.is_open());
                }
            }
            open
        };
        if done_by(until, || open() == 0).await {
            return 0;
        }
        let peers = self.up.pin();
        let lanes = peers.values().flat_map(|peer| peer.lanes.iter());
        lanes.map(|lane| lane.pending()).sum()
    }

    /// Ends all connections to them as they are.
    pub(super) fn close(&self) {
        for (_, peer) in &self.up.pin() {
            for lane in &peer.lanes {
                let casts = lane.close().into_iter();
                self.runtime
                    .counters
                    .count_unsent(casts.filter(|out| out.frame.kind == kind::CAST).count() as u64);
            }
        }
        self.up.pin().clear();
    }

    pub(super) fn add_to(&self, stats: &mut DataStats) {
        for (name, peer) in &self.up.pin() {
            for lane in &peer.lanes {
                stats.connections_open += usize::from(lane.is_open());
                stats.calls_pending += lane.pending();
                stats.frames_queued += lane.queued();
            }
            if peer.lanes.iter().any(|lane| lane.is_suspended()) {
                stats.suspended.push(name.clone());
            }
        }
        stats.suspended.sort();
    }

    #[cfg(test)]
    pub(super) fn first_lane(&self, node: &NodeName) -> Option<Arc<Lane>> {
        let peers = self.up.pin();
        peers.get(node).map(|peer| Arc::clone(&peer.lanes[0]))
    }
}
