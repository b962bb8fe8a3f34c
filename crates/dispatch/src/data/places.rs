//! The connections that peers have open to this node: when one ends another, and when one is given up.
//!
//! Rule: what a caller sends on a later connection is handled after everything that it sent on an earlier one at the same
//! place, or the earlier is not handled any more. Otherwise bytes that TCP delivers late on a connection that the caller
//! has given up would overtake what followed them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use keydispatch_core::message::{DataLink, Hello};
use keydispatch_core::{NodeId, NodeName};
use tokio::sync::Notify;

use super::activity::Activity;
use super::wire::FrameError;
use crate::mutex::Mutex;

/// Most connections that peers may have open to this node's data lane: 300 nodes with some each.
const MAX_INBOUND: usize = 8_192;

/// How often a connection is looked at that says nothing.
const LOOK: Duration = Duration::from_millis(2_500);

/// Rule: a connection of a life that is not up here, because it is down, has left, or is not known yet, ends once it has
/// been silent for this long. One that speaks lives: a verdict on a living node, which it will refute, costs no call.
/// Longer than whoever waits for a reply is silent, which is a quarter of a second.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// Rule: any connection ends after this long without a byte. The calling side closes its idle connections long before.
const SILENT_AFTER: Duration = Duration::from_secs(300);

/// One of them.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) peer: NodeId,
    nonce: u64,
    link: Option<DataLink>,
    /// A frame has arrived on it.
    speaks: AtomicBool,
    /// True once nothing that arrives on it is handled any more; held while a frame is handled.
    over: Mutex<bool>,
    ended: Notify,
}

impl Inbound {
    /// Handles a frame, unless a later connection has taken this one's place.
    pub(super) fn handle(
        &self,
        places: &Places,
        handle: impl FnOnce() -> Result<(), FrameError>,
    ) -> Result<(), FrameError> {
        if !self.speaks.load(Ordering::Relaxed) {
            places.first_frame(self);
            self.speaks.store(true, Ordering::Relaxed);
        }
        let over = self.lock();
        if *over { Ok(()) } else { handle() }
    }

    /// Waits until a later connection has taken this one's place.
    pub(super) async fn replaced(&self) {
        self.ended.notified().await;
    }

    /// Waits until there is nobody any more on the other side.
    pub(super) async fn forsaken(&self, heard: &Activity, is_up: impl Fn(&NodeId) -> bool) {
        loop {
            tokio::time::sleep(LOOK).await;
            let silent = heard.since();
            if silent >= SILENT_AFTER || (silent >= GONE_AFTER && !is_up(&self.peer)) {
                return;
            }
        }
    }

    /// Once this returns, nothing of it is handled any more.
    fn end(&self) {
        *self.lock() = true;
        self.ended.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.over.lock()
    }

