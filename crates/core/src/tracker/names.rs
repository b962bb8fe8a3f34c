//! The instance names that this node's services have taken.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::error::AddError;
use crate::entry::{NewEntry, ServiceInfo};
use crate::id::{InstanceName, NodeName, ServiceType};
use crate::limits::{
    MAX_INSTANCES_PER_TYPE, MAX_NAME_BYTES, MAX_SERVICES_PER_NODE, MAX_TYPES_PER_NODE,
};

/// The instance names of this node's services, by type.
#[derive(Debug)]
pub(super) struct InstanceNames {
    node: NodeName,
    by_type: HashMap<ServiceType, TypeNames>,
    sequences: Sequences,
}

#[derive(Debug, Default)]
struct TypeNames {
    taken: HashSet<InstanceName>,
    /// Ordinals below `next` that were given up.
    free: BTreeSet<u64>,
    next: u64,
}

/// A set of numbers that mostly follow each other: a bit each.
#[derive(Debug, Default)]
struct Sequences {
    words: BTreeMap<u64, u64>,
    len: usize,
}

impl Sequences {
    fn split(sequence: u64) -> (u64, u64) {
        (sequence / 64, 1 << (sequence % 64))
    }

    fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, sequence: u64) -> bool {
        let (word, bit) = Self::split(sequence);
        self.words.get(&word).is_some_and(|bits| bits & bit != 0)
    }

    fn insert(&mut self, sequence: u64) {
        let (word, bit) = Self::split(sequence);
        let bits = self.words.entry(word).or_default();
        self.len += usize::from(*bits & bit == 0);
        *bits |= bit;
    }

    fn remove(&mut self, sequence: u64) {
        let (word, bit) = Self::split(sequence);
        if let Some(bits) = self.words.get_mut(&word)
            && *bits & bit != 0
        {
            *bits &= !bit;
            self.len -= 1;
            if *bits == 0 {
                self.words.remove(&word);
            }
        }
    }
}

impl InstanceNames {
    pub(super) fn new(node: NodeName) -> Self {
        InstanceNames {
            node,
            by_type: HashMap::new(),
            sequences: Sequences::default(),
        }
    }

    /// InstanceNames for all of them, or an error and nothing reserved.
    pub(super) fn reserve(&mut self, entries: &[NewEntry]) -> Result<Vec<InstanceName>, AddError> {
        if self.sequences.len() + entries.len() > MAX_SERVICES_PER_NODE {
            return Err(AddError::NodeFull);
        }
        let mut names = Vec::with_capacity(entries.len());
        for entry in entries {
            match self.reserve_one(entry) {
                Ok(name) => names.push(name),
                Err(error) => {
                    for (entry, name) in entries.iter().zip(names) {
                        self.release_name(entry.sequence, &entry.service_type, &name);
                    }
                    return Err(error);
                }
            }
        }
        Ok(names)
    }

    fn len(&self) -> usize {
        self.sequences.len()
    }

    /// A name for one of a batch of which so many more are to come.
    pub(super) fn reserve_one_of(
        &mut self,
        entry: &NewEntry,
        more: usize,
    ) -> Result<InstanceName, AddError> {
        if self.len() + 1 + more > MAX_SERVICES_PER_NODE {
            return Err(AddError::NodeFull);
        }
        self.reserve_one(entry)
    }

    fn reserve_one(&mut self, entry: &NewEntry) -> Result<InstanceName, AddError> {
        if self.sequences.contains(entry.sequence) {
            return Err(AddError::SequenceTaken {
                sequence: entry.sequence,
            });
        }
        if self.by_type.len() >= MAX_TYPES_PER_NODE
            && !self.by_type.contains_key(&entry.service_type)
        {
            return Err(AddError::TooManyTypes);
        }
        let names = self.by_type.entry(entry.service_type.clone()).or_default();
        if names.taken.len() >= MAX_INSTANCES_PER_TYPE {
            return Err(AddError::TypeFull {
                service_type: entry.service_type.clone(),
            });
        }
        let name = match &entry.name {
            Some(name) if names.taken.contains(name) => {
                return Err(AddError::NameTaken {
                    service_type: entry.service_type.clone(),
                    name: name.clone(),
                });
            }
            Some(name) => name.clone(),
            None => names.by_ordinal(&self.node),
        };
        names.taken.insert(name.clone());
        self.sequences.insert(entry.sequence);
        Ok(name)
    }

