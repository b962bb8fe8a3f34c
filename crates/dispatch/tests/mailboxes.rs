//! Mailboxes are bounded in bytes as well as in messages.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{CallError, CallOptions, ServeOptions};

mod support;

use support::{Ask, Tell, Worker, Workers, eventually, start_all};

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
