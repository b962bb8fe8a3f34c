//! The services of one type at one moment, and who of them owns a key.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::entry::ServiceInfo;
use crate::id::{InstanceName, ServiceType};
use crate::key::{Key, Slot};
use crate::limits::MAX_INSTANCES_PER_TYPE;
use crate::placement::{Candidate, draw, name_hash, prefer, salt};

mod table;

pub(crate) use table::TableBudget;
use table::{LOST, NOBODY, RANKED, Ranked, Table};

/// Names that can own keys: well beyond [`MAX_INSTANCES_PER_TYPE`], and below the number that stands for nobody.
const MAX_SEATS: usize = 4 * MAX_INSTANCES_PER_TYPE;

/// Owners of a key, in order of preference.
pub type Owners<'a> = SmallVec<[&'a Arc<ServiceInfo>; 4]>;

/// What the owners of one key may not share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Spread {
    /// Nothing is asked: any distinct instances.
    #[default]
    None,
    /// At most one on each node.
    Nodes,
    /// At most one in each zone. Instances without a zone count as one zone each.
    Zones,
}

/// A service before and after; none where it was not, or is not, there.
pub(crate) type Change = (Option<Arc<ServiceInfo>>, Option<Arc<ServiceInfo>>);

/// Names of one weight: between them the larger draw wins, without a logarithm.
#[derive(Clone, Debug)]
struct WeightClass {
    weight: u16,
    names: Vec<(u64, u16)>,
}

/// All services of one type at one moment: an immutable value, the same for the same set on every node.
///
/// Looking an owner up costs no allocation and no reference count.
#[derive(Debug)]
pub struct View {
    service_type: ServiceType,
    version: u64,
    services: Vec<Arc<ServiceInfo>>,
    /// Each online instance name has a seat; here is who owns its keys. Seats keep their number while they are taken; a
    /// vacant one is reused.
    primaries: Vec<Option<Arc<ServiceInfo>>>,
    /// What placement knows of the names.
    candidates: Vec<Candidate>,
    /// Others that live under the name of a seat.
    standbys: BTreeMap<u16, Vec<Arc<ServiceInfo>>>,
    vacant: Vec<u16>,
    classes: Vec<WeightClass>,
    /// The only seat that is taken; [`NOBODY`] where none is.
    sole: Option<u16>,
    table: Table,
}

impl View {
    /// A view of nothing.
    pub fn empty(service_type: ServiceType) -> Self {
        View {
            service_type,
            version: 0,
            services: Vec::new(),
            primaries: Vec::new(),
            candidates: Vec::new(),
            standbys: BTreeMap::new(),
            vacant: Vec::new(),
            classes: Vec::new(),
            sole: Some(NOBODY),
            table: Table::new(TableBudget::new(0)),
        }
    }

    pub(crate) fn with_budget(service_type: ServiceType, budget: Arc<TableBudget>) -> Self {
        View {
            table: Table::new(budget),
            ..View::empty(service_type)
        }
    }

    /// The type.
    pub fn service_type(&self) -> &ServiceType {
        &self.service_type
    }

    /// Grows with every change of any type on this node; never equal for two views of one type.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All services, in whatever state, in the order of their instance names.
    pub fn services(&self) -> &[Arc<ServiceInfo>] {
        &self.services
    }

    /// The services that own keys, in the order of their instance names.
    pub fn online(&self) -> impl Iterator<Item = &Arc<ServiceInfo>> {
        self.services.iter().filter(|info| info.is_online())
    }

    /// How many services own keys.
    pub fn online_count(&self) -> usize {
        self.names() + self.standbys.values().map(Vec::len).sum::<usize>()
    }

    /// The owner of a key.
    #[inline]
    pub fn owner(&self, key: impl Into<Key>) -> Option<&Arc<ServiceInfo>> {
        let slot = key.into().slot();
        let seat = match self.sole {
            None => self.first(slot),
            Some(seat) => seat,
        };
        self.primaries.get(usize::from(seat))?.as_ref()
    }

