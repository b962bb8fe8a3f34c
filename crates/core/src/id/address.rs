//! Where a node is reached.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::debug_as_display;
use crate::limits::MAX_ADDRESS_BYTES;
use crate::text::Escaped;

/// The address is empty or over [`MAX_ADDRESS_BYTES`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("an address has 1 to {MAX_ADDRESS_BYTES} bytes (MAX_ADDRESS_BYTES), this one has {bytes}")]
pub struct AddressError {
    /// Its length.
    pub bytes: usize,
}

debug_as_display!(AddressError);

/// Where a node is reached, as it says itself: `host:port` for TCP, anything for another transport.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(Arc<str>);

impl Address {
    /// Checks the length against [`MAX_ADDRESS_BYTES`].
    pub fn try_new(address: impl AsRef<str>) -> Result<Self, AddressError> {
        let address = address.as_ref();
        if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
            return Err(AddressError {
                bytes: address.len(),
            });
        }
        Ok(Address(address.into()))
    }

    /// The address as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Escaped: a peer says where it is reached, and its word goes into logs and errors. What is to be dialled is
/// [`as_str`](Address::as_str).
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Escaped(&*self.0), f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(address: String) -> Result<Self, AddressError> {
        Address::try_new(address)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.0.as_ref().to_owned()
    }
}
