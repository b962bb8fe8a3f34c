//! Who is in the cluster.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use keydispatch_core::message::Address;
use keydispatch_core::{MemberInfo, MemberState, NodeId, NodeName};

use crate::fanout::{Bounds, Fanout, Heard, Reader, Weigh};

/// Changes that a subscriber may be behind before it is told that it lagged.
const BACKLOG: Bounds = Bounds {
    messages: 1_024,
    bytes: usize::MAX,
};

/// Another node of the cluster, as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The node, in its current or last life.
    pub node: NodeId,
    /// Where it is reached.
    pub address: Address,
    /// Whether it lives.
    pub state: MemberState,
}

impl Member {
    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.node.name
    }

    /// True where it is up, suspected or not.
    pub fn is_up(&self) -> bool {
        matches!(self.state, MemberState::Up | MemberState::Suspected)
    }

    pub(crate) fn roster(members: &[MemberInfo]) -> Vec<Member> {
        members
            .iter()
            .map(|member| Member {
                node: member.node.clone(),
                address: member.address.clone(),
                state: member.state,
            })
            .collect()
    }
}

/// A node that came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberChange {
    /// It is up.
    Up {
        /// The node, in this life.
        node: NodeId,
        /// Where it is reached.
        address: Address,
    },
    /// It is down, and may come back.
    Down {
        /// The node, in that life.
        node: NodeId,
    },
    /// It has left for good.
    Left {
        /// The node, in that life.
        node: NodeId,
    },
    /// The subscriber was too slow: so many changes were dropped. [`Node::members`](crate::Node::members) says how
    /// things stand.
    Lagged {
        /// How many.
        missed: u64,
    },
}

impl Weigh for MemberChange {}

/// Those who are told of members; none after the node has stopped.
#[derive(Debug)]
pub(crate) struct MemberWatchers(Fanout<(), MemberChange>);

impl Default for MemberWatchers {
    fn default() -> Self {
        MemberWatchers(Fanout::new(BACKLOG))
    }
}

impl MemberWatchers {
    pub(crate) fn subscribe(&self) -> MemberChanges {
        MemberChanges {
            reader: self.0.subscribe(()),
        }
    }

    pub(crate) fn publish(&self, change: MemberChange) {
        self.0.publish(&(), None, || change);
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }
}

/// A subscription to the nodes that come and go. Dropping it ends it.
///
/// It is a [`Stream`], too, of what [`next`](Self::next) gives.
#[derive(Debug)]
pub struct MemberChanges {
    reader: Reader<(), MemberChange>,
}

impl MemberChanges {
    /// The next change; none once the node has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<MemberChange> {
        poll_fn(|cx| self.poll_change(cx)).await
    }

    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<MemberChange>> {
        self.reader.poll_next(cx).map(|heard| {
            Some(match heard? {
                Heard::Message(change) => change,
                Heard::Lagged(missed) => MemberChange::Lagged { missed },
            })
        })
    }
}

impl Stream for MemberChanges {
    type Item = MemberChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MemberChange>> {
        self.get_mut().poll_change(cx)
    }
}
