//! How a data connection comes about: dialled again beside a dial that hangs, and greeted.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keydispatch_core::NodeId;
use keydispatch_core::admission;
use keydispatch_core::message::{Address, ControlMessage, DataLink, Hello, LaneKind, Offers};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::contact::Contact;
use super::lane_runtime::LaneRuntime;
use crate::transport::{Connection, DialError};

/// How long dialling and the handshake may take before callers are told that it does not work.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Rule: a dial that has not come through after this long holds up no other one; the first that does is taken. One lost
/// packet makes TCP wait for a second before it tries again.
const HEAD_START: Duration = Duration::from_millis(250);

/// Whom a lane dials.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) peer: NodeId,
    pub(super) address: Address,
    /// The lane's place among those to this peer.
    pub(super) lane: u16,
    pub(super) contact: Arc<Contact>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct Unreached {
    pub(super) why: String,
    /// Nobody answered at all: the packets may have been lost.
    pub(super) silent: bool,
}

impl Unreached {
    pub(super) fn silent(why: impl ToString) -> Self {
        Unreached {
            why: why.to_string(),
            silent: true,
        }
    }

    pub(super) fn answered(why: impl ToString) -> Self {
        Unreached {
            why: why.to_string(),
            silent: false,
        }
    }
}

/// What the first frame on a connection does to the earlier ones at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Earlier {
    /// Nothing of them is handled any more.
    End,
    /// The peer has taken what was sent on them, and they still bring replies.
    Stay,
}

/// Opens a connection within [`CONNECT_TIMEOUT`].
pub(super) async fn reach(
    target: &Arc<Target>,
    runtime: &Arc<LaneRuntime>,
    earlier: Earlier,
) -> Result<Box<dyn Connection>, Unreached> {
    let begun = Instant::now();
    let reached = dial(target, runtime, earlier).await;
    let contact = &target.contact;
    match &reached {
        Ok(_) => contact.undialled.over(),
        Err(failed) => {
            contact.unreached(begun);
            let undialled = &contact.undialled;
            undialled.failed(&target.peer, &target.address, &failed.why);
        }
    }
    reached
}

/// The same; the first of several dials that comes through.
async fn dial(
    target: &Arc<Target>,
    runtime: &Arc<LaneRuntime>,
    earlier: Earlier,
) -> Result<Box<dyn Connection>, Unreached> {
    let begun = Instant::now();
    // Ends the dials that are left when it is dropped.
    let mut dials = JoinSet::new();
    let mut next = begun;
    loop {
        if next <= Instant::now() {
            let (target, runtime) = (Arc::clone(target), Arc::clone(runtime));
            let tasks = runtime.tasks().clone();
            let dial = async move { connect(&target, &runtime, earlier).await };
            dials.spawn(tasks.own("dial of a data connection", dial));
            next += HEAD_START;
        }
        let look_again = next.min(begun + CONNECT_TIMEOUT);
        tokio::select! {
            Some(dialled) = dials.join_next() => match dialled {
                Ok(Ok(connection)) => {
                    let opened = &runtime.counters.connections_opened;
                    opened.fetch_add(1, Ordering::Relaxed);
                    return Ok(connection);
                }
                // Others may still come through, unless the answer was a no.
                Ok(Err(failed)) if failed.silent && !dials.is_empty() => {}
                Ok(Err(failed)) => return Err(failed),
                Err(_) => return Err(Unreached::answered("the task that dialled it panicked")),
            },
            () = tokio::time::sleep_until(look_again) => {
                if begun.elapsed() >= CONNECT_TIMEOUT {
                    return Err(Unreached::silent(format!("no connection within {CONNECT_TIMEOUT:?}")));
                }
            }
        }
    }
}

async fn connect(
    target: &Target,
    runtime: &LaneRuntime,
    earlier: Earlier,
) -> Result<Box<dyn Connection>, Unreached> {
    let transport = runtime
        .transport()
        .ok_or_else(|| Unreached::answered("this node has no network"))?;
    let link = DataLink {
        lane: target.lane,
        attempt: runtime.next_attempt(),
        ends_earlier: earlier == Earlier::End,
    };
    let dialled = transport.dial(&target.address).await;
    let mut connection = dialled.map_err(|error| match error {
        DialError::TimedOut { .. }
        | DialError::Unreachable { .. }
        | DialError::Forbidden { .. } => Unreached::silent(error),
        DialError::Refused { .. } | DialError::Tls { .. } => Unreached::answered(error),
    })?;
    let ours = runtime.hello();
    let greeting = ControlMessage::Hello(Hello {
        lane: LaneKind::Data,
        offers: Offers {
            data_link: Some(link),
            ..ours.offers
        },
        ..Hello::clone(&ours)
    });
    connection.send(greeting.encode());
    poll_fn(|cx| connection.poll_flush(cx))
        .await
        .map_err(Unreached::silent)?;
    let first = match poll_fn(|cx| connection.poll_frame(cx)).await {
        Some(frame) => frame.map_err(Unreached::silent)?,
        None => return Err(Unreached::answered("the peer closed the connection")),
    };
    match ControlMessage::decode(&first) {
        Ok(Some(ControlMessage::Hello(theirs))) => {
            admission::check(&ours, &theirs, connection.credentials())
                .map_err(Unreached::answered)?;
            if theirs.node != target.peer {
                let why = format!("{} answers there now", theirs.node);
                return Err(Unreached::answered(why));
            }
            target.contact.greeted(theirs.minor, &theirs.offers);
            Ok(connection)
        }
        Ok(Some(ControlMessage::Refuse(refusal))) => Err(Unreached::answered(refusal)),
        _ => Err(Unreached::answered("the peer's first frame is no hello")),
    }
}
