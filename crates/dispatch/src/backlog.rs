//! Bytes that wait on a node, in mailboxes, for subscriptions to topics, as replies and as messages to others: how many may
//! wait in all, and how many of them because of one peer.
//!
//! Rule: *dynamic thresholds* (Choudhury and Hahne, 1998). Whoever shares the room may take as much as is still free. One
//! peer alone gets half of all, two a third each, and a newcomer always finds room: nobody is crowded out, and nothing is
//! set aside for those who are quiet. Without shares, one peer that sends faster than it is served would have all calls of
//! all others refused.
//!
//! What is refused fails as overloaded, or is dropped and counted as where a mailbox is full. Where nothing at all waits,
//! one message is always taken, however long.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use keydispatch_core::NodeName;

use crate::mutex::Mutex;

/// The largest default, in bytes.
const MAX_DEFAULT_BYTES: usize = 1024 * 1024 * 1024;

/// The default where nothing says how much memory there is, in bytes.
const DEFAULT_BYTES: usize = 256 * 1024 * 1024;

/// What may wait by default: a quarter of the memory that this process may use, and at most 1 GiB.
pub(crate) fn default_bytes() -> usize {
    default_of(memory())
}

fn default_of(memory: Option<usize>) -> usize {
    memory.map_or(DEFAULT_BYTES, |bytes| (bytes / 4).min(MAX_DEFAULT_BYTES))
}

/// The memory of this machine, or of the control group that this process is in where that is less.
fn memory() -> Option<usize> {
    // Version 2, as seen from within its namespace, then version 1.
    let groups = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let limits = groups
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let total = machine.and_then(|text| total_of(&text));
    limits.chain(total).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Backlog {
    limit: usize,
    waiting: AtomicUsize,
    refused: AtomicU64,
    /// Of those whose messages come over connections, while there are any.
    peers: Mutex<HashMap<NodeName, Weak<Share>>>,
}

impl Backlog {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Backlog {
            limit,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            peers: Mutex::default(),
        })
    }

    /// A share of its own.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share {
            backlog: Arc::clone(self),
            waiting: AtomicUsize::new(0),
        })
    }

    /// The one share of all connections from one peer.
    pub(crate) fn share_of(self: &Arc<Self>, peer: &NodeName) -> Arc<Share> {
        let mut peers = self.peers.lock();
        if let Some(share) = peers.get(peer).and_then(Weak::upgrade) {
            return share;
        }
        peers.retain(|_, share| share.strong_count() > 0);
        let share = self.share();
        peers.insert(peer.clone(), Arc::downgrade(&share));
        share
    }

    /// Bytes that may wait.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Messages for which there was no room.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What one of those who share the room takes of it.
#[derive(Debug)]
pub(crate) struct Share {
    backlog: Arc<Backlog>,
    waiting: AtomicUsize,
}

impl Share {
    /// Takes so many bytes until what is returned is dropped; none where there is no room for them.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.add(bytes).then(|| Held {
            share: Arc::clone(self),
            bytes,
        })
    }

    /// The same, for whoever keeps count: [`give_back`](Self::give_back) ends it.
    pub(crate) fn add(&self, bytes: usize) -> bool {
        let (all, mine) = self.force(bytes);
        let others = all - bytes;
        let fits = others == 0 || mine <= self.backlog.limit.saturating_sub(others);
        if !fits {
            self.give_back(bytes);
            self.backlog.refused.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// Takes what cannot be refused; returns what waits in all, and of this share.
    pub(crate) fn force(&self, bytes: usize) -> (usize, usize) {
        // Counted first and looked at afterwards: two at once may both be refused where one would fit, and never both fit
        // where one does.
        let all = self.backlog.waiting.fetch_add(bytes, Ordering::Relaxed);
        let mine = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        (all.wrapping_add(bytes), mine.wrapping_add(bytes))
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        self.backlog.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes that are waiting, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    share: Arc<Share>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a share can take so many bytes, all of which are held until the end.
    fn fill(share: &Arc<Share>, bytes: usize, into: &mut Vec<Held>) -> usize {
        let before = into.len();
        while let Some(held) = share.take(bytes) {
            into.push(held);
        }
        into.len() - before
    }

    #[test]
    fn one_alone_gets_half_and_whoever_comes_later_half_of_what_is_left() {
        let backlog = Backlog::new(1_200);
        let mut held = Vec::new();
        let shares: Vec<Arc<Share>> = (0..3).map(|_| backlog.share()).collect();
        assert_eq!(fill(&shares[0], 1, &mut held), 600);
        assert_eq!(fill(&shares[1], 1, &mut held), 300);
        assert_eq!(fill(&shares[2], 1, &mut held), 150);
        assert_eq!(backlog.waiting(), 1_050);
        assert_eq!(backlog.refused(), 3);
        drop(held);
        assert_eq!(backlog.waiting(), 0);
        assert_eq!(shares[0].waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_longer_than_all_of_it_is_taken_where_nothing_waits() {
        let backlog = Backlog::new(10);
        let share = backlog.share();
        let held = share.take(100);
        assert!(held.is_some());
        assert!(share.take(1).is_none());
        assert!(backlog.share().take(1).is_none());
        drop(held);
        assert!(share.take(1).is_some());
    }

    #[test]
    fn the_connections_of_one_peer_have_one_share_for_as_long_as_there_are_any() {
        let backlog = Backlog::new(100);
        let name = NodeName::try_new("a").unwrap();
        let (one, other) = (backlog.share_of(&name), backlog.share_of(&name));
        assert!(Arc::ptr_eq(&one, &other));
        let another = backlog.share_of(&NodeName::try_new("b").unwrap());
        assert!(!Arc::ptr_eq(&one, &another));
        drop((one, other));
        backlog.share_of(&NodeName::try_new("c").unwrap());
        assert!(!backlog.peers.lock().contains_key(&name));
    }

    #[test]
    fn shares_that_are_taken_and_given_back_on_many_threads_never_exceed_the_limit_and_end_at_nothing()
     {
        const LIMIT: usize = 10_000;
        let backlog = Backlog::new(LIMIT);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let share = backlog.share();
                scope.spawn(move || {
                    let mut held = std::collections::VecDeque::new();
                    for turn in 0..20_000_usize {
                        held.extend(share.take((turn * 7 + thread) % 900));
                        if turn % 3 == 0 {
                            held.pop_front();
                        }
                    }
                    let mine: usize = held.iter().map(|held| held.bytes).sum();
                    assert!(mine <= LIMIT, "{mine}");
                });
            }
        });
        assert_eq!(backlog.waiting(), 0);
    }

    #[test]
    fn the_default_is_a_quarter_of_the_memory_and_at_most_a_gibibyte() {
        assert_eq!(
            total_of("MemTotal:        8138480 kB\nMemFree: 1 kB"),
            Some(8_138_480 * 1024)
        );
        assert_eq!(total_of("nothing"), None);
        assert_eq!(default_of(Some(400)), 100);
        assert_eq!(default_of(Some(usize::MAX)), MAX_DEFAULT_BYTES);
        assert_eq!(default_of(None), DEFAULT_BYTES);
        assert!(default_bytes() > 0);
    }
}
