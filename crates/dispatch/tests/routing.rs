//! Routing that follows load: who is asked, who refuses, what is hedged, and which replies are enough.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    CallError, CallOptions, Key, Node, Replies, Routing, ServeOptions, ServiceHandle,
};

mod support;

use support::{Ask, Tell, Worker, Workers, describe, eventually, key_of, members, start_all};

/// Refuses while one call is there: what a young instance does at any depth.
const AT_ONE: Routing = Routing::Bounded {
    owners: 4,
    depth: 1,
    stay: None,
};

/// Three nodes with a worker each, and a fourth that calls.
struct Stage {
    network: MemoryNetwork,
    nodes: [Node; 4],
    workers: [Worker; 3],
    caller: ServiceHandle<Workers>,
}

impl Stage {
    async fn set(options: CallOptions) -> Stage {
        Stage::set_in(options, ["north"; 4]).await
    }

    /// The same in those zones.
    async fn set_in(options: CallOptions, zones: [&str; 4]) -> Stage {
        let network = MemoryNetwork::new();
        let mut zones = zones.into_iter();
        let mut nodes = Vec::new();
        for name in ["a", "b", "c", "caller"] {
            let seeds: &[&str] = if nodes.is_empty() { &[] } else { &["a:1"] };
            let node = describe(&network, name, seeds).zone(zones.next().unwrap());
            nodes.push(node.start().await.unwrap());
        }
        for node in &nodes {
            members(node, 3).await;
        }
        let nodes: [Node; 4] = nodes.try_into().unwrap();
        let workers = [(); 3].map(|()| Worker::default());
        for (node, worker) in nodes.iter().zip(&workers) {
            node.serve(worker.clone()).await.unwrap();
        }
        let caller = nodes[3].services::<Workers>();
        caller.wait_online(3).await.unwrap();
        // What is known of a peer is known once there is a connection to it.
        for number in 0..50_u64 {
            caller.call(number, Ask::Notes).await.unwrap();
        }
        Stage {
            network,
            nodes,
            workers,
            caller: caller.with(options),
        }
    }

    /// The places of a key's owners among the nodes, in their order.
    fn owners(&self, key: Key) -> Vec<usize> {
        let view = self.caller.view();
        let names = ["a", "b", "c"];
        view.owners(key, 3)
            .iter()
            .map(|info| names.iter().position(|name| info.node().as_str() == *name))
            .map(Option::unwrap)
            .collect()
    }

    /// Waits until so many calls of the caller's node are not answered yet.
    async fn waits(&self, calls: usize) {
        eventually("so many calls wait", async || {
            let stats = self.nodes[3].stats().await.unwrap();
            let waiting = stats.data.calls_pending;
            if waiting == calls {
                Ok(())
            } else {
                Err(format!("{waiting}"))
            }
        })
        .await;
    }

    /// Messages of calls that the caller's node has sent so far.
    async fn sent(&self) -> u64 {
        self.nodes[3].stats().await.unwrap().data.calls_sent
    }

    /// Keeps a worker busy until its gate is opened.
    async fn busy(&self, at: usize) -> tokio::task::JoinHandle<Vec<u64>> {
        let handle = self.nodes[at].services::<Workers>();
        let id = handle
            .view()
            .services()
            .iter()
            .find(|info| info.node() == self.nodes[at].name())
            .map(|info| info.id().clone());
        let instance = handle.at(id.unwrap());
        let waits = tokio::spawn(async move { instance.call(Ask::Wait).await.unwrap() });
        self.workers[at].has("waiting").await;
        waits
    }
}

fn bounded() -> CallOptions {
    CallOptions::new().routing(AT_ONE)
}

#[tokio::test]
async fn with_no_load_bounded_asks_the_owner_and_nobody_else() {
    let stage = Stage::set(bounded()).await;
    for key in (0..50_u64).map(Key::from) {
        let answer = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
        assert_eq!(answer.by.id(), stage.caller.find(key).unwrap().id());
    }
}

#[tokio::test]
async fn a_busy_owner_refuses_before_anything_runs_and_the_next_one_answers() {
    let stage = Stage::set(bounded()).await;
    let key = Key::from("key");
    let owners = stage.owners(key);
    let waits = stage.busy(owners[0]).await;
    let answer = stage.caller.call_answered(key, Ask::Note(7)).await.unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[1]].name());
    assert_eq!(answer.reply, [7]);
    stage.workers[owners[0]].open();
    // The owner has not had it.
    assert!(waits.await.unwrap().is_empty());
    let answer = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[0]].name());
    assert!(answer.reply.is_empty());
}

