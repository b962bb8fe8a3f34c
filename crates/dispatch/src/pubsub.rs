//! Topics across the cluster: subscribe, broadcast, local and direct broadcast.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use keydispatch_core::message::Frame;
use keydispatch_core::{NameError, NodeName, Topic};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::call::CallError;
use crate::data::DataPlane;
use crate::data::wire::kind;

/// Messages that a subscriber may be behind before it is told that it lagged.
const BACKLOG: usize = 1_024;

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
        let (topic, payload) = self.check(topic, payload.into())?;
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
        self.data.topics.publish(&topic, &self.node, payload);
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

/// The subscribers of one node, by topic.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    by_topic: Mutex<HashMap<Topic, broadcast::Sender<TopicMessage>>>,
}

impl Topics {
    fn subscribe(&self, topic: Topic) -> TopicSubscription {
        let mut by_topic = self.by_topic.lock().unwrap_or_else(PoisonError::into_inner);
        // Topics whose subscribers have gone without another message.
        by_topic.retain(|_, sender| sender.receiver_count() > 0);
        let receiver = by_topic
            .entry(topic.clone())
            .or_insert_with(|| broadcast::channel(BACKLOG).0)
            .subscribe();
        TopicSubscription { topic, receiver }
    }

    pub(crate) fn publish(&self, topic: &Topic, from: &NodeName, payload: Bytes) {
        let mut by_topic = self.by_topic.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = by_topic.get(topic) else {
            return;
        };
        let message = TopicMessage {
            from: from.clone(),
            payload,
        };
        if sender.send(message).is_err() {
            by_topic.remove(topic);
        }
    }

    /// The node has stopped: every subscription ends after what it has not read yet.
    pub(crate) fn close(&self) {
        self.by_topic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

/// A subscription to one topic; see [`PubSub::subscribe`].
#[derive(Debug)]
pub struct TopicSubscription {
    topic: Topic,
    receiver: broadcast::Receiver<TopicMessage>,
}

impl TopicSubscription {
    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What is said next; none once the node has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<TopicEvent> {
        match self.receiver.recv().await {
            Ok(message) => Some(TopicEvent::Message(message)),
            Err(RecvError::Lagged(missed)) => Some(TopicEvent::Lagged { missed }),
            Err(RecvError::Closed) => None,
        }
    }
}
