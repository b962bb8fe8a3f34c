//! What services and their callers can rely on, on one node and between two.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    CallError, CallOptions, Ended, Key, NewService, Node, ServeOptions, Served, ServiceEvent,
    ServiceHandle, ServiceState, Spread, SuperviseOptions, SupervisedEnd, TopicEvent,
};

mod support;

use support::{Ask, PATIENCE, Tell, Worker, Workers, describe, eventually, key_of, start_all};

/// The handle of a caller on `near`, and the node that serves: `near` itself, or another.
struct Stage {
    near: Node,
    host: Node,
    workers: ServiceHandle<Workers>,
}

impl Stage {
    async fn here() -> Stage {
        let network = MemoryNetwork::new();
        let [near] = start_all(&network, ["near"], |node| node).await;
        Stage {
            workers: near.services(),
            host: near.clone(),
            near,
        }
    }

    async fn there() -> Stage {
        let network = MemoryNetwork::new();
        let [host, near] = start_all(&network, ["host", "near"], |node| node).await;
        Stage {
            workers: near.services(),
            near,
            host,
        }
    }

    /// Starts a worker, and waits until the caller sees it.
    async fn worker(&self) -> (Worker, Served<Workers>) {
        let worker = Worker::default();
        let served = self.host.serve(worker.clone()).await.unwrap();
        self.workers.wait_online(1).await.unwrap();
        (worker, served)
    }

    /// Waits for the worker's notes to become that.
    async fn notes(&self, expected: &[u64]) {
        eventually("the notes are there", async || {
            let notes = self.workers.call("key", Ask::Notes).await;
            if notes.as_deref() == Ok(expected) {
                Ok(())
            } else {
                Err(format!("{notes:?}"))
            }
        })
        .await;
    }
}

macro_rules! here_and_there {
    ($($name:ident),* $(,)?) => {
        mod on_this_node {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Stage::here().await).await;
            })*
        }

        mod on_another_node {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Stage::there().await).await;
            })*
        }
    };
}

here_and_there! {
    a_reply_may_come_later,
    a_call_whose_reply_is_dropped_fails_with_no_reply,
    what_a_service_tells_itself_comes_in_order,
    timers_fire_when_they_are_due_and_not_once_cancelled,
    a_service_that_stops_itself_is_gone_and_was_told_why,
    stop_handles_the_calls_that_wait_and_runs_stopped,
    leaving_stops_the_services_and_tells_them_why,
    a_panic_ends_that_instance_alone_and_fails_its_callers,
    what_waits_behind_a_panic_has_not_run,
    a_supervised_service_comes_back_under_its_name,
    a_supervised_service_that_panics_too_often_is_given_up,
    a_monitor_ends_with_the_instance,
    wait_online_waits_for_as_many_as_it_is_told,
    an_instance_is_reached_whatever_it_owns,
    a_call_that_takes_too_long_fails_typed_and_what_was_not_started_never_is,
    a_dropped_call_is_never_started,
    ten_thousand_casts_of_one_caller_arrive_in_order,
}

async fn a_reply_may_come_later(stage: Stage) {
    let (worker, _) = stage.worker().await;
    let workers = stage.workers.clone();
    let call = tokio::spawn(async move { workers.call("key", Ask::Later).await });
    worker.has("later").await;
    // The service goes on meanwhile.
    let notes = stage.workers.call("key", Ask::Note(7)).await;
    assert_eq!(notes, Ok(vec![7]));
    assert!(!call.is_finished());
    stage.workers.cast("key", Tell::Answer).unwrap();
    assert_eq!(call.await.unwrap(), Ok(vec![7]));
}

async fn a_call_whose_reply_is_dropped_fails_with_no_reply(stage: Stage) {
    stage.worker().await;
    let error = stage.workers.call("key", Ask::Ignore).await.unwrap_err();
    assert_eq!(error, CallError::NoReply);
    assert!(error.may_have_run());
}

async fn what_a_service_tells_itself_comes_in_order(stage: Stage) {
    stage.worker().await;
    let told = Tell::Yourself(vec![1, 2, 3]);
    stage.workers.cast("key", told).unwrap();
    stage.notes(&[1, 2, 3]).await;
}

