//! Refused connections as evidence of death.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{NodeId, NodeName};
use crate::time::Instant;

/// What speaks against each node.
#[derive(Default)]
pub(super) struct Evidence(BTreeMap<NodeId, Case>);

#[derive(Default)]
struct Case {
    /// When this node's own evidence is to be judged, where it has any.
    own: Option<Instant>,
    /// Who reported the same, and when.
    reports: BTreeMap<NodeName, Instant>,
}

impl Evidence {
    /// Notes that the node refused this one; false where that is noted already.
    pub(super) fn refused_here(&mut self, node: &NodeId, judge_at: Instant) -> bool {
        let case = self.0.entry(node.clone()).or_default();
        let new = case.own.is_none();
        case.own.get_or_insert(judge_at);
        new
    }

    pub(super) fn reported(&mut self, node: &NodeId, by: &NodeId, now: Instant) {
        let case = self.0.entry(node.clone()).or_default();
        case.reports.insert(by.name.clone(), now);
    }

    /// True where this node and another, within `fresh`, were refused.
    pub(super) fn is_conclusive(&self, node: &NodeId, now: Instant, fresh: Duration) -> bool {
        self.0.get(node).is_some_and(|case| {
            case.own.is_some() && case.reports.values().any(|at| now.since(*at) <= fresh)
        })
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        self.0.remove(node);
    }

    /// The nodes whose time is up; their own evidence is spent.
    pub(super) fn due(&mut self, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (node, case) in &mut self.0 {
            if case.own.take_if(|at| *at <= now).is_some() {
                due.push(node.clone());
            }
        }
        due
    }

    pub(super) fn postpone(&mut self, now: Instant, later: Instant) {
        for case in self.0.values_mut() {
            if let Some(at) = case.own.as_mut().filter(|at| **at <= now) {
                *at = later;
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter_map(|case| case.own).min()
    }

    pub(super) fn sweep(&mut self, now: Instant, fresh: Duration) {
        self.0.retain(|_, case| {
            case.reports.retain(|_, at| now.since(*at) <= fresh);
            case.own.is_some() || !case.reports.is_empty()
        });
    }
}
