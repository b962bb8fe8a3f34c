//! One type whose states move with their keys, and this node's instances of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::claiming::{Claiming, Group};
use super::event::{Gate, TokenEvent};
use super::frozen::Frozen;
use super::hub::Hub;
use super::message::{Claim, Offer, Place, Standing, Which};
use super::ranks::Ranks;
use super::slots::SlotSet;
use crate::entry::ServiceInfo;
use crate::id::{NodeId, ServiceId, ServiceType};
use crate::rules::Rule;
use crate::time::Instant;

/// R11: what is here and another's by the view for this long is offered, and again after each such time.
pub(super) const OFFER: Duration = Duration::from_millis(500);

/// One type whose states move with their keys.
#[derive(Clone, Debug)]
pub(super) struct Keyed {
    pub(super) service_type: ServiceType,
    pub(super) ranks: Ranks,
    pub(super) instances: Vec<Instance>,
    /// R7.
    pub(super) pointers: BTreeMap<u32, (Place, Instant)>,
}

/// One of this node's own instances. A slot is in one of `held`, `claims` and `frozen`, or away.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) standing: Standing,
    /// What it is first for, by this node's view of that hash.
    pub(super) first: SlotSet,
    pub(super) first_by: Option<(u64, Standing)>,
    pub(super) held: SlotSet,
    pub(super) claims: BTreeMap<u32, Claiming>,
    pub(super) frozen: BTreeMap<u32, Frozen>,
    /// R5: the slots that somebody wants, which `extras` tells of, and how many each node wants.
    pub(super) wanted: BTreeSet<u32>,
    pub(super) claimants: BTreeMap<NodeId, usize>,
    /// Slots with states that could not be given, and until when that is not tried again.
    pub(super) kept_back: BTreeMap<u32, Instant>,
    /// What else there is to know of slots that are here.
    pub(super) extras: BTreeMap<u32, Extra>,
    pub(super) groups: BTreeMap<u64, Group>,
    pub(super) rounds: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    /// R5: the best claimant.
    pub(super) wanted: Option<Wanted>,
    /// R8: the givers that do not know yet.
    pub(super) unsettled: SmallVec<[Unsettled; 1]>,
    /// R11: since when it is another's.
    pub(super) not_first: Option<Instant>,
    pub(super) keep_not_first: bool,
    pub(super) offered: Option<Instant>,
}

impl Extra {
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_none() && self.unsettled.is_empty() && self.not_first.is_none()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) place: Place,
    pub(super) standing: Standing,
    pub(super) round: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Unsettled {
    pub(super) giver: Place,
    pub(super) transfer: u64,
    /// When it was last told.
    pub(super) at: Instant,
    pub(super) since: Instant,
}

impl Instance {
    pub(super) fn new(standing: Standing) -> Self {
        Instance {
            standing,
            first: SlotSet::new(),
            first_by: None,
            held: SlotSet::new(),
            claims: BTreeMap::new(),
            frozen: BTreeMap::new(),
            wanted: BTreeSet::new(),
            claimants: BTreeMap::new(),
            kept_back: BTreeMap::new(),
            extras: BTreeMap::new(),
            groups: BTreeMap::new(),
            rounds: 0,
        }
    }

    /// Whether anything of the slot is here.
    pub(super) fn has(&self, slot: &u32) -> bool {
        self.held.contains(*slot)
            || self.claims.contains_key(slot)
            || self.frozen.contains_key(slot)
    }

    /// R5: somebody wants the slot.
    pub(super) fn want(&mut self, slot: u32, wanted: Wanted) {
        self.unwant(slot);
        *self.claimants.entry(wanted.place.node.clone()).or_default() += 1;
        self.wanted.insert(slot);
        self.extras.entry(slot).or_default().wanted = Some(wanted);
    }

    /// Nobody does any more.
    pub(super) fn unwant(&mut self, slot: u32) -> Option<Wanted> {
        let wanted = self.extras.get_mut(&slot)?.wanted.take()?;
        self.wanted.remove(&slot);
        if let Some(count) = self.claimants.get_mut(&wanted.place.node) {
            *count -= 1;
            if *count == 0 {
                self.claimants.remove(&wanted.place.node);
            }
        }
        Some(wanted)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty() && self.claims.is_empty() && self.frozen.is_empty()
    }
}

