use std::cell::Cell;
use std::future::poll_fn;
use std::hash::Hasher;
use std::sync::atomic::AtomicBool;
use std::task::Wake;

use super::*;

impl Weigh for u64 {
    fn bytes(&self) -> usize {
        *self as usize
    }
}

impl Weigh for Arc<u64> {}

const ROOMY: Bounds = Bounds {
    messages: 1_024,
    bytes: usize::MAX,
};

fn say(fanout: &Fanout<&'static str, u64>, name: &'static str, message: u64) {
    fanout.publish(&name, None, || message);
}

#[test]
fn each_reader_of_a_name_hears_all_in_order_and_no_other_name() {
    let fanout = Fanout::new(ROOMY);
    let mut readers = [fanout.subscribe("a"), fanout.subscribe("a")];
    let mut other = fanout.subscribe("b");
    (0..100).for_each(|number| say(&fanout, "a", number));
    for reader in &mut readers {
        for number in 0..100 {
            assert_eq!(reader.try_next(), Some(Heard::Message(number)));
        }
        assert_eq!(reader.try_next(), None);
    }
    assert_eq!(other.try_next(), None);
}

#[test]
fn the_one_that_speaks_is_left_out_and_nobody_else() {
    let fanout = Fanout::new(ROOMY);
    let mut readers = [(); 3].map(|()| fanout.subscribe("a"));
    let speaker = readers[1].id();
    fanout.publish(&"a", Some(speaker), || 7);
    let heard = readers.each_mut().map(Reader::try_next);
    assert_eq!(
        heard,
        [Some(Heard::Message(7)), None, Some(Heard::Message(7))]
    );
    // It is no reader of that name.
    let mut other = fanout.subscribe("b");
    fanout.publish(&"b", Some(speaker), || 8);
    assert_eq!(other.try_next(), Some(Heard::Message(8)));
}

#[test]
fn what_is_too_much_in_messages_costs_the_oldest_and_is_counted() {
    let fanout = Fanout::new(Bounds {
        messages: 10,
        bytes: usize::MAX,
    });
    let mut slow = fanout.subscribe("a");
    (0..25).for_each(|number| say(&fanout, "a", number));
    assert_eq!(slow.try_next(), Some(Heard::Lagged(15)));
    for number in 15..25 {
        assert_eq!(slow.try_next(), Some(Heard::Message(number)));
    }
    assert_eq!(slow.try_next(), None);
}

#[test]
fn what_is_too_much_in_bytes_costs_the_oldest_and_one_message_always_fits() {
    let fanout = Fanout::new(Bounds {
        messages: 1_000,
        bytes: 100,
    });
    let mut slow = fanout.subscribe("a");
    // Each is as long as its number.
    (0..3).for_each(|_| say(&fanout, "a", 40));
    assert_eq!(slow.try_next(), Some(Heard::Lagged(1)));
    say(&fanout, "a", 20);
    for bytes in [40, 40, 20] {
        assert_eq!(slow.try_next(), Some(Heard::Message(bytes)));
    }
    // More than all, and then what does not fit beside it.
    say(&fanout, "a", 101);
    say(&fanout, "a", 1);
    assert_eq!(slow.try_next(), Some(Heard::Lagged(1)));
    assert_eq!(slow.try_next(), Some(Heard::Message(1)));
    say(&fanout, "a", 101);
    assert_eq!(slow.try_next(), Some(Heard::Message(101)));
    assert_eq!(lock(&slow.queue.state).bytes, 0);
}

#[test]
fn nothing_is_kept_for_a_name_whose_last_reader_has_gone() {
    let fanout = Fanout::new(ROOMY);
    let names: Vec<String> = (0..10_000).map(|name| name.to_string()).collect();
    let mut readers: Vec<_> = names
        .iter()
        .flat_map(|name| [0, 1].map(|_| fanout.subscribe(name.clone())))
        .collect();
    assert_eq!(fanout.names(), 10_000);
    // Every second one, which is one of each name: nobody's place is mixed up.
    let mut at = 0;
    readers.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    for name in &names {
        fanout.publish(name, None, || 1_u64);
    }
    for reader in &mut readers {
        assert_eq!(reader.try_next(), Some(Heard::Message(1)));
    }
    drop(readers);
    assert_eq!(fanout.names(), 0);
    let groups = lock(&fanout.names.groups);
    let capacity = groups.as_ref().map_or(0, HashMap::capacity);
    assert!(capacity < 200, "{capacity}");
}

#[test]
fn a_thousand_readers_of_one_name_leave_in_any_order() {
    let fanout = Fanout::new(ROOMY);
    let mut readers: Vec<_> = (0..1_000).map(|_| fanout.subscribe("a")).collect();
    let mut at: usize = 7;
    while !readers.is_empty() {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) % readers.len();
        drop(readers.swap_remove(at));
        say(&fanout, "a", 1);
        for reader in &mut readers {
            assert_eq!(reader.try_next(), Some(Heard::Message(1)));
            assert_eq!(reader.try_next(), None);
        }
    }
    assert_eq!(fanout.names(), 0);
}

