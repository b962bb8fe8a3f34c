//! What the registry logs of what it sees, by `registry.log_level`.

use keydispatch_core::{ClusterEvent, Escaped, NodeName};
use tracing::Level;

use crate::config::LogLevel;
use crate::log_limit::{LogLimit, LogNow};

/// The log of one node's registry; its lines have the target `keydispatch::registry`.
#[derive(Debug)]
pub(crate) struct EventLog {
    node: NodeName,
    level: LogLevel,
    log_limit: LogLimit,
}

impl EventLog {
    pub(crate) fn new(node: NodeName, level: LogLevel) -> Self {
        EventLog {
            node,
            level,
            log_limit: LogLimit::default(),
        }
    }

    pub(crate) fn write(&self, event: &ClusterEvent) {
        if !self.level.allows(level(event)) {
            return;
        }
        let node = &self.node;
        match event {
            ClusterEvent::Registry { event, .. } => {
                tracing::debug!(target: "keydispatch::registry", %node, ?event);
            }
            ClusterEvent::MemberUp {
                node: peer,
                address,
            } => {
                tracing::info!(target: "keydispatch::registry", %node, %peer, %address, "up");
            }
            ClusterEvent::MemberDown { node: peer } => {
                tracing::info!(target: "keydispatch::registry", %node, %peer, "down");
            }
            ClusterEvent::MemberLeft { node: peer } => {
                tracing::info!(target: "keydispatch::registry", %node, %peer, "left");
            }
            ClusterEvent::Synced => {
                tracing::debug!(target: "keydispatch::registry", %node, "synced");
            }
            ClusterEvent::Renewed { node: now } => {
                tracing::warn!(target: "keydispatch::registry", %node, %now, "took a higher generation");
            }
            ClusterEvent::NameTaken { by } => {
                let by = by.as_ref().map(tracing::field::display);
                tracing::error!(target: "keydispatch::registry", %node, by, "a living node has this name: stopping");
            }
            ClusterEvent::Isolated => {
                tracing::warn!(target: "keydispatch::registry", %node, "cut off: heard from nobody");
            }
            // A peer that does the same wrong thing on every connection is logged once.
            ClusterEvent::Warning { about, message } => {
                if let Some(LogNow { suppressed }) = self.log_limit.should_log(about, message) {
                    tracing::warn!(target: "keydispatch::registry", %node, suppressed, "{}", Escaped(message));
                }
            }
            _ => {}
        }
    }
}

fn level(event: &ClusterEvent) -> Level {
    match event {
        ClusterEvent::NameTaken { .. } => Level::ERROR,
        ClusterEvent::Renewed { .. } | ClusterEvent::Isolated | ClusterEvent::Warning { .. } => {
            Level::WARN
        }
        ClusterEvent::Registry { .. } | ClusterEvent::Synced => Level::DEBUG,
        _ => Level::INFO,
    }
}
