//! Watching a type by ETag, long poll and stream: nothing is missed, and nothing seen twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;

use keydispatch_agent::{Events, StreamEvent};
use serde_json::{Value, json};
use support::{Cluster, chat, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// What a watcher knows: each instance with its version.
#[derive(Debug, Default, PartialEq)]
struct Known(BTreeMap<String, (String, u64)>);

impl Known {
    /// Takes an event, and fails where it is one too many or too few.
    fn take(&mut self, event: &StreamEvent) {
        let of = |info: &Value| {
            let id = info["id"].as_str().unwrap().to_owned();
            let version = info["reference"]
                .as_str()
                .unwrap()
                .rsplit(':')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            (id, (info["state"].as_str().unwrap().to_owned(), version))
        };
        match event.name.as_str() {
            "snapshot" => {
                self.0 = event.data["instances"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(of)
                    .collect()
            }
            "joined" => {
                let (id, info) = of(&event.data["service"]);
                assert_eq!(self.0.insert(id, info), None, "joined twice: {event:?}");
            }
            "left" => {
                let (id, _) = of(&event.data["service"]);
                assert!(self.0.remove(&id).is_some(), "left twice: {event:?}");
            }
            "updated" => {
                let (id, before) = of(&event.data["before"]);
                let (_, after) = of(&event.data["service"]);
                assert_eq!(self.0.insert(id, after), Some(before), "{event:?}");
            }
            "lagged" => {}
            other => panic!("{other}"),
        }
    }
}

async fn truth(cluster: &Cluster) -> Known {
    let mut known = Known::default();
    let answer = cluster
        .ask("a", "GET", "/v1/types/chat?after=x", None)
        .await;
    known.take(&serde_json::from_value::<Snapshot>(answer.body).unwrap().0);
    known
}

struct Snapshot(StreamEvent);

impl<'de> serde::Deserialize<'de> for Snapshot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let data = Value::deserialize(deserializer)?;
        let text = format!("event: snapshot\ndata: {data}\n\n");
        Ok(Snapshot(read_block(&text)))
    }
}

fn read_block(text: &str) -> StreamEvent {
    keydispatch_agent::StreamEvent::parse(text).unwrap()
}

async fn follow(cluster: &Cluster) -> Events {
    let client = cluster.client("a");
    client
        .follow("GET", "/v1/types/chat", None)
        .await
        .unwrap()
        .unwrap()
}

