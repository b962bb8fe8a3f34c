//! What subscriptions cost, what they leave behind, and how else they are read.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::Pin;

use futures_core::Stream;
use keydispatch::testkit::MemoryNetwork;
use keydispatch::{MemberChange, NewService, Node, ServiceEvent, TopicEvent, TopicSubscription};

mod support;

use support::{describe, start_all};

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// Counts the bytes that a thread has taken and not given back.
struct Counting;

// SAFETY: it does what the system's allocator does, and counts beside that.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get() + layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as isize);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

async fn alone() -> Node {
    let network = MemoryNetwork::new();
    describe(&network, "a", &[]).start().await.unwrap()
}

/// Bytes that this thread holds more of afterwards.
fn held_more<T>(work: impl FnOnce() -> T) -> (isize, T) {
    let before = HELD.get();
    let done = work();
    (HELD.get() - before, done)
}

#[tokio::test]
async fn a_subscription_gives_back_all_that_it_took() {
    const MANY: usize = 5_000;
    let node = alone().await;
    let (held, ()) = held_more(|| {
        for at in 0..MANY {
            drop(node.registry().subscribe(&format!("type-{at}")).unwrap());
            drop(node.pubsub().subscribe(&format!("topic-{at}")).unwrap());
            drop(node.subscribe_members());
        }
        let topics = (0..MANY).map(|at| node.pubsub().subscribe(&format!("topic-{at}")));
        drop(topics.collect::<Vec<_>>());
        let types = (0..MANY).map(|at| node.registry().subscribe(&format!("type-{at}")));
        drop(types.collect::<Vec<_>>());
    });
    assert!(held < 32 * 1024, "{held} bytes");
}

#[tokio::test]
async fn a_quiet_subscription_takes_less_than_2_kb() {
    const MANY: usize = 5_000;
    let node = alone().await;
    let topic = |at: usize| node.pubsub().subscribe(&format!("topic-{at}")).unwrap();
    let service = |at: usize| node.registry().subscribe(&format!("type-{at}")).unwrap();
    let (held, topics) = held_more(|| (0..MANY).map(topic).collect::<Vec<_>>());
    assert!(held < 2_000 * MANY as isize, "{held} bytes of topics");
    let (held, _services) = held_more(|| (0..MANY).map(service).collect::<Vec<_>>());
    assert!(held < 2_000 * MANY as isize, "{held} bytes of types");
    // Quiet again after a burst.
    let before = HELD.get();
    let mut quiet = Vec::new();
    for mut topic in topics {
        let name = topic.topic().as_str().to_owned();
        for _ in 0..100 {
            node.pubsub().local_broadcast(&name, "news").unwrap();
        }
        for _ in 0..100 {
            topic.next().await.unwrap();
        }
        quiet.push(topic);
    }
    let held = HELD.get() - before;
    assert!(held < 1_000 * MANY as isize, "{held} bytes after a burst");
}

/// What a stream gives now, if there is something.
fn now<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match Pin::new(stream).poll_next(&mut cx) {
        std::task::Poll::Ready(next) => next,
        std::task::Poll::Pending => None,
    }
}

/// The next of a stream.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

#[tokio::test]
async fn the_three_subscriptions_are_streams() {
    let network = MemoryNetwork::new();
    let node = describe(&network, "a", &[]).start().await.unwrap();
    let mut members = node.subscribe_members();
    let other = describe(&network, "b", &["a:1"]).start().await.unwrap();
    assert!(
        matches!(next(&mut members).await, Some(MemberChange::Up { node, .. }) if node.name.as_str() == "b")
    );
    other.leave().await.unwrap();
    assert!(matches!(
        next(&mut members).await,
        Some(MemberChange::Left { .. })
    ));
    let mut services = node.registry().subscribe("uploader").unwrap();
    assert!(matches!(
        next(&mut services).await,
        Some(ServiceEvent::Current(_))
    ));
    let endpoint = NewService::endpoint("uploader", "host:1");
    node.registry().add_service(endpoint).await.unwrap();
    assert!(matches!(
        next(&mut services).await,
        Some(ServiceEvent::Joined(_))
    ));
    let mut topic = node.pubsub().subscribe("news").unwrap();
    node.pubsub().broadcast("news", "x").unwrap();
    assert!(matches!(
        next(&mut topic).await,
        Some(TopicEvent::Message(_))
    ));
    node.leave().await.unwrap();
    assert!(next(&mut members).await.is_none());
    // Leaving takes the keys away first.
    assert!(matches!(
        next(&mut services).await,
        Some(ServiceEvent::Updated { .. })
    ));
    assert!(next(&mut services).await.is_none());
    assert!(next(&mut topic).await.is_none());
}

/// What a subscription hears up to `the end`.
async fn heard(subscription: &mut TopicSubscription) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let Some(TopicEvent::Message(message)) = subscription.next().await else {
            panic!("a message");
        };
        let text = String::from_utf8(message.payload.to_vec()).unwrap();
        if text == "the end" {
            return heard;
        }
        heard.push(text);
    }
}

#[tokio::test]
async fn a_broadcast_from_a_subscription_reaches_all_others_here_and_elsewhere() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    let subscribe = |node: &Node| node.pubsub().subscribe("news").unwrap();
    let (mut speaker, mut neighbour, mut far) = (subscribe(&a), subscribe(&a), subscribe(&b));
    let pubsub = a.pubsub();
    let id = speaker.id();
    assert_ne!(id, neighbour.id());
    assert_ne!(id, far.id());
    assert_eq!(
        pubsub.broadcast_from(id, "news", "to all others").unwrap(),
        1
    );
    pubsub
        .local_broadcast_from(id, "news", "to the neighbour")
        .unwrap();
    // Of another topic, and of another node: nobody is left out.
    let elsewhere = a.pubsub().subscribe("sport").unwrap();
    pubsub
        .broadcast_from(elsewhere.id(), "news", "to all")
        .unwrap();
    pubsub
        .broadcast_from(far.id(), "news", "to all, too")
        .unwrap();
    pubsub.broadcast("news", "the end").unwrap();
    assert_eq!(heard(&mut speaker).await, ["to all", "to all, too"]);
    let all = ["to all others", "to the neighbour", "to all", "to all, too"];
    assert_eq!(heard(&mut neighbour).await, all);
    assert_eq!(
        heard(&mut far).await,
        ["to all others", "to all", "to all, too"]
    );
}

#[tokio::test]
async fn what_waits_for_a_subscription_is_bounded_in_bytes_and_the_oldest_goes() {
    let network = MemoryNetwork::new();
    let node = describe(&network, "a", &[]).topic_bytes(10_000);
    let node = node.start().await.unwrap();
    let mut slow = node.pubsub().subscribe("news").unwrap();
    let mut other = node.pubsub().subscribe("sport").unwrap();
    for _ in 0..25 {
        node.pubsub().broadcast("news", vec![7; 1_000]).unwrap();
    }
    node.pubsub().broadcast("sport", vec![7; 20_000]).unwrap();
    assert_eq!(slow.next().await, Some(TopicEvent::Lagged { missed: 15 }));
    for _ in 0..10 {
        assert!(matches!(slow.next().await, Some(TopicEvent::Message(_))));
    }
    assert!(now(&mut slow).is_none());
    // A single message is never too much.
    match other.next().await {
        Some(TopicEvent::Message(message)) => assert_eq!(message.payload.len(), 20_000),
        other => panic!("{other:?}"),
    }
}
