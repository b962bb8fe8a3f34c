//! The services of one type at one moment, and who of them owns a key.

use std::cmp::Ordering;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::entry::ServiceInfo;
use crate::id::{InstanceName, ServiceType};
use crate::key::{Key, Slot};
use crate::placement::{Candidate, draw, prefer, salt};

mod accepting;
mod candidates;
pub(crate) mod explain;
mod list;
mod narrow;
mod table;
pub(crate) mod whatif;

use candidates::CandidateIndex;
pub(crate) use list::Change;
use list::{Edits, online, place_of};
use narrow::{Narrowed, is_keyed, is_mixed};
pub(crate) use table::TableBudget;
use table::{
    Cells, First, KEPT, LOST, Locked, MANY_MOVED, Moved, NOBODY, Page, RANKED, Ranked, Table,
};

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
    /// At most one of each instance name: who stands by for another one is left out.
    Names,
    /// At most one in each zone. Instances without a zone count as one zone each.
    Zones,
}

/// All services of one type at one moment: an immutable value, the same for the same set on every node.
///
/// Looking an owner up costs no allocation and no reference count.
#[derive(Debug)]
pub struct View {
    service_type: ServiceType,
    version: u64,
    services: Box<[Arc<ServiceInfo>]>,
    /// Who of them own keys, one for each name.
    candidates: CandidateIndex,
    /// The only seat that is taken; [`NOBODY`] where none is.
    only: Option<u16>,
    table: Table,
    /// Those that own keys do not all take the same messages.
    mixed: bool,
    /// The states of all of them move with their keys, which are placed by fewer slots.
    keyed: bool,
    /// Where they do not: who takes which, as far as it was asked for.
    narrowed: Narrowed<Arc<View>>,
}

impl View {
    /// A view of nothing.
    pub fn empty(service_type: ServiceType) -> Self {
        View {
            service_type,
            version: 0,
            services: Box::default(),
            candidates: CandidateIndex::default(),
            only: Some(NOBODY),
            table: Table::new(TableBudget::new(0), 0),
            mixed: false,
            keyed: false,
            narrowed: Narrowed::default(),
        }
    }

    pub(crate) fn with_budget(service_type: ServiceType, budget: Arc<TableBudget>) -> Self {
        View {
            table: Table::new(budget, 0),
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
        self.candidates.taken() + self.candidates.standbys()
    }

    /// The owner of a key.
    #[inline]
    pub fn owner(&self, key: impl Into<Key>) -> Option<&Arc<ServiceInfo>> {
        let slot = self.slot(key.into());
        // Rule: an owner depends on nothing but the set of services: a table only remembers what a score would find. Without it
        // two nodes with one view send a key to two owners.
        // All that most lookups do: what else there is stays out of the way.
        let first = match self.table.started() {
            Some(cells) => cells.first(slot),
            None => First::default(),
        };
        match first.of(self.table.epoch()) {
            Some(seat) => self.candidates.primary(seat),
            None => self.owner_unknown(slot, first),
        }
    }

    /// By which slot a key is placed.
    #[inline]
    fn slot(&self, key: Key) -> Slot {
        let slot = key.slot();
        if self.keyed { slot.keyed() } else { slot }
    }

    /// The owner of a slot of which the table does not say it for this view, or of all where there is one.
    #[inline(never)]
    fn owner_unknown(&self, slot: Slot, first: First) -> Option<&Arc<ServiceInfo>> {
        if let Some(seat) = self.first_carried(slot, first) {
            return self.candidates.primary(seat);
        }
        let seat = match self.only {
            None => self.ranked(slot, 1)[0],
            Some(seat) => seat,
        };
        self.candidates.primary(seat)
    }

    /// The first `n` owners of a key in order of preference: min(`n`, online) distinct instances, always.
    pub fn owners(&self, key: impl Into<Key>, n: usize) -> Owners<'_> {
        self.owners_as(key, n, |info| info)
    }

