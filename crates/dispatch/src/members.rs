//! Who is in the cluster.

use std::sync::{Mutex, PoisonError};

use keydispatch_core::message::Address;
use keydispatch_core::{MemberInfo, MemberState, NodeId, NodeName};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

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

/// Those who are told of members; none after the node has stopped.
#[derive(Debug)]
pub(crate) struct MemberWatchers {
    sender: Mutex<Option<broadcast::Sender<MemberChange>>>,
}

impl MemberWatchers {
    pub(crate) fn new(backlog: usize) -> Self {
        MemberWatchers {
            sender: Mutex::new(Some(broadcast::channel(backlog).0)),
        }
    }

    pub(crate) fn subscribe(&self) -> MemberChanges {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = match &*sender {
            Some(sender) => sender.subscribe(),
            // Closed from the start: the sender is dropped here.
            None => broadcast::channel(1).1,
        };
        MemberChanges { receiver }
    }

    pub(crate) fn publish(&self, change: MemberChange) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // Nobody may be listening.
            let _ = sender.send(change);
        }
    }

    pub(crate) fn close(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A subscription to the nodes that come and go. Dropping it ends it.
#[derive(Debug)]
pub struct MemberChanges {
    receiver: broadcast::Receiver<MemberChange>,
}

impl MemberChanges {
    /// The next change; none once the node has stopped.
    pub async fn next(&mut self) -> Option<MemberChange> {
        match self.receiver.recv().await {
            Ok(change) => Some(change),
            Err(RecvError::Lagged(missed)) => Some(MemberChange::Lagged { missed }),
            Err(RecvError::Closed) => None,
        }
    }
}
