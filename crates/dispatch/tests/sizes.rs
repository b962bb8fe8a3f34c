//! Nodes that take payloads of different lengths: what is too long for one of them fails alone, whoever sends it, and costs
//! nobody else a connection.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use keydispatch::testkit::{Authority, MemoryNetwork};
use keydispatch::{
    BroadcastError, CallError, CallOptions, Node, NodeBuilder, ServiceHandle, TlsFiles,
};

mod support;

use support::{Ask, Tell, Worker, Workers, describe, eventually, members};

/// What the small node takes, in bytes.
const SMALL: usize = 1_000;

/// A node that takes little, with a worker, and one that takes more, with another.
struct Pair {
    small: Node,
    large: Node,
    /// The small node's worker, called from the large node.
    down: ServiceHandle<Workers>,
    worker: Worker,
    _files: Vec<tempfile::TempDir>,
}

impl Pair {
    /// Over a network in memory, over TCP without encryption, and over TLS.
    async fn over_all() -> [Pair; 3] {
        let network = MemoryNetwork::new();
        let memory = Pair::start(
            describe(&network, "small", &[]),
            describe(&network, "large", &["small:1"]),
        )
        .await;
        let tcp = |name| Node::builder(name).bind("127.0.0.1:0").cluster("sizes");
        let small = tcp("small").plaintext();
        let plain = Pair::start(small, tcp("large").plaintext()).await;
        let authority = Authority::new("sizes").unwrap();
        let (files, paths): (Vec<_>, Vec<_>) = ["small", "large"]
            .map(|name| {
                let issued = authority.issue(name).unwrap();
                let directory = tempfile::tempdir().unwrap();
                let path = |file: &str| directory.path().join(file);
                std::fs::write(path("ca.pem"), authority.ca_pem()).unwrap();
                std::fs::write(path("cert.pem"), &issued.cert_pem).unwrap();
                std::fs::write(path("key.pem"), &issued.key_pem).unwrap();
                let paths = TlsFiles::new(path("ca.pem"), path("cert.pem"), path("key.pem"));
                (directory, paths)
            })
            .into_iter()
            .unzip();
        let [small, large] = <[TlsFiles; 2]>::try_from(paths).unwrap();
        let mut tls = Pair::start(tcp("small").tls(small), tcp("large").tls(large)).await;
        tls._files = files;
        [memory, plain, tls]
    }

    async fn start(small: NodeBuilder, large: NodeBuilder) -> Pair {
        let small = small.max_payload_bytes(SMALL).start().await.unwrap();
        let large = large.seeds([small.address().as_str()]);
        let large = large.start().await.unwrap();
        members(&small, 1).await;
        members(&large, 1).await;
        let worker = Worker::default();
        let served = small.serve(worker.clone()).await.unwrap();
        let workers = large.services::<Workers>();
        workers.wait_online(1).await.unwrap();
        assert_eq!(served.id().node.as_str(), "small");
        Pair {
            small,
            large,
            down: workers,
            worker,
            _files: Vec::new(),
        }
    }
}

fn too_large(reply: bool) -> CallError {
    CallError::TooLarge {
        limit: SMALL,
        reply,
    }
}

#[tokio::test]
async fn what_the_receiver_does_not_take_fails_at_the_sender_and_costs_no_other_call_its_connection()
 {
    for pair in Pair::over_all().await {
        // Answers of these are outstanding all the time.
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let workers = pair.down.clone();
                tokio::spawn(async move { workers.call("key", Ask::Later).await })
            })
            .collect();
        eventually("all of them wait", async || {
            let late = pair
                .worker
                .diary()
                .iter()
                .filter(|it| *it == "later")
                .count();
            if late == 10 {
                Ok(())
            } else {
                Err(late.to_string())
            }
        })
        .await;
        let large = Ask::Bytes(vec![7; 2 * SMALL]);
        let error = pair.down.call("key", large.clone()).await.unwrap_err();
        assert_eq!(error, too_large(false));
        assert!(!error.may_have_run());
        // What can never pass is not tried again.
        let idempotent = pair.down.with(CallOptions::new().idempotent().fallback(3));
        let error = idempotent.call("key", large).await.unwrap_err();
        assert_eq!(error, too_large(false));
        let told = Tell::Yourself(vec![u64::MAX; SMALL]);
        let back = pair.down.cast("key", told.clone()).unwrap_err();
        assert_eq!(back.error, too_large(false));
        assert_eq!(back.message, told);
        let opened = pair.large.stats().await.unwrap().data.connections_opened;
        pair.down.cast("key", Tell::Answer).unwrap();
        for call in waiting {
            assert_eq!(call.await.unwrap(), Ok(Vec::new()));
        }
        let stats = pair.large.stats().await.unwrap().data;
        assert_eq!(stats.connections_opened, opened);
        assert_eq!(opened, 1);
    }
}

