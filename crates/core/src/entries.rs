//! One owner's entries by number, in little memory: numbers mostly follow each other, and types repeat.

use std::collections::{BTreeMap, HashSet, btree_map};
use std::slice;
use std::sync::Arc;

use crate::entry::ServiceInfo;
use crate::id::ServiceType;

/// Entries of consecutive numbers that lie together: one for each bit of [`Chunk::present`].
const CHUNK: u64 = 64;

/// The entries of [`CHUNK`] numbers that follow each other.
#[derive(Clone, Debug, Default)]
struct Chunk {
    /// Bit by bit, which of the numbers have an entry.
    present: u64,
    /// Those entries, in the order of their numbers.
    entries: Vec<Arc<ServiceInfo>>,
}

impl Chunk {
    fn has(&self, bit: u32) -> bool {
        self.present & (1 << bit) != 0
    }

    /// How many there are with smaller numbers.
    fn place(&self, bit: u32) -> usize {
        (self.present & ((1 << bit) - 1)).count_ones() as usize
    }
}

fn split(sequence: u64) -> (u64, u32) {
    (sequence / CHUNK, (sequence % CHUNK) as u32)
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    chunks: BTreeMap<u64, Chunk>,
    len: usize,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Arc<ServiceInfo>> {
        let (number, bit) = split(sequence);
        let chunk = self.chunks.get(&number)?;
        chunk.has(bit).then(|| &chunk.entries[chunk.place(bit)])
    }

    /// Takes an entry in, and returns the one that had its number.
    pub(crate) fn insert(&mut self, info: Arc<ServiceInfo>) -> Option<Arc<ServiceInfo>> {
        let (number, bit) = split(info.id().sequence);
        let chunk = self.chunks.entry(number).or_default();
        let place = chunk.place(bit);
        if chunk.has(bit) {
            return Some(std::mem::replace(&mut chunk.entries[place], info));
        }
        chunk.present |= 1 << bit;
        chunk.entries.insert(place, info);
        self.len += 1;
        None
    }

    pub(crate) fn remove(&mut self, sequence: u64) -> Option<Arc<ServiceInfo>> {
        let (number, bit) = split(sequence);
        let chunk = self.chunks.get_mut(&number)?;
        if !chunk.has(bit) {
            return None;
        }
        let gone = chunk.entries.remove(chunk.place(bit));
        chunk.present &= !(1 << bit);
        self.len -= 1;
        if chunk.present == 0 {
            self.chunks.remove(&number);
        }
        Some(gone)
    }

    /// All of them in the order of their numbers.
    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter {
            chunks: self.chunks.values(),
            chunk: [].iter(),
            left: self.len,
        }
    }
}

/// See [`Entries::iter`].
pub(crate) struct Iter<'a> {
    chunks: btree_map::Values<'a, u64, Chunk>,
    chunk: slice::Iter<'a, Arc<ServiceInfo>>,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<ServiceInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(info) = self.chunk.next() {
                self.left -= 1;
                return Some(info);
            }
            self.chunk = self.chunks.next()?.entries.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// The types of some entries, so that those of one type share its name: each message brings names of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Types {
    /// Hashed with std's seeds, as peers choose these names.
    names: HashSet<ServiceType>,
    /// How many there may be before those are dropped that nobody uses any more.
    room: usize,
}

impl Types {
    /// The same name as others have it.
    pub(crate) fn share(&mut self, service_type: &ServiceType) -> ServiceType {
        if let Some(known) = self.names.get(service_type) {
            return known.clone();
        }
        if self.names.len() >= self.room {
            self.names.retain(ServiceType::is_shared);
            self.room = 2 * self.names.len() + 1;
        }
        self.names.insert(service_type.clone());
        service_type.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{Record, ServiceState, Weight};
    use crate::id::{Generation, InstanceName, NodeName};

    fn info(sequence: u64, version: u64) -> Arc<ServiceInfo> {
        let record = Record {
            sequence,
            version,
            previous: None,
            service_type: ServiceType::try_new("uploader").unwrap(),
            name: InstanceName::try_new("a/0").unwrap(),
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: None,
            metadata: None,
        };
        let owner = NodeName::try_new("a").unwrap();
        Arc::new(ServiceInfo::from_record(
            &owner,
            Generation::default(),
            1,
            record,
        ))
    }

    proptest! {
        #[test]
        fn it_does_what_a_map_does(
            steps in proptest::collection::vec((prop_oneof![0_u64..200, any::<u64>()], any::<bool>()), 0..400),
        ) {
            let (mut entries, mut map) = (Entries::default(), BTreeMap::new());
            for (version, (sequence, put)) in steps.into_iter().enumerate() {
                if put {
                    let info = info(sequence, version as u64);
                    prop_assert_eq!(entries.insert(Arc::clone(&info)), map.insert(sequence, info));
                } else {
                    prop_assert_eq!(entries.get(sequence), map.get(&sequence));
                    prop_assert_eq!(entries.remove(sequence), map.remove(&sequence));
                }
                prop_assert_eq!(entries.len(), map.len());
            }
            prop_assert_eq!(entries.iter().len(), map.len());
            prop_assert!(entries.iter().eq(map.values()));
        }
    }

    #[test]
    fn names_of_types_are_shared_and_forgotten_when_nobody_uses_them() {
        let name = |number: usize| ServiceType::try_new(format!("type {number}")).unwrap();
        let mut types = Types::default();
        let (first, again) = (types.share(&name(0)), types.share(&name(0)));
        assert_eq!(first.as_str().as_ptr(), again.as_str().as_ptr());
        for number in 1..1_000 {
            types.share(&name(number));
        }
        assert!(types.names.len() <= 3);
        assert!(types.names.contains(&first));
    }
}
