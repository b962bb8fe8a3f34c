//! Why something cannot be an entry.

use crate::error::debug_as_display;
use crate::limits::{MAX_ADDRESS_BYTES, MAX_METADATA_BYTES, WEIGHT_RANGE};

/// Why something cannot be registered as described.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The weight is out of bounds.
    #[error(
        "a weight lies between {} and {}, not {weight}",
        WEIGHT_RANGE.start(),
        WEIGHT_RANGE.end()
    )]
    Weight {
        /// The rejected weight.
        weight: u16,
    },
    /// The address is too long.
    #[error(
        "an address has at most {MAX_ADDRESS_BYTES} bytes (MAX_ADDRESS_BYTES), this one has {bytes}"
    )]
    AddressTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Zone, address and tags together are too large.
    #[error(
        "the metadata of a service has at most {MAX_METADATA_BYTES} bytes (MAX_METADATA_BYTES), this one has {bytes}"
    )]
    MetadataTooLarge {
        /// Their size in bytes.
        bytes: usize,
    },
    /// The key of a tag is one that the library uses itself.
    #[error("the tag {key} is the library's own: choose another key")]
    ReservedTag {
        /// The key.
        key: &'static str,
    },
}

debug_as_display!(EntryError);
