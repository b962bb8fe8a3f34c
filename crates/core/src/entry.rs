//! What the registry holds of one service.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Generation, InstanceName, NodeName, Reference, ServiceId, ServiceType, Zone};
use crate::limits::{DEFAULT_WEIGHT, WEIGHT_RANGE};

mod accepts;
mod error;
mod metadata;

pub use accepts::{Accepts, Codec};
pub use error::EntryError;
pub use metadata::Metadata;
use metadata::Packed;

/// Whether an instance owns keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceState {
    /// Listed, and owns its share of the keys.
    Online,
    /// Listed, finishes what it has, owns nothing.
    Draining,
    /// Listed, owns nothing.
    Offline,
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServiceState::Online => "online",
            ServiceState::Draining => "draining",
            ServiceState::Offline => "offline",
        })
    }
}

/// An instance's share of the keys, relative to the other instances of its type: 1 to 1000, by default 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(u16);

impl Weight {
    /// Checks that the weight lies in [`WEIGHT_RANGE`].
    pub fn try_new(weight: u16) -> Result<Self, EntryError> {
        if WEIGHT_RANGE.contains(&weight) {
            Ok(Weight(weight))
        } else {
            Err(EntryError::Weight { weight })
        }
    }

    /// The weight as a number.
    pub const fn value(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Weight(DEFAULT_WEIGHT)
    }
}

impl TryFrom<u16> for Weight {
    type Error = EntryError;

    fn try_from(weight: u16) -> Result<Self, EntryError> {
        Weight::try_new(weight)
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> u16 {
        weight.0
    }
}

/// One version of one owner's entry, as it travels: everything but what the owner's identity says already.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The service's number within its process.
    pub sequence: u64,
    /// The owner's version that wrote this.
    pub version: u64,
    /// The reference before that, none for an entry just added.
    pub previous: Option<Reference>,
    /// The type.
    pub service_type: ServiceType,
    /// What placement hashes.
    pub name: InstanceName,
    /// Whether it owns keys.
    pub state: ServiceState,
    /// Its share of them.
    pub weight: Weight,
    /// The version of the messages a running service understands; none for an external endpoint.
    pub protocol_version: Option<u32>,
    /// Zone, address and tags, where there are any.
    pub metadata: Option<Box<Metadata>>,
}

/// One version of the entry of a service, as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    id: ServiceId,
    service_type: ServiceType,
    name: InstanceName,
    state: ServiceState,
    weight: Weight,
    protocol_version: Option<u32>,
    /// The address is the name, as it is for endpoints that were not named otherwise: it is held once.
    address_is_name: bool,
    reference: Reference,
    /// Apart, as most entries are never changed.
    previous: Option<Box<Reference>>,
    /// What else there is of zone, address and tags.
    metadata: Packed,
}

impl ServiceInfo {
    /// What `record` says, written by the process `nonce` of the node `owner` in its life `generation`.
    pub fn from_record(
        owner: &NodeName,
        generation: Generation,
        nonce: u64,
        record: Record,
    ) -> Self {
        let mut metadata = record
            .metadata
            .map(|metadata| *metadata)
            .unwrap_or_default();
        let address_is_name = metadata.address() == Some(record.name.as_str());
        if address_is_name {
            metadata.set_address(None);
        }
        ServiceInfo {
            id: ServiceId {
                node: owner.clone(),
                nonce,
                sequence: record.sequence,
            },
            service_type: record.service_type,
            name: record.name,
            state: record.state,
            weight: record.weight,
            protocol_version: record.protocol_version,
            reference: Reference {
                generation: generation.number,
                version: record.version,
            },
            address_is_name,
            previous: record.previous.map(Box::new),
            metadata: Packed::new(metadata),
        }
    }

    /// The same type name, shared instead of held twice.
    pub fn with_shared_type(mut self, service_type: &ServiceType) -> Self {
        debug_assert_eq!(&self.service_type, service_type);
        self.service_type = service_type.clone();
        self
    }

    /// The entry as it travels.
    pub fn to_record(&self) -> Record {
        let mut metadata = self.metadata.unpack();
        if self.address_is_name {
            metadata.set_address(Some(self.name.as_str().into()));
        }
        Record {
            sequence: self.id.sequence,
            version: self.reference.version,
            previous: self.previous(),
            service_type: self.service_type.clone(),
            name: self.name.clone(),
            state: self.state,
            weight: self.weight,
            protocol_version: self.protocol_version,
            metadata: (!metadata.is_empty()).then(|| Box::new(metadata)),
        }
    }