impl Keyed {
    /// Without instances; a slot is so many of placement's, as a power of two.
    pub(super) fn new(service_type: ServiceType, shift: u32) -> Self {
        Keyed {
            service_type,
            ranks: Ranks::new(shift),
            instances: Vec::new(),
            pointers: BTreeMap::new(),
        }
    }

    pub(super) fn at(&self, id: &ServiceId) -> Option<usize> {
        self.instances
            .iter()
            .position(|instance| instance.standing.id == *id)
    }

    pub(super) fn set_view(&mut self, hub: &mut Hub, services: &[Arc<ServiceInfo>]) {
        self.ranks.set_view(services);
        let is_own =
            |info: &&Arc<ServiceInfo>| info.node() == &hub.me.name && info.id().nonce == hub.nonce;
        let own: Vec<Standing> = services
            .iter()
            .filter(is_own)
            .map(|info| Standing::of(info))
            .collect();
        for standing in &own {
            match self.at(&standing.id) {
                Some(at) => self.instances[at].standing = standing.clone(),
                None => self.instances.push(Instance::new(standing.clone())),
            }
        }
        let service_type = self.service_type.clone();
        self.instances.retain(|instance| {
            let id = &instance.standing.id;
            let stays = own.iter().any(|standing| standing.id == *id);
            if !stays {
                let mut lost = instance.held.clone();
                let copies = instance.claims.iter().filter(|(_, claim)| claim.copy);
                for slot in instance.frozen.keys().chain(copies.map(|(slot, _)| slot)) {
                    lost.insert(*slot);
                }
                let place = (service_type.clone(), id.clone());
                hub.tell(&place, lost, |service_type, instance, slots| {
                    TokenEvent::Lost {
                        service_type,
                        instance,
                        slots,
                    }
                });
                hub.partials.retain(|_, partial| partial.to != *id);
                for frozen in instance.frozen.values() {
                    hub.outcomes.end(&frozen.to.node, frozen.transfer);
                }
            }
            stays
        });
    }

    /// Whether it is known what that instance is first for.
    pub(super) fn knows_firsts(&self, at: usize) -> bool {
        let (hash, instance) = (self.ranks.hash(), &self.instances[at]);
        let by = instance.first_by.as_ref();
        by.is_some_and(|(by, standing)| *by == hash && *standing == instance.standing)
    }

    /// What that instance is first for, where the view has changed since it was last worked out.
    pub(super) fn refresh_firsts(&mut self, hub: &Hub, at: usize) {
        if self.knows_firsts(at) {
            return;
        }
        let (ranks, instance) = (&self.ranks, &mut self.instances[at]);
        let by = (ranks.hash(), instance.standing.clone());
        instance.first = if instance.standing.online {
            (0..hub.config.slots)
                .filter(|slot| ranks.is_first(*slot, &instance.standing.id))
                .collect()
        } else {
            SlotSet::new()
        };
        instance.first_by = Some(by);
    }

    pub(super) fn end_life(&mut self, hub: &mut Hub, now: Instant, node: &NodeId) {
        self.ranks.forget(&node.name);
        for at in 0..self.instances.len() {
            let instance = &mut self.instances[at];
            if instance.claimants.contains_key(node) {
                let is_by_it = |(slot, extra): (&u32, &Extra)| {
                    let wanted = extra.wanted.as_ref()?;
                    (wanted.place.node == *node).then_some(*slot)
                };
                let theirs: Vec<u32> = instance.extras.iter().filter_map(is_by_it).collect();
                for slot in theirs {
                    instance.unwant(slot);
                }
            }
            for extra in instance.extras.values_mut() {
                // R8: the giver's end stands for its word: it takes nothing back any more.
                extra
                    .unsettled
                    .retain(|unsettled| unsettled.giver.node != *node);
            }
            let frozen = instance
                .frozen
                .iter()
                .filter(|(_, frozen)| frozen.to.node == *node);
            let frozen: Vec<u32> = frozen.map(|(slot, _)| *slot).collect();
            self.stop_asking(hub, now, at, node);
            for slot in frozen {
                self.take_back(hub, now, at, slot);
            }
        }
    }

