//! Who has the states of which keys: the driver's half of the token protocol.
//!
//! The machine of the core hears from here what the cluster tells, what peers say and what services give; what it wants said
//! goes to the peers, and what it tells goes to the services.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::ownership::{Ownership, OwnershipConfig, TokenEvent};
use keydispatch_core::{
    Cluster, ClusterEvent, Escaped, Instant, NodeId, ServiceId, ServiceInfo, ServiceType,
};

use super::command::StatesLeft;
use super::turn::Turn;
use crate::data::DataLane;
use crate::data::local::Local;
use crate::data::mailbox::letter::KeyedMailbox;
use crate::data::peers::Peers;
use crate::data::tokens::{TokenInput, TokenReceivers};

/// Peers of a lower minor version know nothing of tokens.
const MINOR_KNOWS_TOKENS: u16 = 2;

/// Messages for a peer that is up and whose link is not ready yet; what comes beyond them is said again in time.
const MAX_WAITING: usize = 64;

/// Bytes of a piece of states: half of a control frame, on which it travels where no data connection takes it.
const PIECE_BYTES: usize = 512 * 1024;

/// Bytes of a piece beyond its states: names above all.
const HEAD_BYTES: usize = 8 * 1024;

/// See the module.
pub(crate) struct Tokens {
    ownership: Ownership,
    local: Arc<Local>,
    peers: Arc<Peers>,
    pub(super) inputs: TokenReceivers,
    /// The types that this node serves with such states, or has.
    kept: BTreeSet<ServiceType>,
    /// Those of them whose views have changed.
    changed: BTreeSet<ServiceType>,
    waiting: HashMap<NodeId, Vec<Bytes>>,
    /// How often this node was taken for dead and came back.
    returns: u32,
    down_period: Duration,
}

