//! Services by type: one writer, immutable views for readers, events for subscribers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use papaya::Guard;
use smallvec::SmallVec;

use crate::entry::{EntryChange, ServiceInfo};
use crate::id::{ServiceType, TypeHash};
use crate::key::Key;
use crate::view::{Change, TableBudget, View};

/// Bytes that the lookup tables of one node may take: 1.5 MiB for each type of two
/// to 254 instance names that is looked up, and 2.5 MiB for larger ones.
pub const MAX_TABLE_BYTES: usize = 256 * 1024 * 1024;

/// What happened to a service, for subscribers of its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// It joined.
    Joined(Arc<ServiceInfo>),
    /// It left; this was its last version.
    Left(Arc<ServiceInfo>),
    /// It changed.
    Updated {
        /// Its version before.
        before: Arc<ServiceInfo>,
        /// Its version now.
        after: Arc<ServiceInfo>,
    },
}

impl RegistryEvent {
    fn new(change: EntryChange) -> Option<Self> {
        match (change.before, change.after) {
            (None, Some(after)) => Some(RegistryEvent::Joined(after)),
            (Some(before), None) => Some(RegistryEvent::Left(before)),
            (Some(before), Some(after)) => Some(RegistryEvent::Updated { before, after }),
            (None, None) => None,
        }
    }

    /// The service, in its latest version.
    pub fn info(&self) -> &Arc<ServiceInfo> {
        match self {
            RegistryEvent::Joined(info)
            | RegistryEvent::Left(info)
            | RegistryEvent::Updated { after: info, .. } => info,
        }
    }

    /// The type whose subscribers are to be told.
    pub fn service_type(&self) -> &ServiceType {
        self.info().service_type()
    }
}

/// The readers' side: every type with its current view. Reading takes no lock.
#[derive(Debug)]
pub struct Directory {
    /// What protects a view from being dropped while it is read is that map, not a count.
    types: papaya::HashMap<ServiceType, Arc<View>, TypeHash>,
    version: AtomicU64,
    budget: Arc<TableBudget>,
}

impl Directory {
    /// The current view of a type; none while nothing is registered under it.
    pub fn view(&self, service_type: &str) -> Option<Arc<View>> {
        self.read(service_type, Arc::clone)
    }

    /// Reads the current view of a type where it is; none while nothing is registered under it.
    #[inline]
    pub fn read<T>(&self, service_type: &str, read: impl FnOnce(&Arc<View>) -> T) -> Option<T> {
        self.types.pin().get(service_type).map(read)
    }

    /// The owner of a key.
    #[inline]
    pub fn find(&self, service_type: &str, key: Key) -> Option<Arc<ServiceInfo>> {
        self.read(service_type, |view| view.owner(key).cloned())?
    }

    /// The first `n` owners of a key; see [`View::owners`].
    #[inline]
    pub fn find_multi(&self, service_type: &str, key: Key, n: usize) -> FoundOwners {
        let found = self.read(service_type, |view| view.owners_as(key, n, Arc::clone));
        FoundOwners(found.unwrap_or_default())
    }

    /// The version of the last view that was made: at least that of every view that is read from now on.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The types with services, in no order.
    pub fn types(&self) -> Vec<ServiceType> {
        self.types.pin().keys().cloned().collect()
    }

    /// Forgets every view, once nobody writes here any more: what is not kept up to date is not to be found.
    pub fn clear(&self) {
        self.types.pin().clear();
        self.types.guard().flush();
    }

    fn empty(&self, service_type: &ServiceType) -> View {
        View::with_budget(service_type.clone(), Arc::clone(&self.budget))
    }
}

/// The first owners of a key, in order of preference: a slice of them, without an allocation for up to four.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundOwners(SmallVec<[Arc<ServiceInfo>; 4]>);

impl Deref for FoundOwners {
    type Target = [Arc<ServiceInfo>];

    fn deref(&self) -> &[Arc<ServiceInfo>] {
        &self.0
    }
}

