//! Mailboxes are bounded in bytes as well as in messages, each by itself and all of a node together.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{CallError, CallOptions, ServeOptions};

mod support;

use support::{Ask, Tell, Worker, Workers, describe, eventually, start_all};

/// About 4,000 bytes.
fn long() -> Tell {
    Tell::Yourself(vec![u64::MAX; 400])
}

#[tokio::test]
async fn a_mailbox_is_full_by_its_bytes_for_whoever_sends_and_has_room_again() {
    let network = MemoryNetwork::new();
    let [host, near] = start_all(&network, ["host", "near"], |node| node).await;
    let worker = Worker::default();
    let options = ServeOptions::new().mailbox_bytes(10_000);
    host.serve_with(options, worker.clone()).await.unwrap();
    let (here, there) = (host.services::<Workers>(), near.services::<Workers>());
    let there = there.with(CallOptions::new().retry_budget(0, 0));
    there.wait_online(1).await.unwrap();
    // It is at work meanwhile, so that what comes waits.
    let at_work = {
        let here = here.clone();
        tokio::spawn(async move { here.call("key", Ask::Wait).await })
    };
    worker.has("waiting").await;
    there.cast("key", long()).unwrap();
    there.cast("key", long()).unwrap();
    let long_call = Ask::Bytes(vec![7; 4_000]);
    let error = there.call("key", long_call.clone()).await.unwrap_err();
    assert!(matches!(error, CallError::Overloaded { .. }), "{error:?}");
    assert!(!error.may_have_run());
    assert_eq!(here.multi_cast("key", 1, long()), 0);
    // What is short still has room.
    let short = {
        let there = there.clone();
        tokio::spawn(async move { there.call("key", Ask::Bytes(vec![7; 10])).await })
    };
    worker.open();
    at_work.await.unwrap().unwrap();
    assert_eq!(short.await.unwrap(), Ok(vec![10]));
    eventually("there is room again", async || {
        let reply = there.call("key", long_call.clone()).await;
        reply.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(here.multi_cast("key", 1, long()), 1);
    // Answered after what waited before it.
    there.call("key", Ask::Notes).await.unwrap();
    // An empty mailbox takes whatever a node takes.
    let reply = there.call("key", Ask::Bytes(vec![7; 20_000])).await;
    assert_eq!(reply, Ok(vec![20_000]));
}

#[tokio::test]
async fn a_peer_that_fills_what_may_wait_on_a_node_leaves_room_for_the_others() {
    const WAITING_BYTES: usize = 40_000;
    let network = MemoryNetwork::new();
    let host = describe(&network, "host", &[]).waiting_bytes(WAITING_BYTES);
    let host = host.start().await.unwrap();
    let greedy = describe(&network, "greedy", &["host:1"])
        .start()
        .await
        .unwrap();
    let modest = describe(&network, "modest", &["host:1"])
        .start()
        .await
        .unwrap();
    let busy: Vec<Worker> = (0..4).map(|_| Worker::default()).collect();
    let mut served = Vec::new();
    let mut at_work = Vec::new();
    for (number, worker) in busy.iter().enumerate() {
        let options = ServeOptions::new().name(format!("busy-{number}"));
        served.push(host.serve_with(options, worker.clone()).await.unwrap());
        let handle = host.services::<Workers>().at(served[number].id().clone());
        at_work.push(tokio::spawn(async move { handle.call(Ask::Wait).await }));
        worker.has("waiting").await;
    }
    let waiting = async |node: &keydispatch::Node| node.stats().await.unwrap().data.waiting_bytes;
    // Far more than there is room for, to each of them.
    let from_greedy = greedy.services::<Workers>();
    from_greedy.wait_online(4).await.unwrap();
    for _ in 0..20 {
        for one in &served {
            let id = one.id().clone();
            let greedy = from_greedy.clone();
            tokio::spawn(async move { greedy.at(id).call(Ask::Bytes(vec![7; 4_000])).await });
        }
    }
    eventually("there is no room left for it", async || {
        let stats = host.stats().await.unwrap().data;
        // Half of it, and what would not have been half without the last of them.
        assert!(
            stats.waiting_bytes <= WAITING_BYTES / 2 + 4_100,
            "{stats:?}"
        );
        if stats.refused_for_want_of_room >= 20 {
            Ok(())
        } else {
            Err(format!("{stats:?}"))
        }
    })
    .await;
    assert!(waiting(&host).await > WAITING_BYTES / 4);
    // The other one finds room for some.
    let from_modest = modest.services::<Workers>();
    from_modest.wait_online(4).await.unwrap();
    let before = waiting(&host).await;
    let id = served[0].id().clone();
    let call =
        tokio::spawn(async move { from_modest.at(id).call(Ask::Bytes(vec![7; 4_000])).await });
    eventually("it waits", async || {
        let now = waiting(&host).await;
        if now > before {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await;
    for worker in &busy {
        worker.open();
    }
    assert_eq!(call.await.unwrap(), Ok(vec![4_000]));
    eventually("nothing waits any more", async || {
        match waiting(&host).await {
            0 => Ok(()),
            bytes => Err(bytes.to_string()),
        }
    })
    .await;
}