#[tokio::test]
async fn a_call_that_is_handed_on_counts_until_it_is_answered_also_where_the_owner_runs_here() {
    let stage = Stage::set(bounded()).await;
    let key = Key::from("key");
    let owners = stage.owners(key);
    // The handler has ended, and nothing waits: the reply is still owed.
    let here = stage.nodes[owners[0]].services::<Workers>();
    let plain = here.clone();
    let later = tokio::spawn(async move { plain.call(key, Ask::Later).await });
    stage.workers[owners[0]].has("later").await;
    for caller in [&stage.caller, &here.with(bounded())] {
        let answer = caller.call_answered(key, Ask::Notes).await.unwrap();
        assert_eq!(answer.by.node(), stage.nodes[owners[1]].name());
    }
    here.cast(key, Tell::Answer).unwrap();
    later.await.unwrap().unwrap();
    let answer = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[0]].name());
}

#[tokio::test]
async fn where_all_are_busy_the_call_waits_for_one_of_them_and_runs_once() {
    let stage = Stage::set(bounded()).await;
    let key = Key::from("key");
    let mut waiting = Vec::new();
    for at in 0..3 {
        waiting.push(stage.busy(at).await);
    }
    let caller = stage.caller.clone();
    let call = tokio::spawn(async move { caller.call_answered(key, Ask::Note(7)).await });
    // It is in a mailbox, whosever.
    stage.waits(1).await;
    for worker in &stage.workers {
        worker.open();
    }
    assert_eq!(call.await.unwrap().unwrap().reply, [7]);
    for waits in waiting {
        waits.await.unwrap();
    }
    let mut notes = 0;
    for info in stage.caller.view().services() {
        let instance = stage.caller.at(info.id().clone());
        notes += instance.call(Ask::Notes).await.unwrap().len();
    }
    assert_eq!(notes, 1);
}

#[tokio::test]
async fn without_a_budget_nobody_refuses() {
    let stage = Stage::set(bounded().retry_budget(0, 0)).await;
    let key = Key::from("key");
    let owners = stage.owners(key);
    let waits = stage.busy(owners[0]).await;
    let caller = stage.caller.clone();
    let call = tokio::spawn(async move { caller.call_answered(key, Ask::Notes).await });
    stage.waits(1).await;
    stage.workers[owners[0]].open();
    waits.await.unwrap();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[0]].name());
}

#[tokio::test]
async fn a_call_that_takes_long_is_made_on_the_next_owner_too_where_that_is_allowed() {
    let options = CallOptions::new().idempotent().hedge();
    let stage = Stage::set(options).await;
    let key = Key::from("key");
    let owners = stage.owners(key);
    // From the hundredth on it is known what is long.
    for number in 0..200_u64 {
        stage.caller.call(number, Ask::Notes).await.unwrap();
    }
    let waits = stage.busy(owners[0]).await;
    let answer = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[1]].name());
    // One that may not run twice waits for its owner.
    let once = stage.caller.with(CallOptions::new().hedge());
    let call = tokio::spawn(async move { once.call_answered(key, Ask::Notes).await });
    stage.waits(1).await;
    stage.workers[owners[0]].open();
    waits.await.unwrap();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[0]].name());
}

#[tokio::test]
async fn owners_in_the_callers_zone_come_first_where_that_is_asked_for() {
    let zones = ["north", "south", "south", "south"];
    let stage = Stage::set_in(bounded(), zones).await;
    let near_first = stage.caller.with(bounded().zone_first());
    let mut elsewhere = 0;
    for key in (0..50_u64).map(Key::from) {
        let owners = stage.owners(key);
        let near = owners.iter().find(|at| **at != 0).unwrap();
        let answer = near_first.call_answered(key, Ask::Notes).await.unwrap();
        assert_eq!(answer.by.node(), stage.nodes[*near].name());
        let answer = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
        assert_eq!(answer.by.node(), stage.nodes[owners[0]].name());
        elsewhere += usize::from(owners[0] == 0);
    }
    assert!(elsewhere > 0, "the other zone owns keys");
    // Where those in the zone are busy, the one that is not is asked.
    let key = key_of(&stage.caller, "a");
    let waits = [stage.busy(1).await, stage.busy(2).await];
    let answer = near_first.call_answered(key, Ask::Notes).await.unwrap();
    assert_eq!(answer.by.node(), stage.nodes[0].name());
    for (at, waits) in [1, 2].into_iter().zip(waits) {
        stage.workers[at].open();
        waits.await.unwrap();
    }
}