    /// The first `n` owners of a key in order of preference: min(`n`, online) distinct instances, always.
    pub fn owners(&self, key: impl Into<Key>, n: usize) -> Owners<'_> {
        let slot = key.into().slot();
        if n == 0 {
            return Owners::new();
        }
        if n <= RANKED {
            let ranked = match self.sole {
                None => self.ranked(slot, n),
                Some(seat) => [seat, NOBODY, NOBODY, NOBODY],
            };
            return self.seated(ranked, n);
        }
        self.preference(slot).into_iter().take(n).collect()
    }

    /// The first `n` owners of a key such that no two share what `spread` names.
    ///
    /// A filter over the order of [`owners`](Self::owners): once the node or zone of the first is gone, the second is
    /// the first. Fewer than `n` where there are fewer nodes or zones.
    pub fn owners_spread(&self, key: impl Into<Key>, n: usize, spread: Spread) -> Owners<'_> {
        let key = key.into();
        if spread == Spread::None {
            return self.owners(key, n);
        }
        let first = self.owners(key, RANKED);
        let all_seen = first.len() < RANKED;
        let mut chosen = Owners::new();
        if choose(&mut chosen, n, spread, first) || all_seen {
            return chosen;
        }
        let behind = self.preference(key.slot()).into_iter().skip(RANKED);
        choose(&mut chosen, n, spread, behind);
        chosen
    }

    /// True for an online service whose name another one of a smaller node name has, too: it ranks right behind it.
    pub fn is_standby(&self, info: &ServiceInfo) -> bool {
        self.standbys
            .values()
            .flatten()
            .any(|other| other.id() == info.id())
    }

    /// The entry of one service.
    pub fn service(&self, id: &crate::id::ServiceId) -> Option<&Arc<ServiceInfo>> {
        self.services.iter().find(|info| info.id() == id)
    }

    fn names(&self) -> usize {
        self.primaries.len() - self.vacant.len()
    }

    /// Who has a seat: the primary, then those that stand by.
    fn takers(&self, seat: u16) -> impl Iterator<Item = &Arc<ServiceInfo>> {
        let primary = self.primaries.get(usize::from(seat)).into_iter().flatten();
        primary.chain(self.standbys.get(&seat).into_iter().flatten())
    }

    fn name(&self, seat: u16) -> Option<&InstanceName> {
        let primary = self.primaries.get(usize::from(seat))?.as_ref();
        primary.map(|info| info.name())
    }

    #[inline]
    fn seated(&self, ranked: Ranked, n: usize) -> Owners<'_> {
        if !self.standbys.is_empty() {
            let all = ranked.into_iter().flat_map(|seat| self.takers(seat));
            return all.take(n).collect();
        }
        let mut owners = Owners::new();
        for seat in ranked.into_iter().take(n) {
            if let Some(Some(primary)) = self.primaries.get(usize::from(seat)) {
                owners.push(primary);
            }
        }
        owners
    }

    #[inline]
    fn first(&self, slot: Slot) -> u16 {
        match self.table.cells().and_then(|cells| cells.first(slot)) {
            Some(seat) => seat,
            None => self.ranked(slot, 1)[0],
        }
    }

    /// The first `n` seats of a slot, and maybe more.
    #[inline]
    fn ranked(&self, slot: Slot, n: usize) -> Ranked {
        match self.table.cells() {
            Some(cells) => cells
                .read(slot, n)
                .unwrap_or_else(|| cells.fill(slot, self.score(slot))),
            None => self.score(slot),
        }
    }

    /// The first seats of a slot by the specification, vacant places last.
    #[inline(never)]
    fn score(&self, slot: Slot) -> Ranked {
        let salt = salt(slot);
        let mut best: Best = [(NOBODY, 0); RANKED];
        match self.classes.as_slice() {
            [] => {}
            [class] => best = self.best_of(class, salt),
            classes => {
                for class in classes {
                    for (seat, drawn) in self.best_of(class, salt) {
                        if seat != NOBODY && !self.insert(&mut best, seat, drawn) {
                            break;
                        }
                    }
                }
            }
        }
        best.map(|(seat, _)| seat)
    }

    /// The first seats of one class.
    fn best_of(&self, class: &WeightClass, salt: u64) -> Best {
        let mut best: Best = [(NOBODY, 0); RANKED];
        for &(hash, seat) in &class.names {
            let drawn = draw(hash, salt);
            // Names of equal hash draw alike, and are ordered by name: rare enough for the slow path.
            if drawn >= best[RANKED - 1].1 {
                self.insert(&mut best, seat, drawn);
            }
        }
        best
    }

    /// Puts a seat into its place; false where it is behind all others.
    fn insert(&self, best: &mut Best, seat: u16, drawn: u64) -> bool {
        let Some(place) = best.iter().position(|&(other, other_drawn)| {
            other == NOBODY || self.compare(seat, drawn, other, other_drawn) == Ordering::Less
        }) else {
            return false;
        };
        best[place..].rotate_right(1);
        best[place] = (seat, drawn);
        true
    }

    fn compare(&self, a: u16, a_drawn: u64, b: u16, b_drawn: u64) -> Ordering {
        let candidate = |seat: u16| self.candidates[usize::from(seat)];
        prefer((candidate(a), a_drawn), (candidate(b), b_drawn))
            .then_with(|| self.name(a).cmp(&self.name(b)))
    }

    /// Everybody online in the order of preference.
    fn preference(&self, slot: Slot) -> Vec<&Arc<ServiceInfo>> {
        let salt = salt(slot);
        let mut order: Vec<(u16, u64)> = self
            .classes
            .iter()
            .flat_map(|class| &class.names)
            .map(|&(hash, seat)| (seat, draw(hash, salt)))
            .collect();
        order.sort_unstable_by(|a, b| self.compare(a.0, a.1, b.0, b.1));
        order
            .into_iter()
            .flat_map(|(seat, _)| self.takers(seat))
            .collect()
    }

    /// The view after some services left, came or changed, at a later version. Costs a copy of the list, and a look at
    /// each slot that was looked up before.
    pub(crate) fn changed(&self, version: u64, changes: &[Change]) -> View {
        let mut next = View {
            service_type: self.service_type.clone(),
            version,
            services: list(&self.services, changes),
            primaries: self.primaries.clone(),
            candidates: self.candidates.clone(),
            standbys: self.standbys.clone(),
            vacant: self.vacant.clone(),
            classes: Vec::new(),
            sole: self.sole,
            table: Table::new(self.table.budget()),
        };
        let mut touched = BTreeSet::new();
        for (before, after) in changes {
            if let Some(before) = before.as_ref().filter(|info| info.is_online()) {
                touched.extend(next.vacate(before));
            }
            if let Some(after) = after.as_ref().filter(|info| info.is_online()) {
                touched.extend(next.take_seat(after));
            }
        }
        if touched.is_empty() {
            next.classes.clone_from(&self.classes);
            next.table = self.table.share();
            return next;
        }
        next.classes = next.weight_classes();
        next.sole = match next.classes.as_slice() {
            [] => Some(NOBODY),
            [class] if class.names.len() == 1 => Some(class.names[0].1),
            _ => None,
        };
        if next.sole.is_none() {
            next.inherit_table(self, &touched);
        }
        next
    }

    /// Carries what is known of each slot over: where a seat was given up or changed its weight, those behind it move up,
    /// and who comes last is found out when it is asked for; a new one is compared with who is there.
    fn inherit_table(&mut self, before: &View, touched: &BTreeSet<u16>) {
        /// With more changes at once it is cheaper to start anew.
        const MAX_CARRIED: usize = 64;
        let Some(old) = before.table.started() else {
            return;
        };
        let same = |seat: u16| {
            let at = usize::from(seat);
            self.candidates.get(at) == before.candidates.get(at)
                && self.name(seat) == before.name(seat)
        };
        let moved: SmallVec<[u16; 8]> = touched
            .iter()
            .copied()
            .filter(|seat| !same(*seat))
            .collect();
        if moved.is_empty() {
            self.table = before.table.share();
            return;
        }
        if moved.len() > MAX_CARRIED {
            return;
        }
        let joined: SmallVec<[u16; 8]> = moved
            .iter()
            .copied()
            .filter(|seat| self.name(*seat).is_some())
            .collect();
        let Some(new) = self.table.start() else {
            return;
        };
        for (slot, ranked) in old.known() {
            let mut ranked = ranked;
            for &seat in &moved {
                take_out(&mut ranked, seat);
            }
            if ranked[0] == LOST {
                continue;
            }
            if !joined.is_empty() {
                let salt = salt(slot);
                for &seat in &joined {
                    self.put_in(&mut ranked, seat, salt);
                }
            }
            new.fill(slot, ranked);
        }
    }

    /// Puts a seat into its place among those of a slot, if it has one.
    fn put_in(&self, ranked: &mut Ranked, seat: u16, salt: u64) {
        let draw_of = |seat: u16| draw(self.candidates[usize::from(seat)].hash, salt);
        let drawn = draw_of(seat);
        // From behind: mostly there is no place.
        let known = ranked.iter().take_while(|seat| **seat < LOST).count();
        let is_before = |other: u16| self.compare(seat, drawn, other, draw_of(other)).is_lt();
        let mut place = known;
        while place > 0 && is_before(ranked[place - 1]) {
            place -= 1;
        }
        // Behind all that are known, it has a place only where nobody else can be.
        if place < RANKED && ranked[place] != LOST {
            ranked[place..].rotate_right(1);
            ranked[place] = seat;
        }
    }

    fn seat_of(&self, name: &InstanceName) -> Option<u16> {
        // The list is short or the change rare: one pass over it costs less than a map held for every type.
        let hash = name_hash(name);
        (0_u16..)
            .zip(&self.candidates)
            .filter(|(_, candidate)| candidate.hash == hash)
            .map(|(seat, _)| seat)
            .find(|seat| self.name(*seat) == Some(name))
    }

    fn vacate(&mut self, info: &ServiceInfo) -> Option<u16> {
        let seat = self.seat_of(info.name())?;
        let mut takers: Vec<_> = self.takers(seat).cloned().collect();
        takers.retain(|other| other.id() != info.id());
        self.seat(seat, takers);
        Some(seat)
    }

    /// None where all seats are taken: nodes that register at the same moment can exceed the limit that each of them
    /// checks, and what is far beyond it owns nothing.
    fn take_seat(&mut self, info: &Arc<ServiceInfo>) -> Option<u16> {
        if self.names() >= MAX_SEATS {
            return None;
        }
        let seat = self.seat_of(info.name()).unwrap_or_else(|| {
            self.vacant.pop().unwrap_or_else(|| {
                self.primaries.push(None);
                self.candidates.push(Candidate { hash: 0, weight: 0 });
                (self.primaries.len() - 1) as u16
            })
        });
        let mut takers: Vec<_> = self.takers(seat).cloned().collect();
        let place = takers.partition_point(|other| standing(other) < standing(info));
        takers.insert(place, Arc::clone(info));
        self.seat(seat, takers);
        Some(seat)
    }

    /// Gives a seat to whoever lives under its name, in the order of their standing.
    fn seat(&mut self, seat: u16, takers: Vec<Arc<ServiceInfo>>) {
        let at = usize::from(seat);
        let mut takers = takers.into_iter();
        let primary = takers.next();
        match &primary {
            Some(primary) => {
                self.candidates[at] = Candidate {
                    hash: name_hash(primary.name()),
                    weight: primary.weight().value(),
                };
            }
            None => self.vacant.push(seat),
        }
        self.primaries[at] = primary;
        let standbys: Vec<_> = takers.collect();
        if standbys.is_empty() {
            self.standbys.remove(&seat);
        } else {
            self.standbys.insert(seat, standbys);
        }
    }

    /// The seats that are taken, by weight.
    fn weight_classes(&self) -> Vec<WeightClass> {
        let mut classes: Vec<WeightClass> = Vec::new();
        for ((seat, candidate), primary) in (0_u16..).zip(&self.candidates).zip(&self.primaries) {
            if primary.is_none() {
                continue;
            }
            let (name, weight) = ((candidate.hash, seat), candidate.weight);
            match classes.binary_search_by_key(&weight, |class| class.weight) {
                Ok(found) => classes[found].names.push(name),
                Err(place) => classes.insert(
                    place,
                    WeightClass {
                        weight,
                        names: vec![name],
                    },
                ),
            }
        }
        classes
    }
}