    /// The same, each as `to` makes it.
    #[inline]
    pub(crate) fn owners_as<'a, T>(
        &'a self,
        key: impl Into<Key>,
        n: usize,
        to: impl Fn(&'a Arc<ServiceInfo>) -> T,
    ) -> SmallVec<[T; 4]> {
        let slot = self.slot(key.into());
        if n == 0 {
            return SmallVec::new();
        }
        if n > RANKED {
            let order = self.preference(slot).into_iter();
            return order.take(n).map(to).collect();
        }
        let ranked = match self.only {
            None => self.ranked(slot, n),
            Some(seat) => [seat, NOBODY, NOBODY, NOBODY],
        };
        if self.candidates.standbys() > 0 {
            let all = ranked.into_iter().flat_map(|seat| self.takers(seat));
            return all.take(n).map(to).collect();
        }
        let mut owners = SmallVec::new();
        for seat in ranked.into_iter().take(n) {
            if let Some(primary) = self.candidates.primary(seat) {
                owners.push(to(primary));
            }
        }
        owners
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
        let first = self.owners(key, KEPT);
        let all_seen = first.len() < KEPT;
        let mut chosen = Owners::new();
        if choose(&mut chosen, n, spread, first) || all_seen {
            return chosen;
        }
        let behind = self.preference(self.slot(key)).into_iter().skip(KEPT);
        choose(&mut chosen, n, spread, behind);
        chosen
    }

    /// True for an online service whose name another one of a smaller node name has, too: it ranks right behind it.
    pub fn is_standby(&self, info: &ServiceInfo) -> bool {
        let Some(place) = place_of(&self.services, info) else {
            return false;
        };
        let in_front = self.services[..place].iter().rev();
        self.services[place].is_online()
            && in_front
                .take_while(|other| other.name() == info.name())
                .any(|other| other.is_online())
    }

    /// The entry of one service.
    pub fn service(&self, id: &crate::id::ServiceId) -> Option<&Arc<ServiceInfo>> {
        self.services.iter().find(|info| info.id() == id)
    }

    /// Who has a seat: the primary, then those that stand by.
    fn takers(&self, seat: u16) -> impl Iterator<Item = &Arc<ServiceInfo>> {
        let name = self.name(seat);
        name.into_iter()
            .flat_map(|name| online(&self.services, name))
    }

    fn name(&self, seat: u16) -> Option<&InstanceName> {
        self.candidates.primary(seat).map(|info| info.name())
    }

    /// What placement knows of the name that has a seat; none where nobody has.
    fn candidate(&self, seat: u16) -> Option<Candidate> {
        self.candidates.primary(seat).map(|info| Candidate {
            hash: self.candidates.hash(seat),
            weight: info.weight().value(),
        })
    }

    /// The first `n` seats of a slot, and maybe more.
    #[inline]
    fn ranked(&self, slot: Slot, n: usize) -> Ranked {
        if n > KEPT {
            return self.score(slot);
        }
        let Some(cells) = self.table.cells() else {
            return self.score(slot);
        };
        cells
            .ranked(slot, self.table.epoch(), n)
            .unwrap_or_else(|| self.find_out(cells, slot, n))
    }

    /// The same where they are not known by this view.
    #[inline(never)]
    fn find_out(&self, cells: &Cells, slot: Slot, n: usize) -> Ranked {
        match self.carried(cells, slot, n) {
            Some(ranked) => ranked,
            None => self.find_out_anew(cells, slot, n),
        }
    }

    /// The first seats of a slot whose page is of an earlier view, brought up to date for this lookup alone.
    ///
    /// Rule: this writes nothing but a count. A page that is written at each change by whoever comes first is fetched by the
    /// cores of all others, and all slots of it are carried for the one that is asked for.
    fn carried(&self, cells: &Cells, slot: Slot, n: usize) -> Option<Ranked> {
        let (since, known) = cells.earlier(slot, self.table.epoch())?;
        let moved = self.table.moved_since(since)?;
        let ranked = self.ranked_now(slot, known, moved);
        if ranked[n - 1] == LOST {
            return None;
        }
        self.was_late(cells, slot, moved);
        Some(ranked)
    }

    /// The same for the first seat.
    #[inline]
    fn first_carried(&self, slot: Slot, first: First) -> Option<u16> {
        let (since, seat) = first.before(self.table.epoch())?;
        let moved = self.table.moved_since(since)?;
        let seat = self.first_now(slot, seat, moved)?;
        self.was_late(self.table.started()?, slot, moved);
        Some(seat)
    }

    /// Counts a lookup by this view in a page of an earlier one, and brings that page up to date where it is time.
    #[inline]
    fn was_late(&self, cells: &Cells, slot: Slot, moved: &[Moved]) {
        #[cfg(test)]
        cells.count(|counts| &counts.carried_alone);
        if cells.is_often_late(slot) || moved.len() >= MANY_MOVED {
            self.bring_page_up_to_date(cells, slot);
        }
    }

