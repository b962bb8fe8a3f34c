//! Topics across the cluster: subscribe, broadcast, local and direct broadcast.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use keydispatch_core::message::Frame;
use keydispatch_core::{NameError, NodeName, Topic};

use crate::backlog::{Held, Share};
use crate::call::CallError;
use crate::data::DataPlane;
use crate::data::wire::kind;
use crate::fanout::{Bounds, Fanout, Heard, Reader, ReaderId, Weigh};

/// Messages that a subscriber may be behind before it is told that it lagged.
const BACKLOG: usize = 1_024;

/// Bytes that a subscriber of a topic may be behind before it is told that it lagged, unless
/// [`NodeBuilder::topic_bytes`](crate::NodeBuilder::topic_bytes) says otherwise: 64 MiB.
pub const DEFAULT_TOPIC_BYTES: usize = 64 * 1024 * 1024;

/// Something that was said on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicMessage {
    /// The node that said it.
    pub from: NodeName,
    /// What was said.
    pub payload: Bytes,
}

/// What a subscriber of a topic is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicEvent {
    /// A message.
    Message(TopicMessage),
    /// The subscriber was too slow: so many messages were dropped.
    Lagged {
        /// How many.
        missed: u64,
    },
}

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
    data: Arc<DataPlane>,
    node: NodeName,
}

impl PubSub {
    pub(crate) fn new(data: Arc<DataPlane>, node: NodeName) -> Self {
        PubSub { data, node }
    }

    /// What is said on a topic from now on. Dropping it ends it.
    pub fn subscribe(&self, topic: &str) -> Result<TopicSubscription, NameError> {
        Ok(self.data.topics.subscribe(Topic::try_new(topic)?))
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
            .data
            .nodes()
            .iter()
            .filter(|node| {
                let sent = self.data.send_to_node(node, frame.clone(), payload.len());
                sent.is_ok()
            })
            .count();
        let topics = &self.data.topics;
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
        self.data.topics.publish(&topic, &self.node, payload);
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
        let topics = &self.data.topics;
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
            self.data.topics.publish(&topic, &self.node, payload);
            return Ok(());
        }
        let frame = frame(&topic, &payload);
        match self.data.send_to_node(&node, frame, payload.len()) {
            Err(CallError::TooLarge { limit, .. }) => Err(BroadcastError::TooLarge {
                bytes: payload.len(),
                limit,
            }),
            sent => Ok(sent?),
        }
    }

    fn check(&self, topic: &str, payload: Bytes) -> Result<(Topic, Bytes), BroadcastError> {
        let topic = Topic::try_new(topic)?;
        let limit = self.data.max_payload_bytes();
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

/// A message that waits, and the room that it takes until the last of its subscribers has it.
#[derive(Clone)]
struct Waiting {
    message: TopicMessage,
    _held: Arc<Held>,
}

impl Weigh for Waiting {
    fn bytes(&self) -> usize {
        self.message.payload.len()
    }
}

/// The subscribers of one node, by topic.
#[derive(Debug)]
pub(crate) struct Topics {
    fanout: Fanout<Topic, Waiting>,
    /// Of what this node says itself.
    own: Arc<Share>,
}

impl Topics {
    /// `bytes` may wait for each subscription.
    pub(crate) fn new(bytes: usize, own: Arc<Share>) -> Self {
        Topics {
            fanout: Fanout::new(Bounds {
                messages: BACKLOG,
                bytes,
            }),
            own,
        }
    }

    fn subscribe(&self, topic: Topic) -> TopicSubscription {
        TopicSubscription {
            reader: self.fanout.subscribe(topic.clone()),
            topic,
        }
    }

    pub(crate) fn publish(&self, topic: &Topic, from: &NodeName, payload: Bytes) {
        self.publish_in(None, topic, from, payload, &self.own);
    }

    /// What a peer said: it waits in that peer's share.
    pub(crate) fn publish_from(
        &self,
        topic: &Topic,
        from: &NodeName,
        payload: Bytes,
        share: &Arc<Share>,
    ) {
        self.publish_in(None, topic, from, payload, share);
    }

    fn publish_but(
        &self,
        skip: Option<SubscriptionId>,
        topic: &Topic,
        from: &NodeName,
        payload: Bytes,
    ) {
        self.publish_in(skip, topic, from, payload, &self.own);
    }

    fn publish_in(
        &self,
        skip: Option<SubscriptionId>,
        topic: &Topic,
        from: &NodeName,
        payload: Bytes,
        share: &Arc<Share>,
    ) {
        let skip = skip.map(|SubscriptionId(id)| id);
        if !self.fanout.has_readers(topic) {
            return;
        }
        match share.take(payload.len()) {
            Some(held) => self.fanout.publish(topic, skip, || Waiting {
                message: TopicMessage {
                    from: from.clone(),
                    payload,
                },
                _held: Arc::new(held),
            }),
            None => self.fanout.publish_a_miss(topic, skip),
        }
    }

    /// The node has stopped: every subscription ends after what it has not read yet.
    pub(crate) fn close(&self) {
        self.fanout.close();
    }
}

/// Names one subscription of this process, for [`PubSub::broadcast_from`]; see [`TopicSubscription::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionId(ReaderId);

/// A subscription to one topic; see [`PubSub::subscribe`].
///
/// It is a [`Stream`], too, of what [`next`](Self::next) gives.
#[derive(Debug)]
pub struct TopicSubscription {
    topic: Topic,
    reader: Reader<Topic, Waiting>,
}

impl TopicSubscription {
    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What names it where something is to be said to all others: never given to another subscription of this process.
    pub fn id(&self) -> SubscriptionId {
        SubscriptionId(self.reader.id())
    }

    /// What is said next; none once the node has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<TopicEvent> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<TopicEvent>> {
        self.reader.poll_next(cx).map(|heard| {
            Some(match heard? {
                Heard::Message(waiting) => TopicEvent::Message(waiting.message),
                Heard::Lagged(missed) => TopicEvent::Lagged { missed },
            })
        })
    }
}

impl Stream for TopicSubscription {
    type Item = TopicEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TopicEvent>> {
        self.get_mut().poll_event(cx)
    }
}
