//! What callers see when networks go wrong: in memory, and where this may be done in network namespaces.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::{Duration, Instant};

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{CallError, Node};
use keydispatch_fleet::net;
use keydispatch_fleet::{Counter, CounterCall, Counters, eventually};

/// Membership alone would take this long to notice.
const DOWN_PERIOD: Duration = Duration::from_secs(20);

async fn node(network: &MemoryNetwork, name: &str, seeds: &[&str]) -> Node {
    Node::builder(name)
        .memory(network)
        .bind(format!("{name}:1"))
        .seeds(seeds.iter().copied())
        .down_period(DOWN_PERIOD)
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_silent_peer_costs_the_callers_of_its_keys_a_second_and_others_nothing() {
    let network = MemoryNetwork::new();
    let far = node(&network, "far", &[]).await;
    let near = node(&network, "near", &["far:1"]).await;
    let third = node(&network, "third", &["far:1"]).await;
    let silent = far.serve(Counter::default()).await.unwrap();
    let other = third.serve(Counter::default()).await.unwrap();
    let counters = near.services::<Counters>();
    counters.wait_online(2).await.unwrap();
    let silent = counters.at(silent.id().clone());
    let other = counters.at(other.id().clone());
    silent.call(CounterCall::Sum).await.unwrap();
    other.call(CounterCall::Sum).await.unwrap();

    network.cut("near:1", "far:1");
    let begun = Instant::now();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let silent = silent.clone();
            tokio::spawn(async move { silent.call(CounterCall::Add(1)).await })
        })
        .collect();
    while begun.elapsed() < Duration::from_millis(500) {
        let asked = Instant::now();
        other.call(CounterCall::Add(1)).await.unwrap();
        // Far from what membership, or the silent peer's callers, wait for.
        assert!(asked.elapsed() < DOWN_PERIOD / 4);
    }
    for call in waiting {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
        assert!(error.may_have_run());
    }
    let took = begun.elapsed();
    assert!(
        took < DOWN_PERIOD / 2,
        "membership was not waited for: {took:?}"
    );

    let asked = Instant::now();
    let error = silent.call(CounterCall::Sum).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
    assert!(asked.elapsed() < DOWN_PERIOD / 4);

    network.heal_all();
    eventually("the peer answers again", async || {
        silent
            .call(CounterCall::Sum)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_five_are_killed_behind_a_real_network() {
    let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
    let options = net::Options {
        scenario: Some("kill-two".to_owned()),
        json: false,
        seed: 1,
    };
    // Rule root it says that it did not run.
    net::run(program, &options, |line| println!("{line}"))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_unknown_scenario_is_an_error_that_names_those_there_are() {
    if net::cannot_run().is_some() {
        return;
    }
    let options = net::Options {
        scenario: Some("earthquake".to_owned()),
        json: false,
        seed: 1,
    };
    let error = net::run(Path::new("/"), &options, |_| {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("cable-pulled"), "{error}");
}
