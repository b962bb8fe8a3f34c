//! Bad input of every kind: an error that says what is wrong and what to do, and nothing else is disturbed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use keydispatch::testkit::{Authority, MemoryNetwork};
use keydispatch::{
    BroadcastError, CallError, CallOptions, Config, Context, Node, NodeBuilder, Protocol, ReplyTo,
    ServeOptions, Service, ServiceHandle, StartError, TlsFiles,
};
use keydispatch_core::message::{ControlMessage, Frame, Hello, LaneKind, MAGIC, Offers, Refusal};
use keydispatch_core::{ClusterName, Generation, NodeId, NodeName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod support;

use support::{Ask, Log, Tell, Worker, Workers, describe, eventually, members, start_all};

const HOUR: Duration = Duration::from_secs(3600);

/// How long nodes wait here for seeds that they will not get on with.
const SHORT: Duration = Duration::from_millis(300);

fn assert_says(error: &impl std::fmt::Display, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

// Configuration.

#[test]
fn a_file_with_an_unknown_or_ill_typed_key_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.toml");
    for (text, parts) in [
        (
            "[registry]\ndown_perod = \"3s\"\n",
            ["down_perod", "line 2"],
        ),
        ("[node]\nnmae = \"a\"\n", ["nmae", "name"]),
        ("[registri]\n", ["registri", "registry"]),
        ("[pubsub]\npool_size = \"two\"\n", ["pool_size", "string"]),
        ("[registry]\nlog_level = \"loud\"\n", ["loud", "debug"]),
        ("[pubsub]\nadapter = \"redis\"\n", ["redis", "mesh"]),
        ("[registry]\ndown_period = -1\n", ["down_period", "\"3s\""]),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_says(&Config::read(&path).unwrap_err(), &parts);
    }
    let missing = directory.path().join("missing.toml");
    assert_says(&Config::read(missing).unwrap_err(), &["missing.toml"]);
}

#[tokio::test]
async fn impossible_settings_are_refused_by_name() {
    let local = || Node::builder("a").adapter(keydispatch::Adapter::Local);
    let seconds = Duration::from_secs;
    for (node, parts) in [
        (
            local().broadcast_period(seconds(2)).down_period(seconds(3)),
            ["registry.down_period", "registry.broadcast_period"],
        ),
        (
            local().down_period(seconds(5)).permdown_period(seconds(5)),
            ["registry.permdown_period", "registry.down_period"],
        ),
        (
            local().down_period(Duration::from_millis(100)),
            ["registry.down_period", "600"],
        ),
        (local().max_silent_periods(0), ["max_silent_periods", "1"]),
        (local().max_delta_sizes(0), ["max_delta_sizes", "1"]),
        (local().pool_size(65), ["pubsub.pool_size", "64"]),
        (local().seeds(["b:1"]), ["node.seeds", "local"]),
        (Node::builder("a"), ["node.ca", "node.plaintext"]),
        (Node::builder(""), ["node.ca", "node.cert"]),
        (Node::builder("").plaintext(), ["name", "empty"]),
        (
            Node::builder("a").plaintext().seeds(["nowhere"]),
            ["nowhere", "host:port"],
        ),
    ] {
        assert_says(&node.start().await.unwrap_err(), &parts);
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = Node::builder("a").plaintext().start().await.unwrap();
    let second = Node::builder("b")
        .plaintext()
        .bind(first.address().as_str());
    let error = second.start().await.unwrap_err();
    assert_says(&error, &[first.address().as_str(), "taken", "another port"]);
}

// Seeds.

#[tokio::test]
async fn a_node_whose_seeds_are_silent_starts_alone_says_so_once_and_finds_them_later() {
    let (log, _guard) = Log::capture();
    let network = MemoryNetwork::new();
    let seed = describe(&network, "seed", &[]).start().await.unwrap();
    network.isolate("seed:1");
    let node = describe(&network, "a", &["seed:1"]).start_timeout(SHORT);
    let node = node.start().await.unwrap();
    assert!(node.members().is_empty());
    assert_eq!(
        log.lines(&["WARN", "no seed answered", "still trying"])
            .len(),
        1
    );
    network.heal_all();
    members(&node, 1).await;
    members(&seed, 1).await;
    assert_eq!(log.lines(&["WARN", "no seed answered"]).len(), 1);
}

#[tokio::test]
async fn a_seed_where_nobody_listens_is_complained_about_once_and_found_when_it_appears() {
    let (log, _guard) = Log::capture();
    let network = MemoryNetwork::new();
    let node = describe(&network, "a", &["seed:1"]).start().await.unwrap();
    let said = ["WARN", "the seed seed:1 does not answer", "still trying"];
    log.line(&said).await;
    let seed = describe(&network, "seed", &[]).start().await.unwrap();
    members(&node, 1).await;
    members(&seed, 1).await;
    assert_eq!(log.lines(&said).len(), 1);
}

// Certificates.

/// The certificates of one node in a directory of their own.
struct Pki {
    directory: tempfile::TempDir,
}

impl Pki {
    fn of(authority: &Authority, node: &str) -> Pki {
        Pki::write(authority, &authority.issue(node).unwrap())
    }

    fn write(authority: &Authority, issued: &keydispatch::testkit::Issued) -> Pki {
        let pki = Pki {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(pki.path("ca.pem"), authority.ca_pem()).unwrap();
        let (cert, key) = (pki.path("cert.pem"), pki.path("key.pem"));
        issued.write(&cert, &key).unwrap();
        pki
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        Path::new(self.directory.path()).join(file)
    }

    fn node(&self, name: &str) -> NodeBuilder {
        Node::builder(name)
            .cluster("files")
            .start_timeout(SHORT)
            .tls(TlsFiles::new(
                self.path("ca.pem"),
                self.path("cert.pem"),
                self.path("key.pem"),
            ))
    }
}

#[tokio::test]
async fn certificates_that_nobody_would_accept_are_refused_at_the_start() {
    let files = Authority::new("files").unwrap();
    let mail = Authority::new("mail").unwrap();
    let now = SystemTime::now();
    let expired = files.issue_with("a", now - 2 * HOUR, now - HOUR).unwrap();
    let other_node = Pki::of(&files, "b");
    let no_key = Pki::of(&files, "a");
    std::fs::remove_file(no_key.path("key.pem")).unwrap();
    for (pki, parts) in [
        (Pki::of(&mail, "a"), ["mail", "files"]),
        (other_node, ["cert.pem", "issue one for that name"]),
        (Pki::write(&files, &expired), ["cert.pem", "expired"]),
        (no_key, ["key.pem", "permissions"]),
    ] {
        let error = pki.node("a").start().await.unwrap_err();
        assert!(matches!(error, StartError::Tls(_)), "{error:?}");
        assert_says(&error, &parts);
    }
}

/// Two nodes that must not get on: each works on alone, and both logs say why.
async fn strangers(
    first: NodeBuilder,
    second: impl FnOnce(NodeBuilder) -> NodeBuilder,
    other: NodeBuilder,
    said: &[&[&str]],
) {
    let (log, _guard) = Log::capture();
    let first = first.start().await.unwrap();
    let worker = first.serve(Worker::default()).await.unwrap();
    let seeded = second(other.seeds([first.address().as_str()]));
    let second = seeded.start_timeout(SHORT).start().await.unwrap();
    for parts in said {
        log.line(parts).await;
    }
    assert!(first.members().is_empty() && second.members().is_empty());
    assert!(second.services::<Workers>().find("key").is_err());
    let at = first.services::<Workers>().at(worker.id().clone());
    assert_eq!(at.call(Ask::Notes).await, Ok(vec![]));
}

#[tokio::test]
async fn a_node_of_another_authority_is_kept_out_and_both_say_so() {
    let (ours, theirs) = (
        Authority::new("files").unwrap(),
        Authority::new("files").unwrap(),
    );
    let (a, b) = (Pki::of(&ours, "a"), Pki::of(&theirs, "b"));
    let said: &[&[&str]] = &[
        &[
            "WARN",
            "refusing a connection",
            "refused this node's certificate",
        ],
        &[
            "WARN",
            "the seed 127.0.0.1:",
            "does not answer",
            "authority",
        ],
    ];
    strangers(a.node("a"), |node| node, b.node("b"), said).await;
}

#[tokio::test]
async fn a_certificate_that_expires_while_the_node_runs_is_refused_and_both_say_so() {
    let files = Authority::new("files").unwrap();
    let a = Pki::of(&files, "a");
    let now = SystemTime::now();
    let brief = files.issue_with("b", now - HOUR, now + 2 * Duration::from_secs(1));
    let b = Pki::write(&files, &brief.unwrap());
    let (log, _guard) = Log::capture();
    // It has no seed while its certificate is good, and gets one when it is not.
    let b = b.node("b").start().await.unwrap();
    let a = a.node("a").seeds([b.address().as_str()]);
    eventually("the certificate has expired", async || {
        match now.elapsed() {
            Ok(elapsed) if elapsed > Duration::from_secs(3) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let a = a.start().await.unwrap();
    log.line(&["WARN", "does not answer", "expired"]).await;
    log.line(&["WARN", "refusing a connection", "its log says more"])
        .await;
    assert!(a.members().is_empty() && b.members().is_empty());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_kept_out_and_both_say_so() {
    let said: &[&[&str]] = &[
        &["WARN", "refusing b", "belongs to the cluster mail"],
        &["WARN", "refuses this node", "cluster"],
    ];
    let first = Node::builder("a").cluster("files").plaintext();
    let second = Node::builder("b").cluster("mail").plaintext();
    strangers(first, |node| node, second, said).await;
}

#[tokio::test]
async fn plaintext_that_meets_tls_is_named_on_both_sides() {
    let authority = Authority::new("files").unwrap();
    let a = Pki::of(&authority, "a");
    let said: &[&[&str]] = &[
        &["WARN", "refusing a connection", "plaintext"],
        &[
            "WARN",
            "does not answer this node",
            "speaks TLS",
            "certificates",
        ],
    ];
    let plaintext = Node::builder("b").cluster("files").plaintext();
    strangers(a.node("a"), |node| node, plaintext, said).await;
}

#[tokio::test]
async fn tls_that_meets_plaintext_is_named_on_both_sides() {
    let authority = Authority::new("files").unwrap();
    let b = Pki::of(&authority, "b");
    let said: &[&[&str]] = &[
        &[
            "WARN",
            "refusing a connection",
            "speaks TLS",
            "certificates",
        ],
        &[
            "WARN",
            "the seed 127.0.0.1:",
            "does not answer",
            "plaintext",
        ],
    ];
    let plaintext = Node::builder("a").cluster("files").plaintext();
    strangers(plaintext, |node| node, b.node("b"), said).await;
}

#[tokio::test]
async fn a_living_node_keeps_its_name() {
    let network = MemoryNetwork::new();
    let [a, b] = start_all(&network, ["a", "b"], |node| node).await;
    let twin = describe(&network, "b", &["a:1"]).bind("elsewhere:1");
    let error = twin.start().await.unwrap_err();
    assert!(matches!(error, StartError::NameTaken { .. }), "{error:?}");
    assert_says(&error, &["name b is taken", "choose another name"]);
    b.serve(Worker::default()).await.unwrap();
    a.services::<Workers>().wait_online(1).await.unwrap();
}

// Peers that speak the protocol wrongly, over TCP without encryption.

/// A node with a worker, and a peer that is no node.
struct Rude {
    node: Node,
    log: Log,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Rude {
    async fn start() -> Rude {
        let (log, guard) = Log::capture();
        let node = Node::builder("a").cluster("files").plaintext();
        let node = node.start().await.unwrap();
        node.serve(Worker::default()).await.unwrap();
        Rude {
            node,
            log,
            _guard: guard,
        }
    }

    fn hello(&self, lane: LaneKind) -> Hello {
        Hello {
            magic: MAGIC,
            major: keydispatch_core::message::PROTOCOL_MAJOR,
            minor: 0,
            lane,
            cluster: ClusterName::try_new("files").unwrap(),
            node: NodeId {
                name: NodeName::try_new("rude").unwrap(),
                generation: Generation {
                    number: 1,
                    random: 1,
                },
            },
            nonce: 1,
            address: keydispatch::Address::try_new("127.0.0.1:9").unwrap(),
            placement: keydispatch::placement::PLACEMENT_VERSION,
            periods_ms: (250, 1_500),
            joined: false,
            highest_of_yours: None,
            offers: Offers::default(),
        }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.node.address().as_str())
            .await
            .unwrap()
    }

    /// Says something wrong, and is answered with a refusal and the end.
    async fn refusal(&self, hello: Hello) -> Refusal {
        let mut stream = self.dial().await;
        write(&mut stream, &ControlMessage::Hello(hello).encode()).await;
        match ControlMessage::decode(&read(&mut stream).await) {
            Ok(Some(ControlMessage::Refuse(refusal))) => {
                ends(&mut stream).await;
                refusal
            }
            other => panic!("{other:?}"),
        }
    }

    /// Says Hello properly, and is answered with one.
    async fn greet(&self, lane: LaneKind) -> TcpStream {
        let mut stream = self.dial().await;
        let hello = ControlMessage::Hello(self.hello(lane));
        write(&mut stream, &hello.encode()).await;
        let answer = ControlMessage::decode(&read(&mut stream).await);
        assert!(
            matches!(answer, Ok(Some(ControlMessage::Hello(_)))),
            "{answer:?}"
        );
        stream
    }

    /// Everything works for everybody else.
    async fn works(&self) {
        let workers = self.node.services::<Workers>();
        assert_eq!(workers.call("key", Ask::Notes).await, Ok(vec![]));
        let seed = self.node.address().to_string();
        let other = Node::builder("b")
            .cluster("files")
            .plaintext()
            .seeds([seed]);
        let other = other.start().await.unwrap();
        let workers = other.services::<Workers>();
        assert_eq!(workers.call("key", Ask::Notes).await, Ok(vec![]));
    }
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = u32::try_from(frame.body.len() + 1)
        .unwrap()
        .to_le_bytes()
        .to_vec();
    bytes.push(frame.kind);
    bytes.extend_from_slice(&frame.body);
    bytes
}

async fn write(stream: &mut TcpStream, frame: &Frame) {
    stream.write_all(&bytes_of(frame)).await.unwrap();
}

async fn read(stream: &mut TcpStream) -> Frame {
    let length = stream.read_u32_le().await.unwrap();
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.unwrap();
    Frame {
        kind: bytes[0],
        body: bytes.split_off(1).into(),
    }
}

/// Waits until the other side closes.
async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // Closed with bytes unread, a socket resets the connection.
    let _ = tokio::time::timeout(support::PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the connection is closed");
}

#[tokio::test]
async fn a_peer_of_another_version_or_placement_is_refused_with_both_numbers() {
    let rude = Rude::start().await;
    for lane in [LaneKind::Control, LaneKind::Data] {
        let refusal = rude
            .refusal(Hello {
                major: 9,
                ..rude.hello(lane)
            })
            .await;
        assert!(
            matches!(refusal, Refusal::Version { theirs: 9, .. }),
            "{refusal:?}"
        );
        assert_says(&refusal, &["version 9", "run the same major version"]);
        let refusal = rude
            .refusal(Hello {
                placement: 7,
                ..rude.hello(lane)
            })
            .await;
        assert!(
            matches!(refusal, Refusal::Placement { theirs: 7, .. }),
            "{refusal:?}"
        );
        assert_says(&refusal, &["version 7", "different owners"]);
    }
    rude.log.line(&["WARN", "refusing rude", "version 9"]).await;
    rude.log.line(&["WARN", "refusing rude", "version 7"]).await;
    rude.works().await;
}

#[tokio::test]
async fn a_hello_of_a_later_major_version_is_understood_as_far_as_it_has_to_be() {
    let rude = Rude::start().await;
    let mut stream = rude.dial().await;
    let mut body = MAGIC.to_vec();
    body.extend_from_slice(&[9, 0xff, 0xff, 0xff]);
    let kind = keydispatch_core::message::kind::HELLO;
    let body = body.into();
    write(&mut stream, &Frame { kind, body }).await;
    let answer = ControlMessage::decode(&read(&mut stream).await);
    assert!(
        matches!(
            answer,
            Ok(Some(ControlMessage::Refuse(Refusal::Version {
                theirs: 9,
                ..
            })))
        ),
        "{answer:?}"
    );
    ends(&mut stream).await;
    rude.works().await;
}

#[tokio::test]
async fn frames_that_are_none_end_their_connection_alone_and_are_logged() {
    let rude = Rude::start().await;
    let hello = bytes_of(&ControlMessage::Hello(rude.hello(LaneKind::Control)).encode());
    let truncated = &hello[..hello.len() / 2];
    let too_long = [&(1_u32 << 30).to_le_bytes()[..], &[1, 2, 3]].concat();
    let garbage = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec();
    let garbled = [&9_u32.to_le_bytes()[..], &[1, 9, 9, 9, 9, 9, 9, 9, 9]].concat();
    for (bytes, said) in [
        (truncated.to_vec(), "inside a frame"),
        (too_long, "over the limit"),
        (garbage, "over the limit"),
        (garbled, "does not speak this protocol"),
    ] {
        let mut stream = rude.dial().await;
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        ends(&mut stream).await;
        rude.log.line(&["WARN", "refusing", said]).await;
    }
    rude.works().await;
}

#[tokio::test]
async fn a_peer_that_turns_rude_after_its_hello_loses_its_connection() {
    let rude = Rude::start().await;
    let garbled = |kind| Frame {
        kind,
        body: vec![0xff; 3].into(),
    };
    let mut control = rude.greet(LaneKind::Control).await;
    write(
        &mut control,
        &garbled(keydispatch_core::message::kind::DELTA),
    )
    .await;
    ends(&mut control).await;
    rude.log
        .line(&["WARN", "closing the connection to rude", "does not decode"])
        .await;
    for kind in
        keydispatch_core::message::FIRST_DATA_KIND..keydispatch_core::message::FIRST_DATA_KIND + 2
    {
        let mut data = rude.greet(LaneKind::Data).await;
        write(&mut data, &garbled(kind)).await;
        ends(&mut data).await;
    }
    rude.log
        .line(&["WARN", "closing a data connection", "does not decode"])
        .await;
    // What is longer than any payload may be ends it before it has arrived.
    let mut data = rude.greet(LaneKind::Data).await;
    data.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    ends(&mut data).await;
    let mut control = rude.greet(LaneKind::Control).await;
    control.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    ends(&mut control).await;
    eventually("both are complained about", async || {
        let said = ["WARN", "closing a connection", "over the limit"];
        let lines = rude.log.lines(&said);
        if lines.len() == 2 {
            Ok(())
        } else {
            Err(lines.join("\n"))
        }
    })
    .await;
    // A kind of a later minor version is skipped.
    let mut data = rude.greet(LaneKind::Data).await;
    write(&mut data, &garbled(200)).await;
    let ping = keydispatch_core::message::FIRST_DATA_KIND + 5;
    write(
        &mut data,
        &Frame {
            kind: ping,
            body: bytes::Bytes::new(),
        },
    )
    .await;
    assert_eq!(read(&mut data).await.kind, ping + 1);
    rude.works().await;
}

// Messages.

/// A worker on `host`, and a caller on `near`, with a small limit.
async fn limited() -> (Node, Node, ServiceHandle<Workers>) {
    let network = MemoryNetwork::new();
    let limited = |node: NodeBuilder| node.max_payload_bytes(1_000);
    let [host, near] = start_all(&network, ["host", "near"], limited).await;
    host.serve(Worker::default()).await.unwrap();
    let workers = near.services::<Workers>();
    workers.wait_online(1).await.unwrap();
    (host, near, workers)
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_with_the_limit_and_given_back() {
    let (host, near, workers) = limited().await;
    let large = Ask::Bytes(vec![7; 2_000]);
    let error = workers.call("key", large.clone()).await.unwrap_err();
    assert_eq!(
        error,
        CallError::TooLarge {
            limit: 1_000,
            reply: false
        }
    );
    assert_says(&error, &["1000 bytes", "max_payload_bytes"]);
    assert!(!error.may_have_run());
    let told = Tell::Yourself(vec![u64::MAX; 500]);
    let back = workers.cast("key", told.clone()).unwrap_err();
    assert_eq!(
        back.error,
        CallError::TooLarge {
            limit: 1_000,
            reply: false
        }
    );
    assert_eq!(back.message, told);
    let error = workers.call("key", Ask::Numbers(500)).await.unwrap_err();
    assert_eq!(
        error,
        CallError::TooLarge {
            limit: 1_000,
            reply: true
        }
    );
    assert!(error.may_have_run());
    let mut heard = host.pubsub().subscribe("news").unwrap();
    for sent in [
        near.pubsub().broadcast("news", vec![7; 2_000]).map(|_| ()),
        near.pubsub().local_broadcast("news", vec![7; 2_000]),
        near.pubsub()
            .direct_broadcast("host", "news", vec![7; 2_000]),
    ] {
        let error = sent.unwrap_err();
        assert!(
            matches!(
                error,
                BroadcastError::TooLarge {
                    bytes: 2_000,
                    limit: 1_000
                }
            ),
            "{error:?}"
        );
        assert_says(&error, &["2000 bytes", "max_payload_bytes"]);
    }
    // The connection lives, and what fits passes.
    assert_eq!(
        workers.call("key", Ask::Bytes(vec![7; 900])).await,
        Ok(vec![900])
    );
    near.pubsub().broadcast("news", vec![7; 1_000]).unwrap();
    assert!(heard.next().await.is_some());
}

#[tokio::test]
async fn a_peer_with_a_larger_limit_cannot_exceed_ours() {
    let network = MemoryNetwork::new();
    let host = describe(&network, "host", &[]).max_payload_bytes(1_000);
    let host = host.start().await.unwrap();
    let near = describe(&network, "near", &["host:1"])
        .start()
        .await
        .unwrap();
    host.serve(Worker::default()).await.unwrap();
    let workers = near.services::<Workers>();
    workers.wait_online(1).await.unwrap();
    let error = workers
        .call("key", Ask::Bytes(vec![7; 10_000]))
        .await
        .unwrap_err();
    let limit = 1_000;
    let reply = false;
    assert_eq!(error, CallError::TooLarge { limit, reply });
    assert_eq!(workers.call("key", Ask::Notes).await, Ok(Vec::new()));
}

/// The workers' type in another version.
struct WorkersTwo;

impl Protocol for WorkersTwo {
    const NAME: &'static str = "worker";
    const VERSION: u32 = 2;
    type Call = Ask;
    type Reply = Vec<u64>;
    type Cast = Tell;
}

/// The workers' type and version with other messages, by mistake.
struct Impostors;

impl Protocol for Impostors {
    const NAME: &'static str = "worker";
    type Call = (u8, Option<String>);
    type Reply = bool;
    type Cast = Option<String>;
}

struct Impostor;

impl Service for Impostor {
    type Protocol = Impostors;

    async fn handle_call(
        &mut self,
        _: (u8, Option<String>),
        reply_to: ReplyTo<bool>,
        _: &mut Context<Self>,
    ) {
        reply_to.reply(true);
    }
}

#[tokio::test]
async fn a_service_of_another_protocol_version_is_incompatible_and_hears_nothing() {
    let (host, near, workers) = limited().await;
    for caller in [&near, &host] {
        let newer = caller.services::<WorkersTwo>();
        newer.wait_online(1).await.unwrap();
        let error = newer.call("key", Ask::Note(1)).await.unwrap_err();
        assert_eq!(error, CallError::Incompatible { ours: 2, theirs: 1 });
        assert_says(&error, &["version 1", "version 2", "same version"]);
        assert!(!error.may_have_run());
        let back = newer.cast("key", Tell::Note(1)).unwrap_err();
        assert_eq!(back.message, Tell::Note(1));
        assert_eq!(newer.multi_cast("key", 1, Tell::Note(1)), 0);
    }
    assert_eq!(workers.call("key", Ask::Notes).await, Ok(vec![]));
}

#[tokio::test]
async fn a_message_that_does_not_decode_fails_its_call_alone() {
    let (log, _guard) = Log::capture();
    let (host, near, workers) = limited().await;
    let mistaken = near.services::<Impostors>();
    let error = mistaken.call("key", (200, None)).await.unwrap_err();
    assert!(
        matches!(error, CallError::Decode { reply: false, .. }),
        "{error:?}"
    );
    assert_says(&error, &["does not decode"]);
    assert!(!error.may_have_run());
    mistaken.cast("key", Some("x".repeat(200))).unwrap();
    // The next call comes after the cast, on the same connection.
    assert_eq!(workers.call("key", Ask::Notes).await, Ok(vec![]));
    assert_eq!(host.stats().await.unwrap().data.undecodable, 2);
    log.line(&["WARN", "a message does not decode", "host"])
        .await;
    // Within one process the types themselves are compared.
    let error = host.services::<Impostors>().call("key", (1, None)).await;
    assert!(
        matches!(error, Err(CallError::Incompatible { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_reply_that_does_not_decode_says_that_the_call_has_run() {
    let network = MemoryNetwork::new();
    let [host, near] = start_all(&network, ["host", "near"], |node| node).await;
    host.serve(Impostor).await.unwrap();
    let workers = near.services::<Workers>();
    workers.wait_online(1).await.unwrap();
    // As bytes, the call of one protocol is one of the other.
    let error = workers.call("key", Ask::Note(0)).await.unwrap_err();
    assert!(
        matches!(error, CallError::Decode { reply: true, .. }),
        "{error:?}"
    );
    assert!(error.may_have_run());
}

#[tokio::test]
async fn a_type_that_nobody_serves_is_named() {
    let network = MemoryNetwork::new();
    let [a] = start_all(&network, ["a"], |node| node).await;
    let workers = a.services::<Workers>();
    let error = workers.call("key", Ask::Notes).await.unwrap_err();
    assert!(!error.may_have_run());
    assert_says(&error, &["no service for key", "\"worker\"", "online"]);
    assert_says(&workers.find("key").unwrap_err(), &["\"worker\""]);
    let back = workers.cast("key", Tell::Note(1)).unwrap_err();
    assert_eq!(back.message, Tell::Note(1));
}

#[tokio::test]
async fn a_full_mailbox_refuses_at_once_and_gives_the_message_back() {
    let network = MemoryNetwork::new();
    let [host, near] = start_all(&network, ["host", "near"], |node| node).await;
    let worker = Worker::default();
    let options = ServeOptions::new().mailbox(2);
    host.serve_with(options, worker.clone()).await.unwrap();
    let (local, remote) = (host.services::<Workers>(), near.services::<Workers>());
    remote.wait_online(1).await.unwrap();
    let waiting = tokio::spawn({
        let local = local.clone();
        async move { local.call("key", Ask::Wait).await }
    });
    worker.has("waiting").await;
    local.cast("key", Tell::Note(1)).unwrap();
    local.cast("key", Tell::Note(2)).unwrap();
    let back = local.cast("key", Tell::Note(3)).unwrap_err();
    assert!(
        matches!(back.error, CallError::Overloaded { .. }),
        "{back:?}"
    );
    assert_says(&back, &["host", "full", "try again later"]);
    assert_eq!(back.message, Tell::Note(3));
    let patient = CallOptions::new().timeout(support::PATIENCE);
    let once = patient.retry_budget(0, 0);
    for workers in [&local, &remote] {
        let error = workers.with(once).call("key", Ask::Notes).await;
        let error = error.unwrap_err();
        assert!(matches!(error, CallError::Overloaded { .. }), "{error:?}");
        assert!(!error.may_have_run());
    }
    // A remote cast is on its way before that is known: it is counted where it is dropped.
    remote.cast("key", Tell::Note(4)).unwrap();
    eventually("the drop is counted", async || {
        match host.stats().await.unwrap().data.casts_dropped {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    worker.open();
    waiting.await.unwrap().unwrap();
    let idempotent = remote.with(patient.idempotent());
    assert_eq!(idempotent.call("key", Ask::Notes).await, Ok(vec![1, 2]));
}
