//! The seats of a type: small numbers that stand for the instance names that own keys.

use std::sync::Arc;

use smallvec::SmallVec;

use super::list::{Edits, Instances};
use super::table::NOBODY;
use crate::entry::{ServiceInfo, Weight};
use crate::id::InstanceName;
use crate::limits::MAX_INSTANCES_PER_TYPE;
use crate::placement::name_hash;

/// Names that can own keys: well beyond [`MAX_INSTANCES_PER_TYPE`], and below the number that stands for nobody.
pub(super) const MAX_CANDIDATES: usize = 4 * MAX_INSTANCES_PER_TYPE;

/// The seats of one weight: between them the larger draw wins, without a logarithm.
#[derive(Clone, Debug)]
pub(super) struct WeightClass {
    weight: Weight,
    pub(super) seats: Vec<u16>,
}

/// Each online instance name has a seat. Seats keep their number while they are taken; a vacant one is reused.
#[derive(Clone, Debug, Default)]
pub(super) struct CandidateIndex {
    /// Who owns the keys of each seat; none where it is vacant.
    primaries: Box<[Option<Arc<ServiceInfo>>]>,
    /// What placement knows of their names.
    hashes: Box<[u64]>,
    taken: usize,
    standbys: usize,
    /// None where all seats are taken and of one weight, which is how it mostly is.
    classes: Box<[WeightClass]>,
}

/// Seats that other services have, or that are others' now.
pub(super) type Touched = SmallVec<[u16; 8]>;

impl CandidateIndex {
    /// Who owns the keys of a seat.
    #[inline]
    pub(super) fn primary(&self, seat: u16) -> Option<&Arc<ServiceInfo>> {
        self.primaries.get(usize::from(seat))?.as_ref()
    }

    /// Somebody who owns keys, if anybody does.
    pub(super) fn first(&self) -> Option<&Arc<ServiceInfo>> {
        self.primaries.iter().flatten().next()
    }

    /// The hash of the name that has a seat.
    #[inline]
    pub(super) fn hash(&self, seat: u16) -> u64 {
        self.hashes[usize::from(seat)]
    }

    /// The same of all seats.
    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// How many names there are.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// How many others live under one of those names.
    pub(super) fn standbys(&self) -> usize {
        self.standbys
    }

    /// The seats that are taken by their weight; none where these are all seats, and of one weight.
    pub(super) fn classes(&self) -> &[WeightClass] {
        &self.classes
    }

    /// The only one that is taken, [`NOBODY`] where none is; none where several are.
    pub(super) fn only(&self) -> Option<u16> {
        match self.taken {
            0 => Some(NOBODY),
            1 => (0_u16..)
                .zip(&self.primaries)
                .find(|(_, primary)| primary.is_some())
                .map(|(seat, _)| seat),
            _ => None,
        }
    }

