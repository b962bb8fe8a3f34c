//! What an owner says of a service beyond what placement needs, as it is given and as it is held.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thin_vec::ThinVec;

use super::accepts::{ACCEPTS_TAG, Accepts};
use super::error::EntryError;
use crate::id::Zone;
use crate::limits::{MAX_ADDRESS_BYTES, MAX_METADATA_BYTES};

/// What its owner says of a service beyond what placement needs; at most [`MAX_METADATA_BYTES`] in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawMetadata", into = "RawMetadata")]
pub struct Metadata {
    zone: Option<Zone>,
    address: Option<Box<str>>,
    tags: BTreeMap<Box<str>, Box<str>>,
    /// Which messages it takes, where that is more than the one version in postcard. It travels as a tag, as older
    /// nodes have no other place for it.
    accepts: Option<Accepts>,
}

#[derive(Default, Serialize, Deserialize)]
struct RawMetadata {
    zone: Option<Zone>,
    address: Option<Box<str>>,
    tags: BTreeMap<Box<str>, Box<str>>,
}

impl TryFrom<RawMetadata> for Metadata {
    type Error = EntryError;

    fn try_from(mut raw: RawMetadata) -> Result<Self, EntryError> {
        let accepts = raw.tags.remove(ACCEPTS_TAG);
        let mut metadata = Metadata::try_new(raw.zone, raw.address, raw.tags)?;
        metadata.accepts = accepts.map(|label| Accepts::of_label(&label));
        Ok(metadata)
    }
}

