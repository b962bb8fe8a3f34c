//! A frame of either lane, and why one does not decode.

use bytes::Bytes;

use crate::error::debug_as_display;

/// One frame without its length prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: u8,
    /// The message.
    pub body: Bytes,
}

/// Why bytes from a peer are not a message.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame is longer than its lane allows.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    FrameTooLong {
        /// Its length.
        bytes: usize,
        /// The lane's limit.
        limit: usize,
    },
    /// The body is truncated or garbled.
    #[error("a frame of kind {kind} does not decode: {cause}")]
    Garbled {
        /// The frame's kind.
        kind: u8,
        /// What the decoder said.
        cause: String,
    },
}

debug_as_display!(DecodeError);
