//! What an owner says of a service beyond what placement needs, as it is given and as it is held.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thin_vec::ThinVec;

use super::EntryError;
use crate::id::Zone;
use crate::limits::{MAX_ADDRESS_BYTES, MAX_METADATA_BYTES};

/// What its owner says of a service beyond what placement needs; at most [`MAX_METADATA_BYTES`] in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawMetadata", into = "RawMetadata")]
pub struct Metadata {
    zone: Option<Zone>,
    address: Option<Box<str>>,
    tags: BTreeMap<Box<str>, Box<str>>,
}

#[derive(Default, Serialize, Deserialize)]
struct RawMetadata {
    zone: Option<Zone>,
    address: Option<Box<str>>,
    tags: BTreeMap<Box<str>, Box<str>>,
}

impl TryFrom<RawMetadata> for Metadata {
    type Error = EntryError;

    fn try_from(raw: RawMetadata) -> Result<Self, EntryError> {
        Metadata::try_new(raw.zone, raw.address, raw.tags)
    }
}

impl From<Metadata> for RawMetadata {
    fn from(metadata: Metadata) -> Self {
        RawMetadata {
            zone: metadata.zone,
            address: metadata.address,
            tags: metadata.tags,
        }
    }
}

impl Metadata {
    /// Checks the sizes against [`MAX_ADDRESS_BYTES`] and [`MAX_METADATA_BYTES`].
    pub fn try_new(
        zone: Option<Zone>,
        address: Option<Box<str>>,
        tags: BTreeMap<Box<str>, Box<str>>,
    ) -> Result<Self, EntryError> {
        let address_bytes = address.as_ref().map_or(0, |address| address.len());
        if address_bytes > MAX_ADDRESS_BYTES {
            return Err(EntryError::AddressTooLong {
                bytes: address_bytes,
            });
        }
        let bytes = address_bytes
            + zone.as_ref().map_or(0, |zone| zone.as_str().len())
            + tags
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .sum::<usize>();
        if bytes > MAX_METADATA_BYTES {
            return Err(EntryError::MetadataTooLarge { bytes });
        }
        Ok(Metadata {
            zone,
            address,
            tags,
        })
    }

    /// The failure domain of the instance.
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_ref()
    }

    /// Where an external endpoint is reached; meaningless to this library, which never dials it.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// The user's own labels.
    pub fn tags(&self) -> &BTreeMap<Box<str>, Box<str>> {
        &self.tags
    }

    pub(crate) fn set_address(&mut self, address: Option<Box<str>>) {
        self.address = address;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.zone.is_none() && self.address.is_none() && self.tags.is_empty()
    }
}

/// The same as an entry holds it: one piece of memory, where a map and its texts would take ten.
///
/// It is what travels: the encoding of zone, address, the number of tags, and each key with its value. Empty where there
/// is nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Packed(ThinVec<u8>);

/// Zone, address and the number of tags.
type Head<'a> = (Option<&'a str>, Option<&'a str>, usize);

impl Packed {
    pub(crate) fn new(metadata: Metadata) -> Self {
        if metadata.is_empty() {
            return Packed::default();
        }
        let bytes = postcard::to_allocvec(&RawMetadata::from(metadata))
            .expect("texts are plain data, which postcard can hold");
        let mut packed = ThinVec::with_capacity(bytes.len());
        packed.extend_from_slice(&bytes);
        Packed(packed)
    }

    pub(crate) fn unpack(&self) -> Metadata {
        let RawMetadata {
            zone,
            address,
            tags,
        } = postcard::from_bytes(&self.0).unwrap_or_default();
        Metadata {
            zone,
            address,
            tags,
        }
    }

    pub(crate) fn zone(&self) -> Option<&str> {
        self.open().0.0
    }

    pub(crate) fn address(&self) -> Option<&str> {
        self.open().0.1
    }

    /// By key.
    pub(crate) fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let ((_, _, count), mut rest) = self.open();
        (0..count).map_while(move |_| {
            let (tag, behind) = postcard::take_from_bytes(rest).ok()?;
            rest = behind;
            Some(tag)
        })
    }

    /// The head, and the bytes of the tags.
    fn open(&self) -> (Head<'_>, &[u8]) {
        postcard::take_from_bytes(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.unpack().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = Box<str>> {
        "\\PC{0,200}".prop_map(Into::into)
    }

    proptest! {
        #[test]
        fn what_is_packed_is_all_there(
            zone in proptest::option::of("[a-z0-9-]{1,200}"),
            address in proptest::option::of(text()),
            tags in proptest::collection::btree_map(text(), text(), 0..4),
        ) {
            let zone = zone.map(|zone| Zone::try_new(zone).unwrap());
            let metadata = Metadata { zone, address, tags };
            let packed = Packed::new(metadata.clone());
            prop_assert_eq!(packed.0.is_empty(), metadata.is_empty());
            prop_assert_eq!(packed.0.len(), packed.0.capacity());
            prop_assert_eq!(packed.zone(), metadata.zone().map(Zone::as_str));
            prop_assert_eq!(packed.address(), metadata.address());
            let tags = metadata.tags().iter().map(|(key, value)| (&**key, &**value));
            prop_assert!(packed.tags().eq(tags));
            prop_assert_eq!(packed.unpack(), metadata);
        }
    }

    #[test]
    fn a_zone_and_two_tags_take_one_piece_of_80_bytes() {
        let tags = [("disk", "ssd"), ("rack", "17")].map(|(key, value)| (key.into(), value.into()));
        let zone = Zone::try_new("eu-west-1").unwrap();
        let packed = Packed::new(Metadata::try_new(Some(zone), None, tags.into()).unwrap());
        // Its length and capacity lie in front of the bytes; then comes the allocator's own word.
        const HEADER: usize = 2 * size_of::<usize>();
        assert!(HEADER + packed.0.capacity() + size_of::<usize>() <= 80);
        assert_eq!(size_of::<Packed>(), size_of::<usize>());
    }
}
