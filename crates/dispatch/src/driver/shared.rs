//! What the driver shares with whoever reads and asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use keydispatch_core::{Directory, NodeName, Zone};
use tokio::sync::mpsc;

use super::clock::Longest;
use super::command::Command;
use crate::claim::Removals;
use crate::watch::members::{Member, MemberWatchers};
use crate::watch::services::Watchers;

/// What readers and the driver share.
#[derive(Debug)]
pub(crate) struct NodeShared {
    pub(crate) name: NodeName,
    pub(crate) nonce: u64,
    pub(crate) zone: Option<Zone>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) watchers: Watchers,
    pub(crate) roster: ArcSwap<Vec<Member>>,
    pub(crate) member_changes: MemberWatchers,
    pub(crate) longest_turn: Longest,
    sequences: AtomicU64,
    pub(crate) removals: Arc<Removals>,
}

impl NodeShared {
    pub(crate) fn new(
        name: NodeName,
        nonce: u64,
        zone: Option<Zone>,
        directory: Arc<Directory>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        NodeShared {
            name,
            nonce,
            zone,
            directory,
            commands,
            watchers: Watchers::default(),
            roster: ArcSwap::default(),
            member_changes: MemberWatchers::default(),
            longest_turn: Longest::default(),
            sequences: AtomicU64::new(1),
            removals: Arc::default(),
        }
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequences.fetch_add(1, Ordering::Relaxed)
    }

    /// The node has stopped: nothing is found any more, and whoever waits for news here hears the end of them.
    pub(crate) fn close(&self) {
        // First, so that nobody who hears the end still finds what was there.
        self.directory.clear();
        self.watchers.close();
        self.member_changes.close();
    }
}
