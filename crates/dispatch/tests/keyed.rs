//! States by key: they go with their keys when instances come and go, and messages follow them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    CallError, DrainError, KeyedEvent, KeyedHandle, KeyedOptions, Node, NodeBuilder, Registration,
    ServedKeyed, ServiceUpdate,
};
use tokio::task::JoinHandle;

mod keyed_support;
mod support;

use keyed_support::{Ask, Rooms, RoomsOf, Told};
use support::{PATIENCE, describe, eventually, members, start_all};

const KEYS: u64 = 300;

async fn serve(node: &Node) -> ServedKeyed<Rooms> {
    node.serve_keyed(Rooms::default()).await.unwrap()
}

/// Callers that count each key up, and check that it goes up by one each time.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    callers: Vec<JoinHandle<BTreeMap<u64, u64>>>,
}

impl Load {
    /// Keys are a caller's own, so that each answer can be foretold.
    fn start(rooms: &KeyedHandle<RoomsOf>, callers: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicU64::new(0));
        let tasks = (0..callers).map(|caller| {
            let (rooms, stop, made) = (
                rooms.timeout(PATIENCE),
                Arc::clone(&stop),
                Arc::clone(&made),
            );
            tokio::spawn(async move {
                let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
                let keys: Vec<u64> = (0..KEYS).filter(|key| key % callers == caller).collect();
                for key in keys.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let told = rooms.call(*key, Ask::Count).await.unwrap();
                    let count = counts.entry(*key).or_default();
                    *count += 1;
                    assert_eq!(told, Told::Count(*count), "key {key}");
                    made.fetch_add(1, Ordering::Relaxed);
                }
                counts
            })
        });
        let callers = tasks.collect();
        Load {
            stop,
            made,
            callers,
        }
    }

    /// Waits until so many more calls were answered.
    async fn goes_on(&self, more: u64) {
        let until = self.made.load(Ordering::Relaxed) + more;
        eventually("calls go on", async || {
            if self.callers.iter().any(JoinHandle::is_finished) {
                panic!("a caller has failed");
            }
            match self.made.load(Ordering::Relaxed) {
                made if made >= until => Ok(()),
                made => Err(made.to_string()),
            }
        })
        .await;
    }

    async fn finish(self) -> BTreeMap<u64, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for caller in self.callers {
            all.extend(caller.await.unwrap());
        }
        all
    }
}

/// Every key has what was counted.
async fn check(rooms: &KeyedHandle<RoomsOf>, counts: &BTreeMap<u64, u64>) {
    for (key, count) in counts {
        let told = rooms.call(*key, Ask::Read).await.unwrap();
        assert_eq!(told, Told::Count(*count), "key {key}");
    }
}

/// Waits until that many keys are at each instance in all, and at none twice.
async fn settled(served: &[&ServedKeyed<Rooms>], keys: usize) {
    eventually("the states are where they belong", async || {
        let all: Vec<usize> = served.iter().map(|served| served.keys()).collect();
        if all.iter().sum::<usize>() == keys && all.iter().all(|count| *count > 0) {
            Ok(())
        } else {
            Err(format!("{all:?}"))
        }
    })
    .await;
}

/// Rule of these tests: a planned change is no death. Where a machine is so busy that a thread does not run for a second, who is
/// silent that long is taken for dead, and what it held is begun anew: that is promised, and not what is tried here.
fn patient(node: NodeBuilder) -> NodeBuilder {
    node.down_period(Duration::from_secs(10))
}