    #[inline(never)]
    fn bring_page_up_to_date(&self, cells: &Cells, slot: Slot) {
        if let Page::Ours(mut page) = cells.change(slot, self.table.epoch()) {
            self.bring_up_to_date(&mut page);
        }
    }

    /// Brings the slot's page up to date, and keeps what it finds out.
    #[inline(never)]
    fn find_out_anew(&self, cells: &Cells, slot: Slot, n: usize) -> Ranked {
        let epoch = self.table.epoch();
        match cells.change(slot, epoch) {
            Page::Ours(mut page) => {
                self.bring_up_to_date(&mut page);
                let known = page.load(slot);
                if known[n - 1] != LOST {
                    return known;
                }
                #[cfg(test)]
                cells.count(|counts| &counts.scored);
                let ranked = self.score(slot);
                page.store(slot, ranked, n);
                ranked
            }
            // Nobody waits: to score a slot takes less than it may take until the other one runs again.
            Page::Busy => self.score(slot),
            Page::Later => match self.table.of_an_old_view() {
                Some(own) => own
                    .ranked(slot, epoch, n)
                    .unwrap_or_else(|| self.find_out_anew(own, slot, n)),
                None => self.score(slot),
            },
        }
    }

    /// Carries what is known of a page over.
    fn bring_up_to_date(&self, page: &mut Locked<'_>) {
        let Some(epoch) = page.behind() else {
            return;
        };
        match self.table.moved_since(epoch) {
            Some(moved) => page.carry(|slot, ranked| self.ranked_now(slot, ranked, moved)),
            None => page.clear(),
        }
    }

    /// Who comes first now, of the one who did and those that moved since. None where that one moved itself.
    #[inline]
    fn first_now(&self, slot: Slot, first: u16, moved: &[Moved]) -> Option<u16> {
        let salt = salt(slot);
        let drawn = |seat: u16| (seat, draw(self.candidates.hash(seat), salt));
        let (even, mut best) = (self.is_even(), None);
        for moved in moved {
            if moved.seat == first {
                return None;
            }
            if moved.is_taken {
                let (drawn, other) = (drawn(moved.seat), best.unwrap_or_else(|| drawn(first)));
                let is_first = self.compare(drawn, other, even).is_lt();
                best = Some(if is_first { drawn } else { other });
            }
        }
        Some(best.map_or(first, |(seat, _)| seat))
    }

    /// The first seats now: where a seat was given up or changed its weight, those behind it move up, and who comes last is
    /// not known; a new one is compared with who is there.
    fn ranked_now(&self, slot: Slot, mut ranked: Ranked, moved: &[Moved]) -> Ranked {
        for moved in moved {
            take_out(&mut ranked, moved.seat);
        }
        let mut joined = moved.iter().filter(|moved| moved.is_taken).peekable();
        if joined.peek().is_some() && ranked[0] != LOST {
            let salt = salt(slot);
            for moved in joined {
                self.put_in(&mut ranked, moved.seat, salt);
            }
        }
        ranked
    }

    /// The first seats of a slot by the specification, vacant places last.
    #[inline(never)]
    fn score(&self, slot: Slot) -> Ranked {
        let salt = salt(slot);
        let classes = self.candidates.classes();
        let best = if classes.is_empty() {
            let all = (0_u16..).zip(self.candidates.hashes());
            self.best_of(all.map(|(seat, hash)| (seat, *hash)), salt)
        } else {
            let mut best: Best = [(NOBODY, 0); RANKED];
            for class in classes {
                let of_class = class.seats.iter();
                let of_class = of_class.map(|seat| (*seat, self.candidates.hash(*seat)));
                for (seat, drawn) in self.best_of(of_class, salt) {
                    if seat != NOBODY && !self.insert(&mut best, seat, drawn, false) {
                        break;
                    }
                }
            }
            best
        };
        best.map(|(seat, _)| seat)
    }

    /// The first of some seats of one weight.
    #[inline]
    fn best_of(&self, seats: impl Iterator<Item = (u16, u64)>, salt: u64) -> Best {
        let mut best: Best = [(NOBODY, 0); RANKED];
        for (seat, hash) in seats {
            let drawn = draw(hash, salt);
            // Names of equal hash draw alike, and are ordered by name: rare enough for the slow path.
            if drawn >= best[RANKED - 1].1 {
                self.insert(&mut best, seat, drawn, true);
            }
        }
        best
    }

