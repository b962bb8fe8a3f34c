//! The API over its unix socket: registering, finding, explaining, planning, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;

use keydispatch::{Codec, Context, Key, Protocol, ReplyTo, Service};
use serde_json::{Value, json};
use support::{Cluster, chat, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn every_agent_names_the_same_owner_and_a_rust_caller_too() {
    let cluster = Cluster::start(3, &[]).await;
    for at in 1..=4 {
        cluster
            .put("a", &format!("chat-{at}"), chat(8000 + at))
            .await;
    }
    cluster.online("chat", 4).await;
    for (query, key) in [
        ("key=room-7", Key::from("room-7")),
        ("key=gr%C3%B6%C3%9Fe", Key::from("größe")),
        ("key.int=-7", Key::from(-7)),
        ("key.hex=00ff", Key::from([0_u8, 255])),
        ("key.tuple=%5B%22tenant%22%2C7%5D", Key::from(("tenant", 7))),
    ] {
        let rust = cluster.agents[2]
            .node()
            .registry()
            .find_service("chat", key)
            .unwrap();
        for name in ["a", "b", "c"] {
            let found = cluster
                .get(name, &format!("/v1/types/chat/owner?{query}&n=3"))
                .await;
            assert_eq!(
                found["owner"]["name"],
                rust.name().as_str(),
                "{query} on {name}"
            );
            assert_eq!(found["owners"].as_array().unwrap().len(), 3);
        }
    }
    let keys: Vec<Value> = (0..10_000).map(|at| json!(at)).collect();
    let many = cluster
        .ask(
            "b",
            "POST",
            "/v1/types/chat/owners",
            Some(json!({ "keys": keys })),
        )
        .await;
    let numbers = many.body["of_keys"].as_array().unwrap();
    assert_eq!(numbers.len(), 10_000);
    for (at, number) in numbers.iter().enumerate().step_by(97) {
        let owner = &many.body["owners"][number.as_u64().unwrap() as usize]["name"];
        let rust = cluster.agents[0]
            .node()
            .registry()
            .find_service("chat", at as i64)
            .unwrap();
        assert_eq!(owner, rust.name().as_str());
    }
    let too_many: Vec<Value> = (0..10_001).map(|at| json!(at)).collect();
    let refused = cluster
        .ask(
            "b",
            "POST",
            "/v1/types/chat/owners",
            Some(json!({ "keys": too_many })),
        )
        .await;
    assert_eq!(refused.status, 413);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_is_idempotent_and_conditions_hold() {
    let cluster = Cluster::start(1, &[]).await;
    let client = cluster.client("a");
    let path = "/v1/endpoints/chat-1";
    let first = client.ask("PUT", path, Some(&chat(8001))).await.unwrap();
    assert_eq!(first.status, 201, "{}", first.text);
    assert_eq!(first.body["expected_share"], 1.0);
    let again = client.ask("PUT", path, Some(&chat(8001))).await.unwrap();
    assert_eq!(
        (again.status, &again.body["service"]),
        (200, &first.body["service"])
    );
    let mut heavier = chat(8001);
    heavier["weight"] = json!(200);
    heavier["tags"] = json!({ "v": "1.4" });
    let updated = client.ask("PUT", path, Some(&heavier)).await.unwrap();
    assert_eq!(
        (updated.status, &updated.body["service"]),
        (200, &first.body["service"])
    );
    let listed = cluster.get("a", "/v1/types/chat?shares=true").await;
    assert_eq!(listed["instances"][0]["weight"], 200);
    assert_eq!(listed["instances"][0]["tags"], json!({ "v": "1.4" }));
    assert_eq!(listed["instances"][0]["share"], 1.0);
    assert!(
        listed["instances"][0]["registered_by"]
            .as_str()
            .unwrap()
            .starts_with("uid:")
    );
    let missing = client
        .ask("GET", "/v1/endpoints/chat-2", None)
        .await
        .unwrap();
    assert_eq!(missing.status, 404);
    let deleted = client.ask("DELETE", path, None).await.unwrap();
    assert_eq!(deleted.status, 200);
    assert_eq!(client.ask("DELETE", path, None).await.unwrap().status, 404);
    assert_eq!(
        client
            .ask("GET", "/v1/types/chat", None)
            .await
            .unwrap()
            .status,
        404
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_agent_shows_changes_and_takes_away_what_another_one_holds() {
    let cluster = Cluster::start(3, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    cluster.put("b", "chat-2", chat(8002)).await;
    cluster.online("chat", 2).await;
    let seen = cluster.get("c", "/v1/endpoints/chat-1").await;
    assert_eq!(
        (seen["node"].as_str(), seen["state"].as_str()),
        (Some("a"), Some("online"))
    );
    let drained = json!({ "state": "draining", "reason": "deploy 1.5" });
    let answer = cluster
        .ask("c", "POST", "/v1/endpoints/chat-1/state", Some(drained))
        .await;
    assert_eq!(answer.body["state"], "draining", "{}", answer.text);
    cluster.online("chat", 1).await;
    let why = cluster
        .get("b", "/v1/types/chat/explain?key=x&nodes=all")
        .await;
    let of_1 = why["order"]
        .as_array()
        .unwrap()
        .iter()
        .find(|of| of["name"] == "chat-1")
        .unwrap();
    assert_eq!(
        (of_1["state"].as_str(), of_1["reason"].as_str()),
        (Some("draining"), Some("deploy 1.5"))
    );
    assert_eq!((&why["agree"], &why["asked"]), (&json!(3), &json!(3)));
    let weighed = cluster
        .ask(
            "c",
            "POST",
            "/v1/types/chat/weight",
            Some(json!({ "instance": "chat-2", "weight": 7 })),
        )
        .await;
    assert_eq!(weighed.body["weight"], 7, "{}", weighed.text);
    // What was set by hand outlives a renewal.
    assert_eq!(cluster.put("b", "chat-2", chat(8002)).await["weight"], 7);
    let gone = cluster
        .ask("c", "DELETE", "/v1/endpoints/chat-1", None)
        .await;
    assert_eq!(gone.status, 200, "{}", gone.text);
    eventually("it is gone everywhere", async || {
        let listed = cluster.get("c", "/v1/types/chat").await;
        if listed["instances"].as_array().unwrap().len() == 1 {
            Ok(())
        } else {
            Err(listed.to_string())
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planned_is_what_comes_key_by_key() {
    let cluster = Cluster::start(2, &[]).await;
    for at in 1..=4 {
        cluster
            .put("a", &format!("chat-{at}"), chat(8000 + at))
            .await;
    }
    cluster.online("chat", 4).await;
    let keys: Vec<Value> = (0..500).map(|at| json!(format!("room-{at}"))).collect();
    let plan = json!({ "remove": ["chat-4"], "weight": { "chat-1": 200 }, "add": [{ "name": "chat-9", "weight": 50 }], "keys": keys });
    let planned = cluster
        .ask("b", "POST", "/v1/types/chat/plan", Some(plan))
        .await
        .body;
    let shares = planned["instances"].as_array().unwrap();
    assert_eq!(shares.len(), 5, "{planned}");
    let total: f64 = shares
        .iter()
        .filter_map(|of| of["share_after"].as_f64())
        .sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
    assert_eq!(cluster.get("b", "/v1/types/chat").await["online"], 4);
    // The same for real.
    let mut heavier = chat(8001);
    heavier["weight"] = json!(200);
    cluster.put("a", "chat-1", heavier).await;
    let mut new = chat(8009);
    new["weight"] = json!(50);
    cluster.put("b", "chat-9", new).await;
    cluster
        .ask("a", "DELETE", "/v1/endpoints/chat-4", None)
        .await;
    eventually("b sees all three changes", async || {
        let listed = cluster.get("b", "/v1/types/chat").await;
        let weights: BTreeMap<String, u64> = listed["instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| {
                (
                    of["name"].as_str().unwrap().to_owned(),
                    of["weight"].as_u64().unwrap(),
                )
            })
            .collect();
        let wanted = [
            ("chat-1", 200),
            ("chat-2", 100),
            ("chat-3", 100),
            ("chat-9", 50),
        ];
        let wanted: BTreeMap<String, u64> = wanted
            .map(|(name, weight)| (name.to_owned(), weight))
            .into();
        if weights == wanted {
            Ok(())
        } else {
            Err(format!("{weights:?}"))
        }
    })
    .await;
    let owners = cluster
        .ask(
            "b",
            "POST",
            "/v1/types/chat/owners",
            Some(json!({ "keys": keys })),
        )
        .await
        .body;
    for (at, planned) in planned["keys"].as_array().unwrap().iter().enumerate() {
        let real = &owners["owners"][owners["of_keys"][at].as_u64().unwrap() as usize]["name"];
        assert_eq!(&planned["after"]["name"], real, "{planned}");
    }
    let minted = cluster
        .ask(
            "b",
            "POST",
            "/v1/types/chat/mint",
            Some(json!({ "instance": "chat-9", "n": 20 })),
        )
        .await
        .body;
    for key in minted["keys"].as_array().unwrap() {
        let found = cluster
            .get(
                "a",
                &format!("/v1/types/chat/owner?key={}", key.as_str().unwrap()),
            )
            .await;
        assert_eq!(found["owner"]["name"], "chat-9");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_keeps_no_keys_and_says_who_has_seen_it() {
    let cluster = Cluster::start(3, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    cluster.put("b", "chat-2", chat(8002)).await;
    cluster.online("chat", 2).await;
    let drained = cluster
        .ask(
            "c",
            "POST",
            "/v1/members/a/drain",
            Some(json!({ "wait": "10s", "reason": "deploy 1.5" })),
        )
        .await;
    assert_eq!(drained.status, 200, "{}", drained.text);
    assert_eq!(drained.body["seen_by"], json!(["b", "c"]));
    assert_eq!(drained.body["endpoints"], 1);
    // Every node has seen it by now.
    for name in ["a", "b", "c"] {
        let found = cluster.get(name, "/v1/types/chat/owner?key=x&n=10").await;
        assert_eq!(found["owners"].as_array().unwrap().len(), 1, "{found}");
    }
    assert_eq!(
        cluster
            .ask("a", "POST", "/v1/members/nobody/drain", None)
            .await
            .status,
        404
    );
    cluster.stop().await;
}

/// What an agent says, told by somebody who lists something else.
struct Other;

impl Protocol for Other {
    const NAME: &'static str = "_dispatch.agent";
    const CODEC: Codec = Codec::Json;
    type Call = Value;
    type Reply = Value;
    type Cast = ();
}

impl Service for Other {
    type Protocol = Other;

    async fn handle_call(&mut self, ask: Value, reply_to: ReplyTo<Value>, _: &mut Context<Self>) {
        let told = if ask == json!("digest") {
            json!({ "hashes": vec!["00"; 256] })
        } else if ask.get("owner").is_some() {
            json!({ "owner": { "id": "x/0000000000000001/1", "name": "chat-x" } })
        } else {
            json!({ "entries": {}, "more": false })
        };
        reply_to.reply(json!({ "Value": told }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_differ_are_named_with_what_differs() {
    let cluster = Cluster::start(2, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    cluster.online("chat", 1).await;
    let agreed = cluster.get("b", "/v1/verify?wait=20s").await;
    assert_eq!(
        (&agreed["agree"], &agreed["asked"]),
        (&json!(true), &json!(["a", "b"]))
    );
    let other = keydispatch::Node::builder("x")
        .bind("127.0.0.1:0")
        .plaintext()
        .seeds([cluster.agents[0].listening().mesh.clone()])
        .start()
        .await
        .unwrap();
    eventually("its node is named as one without an agent", async || {
        let verified = cluster.get("b", "/v1/verify?wait=0s").await;
        if verified["without_agent"] == json!(["x"]) {
            Ok(())
        } else {
            Err(verified.to_string())
        }
    })
    .await;
    other.serve(Other).await.unwrap();
    let differs = eventually("it is heard of", async || {
        let verified = cluster.get("b", "/v1/verify?wait=0s").await;
        let asked = verified["asked"].as_array().unwrap().len();
        if asked == 3 {
            Ok(verified)
        } else {
            Err(verified.to_string())
        }
    })
    .await;
    assert_eq!(differs["agree"], false);
    let of_x = &differs["differences"][0];
    assert_eq!(of_x["node"], "x");
    let entries = of_x["entries"].as_array().unwrap();
    let chat_1 = entries
        .iter()
        .find(|entry| entry["here"]["name"] == "chat-1");
    assert!(
        chat_1.is_some_and(|entry| entry["there"].is_null()),
        "{differs}"
    );
    let why = cluster
        .get("a", "/v1/types/chat/explain?key=x&nodes=all")
        .await;
    assert_eq!(
        (&why["agree"], &why["asked"]),
        (&json!(2), &json!(3)),
        "{why}"
    );
    other.leave().await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_gets_its_status_as_a_problem_and_changes_nothing() {
    let cluster = Cluster::start(1, &[]).await;
    cluster.put("a", "chat-1", chat(8001)).await;
    let with = |name: &str, value: Value| {
        let mut body = chat(8002);
        body[name] = value;
        body
    };
    let put = |body: Value| ("PUT", "/v1/endpoints/x".to_owned(), Some(body));
    let post = |path: &str, body: Value| ("POST", path.to_owned(), Some(body));
    let get = |path: &str| ("GET", path.to_owned(), None);
    let cases = [
        (put(with("typ", json!("x"))), 400),
        (put(with("weight", json!(1.5))), 400),
        (put(with("weight", json!(0))), 400),
        (put(with("weight", json!(1001))), 400),
        (put(with("type", json!("_dispatch.agent"))), 400),
        (put(with("type", json!(7))), 400),
        (put(with("name", json!("a\u{1b}[31m"))), 400),
        (
            put(with("address", json!("http://169.254.169.254:80"))),
            400,
        ),
        (put(with("address", json!("0.0.0.0:80"))), 400),
        (put(with("address", json!("h:80\r\nX: y"))), 400),
        (put(with("tags", json!({ "dispatch.reason": "x" }))), 400),
        (put(with("tags", json!({ "a": "\u{1b}[2J" }))), 400),
        (put(with("lease", json!({}))), 400),
        (
            put(with("lease", json!({ "ttl": "5s", "agent": true }))),
            400,
        ),
        (put(with("lease", json!({ "ttl": "1ms" }))), 400),
        (put(with("check", json!({ "http": "/", "tcp": true }))), 400),
        (
            put(with("check", json!({ "http": "/", "every": "1ms" }))),
            400,
        ),
        (
            put(with("check", json!({ "http": "https://127.0.0.1:1/" }))),
            400,
        ),
        (put(with("check", json!({ "script": "/bin/true" }))), 400),
        (put(json!([])), 400),
        (put(with("name", json!("chat-1"))), 409),
        (post("/v1/types/chat/owners", json!({ "keys": [1.5] })), 400),
        (
            post("/v1/types/chat/owners", json!({ "keys": [null] })),
            400,
        ),
        (post("/v1/types/chat/owners", json!({ "keys": [{}] })), 400),
        (post("/v1/types/none/owners", json!({ "keys": [1] })), 404),
        (
            post("/v1/types/chat/plan", json!({ "remove": ["nobody"] })),
            409,
        ),
        (
            post("/v1/types/chat/mint", json!({ "instance": "nobody" })),
            409,
        ),
        (
            post("/v1/endpoints/chat-1/state", json!({ "state": "asleep" })),
            400,
        ),
        (
            post(
                "/v1/endpoints/chat-1/state",
                json!({ "state": "offline", "reason": "a\nb" }),
            ),
            400,
        ),
        (get("/v1/types/chat/owner"), 400),
        (get("/v1/types/chat/owner?key=a&key.int=7"), 400),
        (get("/v1/types/chat/owner?key=a&key=b"), 400),
        (get("/v1/types/chat/owner?key=a&spraed=zones"), 400),
        (get("/v1/types/chat/owner?key=a&spread=racks"), 400),
        (get("/v1/types/none/owner?key=a"), 404),
        (get("/v1/types/none"), 404),
        (get("/v1/nothing"), 404),
        (get("/v1/members?node=nobody"), 404),
        (get("/problems/nothing"), 404),
        (("DELETE", "/v1/node".to_owned(), None), 405),
    ];
    for ((method, path, body), status) in cases {
        let answer = cluster.ask("a", method, &path, body.clone()).await;
        assert_eq!(
            answer.status, status,
            "{method} {path} {body:?}: {}",
            answer.text
        );
        let problem = &answer.body;
        assert_eq!(problem["status"], status, "{}", answer.text);
        assert!(
            problem["may_have_run"].is_boolean() && problem["title"].is_string(),
            "{}",
            answer.text
        );
        assert!(
            !answer.text.chars().any(char::is_control),
            "{}",
            answer.text
        );
        let page = cluster
            .ask("a", "GET", problem["type"].as_str().unwrap(), None)
            .await;
        assert_eq!(page.status, 200);
    }
    let listed = cluster.get("a", "/v1/endpoints").await;
    assert_eq!(listed["endpoints"].as_array().unwrap().len(), 1);
    let answer = cluster
        .ask(
            "a",
            "POST",
            "/v1/endpoints/chat-1/state",
            Some(json!({ "state": "offline" })),
        )
        .await;
    assert_eq!(answer.status, 200);
    let nobody = cluster
        .ask("a", "GET", "/v1/types/chat/owner?key=a", None)
        .await;
    assert_eq!(
        (nobody.status, &nobody.body["type"]),
        (503, &json!("/problems/no-instance-online"))
    );
    assert_eq!(nobody.body["retry_after_ms"], 1_000);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_probes_answer_and_name_no_address() {
    let cluster = Cluster::start(2, &[]).await;
    let mut tagged = chat(8001);
    tagged["tags"] = json!({ "secret": "tag-of-mine" });
    cluster.put("a", "chat-1", tagged).await;
    cluster.online("chat", 1).await;
    let ops = cluster.agents[1].listening().ops.unwrap();
    let client = keydispatch_agent::Client::new(format!("http://{ops}").parse().unwrap(), None);
    let metrics = client.ask("GET", "/metrics", None).await.unwrap().text;
    for line in [
        "dispatch_ready 1",
        "dispatch_members{state=\"up\"} 2",
        "dispatch_instances{type=\"chat\",state=\"online\"} 1",
        "dispatch_metrics_folded_types 0",
    ] {
        assert!(
            metrics.lines().any(|there| there == line),
            "{line}\n{metrics}"
        );
    }
    for hidden in ["127.0.0.1", "8001", "tag-of-mine", "chat-1"] {
        assert!(!metrics.contains(hidden), "{hidden}");
    }
    for (path, status) in [
        ("/livez", 200),
        ("/readyz", 200),
        ("/v1/types", 404),
        ("/", 404),
    ] {
        assert_eq!(
            client.ask("GET", path, None).await.unwrap().status,
            status,
            "{path}"
        );
    }
    assert_eq!(
        client.ask("POST", "/metrics", None).await.unwrap().status,
        405
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_the_owner_in_headers_that_no_name_can_break() {
    let cluster = Cluster::start(1, &[]).await;
    cluster.put("a", "gr%C3%B6%C3%9Fe%201", chat(8001)).await;
    let answer = raw(
        &cluster,
        "GET /v1/route?type=chat&key=room-7 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        answer.contains("\r\nx-dispatch-owner: gr%C3%B6%C3%9Fe%201\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\r\nx-dispatch-address: 127.0.0.1:8001\r\n"),
        "{answer}"
    );
    let by_header = "PATCH /v1/route HTTP/1.1\r\nhost: x\r\nx-dispatch-type: chat\r\nx-dispatch-key: room-7\r\nconnection: close\r\n\r\n";
    assert!(raw(&cluster, by_header).await.starts_with("HTTP/1.1 200 "));
    let nobody = "GET /v1/route?type=none&key=a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let nobody = raw(&cluster, nobody).await;
    assert!(
        nobody.starts_with("HTTP/1.1 503 ") && nobody.contains("\r\nretry-after: 1\r\n"),
        "{nobody}"
    );
    cluster.stop().await;
}

async fn raw(cluster: &Cluster, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(cluster.socket("a"))
        .await
        .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