#[tokio::test]
async fn a_rolling_leave_and_return_of_three_nodes_loses_no_state_and_fails_no_call() {
    let network = MemoryNetwork::new();
    let [stays, a, b, c] = start_all(&network, ["s", "a", "b", "c"], patient).await;
    let mut nodes = vec![a, b, c];
    for node in &nodes {
        serve(node).await;
    }
    let rooms = stays.keyed::<RoomsOf>();
    rooms.wait_online(3).await.unwrap();
    let load = Load::start(&rooms, 8);
    load.goes_on(KEYS * 2).await;
    for name in ["a", "b", "c"] {
        let leaving = nodes.remove(0);
        leaving.leave().await.unwrap();
        load.goes_on(100).await;
        let again = patient(describe(&network, name, &["s:1"]))
            .start()
            .await
            .unwrap();
        serve(&again).await;
        nodes.push(again);
        rooms.wait_online(3).await.unwrap();
        load.goes_on(100).await;
    }
    let counts = load.finish().await;
    check(&rooms, &counts).await;
    assert_eq!(counts.len() as u64, KEYS);
    drop((nodes, stays));
}

#[tokio::test]
async fn scaling_up_and_down_again_loses_no_state_and_fails_no_call() {
    let network = MemoryNetwork::new();
    let [stays, a, b, c] = start_all(&network, ["s", "a", "b", "c"], patient).await;
    let mut served = Vec::new();
    for node in [&a, &b, &c] {
        served.push(serve(node).await);
    }
    let rooms = stays.keyed::<RoomsOf>();
    rooms.wait_online(3).await.unwrap();
    let load = Load::start(&rooms, 8);
    load.goes_on(KEYS).await;
    let mut more = Vec::new();
    for name in ["d", "e"] {
        let node = patient(describe(&network, name, &["s:1"]))
            .start()
            .await
            .unwrap();
        served.push(serve(&node).await);
        more.push(node);
    }
    rooms.wait_online(5).await.unwrap();
    settled(&served.iter().collect::<Vec<_>>(), KEYS as usize).await;
    load.goes_on(KEYS).await;
    for node in more {
        node.leave().await.unwrap();
    }
    load.goes_on(KEYS).await;
    let counts = load.finish().await;
    check(&rooms, &counts).await;
    settled(&served.iter().take(3).collect::<Vec<_>>(), KEYS as usize).await;
    drop((a, b, c, stays));
}

