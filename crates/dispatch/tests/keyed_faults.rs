//! What becomes of states while nodes do not reach each other.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{KeyedEvent, Node, ServedKeyed};

mod keyed_support;
mod support;

use keyed_support::{Ask, Rooms, RoomsOf, Told};
use support::{PATIENCE, eventually, members, start_all};

const KEYS: u64 = 40;

async fn note(node: &Node, key: u64, note: u64) {
    let rooms = node.keyed::<RoomsOf>();
    eventually("it is noted", async || {
        rooms.cast(key, note).map_err(|error| error.to_string())?;
        match rooms.call(key, Ask::Notes).await {
            Ok(Told::Notes(notes)) if notes.contains(&note) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn notes(node: &Node, key: u64) -> BTreeSet<u64> {
    let rooms = node.keyed::<RoomsOf>().timeout(PATIENCE);
    match rooms.call(key, Ask::Notes).await {
        Ok(Told::Notes(notes)) => notes.into_iter().collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn both_sides_of_a_partition_serve_and_their_states_merge_when_it_is_over() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    let served: Vec<ServedKeyed<Rooms>> = vec![
        a.serve_keyed(Rooms::default()).await.unwrap(),
        b.serve_keyed(Rooms::default()).await.unwrap(),
    ];
    for node in [&a, &b] {
        node.keyed::<RoomsOf>().wait_online(2).await.unwrap();
    }
    for key in 0..KEYS {
        note(&a, key, 1).await;
    }
    let mut events: Vec<_> = served.iter().map(ServedKeyed::events).collect();
    network.cut("a:1", "b:1");
    members(&a, 0).await;
    members(&b, 0).await;
    // Each side has all keys now; what the other had is not here.
    for key in 0..KEYS {
        note(&a, key, 2).await;
        note(&b, key, 3).await;
    }
    network.heal_all();
    members(&a, 1).await;
    members(&b, 1).await;
    let expected = BTreeSet::from([1, 2, 3]);
    for node in [&a, &b] {
        for key in 0..KEYS {
            eventually("both histories are there", async || {
                match notes(node, key).await {
                    all if all == expected => Ok(()),
                    other => Err(format!("key {key}: {other:?}")),
                }
            })
            .await;
        }
    }
    // No key has two states any more.
    eventually("each state is at one place", async || {
        let all: usize = served.iter().map(ServedKeyed::keys).sum();
        if all as u64 == KEYS {
            Ok(())
        } else {
            Err(all.to_string())
        }
    })
    .await;
    let mut conflicts = 0;
    for events in &mut events {
        while let Some(event) = events.try_next() {
            if let KeyedEvent::Conflict { keys, .. } = event {
                conflicts += keys as u64;
            }
        }
    }
    assert_eq!(conflicts, KEYS);
    drop((a, b));
}