#[tokio::test]
async fn a_reply_that_the_caller_does_not_take_fails_its_call_alone() {
    for pair in Pair::over_all().await {
        let served = pair.large.serve(Worker::default()).await.unwrap();
        let up = pair.small.services::<Workers>();
        up.wait_online(2).await.unwrap();
        let up = up.at(served.id().clone());
        let waiting = {
            let up = up.clone();
            tokio::spawn(async move { up.call(Ask::Later).await })
        };
        let error = up.call(Ask::Numbers(SMALL)).await.unwrap_err();
        assert_eq!(error, too_large(true));
        assert!(error.may_have_run());
        eventually("the one that waits is answered", async || {
            up.cast(Tell::Answer).unwrap();
            let ended = waiting.is_finished();
            tokio::task::yield_now().await;
            if ended { Ok(()) } else { Err(String::new()) }
        })
        .await;
        assert_eq!(waiting.await.unwrap(), Ok(Vec::new()));
        assert_eq!(pair.small.stats().await.unwrap().data.connections_opened, 1);
    }
}

#[tokio::test]
async fn a_node_that_takes_less_misses_a_broadcast_and_that_is_counted() {
    for pair in Pair::over_all().await {
        let mut heard = pair.small.pubsub().subscribe("news").unwrap();
        let topics = pair.large.pubsub();
        assert_eq!(topics.broadcast("news", vec![7; SMALL + 1]).unwrap(), 0);
        let error = topics
            .direct_broadcast("small", "news", vec![7; SMALL + 1])
            .unwrap_err();
        let (bytes, limit) = (SMALL + 1, SMALL);
        assert_eq!(error, BroadcastError::TooLarge { bytes, limit });
        let stats = pair.large.stats().await.unwrap().data;
        assert_eq!(stats.too_large_for_peer, 2);
        assert_eq!(topics.broadcast("news", vec![7; SMALL]).unwrap(), 1);
        assert!(heard.next().await.is_some());
    }
}

#[tokio::test]
async fn whatever_passes_at_the_sender_passes_at_the_receiver_to_the_byte() {
    for pair in Pair::over_all().await {
        let mut refused = 0;
        for length in SMALL - 20..SMALL + 600 {
            match pair.down.call("key", Ask::Bytes(vec![7; length])).await {
                Ok(reply) => assert_eq!(reply, [length as u64]),
                Err(error) => {
                    assert_eq!(error, too_large(false));
                    refused += 1;
                }
            }
        }
        assert!(refused > 0);
        assert_eq!(pair.large.stats().await.unwrap().data.connections_opened, 1);
    }
}

#[tokio::test]
async fn how_a_call_failed_is_told_to_a_caller_that_takes_nothing() {
    let network = MemoryNetwork::new();
    let host = describe(&network, "host", &[]).start().await.unwrap();
    let caller = describe(&network, "caller", &["host:1"])
        .max_payload_bytes(0)
        .start()
        .await
        .unwrap();
    let served = host.serve(Worker::default()).await.unwrap();
    let workers = caller.services::<Workers>();
    workers.wait_online(1).await.unwrap();
    let worker = workers.at(served.id().clone());
    assert_eq!(worker.call(Ask::Ignore).await, Err(CallError::NoReply));
    let error = worker.call(Ask::Numbers(SMALL)).await.unwrap_err();
    let limit = 0;
    assert_eq!(error, CallError::TooLarge { limit, reply: true });
    assert_eq!(caller.stats().await.unwrap().data.connections_opened, 1);
}
