//! The queue of a mailbox: bounded in messages and in bytes, and by what may wait on the node in all.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keydispatch_core::route::limit_at;
use tokio::sync::mpsc::error::{SendError, TryRecvError, TrySendError};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::backlog::{Held, Share};

/// Something that takes room in a queue.
pub(crate) trait TakesRoom {
    /// Bytes that it keeps while it waits, as far as they are known.
    fn bytes(&self) -> usize;

    /// Those of them that count towards what may wait on the node in all.
    fn backlog(&self) -> usize;

    /// Whose they are; none where it comes from this node.
    fn share(&self) -> Option<&Arc<Share>>;
}

/// A queue of at most so many items with at most so many bytes together. An empty queue takes any item: one that is longer
/// than the bound would never pass otherwise. What has no share of its own is counted in `own`.
pub(crate) fn channel<T: TakesRoom>(
    items: usize,
    max_bytes: usize,
    own: Arc<Share>,
) -> (Sender<T>, Receiver<T>) {
    // More places than that cannot be counted.
    let (sender, receiver) = mpsc::channel(items.clamp(1, Semaphore::MAX_PERMITS));
    let sender = Sender {
        items: sender,
        load: Arc::new(Load {
            bytes: AtomicUsize::new(0),
            messages: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            born: Instant::now(),
        }),
        max_bytes,
        own,
    };
    let receiver = Receiver {
        items: receiver,
        load: Arc::clone(&sender.load),
    };
    (sender, receiver)
}

/// What waits for a service, and what it is at work on.
#[derive(Debug)]
pub(crate) struct Load {
    /// Bytes that wait.
    bytes: AtomicUsize,
    /// Messages that wait.
    messages: AtomicUsize,
    /// Calls that were handed to the handler, and are not answered yet.
    open: AtomicUsize,
    born: Instant,
}

impl Load {
    /// Messages that wait, and calls that are not answered yet.
    pub(crate) fn depth(&self) -> usize {
        self.messages.load(Ordering::Relaxed) + self.open.load(Ordering::Relaxed)
    }

    /// The same in a byte.
    pub(crate) fn told(&self) -> u8 {
        u8::try_from(self.depth()).unwrap_or(u8::MAX)
    }

    /// Whether a call is refused that may be at that depth. Those that come in the same instant by different connections may
    /// all be taken, one of each.
    pub(crate) fn refuses(&self, refuse_at: NonZeroU8) -> bool {
        self.depth() >= limit_at(refuse_at, self.born.elapsed())
    }
}

/// A call that its handler has, until it is answered or given up.
#[derive(Debug)]
pub(crate) struct Opened(Arc<Load>);

impl Opened {
    pub(crate) fn new(load: &Arc<Load>) -> Self {
        load.open.fetch_add(1, Ordering::Relaxed);
        Opened(Arc::clone(load))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Sender<T> {
    items: mpsc::Sender<(T, QueueRoom)>,
    load: Arc<Load>,
    max_bytes: usize,
    own: Arc<Share>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender {
            items: self.items.clone(),
            load: Arc::clone(&self.load),
            max_bytes: self.max_bytes,
            own: Arc::clone(&self.own),
        }
    }
}

impl<T: TakesRoom> Sender<T> {
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
        let room = QueueRoom::new(&self.load, 0, None);
        self.items
            .send((item, room))
            .await
            .map_err(|SendError((item, _))| SendError(item))
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// True where nothing is taken any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    /// True where something waits.
    pub(crate) fn is_busy(&self) -> bool {
        self.items.capacity() < self.items.max_capacity()
    }

    fn room(&self, item: &T) -> Option<QueueRoom> {
        let bytes = item.bytes();
        if bytes == 0 {
            return Some(QueueRoom::new(&self.load, 0, None));
        }
        let held = match item.backlog() {
            0 => None,
            bytes => Some(item.share().unwrap_or(&self.own).take(bytes)?),
        };
        self.load
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                let all = waiting.checked_add(bytes)?;
                (waiting == 0 || all <= self.max_bytes).then_some(all)
            })
            .ok()?;
        Some(QueueRoom::new(&self.load, bytes, held))
    }
}

/// What an item takes of the queue, until it has left it in whatever way.
struct QueueRoom {
    load: Arc<Load>,
    bytes: usize,
    _held: Option<Held>,
}

impl QueueRoom {
    /// Of bytes that are counted already.
    fn new(load: &Arc<Load>, bytes: usize, held: Option<Held>) -> Self {
        load.messages.fetch_add(1, Ordering::Relaxed);
        QueueRoom {
            load: Arc::clone(load),
            bytes,
            _held: held,
        }
    }
}

impl Drop for QueueRoom {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.load.messages.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Receiver<T> {
    items: mpsc::Receiver<(T, QueueRoom)>,
    load: Arc<Load>,
}

impl<T> Receiver<T> {
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

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

    impl TakesRoom for usize {
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
    fn a_queue_is_as_deep_as_what_waits_and_what_is_not_answered() {
        let (sender, mut receiver) = channel(100, usize::MAX, unbounded());
        let load = Arc::clone(sender.load());
        sender.try_send(0).unwrap();
        sender.try_send(5).unwrap();
        assert_eq!(load.depth(), 2);
        receiver.try_recv().unwrap();
        let opened = Opened::new(receiver.load());
        assert_eq!((load.depth(), load.told()), (2, 2));
        drop(opened);
        assert_eq!(load.depth(), 1);
        // Young as it is, it refuses from one on, whatever the caller named.
        assert!(load.refuses(NonZeroU8::MAX));
        drop(receiver);
        drop(sender);
        assert_eq!(load.depth(), 0);
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
