//! What becomes of calls and casts to a peer that is up and cannot be dialled for a while.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{CallError, CallOptions, InstanceHandle, Key, Node, ServiceHandle};
use tokio::task::JoinHandle;

mod support;

use support::{Ask, Log, PATIENCE, Tell, Worker, Workers, eventually, key_of, start_all};

/// A caller that has never called, and two nodes that serve a worker each. The caller's way to `c` is cut; membership would
/// take long to notice.
struct Stage {
    network: MemoryNetwork,
    near: Node,
    b: Node,
    c: Node,
    workers: ServiceHandle<Workers>,
    /// A key of `c`.
    key: Key,
}

impl Stage {
    async fn cut_off(down_period: Duration) -> Stage {
        let network = MemoryNetwork::new();
        let with = |node: keydispatch::NodeBuilder| node.down_period(down_period);
        let [near, b, c] = start_all(&network, ["a", "b", "c"], with).await;
        b.serve(Worker::default()).await.unwrap();
        c.serve(Worker::default()).await.unwrap();
        let workers = near
            .services::<Workers>()
            .with(CallOptions::new().timeout(PATIENCE));
        workers.wait_online(2).await.unwrap();
        let key = key_of(&workers, "c");
        network.cut("a:1", "c:1");
        Stage {
            network,
            near,
            b,
            c,
            workers,
            key,
        }
    }

    fn at_c(&self) -> InstanceHandle<Workers> {
        let owner = self.workers.find(self.key).unwrap();
        assert_eq!(owner.node().as_str(), "c");
        self.workers.at(owner.id().clone())
    }

    fn call(&self, note: u64) -> JoinHandle<Result<Vec<u64>, CallError>> {
        let (workers, key) = (self.workers.clone(), self.key);
        tokio::spawn(async move { workers.call(key, Ask::Note(note)).await })
    }

    async fn notes_of(&self, node: &Node) -> Vec<u64> {
        let own = node.services::<Workers>();
        let key = key_of(&own, node.name().as_str());
        own.call(key, Ask::Notes).await.unwrap()
    }
}

#[tokio::test]
async fn a_dial_that_hangs_and_fails_costs_no_call_and_no_cast_and_keeps_their_order() {
    let (log, _guard) = Log::capture();
    let stage = Stage::cut_off(20 * Duration::from_secs(1)).await;
    let (workers, key, at) = (&stage.workers, stage.key, stage.at_c());
    let accepted = |note| workers.cast(key, Tell::Note(note)).unwrap();
    accepted(1);
    at.cast(Tell::Note(2)).unwrap();
    assert_eq!(workers.multi_cast(key, 1, Tell::Note(3)), 1);
    accepted(4);
    let calls = [
        stage.call(5),
        tokio::spawn(async move { at.call(Ask::Note(6)).await }),
        tokio::spawn({
            let (workers, key) = (workers.clone(), key);
            async move {
                let mut results = workers.multi_call(key, 1, Ask::Note(7)).await;
                results.pop().unwrap().1
            }
        }),
    ];
    // The first dial has failed, and the owner is the same.
    log.line(&["no data connection", "peer=c"]).await;
    assert_eq!(workers.find(key).unwrap().node().as_str(), "c");
    accepted(8);
    stage.network.heal_all();
    for call in calls {
        let notes = call.await.unwrap().unwrap();
        assert!(notes.starts_with(&[1, 2, 3, 4]), "{notes:?}");
    }
    let notes = workers.call(key, Ask::Notes).await.unwrap();
    assert_eq!(notes.len(), 8, "{notes:?}");
    let stats = stage.near.stats().await.unwrap().data;
    assert_eq!(stats.casts_unsent, 0);
    drop((stage.b, stage.c));
}