impl IntoIterator for FoundOwners {
    type Item = Arc<ServiceInfo>;
    type IntoIter = smallvec::IntoIter<[Arc<ServiceInfo>; 4]>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a FoundOwners {
    type Item = &'a Arc<ServiceInfo>;
    type IntoIter = std::slice::Iter<'a, Arc<ServiceInfo>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl From<FoundOwners> for Vec<Arc<ServiceInfo>> {
    fn from(found: FoundOwners) -> Self {
        found.0.into_vec()
    }
}

/// The writer's side.
#[derive(Debug)]
pub struct DirectoryWriter {
    hash: TypeHash,
    directory: Arc<Directory>,
    version: u64,
    services: usize,
}

impl Default for DirectoryWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl DirectoryWriter {
    /// A registry of nothing, whose types are hashed with a seed that std draws for this process.
    pub fn new() -> Self {
        DirectoryWriter::seeded(RandomState::new().hash_one(0_u64))
    }

    /// A registry of nothing, whose types are hashed with that seed. No peer may know it, see [`TypeHash`].
    pub(crate) fn seeded(hash_seed: u64) -> Self {
        let hash = TypeHash { seed: hash_seed };
        DirectoryWriter {
            hash,
            directory: Arc::new(Directory {
                types: papaya::HashMap::with_hasher(hash),
                version: AtomicU64::new(0),
                budget: TableBudget::new(MAX_TABLE_BYTES),
            }),
            version: 0,
            services: 0,
        }
    }

    /// What readers read.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// How many services are visible.
    pub fn services(&self) -> usize {
        self.services
    }

    /// Takes changes in, and swaps the view of each type that they concern once. Returns what subscribers are
    /// told, each with the version of the view that it led to.
    pub fn apply(&mut self, changes: Vec<EntryChange>) -> Vec<(RegistryEvent, u64)> {
        let events: Vec<RegistryEvent> =
            changes.into_iter().filter_map(RegistryEvent::new).collect();
        // By type in the order of their first change. Not a list for each type: freed among the views that are made
        // here to stay, many small ones leave holes.
        let mut types: HashMap<&ServiceType, u32, TypeHash> = HashMap::with_hasher(self.hash);
        let mut order: Vec<(u32, usize)> = Vec::with_capacity(events.len());
        for (at, event) in events.iter().enumerate() {
            match event {
                RegistryEvent::Joined(_) => self.services += 1,
                RegistryEvent::Left(_) => self.services -= 1,
                RegistryEvent::Updated { .. } => {}
            }
            let next = types.len() as u32;
            order.push((*types.entry(event.service_type()).or_insert(next), at));
        }
        drop(types);
        order.sort_unstable();
        let mut of_type = Vec::new();
        let mut versions = vec![0; events.len()];
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            let service_type = events[group[0].1].service_type();
            of_type.extend(group.iter().map(|(_, at)| match &events[*at] {
                RegistryEvent::Joined(after) => (None, Some(Arc::clone(after))),
                RegistryEvent::Left(before) => (Some(Arc::clone(before)), None),
                RegistryEvent::Updated { before, after } => {
                    (Some(Arc::clone(before)), Some(Arc::clone(after)))
                }
            }));
            self.version += 1;
            for (_, at) in group {
                versions[*at] = self.version;
            }
            self.swap(service_type, &of_type);
            of_type.clear();
        }
        // What was replaced is dropped now, or where somebody just reads it with the next changes.
        self.directory.types.guard().flush();
        self.directory
            .version
            .store(self.version, Ordering::Release);
        events.into_iter().zip(versions).collect()
    }