    /// The instance, never reused.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// The node that runs it, or that registered the endpoint.
    pub fn node(&self) -> &NodeName {
        &self.id.node
    }

    /// The type it serves.
    pub fn service_type(&self) -> &ServiceType {
        &self.service_type
    }

    /// The stable name that placement hashes.
    pub fn name(&self) -> &InstanceName {
        &self.name
    }

    /// Whether it owns keys.
    pub fn state(&self) -> ServiceState {
        self.state
    }

    /// True where it owns keys.
    pub fn is_online(&self) -> bool {
        self.state == ServiceState::Online
    }

    /// Its share of the keys.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// The version of the messages it understands; none for an external endpoint, which cannot be called.
    pub fn protocol_version(&self) -> Option<u32> {
        self.protocol_version
    }

    /// Which messages it takes; none for an external endpoint, which cannot be called.
    #[inline]
    pub fn accepts(&self) -> Option<Accepts> {
        let version = self.protocol_version?;
        Some(self.metadata.accepts().unwrap_or(Accepts::only(version)))
    }

    /// True for a service that has a state for each key, which moves with the key.
    pub fn is_keyed(&self) -> bool {
        self.accepts().is_some_and(|accepts| accepts.is_keyed())
    }

    /// True for an address served by something else.
    pub fn is_endpoint(&self) -> bool {
        self.protocol_version.is_none()
    }

    /// Identifies this version of the entry.
    pub fn reference(&self) -> Reference {
        self.reference
    }

    /// Identifies the version before this one.
    pub fn previous(&self) -> Option<Reference> {
        self.previous.as_deref().copied()
    }

    /// Its failure domain.
    pub fn zone(&self) -> Option<&str> {
        self.metadata.zone()
    }

    /// Where an external endpoint is reached.
    pub fn address(&self) -> Option<&str> {
        if self.address_is_name {
            return Some(self.name.as_str());
        }
        self.metadata.address()
    }

    /// The value of one of the user's own labels.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags()
            .find(|(other, _)| *other == key)
            .map(|(_, value)| value)
    }

    /// The user's own labels, by key.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.tags()
    }
}

/// What is to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The service's number within its process, drawn by the caller; adding the same number twice is an error.
    pub sequence: u64,
    /// The type.
    pub service_type: ServiceType,
    /// What placement hashes; by default `<node>/<ordinal within the type>`.
    pub name: Option<InstanceName>,
    /// Whether it owns keys from the start.
    pub state: ServiceState,
    /// Its share of them.
    pub weight: Weight,
    /// The version of the messages a running service understands; none for an external endpoint.
    pub protocol_version: Option<u32>,
    /// Zone, address and tags.
    pub metadata: Metadata,
}

/// What of an entry is to change; `None`, and a tag that is not named, leaves it as it is.
///
/// Rule: an update says what changes and never what stays, and is merged where the entry is owned. An update that
/// carried the whole entry, as its sender saw it, would undo whatever another one changed meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryUpdate {
    /// Whether it owns keys.
    pub state: Option<ServiceState>,
    /// Its share of them.
    pub weight: Option<Weight>,
    /// Its failure domain.
    pub zone: Option<Zone>,
    /// Where an external endpoint is reached.
    pub address: Option<Box<str>>,
    /// Tags by key: a new value, or none where the tag goes.
    pub tags: BTreeMap<Box<str>, Option<Box<str>>>,
}

impl EntryUpdate {
    /// The next version of `before`, whose own version the caller sets; an error where zone, address and tags would be
    /// too large together.
    pub(crate) fn merge(self, before: &ServiceInfo) -> Result<Record, EntryError> {
        let mut record = before.to_record();
        record.previous = Some(before.reference());
        if let Some(state) = self.state {
            record.state = state;
        }
        if let Some(weight) = self.weight {
            record.weight = weight;
        }
        if self.zone.is_some() || self.address.is_some() || !self.tags.is_empty() {
            let metadata = record.metadata.take().map(|metadata| *metadata);
            let metadata = metadata.unwrap_or_default();
            let metadata = metadata.changed(self.zone, self.address, self.tags)?;
            record.metadata = (!metadata.is_empty()).then(|| Box::new(metadata));
        }
        Ok(record)
    }
}

