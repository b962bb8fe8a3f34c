//! The other nodes, as they were last reported.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::identity::{Identity, MemberKey};
use crate::id::{Address, NodeId, NodeName};
use crate::limits::MAX_KNOWN_NODES;
use crate::time::Instant;

/// How many of the dead are dialled at once, the last of them being the one that waits longest.
const CANDIDATES_AT_ONCE: usize = 4;
/// Shortest and longest time between two dials of one dead node.
const REDIAL_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It is up.
    Up,
    /// It is up, and somebody did not reach it.
    Suspected,
    /// It is down, and may come back.
    Down,
    /// It said goodbye.
    Left,
}

/// One of the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// The node, in its latest life.
    pub node: NodeId,
    /// Where it is, or was, reached.
    pub address: Address,
    /// How it stands.
    pub state: MemberState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Up,
    Down,
    Left,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    status: Status,
    since: Instant,
    dialled: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct MemberList(BTreeMap<NodeName, Entry>);

impl MemberList {
    pub(super) fn identity(&self, name: &NodeName) -> Option<&Identity> {
        self.0.get(name).map(|entry| &entry.identity)
    }

    pub(super) fn up(&self, name: &NodeName) -> Option<&Identity> {
        self.0
            .get(name)
            .filter(|entry| entry.status == Status::Up)
            .map(|entry| &entry.identity)
    }

    pub(super) fn iter_up(&self) -> impl Iterator<Item = &Identity> {
        self.0
            .values()
            .filter(|entry| entry.status == Status::Up)
            .map(|entry| &entry.identity)
    }

    pub(super) fn any_up(&self) -> bool {
        self.iter_up().next().is_some()
    }

    pub(super) fn set(&mut self, identity: Identity, status: Status, since: Instant) {
        let entry = Entry {
            status,
            since,
            dialled: None,
            identity,
        };
        self.0.insert(entry.identity.node.name.clone(), entry);
    }

    /// The same node under another identity.
    pub(super) fn rename(&mut self, identity: Identity) {
        if let Some(entry) = self.0.get_mut(&identity.node.name) {
            entry.identity = identity;
        }
    }

    /// Notes a later identity of a node that is not up.
    pub(super) fn renew_dead(&mut self, now: Instant, identity: &Identity) {
        let Some(entry) = self.0.get_mut(&identity.node.name) else {
            return;
        };
        if entry.identity.node == identity.node {
            entry.identity.rejoins = entry.identity.rejoins.max(identity.rejoins);
        } else if entry.identity.node.generation < identity.node.generation {
            self.set(identity.clone(), Status::Down, now);
        }
    }

    /// Takes the living node of that name for dead; `None` where none lives.
    pub(super) fn set_down(&mut self, now: Instant, name: &NodeName) -> Option<NodeId> {
        let entry = self.0.get_mut(name)?;
        if entry.status != Status::Up {
            return None;
        }
        entry.status = Status::Down;
        entry.since = now;
        entry.dialled = None;
        Some(entry.identity.node.clone())
    }

    /// Takes all for dead.
    pub(super) fn all_down(&mut self, now: Instant) -> Vec<NodeId> {
        let up: Vec<NodeName> = self.iter_up().map(|up| up.node.name.clone()).collect();
        up.iter()
            .filter_map(|name| self.set_down(now, name))
            .collect()
    }

    /// Marks that life as left; false where it was already, or another is known.
    pub(super) fn leave(&mut self, now: Instant, node: &NodeId) -> bool {
        let Some(entry) = self.0.get_mut(&node.name) else {
            return false;
        };
        if entry.identity.node != *node || entry.status == Status::Left {
            return false;
        }
        entry.status = Status::Left;
        entry.since = now;
        true
    }

    /// True where anything is remembered of a name.
    pub(super) fn knows(&self, name: &NodeName) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn dial_candidates(&mut self, now: Instant) -> Vec<(NodeId, Address)> {
        let mut eligible: Vec<&mut Entry> = self
            .0
            .values_mut()
            .filter(|entry| entry.status == Status::Down)
            .filter(|entry| {
                let interval = (now.since(entry.since) / 4).clamp(REDIAL_RANGE.0, REDIAL_RANGE.1);
                entry.dialled.is_none_or(|at| now.since(at) >= interval)
            })
            .collect();
        eligible.sort_by_key(|entry| Reverse(entry.since));
        if let Some(rest) = eligible.get_mut(CANDIDATES_AT_ONCE - 1..) {
            rest.sort_by_key(|entry| entry.dialled);
        }
        eligible
            .into_iter()
            .take(CANDIDATES_AT_ONCE)
            .map(|entry| {
                entry.dialled = Some(now);
                (entry.identity.node.clone(), entry.identity.address.clone())
            })
            .collect()
    }

    pub(super) fn members(
        &self,
        suspects: BTreeSet<MemberKey>,
    ) -> impl Iterator<Item = MemberInfo> + '_ {
        self.0.values().map(move |entry| MemberInfo {
            node: entry.identity.node.clone(),
            address: entry.identity.address.clone(),
            state: match entry.status {
                Status::Up if suspects.contains(&entry.identity.key()) => MemberState::Suspected,
                Status::Up => MemberState::Up,
                Status::Down => MemberState::Down,
                Status::Left => MemberState::Left,
            },
        })
    }

    /// Forgets who has been gone for `kept`.
    pub(super) fn sweep(&mut self, now: Instant, kept: Duration) {
        self.0
            .retain(|_, entry| entry.status == Status::Up || now.since(entry.since) < kept);
    }

    /// Forgets the longest dead where there are too many names.
    pub(super) fn cap(&mut self) {
        while self.0.len() > MAX_KNOWN_NODES {
            let oldest = self
                .0
                .iter()
                .filter(|(_, entry)| entry.status != Status::Up)
                .min_by_key(|(_, entry)| entry.since)
                .map(|(name, _)| name.clone());
            let Some(name) = oldest else {
                return;
            };
            self.0.remove(&name);
        }
    }
}
