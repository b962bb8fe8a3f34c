//! Looks, from the node's own threads, for services that hold theirs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keydispatch_core::{NodeName, ServiceId};

use super::current::{self, Seen};
use crate::data::local::Local;

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A thread that is seen in the same turn so often in a row is held: for a second at least.
const LOOKS: u32 = 4;

/// One turn that has been seen before.
struct HeldThread {
    turn: u64,
    /// Rule: what counts is how often it was seen, not how long ago: a process that stood still was not blocked.
    looks: u32,
    /// How often it has to be seen until it is said again.
    say_at: u32,
}

/// Runs as long as the node: says which of its services hold a thread, once for each time, and again after twice as long.
pub(crate) async fn watch(local: Arc<Local>, node: NodeName, nonce: u64) {
    let mut held: HashMap<usize, HeldThread> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let seen = current::at_work(nonce);
        held.retain(|thread, _| seen.iter().any(|seen| seen.thread == *thread));
        for Seen {
            thread,
            turn,
            sequence,
        } in seen
        {
            let first = HeldThread {
                turn,
                looks: 0,
                say_at: LOOKS,
            };
            let known = held.entry(thread).or_insert(first);
            if known.turn != turn {
                *known = HeldThread {
                    turn,
                    looks: 0,
                    say_at: LOOKS,
                };
                continue;
            }
            known.looks += 1;
            if known.looks < known.say_at {
                continue;
            }
            known.say_at = known.say_at.saturating_mul(2);
            let id = ServiceId {
                node: node.clone(),
                nonce,
                sequence,
            };
            let service_type = local.get(sequence).map_or("", |mailbox| mailbox.name());
            tracing::warn!(
                service = %id,
                service_type,
                seconds = known.looks / LOOKS,
                "a service has held a thread without yielding, and holds it still: what blocks or computes for long \
                 belongs into tokio::task::spawn_blocking"
            );
        }
    }
}