#[tokio::test]
async fn another_weight_a_drain_a_disable_and_a_stop_lose_no_state_and_fail_no_call() {
    let network = MemoryNetwork::new();
    let [stays, a, b] = start_all(&network, ["s", "a", "b"], patient).await;
    let (on_a, on_b) = (serve(&a).await, serve(&b).await);
    let rooms = stays.keyed::<RoomsOf>();
    rooms.wait_online(2).await.unwrap();
    let load = Load::start(&rooms, 8);
    load.goes_on(KEYS).await;
    // What is counted here has to be at rest: while a share of its keys is still on its way to the other one, it has more.
    eventually("every state is at the owner of its key", async || {
        let owned = (0..KEYS).filter(|key| rooms.find(*key).unwrap().node().as_str() == "a");
        match (owned.count(), on_a.keys()) {
            (owned, has) if owned == has => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    let before = on_a.keys();
    let heavier = ServiceUpdate::new().weight(400);
    on_a.registration().update(heavier).await.unwrap();
    eventually("the heavier one has more", async || match on_a.keys() {
        more if more > before => Ok(()),
        same => Err(same.to_string()),
    })
    .await;
    load.goes_on(KEYS).await;
    let mut registration: Registration = on_a.registration();
    registration.disable().await.unwrap();
    eventually("all of it went", async || match on_a.keys() {
        0 => Ok(()),
        left => Err(left.to_string()),
    })
    .await;
    load.goes_on(KEYS).await;
    registration.enable().await.unwrap();
    settled(&[&on_a, &on_b], KEYS as usize).await;
    b.drain(PATIENCE).await.unwrap();
    assert_eq!(on_b.keys(), 0);
    load.goes_on(KEYS).await;
    on_b.registration().enable().await.unwrap();
    settled(&[&on_a, &on_b], KEYS as usize).await;
    on_b.stop().await.unwrap();
    load.goes_on(KEYS).await;
    let counts = load.finish().await;
    check(&rooms, &counts).await;
    assert_eq!(on_a.keys() as u64, KEYS);
    drop((a, b, stays));
}

#[tokio::test]
async fn a_death_loses_what_the_dead_had_which_begins_anew_and_nothing_else() {
    let network = MemoryNetwork::new();
    let [stays, a, b, c] = start_all(&network, ["s", "a", "b", "c"], |node| node).await;
    let (on_a, on_b, on_c) = (serve(&a).await, serve(&b).await, serve(&c).await);
    let rooms = stays.keyed::<RoomsOf>().timeout(PATIENCE);
    rooms.wait_online(3).await.unwrap();
    for key in 0..KEYS {
        rooms.call(key, Ask::Count).await.unwrap();
    }
    settled(&[&on_a, &on_b, &on_c], KEYS as usize).await;
    let of_the_dead: BTreeSet<u64> = (0..KEYS)
        .filter(|key| rooms.find(*key).unwrap().node().as_str() == "c")
        .collect();
    let mut told = (on_a.events(), on_b.events());
    drop((on_c, c));
    members(&stays, 2).await;
    for key in 0..KEYS {
        let expected = if of_the_dead.contains(&key) { 1 } else { 2 };
        let count = rooms.call(key, Ask::Count).await.unwrap();
        assert_eq!(count, Told::Count(expected), "key {key}");
    }
    let mut anew = 0;
    for events in [&mut told.0, &mut told.1] {
        while let Some(event) = events.try_next() {
            if let KeyedEvent::Anew { slots } = event {
                anew += slots;
            }
        }
    }
    assert!(anew > 0);
    drop((a, b, stays));
}

#[tokio::test]
async fn the_last_one_that_leaves_says_how_many_keys_had_nobody_to_go_to() {
    let network = MemoryNetwork::new();
    let [a] = start_all(&network, ["a"], |node| node).await;
    let served = serve(&a).await;
    let rooms = a.keyed::<RoomsOf>();
    for key in 0..10_u64 {
        rooms.call(key, Ask::Count).await.unwrap();
    }
    assert_eq!(served.keys(), 10);
    match a.leave().await {
        Err(DrainError::Unfinished(left)) => assert_eq!(left.keys, 10, "{left}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn states_that_cannot_be_given_stay_are_served_on_and_keep_a_drain_from_its_end() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| {
        node.drain_timeout(Duration::from_millis(1_500))
    })
    .await;
    let options = KeyedOptions::new().max_state_bytes(10_000);
    let on_a = a
        .serve_keyed_with(options.clone(), Rooms::default())
        .await
        .unwrap();
    let rooms = b.keyed::<RoomsOf>().timeout(PATIENCE);
    rooms.wait_online(1).await.unwrap();
    rooms.call("unfit", Ask::Unfit).await.unwrap();
    rooms.call("large", Ask::Fill(20_000)).await.unwrap();
    for key in 0..KEYS {
        rooms.call(key, Ask::Count).await.unwrap();
    }
    let events = Mutex::new((on_a.events(), BTreeSet::new()));
    let on_b = b.serve_keyed_with(options, Rooms::default()).await.unwrap();
    rooms.wait_online(2).await.unwrap();
    on_a.registration().disable().await.unwrap();
    let all = eventually("what can go has gone", async || {
        let mut events = events.lock().unwrap();
        let (events, kept) = &mut *events;
        while let Some(event) = events.try_next() {
            if let KeyedEvent::KeptBack { key, why } = event {
                kept.insert((key.to_string(), why));
            }
        }
        match (on_a.keys(), on_b.keys()) {
            (left, gone) if left + gone == KEYS as usize + 2 && left < 20 && kept.len() == 2 => {
                Ok(left)
            }
            other => Err(format!("{other:?} {kept:?}")),
        }
    })
    .await;
    assert!(all >= 2);
    let kept = events.into_inner().unwrap().1;
    assert!(
        kept.iter()
            .any(|(key, why)| key == "unfit" && why.contains("does not encode"))
    );
    assert!(
        kept.iter()
            .any(|(key, why)| key == "large" && why.contains("10000 bytes"))
    );
    // It is served on where it is.
    assert_eq!(
        rooms.call("large", Ask::Count).await.unwrap(),
        Told::Count(1)
    );
    match a.drain(Duration::from_millis(300)).await {
        Err(DrainError::Unfinished(left)) => assert!(left.keys >= 2, "{left}"),
        other => panic!("{other:?}"),
    }
    drop((a, b));
}

#[tokio::test]
async fn a_key_that_does_not_open_fails_its_own_calls_typed_and_no_others() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    let options = KeyedOptions::new().open_timeout(Duration::from_millis(50));
    a.serve_keyed_with(options, Rooms::default()).await.unwrap();
    for rooms in [a.keyed::<RoomsOf>(), b.keyed::<RoomsOf>()] {
        rooms.wait_online(1).await.unwrap();
        for (key, why) in [
            ("fails", "told to fail"),
            ("hangs", "within 50ms"),
            ("panics", "panicked"),
        ] {
            let failed = rooms.call(key, Ask::Count).await.unwrap_err();
            assert!(
                matches!(&failed, CallError::NoState { cause } if cause.contains(why)),
                "{failed:?}"
            );
            assert!(!failed.may_have_run());
        }
        rooms.call("fine", Ask::Count).await.unwrap();
    }
    drop((a, b));
}

#[tokio::test]
async fn a_handler_that_panics_loses_its_own_key_alone() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    let served = serve(&a).await;
    let rooms = b.keyed::<RoomsOf>();
    rooms.wait_online(1).await.unwrap();
    for key in ["x", "y"] {
        rooms.call(key, Ask::Count).await.unwrap();
    }
    let mut events = served.events();
    assert_eq!(rooms.call("x", Ask::Panic).await, Err(CallError::Stopped));
    assert_eq!(rooms.call("x", Ask::Count).await, Ok(Told::Count(1)));
    assert_eq!(rooms.call("y", Ask::Count).await, Ok(Told::Count(2)));
    match events.next().await {
        Some(KeyedEvent::Panicked { key }) => assert_eq!(key.to_string(), "x"),
        other => panic!("{other:?}"),
    }
    assert_eq!(a.stats().await.unwrap().data.key_panics, 1);
    drop((a, b));
}

#[tokio::test]
async fn keys_run_side_by_side_and_one_that_waits_holds_up_no_other_nor_its_move() {
    let network = MemoryNetwork::new();
    let [stays, a] = start_all(&network, ["s", "a"], |node| node).await;
    let on_a = serve(&a).await;
    let rooms = stays.keyed::<RoomsOf>().timeout(PATIENCE);
    rooms.wait_online(1).await.unwrap();
    let gate = on_a_gate(&on_a);
    let slow: Vec<_> = (0..12_u64)
        .map(|key| {
            let rooms = rooms.clone();
            tokio::spawn(async move { rooms.call(("slow", key), Ask::Wait).await })
        })
        .collect();
    eventually("all of them wait", async || match gate.waiting() {
        12 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    for key in 0..KEYS {
        assert_eq!(rooms.call(key, Ask::Count).await, Ok(Told::Count(1)));
    }
    // Half of what there is goes to a second node, but for what is at work.
    let b = describe(&network, "b", &["s:1"]).start().await.unwrap();
    let on_b = serve(&b).await;
    rooms.wait_online(2).await.unwrap();
    settled(&[&on_a, &on_b], KEYS as usize + 12).await;
    let ours: Vec<u64> = (0..KEYS)
        .filter(|key| rooms.find(*key).unwrap().node().as_str() == "b")
        .collect();
    eventually("what is not at work has gone", async || match on_b.keys() {
        gone if gone + 12 >= ours.len() => Ok(()),
        gone => Err(gone.to_string()),
    })
    .await;
    gate.open(12);
    for call in slow {
        assert_eq!(call.await.unwrap(), Ok(Told::Count(1)));
    }
    for key in 0..12_u64 {
        assert_eq!(
            rooms.call(("slow", key), Ask::Read).await,
            Ok(Told::Count(1))
        );
    }
    drop((a, b, stays));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_whose_handler_blocks_its_thread_holds_up_no_other() {
    let network = MemoryNetwork::new();
    let [caller, a] = start_all(&network, ["s", "a"], |node| node).await;
    let served = serve(&a).await;
    let gate = on_a_gate(&served);
    let rooms = caller.keyed::<RoomsOf>().timeout(PATIENCE);
    rooms.wait_online(1).await.unwrap();
    // Some before it and many behind it, all of them at once; and then again, while others still block.
    for round in 1..=2_u64 {
        let blocked = {
            let rooms = rooms.clone();
            tokio::spawn(async move { rooms.call(("blocks", round), Ask::Block).await })
        };
        let others = (0..200_u64).map(|key| {
            let rooms = rooms.clone();
            tokio::spawn(async move { rooms.call(key, Ask::Count).await })
        });
        for call in others.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), Ok(Told::Count(round)));
        }
        eventually("it blocks", async || match gate.waiting() {
            waiting if waiting == round as usize => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        assert!(!blocked.is_finished());
        if round == 2 {
            gate.open(2);
            assert_eq!(blocked.await.unwrap(), Ok(Told::Count(1)));
        }
    }
    drop((a, caller));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_holds_its_thread_after_a_message_to_a_key_holds_up_no_key() {
    let network = MemoryNetwork::new();
    let [caller, a] = start_all(&network, ["s", "a"], |node| node).await;
    let _served = serve(&a).await;
    let rooms = caller.keyed::<RoomsOf>().timeout(PATIENCE);
    rooms.wait_online(1).await.unwrap();
    let release = Arc::new(AtomicBool::new(false));
    for round in 1..=2_u64 {
        let (local, held) = (a.keyed::<RoomsOf>(), Arc::clone(&release));
        let sent = Arc::new(AtomicBool::new(false));
        let said = Arc::clone(&sent);
        let holding = tokio::spawn(async move {
            // A call that was sent, as one of several that are made at once is.
            let mut call = Box::pin(local.call(("holds", round), Ask::Count));
            let at_once = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
            said.store(true, Ordering::SeqCst);
            while !held.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let told = match at_once {
                Poll::Ready(told) => told,
                Poll::Pending => call.await,
            };
            assert_eq!(told, Ok(Told::Count(1)));
        });
        eventually("it holds its thread", async || {
            let sent = sent.load(Ordering::SeqCst);
            sent.then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        for key in 0..200_u64 {
            assert_eq!(rooms.call(key, Ask::Count).await, Ok(Told::Count(round)));
        }
        assert!(!holding.is_finished());
        if round == 2 {
            release.store(true, Ordering::SeqCst);
            holding.await.unwrap();
        }
    }
    drop((a, caller));
}

/// What a runtime that ends is given to run is dropped at once, on the thread that gives it.
#[test]
fn a_runtime_that_ends_while_keys_are_at_work_ends() {
    for round in 0..40 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let network = MemoryNetwork::new();
        let made = Arc::new(AtomicU64::new(0));
        let (node, served) = runtime.block_on(async {
            let [node] = start_all(&network, ["a"], |node| node).await;
            let served = serve(&node).await;
            let rooms = node.keyed::<RoomsOf>();
            rooms.wait_online(1).await.unwrap();
            for caller in 0..16_u64 {
                let (rooms, made) = (rooms.clone(), Arc::clone(&made));
                tokio::spawn(async move {
                    for key in (0..).map(|number| caller * 1_000 + number % 50) {
                        if rooms.call(key, Ask::Count).await.is_err() {
                            break;
                        }
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            eventually("calls are made", async || {
                let made = made.load(Ordering::Relaxed);
                if made > 200 {
                    Ok(())
                } else {
                    Err(made.to_string())
                }
            })
            .await;
            (node, served)
        });
        let (ended, ends) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(runtime);
            let _ = ended.send(());
        });
        let ended = ends.recv_timeout(PATIENCE);
        assert_eq!(ended, Ok(()), "round {round}");
        drop((node, served));
    }
}

fn on_a_gate(served: &ServedKeyed<Rooms>) -> keyed_support::Gate {
    keyed_support::gate_of(served.id())
}

#[tokio::test]
async fn a_key_calls_another_one_of_its_type_and_itself_gets_a_typed_error() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    for node in [&a, &b] {
        let others = Rooms::that_call(node.keyed::<RoomsOf>());
        node.serve_keyed(others).await.unwrap();
    }
    let rooms = a.keyed::<RoomsOf>();
    rooms.wait_online(2).await.unwrap();
    for key in 0..20_u64 {
        let asked = Ask::Other(key + 100);
        assert_eq!(rooms.call(key, asked).await, Ok(Told::Count(1)));
        let itself = rooms.call(key, Ask::Other(key)).await;
        assert_eq!(itself, Ok(Told::CallsItself), "{key}");
    }
    drop((a, b));
}

#[tokio::test]
async fn casts_of_one_caller_to_one_key_arrive_in_order_and_follow_it() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    serve(&a).await;
    let rooms = b.keyed::<RoomsOf>();
    rooms.wait_online(1).await.unwrap();
    for note in 0..500 {
        rooms.cast("notes", note).unwrap();
    }
    let noted = |count: usize| {
        let rooms = rooms.clone();
        async move {
            eventually("all have come", async || {
                match rooms.call("notes", Ask::Notes).await {
                    Ok(Told::Notes(notes)) if notes.len() == count => Ok(notes),
                    other => Err(format!("{other:?}")),
                }
            })
            .await
        }
    };
    let notes = noted(500).await;
    assert!(notes.into_iter().eq(0..500));
    let c = describe(&network, "c", &["a:1"]).start().await.unwrap();
    serve(&c).await;
    for note in 500..1_000 {
        rooms.cast("notes", note).unwrap();
    }
    a.leave().await.unwrap();
    let notes: BTreeSet<u64> = noted(1_000).await.into_iter().collect();
    assert!(notes.into_iter().eq(0..1_000));
    drop((b, c));
}

#[tokio::test]
async fn handles_of_the_other_kind_get_a_typed_error() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    serve(&a).await;
    for node in [&a, &b] {
        node.keyed::<RoomsOf>().wait_online(1).await.unwrap();
        let plain = node.services::<RoomsOf>();
        let refused = plain.call(7, Ask::Read).await.unwrap_err();
        assert!(
            matches!(&refused, CallError::WrongHandle { keyed: true, .. }),
            "{refused:?}"
        );
        assert!(!refused.may_have_run());
        let many = plain.multi_call(7, 2, Ask::Read).await;
        assert!(many.iter().all(|(_, result)| result.is_err()), "{many:?}");
        assert!(plain.cast(7, 7).is_err());
    }
    a.serve(support::Worker::default()).await.unwrap();
    let workers = a.keyed::<support::Workers>();
    let refused = workers.call(7, support::Ask::Notes).await.unwrap_err();
    assert!(
        matches!(refused, CallError::WrongHandle { keyed: false, .. }),
        "{refused:?}"
    );
    drop((a, b));
}

#[tokio::test]
async fn keys_that_nobody_calls_are_closed_and_open_again_with_what_was_kept() {
    let network = MemoryNetwork::new();
    let [a] = start_all(&network, ["a"], |node| node).await;
    let options = KeyedOptions::new().idle_after(Duration::from_millis(100));
    let served = a.serve_keyed_with(options, Rooms::default()).await.unwrap();
    let rooms = a.keyed::<RoomsOf>();
    rooms.call("kept", Ask::Count).await.unwrap();
    eventually("it is closed", async || match served.keys() {
        0 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    // What was closed was put aside by the service, and is opened from there.
    assert_eq!(rooms.call("kept", Ask::Count).await, Ok(Told::Count(2)));
    drop(a);
}
