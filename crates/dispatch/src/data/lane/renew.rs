//! A data connection is made anew while calls go on: a handshake is what shows the certificates of today.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::message::Frame;

use super::Lane;
use crate::data::error::LaneError;
use crate::data::lane_runtime::LaneRuntime;
use crate::data::reach::{Earlier, reach};
use crate::data::wire::{self, CallHeader, Format, FrameError, kind};
use crate::transport::{BoxFuture, Connection};

/// How long the peer may take to have taken what the old connection carries. What is queued meanwhile would have to wait for
/// that in any case.
const HAND_OVER: Duration = Duration::from_secs(3);

/// How long the peer may take for that where the connection ends.
const READ_OUT: Duration = Duration::from_secs(1);

/// Between two attempts, and between two looks at what the old connection still has to bring.
const PAUSE: Duration = Duration::from_secs(1);

/// The number and the service of the question that tells how far the peer has read: no call has the one, no service the other.
const MARK: (u64, u64) = (u64::MAX, 0);

impl Lane {
    /// A connection that is to take the place of one, once that is outdated.
    pub(super) async fn renewed(
        &self,
        runtime: &Arc<LaneRuntime>,
        outdated: BoxFuture<'static, ()>,
    ) -> Box<dyn Connection> {
        outdated.await;
        loop {
            // Where it does not work the old one is as good as it was: who no longer trusts it closes it.
            if let Ok(connection) = reach(&self.target, runtime, Earlier::Stay).await {
                return connection;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Moves from one connection to the other; the first goes on bringing replies to what was sent on it. An error says why
    /// neither can be used.
    ///
    /// Rule: nothing is sent on the new connection before the peer has taken what was sent on the old one. Otherwise the
    /// messages of one caller would overtake each other.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        runtime: &Arc<LaneRuntime>,
        mut old: Box<dyn Connection>,
        new: Box<dyn Connection>,
    ) -> Result<Box<dyn Connection>, LaneError> {
        let reading = read_out(&mut *old, |frame| self.handle(frame));
        let taken = tokio::time::timeout(HAND_OVER, reading).await;
        match taken {
            Ok(Ok(())) => {
                let (lane, waiting) = (Arc::clone(self), self.waiting());
                runtime.spawn("outdated data connection", async move {
                    lane.read_rest(old, waiting).await;
                });
                Ok(new)
            }
            Ok(Err(why)) => Err(why),
            // It is busy with what it has: again at the next look at the certificates.
            Err(_) => Ok(old),
        }
    }

    /// Ends a connection on which everything is out.
    ///
    /// Rule: whoever closes has nothing unread. Otherwise the kernel resets the connection, and what the peer has not got yet
    /// never arrives: casts that were sent, which nobody asks after.
    pub(super) async fn read_to_the_end(&self, mut connection: Box<dyn Connection>) {
        let reading = read_out(&mut *connection, |frame| self.handle(frame));
        if !matches!(tokio::time::timeout(READ_OUT, reading).await, Ok(Ok(()))) {
            tracing::debug!(peer = %self.target.peer.name, "a data connection ended before the peer said that it has everything");
        }
    }

    /// Reads replies until nobody waits for one. The connection may end before: then the calls end with their time, as any
    /// whose reply is lost.
    async fn read_rest(&self, mut old: Box<dyn Connection>, mut waiting: Vec<u64>) {
        loop {
            waiting.retain(|number| self.waits_for(*number));
            if waiting.is_empty() {
                return;
            }
            match tokio::time::timeout(PAUSE, next(&mut *old)).await {
                Ok(Ok(frame)) => {
                    if self.handle(&frame).is_err() {
                        return;
                    }
                }
                Ok(Err(why)) => {
                    tracing::debug!(peer = %self.target.peer.name, %why, "an outdated data connection is gone");
                    return;
                }
                // A connection on which nothing is said may be taken for one that nobody needs.
                Err(_) => {
                    old.send(wire::empty(kind::PING));
                    let flushing = poll_fn(|cx| old.poll_flush(cx));
                    if !matches!(tokio::time::timeout(PAUSE, flushing).await, Ok(Ok(()))) {
                        return;
                    }
                }
            }
        }
    }
}

/// Ends once the peer has taken everything that was sent; what it says until then is handled.
async fn read_out(
    old: &mut dyn Connection,
    mut handle: impl FnMut(&Frame) -> Result<(), FrameError>,
) -> Result<(), LaneError> {
    old.send(mark());
    poll_fn(|cx| old.poll_flush(cx)).await?;
    loop {
        let frame = next(old).await?;
        if is_mark(&frame) {
            return Ok(());
        }
        handle(&frame)?;
    }
}

async fn next(connection: &mut dyn Connection) -> Result<Frame, LaneError> {
    match poll_fn(|cx| connection.poll_frame(cx)).await {
        Some(frame) => Ok(frame?),
        None => Err(LaneError::ClosedByPeer),
    }
}

/// A call of no service: it is answered at once, after everything before it was taken.
fn mark() -> Frame {
    let (number, sequence) = MARK;
    let header = CallHeader {
        number,
        sequence,
        timeout_ms: 0,
        format: Format::NONE,
    };
    Frame {
        kind: kind::CALL,
        // It fits, whatever the limit is.
        body: postcard::to_allocvec(&header).unwrap_or_default().into(),
    }
}

fn is_mark(frame: &Frame) -> bool {
    matches!(frame.kind, kind::FAILURE | kind::REPLY)
        && wire::split::<u64>(&frame.body).is_ok_and(|(number, _)| number == MARK.0)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::call::Failure;
    use crate::transport::Transport;
    use crate::transport::tcp::TcpTransport;

    #[tokio::test]
    async fn a_connection_is_read_out_once_the_peer_has_answered_in_its_turn_and_not_by_any_other_word()
     {
        let transport = TcpTransport::plaintext("127.0.0.1:0").unwrap();
        let address = transport.local_address();
        let (near, far) = tokio::join!(transport.dial(&address), transport.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        let mut handled = Vec::new();
        let asked = {
            let mut reading = pin!(read_out(&mut *near, |frame| {
                handled.push(frame.kind);
                Ok(())
            }));
            // The question is read, and not answered yet: there are signs of life, and the failure of another call.
            let peer = async {
                let asked = next(&mut *far).await.unwrap();
                far.send(wire::empty(kind::PONG));
                far.send(wire::failure(7, &Failure::NoReply));
                poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
                asked
            };
            let asked = tokio::select! {
                biased;
                _ = &mut reading => panic!("it was read out before anybody had read it"),
                asked = peer => asked,
            };
            let (header, _) = wire::split::<CallHeader>(&asked.body).unwrap();
            far.send(wire::failure(header.number, &Failure::NoReply));
            poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
            reading.await.unwrap();
            header
        };
        assert_eq!((asked.number, asked.sequence), MARK);
        assert_eq!(handled, [kind::PONG, kind::FAILURE]);
    }
}
