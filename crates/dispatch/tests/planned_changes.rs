//! What becomes of calls while services end, nodes leave, and keys move.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    CallError, CallOptions, Context, DrainError, Key, Node, Protocol, ReplyTo, ServeOptions,
    Service, ServiceHandle, StopError,
};
use tokio::sync::Semaphore;

mod support;

use support::{Ask, PATIENCE, Tell, Worker, Workers, eventually, key_of, start_all};

/// A caller, and two nodes that serve a worker each.
struct Trio {
    near: Node,
    b: (Node, Worker),
    c: (Node, Worker),
    workers: ServiceHandle<Workers>,
}

impl Trio {
    async fn start() -> Trio {
        let network = MemoryNetwork::new();
        let [near, b, c] = start_all(&network, ["a", "b", "c"], |node| node).await;
        let (on_b, on_c) = (Worker::default(), Worker::default());
        b.serve(on_b.clone()).await.unwrap();
        c.serve(on_c.clone()).await.unwrap();
        let workers = near.services::<Workers>();
        for node in [&near, &b, &c] {
            node.services::<Workers>().wait_online(2).await.unwrap();
        }
        Trio {
            near,
            b: (b, on_b),
            c: (c, on_c),
            workers,
        }
    }

    /// Waits until so many calls have arrived on `c`.
    async fn arrived(&self, calls: u64) {
        eventually("the calls have arrived", async || {
            match self.c.0.stats().await.unwrap().data.calls_received {
                arrived if arrived >= calls => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
    }

    /// A call that keeps the worker on `c` busy until its gate is opened.
    async fn occupy(&self, key: Key) -> tokio::task::JoinHandle<Result<Vec<u64>, CallError>> {
        let workers = self.workers.with(CallOptions::new().timeout(PATIENCE));
        let waiting = tokio::spawn(async move { workers.call(key, Ask::Wait).await });
        self.c.1.has("waiting").await;
        waiting
    }
}

#[tokio::test]
async fn what_has_not_run_where_a_service_panicked_runs_once_on_the_next_owner() {
    const CALLS: u64 = 20;
    let trio = Trio::start().await;
    let key = key_of(&trio.workers, "c");
    let waiting = trio.occupy(key).await;
    let panicking = tokio::spawn({
        let workers = trio.workers.clone();
        async move { workers.call(key, Ask::Panic).await }
    });
    trio.arrived(2).await;
    let patient = CallOptions::new().timeout(PATIENCE);
    let (far, own) = (trio.workers.clone(), trio.c.0.services::<Workers>());
    let calls: Vec<_> = (0..CALLS)
        .map(|note| {
            let workers = if note % 2 == 0 { &far } else { &own };
            let workers = workers.with(patient);
            tokio::spawn(async move { workers.call(key, Ask::Note(note)).await })
        })
        .collect();
    let asked_many = tokio::spawn({
        let workers = far.with(patient);
        async move { workers.multi_call(key, 1, Ask::Note(CALLS)).await }
    });
    trio.arrived(2 + CALLS / 2 + 1).await;
    trio.c.1.open();
    assert_eq!(waiting.await.unwrap(), Ok(vec![]));
    assert_eq!(panicking.await.unwrap(), Err(CallError::Stopped));
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let many = asked_many.await.unwrap();
    assert_eq!(many.len(), 1);
    assert_eq!(many[0].0.node().as_str(), "b");
    assert!(many[0].1.is_ok(), "{many:?}");
    let notes = trio.workers.call(key, Ask::Notes).await.unwrap();
    assert_eq!(notes.len() as u64, CALLS + 1, "{notes:?}");
    let notes: BTreeSet<u64> = notes.into_iter().collect();
    assert!(notes.into_iter().eq(0..=CALLS));
    drop((trio.near, trio.b));
}

#[tokio::test]
async fn what_may_have_run_is_not_sent_on() {
    let trio = Trio::start().await;
    let key = key_of(&trio.workers, "c");
    let error = trio.workers.call(key, Ask::Panic).await.unwrap_err();
    assert_eq!(error, CallError::Stopped);
    assert!(error.may_have_run());
    let asked = trio.b.0.stats().await.unwrap().data;
    assert_eq!((asked.services, asked.calls_received), (1, 0));
}

#[tokio::test]
async fn a_call_to_a_full_mailbox_gets_in_once_there_is_room() {
    let network = MemoryNetwork::new();
    let [host, near] = start_all(&network, ["host", "near"], |node| node).await;
    let worker = Worker::default();
    let options = ServeOptions::new().mailbox(1);
    host.serve_with(options, worker.clone()).await.unwrap();
    let patient = CallOptions::new().timeout(PATIENCE);
    let local = host.services::<Workers>().with(patient);
    let remote = near.services::<Workers>().with(patient);
    remote.wait_online(1).await.unwrap();
    let waiting = tokio::spawn({
        let local = local.clone();
        async move { local.call("key", Ask::Wait).await }
    });
    worker.has("waiting").await;
    local.cast("key", Tell::Note(1)).unwrap();
    let calls: Vec<_> = [local, remote]
        .into_iter()
        .map(|workers| tokio::spawn(async move { workers.call("key", Ask::Notes).await }))
        .collect();
    eventually("the remote call was refused", async || {
        match host.stats().await.unwrap().data.calls_received {
            0 => Err("it has not arrived".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    worker.open();
    waiting.await.unwrap().unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(vec![1]));
    }
}

#[tokio::test]
async fn idempotent_retries_of_what_may_have_run_stay_within_the_budget() {
    let trio = Trio::start().await;
    let key = key_of(&trio.workers, "c");
    let once = trio
        .workers
        .with(CallOptions::new().idempotent().retry_budget(0, 0));
    assert_eq!(once.call(key, Ask::Panic).await, Err(CallError::Stopped));
    // It went nowhere else: the other one lives, and has been asked nothing.
    let left = trio.b.0.stats().await.unwrap().data;
    assert_eq!((left.services, left.calls_received), (1, 0));
}

/// Calls with keys of everybody until it is told to stop or its node has left; returns what it was answered, and errors.
fn caller(
    workers: ServiceHandle<Workers>,
    from: u64,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<(Vec<u64>, Vec<CallError>)> {
    tokio::spawn(async move {
        let (mut answered, mut errors) = (Vec::new(), Vec::new());
        for note in from.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match workers.call(note, Ask::Note(note)).await {
                Ok(_) => answered.push(note),
                Err(CallError::NodeStopped) => break,
                Err(error) => errors.push(error),
            }
            tokio::task::yield_now().await;
        }
        (answered, errors)
    })
}

#[tokio::test]
async fn a_node_that_leaves_under_load_fails_no_call_of_others_nor_of_its_own() {
    let trio = Trio::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..12_u64)
        .map(|caller_number| {
            let node = [&trio.near, &trio.b.0, &trio.c.0][caller_number as usize % 3];
            let from = caller_number * 1_000_000;
            caller(node.services(), from, Arc::clone(&stop))
        })
        .collect();
    trio.arrived(100).await;
    let (c, on_c) = trio.c;
    c.leave().await.unwrap();
    assert_eq!(on_c.diary().last().unwrap(), "stopped: NodeStopped");
    let before = trio.b.0.stats().await.unwrap().data.calls_received;
    eventually("the other one serves on", async || {
        match trio.b.0.stats().await.unwrap().data.calls_received {
            now if now > before + 100 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for caller in callers {
        let (notes, errors) = caller.await.unwrap();
        assert_eq!(errors, []);
        answered += notes.len();
    }
    // Both workers noted what they did; the one that has left can be asked no more, but it cannot have done less.
    let notes = trio.workers.call("key", Ask::Notes).await.unwrap();
    let different: BTreeSet<_> = notes.iter().collect();
    assert_eq!(different.len(), notes.len());
    assert!(notes.len() < answered);
}

#[tokio::test]
async fn calls_and_casts_that_a_leaving_node_has_taken_are_handled() {
    let trio = Trio::start().await;
    let key = key_of(&trio.workers, "c");
    let waiting = trio.occupy(key).await;
    trio.workers.cast(key, Tell::Note(1)).unwrap();
    let call = tokio::spawn({
        let workers = trio.workers.with(CallOptions::new().timeout(PATIENCE));
        async move { workers.call_answered(key, Ask::Notes).await }
    });
    trio.arrived(2).await;
    let own = trio.c.0.services::<Workers>();
    own.cast(key, Tell::Note(2)).unwrap();
    own.cast(key, Tell::Yourself(vec![3])).unwrap();
    let leaving = tokio::spawn(trio.c.0.leave());
    eventually("nobody calls it any more", async || {
        match trio.workers.find(key).unwrap().node().as_str() {
            "b" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    // New calls go to who owns the key now, while the old owner is still at work.
    let answer = trio.workers.call_answered(key, Ask::Notes).await.unwrap();
    assert_eq!(answer.by.node().as_str(), "b");
    trio.c.1.open();
    assert_eq!(waiting.await.unwrap(), Ok(vec![]));
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.by.node().as_str(), "c");
    assert_eq!(answer.reply, [1]);
    assert_eq!(leaving.await.unwrap(), Ok(()));
    assert_eq!(trio.c.1.diary().last().unwrap(), "stopped: NodeStopped");
    drop((trio.near, trio.b));
}

#[tokio::test]
async fn what_was_not_done_within_the_drain_timeout_is_said() {
    let network = MemoryNetwork::new();
    let short = |node: keydispatch::NodeBuilder| node.drain_timeout(Duration::from_millis(50));
    let [host, near] = start_all(&network, ["host", "near"], short).await;
    let worker = Worker::default();
    let served = host.serve(worker.clone()).await.unwrap();
    let other = host.serve(Worker::default()).await.unwrap();
    let at = near.services::<Workers>();
    at.wait_online(2).await.unwrap();
    let waiting = |id: &keydispatch::ServiceId| {
        let at = at.at(id.clone());
        tokio::spawn(async move { at.call(Ask::Wait).await })
    };
    let (first, _second) = (waiting(served.id()), waiting(other.id()));
    worker.has("waiting").await;
    let error = served.stop().await.unwrap_err();
    assert!(
        matches!(&error, StopError::Unfinished { id } if id == served.id()),
        "{error:?}"
    );
    assert_eq!(first.await.unwrap(), Err(CallError::Stopped));
    let error = host.leave().await.unwrap_err();
    let DrainError::Unfinished(left) = &error else {
        panic!("{error:?}");
    };
    assert_eq!((left.services, left.unanswered), (1, 1), "{error}");
    assert!(
        error.to_string().contains("services had more to do"),
        "{error}"
    );
    eventually("it has left all the same", async || {
        match near
            .members()
            .iter()
            .filter(|member| member.is_up())
            .count()
        {
            0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_drained_node_owns_nothing_and_serves_on_until_its_services_are_enabled_again() {
    let trio = Trio::start().await;
    let key = key_of(&trio.workers, "c");
    let instance = trio.workers.find(key).unwrap();
    trio.c.0.drain(PATIENCE).await.unwrap();
    // Everybody knows by the time that it returns.
    for node in [&trio.near, &trio.b.0, &trio.c.0] {
        let owner = node.services::<Workers>().find(key).unwrap();
        assert_eq!(owner.node().as_str(), "b");
    }
    let at = trio.workers.at(instance.id().clone());
    assert_eq!(at.call(Ask::Notes).await, Ok(vec![]));
    let registry = trio.c.0.registry();
    registry.enable_service(instance.id()).await.unwrap();
    trio.workers.wait_online(2).await.unwrap();
    assert_eq!(trio.workers.find(key).unwrap().id(), instance.id());
}

/// Calls a worker, or leaves with its own node.
struct Relay {
    node: Node,
    gate: Arc<Semaphore>,
}

struct Relays;

impl Protocol for Relays {
    const NAME: &'static str = "relay";
    type Call = bool;
    type Reply = String;
    type Cast = ();
}

impl Service for Relay {
    type Protocol = Relays;

    async fn handle_call(&mut self, leave: bool, reply_to: ReplyTo<String>, _: &mut Context<Self>) {
        if leave {
            let left = self.node.clone().leave().await;
            let drained = self.node.drain(PATIENCE).await;
            reply_to.reply(format!("{left:?} {drained:?}"));
            return;
        }
        self.gate.acquire().await.unwrap().forget();
        let called = self
            .node
            .services::<Workers>()
            .call("key", Ask::Note(7))
            .await;
        reply_to.reply(format!("{called:?}"));
    }
}

#[tokio::test]
async fn a_handler_of_a_leaving_node_can_still_call_and_cannot_itself_leave() {
    let network = MemoryNetwork::new();
    let [near, host] = start_all(&network, ["near", "host"], |node| node).await;
    let gate = Arc::new(Semaphore::new(0));
    let relay = Relay {
        node: host.clone(),
        gate: Arc::clone(&gate),
    };
    host.serve(relay).await.unwrap();
    near.serve(Worker::default()).await.unwrap();
    let relays = near
        .services::<Relays>()
        .with(CallOptions::new().timeout(PATIENCE));
    relays.wait_online(1).await.unwrap();
    host.services::<Workers>().wait_online(1).await.unwrap();
    let refused = relays.call("key", true).await.unwrap();
    assert_eq!(refused, "Err(OwnHandler) Err(OwnHandler)");
    let call = tokio::spawn({
        let relays = relays.clone();
        async move { relays.call("key", false).await }
    });
    eventually("the call has arrived", async || {
        match host.stats().await.unwrap().data.calls_received {
            2 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let handle = host.services::<Workers>();
    let leaving = tokio::spawn(host.leave());
    eventually("it gives up its keys", async || match relays.find("key") {
        Ok(info) => Err(format!("{info:?}")),
        Err(_) => Ok(()),
    })
    .await;
    gate.add_permits(1);
    assert_eq!(call.await.unwrap().unwrap(), "Ok([7])");
    assert_eq!(leaving.await.unwrap(), Ok(()));
    // From now on nothing can be called through it, and that is said at once.
    let late = handle.call("key", Ask::Notes).await.unwrap_err();
    assert_eq!(late, CallError::NodeStopped);
    assert!(!late.may_have_run());
}

#[tokio::test]
async fn an_address_is_free_once_its_node_has_left() {
    let seed = Node::builder("seed").plaintext().start().await.unwrap();
    let mut bind = "127.0.0.1:0".to_owned();
    let mut kept = Vec::new();
    for _ in 0..10 {
        let node = Node::builder("n")
            .plaintext()
            .bind(&bind)
            .seeds([seed.address().to_string()])
            .start()
            .await
            .unwrap();
        bind = node.address().to_string();
        // Whoever still holds a clone or a handle does not keep the address.
        kept.push((node.clone(), node.services::<Workers>()));
        node.leave().await.unwrap();
    }
}