/// Takes a seat out of those of a slot.
fn take_out(ranked: &mut Ranked, seat: u16) {
    let Some(place) = ranked.iter().position(|other| *other == seat) else {
        return;
    };
    // Where there are fewer names than places, all are known.
    let last = if ranked[RANKED - 1] == NOBODY {
        NOBODY
    } else {
        LOST
    };
    ranked[place..].rotate_left(1);
    ranked[RANKED - 1] = last;
}

type Best = [(u16, u64); RANKED];

/// Rule: between two of one name, a total order that leaves the generation out says who is the standby.
fn standing(info: &ServiceInfo) -> (&str, u64, u64) {
    let id = info.id();
    (id.node.as_str(), id.nonce, id.sequence)
}

/// Takes those that share nothing with who was chosen before; true once there are `n`.
fn choose<'a>(
    chosen: &mut Owners<'a>,
    n: usize,
    spread: Spread,
    from: impl IntoIterator<Item = &'a Arc<ServiceInfo>>,
) -> bool {
    for info in from {
        if chosen.len() >= n {
            return true;
        }
        if !chosen.iter().any(|other| shares(other, info, spread)) {
            chosen.push(info);
        }
    }
    chosen.len() >= n
}

fn shares(a: &ServiceInfo, b: &ServiceInfo, spread: Spread) -> bool {
    match spread {
        Spread::None => false,
        Spread::Nodes => a.node() == b.node(),
        Spread::Zones => a.zone().is_some() && a.zone() == b.zone(),
    }
}