impl Tokens {
    pub(crate) fn new(
        cluster: &Cluster,
        nonce: u64,
        down_period: Duration,
        data: &DataLane,
        inputs: TokenReceivers,
    ) -> Self {
        let limit = data
            .runtime
            .max_payload_bytes()
            .saturating_sub(HEAD_BYTES)
            .max(1);
        let config = OwnershipConfig::new(down_period).piece_bytes(PIECE_BYTES.min(limit));
        Tokens {
            ownership: Ownership::new(config, cluster.node().clone(), nonce),
            local: Arc::clone(&data.local),
            peers: Arc::clone(&data.peers),
            inputs,
            kept: BTreeSet::new(),
            changed: BTreeSet::new(),
            waiting: HashMap::new(),
            returns: cluster.membership().returns(),
            down_period,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.ownership.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.ownership.handle_timeout(now);
    }

    /// This node has added services: from now on it takes part in whose states they have.
    pub(super) fn added(&mut self, infos: &[Arc<ServiceInfo>]) {
        for info in infos.iter().filter(|info| info.is_keyed()) {
            let service_type = info.service_type();
            if self.kept.insert(service_type.clone()) {
                self.ownership.keep(service_type);
            }
            self.changed.insert(service_type.clone());
        }
    }

    /// R12: this process stood still for so long that others may have taken it for dead.
    pub(super) fn stood_still(&mut self, now: Instant, how_long: Duration) {
        if how_long > self.down_period.mul_f64(2.0 / 3.0) {
            self.ownership.handle_doubt(now);
        }
    }

    /// R14.
    pub(super) fn set_leaving(&mut self) {
        self.ownership.set_leaving();
    }

    /// The cluster has told this.
    pub(super) fn note(&mut self, now: Instant, cluster: &Cluster, event: &ClusterEvent) {
        match event {
            ClusterEvent::MemberUp { node, .. } | ClusterEvent::Linked { node, .. } => {
                let minor = cluster.minor(node);
                let is_up = matches!(event, ClusterEvent::MemberUp { .. });
                // Who is linked and not up yet is heard of when it is.
                if is_up || cluster.membership().is_up(&node.name).as_ref() == Some(node) {
                    let speaks = minor.is_none_or(|minor| minor >= MINOR_KNOWS_TOKENS);
                    self.ownership.handle_up(now, node, speaks);
                }
            }
            ClusterEvent::MemberDown { node } | ClusterEvent::MemberLeft { node } => {
                self.waiting.remove(node);
                self.ownership.handle_down(now, node);
                // What it served is not known any more; what the view still lists counts again.
                self.changed.extend(self.kept.iter().cloned());
            }
            ClusterEvent::Synced | ClusterEvent::LookedAround => {
                self.ownership.handle_synced(now);
            }
            ClusterEvent::Renewed { node } => self.ownership.handle_renewed(node.clone()),
            ClusterEvent::Registry { event, .. } => {
                let service_type = event.service_type();
                if self.kept.contains(service_type) {
                    self.changed.insert(service_type.clone());
                }
            }
            ClusterEvent::Tokens { from, message } => self.hear(now, from, message),
            _ => {}
        }
    }

    fn hear(&mut self, now: Instant, from: &NodeId, message: &Bytes) {
        match TokenMessage::decode(message) {
            Ok(message) => self.ownership.handle_message(now, from, message),
            Err(error) => {
                tracing::warn!(peer = %from, error = %Escaped(error.to_string()), "a message about states does not decode");
            }
        }
    }

    /// What services and data connections have to say.
    pub(super) fn take(&mut self, now: Instant, input: TokenInput) {
        match input {
            TokenInput::Message { from, message } => self.hear(now, &from, &message),
            TokenInput::Given {
                transfer,
                states: Some(states),
            } => {
                self.ownership.give(now, transfer, &states);
            }
            TokenInput::Given {
                transfer,
                states: None,
            } => self.ownership.keep_back(now, transfer),
        }
    }

    /// Sends what is to be sent, and tells the services what is to be told; false where there was nothing. A turn that is over
    /// leaves the rest for the next.
    pub(super) fn pump(&mut self, now: Instant, cluster: &mut Cluster, turn: &Turn) -> bool {
        let mut busy = self.look(now, cluster);
        while !turn.is_over() {
            if let Some((to, message)) = self.ownership.poll_transmit() {
                self.send(cluster, to, &message);
            } else if let Some(event) = self.ownership.poll_event() {
                self.tell(now, cluster, event);
            } else {
                break;
            }
            busy = true;
        }
        self.flush(cluster);
        busy
    }

    /// Shows the machine the views that have changed.
    fn look(&mut self, now: Instant, cluster: &Cluster) -> bool {
        let returns = cluster.membership().returns();
        let mut busy = false;
        let directory = cluster.directory();
        for service_type in std::mem::take(&mut self.changed) {
            busy = true;
            let view = directory.view(service_type.as_str());
            let services = view.as_ref().map_or(&[][..], |view| view.services());
            let keyed = services.iter().filter(|info| info.is_keyed());
            let keyed: Vec<Arc<ServiceInfo>> = keyed.cloned().collect();
            self.ownership.handle_view(now, &service_type, &keyed);
        }
        // R12: others took this node for dead.
        if std::mem::replace(&mut self.returns, returns) != returns {
            busy = true;
            self.ownership.handle_doubt(now);
        }
        busy
    }

    fn send(&mut self, cluster: &mut Cluster, to: NodeId, message: &TokenMessage) {
        let bytes = message.encode();
        if message.is_data() && self.peers.send_token(&to, &bytes) {
            return;
        }
        if cluster.send_tokens(&to, bytes.clone()) {
            return;
        }
        // Rule: who is up and not linked yet hears it when it is. Otherwise each join waits for a repetition.
        let waiting = self.waiting.entry(to).or_default();
        if waiting.len() < MAX_WAITING {
            waiting.push(bytes);
        }
    }

    /// Sends what has waited for a link.
    fn flush(&mut self, cluster: &mut Cluster) {
        self.waiting.retain(|to, waiting| {
            let Some(minor) = cluster.minor(to) else {
                return cluster.membership().is_up(&to.name).as_ref() == Some(to);
            };
            for message in waiting.drain(..) {
                if minor >= MINOR_KNOWS_TOKENS {
                    cluster.send_tokens(to, message);
                }
            }
            false
        });
    }

    fn tell(&mut self, now: Instant, cluster: &mut Cluster, event: TokenEvent) {
        match event {
            TokenEvent::Anew {
                instance, slots, ..
            } => self.with(&instance, |keyed| keyed.anew(&slots)),
            TokenEvent::Give {
                service_type,
                instance,
                slot,
                transfer,
            } => {
                let gate = self.ownership.gate(&service_type, slot, &instance);
                let given = self.local.with(instance.sequence, |mailbox| {
                    let keyed = mailbox.keyed()?;
                    Some(keyed.give(slot, transfer, gate))
                });
                match given.flatten() {
                    Some(false) => {}
                    Some(true) => {
                        self.ownership.give(now, transfer, &[]);
                    }
                    // It has ended, and its entry is about to go.
                    None => self.ownership.keep_back(now, transfer),
                }
            }
            TokenEvent::Adopted {
                instance,
                slot,
                from,
                states,
                how,
                ..
            } => self.with(&instance, |keyed| keyed.adopt(slot, &from, states, how)),
            TokenEvent::Released {
                instance, slot, to, ..
            } => self.with(&instance, |keyed| keyed.released(slot, &to)),
            TokenEvent::TakenBack { instance, slot, .. } => {
                self.with(&instance, |keyed| keyed.taken_back(slot));
            }
            TokenEvent::Gate {
                service_type,
                instance,
                slots,
            } => {
                let ownership = &self.ownership;
                self.with(&instance, |keyed| {
                    for slot in slots.iter() {
                        keyed.gate(slot, ownership.gate(&service_type, slot, &instance));
                    }
                });
            }
            TokenEvent::Impatient {
                instance,
                peer,
                slots,
                ..
            } => self.with(&instance, |keyed| keyed.impatient(&peer, &slots)),
            TokenEvent::Alone => cluster.look_around(now),
            TokenEvent::Lost {
                instance, slots, ..
            } => self.with(&instance, |keyed| keyed.lost(&slots)),
            _ => {}
        }
    }

    fn with(&self, instance: &ServiceId, tell: impl FnOnce(&dyn KeyedMailbox)) {
        // It may have ended.
        self.local.with(instance.sequence, |mailbox| {
            if let Some(keyed) = mailbox.keyed() {
                tell(keyed);
            }
        });
    }

    /// What is left of the states of all services of this node, or of one.
    pub(super) fn left(&self, cluster: &Cluster, sequence: Option<u64>) -> StatesLeft {
        let mut left = StatesLeft {
            is_idle: true,
            can_go: false,
            keys: 0,
        };
        let (me, nonce) = (&cluster.node().name, cluster.hello().nonce);
        let directory = cluster.directory();
        for service_type in &self.kept {
            let Some(view) = directory.view(service_type.as_str()) else {
                continue;
            };
            let is_own = |info: &&Arc<ServiceInfo>| info.node() == me && info.id().nonce == nonce;
            let ours = view.services().iter().filter(|info| is_own(info));
            let asked = |info: &Arc<ServiceInfo>| {
                info.is_keyed() && sequence.is_none_or(|sequence| info.id().sequence == sequence)
            };
            for info in ours.filter(|info| asked(info)) {
                self.with(info.id(), |keyed| left.keys += keyed.keys());
                if self.ownership.is_instance_idle(service_type, info.id()) {
                    continue;
                }
                left.is_idle = false;
                let others = view.online().filter(|other| other.is_keyed());
                let mut others = others.filter(|other| {
                    other.id() != info.id() && (sequence.is_some() || !is_own(other))
                });
                left.can_go |= others.next().is_some();
            }
        }
        left
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if !self.kept.is_empty() {
            tracing::debug!(counts = ?self.ownership.counts(), "what was said of states");
        }
    }
}
