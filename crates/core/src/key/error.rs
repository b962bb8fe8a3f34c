//! Why a value is no key.

use crate::error::debug_as_display;

/// A value that cannot be a key.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value cannot be encoded as a key: {cause}")]
pub struct KeyError {
    /// What the encoder said.
    pub(super) cause: String,
}

debug_as_display!(KeyError);
