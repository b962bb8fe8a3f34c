//! What becomes of calls while services end, nodes leave, and keys move.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{CallError, CallOptions, Key, Node, ServeOptions, ServiceHandle};

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