/// What became of one entry in the eyes of this node: a join, a leave, or an update in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryChange {
    /// The version that was visible before.
    pub before: Option<Arc<ServiceInfo>>,
    /// The version that is visible now.
    pub after: Option<Arc<ServiceInfo>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_METADATA_BYTES;

    #[test]
    fn an_address_that_is_the_name_is_held_once_and_travels_as_before() {
        let name = InstanceName::try_new("10.0.0.9:8443").unwrap();
        for (address, zone, once) in [
            (Some("10.0.0.9:8443"), None, true),
            (Some("10.0.0.9:8443"), Some("eu-1"), true),
            (Some("10.0.0.9:8444"), None, false),
            (None, Some("eu-1"), false),
        ] {
            let zone = zone.map(|zone| Zone::try_new(zone).unwrap());
            let metadata =
                Metadata::try_new(zone.clone(), address.map(Into::into), BTreeMap::new());
            let record = Record {
                sequence: 1,
                version: 2,
                previous: Some(Reference::default()),
                service_type: ServiceType::try_new("uploader").unwrap(),
                name: name.clone(),
                state: ServiceState::Online,
                weight: Weight::default(),
                protocol_version: None,
                metadata: Some(Box::new(metadata.unwrap())),
            };
            let owner = NodeName::try_new("a").unwrap();
            let info = ServiceInfo::from_record(&owner, Generation::default(), 1, record.clone());
            assert_eq!(info.address_is_name, once);
            assert_eq!(info.address(), address);
            assert_eq!(info.zone(), zone.as_ref().map(Zone::as_str));
            assert_eq!(info.to_record(), record);
        }
    }

    #[test]
    fn an_entry_fits_where_the_allocator_takes_144_bytes() {
        // With the two counts of its `Arc` and the allocator's own word.
        const COUNTS: usize = 2 * size_of::<usize>();
        assert_eq!(size_of::<ServiceInfo>() + COUNTS + size_of::<usize>(), 144);
    }
    #[test]
    fn updates_of_different_fields_all_hold_and_what_does_not_fit_changes_nothing() {
        let record = Record {
            sequence: 1,
            version: 1,
            previous: None,
            service_type: ServiceType::try_new("uploader").unwrap(),
            name: InstanceName::try_new("10.0.0.9:8443").unwrap(),
            state: ServiceState::Online,
            weight: Weight::default(),
            protocol_version: None,
            metadata: None,
        };
        let owner = NodeName::try_new("a").unwrap();
        let read = |record| ServiceInfo::from_record(&owner, Generation::default(), 1, record);
        let tag = |key: &str, value: Option<&str>| EntryUpdate {
            tags: [(key.into(), value.map(Into::into))].into(),
            ..EntryUpdate::default()
        };
        let updates = [
            tag("disk", Some("ssd")),
            EntryUpdate {
                weight: Weight::try_new(7).ok(),
                ..EntryUpdate::default()
            },
            tag("rack", Some("17")),
            EntryUpdate {
                zone: Zone::try_new("eu-1").ok(),
                ..EntryUpdate::default()
            },
            EntryUpdate {
                state: Some(ServiceState::Draining),
                ..EntryUpdate::default()
            },
            tag("disk", None),
            EntryUpdate {
                address: Some("10.0.0.10:8443".into()),
                ..EntryUpdate::default()
            },
        ];
        let mut info = read(record);
        for update in updates {
            let before = info.reference();
            info = read(update.merge(&info).unwrap());
            assert_eq!(info.previous(), Some(before));
        }
        assert_eq!(info.weight().value(), 7);
        assert_eq!(info.zone(), Some("eu-1"));
        assert_eq!(info.state(), ServiceState::Draining);
        assert_eq!(info.address(), Some("10.0.0.10:8443"));
        assert!(info.tags().eq([("rack", "17")]));
        let too_large = tag("more", Some(&"x".repeat(MAX_METADATA_BYTES)));
        assert!(matches!(
            too_large.merge(&info),
            Err(EntryError::MetadataTooLarge { .. })
        ));
    }
}