    /// The seats after a change of the list, and those whose names it concerns.
    pub(super) fn changed(
        &self,
        before: &[Arc<ServiceInfo>],
        after: &[Arc<ServiceInfo>],
        edits: &Edits<'_>,
    ) -> (CandidateIndex, Touched) {
        let mut next = Changing {
            primaries: self.primaries.to_vec(),
            hashes: self.hashes.to_vec(),
            taken: self.taken,
            standbys: self.standbys,
        };
        let mut index = None;
        let mut touched = Touched::new();
        let mut coming = Vec::new();
        for name in edits.names() {
            let is = Instances::find(after, name);
            let seat = Instances::find(before, name).and_then(|was| {
                let index = index.get_or_insert_with(|| Index::new(self, edits.len()));
                // It has none where there were too many names.
                Some((index.seat_of(self, name)?, was))
            });
            if let Some((seat, was)) = seat {
                next.stand_up(seat, &was);
                touched.push(seat);
                if let Some(is) = is {
                    next.sit_down(seat, &is);
                }
            } else if let Some(is) = is {
                coming.push(is);
            }
        }
        if !coming.is_empty() {
            let mut vacant = next.vacant();
            for is in coming {
                let Some(seat) = next.free(&mut vacant) else {
                    break;
                };
                next.hashes[usize::from(seat)] = name_hash(is.first.name());
                next.sit_down(seat, &is);
                touched.push(seat);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        let classes = if touched.is_empty() {
            self.classes.clone()
        } else {
            self.classes_after(&next, &touched)
        };
        (next.settle(classes), touched)
    }

    fn classes_after(&self, next: &Changing, touched: &[u16]) -> Box<[WeightClass]> {
        let weight =
            |primary: &Option<Arc<ServiceInfo>>| primary.as_ref().map(|info| info.weight());
        let all_taken = next.taken == next.primaries.len();
        // Without a look at all of them where they were of one weight, and those that changed are of it.
        let common = self.primaries.first().and_then(weight);
        let mut now = touched
            .iter()
            .map(|seat| weight(&next.primaries[usize::from(*seat)]));
        if self.classes.is_empty() && all_taken && common.is_some() && now.all(|now| now == common)
        {
            return Box::default();
        }
        let mut classes: Vec<WeightClass> = Vec::new();
        for (seat, primary) in (0_u16..).zip(&next.primaries) {
            let Some(weight) = weight(primary) else {
                continue;
            };
            match classes.binary_search_by_key(&weight, |class| class.weight) {
                Ok(found) => classes[found].seats.push(seat),
                Err(place) => classes.insert(
                    place,
                    WeightClass {
                        weight,
                        seats: vec![seat],
                    },
                ),
            }
        }
        if classes.len() == 1 && all_taken {
            return Box::default();
        }
        classes.into()
    }
}

/// Finds the seats of names: for a few by a pass over all hashes, for more by hashes in order.
struct Index(Option<Vec<(u64, u16)>>);

impl Index {
    /// Passes that cost less than one sort.
    const FEW: usize = 16;

    fn new(seats: &CandidateIndex, names: usize) -> Self {
        Index((names > Self::FEW).then(|| {
            let mut hashes: Vec<_> = seats.hashes.iter().copied().zip(0..).collect();
            hashes.sort_unstable();
            hashes
        }))
    }

    fn seat_of(&self, seats: &CandidateIndex, name: &InstanceName) -> Option<u16> {
        let hash = name_hash(name);
        let is_it = |seat: &u16| seats.primary(*seat).is_some_and(|info| info.name() == name);
        match &self.0 {
            Some(hashes) => {
                let start = hashes.partition_point(|(other, _)| *other < hash);
                hashes[start..]
                    .iter()
                    .take_while(|(other, _)| *other == hash)
                    .map(|(_, seat)| *seat)
                    .find(is_it)
            }
            None => (0_u16..)
                .zip(&seats.hashes)
                .filter(|(_, other)| **other == hash)
                .map(|(seat, _)| seat)
                .find(is_it),
        }
    }
}

/// Seats while they are changed.
struct Changing {
    primaries: Vec<Option<Arc<ServiceInfo>>>,
    hashes: Vec<u64>,
    taken: usize,
    standbys: usize,
}

impl Changing {
    fn stand_up(&mut self, seat: u16, was: &Instances<'_>) {
        self.primaries[usize::from(seat)] = None;
        self.taken -= 1;
        self.standbys -= was.standbys;
    }

    fn sit_down(&mut self, seat: u16, is: &Instances<'_>) {
        self.primaries[usize::from(seat)] = Some(Arc::clone(is.first));
        self.taken += 1;
        self.standbys += is.standbys;
    }

    fn vacant(&self) -> Vec<u16> {
        if self.taken == self.primaries.len() {
            return Vec::new();
        }
        (0_u16..)
            .zip(&self.primaries)
            .filter(|(_, primary)| primary.is_none())
            .map(|(seat, _)| seat)
            .collect()
    }

    /// A seat for one more name. None where there are too many: nodes that register at the same moment can exceed the
    /// limit that each of them checks, and what is far beyond it owns nothing.
    fn free(&mut self, vacant: &mut Vec<u16>) -> Option<u16> {
        if let Some(seat) = vacant.pop() {
            return Some(seat);
        }
        if self.primaries.len() >= MAX_CANDIDATES {
            return None;
        }
        self.primaries.push(None);
        self.hashes.push(0);
        Some((self.primaries.len() - 1) as u16)
    }

    fn settle(self, classes: Box<[WeightClass]>) -> CandidateIndex {
        if self.taken == 0 {
            return CandidateIndex::default();
        }
        CandidateIndex {
            primaries: self.primaries.into(),
            hashes: self.hashes.into(),
            taken: self.taken,
            standbys: self.standbys,
            classes,
        }
    }
}
