//! The queue of a mailbox: bounded in messages and in bytes, and by what may wait on the node in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::error::{SendError, TryRecvError, TrySendError};
use tokio::sync::{Semaphore, mpsc};

use crate::backlog::{Held, Share};

/// Something that takes room in a queue.
pub(crate) trait Weigh {
    /// Bytes that it keeps while it waits, as far as they are known.
    fn bytes(&self) -> usize;

    /// Those of them that count towards what may wait on the node in all.
    fn backlog(&self) -> usize;

    /// Whose they are; none where it comes from this node.
    fn share(&self) -> Option<&Arc<Share>>;
}

/// A queue of at most so many items with at most so many bytes together. An empty queue takes any item: one that is longer
/// than the bound would never pass otherwise. What has no share of its own is counted in `own`.
pub(crate) fn channel<T: Weigh>(
    items: usize,
    max_bytes: usize,
    own: Arc<Share>,
) -> (Sender<T>, Receiver<T>) {
    // More places than that cannot be counted.
    let (sender, receiver) = mpsc::channel(items.clamp(1, Semaphore::MAX_PERMITS));
    let sender = Sender {
        items: sender,
        waiting_bytes: Arc::default(),
        max_bytes,
        own,
    };
    (sender, Receiver { items: receiver })
}

pub(crate) struct Sender<T> {
    items: mpsc::Sender<(T, Room)>,
    waiting_bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    own: Arc<Share>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender {
            items: self.items.clone(),
            waiting_bytes: Arc::clone(&self.waiting_bytes),
            max_bytes: self.max_bytes,
            own: Arc::clone(&self.own),
        }
    }
}

impl<T: Weigh> Sender<T> {
    /// Queues an item, or gives it back.
    pub(crate) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let Some(room) = self.room(&item) else {
            return Err(if self.items.is_closed() {
                TrySendError::Closed(item)
            } else {
                TrySendError::Full(item)
            });
        };
        self.items
            .try_send((item, room))
            .map_err(|error| match error {
                TrySendError::Full((item, _)) => TrySendError::Full(item),
                TrySendError::Closed((item, _)) => TrySendError::Closed(item),
            })
    }

    /// Queues an item that takes no room but its place, once there is one.
    pub(crate) async fn send(&self, item: T) -> Result<(), SendError<T>> {
        let room = Room {
            waiting_bytes: None,
            bytes: 0,
            _held: None,
        };
        self.items
            .send((item, room))
            .await
            .map_err(|SendError((item, _))| SendError(item))
    }

    /// True where something waits.
    pub(crate) fn is_busy(&self) -> bool {
        self.items.capacity() < self.items.max_capacity()
    }

    fn room(&self, item: &T) -> Option<Room> {
        let bytes = item.bytes();
        if bytes == 0 {
            return Some(Room {
                waiting_bytes: None,
                bytes,
                _held: None,
            });
        }
        let held = match item.backlog() {
            0 => None,
            bytes => Some(item.share().unwrap_or(&self.own).take(bytes)?),
        };
        self.waiting_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                let all = waiting.checked_add(bytes)?;
                (waiting == 0 || all <= self.max_bytes).then_some(all)
            })
            .ok()?;
        Some(Room {
            waiting_bytes: Some(Arc::clone(&self.waiting_bytes)),
            bytes,
            _held: held,
        })
    }
}

/// What an item takes of the queue's bytes, until it has left it in whatever way.
struct Room {
    waiting_bytes: Option<Arc<AtomicUsize>>,
    bytes: usize,
    _held: Option<Held>,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting_bytes {
            waiting.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

pub(crate) struct Receiver<T> {
    items: mpsc::Receiver<(T, Room)>,
}

impl<T> Receiver<T> {
    /// The next item; none once it is closed, or every sender is gone. Cancelling the wait loses nothing.
    pub(crate) async fn recv(&mut self) -> Option<T> {
        self.items.recv().await.map(|(item, _)| item)
    }

    pub(crate) fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.items.try_recv().map(|(item, _)| item)
    }

    /// How many items fit in.
    pub(crate) fn max_capacity(&self) -> usize {
        self.items.max_capacity()
    }

    /// Takes no more; what waits can still be received.
    pub(crate) fn close(&mut self) {
        self.items.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog::Backlog;

    impl Weigh for usize {
        fn bytes(&self) -> usize {
            *self
        }

        fn backlog(&self) -> usize {
            *self
        }

        fn share(&self) -> Option<&Arc<Share>> {
            None
        }
    }

    fn unbounded() -> Arc<Share> {
        Backlog::new(usize::MAX).share()
    }

    #[test]
    fn a_queue_is_full_where_the_node_has_no_room_left() {
        let backlog = Backlog::new(100);
        let (sender, mut receiver) = channel(100, usize::MAX, backlog.share());
        let other = backlog.share().take(90);
        assert!(other.is_some());
        sender.try_send(10).unwrap();
        assert!(matches!(sender.try_send(1), Err(TrySendError::Full(1))));
        assert_eq!(backlog.waiting(), 100);
        assert_eq!(receiver.try_recv(), Ok(10));
        assert_eq!(backlog.waiting(), 90);
        sender.try_send(5).unwrap();
        drop(receiver);
        assert_eq!(backlog.waiting(), 90);
    }

    #[test]
    fn a_queue_is_full_by_its_bytes_and_has_room_again_once_items_leave_it() {
        let (sender, mut receiver) = channel(100, 10, unbounded());
        sender.try_send(6).unwrap();
        assert!(matches!(sender.try_send(5), Err(TrySendError::Full(5))));
        sender.try_send(4).unwrap();
        sender.try_send(0).unwrap();
        assert!(matches!(sender.try_send(1), Err(TrySendError::Full(1))));
        assert_eq!(receiver.try_recv(), Ok(6));
        sender.try_send(5).unwrap();
        while receiver.try_recv().is_ok() {}
        // An empty one takes any item, and then nothing that has bytes.
        sender.try_send(50).unwrap();
        assert!(matches!(sender.try_send(1), Err(TrySendError::Full(1))));
        receiver.close();
        assert!(matches!(sender.try_send(1), Err(TrySendError::Closed(1))));
    }

    #[test]
    fn any_number_of_places_and_bytes_can_be_asked_for() {
        for number in [0, usize::MAX] {
            let (sender, _receiver) = channel(number, number, unbounded());
            sender.try_send(usize::MAX).unwrap();
        }
    }

    #[test]
    fn an_item_that_is_refused_for_want_of_a_place_takes_no_room() {
        let (sender, mut receiver) = channel(1, 10, unbounded());
        sender.try_send(4).unwrap();
        assert!(matches!(sender.try_send(4), Err(TrySendError::Full(4))));
        assert_eq!(receiver.try_recv(), Ok(4));
        sender.try_send(10).unwrap();
    }
}
