//! Why a key has no state, or one that cannot go.

use std::time::Duration;

use crate::service::BoxError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("it did not open: {0}")]
    NotOpened(BoxError),
    #[error("it did not open: it panicked")]
    OpenPanicked,
    #[error("it did not open within {limit:?}")]
    OpenTooSlow { limit: Duration },
    #[error("it is over the limit of {limit} bytes (max_state_bytes)")]
    TooLarge { limit: usize },
    #[error("it does not encode: {cause}")]
    Unfit { cause: String },
    #[error("it does not encode: that panicked")]
    EncodePanicked,
    #[error("its state does not decode: {0}")]
    Unreadable(postcard::Error),
    #[error("it has none")]
    None,
}
