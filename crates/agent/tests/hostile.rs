//! The API over TCP and what comes to it that should not: pages of strangers, wrong tokens, bodies without end, garbage.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::SocketAddr;

use keydispatch_agent::{Client, make_token};
use serde_json::json;
use support::{Cluster, PATIENCE, chat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An agent with its API over TCP, and tokens for web (registers web-…) and root (operates).
async fn start() -> (Cluster, SocketAddr, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let (web, web_line) = make_token("web", "register:web-").unwrap();
    let (root, root_line) = make_token("root", "operate").unwrap();
    let file = directory.path().join("tokens");
    std::fs::write(&file, format!("{web_line}\n{root_line}\n")).unwrap();
    let settings = [
        ("agent.api.tcp", "127.0.0.1:0"),
        ("agent.api.tokens", file.to_str().unwrap()),
        ("agent.api.hosts", "agent.example"),
    ];
    let cluster = Cluster::start(1, &settings).await;
    let address = cluster.agents[0].listening().tcp.unwrap();
    (cluster, address, web, root)
}

/// Says that, and reads until the other side hangs up.
async fn say(address: SocketAddr, what: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // An error says that the other side has heard enough.
    let _ = stream.write_all(what).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

async fn ask(address: SocketAddr, line: &str, headers: &str) -> u16 {
    let request = format!("{line} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    let answer = say(address, request.as_bytes()).await;
    let status = status(&answer);
    if status >= 400 {
        assert!(
            answer.contains("content-type: application/problem+json"),
            "{answer}"
        );
        assert!(answer.contains("\"may_have_run\":false"), "{answer}");
    }
    assert!(!answer.contains("access-control-allow"), "{answer}");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_reading_is_free_on_loopback_and_writing_needs_a_token_of_the_right_role() {
    let (cluster, address, web, root) = start().await;
    let as_whom = |token: Option<&str>| {
        let there = format!("http://{address}").parse().unwrap();
        Client::new(there, token.map(str::to_owned))
    };
    let mut body = chat(8001);
    body["type"] = json!("web-shop");
    let put = async |token: Option<&str>, id: &str, body: &serde_json::Value| {
        let answer = as_whom(token)
            .ask("PUT", &format!("/v1/endpoints/{id}"), Some(body))
            .await
            .unwrap();
        answer.status
    };
    assert_eq!(put(None, "x", &body).await, 401);
    assert_eq!(put(Some("nonsense"), "x", &body).await, 401);
    assert_eq!(put(Some(&web), "x", &chat(8001)).await, 403);
    assert_eq!(put(Some(&web), "x", &body).await, 201);
    assert_eq!(put(Some(&root), "y", &chat(8002)).await, 201);
    let mine = chat(8003);
    assert_eq!(put(Some(&web), "y", &mine).await, 403);
    for (token, path, status) in [
        (None, "/v1/endpoints/x", 401),
        (Some(web.as_str()), "/v1/endpoints/y", 403),
        (Some(web.as_str()), "/v1/endpoints/x", 200),
        (Some(root.as_str()), "/v1/endpoints/y", 200),
    ] {
        let answer = as_whom(token).ask("DELETE", path, None).await.unwrap();
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
    for (token, status) in [
        (None, 401),
        (Some(web.as_str()), 403),
        (Some(root.as_str()), 200),
    ] {
        let answer = as_whom(token)
            .ask("POST", "/v1/members/self/drain", None)
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    assert_eq!(
        as_whom(None)
            .ask("GET", "/v1/types", None)
            .await
            .unwrap()
            .status,
        200
    );
    // Who reads with a token that nobody has is told so.
    assert_eq!(
        as_whom(Some("x"))
            .ask("GET", "/v1/types", None)
            .await
            .unwrap()
            .status,
        401
    );
    // A process of a stranger cannot be what an endpoint lives with.
    let mut bound = body.clone();
    bound["lease"] = json!({ "pid": std::process::id() });
    assert_eq!(put(Some(&root), "z", &bound).await, 400);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_stranger_gets_nothing_by_whatever_name() {
    let (cluster, address, _, root) = start().await;
    let here = format!("host: {address}\r\n");
    assert_eq!(ask(address, "GET /v1/types", &here).await, 200);
    assert_eq!(
        ask(address, "GET /v1/types", "host: agent.example\r\n").await,
        200
    );
    assert_eq!(
        ask(
            address,
            "GET /v1/types",
            &format!("{here}origin: http://{address}\r\n")
        )
        .await,
        200
    );
    for (headers, status) in [
        (String::new(), 400),
        ("host: evil.example\r\n".to_owned(), 421),
        (format!("host: evil.example:{}\r\n", address.port()), 421),
        (format!("{here}host: evil.example\r\n"), 400),
        (format!("{here}origin: http://evil.example\r\n"), 403),
        (format!("{here}origin: null\r\n"), 403),
        (format!("{here}sec-fetch-site: cross-site\r\n"), 403),
        (
            format!("host: evil.example\r\nauthorization: Bearer {root}\r\n"),
            421,
        ),
        (
            format!("{here}origin: http://evil.example\r\nauthorization: Bearer {root}\r\n"),
            403,
        ),
    ] {
        for line in [
            "GET /v1/types",
            "DELETE /v1/endpoints/x",
            "OPTIONS /v1/types",
            "GET /v1/route?type=a&key=b",
        ] {
            assert_eq!(
                ask(address, line, &headers).await,
                status,
                "{line} {headers:?}"
            );
        }
    }
    // By its whole address a request names its host, too.
    assert_eq!(
        ask(
            address,
            "GET http://evil.example/v1/types",
            "host: evil.example\r\n"
        )
        .await,
        421
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_and_garbage_cost_the_agent_nothing() {
    let (cluster, address, _, root) = start().await;
    let head = format!("host: {address}\r\nauthorization: Bearer {root}\r\n");
    // Announced, and not sent.
    let huge = format!("PUT /v1/endpoints/x HTTP/1.1\r\n{head}content-length: 104857600\r\n\r\n");
    assert_eq!(status(&say(address, huge.as_bytes()).await), 413);
    // Sent without being announced.
    let mut chunked =
        format!("PUT /v1/endpoints/x HTTP/1.1\r\n{head}transfer-encoding: chunked\r\n\r\n")
            .into_bytes();
    for _ in 0..100 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b' '; 1024]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(status(&say(address, &chunked).await), 413);
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        [b"GET /v1/types?".to_vec(), vec![b'a'; 200_000]].concat(),
        [b"GET / HTTP/1.1\r\n".to_vec(), b"x: y\r\n".repeat(200)].concat(),
    ] {
        let answer = say(address, &garbage).await;
        assert!(
            answer.is_empty() || (400..500).contains(&status(&answer)),
            "{answer}"
        );
    }
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let nested = format!(
        "POST /v1/types/chat/owners HTTP/1.1\r\n{head}content-length: {}\r\nconnection: close\r\n\r\n{{\"keys\":{deep}}}",
        deep.len() + 9
    );
    assert_eq!(status(&say(address, nested.as_bytes()).await), 400);
    assert_eq!(
        ask(address, "GET /v1/node", &format!("host: {address}\r\n")).await,
        200
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let (cluster, address, _, root) = start().await;
    let slow = format!(
        "PUT /v1/endpoints/x HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {root}\r\ncontent-length: 100\r\n\r\n{{"
    );
    assert_eq!(status(&say(address, slow.as_bytes()).await), 408);
    cluster.stop().await;
}
