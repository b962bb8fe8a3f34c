//! Topics across the cluster: subscribe, broadcast, local and direct broadcast.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use keydispatch_core::message::Frame;
use keydispatch_core::{NameError, NodeName, Topic};

use crate::call::CallError;
use crate::data::lane_runtime::LaneRuntime;
use crate::data::peers::Peers;
use crate::data::topics::{SubscriptionId, TopicSubscription, Topics};
use crate::data::wire::kind;

/// Why a broadcast was not sent.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BroadcastError {
    /// The topic, or the node's name, is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The payload is over the limit.
    #[error("a message of {bytes} bytes is over the limit of {limit} (max_payload_bytes)")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// It was not sent to that one node.
    #[error(transparent)]
    NotSent(#[from] CallError),
}

keydispatch_core::debug_as_display!(BroadcastError);

/// The topics of a node.
///
/// Messages are sent at most once, and in the order in which one node sends them. Nothing is kept for subscribers to come.
/// What waits for one subscription is bounded: 1,024 messages, and as many bytes as
/// [`NodeBuilder::topic_bytes`](crate::NodeBuilder::topic_bytes) says; beyond that it loses the oldest, and is told. So is who
/// misses a message because no more may wait on the node in all
/// ([`NodeBuilder::waiting_bytes`](crate::NodeBuilder::waiting_bytes)).
#[derive(Clone)]
pub struct PubSub {
    topics: Arc<Topics>,
    peers: Arc<Peers>,
    runtime: Arc<LaneRuntime>,
    node: NodeName,
}

impl PubSub {
    pub(crate) fn new(
        topics: Arc<Topics>,
        peers: Arc<Peers>,
        runtime: Arc<LaneRuntime>,
        node: NodeName,
    ) -> Self {
        PubSub {
            topics,
            peers,
            runtime,
            node,
        }
    }

    /// What is said on a topic from now on. Dropping it ends it.
    pub fn subscribe(&self, topic: &str) -> Result<TopicSubscription, NameError> {
        Ok(self.topics.subscribe(Topic::try_new(topic)?))
    }

    /// Says something to the subscribers on every node. Returns how many other nodes it was sent to: one whose queue is
    /// full, that cannot be reached, or that takes only shorter payloads, misses it.
    pub fn broadcast(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<usize, BroadcastError> {
        self.broadcast_but(None, topic, payload.into())
    }

    /// As [`broadcast`](Self::broadcast), but not to that subscription: whoever speaks need not hear himself. Of all
    /// others of the topic, here and elsewhere, none is left out; nor is any where it is of another topic, or has ended.
    pub fn broadcast_from(
        &self,
        from: SubscriptionId,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<usize, BroadcastError> {
        self.broadcast_but(Some(from), topic, payload.into())
    }

    fn broadcast_but(
        &self,
        from: Option<SubscriptionId>,
        topic: &str,
        payload: Bytes,
    ) -> Result<usize, BroadcastError> {
        let (topic, payload) = self.check(topic, payload)?;
        let frame = frame(&topic, &payload);
        let sent = self
            .peers
            .nodes()
            .iter()
            .filter(|node| {
                let sent = self.peers.send_to_node(node, frame.clone(), payload.len());
                sent.is_ok()
            })
            .count();
        let topics = &self.topics;
        topics.publish_but(from, &topic, &self.node, payload);
        Ok(sent)
    }

    /// Says something to the subscribers on this node alone.
    pub fn local_broadcast(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<(), BroadcastError> {
        let (topic, payload) = self.check(topic, payload.into())?;
        self.topics.publish(&topic, &self.node, payload);
        Ok(())
    }

    /// As [`local_broadcast`](Self::local_broadcast), but not to that subscription.
    pub fn local_broadcast_from(
        &self,
        from: SubscriptionId,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<(), BroadcastError> {
        let (topic, payload) = self.check(topic, payload.into())?;
        let topics = &self.topics;
        topics.publish_but(Some(from), &topic, &self.node, payload);
        Ok(())
    }

    /// Says something to the subscribers on one node alone.
    pub fn direct_broadcast(
        &self,
        node: &str,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<(), BroadcastError> {
        let (topic, payload) = self.check(topic, payload.into())?;
        let node = NodeName::try_new(node)?;
        if node == self.node {
            self.topics.publish(&topic, &self.node, payload);
            return Ok(());
        }
        let frame = frame(&topic, &payload);
        match self.peers.send_to_node(&node, frame, payload.len()) {
            Err(CallError::TooLarge { limit, .. }) => Err(BroadcastError::TooLarge {
                bytes: payload.len(),
                limit,
            }),
            sent => Ok(sent?),
        }
    }

    fn check(&self, topic: &str, payload: Bytes) -> Result<(Topic, Bytes), BroadcastError> {
        let topic = Topic::try_new(topic)?;
        let limit = self.runtime.max_payload_bytes();
        if payload.len() > limit {
            return Err(BroadcastError::TooLarge {
                bytes: payload.len(),
                limit,
            });
        }
        Ok((topic, payload))
    }
}

impl std::fmt::Debug for PubSub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PubSub")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn frame(topic: &Topic, payload: &Bytes) -> Frame {
    let head = postcard::to_allocvec(topic).expect("a name is plain data, which postcard can hold");
    let mut body = BytesMut::with_capacity(head.len() + payload.len());
    body.put_slice(&head);
    body.put_slice(payload);
    Frame {
        kind: kind::BROADCAST,
        body: body.freeze(),
    }
}