    /// Puts a seat into its place among others, whether of one weight or not; false where it is behind all of them.
    fn insert(&self, best: &mut Best, seat: u16, drawn: u64, one_weight: bool) -> bool {
        let Some(place) = best.iter().position(|&other| {
            other.0 == NOBODY || self.compare((seat, drawn), other, one_weight).is_lt()
        }) else {
            return false;
        };
        best[place..].rotate_right(1);
        best[place] = (seat, drawn);
        true
    }

    /// Who of two seats with what they drew comes first.
    #[inline]
    fn compare(&self, a: (u16, u64), b: (u16, u64), one_weight: bool) -> Ordering {
        if one_weight && a.1 != b.1 {
            return b.1.cmp(&a.1);
        }
        self.compare_in_full(a, b)
    }

    /// The same by weights, draws, hashes and names.
    #[inline(never)]
    fn compare_in_full(&self, a: (u16, u64), b: (u16, u64)) -> Ordering {
        match (self.candidate(a.0), self.candidate(b.0)) {
            (Some(first), Some(second)) => prefer((first, a.1), (second, b.1))
                .then_with(|| self.name(a.0).cmp(&self.name(b.0))),
            // Nobody asks for the order of vacant seats.
            (first, second) => second.is_some().cmp(&first.is_some()),
        }
    }

    /// All seats that are taken are of one weight.
    fn is_even(&self) -> bool {
        self.candidates.classes().len() <= 1
    }

    /// Everybody online in the order of preference.
    fn preference(&self, slot: Slot) -> Vec<&Arc<ServiceInfo>> {
        let salt = salt(slot);
        let taken = (0_u16..)
            .zip(self.candidates.hashes())
            .filter(|(seat, _)| self.candidates.primary(*seat).is_some());
        let mut order: Vec<(u16, u64)> = taken
            .map(|(seat, hash)| (seat, draw(*hash, salt)))
            .collect();
        let even = self.is_even();
        order.sort_unstable_by(|a, b| self.compare(*a, *b, even));
        order
            .into_iter()
            .flat_map(|(seat, _)| self.takers(seat))
            .collect()
    }

    /// The view after some services left, came or changed, at a later version. Costs a copy of the list; the table goes on.
    pub(crate) fn changed(&self, version: u64, changes: &[Change]) -> View {
        let edits = Edits::of(changes);
        let services = edits.apply(&self.services);
        let (candidates, touched) = self.candidates.changed(&self.services, &services, &edits);
        let mut next = View {
            service_type: self.service_type.clone(),
            version,
            mixed: is_mixed(self.mixed, self.candidates.first(), &services, changes),
            keyed: is_keyed(self.keyed, &services, changes),
            narrowed: Narrowed::default(),
            services,
            only: candidates.only(),
            table: Table::new(self.table.budget(), candidates.hashes().len()),
            candidates,
        };
        if next.only.is_none() {
            let as_before = |seat: u16| {
                next.candidate(seat) == self.candidate(seat) && next.name(seat) == self.name(seat)
            };
            let moved: SmallVec<[(u16, bool); 8]> = touched
                .into_iter()
                .filter(|seat| !as_before(*seat))
                .map(|seat| (seat, next.candidates.primary(seat).is_some()))
                .collect();
            next.table = if moved.is_empty() {
                self.table.share()
            } else {
                self.table.after(&moved, next.candidates.hashes().len())
            };
        }
        next
    }

    /// Puts a seat into its place among those of a slot, if it has one.
    fn put_in(&self, ranked: &mut Ranked, seat: u16, salt: u64) {
        let draw_of = |seat: u16| draw(self.candidates.hash(seat), salt);
        let drawn = draw_of(seat);
        // From behind: mostly there is no place.
        let known = ranked.iter().take_while(|seat| **seat < LOST).count();
        let even = self.is_even();
        let is_before = |other: u16| {
            self.compare((seat, drawn), (other, draw_of(other)), even)
                .is_lt()
        };
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
        Spread::Names => a.name() == b.name(),
        Spread::Zones => a.zone().is_some() && a.zone() == b.zone(),
    }
}

#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod whatif_tests;
