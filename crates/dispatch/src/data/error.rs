//! Why a data connection ends.

use crate::data::wire::FrameError;
use crate::transport::ConnectionError;

/// Why a data connection ended, or is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    /// Between two frames.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// It broke, or the other side was at fault.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The other side sent a frame that does not decode.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Membership says that the node at the other end is down.
    #[error("the node is down")]
    Down,
    /// Of one that the peer opened: it has opened another.
    #[error("a later one has taken its place")]
    Replaced,
    /// Of one that the peer opened: there is nobody any more.
    #[error("nothing was heard on it for long")]
    Silent,
}
