//! What is to happen, ordered by time and then by when it was scheduled: a seed fixes the whole order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use keydispatch_core::Instant;

/// See the module.
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    sequence: u64,
}

struct Entry<T> {
    at: Instant,
    sequence: u64,
    event: T,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Queue {
            heap: BinaryHeap::new(),
            sequence: 0,
        }
    }

    pub(crate) fn push(&mut self, at: Instant, event: T) {
        self.sequence += 1;
        self.heap.push(Entry {
            at,
            sequence: self.sequence,
            event,
        });
    }

    /// The next event, if it happens no later than `until`.
    pub(crate) fn pop(&mut self, until: Instant) -> Option<(Instant, T)> {
        if self.heap.peek()?.at > until {
            return None;
        }
        let entry = self.heap.pop()?;
        Some((entry.at, entry.event))
    }
}

impl<T> Entry<T> {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.sequence)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap pops its greatest.
        other.key().cmp(&self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_one_moment_come_in_the_order_they_were_scheduled() {
        let mut queue = Queue::new();
        let (early, late) = (Instant::from_micros(1), Instant::from_micros(2));
        queue.push(late, 'c');
        queue.push(early, 'a');
        queue.push(early, 'b');
        let order: Vec<char> = std::iter::from_fn(|| queue.pop(late))
            .map(|(_, event)| event)
            .collect();
        assert_eq!(order, ['a', 'b', 'c']);
    }
}