#[tokio::test]
async fn an_owner_that_told_a_longer_queue_is_passed_by_without_being_asked() {
    let stage = Stage::set(bounded()).await;
    let key = Key::from("key");
    let owners = stage.owners(key);
    let waits = stage.busy(owners[0]).await;
    let with = |depth, stay| {
        let routing = Routing::Bounded {
            owners: 4,
            depth,
            stay,
        };
        let options = CallOptions::new().routing(routing);
        stage
            .caller
            .with(options.timeout(Duration::from_millis(100)))
    };
    // Behind the one at work, so that it tells of two.
    let waiting = {
        let plain = stage.caller.with(CallOptions::new());
        tokio::spawn(async move { plain.call(key, Ask::Notes).await })
    };
    stage.waits(1).await;
    let staying = with(u8::MAX, Some(1));
    // What was told counts for 50 ms: where the machine was busy for longer, once more.
    eventually("it is passed by", async || {
        let refused = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
        assert_eq!(refused.by.node(), stage.nodes[owners[1]].name());
        let before = stage.sent().await;
        match staying.call_answered(key, Ask::Notes).await {
            Ok(answer) => {
                assert_eq!(answer.by.node(), stage.nodes[owners[1]].name());
                assert_eq!(stage.sent().await - before, 1);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    // It is not longer by more than that, or nobody passes anybody by. It takes two only once it is no longer that young.
    for patient in [with(u8::MAX, Some(2)), with(u8::MAX, None)] {
        eventually("the owner takes it", async || {
            stage.caller.call(key, Ask::Notes).await.unwrap();
            match patient.call_answered(key, Ask::Notes).await {
                Err(CallError::Timeout { .. }) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    stage.workers[owners[0]].open();
    waits.await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_full_mailbox_refuses_is_sent_again_only_within_the_budget() {
    let network = MemoryNetwork::new();
    let [host, near] = start_all(&network, ["host", "near"], |node| node).await;
    let worker = Worker::default();
    let options = ServeOptions::new().mailbox(1);
    host.serve_with(options, worker.clone()).await.unwrap();
    let workers = near.services::<Workers>();
    workers.wait_online(1).await.unwrap();
    // These earn retries: a tenth of fifty calls.
    let tenth = workers.with(CallOptions::new().retry_budget(10, 0));
    for _ in 0..50 {
        tenth.call("key", Ask::Notes).await.unwrap();
    }
    // One is at work, and the one behind it is all that the mailbox takes. What comes from the same node comes after it.
    let received = async || host.stats().await.unwrap().data.calls_received;
    let before = received().await;
    let mut waiting = Vec::new();
    for of in [host.services::<Workers>(), near.services::<Workers>()] {
        let call = async move { of.call("key", Ask::Wait).await };
        waiting.push(tokio::spawn(call));
        worker.has("waiting").await;
    }
    eventually("one waits", async || match received().await - before {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    })
    .await;
    let sent = async || near.stats().await.unwrap().data.calls_sent;
    // Of a handle's own: a budget is shared by its clones.
    let once = near.services::<Workers>();
    let once = once.with(CallOptions::new().retry_budget(0, 0));
    let before = sent().await;
    let error = once.call("key", Ask::Notes).await.unwrap_err();
    assert!(matches!(error, CallError::Overloaded { .. }), "{error:?}");
    assert_eq!(sent().await - before, 1);
    // What was earned is forgotten within ten seconds, so that it may be fewer; and it is used up for those after it.
    let before = sent().await;
    let error = tenth.call("key", Ask::Notes).await.unwrap_err();
    assert!(matches!(error, CallError::Overloaded { .. }), "{error:?}");
    let messages = sent().await - before;
    assert!((2..=6).contains(&messages), "{messages}");
    let before = sent().await;
    tenth.call("key", Ask::Notes).await.unwrap_err();
    assert_eq!(sent().await - before, 1);
    // With a budget for it, it goes on until there is room.
    let plenty = CallOptions::new().retry_budget(1_000, 1_000);
    let plenty = workers.with(plenty.timeout(support::PATIENCE));
    let before = sent().await;
    let call = tokio::spawn(async move { plenty.call("key", Ask::Notes).await });
    eventually("it was sent several times", async || {
        let messages = sent().await - before;
        if messages > 6 {
            Ok(())
        } else {
            Err(format!("{messages}"))
        }
    })
    .await;
    worker.open();
    worker.open();
    for waits in waiting {
        waits.await.unwrap().unwrap();
    }
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_that_falls_silent_costs_a_hedged_call_nothing_but_its_hedge() {
    for routing in [Routing::Owner, Routing::bounded()] {
        let options = CallOptions::new().routing(routing).idempotent().hedge();
        let stage = Stage::set(options).await;
        let key = Key::from("key");
        let owners = stage.owners(key);
        // From the hundredth on it is known what is long.
        for number in 0..200_u64 {
            stage.caller.call(number, Ask::Notes).await.unwrap();
        }
        let silent = stage.nodes[owners[0]].name().to_string();
        stage.network.cut("caller:1", &format!("{silent}:1"));
        // Without a budget there is no hedge: the call is lost with its connection.
        let alone = CallOptions::new().hedge().idempotent();
        let alone = alone.routing(Routing::Owner).retry_budget(0, 0);
        let alone = stage.nodes[3].services::<Workers>().with(alone);
        let lost = tokio::spawn(async move { alone.call(key, Ask::Notes).await });
        stage.waits(1).await;
        let answer = stage.caller.call_answered(key, Ask::Notes).await.unwrap();
        assert_eq!(answer.by.node(), stage.nodes[owners[1]].name());
        let error = lost.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn as_many_replies_as_are_asked_for_are_waited_for_and_the_other_calls_are_cancelled() {
    let stage = Stage::set(CallOptions::new()).await;
    let key = Key::from("key");
    let owners = stage.owners(key);
    let waits = stage.busy(owners[0]).await;
    for (replies, count) in [
        (Replies::First, 1),
        (Replies::FirstK(0), 1),
        (Replies::FirstK(2), 2),
        (Replies::Quorum, 2),
    ] {
        let some = stage.caller.with(CallOptions::new().replies(replies));
        let results = some.multi_call(key, 3, Ask::Note(7)).await;
        let replied = results.iter().filter(|(_, reply)| reply.is_ok()).count();
        assert!((count..=2).contains(&replied), "{replies:?} {results:?}");
        assert_eq!(results.len(), replied);
    }
    // Not as many as are asked for: all that come, with the failure of the one that does not within the one deadline.
    let options = CallOptions::new()
        .replies(Replies::FirstK(3))
        .timeout(Duration::from_millis(50));
    let results = stage
        .caller
        .with(options)
        .multi_call(key, 3, Ask::Notes)
        .await;
    assert_eq!(results.len(), 3);
    assert_eq!(results.iter().filter(|(_, reply)| reply.is_ok()).count(), 2);
    stage.workers[owners[0]].open();
    waits.await.unwrap();
    // Those that were cancelled were not started once its turn came.
    let owner = stage.caller.find(key).unwrap();
    let notes = stage.caller.at(owner.id().clone()).call(Ask::Notes).await;
    assert!(notes.unwrap().is_empty());
    // All are waited for where nothing else is said.
    let results = stage.caller.multi_call(key, 3, Ask::Notes).await;
    assert_eq!(results.iter().filter(|(_, reply)| reply.is_ok()).count(), 3);
}

#[tokio::test]
async fn all_calls_to_several_instances_have_one_deadline() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let stage = Stage::set(CallOptions::new().timeout(TIMEOUT)).await;
    let mut waiting = Vec::new();
    for at in 0..3 {
        waiting.push(stage.busy(at).await);
    }
    for replies in [
        Replies::All,
        Replies::First,
        Replies::FirstK(2),
        Replies::Quorum,
    ] {
        let options = CallOptions::new().timeout(TIMEOUT).replies(replies);
        let some = stage.caller.with(options);
        // One deadline each, one after the other, would be three times as long.
        let results = tokio::select! {
            biased;
            results = some.multi_call("key", 3, Ask::Note(7)) => results,
            () = tokio::time::sleep(TIMEOUT * 5 / 2) => panic!("{replies:?}: later than its deadline"),
        };
        assert_eq!(results.len(), 3);
        for (_, result) in results {
            let after = TIMEOUT;
            assert_eq!(result, Err(CallError::Timeout { after }));
        }
    }
    for (worker, waits) in stage.workers.iter().zip(waiting) {
        worker.open();
        waits.await.unwrap();
    }
    // What had no time left was not started.
    let results = stage.caller.multi_call("key", 3, Ask::Notes).await;
    assert_eq!(results.len(), 3);
    for (_, notes) in results {
        assert_eq!(notes, Ok(Vec::new()));
    }
}

#[test]
fn the_future_of_a_call_is_send_whatever_its_message_is() {
    struct Cells;

    impl keydispatch::Protocol for Cells {
        const NAME: &'static str = "cells";
        type Call = std::cell::Cell<u64>;
        type Reply = std::cell::Cell<u64>;
        type Cast = std::cell::Cell<u64>;
    }

    fn is_send(_: &impl Send) {}

    // To compile it is the test.
    let _: fn(&ServiceHandle<Cells>) = |cells| {
        is_send(&cells.call(1_u64, std::cell::Cell::new(1)));
        is_send(&cells.call_answered(1_u64, std::cell::Cell::new(1)));
    };
}
