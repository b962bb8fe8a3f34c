//! Routing that follows load: who is asked, who refuses, what is hedged, and which replies are enough.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{CallOptions, Key, Node, Replies, Routing, ServiceHandle};

mod support;

use support::{Ask, Tell, Worker, Workers, eventually, start_all};

/// Refuses while one call is there: what a young instance does at any depth.
const AT_ONE: Routing = Routing::Bounded {
    owners: 4,
    depth: 1,
    stay: None,
};

/// Three nodes with a worker each, and a fourth that calls.
struct Stage {
    nodes: [Node; 4],
    workers: [Worker; 3],
    caller: ServiceHandle<Workers>,
}

impl Stage {
    async fn set(options: CallOptions) -> Stage {
        let network = MemoryNetwork::new();
        let nodes = start_all(&network, ["a", "b", "c", "caller"], |node| node).await;
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
    eventually("the call waits", async || {
        let stats = stage.nodes[3].stats().await.unwrap();
        let sent = stats.data.calls_pending;
        if sent == 1 {
            Ok(())
        } else {
            Err(format!("{sent}"))
        }
    })
    .await;
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
    eventually("the call waits", async || {
        let stats = stage.nodes[3].stats().await.unwrap();
        let sent = stats.data.calls_pending;
        if sent == 1 {
            Ok(())
        } else {
            Err(format!("{sent}"))
        }
    })
    .await;
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
    eventually("the call waits", async || {
        let stats = stage.nodes[3].stats().await.unwrap();
        let sent = stats.data.calls_pending;
        if sent == 1 {
            Ok(())
        } else {
            Err(format!("{sent}"))
        }
    })
    .await;
    stage.workers[owners[0]].open();
    waits.await.unwrap();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.by.node(), stage.nodes[owners[0]].name());
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