    pub(super) fn release(&mut self, info: &ServiceInfo) {
        self.release_name(info.id().sequence, info.service_type(), info.name());
    }

    pub(super) fn release_name(
        &mut self,
        sequence: u64,
        service_type: &ServiceType,
        name: &InstanceName,
    ) {
        self.sequences.remove(sequence);
        let Some(names) = self.by_type.get_mut(service_type) else {
            return;
        };
        names.taken.remove(name);
        if let Some(ordinal) = ordinal(&self.node, name)
            && ordinal < names.next
        {
            names.free.insert(ordinal);
        }
        if names.taken.is_empty() {
            self.by_type.remove(service_type);
        }
    }
}

impl TypeNames {
    /// The smallest ordinal that is free, so that a restarted service takes its old name, and its keys, again.
    fn by_ordinal(&mut self, node: &NodeName) -> InstanceName {
        loop {
            let ordinal = self.free.pop_first().unwrap_or_else(|| {
                self.next += 1;
                self.next - 1
            });
            let name = default_name(node, ordinal);
            // The user may have given that name to another one.
            if !self.taken.contains(&name) {
                return name;
            }
        }
    }
}

/// `<node>/<ordinal>`; the node's name is cut where both would be too long.
fn default_name(node: &NodeName, ordinal: u64) -> InstanceName {
    let suffix = format!("/{ordinal}");
    let mut end = node.as_str().len().min(MAX_NAME_BYTES - suffix.len());
    while !node.as_str().is_char_boundary(end) {
        end -= 1;
    }
    InstanceName::try_new(format!("{}{suffix}", &node.as_str()[..end]))
        .expect("a node's name and a number within the limit make a name")
}

fn ordinal(node: &NodeName, name: &InstanceName) -> Option<u64> {
    let (_, ordinal) = name.as_str().rsplit_once('/')?;
    let ordinal = ordinal.parse().ok()?;
    (default_name(node, ordinal) == *name).then_some(ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Metadata;
    use crate::{ServiceState, Weight};

    fn entry(sequence: u64, name: Option<&str>) -> NewEntry {
        NewEntry {
            sequence,
            service_type: ServiceType::try_new("uploader").unwrap(),
            name: name.map(|name| InstanceName::try_new(name).unwrap()),
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: Some(1),
            metadata: Metadata::default(),
        }
    }

    fn names() -> InstanceNames {
        InstanceNames::new(NodeName::try_new("a").unwrap())
    }

    #[test]
    fn the_smallest_free_ordinal_is_taken() {
        let mut names = names();
        let given = names
            .reserve(&[entry(1, None), entry(2, None), entry(3, None)])
            .unwrap();
        let given: Vec<_> = given.iter().map(InstanceName::as_str).collect();
        assert_eq!(given, ["a/0", "a/1", "a/2"]);
        let service_type = ServiceType::try_new("uploader").unwrap();
        names.release_name(2, &service_type, &InstanceName::try_new("a/1").unwrap());
        assert_eq!(names.reserve(&[entry(4, None)]).unwrap()[0].as_str(), "a/1");
        assert_eq!(names.reserve(&[entry(5, None)]).unwrap()[0].as_str(), "a/3");
    }

    #[test]
    fn a_name_given_by_hand_is_not_given_again() {
        let mut names = names();
        names.reserve(&[entry(1, Some("a/0"))]).unwrap();
        assert_eq!(names.reserve(&[entry(2, None)]).unwrap()[0].as_str(), "a/1");
    }

    #[test]
    fn a_batch_with_a_name_that_is_taken_reserves_nothing() {
        let mut names = names();
        let error = names
            .reserve(&[entry(1, Some("x")), entry(2, Some("x"))])
            .unwrap_err();
        assert!(matches!(error, AddError::NameTaken { .. }));
        assert!(names.reserve(&[entry(1, Some("x"))]).is_ok());
        assert!(matches!(
            names.reserve(&[entry(1, Some("y"))]),
            Err(AddError::SequenceTaken { sequence: 1 })
        ));
    }
}