#[test]
fn a_burst_that_was_read_gives_its_memory_back() {
    let fanout = Fanout::new(ROOMY);
    let mut reader = fanout.subscribe("a");
    (0..1_000).for_each(|number| say(&fanout, "a", number));
    while reader.try_next().is_some() {}
    assert!(lock(&reader.queue.state).waiting.capacity() <= KEPT_CAPACITY);
}

#[tokio::test]
async fn the_end_comes_after_what_waits_and_at_once_for_who_comes_later() {
    let fanout = Fanout::new(ROOMY);
    let mut reader = fanout.subscribe("a");
    let mut waiting = fanout.subscribe("b");
    let waits = tokio::spawn(async move { poll_fn(|cx| waiting.poll_next(cx)).await });
    say(&fanout, "a", 1);
    fanout.close();
    say(&fanout, "a", 2);
    let mut later = fanout.subscribe("a");
    assert_eq!(
        poll_fn(|cx| reader.poll_next(cx)).await,
        Some(Heard::Message(1))
    );
    assert_eq!(poll_fn(|cx| reader.poll_next(cx)).await, None);
    assert_eq!(poll_fn(|cx| later.poll_next(cx)).await, None);
    assert_eq!(waits.await.unwrap(), None);
}

/// Does something of its own when it is woken: a runtime that has ended drops what it was to run.
struct Rude(Mutex<Option<Box<dyn FnOnce() + Send>>>, AtomicBool);

impl Wake for Rude {
    fn wake(self: Arc<Self>) {
        let rude = lock(&self.0).take();
        if let Some(rude) = rude {
            rude();
            self.1.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn whoever_is_woken_may_subscribe_speak_and_go() {
    let fanout = Arc::new(Fanout::new(ROOMY));
    let mut reader = fanout.subscribe("a");
    let own = Arc::clone(&fanout);
    let doomed = fanout.subscribe("a");
    let rude = Arc::new(Rude(
        Mutex::new(Some(Box::new(move || {
            drop(doomed);
            let mut another = own.subscribe("a");
            say(&own, "a", 2);
            assert_eq!(another.try_next(), Some(Heard::Message(2)));
        }))),
        AtomicBool::new(false),
    ));
    let waker = Waker::from(Arc::clone(&rude));
    assert!(
        reader
            .poll_next(&mut Context::from_waker(&waker))
            .is_pending()
    );
    say(&fanout, "a", 1);
    assert!(rude.1.load(Ordering::SeqCst));
    assert_eq!(reader.try_next(), Some(Heard::Message(1)));
    assert_eq!(reader.try_next(), Some(Heard::Message(2)));
}

thread_local! {
    static COMPARED: Cell<usize> = const { Cell::new(0) };
}

/// A name that counts how often it is looked at.
#[derive(Clone)]
struct Counted(u64);

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        COMPARED.set(COMPARED.get() + 1);
        self.0 == other.0
    }
}

impl Eq for Counted {}

impl Hash for Counted {
    fn hash<H: Hasher>(&self, state: &mut H) {
        COMPARED.set(COMPARED.get() + 1);
        self.0.hash(state);
    }
}

#[test]
fn subscribing_looks_at_as_many_names_among_100_000_as_among_10() {
    for others in [10, 100_000] {
        let fanout: Fanout<Counted, u64> = Fanout::new(ROOMY);
        let readers: Vec<_> = (0..others)
            .map(|name| fanout.subscribe(Counted(name)))
            .collect();
        // Makes room, if this is where the map is full.
        drop(fanout.subscribe(Counted(others)));
        COMPARED.set(0);
        for round in 0..1_000 {
            drop(fanout.subscribe(Counted(others + round)));
        }
        let looked_at = COMPARED.get();
        assert!(looked_at <= 8 * 1_000, "{looked_at} with {others} others");
        drop(readers);
    }
}

#[test]
fn readers_that_come_and_go_while_many_speak_miss_nothing_in_between() {
    const ROUNDS: u64 = 2_000;
    let fanout: Fanout<&str, Arc<u64>> = Fanout::new(Bounds {
        messages: usize::MAX,
        bytes: usize::MAX,
    });
    std::thread::scope(|scope| {
        let speaker = scope.spawn(|| {
            for number in 0..ROUNDS * 10 {
                fanout.publish(&"a", None, || Arc::new(number));
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let mut reader = fanout.subscribe("a");
                    let mut last = None;
                    for _ in 0..round % 5 {
                        if let Some(Heard::Message(number)) = reader.try_next() {
                            assert!(last.is_none_or(|last| last + 1 == *number));
                            last = Some(*number);
                        }
                    }
                }
            });
        }
        speaker.join().unwrap();
    });
    assert_eq!(fanout.names(), 0);
}
