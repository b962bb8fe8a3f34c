//! The data lane: calls, casts and broadcasts between nodes, beside the control connections.
//!
//! Its jobs are parts that know of each other as little as they can: the services of this node, the peers, the topics, the
//! connections that peers have opened, and below them what all connections need. Whoever needs one of them takes that one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use keydispatch_core::Directory;
use keydispatch_core::message::Hello;

use crate::runtime::Runtimes;
use crate::transport::Transport;

mod activity;
pub(crate) mod aim;
pub(crate) mod caller;
pub(crate) mod callers;
mod contact;
mod error;
mod forward;
mod helped;
mod hints;
pub(crate) mod inbound;
pub(crate) mod lane;
pub(crate) mod lane_runtime;
pub(crate) mod local;
pub(crate) mod mailbox;
mod onward;
mod outbox;
mod parked;
pub(crate) mod peers;
mod places;
mod pump;
mod reach;
pub(crate) mod reply;
pub(crate) mod stats;
pub(crate) mod tasks;
pub(crate) mod tokens;
pub(crate) mod topics;
mod undialled;
pub(crate) mod wire;

use callers::Callers;
use forward::Forwarder;
use inbound::Answering;
use lane_runtime::{LaneRuntime, Limits};
use local::Local;
use peers::Peers;
use stats::DataStats;
use tokens::TokenInputs;
use topics::Topics;

/// What the data lane is started with.
pub(crate) struct DataConfig {
    pub(crate) transport: Option<Arc<dyn Transport>>,
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pool_size: usize,
    pub(crate) limits: Limits,
    pub(crate) topic_bytes: usize,
    pub(crate) runtimes: Runtimes,
    pub(crate) tokens: TokenInputs,
}

/// The parts of the data lane: for the node, which starts it, and the driver, which ends it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DataLane {
    /// What the connections need of the node.
    pub(crate) runtime: Arc<LaneRuntime>,
    /// The services that run here.
    pub(crate) local: Arc<Local>,
    /// The nodes that are up.
    pub(crate) peers: Arc<Peers>,
    pub(crate) topics: Arc<Topics>,
    /// The connections that peers have opened.
    pub(crate) callers: Arc<Callers>,
    /// The way to the driver for what concerns states.
    pub(crate) tokens: TokenInputs,
}

impl DataLane {
    pub(crate) fn new(config: DataConfig) -> Self {
        let runtime = LaneRuntime::new(
            config.transport,
            config.hello,
            config.directory,
            config.limits,
            config.runtimes.clone(),
        );
        let local = Local::new(config.runtimes);
        let peers = Peers::new(&runtime, config.pool_size);
        let topics = Arc::new(Topics::new(config.topic_bytes, runtime.own_share()));
        let forwarder = Forwarder::new(&runtime, &local, &peers);
        runtime.onward.forward_by(move || forwarder.begin());
        DataLane {
            runtime,
            local,
            peers,
            topics,
            callers: Arc::default(),
            tokens: config.tokens,
        }
    }

    /// What answers the connections that peers open.
    pub(crate) fn answering(&self) -> Arc<Answering> {
        Arc::new(Answering {
            runtime: Arc::clone(&self.runtime),
            local: Arc::clone(&self.local),
            peers: Arc::clone(&self.peers),
            topics: Arc::clone(&self.topics),
            callers: Arc::clone(&self.callers),
            tokens: self.tokens.clone(),
        })
    }

    /// Ends everything that runs here.
    pub(crate) fn close(&self) {
        self.local.refuse_more();
        self.runtime.close();
        self.peers.close();
        self.local.close();
        self.topics.close();
        self.runtime.stop_tasks();
    }

    pub(crate) fn stats(&self) -> DataStats {
        let counters = &self.runtime.counters;
        let backlog = &self.runtime.backlog;
        let mut stats = DataStats {
            calls_sent: counters.calls_sent.load(Ordering::Relaxed),
            calls_received: counters.calls_received.load(Ordering::Relaxed),
            casts_sent: counters.casts_sent.load(Ordering::Relaxed),
            casts_unsent: counters.casts_unsent.load(Ordering::Relaxed),
            casts_received: counters.casts_received.load(Ordering::Relaxed),
            casts_dropped: counters.casts_dropped.load(Ordering::Relaxed),
            too_large_for_peer: counters.too_large_for_peer.load(Ordering::Relaxed),
            undecodable: counters.undecodable.load(Ordering::Relaxed),
            connections_opened: counters.connections_opened.load(Ordering::Relaxed),
            connections_inbound: self.callers.places.count() as u64,
            waiting_bytes: backlog.waiting(),
            max_waiting_bytes: backlog.limit(),
            refused_for_want_of_room: backlog.refused(),
            task_panics: self.runtime.tasks().panics(),
            key_panics: counters.key_panics.load(Ordering::Relaxed),
            parked: counters.parked.count(),
            parked_p99: counters.parked.p99(),
            parked_longest: counters.parked.longest(),
            ..DataStats::default()
        };
        self.local.add_to(&mut stats);
        self.peers.add_to(&mut stats);
        stats
    }
}

#[cfg(test)]
mod tests;
