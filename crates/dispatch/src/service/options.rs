//! How a service is started.

use keydispatch_core::{
    Accepts, InstanceName, Metadata, NewEntry, ServiceState, ServiceType, Weight, Zone,
};

use crate::protocol::{self, Protocol};
use crate::registry::entry::RegistryError;

/// Most messages that a channel can count, which takes more memory than there is.
const MAX_MAILBOX: usize = tokio::sync::Semaphore::MAX_PERMITS;

/// How a service is started; see [`Node::serve_with`](crate::Node::serve_with).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ServeOptions {
    name: Option<String>,
    weight: Option<u16>,
    zone: Option<String>,
    tags: std::collections::BTreeMap<Box<str>, Box<str>>,
    offline: bool,
    pub(crate) mailbox: Option<usize>,
    pub(crate) mailbox_bytes: Option<usize>,
}

impl ServeOptions {
    /// A default name, weight 100, the node's zone, no tags, online, a mailbox of 1,024 messages and 64 MiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stable name that placement hashes; by default `<node>/<smallest free ordinal>`. A service that takes the name
    /// of one that ended takes its keys.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Its share of the keys relative to the others: 1 to 1000.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Its failure domain.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A label, for whoever reads the registry.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into().into(), value.into().into());
        self
    }

    /// Registered, but without keys until it is enabled.
    pub fn offline(mut self) -> Self {
        self.offline = true;
        self
    }

    /// How many messages may wait, at least 1 and at most what a channel can count; more are refused as
    /// [`CallError::Overloaded`](crate::CallError::Overloaded).
    pub fn mailbox(mut self, messages: usize) -> Self {
        self.mailbox = Some(messages.clamp(1, MAX_MAILBOX));
        self
    }

    /// How many bytes of messages may wait, by default 64 MiB
    /// ([`DEFAULT_MAILBOX_BYTES`](keydispatch_core::limits::DEFAULT_MAILBOX_BYTES)); more are refused as
    /// [`CallError::Overloaded`](crate::CallError::Overloaded). One message is always taken, however long.
    ///
    /// A message from another node counts as long as it came. One from this node that has not been encoded counts its own
    /// size, and what it holds if it is a `Bytes`, a `Vec<u8>` or a `String`; what other values point to is not known, and
    /// bounded by [`mailbox`](Self::mailbox) alone.
    pub fn mailbox_bytes(mut self, bytes: usize) -> Self {
        self.mailbox_bytes = Some(bytes);
        self
    }

    pub(super) fn into_entry<P: Protocol>(
        self,
        sequence: u64,
        default_zone: Option<&Zone>,
    ) -> Result<NewEntry, RegistryError> {
        self.into_entry_with::<P>(sequence, default_zone, protocol::accepts_to_say::<P>())
    }

    /// The same of a service that has a state for each key.
    pub(crate) fn into_keyed_entry<P: Protocol>(
        self,
        sequence: u64,
        default_zone: Option<&Zone>,
    ) -> Result<NewEntry, RegistryError> {
        let accepts = protocol::accepts::<P>().keyed();
        self.into_entry_with::<P>(sequence, default_zone, Some(accepts))
    }

    fn into_entry_with<P: Protocol>(
        self,
        sequence: u64,
        default_zone: Option<&Zone>,
        accepts: Option<Accepts>,
    ) -> Result<NewEntry, RegistryError> {
        let zone = match self.zone {
            Some(zone) => Some(Zone::try_new(zone)?),
            None => default_zone.cloned(),
        };
        Ok(NewEntry {
            sequence,
            service_type: ServiceType::try_new(P::NAME)?,
            name: self.name.map(InstanceName::try_new).transpose()?,
            state: if self.offline {
                ServiceState::Offline
            } else {
                ServiceState::Online
            },
            weight: self.weight.map_or(Ok(Weight::default()), Weight::try_new)?,
            protocol_version: Some(P::VERSION),
            metadata: Metadata::try_new(zone, None, self.tags)?.with_accepts(accepts),
        })
    }
}