fn listed(info: &ServiceInfo) -> (&InstanceName, (&str, u64, u64)) {
    (info.name(), standing(info))
}

/// The list after the changes, still in order.
fn list(services: &[Arc<ServiceInfo>], changes: &[Change]) -> Vec<Arc<ServiceInfo>> {
    let mut gone: Vec<_> = changes
        .iter()
        .filter_map(|(before, _)| before.as_deref().map(listed))
        .collect();
    gone.sort_unstable();
    // A later change of the same service replaces an earlier one.
    let mut came: Vec<&Arc<ServiceInfo>> = Vec::new();
    for (before, after) in changes {
        if let Some(before) = before {
            came.retain(|info| info.id() != before.id());
        }
        came.extend(after);
    }
    came.sort_unstable_by(|a, b| listed(a).cmp(&listed(b)));
    let mut came = came.into_iter().peekable();
    let mut result = Vec::with_capacity(services.len() + came.len());
    for info in services {
        if gone.binary_search(&listed(info)).is_ok() {
            continue;
        }
        while let Some(new) = came.next_if(|new| listed(new) < listed(info)) {
            result.push(Arc::clone(new));
        }
        result.push(Arc::clone(info));
    }
    result.extend(came.cloned());
    result
}

#[cfg(test)]
mod tests;