    /// Replaces the view of one type.
    fn swap(&self, service_type: &ServiceType, changes: &[Change]) {
        let types = self.directory.types.pin();
        let view = match types.get(service_type) {
            Some(view) => view.changed(self.version, changes),
            None => {
                let nothing = self.directory.empty(service_type);
                nothing.changed(self.version, changes)
            }
        };
        if view.services().is_empty() {
            types.remove(service_type);
        } else {
            types.insert(service_type.clone(), Arc::new(view));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Record;
    use crate::id::{Generation, InstanceName, NodeName};
    use crate::{ServiceState, Weight};

    fn info(name: &str, sequence: u64) -> Arc<ServiceInfo> {
        let record = Record {
            sequence,
            version: sequence,
            previous: None,
            service_type: ServiceType::try_new("uploader").unwrap(),
            name: InstanceName::try_new(name).unwrap(),
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: None,
            metadata: None,
        };
        let node = NodeName::try_new("a").unwrap();
        Arc::new(ServiceInfo::from_record(
            &node,
            Generation::default(),
            1,
            record,
        ))
    }

    fn join(info: &Arc<ServiceInfo>) -> EntryChange {
        EntryChange {
            before: None,
            after: Some(Arc::clone(info)),
        }
    }

    fn leave(info: &Arc<ServiceInfo>) -> EntryChange {
        EntryChange {
            before: Some(Arc::clone(info)),
            after: None,
        }
    }

    #[test]
    fn a_batch_swaps_each_view_once() {
        let mut registry = DirectoryWriter::new();
        let directory = registry.directory();
        let (a, b) = (info("a", 1), info("b", 2));
        assert_eq!(registry.apply(vec![join(&a), join(&b)]).len(), 2);
        let view = directory.view("uploader").unwrap();
        assert_eq!((view.version(), view.services().len()), (1, 2));
        assert!(directory.find("uploader", Key::from("x")).is_some());
    }

    #[test]
    fn a_type_without_services_is_forgotten() {
        let mut registry = DirectoryWriter::new();
        let directory = registry.directory();
        let a = info("a", 1);
        registry.apply(vec![join(&a)]);
        assert_eq!(directory.types().len(), 1);
        registry.apply(vec![leave(&a)]);
        assert!(directory.view("uploader").is_none());
        assert_eq!(directory.types(), []);
    }

    /// How many different places names have that all share one where nothing but the name is hashed.
    fn places(hash: TypeHash) -> usize {
        const BITS: u64 = (1 << 10) - 1;
        let names = (0_u64..)
            .map(|number| number.to_string())
            .filter(|name| xxhash_rust::xxh3::xxh3_64(name.as_bytes()) & BITS == 0)
            .map(|name| ServiceType::try_new(name).unwrap());
        let places: std::collections::HashSet<u64> = names
            .take(200)
            .map(|name| hash.hash_one(&name) & BITS)
            .collect();
        places.len()
    }

    #[test]
    fn names_that_were_made_to_share_a_hash_do_not_share_it_in_any_process() {
        for _ in 0..2 {
            assert!(places(DirectoryWriter::new().hash) > 100);
        }
        let cluster = |seed| DirectoryWriter::seeded(seed).hash;
        assert!(places(cluster(1)) > 100);
        let name = ServiceType::try_new("uploader").unwrap();
        assert_ne!(cluster(1).hash_one(&name), cluster(2).hash_one(&name));
    }

    #[test]
    fn a_view_is_dropped_when_the_next_one_is_there() {
        let mut registry = DirectoryWriter::new();
        let directory = registry.directory();
        let a = info("a", 1);
        registry.apply(vec![join(&a)]);
        let view = Arc::downgrade(&directory.view("uploader").unwrap());
        registry.apply(vec![join(&info("b", 2))]);
        assert!(
            view.upgrade().is_none(),
            "a table of its slots is a megabyte"
        );
    }

    #[test]
    fn what_comes_and_goes_in_one_batch_leaves_nothing() {
        let mut registry = DirectoryWriter::new();
        let a = info("a", 1);
        assert_eq!(registry.apply(vec![join(&a), leave(&a)]).len(), 2);
        assert!(registry.directory().view("uploader").is_none());
        assert_eq!(registry.services(), 0);
    }
}
