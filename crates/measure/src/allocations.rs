//! Allocations of this thread so far, where the counting allocator is the process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many allocations it has made.
    pub count: u64,
    /// The bytes of all of them.
    pub bytes: u64,
    /// The bytes of all of them, less those that it has given back.
    pub live: i64,
    /// The same with what the C library's allocator adds to each.
    pub heap: i64,
}

thread_local! {
    static TALLY: Cell<Tally> = const {
        Cell::new(Tally { count: 0, bytes: 0, live: 0, heap: 0 })
    };
}

/// The system's allocator, counting for each thread.
pub struct Counting;

#[expect(unsafe_code, reason = "an allocator is one")]
// Safety: all work is the system allocator's; counting touches a cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // Safety: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        went(layout.size());
        // Safety: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        went(layout.size());
        came(size);
        // Safety: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn came(bytes: usize) {
    TALLY.with(|tally| {
        let before = tally.get();
        tally.set(Tally {
            count: before.count + 1,
            bytes: before.bytes + bytes as u64,
            live: before.live + bytes as i64,
            heap: before.heap + on_the_heap(bytes),
        });
    });
}

fn went(bytes: usize) {
    TALLY.with(|tally| {
        let before = tally.get();
        tally.set(Tally {
            live: before.live - bytes as i64,
            heap: before.heap - on_the_heap(bytes),
            ..before
        });
    });
}

/// What the C library takes on 64-bit Linux: eight bytes of its own, sixteen at a time, thirty-two at least.
fn on_the_heap(bytes: usize) -> i64 {
    (bytes + 8).next_multiple_of(16).max(32) as i64
}

/// How many this thread has made.
pub fn count() -> u64 {
    tally().count
}

/// All that is counted of this thread.
pub fn tally() -> Tally {
    TALLY.with(Cell::get)
}
