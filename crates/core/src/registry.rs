//! Services by type: one writer, immutable views for readers, events for subscribers.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use arc_swap::ArcSwap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::entry::{EntryChange, ServiceInfo};
use crate::id::ServiceType;
use crate::key::Key;
use crate::view::{TableBudget, View};

/// Bytes that the lookup tables of one node may take: 640 KiB for each type of two instances or more that is looked up.
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

/// Where the current view of one type is read, without a lock. Readers keep it; it costs them no lookup by name.
#[derive(Debug)]
pub struct Cell {
    view: ArcSwap<View>,
}

impl Cell {
    /// The current view.
    #[inline]
    pub fn load(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// The current view, to be held for longer.
    pub fn load_full(&self) -> Arc<View> {
        self.view.load_full()
    }
}

/// The readers' side: every type with its current view. Reading takes no lock.
#[derive(Debug)]
pub struct Directory {
    cells: papaya::HashMap<ServiceType, Arc<Cell>, TypeHash>,
    budget: Arc<TableBudget>,
}

impl Directory {
    /// The current view of a type; none while nothing is registered under it and nobody holds its cell.
    pub fn view(&self, service_type: &str) -> Option<Arc<View>> {
        let cells = self.cells.pin();
        cells.get(service_type).map(|cell| cell.load_full())
    }

    /// The owner of a key.
    #[inline]
    pub fn find(&self, service_type: &str, key: Key) -> Option<Arc<ServiceInfo>> {
        let cells = self.cells.pin();
        cells.get(service_type)?.load().owner(key).cloned()
    }

    /// The cell of a type, made if there is none. A cell whose view is empty may have been given up meanwhile: whoever
    /// keeps one asks again then.
    pub fn cell(&self, service_type: &ServiceType) -> Arc<Cell> {
        let cells = self.cells.pin();
        Arc::clone(cells.get_or_insert_with(service_type.clone(), || self.new_cell(service_type)))
    }

    /// The types with services or readers, in no order.
    pub fn types(&self) -> Vec<ServiceType> {
        self.cells.pin().keys().cloned().collect()
    }

    fn new_cell(&self, service_type: &ServiceType) -> Arc<Cell> {
        let view = View::with_budget(service_type.clone(), Arc::clone(&self.budget));
        Arc::new(Cell {
            view: ArcSwap::from_pointee(view),
        })
    }
}

/// The writer's side.
#[derive(Debug)]
pub struct Registry {
    directory: Arc<Directory>,
    version: u64,
    services: usize,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry of nothing.
    pub fn new() -> Self {
        Registry {
            directory: Arc::new(Directory {
                cells: papaya::HashMap::with_hasher(TypeHash),
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

    /// Takes changes in, and swaps the view of each type that they concern once. Returns what subscribers are told.
    pub fn apply(&mut self, changes: Vec<EntryChange>) -> Vec<RegistryEvent> {
        let events: Vec<RegistryEvent> =
            changes.into_iter().filter_map(RegistryEvent::new).collect();
        let mut by_type: HashMap<&ServiceType, Vec<_>, TypeHash> = HashMap::with_hasher(TypeHash);
        let mut order = Vec::new();
        for event in &events {
            let change = match event {
                RegistryEvent::Joined(after) => {
                    self.services += 1;
                    (None, Some(Arc::clone(after)))
                }
                RegistryEvent::Left(before) => {
                    self.services -= 1;
                    (Some(Arc::clone(before)), None)
                }
                RegistryEvent::Updated { before, after } => {
                    (Some(Arc::clone(before)), Some(Arc::clone(after)))
                }
            };
            by_type
                .entry(event.service_type())
                .or_insert_with(|| {
                    order.push(event.service_type());
                    Vec::new()
                })
                .push(change);
        }
        for service_type in order {
            self.version += 1;
            let cell = self.directory.cell(service_type);
            let view = cell.load().changed(self.version, &by_type[service_type]);
            let empty = view.services().is_empty();
            cell.view.store(Arc::new(view));
            drop(cell);
            if empty {
                self.give_up(service_type);
            }
        }
        events
    }

    /// A type without services is forgotten, unless a reader keeps its cell.
    fn give_up(&self, service_type: &ServiceType) {
        let cells = self.directory.cells.pin();
        let _ = cells.remove_if(service_type, |_, cell| {
            Arc::strong_count(cell) == 1 && cell.load().services().is_empty()
        });
    }
}

/// Hashes names of types: they come from this node's users and from authenticated peers.
#[derive(Clone, Copy, Debug, Default)]
struct TypeHash;

impl BuildHasher for TypeHash {
    type Hasher = TypeHasher;

    fn build_hasher(&self) -> TypeHasher {
        TypeHasher(0)
    }
}

struct TypeHasher(u64);

impl Hasher for TypeHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {
        // The terminator of a string, which is hashed as a whole.
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
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
        let mut registry = Registry::new();
        let directory = registry.directory();
        let (a, b) = (info("a", 1), info("b", 2));
        assert_eq!(registry.apply(vec![join(&a), join(&b)]).len(), 2);
        let view = directory.view("uploader").unwrap();
        assert_eq!((view.version(), view.services().len()), (1, 2));
        assert!(directory.find("uploader", Key::from("x")).is_some());
    }

    #[test]
    fn a_type_without_services_is_forgotten_unless_a_reader_keeps_it() {
        let mut registry = Registry::new();
        let directory = registry.directory();
        let a = info("a", 1);
        registry.apply(vec![join(&a)]);
        registry.apply(vec![leave(&a)]);
        assert!(directory.view("uploader").is_none());
        let cell = directory.cell(a.service_type());
        registry.apply(vec![join(&a)]);
        assert_eq!(cell.load().services().len(), 1);
        registry.apply(vec![leave(&a)]);
        assert!(cell.load().services().is_empty());
        assert!(directory.view("uploader").is_some());
    }

    #[test]
    fn what_comes_and_goes_in_one_batch_leaves_nothing() {
        let mut registry = Registry::new();
        let a = info("a", 1);
        assert_eq!(registry.apply(vec![join(&a), leave(&a)]).len(), 2);
        assert!(registry.directory().view("uploader").is_none());
        assert_eq!(registry.services(), 0);
    }
}