#[tokio::test]
async fn what_waits_for_a_peer_goes_to_who_owns_the_key_by_then_and_at_an_instance_to_none_other() {
    let stage = Stage::cut_off(20 * Duration::from_secs(1)).await;
    let (workers, key, at) = (&stage.workers, stage.key, stage.at_c());
    let call = stage.call(1);
    workers.cast(key, Tell::Note(2)).unwrap();
    assert_eq!(workers.multi_cast(key, 1, Tell::Note(3)), 1);
    at.cast(Tell::Note(4)).unwrap();
    let instance = tokio::spawn(async move { at.call(Ask::Notes).await });
    // Others take the key while the dial hangs.
    while workers.find(key).unwrap().node().as_str() == "c" {
        stage.b.serve(Worker::default()).await.unwrap();
        tokio::task::yield_now().await;
    }
    call.await.unwrap().unwrap();
    eventually("the casts are handled by who owns the key", async || {
        let notes = workers.call(key, Ask::Notes).await.unwrap();
        let has_all = [1, 2, 3].iter().all(|note| notes.contains(note));
        has_all.then_some(()).ok_or(format!("{notes:?}"))
    })
    .await;
    stage.network.heal_all();
    assert_eq!(instance.await.unwrap(), Ok(vec![4]));
    assert_eq!(stage.notes_of(&stage.c).await, [4]);
}

#[tokio::test]
async fn what_waits_for_a_node_that_leaves_is_handled_by_the_next_owner() {
    let stage = Stage::cut_off(20 * Duration::from_secs(1)).await;
    let at = stage.at_c();
    stage.workers.cast(stage.key, Tell::Note(1)).unwrap();
    let call = stage.call(2);
    let instance = tokio::spawn(async move { at.call(Ask::Note(3)).await });
    eventually("they wait", async || {
        match stage.near.stats().await.unwrap().data.frames_queued {
            3 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    stage.c.leave_now().await;
    call.await.unwrap().unwrap();
    eventually("the cast is handled", async || {
        let mut notes = stage.workers.call(stage.key, Ask::Notes).await.unwrap();
        notes.sort_unstable();
        (notes == [1, 2]).then_some(()).ok_or(format!("{notes:?}"))
    })
    .await;
    // That one will never answer, and nobody else was to be asked.
    let error = instance.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::NoInstance { .. }), "{error:?}");
    drop(stage.b);
}

#[tokio::test]
async fn a_call_whose_time_is_over_before_there_was_a_connection_has_not_run() {
    let stage = Stage::cut_off(20 * Duration::from_secs(1)).await;
    let short = CallOptions::new().timeout(Duration::from_millis(100));
    let workers = stage.workers.with(short);
    let error = workers.call(stage.key, Ask::Note(1)).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
    assert!(!error.may_have_run());
    stage.network.heal_all();
    let notes = stage.workers.call(stage.key, Ask::Note(2)).await.unwrap();
    assert_eq!(notes, [2]);
}

#[tokio::test]
async fn a_peer_that_cannot_be_dialled_for_three_seconds_fails_calls_typed_and_then_at_once() {
    let stage = Stage::cut_off(60 * Duration::from_secs(1)).await;
    let workers = &stage.workers;
    workers.cast(stage.key, Tell::Note(1)).unwrap();
    let (first, second) = (stage.call(2), stage.call(3));
    for call in [first, second] {
        let error = call.await.unwrap().unwrap_err();
        assert!(
            matches!(&error, CallError::NotSent { node, .. } if node.as_str() == "c"),
            "{error:?}"
        );
    }
    let unsent = stage.near.stats().await.unwrap().data.casts_unsent;
    assert_eq!(unsent, 1);
    // From now on it is known.
    let back = workers.cast(stage.key, Tell::Note(4)).unwrap_err();
    assert_eq!(back.message, Tell::Note(4));
    // Whoever may ask others does not wait for it, not even before.
    let elsewhere = workers.with(CallOptions::new().fallback(1));
    let answer = elsewhere.call_answered(stage.key, Ask::Note(5)).await;
    assert_eq!(answer.unwrap().by.node().as_str(), "b");
    stage.network.heal_all();
    let notes = eventually("the peer is back", async || {
        let called = workers.call(stage.key, Ask::Note(6)).await;
        called.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(notes, [6]);
}
