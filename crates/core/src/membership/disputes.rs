//! Who is up here and taken for dead by others, until it has answered; see [`death_notices`](super::death_notices).

use std::collections::BTreeMap;
use std::time::Duration;

use foca::Incarnation;

use crate::id::NodeId;
use crate::time::Instant;

/// How often a death notice is passed on, and how often the accused heeds one.
pub(super) const DEATH_NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// The nodes that others take for dead, and that are up here.
#[derive(Default)]
pub(super) struct Disputes(BTreeMap<NodeId, Dispute>);

/// One of them.
pub(super) struct Dispute {
    /// When it is checked.
    pub(super) at: Instant,
    /// What it was up as when the notice came, or when it was suspected.
    pub(super) as_of: (u32, Incarnation),
    /// It did not answer, and is suspected since.
    pub(super) suspected: bool,
}

impl Disputes {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().map(|dispute| dispute.at).min()
    }

    /// What should have been heard by now may still wait to be read.
    pub(super) fn postpone(&mut self, now: Instant, later: Instant) {
        for dispute in self.0.values_mut().filter(|dispute| dispute.at <= now) {
            dispute.at = later;
        }
    }

    pub(super) fn is_open(&self, node: &NodeId) -> bool {
        self.0.contains_key(node)
    }

    pub(super) fn open(&mut self, node: NodeId, dispute: Dispute) {
        self.0.insert(node, dispute);
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(NodeId, Dispute)> {
        self.0
            .extract_if(.., |_, dispute| dispute.at <= now)
            .collect()
    }
}