    fn precedes(&self, later: &Inbound) -> bool {
        match (self.link, later.link) {
            (Some(ours), Some(theirs)) => {
                theirs.ends_earlier
                    && self.nonce == later.nonce
                    && ours.lane == theirs.lane
                    && ours.attempt < theirs.attempt
            }
            // Of minor version 0: it replaces none.
            _ => false,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Places {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    by_name: HashMap<NodeName, Vec<Arc<Inbound>>>,
    count: usize,
}

impl Places {
    /// A peer's connection, from now until [`remove`](Self::remove); none where there are too many.
    pub(super) fn add(&self, theirs: &Hello) -> Option<Arc<Inbound>> {
        let mut open = self.lock();
        if open.count >= MAX_INBOUND {
            return None;
        }
        open.count += 1;
        let inbound = Arc::new(Inbound {
            peer: theirs.node.clone(),
            nonce: theirs.nonce,
            link: theirs.offers.data_link,
            speaks: AtomicBool::new(false),
            over: Mutex::new(false),
            ended: Notify::new(),
        });
        let name = theirs.node.name.clone();
        let of_name = open.by_name.entry(name).or_default();
        of_name.push(Arc::clone(&inbound));
        Some(inbound)
    }

    pub(super) fn remove(&self, inbound: &Arc<Inbound>) {
        let mut open = self.lock();
        let Some(of_name) = open.by_name.get_mut(&inbound.peer.name) else {
            return;
        };
        let before = of_name.len();
        of_name.retain(|other| !Arc::ptr_eq(other, inbound));
        let removed = before - of_name.len();
        if of_name.is_empty() {
            open.by_name.remove(&inbound.peer.name);
        }
        open.count -= removed;
    }

    pub(super) fn count(&self) -> usize {
        self.lock().count
    }

    /// The caller uses that one: those that it had before at the same place are over. It may be one of these itself.
    fn first_frame(&self, inbound: &Inbound) {
        let open = self.lock();
        let Some(of_name) = open.by_name.get(&inbound.peer.name) else {
            return;
        };
        for other in of_name {
            if other.precedes(inbound) {
                other.end();
            } else if inbound.precedes(other) && other.speaks.load(Ordering::Relaxed) {
                inbound.end();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }
}

#[cfg(test)]
mod tests {
    use keydispatch_core::message::{
        Address, LaneKind, MAGIC, Offers, PROTOCOL_MAJOR, PROTOCOL_MINOR,
    };
    use keydispatch_core::{ClusterName, Generation};

    use super::*;

    fn hello(name: &str, nonce: u64, link: Option<(u16, u64)>) -> Hello {
        Hello {
            magic: MAGIC,
            major: PROTOCOL_MAJOR,
            minor: PROTOCOL_MINOR,
            lane: LaneKind::Data,
            cluster: ClusterName::try_new("c").unwrap(),
            node: NodeId {
                name: NodeName::try_new(name).unwrap(),
                generation: Generation {
                    number: 1,
                    random: 1,
                },
            },
            nonce,
            address: Address::try_new("a:1").unwrap(),
            placement: 1,
            periods_ms: (250, 1_500),
            joined: true,
            highest_of_yours: None,
            offers: Offers {
                data_link: link.map(|(lane, attempt)| DataLink {
                    lane,
                    attempt,
                    ends_earlier: attempt < 10,
                }),
                ..Offers::default()
            },
        }
    }

    #[test]
    fn the_first_frame_of_a_later_connection_ends_the_earlier_ones_of_its_place_alone() {
        let places = Places::default();
        let open = |name, nonce, link| places.add(&hello(name, nonce, link)).unwrap();
        let first = open("a", 1, Some((0, 1)));
        let second = open("a", 1, Some((0, 2)));
        let others = [
            open("a", 1, Some((1, 1))),
            open("a", 2, Some((0, 1))),
            open("a", 1, None),
            open("b", 1, Some((0, 1))),
        ];
        let speaks = |inbound: &Inbound| {
            let mut handled = false;
            let handle = || {
                handled = true;
                Ok(())
            };
            inbound.handle(&places, handle).unwrap();
            handled
        };
        // The second was dialled beside the first and may never be used.
        assert!(speaks(&first));
        for other in &others {
            assert!(speaks(other));
        }
        assert!(speaks(&second));
        assert!(!speaks(&first));
        assert!(speaks(&second));
        for other in &others {
            assert!(speaks(other));
        }
        // Where the caller says that everything was taken, replies still come on the earlier one.
        let beside = open("a", 1, Some((0, 10)));
        assert!(speaks(&beside) && speaks(&second));
        // What arrives later still of an earlier one is not handled either.
        let late = open("a", 1, Some((0, 1)));
        assert!(!speaks(&late));
        assert!(speaks(&second));
    }

    #[test]
    fn what_is_removed_makes_room() {
        let places = Places::default();
        let all: Vec<_> = (0..MAX_INBOUND as u64)
            .map(|nonce| places.add(&hello("a", nonce, None)).unwrap())
            .collect();
        assert!(places.add(&hello("b", 1, None)).is_none());
        places.remove(&all[7]);
        places.remove(&all[7]);
        assert!(places.add(&hello("b", 1, None)).is_some());
        assert!(places.add(&hello("b", 1, None)).is_none());
        all.iter().for_each(|inbound| places.remove(inbound));
        assert_eq!(places.count(), 1);
    }
}
