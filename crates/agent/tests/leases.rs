//! How long endpoints live: leases by time, by connection, by process, and over restarts; and what checks make of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{BROKEN, Cluster, ELSEWHERE, FINE, Server, chat, eventually};

/// How `id` is listed on an agent: its state and reason, or nothing.
async fn listed(cluster: &Cluster, name: &str, id: &str) -> Option<(String, Option<String>)> {
    let answer = cluster.ask(name, "GET", "/v1/types/chat", None).await;
    let instances = answer.body["instances"].as_array()?;
    let info = instances.iter().find(|info| info["name"] == id)?;
    Some((
        info["state"].as_str().unwrap().to_owned(),
        info["reason"].as_str().map(str::to_owned),
    ))
}

async fn comes_to(cluster: &Cluster, name: &str, id: &str, state: Option<&str>) -> Option<String> {
    eventually(&format!("{id} is {state:?} on {name}"), async || {
        let seen = listed(cluster, name, id).await;
        match (&seen, state) {
            (None, None) => Ok(None),
            (Some((there, reason)), Some(state)) if there == state => Ok(reason.clone()),
            _ => Err(format!("{seen:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_renewed_goes_and_what_is_stays() {
    let cluster = Cluster::start(2, &[]).await;
    let mut short = chat(8001);
    short["lease"] = json!({ "ttl": "1s" });
    let first = cluster.put("a", "chat-1", short.clone()).await;
    assert!(first["renew_before"].is_string());
    // For longer than it would live without.
    let until = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < until {
        let renewed = cluster.put("a", "chat-1", short.clone()).await;
        assert_eq!(renewed["service"], first["service"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    comes_to(&cluster, "b", "chat-1", None).await;
    assert_eq!(
        cluster
            .ask("a", "GET", "/v1/endpoints/chat-1", None)
            .await
            .status,
        404
    );
    let events = cluster.get("a", "/v1/events?type=chat").await;
    let gone = events["events"].as_array().unwrap().iter().any(|event| {
        event["kind"] == "endpoint_gone" && event["because"] == "chat-1: it was not renewed in time"
    });
    assert!(gone, "{events}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_with_a_connection_goes_with_it_and_not_with_an_earlier_one() {
    let cluster = Cluster::start(2, &[]).await;
    let mut open = chat(8001);
    open["lease"] = json!({ "connection": true });
    let client = cluster.client("a");
    let path = "/v1/endpoints/chat-1";
    let mut first = client
        .follow("PUT", path, Some(&open))
        .await
        .unwrap()
        .unwrap();
    let registered = first.next().await.unwrap().unwrap();
    assert_eq!(
        (registered.name.as_str(), registered.data["state"].as_str()),
        ("registered", Some("online"))
    );
    let mut second = client
        .follow("PUT", path, Some(&open))
        .await
        .unwrap()
        .unwrap();
    second.next().await.unwrap().unwrap();
    drop(first);
    // It is told what becomes of it.
    let offline = json!({ "state": "offline", "reason": "by hand" });
    client
        .ask("POST", &format!("{path}/state"), Some(&offline))
        .await
        .unwrap();
    let told = second.next().await.unwrap().unwrap();
    assert_eq!(
        (told.name.as_str(), told.data["reason"].as_str()),
        ("state", Some("by hand"))
    );
    assert_eq!(
        comes_to(&cluster, "b", "chat-1", Some("offline"))
            .await
            .as_deref(),
        Some("by hand")
    );
    drop(second);
    comes_to(&cluster, "b", "chat-1", None).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_with_a_process_goes_when_the_kernel_says_so() {
    let cluster = Cluster::start(1, &[]).await;
    let mut process = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let mut bound = chat(8001);
    bound["lease"] = json!({ "pid": process.id() });
    cluster.put("a", "chat-1", bound.clone()).await;
    comes_to(&cluster, "a", "chat-1", Some("online")).await;
    process.kill().unwrap();
    process.wait().unwrap();
    comes_to(&cluster, "a", "chat-1", None).await;
    let answer = cluster
        .ask("a", "PUT", "/v1/endpoints/chat-1", Some(bound))
        .await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lives_until_it_is_deleted_outlives_its_agent() {
    let mut cluster = Cluster::start(2, &[]).await;
    cluster.put("b", "chat-1", chat(8001)).await;
    let mut short = chat(8002);
    short["lease"] = json!({ "ttl": "1h" });
    cluster.put("b", "chat-2", short).await;
    cluster.online("chat", 2).await;
    let socket = cluster.socket("b");
    cluster.agents.pop().unwrap().stop().await.unwrap();
    assert!(!socket.exists());
    comes_to(&cluster, "a", "chat-1", None).await;
    cluster.add("b").await;
    comes_to(&cluster, "a", "chat-1", Some("online")).await;
    assert_eq!(listed(&cluster, "a", "chat-2").await, None);
    cluster
        .ask("b", "DELETE", "/v1/endpoints/chat-1", None)
        .await;
    cluster.agents.pop().unwrap().stop().await.unwrap();
    cluster.add("b").await;
    assert_eq!(listed(&cluster, "b", "chat-1").await, None);
    cluster.stop().await;
}

fn checked(port: u16, check: Value) -> Value {
    let mut body = chat(port);
    body["check"] = check;
    body["check"]["every"] = json!("100ms");
    body["check"]["timeout"] = json!("500ms");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_takes_offline_what_fails_and_brings_it_back_with_the_reason_everywhere() {
    let cluster = Cluster::start(2, &[]).await;
    let server = Server::start(FINE).await;
    let registered = cluster
        .put(
            "a",
            "chat-1",
            checked(server.port, json!({ "http": "/healthz" })),
        )
        .await;
    // Offline until it has passed.
    assert_eq!(registered["state"], "offline");
    comes_to(&cluster, "b", "chat-1", Some("online")).await;
    for (says, reason) in [
        (BROKEN, "http 503 \u{d7}3"),
        (ELSEWHERE, "http 302 \u{d7}3"),
        ("stall", "no answer within 500 ms \u{d7}3"),
    ] {
        server.says.send_replace(says);
        let told = comes_to(&cluster, "b", "chat-1", Some("offline")).await;
        assert_eq!(told.as_deref(), Some(reason));
        server.says.send_replace(FINE);
        comes_to(&cluster, "b", "chat-1", Some("online")).await;
    }
    server.says.send_replace("close");
    let told = comes_to(&cluster, "b", "chat-1", Some("offline"))
        .await
        .unwrap();
    assert!(told.starts_with("no HTTP"), "{told}");
    let seen = cluster.get("b", "/v1/endpoints/chat-1").await;
    assert_eq!(seen["check"]["state"], "failing", "{seen}");
    assert!(seen["check"]["next_at"].is_string() && seen["check"]["failures"].as_u64() >= Some(3));
    server.kill().await;
    eventually("nobody listens any more", async || {
        let seen = cluster.get("a", "/v1/endpoints/chat-1").await;
        if seen["check"]["brief"] == "connection refused" {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_by_connection_and_one_by_word_of_the_endpoint() {
    let cluster = Cluster::start(1, &[]).await;
    let server = Server::start("stall").await;
    cluster
        .put("a", "chat-1", checked(server.port, json!({ "tcp": true })))
        .await;
    comes_to(&cluster, "a", "chat-1", Some("online")).await;
    server.kill().await;
    let told = comes_to(&cluster, "a", "chat-1", Some("offline")).await;
    assert_eq!(told.as_deref(), Some("connection refused \u{d7}3"));
    let mut told = chat(8001);
    told["check"] = json!({ "ttl": "2s" });
    cluster.put("a", "chat-2", told.clone()).await;
    comes_to(&cluster, "a", "chat-2", Some("online")).await;
    let why = comes_to(&cluster, "a", "chat-2", Some("offline")).await;
    assert_eq!(why.as_deref(), Some("not renewed for 2 s"));
    cluster.put("a", "chat-2", told).await;
    comes_to(&cluster, "a", "chat-2", Some("online")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_flaps_moves_keys_once_in_a_while() {
    let cluster = Cluster::start(1, &[("agent.checks.damping", "1h")]).await;
    let server = Server::start(FINE).await;
    let mut body = checked(server.port, json!({ "http": "/" }));
    body["check"]["rise"] = json!(1);
    body["check"]["fall"] = json!(1);
    cluster.put("a", "chat-1", body).await;
    comes_to(&cluster, "a", "chat-1", Some("online")).await;
    server.says.send_replace(BROKEN);
    comes_to(&cluster, "a", "chat-1", Some("offline")).await;
    server.says.send_replace(FINE);
    eventually("the check passes again", async || {
        let seen = cluster.get("a", "/v1/endpoints/chat-1").await;
        if seen["check"]["state"] == "passing" {
            Ok(())
        } else {
            Err(seen.to_string())
        }
    })
    .await;
    // Once in an hour, here.
    let (state, _) = listed(&cluster, "a", "chat-1").await.unwrap();
    assert_eq!(state, "offline");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_take_no_more_offline_than_they_may() {
    let cluster = Cluster::start(1, &[("agent.checks.min_healthy", "50%")]).await;
    let servers = [
        Server::start(FINE).await,
        Server::start(FINE).await,
        Server::start(FINE).await,
    ];
    for (at, server) in servers.iter().enumerate() {
        cluster
            .put(
                "a",
                &format!("chat-{at}"),
                checked(server.port, json!({ "http": "/" })),
            )
            .await;
    }
    cluster.online("chat", 3).await;
    for server in &servers {
        server.says.send_replace(BROKEN);
    }
    eventually("all checks fail, and two stay online", async || {
        let seen = cluster.get("a", "/v1/endpoints").await;
        let all = seen["endpoints"].as_array().unwrap();
        let failing = all
            .iter()
            .filter(|of| of["check"]["failures"].as_u64() >= Some(6))
            .count();
        let online = all.iter().filter(|of| of["state"] == "online").count();
        if (failing, online) == (3, 2) {
            Ok(())
        } else {
            Err(format!("{failing} {online}"))
        }
    })
    .await;
    let events = cluster.get("a", "/v1/events?type=chat").await;
    assert!(
        events["events"]
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["kind"] == "min_healthy")
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_checked_that_only_this_machine_reaches_for_somebody_else() {
    let cluster = Cluster::start(1, &[]).await;
    for (at, target) in [
        "http://169.254.169.254/",
        "http://192.0.2.1:80/",
        "http://[fe80::1]:80/",
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("chat-{at}");
        cluster
            .put("a", &id, checked(8001, json!({ "http": target })))
            .await;
        eventually("it is refused", async || {
            let seen = cluster.get("a", &format!("/v1/endpoints/{id}")).await;
            let brief = seen["check"]["brief"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if brief.contains("never checked") || brief.contains("agent.checks.allow") {
                Ok(())
            } else {
                Err(seen.to_string())
            }
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_vouch_for_one_endpoint_and_no_key_moves_when_one_of_them_goes() {
    let mut cluster = Cluster::start(3, &[]).await;
    let server = Server::start(FINE).await;
    let mut body = checked(server.port, json!({ "http": "/" }));
    body["vouch"] = json!(2);
    cluster.put("c", "chat-1", body.clone()).await;
    cluster.put("a", "chat-2", chat(8002)).await;
    let twin = eventually("two agents hold it, online", async || {
        let listed = cluster.get("a", "/v1/types/chat").await;
        let of_1: Vec<&Value> = listed["instances"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|info| info["name"] == "chat-1")
            .collect();
        let online = of_1.iter().filter(|info| info["state"] == "online").count();
        let other = of_1.iter().find(|info| info["node"] != "c");
        match (online, other) {
            (2, Some(other)) => Ok(other["node"].as_str().unwrap().to_owned()),
            _ => Err(listed.to_string()),
        }
    })
    .await;
    let seen = cluster.get("c", "/v1/endpoints/chat-1").await;
    let mut vouchers = vec![twin.clone(), "c".to_owned()];
    vouchers.sort();
    assert_eq!(seen["vouchers"], json!(vouchers));
    // Both carry one state: the twin of what failed takes no keys.
    server.says.send_replace(BROKEN);
    cluster.online("chat", 1).await;
    server.says.send_replace(FINE);
    cluster.online("chat", 3).await;
    let keys: Vec<Value> = (0..200).map(|at| json!(at)).collect();
    let owners = async |cluster: &Cluster| -> Vec<String> {
        let told = cluster
            .ask(
                "a",
                "POST",
                "/v1/types/chat/owners",
                Some(json!({ "keys": keys })),
            )
            .await
            .body;
        let name =
            |number: &Value| told["owners"][number.as_u64().unwrap() as usize]["name"].to_string();
        told["of_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(name)
            .collect()
    };
    let before = owners(&cluster).await;
    // As if its process had died; looked at all the time until the others know.
    drop(cluster.agents.pop().unwrap());
    eventually("its node has gone", async || {
        assert_eq!(owners(&cluster).await, before);
        let listed = cluster.get("a", "/v1/types/chat").await;
        let instances = listed["instances"].as_array().unwrap();
        if instances.iter().all(|info| info["node"] != "c") {
            Ok(())
        } else {
            Err(listed.to_string())
        }
    })
    .await;
    // The one that is left checks for itself now, and has found another one to vouch for it.
    cluster.online("chat", 3).await;
    server.says.send_replace(BROKEN);
    cluster.online("chat", 1).await;
    server.says.send_replace(FINE);
    cluster.online("chat", 3).await;
    assert_eq!(owners(&cluster).await, before);
    // What is taken away is taken away at both.
    let mut other = chat(8003);
    other["vouch"] = json!(2);
    cluster.put("b", "chat-3", other).await;
    cluster.online("chat", 5).await;
    cluster
        .ask("b", "DELETE", "/v1/endpoints/chat-3", None)
        .await;
    cluster.online("chat", 3).await;
    let refused = cluster
        .ask(
            "a",
            "PUT",
            "/v1/endpoints/x",
            Some({
                let mut open = body.clone();
                open["lease"] = json!({ "connection": true });
                open
            }),
        )
        .await;
    assert_eq!(refused.status, 400);
    cluster.stop().await;
}