    /// R11: offers what is another's by this node's view.
    pub(super) fn offer(&mut self, hub: &mut Hub, now: Instant, at: usize) {
        if !hub.rules.holds(Rule::Offers) {
            return;
        }
        let (ranks, instance) = (&self.ranks, &mut self.instances[at]);
        let standing = instance.standing.clone();
        let mut offers: BTreeMap<ServiceId, SlotSet> = BTreeMap::new();
        for (slot, extra) in &mut instance.extras {
            let Some(since) = extra.not_first else {
                continue;
            };
            let next = extra.offered.map_or(since, |at| at.max(since)) + OFFER;
            if next > now {
                hub.schedule(next);
                continue;
            }
            extra.offered = Some(now);
            hub.schedule(now + OFFER);
            if let Some(first) = ranks.first(*slot).filter(|first| first.id != standing.id) {
                offers.entry(first.id.clone()).or_default().insert(*slot);
            }
        }
        for (to, slots) in offers {
            let Some(node) = hub.node_of(&to.node) else {
                continue;
            };
            let offer = Offer {
                service_type: self.service_type.clone(),
                from: standing.clone(),
                to,
                slots,
            };
            hub.offers.entry(node).or_default().push(offer);
        }
    }

    /// R11: a holder asks for the other copy, to merge it; a claimant asks for the slot, again if it did already.
    pub(super) fn handle_offer(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        from: &NodeId,
        offer: &Offer,
    ) {
        if offer.from.id.node != from.name {
            return;
        }
        if self.ranks.hear(&offer.from, now) {
            hub.schedule(now + hub.said_lives());
            self.review(hub, now);
        }
        let Some(at) = self.at(&offer.to) else {
            return;
        };
        let instance = &self.instances[at];
        let held: SlotSet = offer
            .slots
            .iter()
            .filter(|slot| instance.held.contains(*slot))
            .collect();
        if !held.is_empty() && instance.standing.online {
            let claim = Claim {
                service_type: self.service_type.clone(),
                claimant: instance.standing.clone(),
                round: 0,
                question: 0,
                which: Which::Slots(held),
                members: hub.members_hash(),
            };
            hub.claim(from, claim);
        }
        self.ask_again(hub, now, at, &offer.slots, from);
    }

    /// R10.
    pub(super) fn gate(&self, hub: &Hub, slot: u32, to: &ServiceId) -> Gate {
        let here = self.at(to).map(|at| &self.instances[at]);
        let here = here.filter(|instance| instance.has(&slot));
        let holder = || {
            self.instances
                .iter()
                .find(|instance| instance.held.contains(slot))
        };
        let Some(instance) = here.or_else(holder) else {
            let first = self
                .ranks
                .first(slot)
                .filter(|first| first.id.node != hub.me.name);
            let pointer = self
                .pointers
                .get(&slot)
                .filter(|(place, _)| hub.is_up(&place.node));
            let pointer = pointer.map(|(place, _)| place.id.clone());
            let to_other = self.ranks.first(slot).filter(|first| first.id != *to);
            return Gate::Moved(
                first
                    .map(|first| first.id.clone())
                    .or(pointer)
                    .or(to_other.map(|first| first.id.clone())),
            );
        };
        let id = instance.standing.id.clone();
        if instance.held.contains(slot) {
            return Gate::Run(id);
        }
        if let Some(frozen) = instance.frozen.get(&slot) {
            // R8: what is written after the states were copied would be lost.
            return if hub.rules.holds(Rule::Freezes) {
                Gate::Moved(Some(frozen.to.id.clone()))
            } else {
                Gate::Run(id)
            };
        }
        let coming = instance
            .claims
            .get(&slot)
            .filter(|claim| !claim.begun)
            .and_then(|claim| claim.coming.as_ref());
        match coming.filter(|_| hub.rules.holds(Rule::MovesWhileComing)) {
            Some(place) => Gate::Moved(Some(place.id.clone())),
            None if hub.rules.holds(Rule::Parks) => Gate::Park(id),
            None => Gate::Moved(None),
        }
    }
}
