//! One owner's entries by number, in little memory: numbers mostly follow each other, and types repeat.
//!
//! Rule: what one owner may have is bounded where it arrives, not only where it is written: what it says it has is kept, and
//! put into views, by everybody.

use std::collections::{BTreeMap, HashMap, HashSet, btree_map};
use std::slice;
use std::sync::Arc;

use crate::entry::ServiceInfo;
use crate::id::ServiceType;
use crate::limits::{
    MAX_BYTES_PER_NODE, MAX_INSTANCES_PER_TYPE, MAX_SERVICES_PER_NODE, MAX_TYPES_PER_NODE,
};

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

/// Bytes of an entry in a message, give or take a few.
pub(crate) fn estimated_bytes(info: &ServiceInfo) -> usize {
    const FIXED: usize = 48;
    let tags: usize = info
        .tags()
        .map(|(key, value)| key.len() + value.len() + 4)
        .sum();
    FIXED
        + info.service_type().as_str().len()
        + info.name().as_str().len()
        + info.zone().map_or(0, str::len)
        + info.address().map_or(0, str::len)
        + tags
}

/// A bound that an owner's entries would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Beyond {
    #[error("more than {MAX_SERVICES_PER_NODE} services (MAX_SERVICES_PER_NODE)")]
    Services,
    #[error("more than {MAX_BYTES_PER_NODE} bytes (MAX_BYTES_PER_NODE)")]
    Bytes,
    #[error("more than {MAX_TYPES_PER_NODE} types (MAX_TYPES_PER_NODE)")]
    Types,
    #[error("more than {MAX_INSTANCES_PER_TYPE} instances of one type (MAX_INSTANCES_PER_TYPE)")]
    Instances,
}

/// What is counted of an owner's entries.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    services: usize,
    bytes: usize,
}

impl Count {
    fn check(self) -> Result<(), Beyond> {
        if self.services > MAX_SERVICES_PER_NODE {
            return Err(Beyond::Services);
        }
        if self.bytes > MAX_BYTES_PER_NODE {
            return Err(Beyond::Bytes);
        }
        Ok(())
    }
}

/// Whether an owner may have so many services with so many bytes in all.
pub(crate) fn check_size(services: usize, bytes: usize) -> Result<(), Beyond> {
    Count { services, bytes }.check()
}

fn split(sequence: u64) -> (u64, u32) {
    (sequence / CHUNK, (sequence % CHUNK) as u32)
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    chunks: BTreeMap<u64, Chunk>,
    len: usize,
    bytes: usize,
    /// How many there are of each type. Hashed with std's seeds, as peers choose these names.
    of_type: HashMap<ServiceType, usize>,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of all of them in messages, give or take a few.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether they are within the bounds.
    pub(crate) fn check(&self) -> Result<(), Beyond> {
        check_size(self.len, self.bytes)?;
        if self.of_type.len() > MAX_TYPES_PER_NODE {
            return Err(Beyond::Types);
        }
        if self
            .of_type
            .values()
            .any(|count| *count > MAX_INSTANCES_PER_TYPE)
        {
            return Err(Beyond::Instances);
        }
        Ok(())
    }

    /// Whether they would be within the bounds after these changes: the entry of each number, or none where it goes.
    pub(crate) fn check_after<'a>(
        &'a self,
        changes: impl Iterator<Item = (u64, Option<&'a Arc<ServiceInfo>>)>,
    ) -> Result<(), Beyond> {
        let (mut more, mut less) = (Count::default(), Count::default());
        let mut of_type: BTreeMap<&ServiceType, (usize, usize)> = BTreeMap::new();
        for (sequence, after) in changes {
            if let Some(before) = self.get(sequence) {
                less.services += 1;
                less.bytes += estimated_bytes(before);
                of_type.entry(before.service_type()).or_default().1 += 1;
            }
            if let Some(after) = after {
                more.services += 1;
                more.bytes += estimated_bytes(after);
                of_type.entry(after.service_type()).or_default().0 += 1;
            }
        }
        // One that names a number twice counts it twice, and may be refused a little early: nobody honest does.
        check_size(
            (self.len + more.services).saturating_sub(less.services),
            (self.bytes + more.bytes).saturating_sub(less.bytes),
        )?;
        let mut types = self.of_type.len();
        for (service_type, (more, less)) in of_type {
            let there = self.of_type.get(service_type).copied().unwrap_or(0);
            if (there + more).saturating_sub(less) > MAX_INSTANCES_PER_TYPE {
                return Err(Beyond::Instances);
            }
            types += usize::from(there == 0 && more > 0);
        }
        if types > MAX_TYPES_PER_NODE {
            return Err(Beyond::Types);
        }
        Ok(())
    }

    fn count(&mut self, info: &ServiceInfo) {
        self.bytes += estimated_bytes(info);
        match self.of_type.get_mut(info.service_type()) {
            Some(count) => *count += 1,
            None => {
                self.of_type.insert(info.service_type().clone(), 1);
            }
        }
    }

    fn uncount(&mut self, info: &ServiceInfo) {
        self.bytes -= estimated_bytes(info);
        if let Some(count) = self.of_type.get_mut(info.service_type()) {
            *count -= 1;
            if *count == 0 {
                self.of_type.remove(info.service_type());
            }
        }
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&Arc<ServiceInfo>> {
        let (number, bit) = split(sequence);
        let chunk = self.chunks.get(&number)?;
        chunk.has(bit).then(|| &chunk.entries[chunk.place(bit)])
    }

    /// Takes an entry in, and returns the one that had its number.
    pub(crate) fn insert(&mut self, info: Arc<ServiceInfo>) -> Option<Arc<ServiceInfo>> {
        self.count(&info);
        let (number, bit) = split(info.id().sequence);
        let chunk = self.chunks.entry(number).or_default();
        let place = chunk.place(bit);
        if chunk.has(bit) {
            let before = std::mem::replace(&mut chunk.entries[place], info);
            self.uncount(&before);
            return Some(before);
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
        self.uncount(&gone);
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
