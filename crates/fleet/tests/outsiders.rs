//! A crowd that opens connections, says nothing on them, and comes back as it is sent away: it keeps nobody out, and costs
//! those that are in nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::{Node, NodeBuilder};
use keydispatch_fleet::{Certificates, Counter, CounterCall, Counters, describe};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Connections that are open at any time, or about to be.
const CROWD: usize = 5_000;

/// How long the newcomer may take. It takes milliseconds; this only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

async fn a_silent_crowd_keeps_nobody_out(
    describe: impl Fn(&'static str, &[String]) -> NodeBuilder,
) {
    let target = describe("target", &[]).start().await.unwrap();
    target.serve(Counter::default()).await.unwrap();
    let seeds = [target.address().to_string()];
    let friend = describe("friend", &seeds)
        .start_timeout(PATIENCE)
        .start()
        .await
        .unwrap();
    let counters = friend.services::<Counters>();
    counters.wait_online(1).await.unwrap();
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let address = seeds[0].clone();
        crowd.spawn(async move {
            loop {
                match TcpStream::connect(&address).await {
                    Ok(mut stream) => drop(stream.read_u8().await),
                    // The backlog is full.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
    }
    for _ in 0..3 {
        let newcomer = describe("newcomer", &seeds)
            .expect(2)
            .start_timeout(PATIENCE)
            .start();
        let newcomer = tokio::time::timeout(PATIENCE, newcomer).await;
        let newcomer: Node = newcomer.expect("the newcomer is let in").unwrap();
        assert_eq!(newcomer.members().len(), 2);
        for _ in 0..100 {
            counters.call("key", CounterCall::Add(1)).await.unwrap();
            newcomer
                .services::<Counters>()
                .call("key", CounterCall::Add(1))
                .await
                .unwrap();
        }
        newcomer.leave().await.unwrap();
    }
    crowd.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_crowd_keeps_nobody_out_in_plaintext() {
    a_silent_crowd_keeps_nobody_out(|name, seeds| {
        Node::builder(name)
            .cluster("crowd")
            .bind("127.0.0.1:0")
            .seeds(seeds)
            .plaintext()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_crowd_keeps_nobody_out_over_tls() {
    let certificates = Certificates::make(&["target", "friend", "newcomer"]).unwrap();
    let path = certificates.path();
    a_silent_crowd_keeps_nobody_out(|name, seeds| describe(name, "127.0.0.1:0", seeds, path)).await;
}
