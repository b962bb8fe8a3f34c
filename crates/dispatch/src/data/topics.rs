//! Who has subscribed to what on this node, and what is said to them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use keydispatch_core::{NodeName, Topic};

use crate::backlog::{Held, Share};
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

/// A message that waits, and the room that it takes until the last of its subscribers has it.
#[derive(Clone)]
struct WaitingMessage {
    message: TopicMessage,
    _held: Arc<Held>,
}

impl Weigh for WaitingMessage {
    fn bytes(&self) -> usize {
        self.message.payload.len()
    }
}

/// The subscribers of one node, by topic.
#[derive(Debug)]
pub(crate) struct Topics {
    fanout: Fanout<Topic, WaitingMessage>,
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

    pub(crate) fn subscribe(&self, topic: Topic) -> TopicSubscription {
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

    pub(crate) fn publish_but(
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
            Some(held) => self.fanout.publish(topic, skip, || WaitingMessage {
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

/// Names one subscription of this process, for [`PubSub::broadcast_from`](crate::PubSub::broadcast_from); see [`TopicSubscription::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionId(ReaderId);

/// A subscription to one topic; see [`PubSub::subscribe`](crate::PubSub::subscribe).
///
/// It is a [`Stream`], too, of what [`next`](Self::next) gives.
#[derive(Debug)]
pub struct TopicSubscription {
    topic: Topic,
    reader: Reader<Topic, WaitingMessage>,
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
