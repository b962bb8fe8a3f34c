//! How keys are taken away before whoever has them ends: of a node that drains or leaves, and of a service that stops.

use std::time::Duration;

use keydispatch_core::{NodeName, ServiceId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::data::callers::Callers;
use crate::data::lane_runtime::LaneRuntime;
use crate::driver::command::{Command, Draining};
use crate::registry::Registry;

/// How long a node that leaves finishes what it has, unless
/// [`drain_timeout`](crate::NodeBuilder::drain_timeout) says otherwise.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the peers have to say that they know: many times what news takes, and long enough for membership to notice that
/// one of them does not answer.
const PEERS_TIMEOUT: Duration = Duration::from_secs(5);

/// First and longest pause between two questions to the driver about who knows.
const ASK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Takes the keys of one service away before it stops; whatever other nodes have sent it by then has arrived when this
/// returns, as far as that can be known in time.
pub(crate) async fn take_keys_of(
    registry: &Registry,
    runtime: &LaneRuntime,
    callers: &Callers,
    service: &ServiceId,
    until: Instant,
) {
    let draining = Draining::Service {
        sequence: service.sequence,
    };
    // Otherwise the node has stopped.
    if take_keys(registry, runtime, draining, until)
        .await
        .is_some()
    {
        callers
            .fence(until.min(Instant::now() + PEERS_TIMEOUT))
            .await;
    }
}

/// Waits until the states of all keys, or of those of one service, are with their next owners; returns how many keys have not
/// gone when time is up, or when there is nobody to take them.
pub(crate) async fn states_given(
    registry: &Registry,
    sequence: Option<u64>,
    until: Instant,
) -> usize {
    let mut pause = ASK_PAUSE.0;
    loop {
        let (reply, answer) = oneshot::channel();
        let command = Command::StatesLeft { sequence, reply };
        if registry.command(command).await.is_err() {
            return 0;
        }
        let Ok(left) = answer.await else {
            return 0;
        };
        // Rule: done is what the services have heard of, too. The machine is a turn ahead of them where there is much to tell.
        let is_done = left.is_idle && left.keys == 0;
        let is_hopeless = !left.is_idle && !left.can_go;
        if is_done || is_hopeless || Instant::now() >= until {
            return left.keys;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_PAUSE.1);
    }
}

/// Takes keys away, and waits until every node that is up has seen it: returns those that have not when time is up; none
/// where this node has stopped.
pub(crate) async fn take_keys(
    registry: &Registry,
    runtime: &LaneRuntime,
    what: Draining,
    until: Instant,
) -> Option<Vec<NodeName>> {
    let until = until.min(Instant::now() + PEERS_TIMEOUT);
    let (reply, answer) = oneshot::channel();
    let command = Command::Drain { what, reply };
    registry.command(command).await.ok()?;
    let version = answer.await.ok()?;
    let mut pause = ASK_PAUSE.0;
    loop {
        let (reply, answer) = oneshot::channel();
        let command = Command::Without { version, reply };
        registry.command(command).await.ok()?;
        let unaware = answer.await.ok()?;
        if unaware.is_empty() || runtime.is_closed() || Instant::now() >= until {
            return Some(unaware);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_PAUSE.1);
    }
}
