//! The services of one type at one moment, and who of them owns a key.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::entry::ServiceInfo;
use crate::id::{InstanceName, ServiceType};
use crate::key::{Key, Slot};
use crate::limits::MAX_INSTANCES_PER_TYPE;
use crate::placement::{Candidate, draw, name_hash, prefer, salt};

mod table;

pub(crate) use table::TableBudget;
use table::{RANKED, Ranked, Table};

/// Up to this many names a slot is scored directly: that costs less than a table's cache misses.
const SCORED_DIRECTLY: usize = 3;

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

/// One instance name with whoever lives under it: the primary first, then standbys.
#[derive(Clone, Debug)]
struct Seat {
    candidate: Candidate,
    taken_by: SmallVec<[Arc<ServiceInfo>; 1]>,
}

impl Seat {
    fn name(&self) -> Option<&InstanceName> {
        self.taken_by.first().map(|info| info.name())
    }
}

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
    /// Seats keep their number while they are taken; a vacant one is reused.
    seats: Vec<Seat>,
    vacant: Vec<u16>,
    classes: Vec<WeightClass>,
    table: Table,
}

impl View {
    /// A view of nothing.
    pub fn empty(service_type: ServiceType) -> Self {
        View {
            service_type,
            version: 0,
            services: Vec::new(),
            seats: Vec::new(),
            vacant: Vec::new(),
            classes: Vec::new(),
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
        self.seats.iter().map(|seat| seat.taken_by.len()).sum()
    }

    /// The owner of a key.
    #[inline]
    pub fn owner(&self, key: impl Into<Key>) -> Option<&Arc<ServiceInfo>> {
        let slot = key.into().slot();
        let seat = if self.names() <= SCORED_DIRECTLY {
            self.score(slot)[0]
        } else {
            self.ranked(slot)[0]
        };
        self.seats.get(usize::from(seat))?.taken_by.first()
    }

    /// The first `n` owners of a key in order of preference: min(`n`, online) distinct instances, always.
    pub fn owners(&self, key: impl Into<Key>, n: usize) -> Owners<'_> {
        let slot = key.into().slot();
        if n == 0 {
            return Owners::new();
        }
        if n <= RANKED {
            let ranked = if self.names() <= SCORED_DIRECTLY {
                self.score(slot)
            } else {
                self.ranked(slot)
            };
            return self.seated(ranked).take(n).collect();
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
        self.seats.iter().any(|seat| {
            seat.name() == Some(info.name())
                && seat
                    .taken_by
                    .iter()
                    .skip(1)
                    .any(|other| other.id() == info.id())
        })
    }

    /// The entry of one service.
    pub fn service(&self, id: &crate::id::ServiceId) -> Option<&Arc<ServiceInfo>> {
        self.services.iter().find(|info| info.id() == id)
    }

    fn names(&self) -> usize {
        self.seats.len() - self.vacant.len()
    }

    fn seated(&self, ranked: Ranked) -> impl Iterator<Item = &Arc<ServiceInfo>> {
        ranked
            .into_iter()
            .filter_map(|seat| self.seats.get(usize::from(seat)))
            .flat_map(|seat| &seat.taken_by)
    }

    #[inline]
    fn ranked(&self, slot: Slot) -> Ranked {
        match self.table.cells() {
            Some(cells) => cells
                .read(slot)
                .unwrap_or_else(|| cells.fill(slot, self.score(slot))),
            None => self.score(slot),
        }
    }

    /// The first seats of a slot by the specification, vacant places last.
    #[inline(never)]
    fn score(&self, slot: Slot) -> Ranked {
        let salt = salt(slot);
        let mut best: Best = [(table::NOBODY, 0); RANKED];
        match self.classes.as_slice() {
            [] => {}
            [class] => best = self.best_of(class, salt),
            classes => {
                for class in classes {
                    for (seat, drawn) in self.best_of(class, salt) {
                        if seat != table::NOBODY && !self.insert(&mut best, seat, drawn) {
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
        let mut best: Best = [(table::NOBODY, 0); RANKED];
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
            other == table::NOBODY
                || self.compare(seat, drawn, other, other_drawn) == Ordering::Less
        }) else {
            return false;
        };
        best[place..].rotate_right(1);
        best[place] = (seat, drawn);
        true
    }

    fn compare(&self, a: u16, a_drawn: u64, b: u16, b_drawn: u64) -> Ordering {
        let (a, b) = (&self.seats[usize::from(a)], &self.seats[usize::from(b)]);
        prefer((a.candidate, a_drawn), (b.candidate, b_drawn)).then_with(|| a.name().cmp(&b.name()))
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
            .flat_map(|(seat, _)| &self.seats[usize::from(seat)].taken_by)
            .collect()
    }

    /// The view after some services left, came or changed, at a later version. Costs a copy of the list, and a look at
    /// each slot that was looked up before.
    pub(crate) fn changed(&self, version: u64, changes: &[Change]) -> View {
        let mut next = View {
            service_type: self.service_type.clone(),
            version,
            services: list(&self.services, changes),
            seats: self.seats.clone(),
            vacant: self.vacant.clone(),
            classes: Vec::new(),
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
        next.classes = classes(&next.seats);
        if next.names() > SCORED_DIRECTLY {
            next.inherit_table(self, &touched);
        }
        next
    }

    /// Carries what is known of each slot over: a seat that was given up or changed its weight may leave a gap, which
    /// is scored anew when it is looked up; a new one is compared with who is there.
    fn inherit_table(&mut self, before: &View, touched: &BTreeSet<u16>) {
        /// With more changes at once it is cheaper to start anew.
        const MAX_CARRIED: usize = 64;
        let Some(old) = before.table.started() else {
            return;
        };
        let same = |seat: u16| {
            let now = self.seats.get(usize::from(seat));
            let then = before.seats.get(usize::from(seat));
            match (now, then) {
                (Some(now), Some(then)) => {
                    now.candidate == then.candidate && now.name() == then.name()
                }
                (None, None) => true,
                _ => false,
            }
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
            .filter(|seat| !self.seats[usize::from(*seat)].taken_by.is_empty())
            .collect();
        let Some(new) = self.table.start() else {
            return;
        };
        for (slot, ranked) in old.known() {
            if ranked
                .iter()
                .any(|seat| *seat != table::NOBODY && moved.contains(seat))
            {
                continue;
            }
            let mut best: Option<Best> = None;
            let salt = salt(slot);
            for &seat in &joined {
                let drawn = draw(self.seats[usize::from(seat)].candidate.hash, salt);
                let best = best.get_or_insert_with(|| {
                    ranked.map(|seat| match self.seats.get(usize::from(seat)) {
                        Some(taken) => (seat, draw(taken.candidate.hash, salt)),
                        None => (seat, 0),
                    })
                });
                self.insert(best, seat, drawn);
            }
            let ranked = best.map_or(ranked, |best| best.map(|(seat, _)| seat));
            new.fill(slot, ranked);
        }
    }

    fn seat_of(&self, name: &InstanceName) -> Option<usize> {
        // The list is short or the change rare: one pass over it costs less than a map held for every type.
        let hash = name_hash(name);
        self.seats
            .iter()
            .position(|seat| seat.candidate.hash == hash && seat.name() == Some(name))
    }

    fn vacate(&mut self, info: &ServiceInfo) -> Option<u16> {
        let at = self.seat_of(info.name())?;
        let seat = &mut self.seats[at];
        seat.taken_by.retain(|other| other.id() != info.id());
        match seat.taken_by.first() {
            Some(primary) => seat.candidate.weight = primary.weight().value(),
            None => self.vacant.push(at as u16),
        }
        Some(at as u16)
    }

    /// None where all seats are taken: nodes that register at the same moment can exceed the limit that each of them
    /// checks, and what is far beyond it owns nothing.
    fn take_seat(&mut self, info: &Arc<ServiceInfo>) -> Option<u16> {
        if self.names() >= MAX_SEATS {
            return None;
        }
        let at = match self.seat_of(info.name()) {
            Some(at) => at,
            None => {
                let seat = Seat {
                    candidate: Candidate {
                        hash: name_hash(info.name()),
                        weight: info.weight().value(),
                    },
                    taken_by: SmallVec::new(),
                };
                match self.vacant.pop() {
                    Some(at) => {
                        self.seats[usize::from(at)] = seat;
                        usize::from(at)
                    }
                    None => {
                        self.seats.push(seat);
                        self.seats.len() - 1
                    }
                }
            }
        };
        let seat = &mut self.seats[at];
        let place = seat
            .taken_by
            .partition_point(|other| standing(other) < standing(info));
        seat.taken_by.insert(place, Arc::clone(info));
        seat.candidate.weight = seat.taken_by[0].weight().value();
        Some(at as u16)
    }
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

fn classes(seats: &[Seat]) -> Vec<WeightClass> {
    let mut classes: Vec<WeightClass> = Vec::new();
    for (at, seat) in seats.iter().enumerate() {
        if seat.taken_by.is_empty() {
            continue;
        }
        let name = (seat.candidate.hash, at as u16);
        let weight = seat.candidate.weight;
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