/// Reads until what is known is what there is.
async fn catch_up(cluster: &Cluster, events: &mut Events, known: &mut Known) {
    while *known != truth(cluster).await {
        known.take(&events.next().await.unwrap().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_every_change_once_while_others_change_all_the_time() {
    let cluster = Cluster::start(2, &[]).await;
    let mut known = Known::default();
    let mut events = follow(&cluster).await;
    let first = events.next().await.unwrap().unwrap();
    assert_eq!(first.name, "snapshot");
    known.take(&first);
    for round in 0..20 {
        let id = format!("chat-{}", round % 5);
        let node = if round % 2 == 0 { "a" } else { "b" };
        let answer = cluster
            .ask(
                node,
                "PUT",
                &format!("/v1/endpoints/{id}"),
                Some(chat(8000 + round % 3)),
            )
            .await;
        assert!(answer.is_ok(), "{}", answer.text);
        let state = json!({ "state": if round % 3 == 0 { "offline" } else { "online" } });
        cluster
            .ask(
                node,
                "POST",
                &format!("/v1/endpoints/{id}/state"),
                Some(state),
            )
            .await;
        if round % 7 == 6 {
            cluster
                .ask(node, "DELETE", &format!("/v1/endpoints/{id}"), None)
                .await;
        }
        // Somebody comes in the middle.
        if round == 10 {
            let mut late = follow(&cluster).await;
            let mut known = Known::default();
            known.take(&late.next().await.unwrap().unwrap());
            catch_up(&cluster, &mut late, &mut known).await;
        }
    }
    catch_up(&cluster, &mut events, &mut known).await;
    cluster.stop().await;
}

/// A watcher that comes back with the id of the event that it had last.
async fn resume(cluster: &Cluster, last: &str) -> (BufReader<UnixStream>, StreamEvent) {
    let mut stream = UnixStream::connect(cluster.socket("a")).await.unwrap();
    let request = format!(
        "GET /v1/types/chat HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nlast-event-id: {last}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        if line.starts_with("event: ") {
            let (mut id, mut data) = (String::new(), String::new());
            reader.read_line(&mut id).await.unwrap();
            reader.read_line(&mut data).await.unwrap();
            return (reader, read_block(&format!("{line}{id}{data}\n")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_goes_on_where_it_was_and_after_a_restart_from_a_snapshot() {
    let mut cluster = Cluster::start(1, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    let mut events = follow(&cluster).await;
    let snapshot = events.next().await.unwrap().unwrap();
    drop(events);
    cluster.put("a", "chat-2", chat(8002)).await;
    cluster.put("a", "chat-3", chat(8003)).await;
    let (_, second) = resume(&cluster, &snapshot.id.unwrap()).await;
    assert_eq!(
        (second.name.as_str(), &second.data["service"]["name"]),
        ("joined", &json!("chat-2"))
    );
    let last = second.id.unwrap();
    let (_, third) = resume(&cluster, &last).await;
    assert_eq!(
        (third.name.as_str(), &third.data["service"]["name"]),
        ("joined", &json!("chat-3"))
    );
    cluster.agents.pop().unwrap().stop().await.unwrap();
    cluster.add("a").await;
    let (_, anew) = resume(&cluster, &last).await;
    assert_eq!(anew.name, "snapshot");
    assert_eq!(anew.data["instances"].as_array().unwrap().len(), 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_far_behind_is_told_and_starts_from_a_snapshot() {
    let cluster = Cluster::start(1, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    let mut events = follow(&cluster).await;
    let snapshot = events.next().await.unwrap().unwrap();
    drop(events);
    let mut there_all_the_time = follow(&cluster).await;
    there_all_the_time.next().await.unwrap().unwrap();
    // More than are kept, of another type: what was missed of this one is not known any more.
    let registry = cluster.agents[0].node().registry();
    for round in 0..2_100 {
        let service = keydispatch::NewService::endpoint("noise", format!("h:{}", 1 + round));
        let mut registration = registry.add_service(service).await.unwrap();
        registration.disable().await.unwrap();
    }
    eventually("all of it has gone through", async || {
        let events = cluster.get("a", "/v1/events?type=noise&limit=1").await;
        let last = &events["events"][0];
        if last["name"] == "h:2100" && last["kind"] == "state" {
            Ok(())
        } else {
            Err(last.to_string())
        }
    })
    .await;
    let (mut rest, first) = resume(&cluster, &snapshot.id.unwrap()).await;
    assert_eq!(first.name, "lagged");
    let mut text = String::new();
    while !text.contains("chat-1") {
        let mut part = [0; 1024];
        let read = rest.read(&mut part).await.unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    assert!(text.contains("event: snapshot"), "{text}");
    // Who was there all the time has missed nothing of its type.
    cluster.put("a", "chat-2", chat(8002)).await;
    let next = there_all_the_time.next().await.unwrap().unwrap();
    assert_eq!(
        (next.name.as_str(), &next.data["service"]["name"]),
        ("joined", &json!("chat-2"))
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_waits_for_a_change_of_its_type_and_an_etag_saves_the_answer() {
    let cluster = Cluster::start(1, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    let state = cluster.get("a", "/v1/types/chat").await;
    let index = state["index"].as_str().unwrap().to_owned();
    let unchanged = cluster
        .ask("a", "GET", &format!("/v1/types/chat?after={index}"), None)
        .await;
    assert_eq!((unchanged.status, unchanged.text.as_str()), (304, ""));
    let waiting = {
        let client = cluster.client("a");
        let path = format!("/v1/types/chat?after={index}&wait=30s");
        tokio::spawn(async move { client.ask("GET", &path, None).await.unwrap() })
    };
    // What happens to other types is none of its business.
    let mut other = chat(8009);
    other["type"] = json!("other");
    cluster.put("a", "other-1", other).await;
    let again = cluster
        .ask(
            "a",
            "GET",
            &format!("/v1/types/chat?after={index}&wait=10ms"),
            None,
        )
        .await;
    assert_eq!(again.status, 304);
    cluster.put("a", "chat-2", chat(8002)).await;
    let changed = waiting.await.unwrap();
    assert_eq!((changed.status, &changed.body["online"]), (200, &json!(2)));
    // A type that goes is a change, too.
    let index = changed.body["index"].as_str().unwrap().to_owned();
    for id in ["chat-1", "chat-2"] {
        cluster
            .ask("a", "DELETE", &format!("/v1/endpoints/{id}"), None)
            .await;
    }
    let gone = cluster
        .ask(
            "a",
            "GET",
            &format!("/v1/types/chat?after={index}&wait=30s"),
            None,
        )
        .await;
    assert_eq!((gone.status, &gone.body["instances"]), (200, &json!([])));
    let none = gone.body["index"].as_str().unwrap();
    let still = cluster
        .ask(
            "a",
            "GET",
            &format!("/v1/types/chat?after={none}&wait=10ms"),
            None,
        )
        .await;
    assert_eq!(still.status, 304);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_happens_is_told_with_its_cause_as_it_happens() {
    let mut cluster = Cluster::start(2, &[]).await;
    let client = cluster.client("a");
    let mut events = client
        .follow("GET", "/v1/events?type=chat", None)
        .await
        .unwrap()
        .unwrap();
    cluster.put("b", "chat-1", chat(8001)).await;
    let mut next = async |kind: &str| loop {
        let event = events.next().await.unwrap().unwrap();
        if event.name == kind {
            return event.data;
        }
    };
    assert_eq!(
        next("joined").await["because"],
        "chat-1 was registered on b"
    );
    let state = json!({ "state": "offline", "reason": "too hot" });
    cluster
        .ask("b", "POST", "/v1/endpoints/chat-1/state", Some(state))
        .await;
    assert_eq!(
        next("state").await["because"],
        "chat-1 went offline: too hot"
    );
    cluster.agents.pop().unwrap().stop().await.unwrap();
    assert_eq!(
        next("left").await["because"],
        "chat-1 went: its node b left"
    );
    cluster.stop().await;
}
