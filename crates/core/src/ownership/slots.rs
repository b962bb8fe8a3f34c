//! Sets of slots as runs: what a node holds of a type takes memory by the number of its runs, and nothing where it is empty.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::key::SLOTS;

/// Most runs of one set in a message: at most two numbers of three bytes each, so a set takes less than half of a control
/// frame.
pub const MAX_RUNS: usize = 65_536;

/// A set of slots, as sorted runs that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotSet {
    /// First slot of the run, and the first one behind it.
    runs: Vec<(u32, u32)>,
}

impl SlotSet {
    /// The empty set.
    pub const fn new() -> Self {
        SlotSet { runs: Vec::new() }
    }

    /// One slot.
    pub fn one(slot: u32) -> Self {
        SlotSet {
            runs: vec![(slot, slot + 1)],
        }
    }

    /// The slots below `end`.
    pub fn below(end: u32) -> Self {
        let runs = if end > 0 { vec![(0, end)] } else { Vec::new() };
        SlotSet { runs }
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many slots.
    pub fn len(&self) -> usize {
        let lengths = self.runs.iter().map(|(start, end)| (end - start) as usize);
        lengths.sum()
    }

    /// How many runs.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Whether the slot is in it.
    pub fn contains(&self, slot: u32) -> bool {
        let at = self.runs.partition_point(|(_, end)| *end <= slot);
        self.runs.get(at).is_some_and(|(start, _)| *start <= slot)
    }

    /// Adds a slot; true where it was not there.
    pub fn insert(&mut self, slot: u32) -> bool {
        let at = self.runs.partition_point(|(_, end)| *end < slot);
        let Some((start, end)) = self.runs.get(at).copied() else {
            self.runs.push((slot, slot + 1));
            return true;
        };
        if start <= slot && slot < end {
            return false;
        }
        if end == slot {
            self.runs[at].1 = slot + 1;
            if let Some((next, behind)) = self.runs.get(at + 1).copied()
                && next == slot + 1
            {
                self.runs[at].1 = behind;
                self.runs.remove(at + 1);
            }
        } else if start == slot + 1 {
            self.runs[at].0 = slot;
        } else {
            self.runs.insert(at, (slot, slot + 1));
        }
        true
    }

    /// Takes a slot out; true where it was there.
    pub fn remove(&mut self, slot: u32) -> bool {
        let at = self.runs.partition_point(|(_, end)| *end <= slot);
        let Some((start, end)) = self.runs.get(at).copied() else {
            return false;
        };
        if slot < start {
            return false;
        }
        match (start == slot, end == slot + 1) {
            (true, true) => {
                self.runs.remove(at);
            }
            (true, false) => self.runs[at].0 = slot + 1,
            (false, true) => self.runs[at].1 = slot,
            (false, false) => {
                self.runs[at].1 = slot;
                self.runs.insert(at + 1, (slot + 1, end));
            }
        }
        true
    }

    /// The slots in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.iter().flat_map(|(start, end)| *start..*end)
    }

    /// The first slot.
    pub fn first(&self) -> Option<u32> {
        self.runs.first().map(|(start, _)| *start)
    }

    /// The same set as several of at most so many runs.
    pub(crate) fn chunks(&self, runs: usize) -> impl Iterator<Item = SlotSet> + '_ {
        self.runs.chunks(runs.max(1)).map(|runs| SlotSet {
            runs: runs.to_vec(),
        })
    }
}

impl FromIterator<u32> for SlotSet {
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        let mut set = SlotSet::new();
        for slot in slots {
            match set.runs.last_mut() {
                Some((_, end)) if *end == slot => *end += 1,
                Some((_, end)) if *end > slot => {
                    set.insert(slot);
                }
                _ => set.runs.push((slot, slot + 1)),
            }
        }
        set
    }
}

/// Runs travel as the gap before each and its length, less one: both are small where runs are many.
impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut behind = 0;
        let gaps = self.runs.iter().map(|(start, end)| {
            let gap = start - behind;
            behind = *end;
            (gap, end - start - 1)
        });
        serializer.collect_seq(gaps.collect::<Vec<(u32, u32)>>())
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Runs;

        impl<'de> de::Visitor<'de> for Runs {
            type Value = SlotSet;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {MAX_RUNS} runs of slots below {SLOTS}")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<SlotSet, A::Error> {
                let told = seq.size_hint().unwrap_or(0);
                if told > MAX_RUNS {
                    return Err(de::Error::invalid_length(told, &self));
                }
                // What is said to come is no reason to allocate: it may not come.
                let mut runs: Vec<(u32, u32)> = Vec::with_capacity(told.min(1_024));
                while let Some((gap, more)) = seq.next_element::<(u32, u32)>()? {
                    let behind = runs.last().map_or(0, |(_, end)| *end);
                    if (gap == 0 && !runs.is_empty()) || runs.len() >= MAX_RUNS {
                        return Err(de::Error::custom("runs of slots that touch, or too many"));
                    }
                    let start = behind.checked_add(gap);
                    let end = start
                        .and_then(|start| start.checked_add(more))
                        .and_then(|last| last.checked_add(1))
                        .filter(|end| *end as usize <= SLOTS);
                    let (Some(start), Some(end)) = (start, end) else {
                        return Err(de::Error::custom("a slot that there is not"));
                    };
                    runs.push((start, end));
                }
                Ok(SlotSet { runs })
            }
        }

        deserializer.deserialize_seq(Runs)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_runs_is_a_set(changes in proptest::collection::vec((any::<bool>(), 0_u32..40), 0..200)) {
            let (mut runs, mut plain) = (SlotSet::new(), BTreeSet::new());
            for (adds, slot) in changes {
                if adds {
                    prop_assert_eq!(runs.insert(slot), plain.insert(slot));
                } else {
                    prop_assert_eq!(runs.remove(slot), plain.remove(&slot));
                }
                prop_assert_eq!(runs.len(), plain.len());
                prop_assert!(runs.iter().eq(plain.iter().copied()));
                prop_assert!((0..40).all(|slot| runs.contains(slot) == plain.contains(&slot)));
                prop_assert!(runs.runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
                let bytes = postcard::to_allocvec(&runs).unwrap();
                prop_assert_eq!(postcard::from_bytes::<SlotSet>(&bytes).unwrap(), runs.clone());
                prop_assert_eq!(plain.iter().copied().collect::<SlotSet>(), runs.clone());
            }
        }

        #[test]
        fn whatever_bytes_are_read_as_a_set_are_a_proper_one(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(set) = postcard::from_bytes::<SlotSet>(&bytes) {
                prop_assert!(set.runs.iter().all(|(start, end)| start < end && *end as usize <= SLOTS));
                prop_assert!(set.runs.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }

    #[test]
    fn a_whole_key_space_is_one_run() {
        let all = SlotSet::below(SLOTS as u32);
        assert_eq!((all.runs(), all.len()), (1, SLOTS));
        assert!(postcard::to_allocvec(&all).unwrap().len() <= 6);
    }

    #[test]
    fn runs_beyond_the_bound_are_refused_before_they_are_read() {
        let many: Vec<(u32, u32)> = vec![(1, 0); MAX_RUNS + 1];
        let bytes = postcard::to_allocvec(&many).unwrap();
        assert!(postcard::from_bytes::<SlotSet>(&bytes).is_err());
    }
}
