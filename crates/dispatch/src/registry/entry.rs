//! What is registered, how it is changed, and why not.

use std::collections::BTreeMap;

use keydispatch_core::{
    AddError, EntryError, EntryUpdate, InstanceName, Metadata, NameError, NewEntry, ServiceId,
    ServiceState, ServiceType, UpdateError, Weight, Zone,
};

/// Why a registry command failed. Nothing was changed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The service has been added already, or another one of this node has its name.
    #[error(transparent)]
    Add(#[from] AddError),
    /// There is no such service on this node.
    #[error(transparent)]
    Update(UpdateError),
    /// Only the node that registered a service can change it.
    #[error("the service {id} belongs to the node {}, and only that node can change it", id.node)]
    NotOurs {
        /// The service.
        id: ServiceId,
    },
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A weight, an address or the tags are out of bounds.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The node has left or was dropped.
    #[error("the node has stopped")]
    NodeStopped,
}

keydispatch_core::debug_as_display!(RegistryError);

impl From<UpdateError> for RegistryError {
    fn from(error: UpdateError) -> Self {
        match error {
            UpdateError::Entry(error) => RegistryError::Entry(error),
            error => RegistryError::Update(error),
        }
    }
}

/// No instance owns a key.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("no service for key: no instance of {service_type:?} is online")]
pub struct NoService {
    /// The type that was asked for.
    pub service_type: String,
}

keydispatch_core::debug_as_display!(NoService);

/// An external endpoint to be registered: an address served by something else, with a share of the keys.
///
/// ```
/// use keydispatch::NewService;
/// let endpoint = NewService::endpoint("uploader", "https://10.0.0.9:8443")
///     .weight(200)
///     .zone("eu-1")
///     .tag("disk", "ssd");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewService {
    service_type: String,
    name: Option<String>,
    state: ServiceState,
    weight: Option<u16>,
    zone: Option<String>,
    address: Option<String>,
    tags: BTreeMap<Box<str>, Box<str>>,
}

impl NewService {
    /// An endpoint of `service_type` at `address`, which this library never dials.
    ///
    /// Its instance name is the address, unless [`name`](Self::name) says otherwise: whoever registers the same
    /// endpoint again gets the same keys.
    pub fn endpoint(service_type: impl Into<String>, address: impl Into<String>) -> Self {
        let address = address.into();
        NewService {
            service_type: service_type.into(),
            name: Some(address.clone()),
            state: ServiceState::Online,
            weight: None,
            zone: None,
            address: Some(address),
            tags: BTreeMap::new(),
        }
    }

    /// The stable name that placement hashes: at most 255 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Its share of the keys relative to the others: 1 to 1000, by default 100.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Its failure domain; by default the node's.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A label. Zone, address and labels together hold at most 4 KiB.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into().into(), value.into().into());
        self
    }

    /// Registered, but without keys until [`Registration::enable`](crate::Registration::enable).
    pub fn offline(mut self) -> Self {
        self.state = ServiceState::Offline;
        self
    }

    pub(crate) fn into_entry(
        self,
        sequence: u64,
        default_zone: Option<&Zone>,
    ) -> Result<NewEntry, RegistryError> {
        let zone = match self.zone {
            Some(zone) => Some(Zone::try_new(zone)?),
            None => default_zone.cloned(),
        };
        Ok(NewEntry {
            sequence,
            service_type: ServiceType::try_new(self.service_type)?,
            name: self.name.map(InstanceName::try_new).transpose()?,
            state: self.state,
            weight: self.weight.map_or(Ok(Weight::default()), Weight::try_new)?,
            protocol_version: None,
            metadata: Metadata::try_new(zone, self.address.map(Into::into), self.tags)?,
        })
    }
}

/// What of a registered service is to change; what is not said stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceUpdate {
    state: Option<ServiceState>,
    weight: Option<u16>,
    zone: Option<String>,
    address: Option<String>,
    tags: BTreeMap<Box<str>, Option<Box<str>>>,
}

impl ServiceUpdate {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new state, in one change with the rest: a label can say why.
    pub fn state(mut self, state: ServiceState) -> Self {
        self.state = Some(state);
        self
    }

    /// A new weight: 1 to 1000.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// A new failure domain.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A new address of an external endpoint.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// A new or changed label.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags
            .insert(key.into().into(), Some(value.into().into()));
        self
    }

    /// A label to be taken away.
    pub fn remove_tag(mut self, key: impl Into<String>) -> Self {
        self.tags.insert(key.into().into(), None);
        self
    }

    /// What is out of bounds whatever the entry holds is an error here; whether all of it fits is known where it is merged.
    pub(super) fn into_update(self) -> Result<EntryUpdate, RegistryError> {
        Ok(EntryUpdate {
            state: self.state,
            weight: self.weight.map(Weight::try_new).transpose()?,
            zone: self.zone.map(Zone::try_new).transpose()?,
            address: self.address.map(Into::into),
            tags: self.tags,
        })
    }
}