async fn timers_fire_when_they_are_due_and_not_once_cancelled(stage: Stage) {
    stage.worker().await;
    let notes = vec![(60, 4), (20, 2), (40, 3), (40, 30), (0, 1)];
    let told = Tell::AfterBut(notes, vec![3]);
    stage.workers.cast("key", told).unwrap();
    // The last of them says that those before it fired or never will.
    stage.notes(&[1, 2, 30, 4]).await;
}

async fn a_service_that_stops_itself_is_gone_and_was_told_why(stage: Stage) {
    let (worker, served) = stage.worker().await;
    stage.workers.cast("key", Tell::Stop).unwrap();
    let ended = served.ended().await;
    assert!(matches!(ended, Ended::Stopped(_)), "{ended:?}");
    assert_eq!(worker.diary(), ["started", "stopped: Stopped"]);
    stage
        .workers
        .at(served.id().clone())
        .monitor()
        .await
        .unwrap();
    let error = stage.workers.call("key", Ask::Notes).await.unwrap_err();
    assert!(matches!(error, CallError::NoService { .. }), "{error:?}");
}

async fn stop_handles_the_calls_that_wait_and_runs_stopped(stage: Stage) {
    let (worker, served) = stage.worker().await;
    let waiting = stage.workers.clone();
    let waiting = tokio::spawn(async move { waiting.call("key", Ask::Wait).await });
    worker.has("waiting").await;
    stage.workers.cast("key", Tell::Note(1)).unwrap();
    let behind = stage.workers.clone();
    let behind = tokio::spawn(async move { behind.call("key", Ask::Notes).await });
    tokio::task::yield_now().await;
    stage.workers.cast("key", Tell::Note(2)).unwrap();
    let at = stage.workers.at(served.id().clone());
    let stop = tokio::spawn(async move { served.stop().await });
    eventually("it gives up its keys", async || {
        let info = at.info().ok_or("it is not listed")?;
        match info.state() {
            ServiceState::Draining => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    worker.open();
    // What was taken is handled, and nothing else is.
    assert_eq!(waiting.await.unwrap(), Ok(vec![]));
    assert_eq!(behind.await.unwrap(), Ok(vec![1]));
    assert_eq!(stop.await.unwrap(), Ok(()));
    assert_eq!(worker.diary().last().unwrap(), "stopped: Stopped");
    let late = at.call(Ask::Notes).await.unwrap_err();
    assert!(!late.may_have_run(), "{late:?}");
}

async fn leaving_stops_the_services_and_tells_them_why(stage: Stage) {
    let (worker, served) = stage.worker().await;
    stage.host.leave().await.unwrap();
    assert_eq!(worker.diary(), ["started", "stopped: NodeStopped"]);
    let ended = served.ended().await;
    assert!(matches!(ended, Ended::Stopped(_)), "{ended:?}");
    eventually("nobody is found", async || {
        match stage.workers.find("key") {
            Ok(info) => Err(format!("{info:?}")),
            Err(_) => Ok(()),
        }
    })
    .await;
}

async fn a_panic_ends_that_instance_alone_and_fails_its_callers(stage: Stage) {
    let (worker, served) = stage.worker().await;
    let (other, _) = stage.worker().await;
    stage.workers.wait_online(2).await.unwrap();
    let at = stage.workers.at(served.id().clone());
    let later = tokio::spawn({
        let at = at.clone();
        async move { at.call(Ask::Later).await }
    });
    worker.has("later").await;
    let error = at.call(Ask::Panic).await.unwrap_err();
    assert_eq!(error, CallError::Stopped);
    assert!(error.may_have_run());
    // Its state went with it, and so did the reply that somebody waits for: unless the test keeps it, as it does here.
    stage
        .workers
        .at(served.id().clone())
        .monitor()
        .await
        .unwrap();
    assert_eq!(served.ended().await, Ended::Panicked);
    later.abort();
    assert_eq!(worker.diary(), ["started", "later"]);
    assert_eq!(stage.workers.call("key", Ask::Notes).await, Ok(vec![]));
    assert_eq!(other.diary(), ["started"]);
}

async fn what_waits_behind_a_panic_has_not_run(stage: Stage) {
    let (worker, served) = stage.worker().await;
    let at = stage.workers.at(served.id().clone());
    let first = tokio::spawn({
        let at = at.clone();
        async move { at.call(Ask::Wait).await }
    });
    worker.has("waiting").await;
    let panicking = tokio::spawn({
        let at = at.clone();
        async move { at.call(Ask::Panic).await }
    });
    let behind: Vec<_> = (0..20)
        .map(|_| {
            let at = at.clone();
            tokio::spawn(async move { at.call(Ask::Notes).await })
        })
        .collect();
    worker.open();
    assert_eq!(first.await.unwrap(), Ok(vec![]));
    assert_eq!(panicking.await.unwrap(), Err(CallError::Stopped));
    // Some of them may have been faster than the one that panics.
    for call in behind {
        match call.await.unwrap() {
            Ok(_) => {}
            Err(error) => assert!(!error.may_have_run(), "{error:?}"),
        }
    }
    // The caller may list it still: what comes too late has not run either.
    let late = at.call(Ask::Notes).await.unwrap_err();
    assert!(!late.may_have_run(), "{late:?}");
}

async fn a_supervised_service_comes_back_under_its_name(stage: Stage) {
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    let supervised = stage
        .host
        .supervise(SuperviseOptions::new(), move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Worker::default()
        })
        .await
        .unwrap();
    stage.workers.wait_online(1).await.unwrap();
    let first = stage.workers.find("key").unwrap();
    assert_eq!(
        stage.workers.call("key", Ask::Panic).await,
        Err(CallError::Stopped)
    );
    let second = eventually("it is back", async || match stage.workers.find("key") {
        Ok(info) if info.id() != first.id() => Ok(info),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(second.name(), first.name());
    assert_eq!(stage.workers.call("key", Ask::Notes).await, Ok(vec![]));
    assert_eq!(starts.load(Ordering::SeqCst), 2);
    assert_eq!(supervised.stop().await, Ok(SupervisedEnd::Stopped));
    stage
        .workers
        .at(second.id().clone())
        .monitor()
        .await
        .unwrap();
    assert_eq!(starts.load(Ordering::SeqCst), 2);
}

async fn a_supervised_service_that_panics_too_often_is_given_up(stage: Stage) {
    let options = SuperviseOptions::new()
        .intensity(2, PATIENCE)
        .back_off(Duration::from_millis(1), Duration::from_millis(2));
    let supervised = stage
        .host
        .supervise(options, Worker::default)
        .await
        .unwrap();
    let killer = tokio::spawn({
        let workers = stage.workers.clone();
        async move {
            loop {
                workers.wait_online(1).await.unwrap();
                let _ = workers.call("key", Ask::Panic).await;
                // A call that fails at once gives nobody else a turn.
                tokio::task::yield_now().await;
            }
        }
    });
    let end = supervised.ended().await;
    assert_eq!(end, SupervisedEnd::GaveUp { restarts: 2 });
    killer.abort();
    eventually("it stays away", async || match stage.workers.find("key") {
        Ok(info) => Err(format!("{info:?}")),
        Err(_) => Ok(()),
    })
    .await;
}

async fn a_monitor_ends_with_the_instance(stage: Stage) {
    let (_, served) = stage.worker().await;
    let (_, other) = stage.worker().await;
    stage.workers.wait_online(2).await.unwrap();
    let monitor = tokio::spawn({
        let at = stage.workers.at(served.id().clone());
        async move { at.monitor().await }
    });
    other.stop().await.unwrap();
    stage
        .workers
        .at(other.id().clone())
        .monitor()
        .await
        .unwrap();
    assert!(!monitor.is_finished(), "another instance ended");
    served.stop().await.unwrap();
    monitor.await.unwrap().unwrap();
    // It has gone already.
    stage
        .workers
        .at(served.id().clone())
        .monitor()
        .await
        .unwrap();
}

async fn wait_online_waits_for_as_many_as_it_is_told(stage: Stage) {
    let waiting = tokio::spawn({
        let workers = stage.workers.clone();
        async move { workers.wait_online(2).await }
    });
    stage.worker().await;
    let offline = ServeOptions::new().offline();
    let second = stage
        .host
        .serve_with(offline, Worker::default())
        .await
        .unwrap();
    eventually("both are listed", async || {
        match stage.near.registry().services("worker").len() {
            2 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    assert!(!waiting.is_finished(), "only one is online");
    second.registration().enable().await.unwrap();
    waiting.await.unwrap().unwrap();
}

async fn an_instance_is_reached_whatever_it_owns(stage: Stage) {
    let (_, first) = stage.worker().await;
    let (_, second) = stage.worker().await;
    stage.workers.wait_online(2).await.unwrap();
    for (served, note) in [(&first, 1), (&second, 2)] {
        let at = stage.workers.at(served.id().clone());
        assert_eq!(at.call(Ask::Note(note)).await, Ok(vec![note]));
        at.cast(Tell::Note(note)).unwrap();
        assert_eq!(at.call(Ask::Notes).await, Ok(vec![note, note]));
    }
    first.registration().disable().await.unwrap();
    let at = stage.workers.at(first.id().clone());
    eventually("it owns nothing", async || match at.info() {
        Some(info) if info.state() == ServiceState::Offline => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(at.call(Ask::Notes).await, Ok(vec![1, 1]));
    first.stop().await.unwrap();
    at.monitor().await.unwrap();
    let error = at.call(Ask::Notes).await.unwrap_err();
    assert!(matches!(error, CallError::NoInstance { .. }), "{error:?}");
    assert!(!error.may_have_run());
    let back = at.cast(Tell::Note(9)).unwrap_err();
    assert_eq!(back.message, Tell::Note(9));
}

async fn a_call_that_takes_too_long_fails_typed_and_what_was_not_started_never_is(stage: Stage) {
    let (worker, _) = stage.worker().await;
    let waiting = tokio::spawn({
        let workers = stage.workers.clone();
        async move { workers.call("key", Ask::Wait).await }
    });
    worker.has("waiting").await;
    let after = Duration::from_millis(30);
    let hasty = stage.workers.with(CallOptions::new().timeout(after));
    let error = hasty.call("key", Ask::Note(1)).await.unwrap_err();
    assert_eq!(error, CallError::Timeout { after });
    assert!(error.may_have_run());
    worker.open();
    waiting.await.unwrap().unwrap();
    assert_eq!(stage.workers.call("key", Ask::Notes).await, Ok(vec![]));
}

async fn a_dropped_call_is_never_started(stage: Stage) {
    let (worker, _) = stage.worker().await;
    let waiting = tokio::spawn({
        let workers = stage.workers.clone();
        async move { workers.call("key", Ask::Wait).await }
    });
    worker.has("waiting").await;
    let dropped = tokio::spawn({
        let workers = stage.workers.clone();
        async move { workers.call("key", Ask::Note(1)).await }
    });
    // Behind it, so that it has arrived once this one has.
    stage.workers.cast("key", Tell::Note(2)).unwrap();
    tokio::task::yield_now().await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    // The cancellation is on its way before this is.
    stage.workers.cast("key", Tell::Note(3)).unwrap();
    eventually("the cancellation has arrived", async || {
        let stats = stage.host.stats().await.unwrap().data;
        if stats.casts_received == 2 || stats.calls_received == 0 {
            Ok(())
        } else {
            Err(format!("{stats:?}"))
        }
    })
    .await;
    worker.open();
    waiting.await.unwrap().unwrap();
    assert_eq!(stage.workers.call("key", Ask::Notes).await, Ok(vec![2, 3]));
}

async fn ten_thousand_casts_of_one_caller_arrive_in_order(stage: Stage) {
    const CASTS: u64 = 10_000;
    let options = ServeOptions::new().mailbox(CASTS as usize + 1);
    stage
        .host
        .serve_with(options, Worker::default())
        .await
        .unwrap();
    stage.workers.wait_online(1).await.unwrap();
    for note in 0..CASTS {
        stage.workers.cast("key", Tell::Note(note)).unwrap();
    }
    // A call of the same caller comes after its casts.
    let notes = stage.workers.call("key", Ask::Notes).await.unwrap();
    assert!(notes.iter().copied().eq(0..CASTS), "{} notes", notes.len());
}

/// A caller and two nodes that serve a worker each.
async fn trio() -> (MemoryNetwork, Node, [(Node, Worker); 2]) {
    let network = MemoryNetwork::new();
    // So long that whatever happens here happens before anybody is taken for dead by silence.
    let patient = |node: keydispatch::NodeBuilder| node.down_period(2 * PATIENCE);
    let [a, b, c] = start_all(&network, ["a", "b", "c"], patient).await;
    let (on_b, on_c) = (Worker::default(), Worker::default());
    b.serve(on_b.clone()).await.unwrap();
    c.serve(on_c.clone()).await.unwrap();
    a.services::<Workers>().wait_online(2).await.unwrap();
    (network, a, [(b, on_b), (c, on_c)])
}

#[tokio::test]
async fn a_call_whose_time_is_over_on_arrival_of_its_turn_is_not_started() {
    let (network, a, [_, (c, worker)]) = trio().await;
    let workers = a.services::<Workers>();
    let key = key_of(&workers, "c");
    let waiting = tokio::spawn({
        let workers = workers.with(CallOptions::new().timeout(2 * PATIENCE));
        async move { workers.call(key, Ask::Wait).await }
    });
    worker.has("waiting").await;
    let timeouts = [50, 250].map(Duration::from_millis);
    let calls = timeouts.map(|timeout| {
        let workers = workers.with(CallOptions::new().timeout(timeout));
        let note = Ask::Note(timeout.as_millis() as u64);
        tokio::spawn(async move { workers.call(key, note).await })
    });
    eventually("the calls have arrived", async || {
        match c.stats().await.unwrap().data.calls_received {
            3 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    // From here on nothing tells the service that its caller has given up, but the time that came with the call.
    network.cut_one_way("a:1", "c:1");
    for (call, after) in calls.into_iter().zip(timeouts) {
        assert_eq!(call.await.unwrap(), Err(CallError::Timeout { after }));
    }
    let notes = {
        let on_c = c.services::<Workers>();
        let own = tokio::spawn(async move { on_c.call(key, Ask::Notes).await });
        worker.open();
        own.await.unwrap()
    };
    // The second was only just over, if it was on that node's clock; the first had been for long.
    let notes = notes.unwrap();
    assert!(!notes.contains(&50), "{notes:?}");
    waiting.abort();
}

#[tokio::test]
async fn a_slow_answer_after_a_long_rest_is_waited_for() {
    let stage = Stage::there().await;
    let (worker, _) = stage.worker().await;
    assert_eq!(stage.workers.call("key", Ask::Notes).await, Ok(vec![]));
    // Longer than the silence after which a peer that does not answer is suspended; nobody has asked it anything.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    let waiting = tokio::spawn({
        let workers = stage.workers.clone();
        async move { workers.call("key", Ask::Wait).await }
    });
    worker.has("waiting").await;
    // The link is looked at more than once meanwhile.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(stage.near.stats().await.unwrap().data.suspended, []);
    worker.open();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idempotent_call_outlives_the_node_that_it_was_sent_to() {
    let (_network, a, [_b, (c, worker)]) = trio().await;
    let workers = a.services::<Workers>();
    let key = key_of(&workers, "c");
    let blocked = tokio::spawn({
        let workers = workers.clone();
        async move { workers.call(key, Ask::Wait).await }
    });
    worker.has("waiting").await;
    let call = tokio::spawn({
        let workers = workers.with(CallOptions::new().idempotent().timeout(PATIENCE));
        async move { workers.call_answered(key, Ask::Note(1)).await }
    });
    eventually("both calls are on their way", async || {
        match c.stats().await.unwrap().data.calls_received {
            2 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    drop(c);
    let error = blocked.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, CallError::Disconnected { .. } | CallError::Stopped),
        "{error:?}"
    );
    assert!(error.may_have_run());
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.by.node().as_str(), "b");
    assert_eq!(answer.reply, [1]);
}

#[tokio::test]
async fn a_cut_peer_fails_calls_fast_and_typed_and_keeps_its_keys() {
    let (network, a, _rest) = trio().await;
    let workers = a.services::<Workers>();
    let (key, other) = (key_of(&workers, "c"), key_of(&workers, "b"));
    workers.call(key, Ask::Notes).await.unwrap();
    network.cut("a:1", "c:1");
    // Nobody knows yet: this one waits until the silence is judged, though it has time for more.
    let patient = workers.with(CallOptions::new().timeout(PATIENCE));
    let error = patient.call(key, Ask::Notes).await.unwrap_err();
    assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
    assert!(error.may_have_run());
    let suspended = a.stats().await.unwrap().data.suspended;
    assert_eq!(suspended.len(), 1);
    assert_eq!(suspended[0].as_str(), "c");
    // From now on it is known: calls fail at once, and say that they have not run.
    let error = patient.call(key, Ask::Notes).await.unwrap_err();
    assert!(
        matches!(&error, CallError::NotSent { node, .. } if node.as_str() == "c"),
        "{error:?}"
    );
    assert!(!error.may_have_run());
    let back = workers.cast(key, Tell::Note(1)).unwrap_err();
    assert_eq!(back.message, Tell::Note(1));
    // Suspension changes no placement, and nobody else's calls.
    assert_eq!(workers.find(key).unwrap().node().as_str(), "c");
    assert_eq!(workers.call(other, Ask::Notes).await, Ok(vec![]));
    // Where the caller wants that, the next owner answers, and says so.
    let elsewhere = patient.with(CallOptions::new().fallback(1));
    let answer = elsewhere.call_answered(key, Ask::Note(5)).await.unwrap();
    assert_eq!(answer.by.node().as_str(), "b");
    assert_eq!(
        answer.by,
        a.registry().find_multi_service(2, "worker", key)[1]
    );
    network.heal_all();
    let reply = eventually("the peer is back", async || {
        workers
            .call(key, Ask::Notes)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    assert!(reply.is_empty());
}

#[tokio::test]
async fn owners_can_be_spread_over_nodes_and_zones() {
    let network = MemoryNetwork::new();
    let [a, b, c] = start_all(&network, ["a", "b", "c"], |node| node).await;
    for node in [&a, &b, &c] {
        for _ in 0..3 {
            let zone = if node.name().as_str() == "c" {
                "west"
            } else {
                "east"
            };
            let options = ServeOptions::new().zone(zone);
            node.serve_with(options, Worker::default()).await.unwrap();
        }
    }
    let workers = a.services::<Workers>();
    workers.wait_online(9).await.unwrap();
    let over_nodes = workers.with(CallOptions::new().spread(Spread::Nodes));
    let over_zones = workers.with(CallOptions::new().spread(Spread::Zones));
    for key in 0..50_u64 {
        let first = workers.find(key).unwrap();
        let asked = over_nodes.multi_call(key, 3, Ask::Note(key)).await;
        assert!(asked.iter().all(|(_, reply)| reply.is_ok()), "{asked:?}");
        let nodes: BTreeSet<_> = asked.iter().map(|(info, _)| info.node().as_str()).collect();
        assert_eq!(nodes, BTreeSet::from(["a", "b", "c"]));
        assert_eq!(asked[0].0, first);
        let asked = over_zones.multi_call(key, 3, Ask::Note(key)).await;
        let zones: BTreeSet<_> = asked
            .iter()
            .map(|(info, _)| info.zone().map(ToString::to_string))
            .collect();
        assert_eq!((asked.len(), zones.len()), (2, 2));
        assert_eq!(asked[0].0, first);
        assert_eq!(over_nodes.multi_cast(key, 5, Tell::Note(1)), 3);
    }
}

#[tokio::test]
async fn two_clusters_in_one_process_do_not_touch_each_other() {
    // The same names, types, topics and network; only the clusters' names differ.
    let network = MemoryNetwork::new();
    let mut clusters = Vec::new();
    for (cluster, addresses) in [
        ("red", ["red-a:1", "red-b:1"]),
        ("blue", ["blue-a:1", "blue-b:1"]),
    ] {
        let mut nodes = Vec::new();
        for (name, address) in ["a", "b"].into_iter().zip(addresses) {
            // The second tries the other cluster, too.
            let seeds = match name {
                "a" => vec![],
                _ => vec![addresses[0], "red-a:1"],
            };
            let node = Node::builder(name)
                .cluster(cluster)
                .memory(&network)
                .bind(address)
                .seeds(seeds)
                .start()
                .await
                .unwrap();
            nodes.push(node);
        }
        support::members(&nodes[0], 1).await;
        let worker = Worker::default();
        nodes[1].serve(worker).await.unwrap();
        nodes[0].services::<Workers>().wait_online(1).await.unwrap();
        clusters.push(nodes);
    }
    let [red, blue] = &clusters[..] else {
        panic!("two clusters");
    };
    let red_workers = red[0].services::<Workers>();
    let blue_workers = blue[0].services::<Workers>();
    assert_eq!(red_workers.call("key", Ask::Note(1)).await, Ok(vec![1]));
    assert_eq!(blue_workers.call("key", Ask::Notes).await, Ok(vec![]));
    let mut heard = blue[0].pubsub().subscribe("news").unwrap();
    assert_eq!(red[0].pubsub().broadcast("news", "red").unwrap(), 1);
    assert_eq!(blue[0].pubsub().broadcast("news", "blue").unwrap(), 1);
    let Some(TopicEvent::Message(message)) = heard.next().await else {
        panic!("a message");
    };
    assert_eq!(message.payload, "blue");
    // One ends; the other does not notice.
    let mut changes = blue[0].subscribe_members();
    for node in clusters.remove(0) {
        node.leave().await.unwrap();
    }
    let blue = &clusters[0];
    assert_eq!(blue_workers.call("key", Ask::Note(2)).await, Ok(vec![2]));
    assert_eq!(blue[0].members().len(), 1);
    for node in clusters.remove(0).into_iter().rev() {
        node.leave().await.unwrap();
    }
    // The only change that it ever saw is that of its own cluster.
    let change = changes.next().await;
    assert!(
        matches!(&change, Some(keydispatch::MemberChange::Left { node }) if node.name.as_str() == "b"),
        "{change:?}"
    );
}

async fn message(subscription: &mut keydispatch::TopicSubscription) -> (String, String) {
    match subscription.next().await {
        Some(TopicEvent::Message(message)) => (
            message.from.to_string(),
            String::from_utf8(message.payload.to_vec()).unwrap(),
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn topics_reach_all_one_or_only_this_node() {
    let network = MemoryNetwork::new();
    let [a, b, c] = start_all(&network, ["a", "b", "c"], |node| node).await;
    let mut subscriptions = [&a, &b, &c].map(|node| node.pubsub().subscribe("news").unwrap());
    let mut elsewhere = b.pubsub().subscribe("sport").unwrap();
    assert_eq!(a.pubsub().broadcast("news", "to all").unwrap(), 2);
    a.pubsub().local_broadcast("news", "to a").unwrap();
    a.pubsub().direct_broadcast("b", "news", "to b").unwrap();
    a.pubsub()
        .direct_broadcast("a", "news", "to myself")
        .unwrap();
    assert_eq!(a.pubsub().broadcast("news", "the end").unwrap(), 2);
    a.pubsub().broadcast("sport", "the end").unwrap();
    let expected: [&[&str]; 3] = [
        &["to all", "to a", "to myself", "the end"],
        &["to all", "to b", "the end"],
        &["to all", "the end"],
    ];
    for (subscription, expected) in subscriptions.iter_mut().zip(expected) {
        for payload in expected {
            let expected = ("a".to_owned(), (*payload).to_owned());
            assert_eq!(message(subscription).await, expected);
        }
    }
    let expected = ("a".to_owned(), "the end".to_owned());
    assert_eq!(message(&mut elsewhere).await, expected);
    let error = a
        .pubsub()
        .direct_broadcast("nobody", "news", "x")
        .unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[tokio::test]
async fn a_slow_subscriber_of_a_topic_is_told_what_it_missed() {
    let network = MemoryNetwork::new();
    let [a] = start_all(&network, ["a"], |node| node).await;
    let mut slow = a.pubsub().subscribe("news").unwrap();
    let mut quick = a.pubsub().subscribe("news").unwrap();
    for number in 0..2_000 {
        a.pubsub().broadcast("news", number.to_string()).unwrap();
        assert_eq!(message(&mut quick).await.1, number.to_string());
    }
    let Some(TopicEvent::Lagged { missed }) = slow.next().await else {
        panic!("it lagged");
    };
    for number in missed..2_000 {
        assert_eq!(message(&mut slow).await.1, number.to_string());
    }
}

#[tokio::test]
async fn a_slow_subscriber_of_services_is_told_that_it_lagged_and_then_how_things_stand() {
    let network = MemoryNetwork::new();
    let [a] = start_all(&network, ["a"], |node| node).await;
    let mut events = a.registry().subscribe("uploader").unwrap();
    assert!(matches!(
        events.next().await,
        Some(ServiceEvent::Current(_))
    ));
    let endpoints = |from: usize| {
        (from..from + 1_000)
            .map(|number| NewService::endpoint("uploader", format!("host:{number}")))
    };
    for from in [0, 1_000, 2_000] {
        a.registry().add_services(endpoints(from)).await.unwrap();
    }
    let lagged = events.next().await;
    assert!(
        matches!(lagged, Some(ServiceEvent::Lagged { missed }) if missed > 0),
        "{lagged:?}"
    );
    match events.next().await {
        Some(ServiceEvent::Current(view)) => assert_eq!(view.services().len(), 3_000),
        other => panic!("{other:?}"),
    }
    // Nothing that led there is told again.
    a.registry()
        .add_service(NewService::endpoint("uploader", "last:1"))
        .await
        .unwrap();
    match events.next().await {
        Some(ServiceEvent::Joined(info)) => assert_eq!(info.name().as_str(), "last:1"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_service_that_fails_to_start_is_not_registered() {
    struct Broken;

    impl keydispatch::Service for Broken {
        type Protocol = Workers;

        async fn started(
            &mut self,
            _: &mut keydispatch::Context<Self>,
        ) -> Result<(), keydispatch::BoxError> {
            Err("the disk is full".into())
        }

        async fn handle_call(
            &mut self,
            _: Ask,
            _: keydispatch::ReplyTo<Vec<u64>>,
            _: &mut keydispatch::Context<Self>,
        ) {
        }
    }

    let network = MemoryNetwork::new();
    let node = describe(&network, "a", &[]).start().await.unwrap();
    let error = node.serve(Broken).await.unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(node.registry().services("worker").is_empty());
    assert!(node.services::<Workers>().find(Key::from(1_u64)).is_err());
}

#[tokio::test]
async fn a_node_is_started_used_and_left_from_a_task_of_its_own() {
    let task = tokio::spawn(async {
        let network = MemoryNetwork::new();
        let node = Node::builder("a").memory(&network).bind("a:1");
        let node = node.start().await.unwrap();
        let served = node.serve(echo::Echo).await.unwrap();
        let echoes = node.services::<echo::Echoes>();
        echoes.wait_online(1).await.unwrap();
        let reply = echoes.call("key", 7).await.unwrap();
        let all = echoes.multi_call("key", 2, 8).await;
        let one = echoes.at(served.id().clone()).call(9).await.unwrap();
        assert_eq!((reply, all.len(), one), (7, 1, 9));
        served.stop().await.unwrap();
        node.leave().await.unwrap();
    });
    task.await.unwrap();
}

mod echo {
    use keydispatch::{Context, Protocol, ReplyTo, Service};

    pub(super) struct Echoes;

    impl Protocol for Echoes {
        const NAME: &'static str = "echo";
        type Call = u64;
        type Reply = u64;
        type Cast = ();
    }

    pub(super) struct Echo;

    impl Service for Echo {
        type Protocol = Echoes;

        async fn handle_call(&mut self, call: u64, reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
            reply_to.reply(call);
        }
    }
}
