//! What carries frames between nodes: an opaque address, connections, frames. No sockets, no TLS.

pub(crate) mod dialable;
pub(crate) mod doorstep;
pub(crate) mod framing;
pub(crate) mod memory;
pub(crate) mod metered;
pub(crate) mod socket;
pub(crate) mod tcp;

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::Escaped;
use keydispatch_core::admission::Credentials;
use keydispatch_core::message::{Address, DecodeError, Frame};

use self::metered::Received;

/// A future behind a pointer, so that the traits can be used as objects.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How long a dial may take, including what proves the other side's identity.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest frame of a connection whose other side has yet to say who it is: a Hello is far shorter.
pub(crate) const STRANGER_FRAME_BYTES: usize = 64 * 1024;

/// One node's access to the network: it listens at one address and dials others.
pub(crate) trait Transport: Send + Sync + Debug + 'static {
    /// Where this node listens, with the port that was really taken.
    fn local_address(&self) -> Address;

    /// Opens a connection within [`DIAL_TIMEOUT`].
    fn dial<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>>;

    /// The next connection that somebody opened to this node; an error says that there will be no more.
    ///
    /// Nothing is lost where the future is dropped.
    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, AcceptError>>;

    /// Ends listening; the address is free when this returns. Whoever waits in [`accept`](Self::accept) gets an error.
    fn unbind(&self) -> BoxFuture<'_, ()>;
}

/// One connection, polled by one task.
pub(crate) trait Connection: Send + 'static {
    /// What the other side proved when the connection was opened.
    fn credentials(&self) -> &Credentials;

    /// The other side as logs name it.
    fn peer(&self) -> &str;

    /// When it was dialled or accepted, before any handshake of its own.
    fn opened(&self) -> tokio::time::Instant;

    /// Ends when a new connection would be made with other certificates than this one, as far as this side knows.
    fn outdated(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    /// Sets the longest frame to accept; at first [`STRANGER_FRAME_BYTES`].
    fn set_frame_limit(&mut self, bytes: usize);

    /// The next frame; none once the other side closed between two frames.
    ///
    /// After an error there is nothing more to come.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ConnectionError>>>;

    /// The bytes that arrived so far, of whole frames or not: each of them shows that the other side is there.
    fn meter(&self) -> &Received;

    /// Belongs from the next poll on to the runtime that polls it then: until then to the one that it was made on.
    fn move_here(&mut self) {}

    /// Queues a frame, which [`poll_flush`](Self::poll_flush) sends.
    fn send(&mut self, frame: Frame) {
        self.send_with(frame, Bytes::new());
    }

    /// As [`send`](Self::send), with a body that goes on with `rest`: where that is long, it is sent from where it is.
    fn send_with(&mut self, frame: Frame, rest: Bytes);

    /// Bytes that were not handed to the network yet; not zero as long as a flush is needed.
    fn buffered(&self) -> usize;

    /// Hands everything queued to the network.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>>;
}

/// Why an address could not be bound.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Something listens there already.
    #[error(
        "the address {address} is taken: stop what listens there, or bind another port (0 takes any)"
    )]
    Taken {
        /// The address.
        address: String,
    },
    /// The address is no address of this machine, or not allowed.
    #[error(
        "the address {address} cannot be bound: {source}; it takes an address of this machine, as 10.0.0.1:7400, [::1]:7400 or localhost:7400"
    )]
    Unusable {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

keydispatch_core::debug_as_display!(BindError);

/// Why a dial failed; the other side may have seen a connection that closed again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The machine answered that nobody listens there.
    #[error("nobody listens at {address}")]
    Refused { address: Address },
    /// No answer in time.
    #[error("{address} did not answer within {}s", waited.as_secs_f32())]
    TimedOut { address: Address, waited: Duration },
    /// The address leads nowhere.
    #[error("{address} is unreachable: {source}")]
    Unreachable { address: Address, source: io::Error },
    /// No node has such an address.
    #[error("{address} is not dialled: {why}")]
    Forbidden { address: Address, why: &'static str },
    /// Somebody answered who did not prove to be a node of this cluster.
    #[error("{address} is no node to talk to: {why}")]
    Tls { address: Address, why: String },
}

/// The transport accepts no more connections.
#[derive(Debug, thiserror::Error)]
#[error("the listening socket is closed: {why}")]
pub(crate) struct AcceptError {
    pub(crate) why: String,
}

/// Why a connection ended other than by being closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The network or the operating system gave up on it.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The other side sent what is no frame, or one over the limit.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The other side closed inside a frame.
    #[error("the peer closed the connection inside a frame, after {bytes} bytes of it")]
    Truncated { bytes: usize },
    /// The first bytes were TLS, on a connection without it.
    #[error(
        "the peer speaks TLS, this node runs without encryption: give both certificates, or neither"
    )]
    SpeaksTls,
    /// The other side did not accept this node's certificate.
    #[error("the peer refused this node over TLS: {why}; the peer's log may say more")]
    RefusedByPeer { why: String },
    /// The certificate that the peer proved itself by is over, revoked, or of an authority that is no longer trusted.
    #[error("the peer is no longer trusted: {why}")]
    Withdrawn { why: String },
}

impl ConnectionError {
    /// Logs what is the peer's fault, and not the network's.
    pub(crate) fn log_fault(&self, peer: &str) {
        if let ConnectionError::Decode(error) = self {
            tracing::warn!(peer = %Escaped(peer), error = %Escaped(error), "closing a connection: the peer sent what is no frame");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
