//! What speaks for and against each node, of what connections say; see [`refusals`](super::refusals).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{NodeId, NodeName};
use crate::time::Instant;

/// What a refused dial says of the node that was expected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedDial {
    /// There was a link to it, which broke; otherwise it was only said to be up.
    pub lost: bool,
    /// How long the answer took: one round trip.
    pub took: Duration,
}

/// What speaks against each node, and for it.
#[derive(Default)]
pub(super) struct Evidence(BTreeMap<NodeId, NodeEvidence>);

/// Of one life of a node.
#[derive(Default)]
pub(super) struct NodeEvidence {
    pub(super) own: Option<OwnEvidence>,
    /// Who reported that its link broke and that it was refused, and when.
    pub(super) reports: BTreeMap<NodeName, Instant>,
    /// Who holds a link, and when it said so.
    pub(super) vouchers: BTreeMap<NodeName, Instant>,
    /// To whom this node vouched: they hear where that is over.
    pub(super) promised: BTreeSet<NodeId>,
}

/// This node's own evidence, until it is checked.
pub(super) struct OwnEvidence {
    /// The link to it broke.
    pub(super) lost: bool,
    pub(super) refusals: u32,
    /// When it is checked, whoever has answered by then.
    pub(super) check_at: Instant,
    /// From when it is checked where nobody else is left to ask; none once that time has come.
    pub(super) alone_at: Option<Instant>,
    /// Who was asked and has not answered yet.
    pub(super) asked: BTreeSet<NodeName>,
}

impl NodeEvidence {
    pub(super) fn is_vouched_for(&self, now: Instant, fresh: Duration) -> bool {
        self.vouchers.values().any(|at| now.since(*at) <= fresh)
    }
}

impl Evidence {
    pub(super) fn remove(&mut self, node: &NodeId) {
        self.0.remove(node);
    }

    /// That node is linked: nothing that was said of it before counts.
    pub(super) fn clear(&mut self, node: &NodeId) {
        if let Some(case) = self.0.get_mut(node) {
            let promised = std::mem::take(&mut case.promised);
            *case = NodeEvidence {
                promised,
                ..NodeEvidence::default()
            };
        }
    }

    /// All of whom something was said.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.0.keys().cloned().collect()
    }

    pub(super) fn get(&self, node: &NodeId) -> Option<&NodeEvidence> {
        self.0.get(node)
    }

    /// The nodes whose time is up, each with whether a link to it broke; the evidence is spent.
    pub(super) fn due(&mut self, now: Instant, fresh: Duration) -> Vec<(NodeId, bool)> {
        let mut due = Vec::new();
        for (node, case) in &mut self.0 {
            let Some(own) = case.own.take_if(|own| own.check_at <= now) else {
                continue;
            };
            if !case.is_vouched_for(now, fresh) {
                due.push((node.clone(), own.lost));
            }
        }
        due
    }

    /// The nodes of which it is time to ask whether anybody else is left to ask.
    pub(super) fn due_alone(&mut self, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (node, case) in &mut self.0 {
            let own = case.own.as_mut();
            if own.is_some_and(|own| own.alone_at.take_if(|at| *at <= now).is_some()) {
                due.push(node.clone());
            }
        }
        due
    }

    pub(super) fn postpone(&mut self, now: Instant, later: Instant) {
        for own in self.0.values_mut().filter_map(|case| case.own.as_mut()) {
            if own.check_at <= now {
                own.check_at = later;
            }
            if let Some(at) = own.alone_at.as_mut().filter(|at| **at <= now) {
                *at = later;
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let own = self.0.values().filter_map(|case| case.own.as_ref());
        own.map(|own| own.alone_at.map_or(own.check_at, |at| at.min(own.check_at)))
            .min()
    }

    pub(super) fn sweep(&mut self, now: Instant, fresh: Duration) {
        self.0.retain(|_, case| {
            case.reports.retain(|_, at| now.since(*at) <= fresh);
            case.own.is_some()
                || !case.reports.is_empty()
                || !case.vouchers.is_empty()
                || !case.promised.is_empty()
        });
    }

    pub(super) fn case(&mut self, node: &NodeId) -> &mut NodeEvidence {
        self.0.entry(node.clone()).or_default()
    }

    /// The link to it broke, and it was refused here.
    pub(super) fn is_lost(&self, node: &NodeId) -> bool {
        self.own(node).is_some_and(|own| own.lost)
    }

    pub(super) fn own(&self, node: &NodeId) -> Option<&OwnEvidence> {
        self.0.get(node)?.own.as_ref()
    }
}
