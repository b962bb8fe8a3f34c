//! How a node goes away in good order: it takes nothing new, finishes what it has, and says goodbye.

use std::time::Duration;

use keydispatch_core::NodeName;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Node;
use crate::deadline;
use crate::drain::{states_given, take_keys};
use crate::driver::command::{Command, Draining};
use crate::service::current;

/// How long replies and casts that are complete have to get out once the time for draining is over.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// What was left when the time for draining was over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// Nodes that are up and did not say that they know that this one takes nothing new: they may have sent calls until the
    /// end.
    pub unaware: Vec<NodeName>,
    /// Services that had not handled all that waited for them; they were ended as they were.
    pub services: usize,
    /// Connections of other nodes with calls that were not answered.
    pub unanswered: usize,
    /// Calls of this node to others that had no reply yet.
    pub own_calls: usize,
    /// Keys whose states had nobody to go to, or could not be given: they were handed to
    /// [`Keyed::closed`](crate::Keyed::closed).
    pub keys: usize,
}

impl Unfinished {
    fn into_result(self) -> Result<(), DrainError> {
        if self == Unfinished::default() {
            Ok(())
        } else {
            Err(DrainError::Unfinished(self))
        }
    }
}

impl std::fmt::Display for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if !self.unaware.is_empty() {
            let names: Vec<&str> = self.unaware.iter().map(NodeName::as_str).collect();
            parts.push(format!("{} did not say that they know", names.join(", ")));
        }
        for (count, what) in [
            (self.services, "services had more to do"),
            (self.unanswered, "connections had calls without an answer"),
            (self.own_calls, "calls of its own had no reply"),
            (self.keys, "keys had a state that went to nobody"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        f.write_str(&parts.join("; "))
    }
}

/// Why a node did not drain, or not to the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// A handler of one of the node's own services asked for it, and would have waited for itself. Nothing was done.
    #[error(
        "a node was to drain or leave by a handler of its own, which would wait for itself: do it from a task of its own"
    )]
    OwnHandler,
    /// Time was up before everything was done. A node that was to leave has left all the same.
    #[error("time was up before the node had drained: {0}")]
    Unfinished(Unfinished),
    /// The node has stopped already.
    #[error("the node has stopped")]
    NodeStopped,
}

impl Node {
    /// Takes the keys of all services of this node away, waits until every node that is up knows, and until the services have
    /// handled what they had by then. They run on, listed as draining, and are reached by [`at`](crate::ServiceHandle::at).
    ///
    /// [`Registration::enable`](crate::Registration::enable) gives a service its keys back.
    ///
    /// # Errors
    ///
    /// From a handler of this node's services at once; or what is left after `timeout`.
    pub async fn drain(&self, timeout: Duration) -> Result<(), DrainError> {
        self.check_not_in_handler()?;
        let until = deadline::after(timeout);
        let (registry, data) = (self.registry(), self.data());
        let draining = Draining::Node { for_good: false };
        let unaware = take_keys(registry, &data.runtime, draining, until).await;
        let mut left = Unfinished {
            unaware: unaware.ok_or(DrainError::NodeStopped)?,
            ..Unfinished::default()
        };
        left.keys = states_given(registry, None, until).await;
        if !data.local.services_caught_up(until).await {
            left.services = data.local.count();
        }
        left.into_result()
    }

    /// Leaves the cluster in good order: no call is lost by it.
    ///
    /// The services lose their keys in one change, and once every node that is up knows, nothing new is taken. Calls and casts
    /// that were on their way are handled, the services stop with
    /// [`StopReason::NodeStopped`](crate::StopReason::NodeStopped), and replies are delivered; calls that services make
    /// meanwhile work. Then the node says goodbye: the entries are gone everywhere at once, and nobody waits for it to come
    /// back. When this returns its address is free.
    ///
    /// While a service drains its timers run, and what it tells itself is handled in turn. Once its mailbox is empty, what it
    /// has told itself by then is handled, too; timers that are not due end with it.
    ///
    /// # Errors
    ///
    /// From a handler of this node's own services, at once and with nothing done. Otherwise the node has left;
    /// [`DrainError::Unfinished`] says what was not finished within
    /// [`drain_timeout`](crate::NodeBuilder::drain_timeout).
    pub async fn leave(self) -> Result<(), DrainError> {
        self.check_not_in_handler()?;
        let until = deadline::after(self.data().runtime.drain_timeout());
        let data = self.data();
        let draining = Draining::Node { for_good: true };
        let unaware = take_keys(self.registry(), &data.runtime, draining, until).await;
        let mut left = Unfinished {
            unaware: unaware.ok_or(DrainError::NodeStopped)?,
            ..Unfinished::default()
        };
        // R14: it is gone only once it has nothing any more.
        left.keys = states_given(self.registry(), None, until).await;
        data.callers.turn_away();
        data.callers.heard_the_last(until).await;
        left.services = data.local.stop_services(until).await;
        // What was made in time gets out in any case. Replies may wait for calls that tasks of the services make.
        left.unanswered = data.callers.all_answered(until.max(soon())).await;
        left.own_calls = data.peers.finish_own_calls(until.max(soon())).await;
        self.say_goodbye().await;
        if left != Unfinished::default() {
            tracing::warn!(node = %self.name(), %left, "left before everything was done");
        }
        left.into_result()
    }

    /// Says goodbye at once: calls that are on their way fail, and what the services have begun ends as it is.
    pub async fn leave_now(self) {
        self.say_goodbye().await;
    }

    async fn say_goodbye(&self) {
        let (reply, answer) = oneshot::channel();
        if self.command(Command::Leave { reply }).await.is_some() {
            // An error says that the node had stopped already.
            let _ = answer.await;
        }
        self.shut_down();
    }

    /// Rule: nobody waits for its own handler to end.
    fn check_not_in_handler(&self) -> Result<(), DrainError> {
        match current::current() {
            Some(current) if current.nonce == self.registry().nonce() => {
                Err(DrainError::OwnHandler)
            }
            _ => Ok(()),
        }
    }
}

fn soon() -> Instant {
    Instant::now() + FLUSH_TIMEOUT
}