impl From<Metadata> for RawMetadata {
    fn from(metadata: Metadata) -> Self {
        let mut tags = metadata.tags;
        if let Some(accepts) = metadata.accepts {
            tags.insert(ACCEPTS_TAG.into(), accepts.to_label());
        }
        RawMetadata {
            zone: metadata.zone,
            address: metadata.address,
            tags,
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
        if tags.contains_key(ACCEPTS_TAG) {
            return Err(EntryError::ReservedTag { key: ACCEPTS_TAG });
        }
        Ok(Metadata {
            zone,
            address,
            tags,
            accepts: None,
        })
    }

    /// The same, of a service that takes these messages.
    #[must_use]
    pub fn with_accepts(mut self, accepts: Option<Accepts>) -> Self {
        self.accepts = accepts;
        self
    }

    /// Which messages it takes, where that is more than one version in postcard.
    pub fn accepts(&self) -> Option<Accepts> {
        self.accepts
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

    /// The same with what is given changed, and checked again.
    pub(super) fn changed(
        self,
        zone: Option<Zone>,
        address: Option<Box<str>>,
        changes: BTreeMap<Box<str>, Option<Box<str>>>,
    ) -> Result<Self, EntryError> {
        let mut tags = self.tags;
        for (key, value) in changes {
            match value {
                Some(value) => tags.insert(key, value),
                None => tags.remove(&key),
            };
        }
        let changed = Metadata::try_new(zone.or(self.zone), address.or(self.address), tags)?;
        // Which messages it takes is the service's own, and no change of its labels takes it away.
        Ok(changed.with_accepts(self.accepts))
    }

    pub(crate) fn set_address(&mut self, address: Option<Box<str>>) {
        self.address = address;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.zone.is_none()
            && self.address.is_none()
            && self.tags.is_empty()
            && self.accepts.is_none()
    }
}

/// The same as an entry holds it: one piece of memory, where a map and its texts would take ten.
///
/// It is the encoding of what messages it takes, zone, address, the number of tags, and each key with its value. Empty
/// where there is nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Packed(ThinVec<u8>);

/// See [`Accepts::to_parts`].
type PackedParts = Option<(u32, u32, u32, bool)>;

/// What messages it takes, zone, address and the number of tags.
type Head<'a> = (PackedParts, Option<&'a str>, Option<&'a str>, usize);

impl Packed {
    pub(crate) fn new(metadata: Metadata) -> Self {
        if metadata.is_empty() {
            return Packed::default();
        }
        let parts: PackedParts = metadata.accepts.map(Accepts::to_parts);
        let raw = RawMetadata {
            zone: metadata.zone,
            address: metadata.address,
            tags: metadata.tags,
        };
        let bytes = postcard::to_allocvec(&(parts, raw))
            .expect("texts are plain data, which postcard can hold");
        let mut packed = ThinVec::with_capacity(bytes.len());
        packed.extend_from_slice(&bytes);
        Packed(packed)
    }

    pub(crate) fn unpack(&self) -> Metadata {
        let (parts, raw): (PackedParts, RawMetadata) =
            postcard::from_bytes(&self.0).unwrap_or_default();
        let RawMetadata {
            zone,
            address,
            tags,
        } = raw;
        Metadata {
            zone,
            address,
            tags,
            accepts: parts.map(Accepts::of_parts),
        }
    }

    /// What comes first, as it is asked for with every call.
    pub(crate) fn accepts(&self) -> Option<Accepts> {
        if self.0.is_empty() {
            return None;
        }
        let (parts, _) = postcard::take_from_bytes::<PackedParts>(&self.0).ok()?;
        parts.map(Accepts::of_parts)
    }

    pub(crate) fn zone(&self) -> Option<&str> {
        self.open().0.1
    }

    pub(crate) fn address(&self) -> Option<&str> {
        self.open().0.2
    }

    /// By key.
    pub(crate) fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let ((_, _, _, count), mut rest) = self.open();
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
    use crate::entry::Codec;

    fn text() -> impl Strategy<Value = Box<str>> {
        "\\PC{0,200}".prop_map(Into::into)
    }

    proptest! {
        #[test]
        fn what_is_packed_is_all_there(
            zone in proptest::option::of("[a-z0-9-]{1,200}"),
            address in proptest::option::of(text()),
            tags in proptest::collection::btree_map(text(), text(), 0..4),
            accepts in proptest::option::of((any::<u32>(), any::<u32>())),
        ) {
            let zone = zone.map(|zone| Zone::try_new(zone).unwrap());
            let accepts = accepts.map(|(first, last)| Accepts::new(first..=last, Codec::Json));
            let metadata = Metadata { zone, address, tags, accepts };
            let packed = Packed::new(metadata.clone());
            prop_assert_eq!(packed.0.is_empty(), metadata.is_empty());
            prop_assert_eq!(packed.0.len(), packed.0.capacity());
            prop_assert_eq!(packed.zone(), metadata.zone().map(Zone::as_str));
            prop_assert_eq!(packed.address(), metadata.address());
            let tags = metadata.tags().iter().map(|(key, value)| (&**key, &**value));
            prop_assert!(packed.tags().eq(tags));
            prop_assert_eq!(packed.accepts(), metadata.accepts());
            prop_assert_eq!(packed.unpack(), metadata.clone());
            let travelled = postcard::to_allocvec(&metadata).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Metadata>(&travelled).unwrap(), metadata);
        }
    }

    /// What a node of the first version holds of the same.
    #[derive(Deserialize)]
    struct Older {
        zone: Option<Zone>,
        address: Option<Box<str>>,
        tags: BTreeMap<Box<str>, Box<str>>,
    }

    #[test]
    fn a_node_that_does_not_know_what_messages_are_taken_reads_the_rest_and_shows_a_tag() {
        let tags = BTreeMap::from([("disk".into(), "ssd".into())]);
        let metadata = Metadata::try_new(None, None, tags).unwrap();
        let accepts = Accepts::new(1..=2, Codec::MessagePack);
        let metadata = metadata.with_accepts(Some(accepts));
        let travelled = postcard::to_allocvec(&metadata).unwrap();
        let (older, rest): (Older, _) = postcard::take_from_bytes(&travelled).unwrap();
        assert!(older.zone.is_none() && older.address.is_none() && rest.is_empty());
        let tags: Vec<_> = older
            .tags
            .iter()
            .map(|(key, value)| (&**key, &**value))
            .collect();
        assert_eq!(tags, [("disk", "ssd"), (ACCEPTS_TAG, "messagepack 1-2")]);
    }

    #[test]
    fn the_tag_that_says_what_messages_are_taken_is_nobody_elses() {
        let tags = BTreeMap::from([(ACCEPTS_TAG.into(), "mine".into())]);
        let error = Metadata::try_new(None, None, tags).unwrap_err();
        assert_eq!(error, EntryError::ReservedTag { key: ACCEPTS_TAG });
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
