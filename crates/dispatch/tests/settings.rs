//! Every configuration key, by builder and by TOML: each changes what it says that it changes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::testkit::{Authority, MemoryNetwork};
use keydispatch::{
    Adapter, Address, CallError, Config, ConfigError, LogLevel, MemberChange, NewService, Node,
    NodeBuilder, StartError, TlsFiles, TopicEvent,
};
use keydispatch_core::message::{
    ControlMessage, Delta, Frame, Hello, LaneKind, MAGIC, Offers, PROTOCOL_MAJOR, PROTOCOL_MINOR,
    Request,
};
use keydispatch_core::{Generation, NodeId, NodeName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod support;

use support::{Ask, Log, PATIENCE, Worker, Workers, eventually, members};

/// The two ways to say one thing.
#[derive(Clone, Copy)]
enum Way {
    Builder(fn(NodeBuilder) -> NodeBuilder),
    Toml(&'static str),
}

fn both(toml: &'static str, builder: fn(NodeBuilder) -> NodeBuilder) -> [Way; 2] {
    [Way::Builder(builder), Way::Toml(toml)]
}

/// Nothing is said.
const DEFAULT: Way = Way::Toml("");

impl Way {
    fn describe(self, name: &str) -> NodeBuilder {
        match self {
            Way::Builder(set) => set(Node::builder(name)),
            Way::Toml(text) => Config::parse(text).unwrap().builder(name).unwrap(),
        }
    }

    fn node(self, network: &MemoryNetwork, name: &str, seeds: &[&str]) -> NodeBuilder {
        self.describe(name)
            .memory(network)
            .bind(format!("{name}:1"))
            .seeds(seeds.iter().copied())
            .start_timeout(Duration::from_millis(300))
    }

    /// Two nodes that know each other.
    async fn pair(self) -> (MemoryNetwork, Node, Node) {
        let network = MemoryNetwork::new();
        let a = self.node(&network, "a", &[]).start().await.unwrap();
        let b = self.node(&network, "b", &["a:1"]).start().await.unwrap();
        members(&a, 1).await;
        members(&b, 1).await;
        (network, a, b)
    }
}

// [pubsub]

#[tokio::test]
async fn pubsub_name_is_the_cluster_that_a_node_belongs_to() {
    for way in both("[pubsub]\nname = \"files\"", |node| node.cluster("files")) {
        let network = MemoryNetwork::new();
        let a = way.node(&network, "a", &[]).start().await.unwrap();
        assert_eq!(a.cluster().as_str(), "files");
        let b = way.node(&network, "b", &["a:1"]).start().await.unwrap();
        let stranger = DEFAULT.node(&network, "c", &["a:1"]).start().await.unwrap();
        assert_eq!(stranger.cluster().as_str(), "dispatch");
        members(&b, 1).await;
        members(&a, 1).await;
        assert!(stranger.members().is_empty());
    }
}

#[tokio::test]
async fn pubsub_adapter_local_needs_no_network_and_mesh_does() {
    for way in both("[pubsub]\nadapter = \"local\"", |node| {
        node.adapter(Adapter::Local)
    }) {
        let node = way.describe("a").start().await.unwrap();
        assert_eq!(node.address().as_str(), "local");
        node.serve(Worker::default()).await.unwrap();
        let reply = node.services::<Workers>().call("key", Ask::Note(1)).await;
        assert_eq!(reply, Ok(vec![1]));
    }
    for way in both("[pubsub]\nadapter = \"mesh\"", |node| {
        node.adapter(Adapter::Mesh)
    }) {
        let error = way.describe("a").start().await.unwrap_err();
        assert!(
            matches!(error, StartError::Config(ConfigError::NoTls)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn pubsub_pool_size_is_the_number_of_data_connections_to_a_peer() {
    let three = both("[pubsub]\npool_size = 3", |node| node.pool_size(3));
    for (way, expected) in [(DEFAULT, 1), (three[0], 3), (three[1], 3)] {
        let (_network, a, b) = way.pair().await;
        for _ in 0..6 {
            a.serve(Worker::default()).await.unwrap();
        }
        let workers = b.services::<Workers>();
        workers.wait_online(6).await.unwrap();
        for info in workers.view().services() {
            let at = workers.at(info.id().clone());
            assert_eq!(at.call(Ask::Notes).await, Ok(vec![]));
        }
        assert_eq!(b.stats().await.unwrap().data.connections_opened, expected);
    }
}

// [registry]

#[tokio::test]
async fn registry_log_level_decides_what_the_registry_logs() {
    type Case = (&'static str, fn(NodeBuilder) -> NodeBuilder, [bool; 2]);
    let cases: [Case; 6] = [
        ("off", |node| node.log_level(LogLevel::Off), [false, false]),
        (
            "error",
            |node| node.log_level(LogLevel::Error),
            [false, false],
        ),
        (
            "warn",
            |node| node.log_level(LogLevel::Warn),
            [false, false],
        ),
        ("info", |node| node.log_level(LogLevel::Info), [true, false]),
        (
            "debug",
            |node| node.log_level(LogLevel::Debug),
            [true, true],
        ),
        (
            "trace",
            |node| node.log_level(LogLevel::Trace),
            [true, true],
        ),
    ];
    for (level, builder, [info, debug]) in cases {
        let toml = format!("[registry]\nlog_level = \"{level}\"");
        for way in both(toml.leak(), builder) {
            let (log, _guard) = Log::capture();
            let (_network, a, b) = way.pair().await;
            b.serve(Worker::default()).await.unwrap();
            a.services::<Workers>().wait_online(1).await.unwrap();
            b.leave().await.unwrap();
            members(&a, 0).await;
            // Everything is logged before it shows.
            let said = |level| !log.lines(&[level, "keydispatch::registry"]).is_empty();
            assert_eq!([said(" INFO "), said("DEBUG ")], [info, debug], "{level}");
        }
    }
}

#[tokio::test]
async fn registry_log_level_error_silences_warnings_and_off_everything() {
    for (level, warns) in [("warn", true), ("error", false), ("off", false)] {
        let toml = format!("[registry]\nlog_level = \"{level}\"");
        let (log, _guard) = Log::capture();
        let network = MemoryNetwork::new();
        let node = Way::Toml(toml.leak()).node(&network, "a", &["seed:1"]);
        let _node = node.start().await.unwrap();
        let said = log.lines(&["WARN", "keydispatch::registry", "does not answer"]);
        assert_eq!(!said.is_empty(), warns, "{level}: {said:?}");
    }
}

/// A peer that is no node, on the control lane of one that listens on TCP.
struct Peer {
    stream: TcpStream,
    theirs: NodeId,
}

impl Peer {
    /// Meets a node with those settings, which is told not to mind its silence.
    async fn of(way: Way) -> (Node, Peer) {
        let node = way.describe("a").plaintext().start().await.unwrap();
        let mut stream = TcpStream::connect(node.address().as_str()).await.unwrap();
        let me = NodeId {
            name: NodeName::try_new("peer").unwrap(),
            generation: Generation {
                number: 1,
                random: 1,
            },
        };
        let hello = Hello {
            magic: MAGIC,
            major: PROTOCOL_MAJOR,
            minor: PROTOCOL_MINOR,
            lane: LaneKind::Control,
            cluster: node.cluster().clone(),
            node: me.clone(),
            nonce: 7,
            address: Address::try_new("127.0.0.1:9").unwrap(),
            placement: keydispatch::placement::PLACEMENT_VERSION,
            periods_ms: (0, 0),
            joined: false,
            highest_of_yours: None,
            offers: Offers::default(),
        };
        send(&mut stream, &ControlMessage::Hello(hello)).await;
        let ControlMessage::Hello(theirs) = receive(&mut stream).await else {
            panic!("a hello is answered with one");
        };
        // It has nothing registered, and says so: otherwise it would be asked in every period.
        let nothing = Delta {
            owner: me,
            nonce: 7,
            from: 0,
            to: 0,
            content: 0,
            operations: Vec::new(),
        };
        send(&mut stream, &ControlMessage::Delta(nothing)).await;
        let theirs = theirs.node;
        (node, Peer { stream, theirs })
    }

    /// Waits for so many digests.
    async fn digests(&mut self, count: usize) {
        let mut seen = 0;
        while seen < count {
            let message = receive(&mut self.stream).await;
            seen += usize::from(matches!(message, ControlMessage::Digest(_)));
        }
    }
}

async fn send(stream: &mut TcpStream, message: &ControlMessage) {
    let frame = message.encode();
    let length = u32::try_from(frame.body.len() + 1).unwrap();
    let bytes = [&length.to_le_bytes()[..], &[frame.kind], &frame.body].concat();
    stream.write_all(&bytes).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> ControlMessage {
    let length = stream.read_u32_le().await.unwrap();
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.unwrap();
    let frame = Frame {
        kind: bytes[0],
        body: bytes.split_off(1).into(),
    };
    ControlMessage::decode(&frame).unwrap().unwrap()
}

/// Asserts that the one compares versions far more often than the other, idle as both are.
async fn compares_more_often(often: Way, rarely: Way) {
    let (_often, mut often) = Peer::of(often).await;
    let (_rarely, mut rarely) = Peer::of(rarely).await;
    tokio::select! {
        () = often.digests(30) => {}
        () = rarely.digests(10) => panic!("not three times as often"),
    }
}

#[tokio::test]
async fn registry_broadcast_period_is_how_often_versions_are_compared() {
    const RARELY: Way =
        Way::Toml("[registry]\nbroadcast_period = \"500ms\"\ndown_period = \"60s\"");
    let toml = "[registry]\nbroadcast_period = \"10ms\"\ndown_period = \"60s\"";
    for way in both(toml, |node| {
        node.broadcast_period(Duration::from_millis(10))
            .down_period(Duration::from_secs(60))
    }) {
        compares_more_often(way, RARELY).await;
    }
}

#[tokio::test]
async fn registry_max_silent_periods_is_how_many_periods_pass_without_a_comparison_while_nothing_changes()
 {
    const RARELY: Way = Way::Toml(
        "[registry]\nbroadcast_period = \"10ms\"\nmax_silent_periods = 50\ndown_period = \"60s\"",
    );
    let toml =
        "[registry]\nbroadcast_period = \"10ms\"\nmax_silent_periods = 1\ndown_period = \"60s\"";
    for way in both(toml, |node| {
        node.broadcast_period(Duration::from_millis(10))
            .max_silent_periods(1)
            .down_period(Duration::from_secs(60))
    }) {
        compares_more_often(way, RARELY).await;
    }
}

#[tokio::test]
async fn node_seeds_may_be_names() {
    let first = Node::builder("a").plaintext().start().await.unwrap();
    let port = first.address().as_str().rsplit_once(':').unwrap().1;
    let second = Node::builder("b")
        .seeds([format!("localhost:{port}")])
        .plaintext();
    let second = second.start().await.unwrap();
    members(&second, 1).await;
    members(&first, 1).await;
}

#[tokio::test]
async fn registry_down_period_is_how_long_a_silent_node_is_not_taken_for_dead() {
    const PATIENT: Way = Way::Toml("[registry]\ndown_period = \"60s\"");
    for way in both("[registry]\ndown_period = \"600ms\"", |node| {
        node.down_period(Duration::from_millis(600))
    }) {
        let (quick, a, _b) = way.pair().await;
        let (slow, patient, _other) = PATIENT.pair().await;
        quick.cut("a:1", "b:1");
        slow.cut("a:1", "b:1");
        members(&a, 0).await;
        assert!(patient.members()[0].is_up());
    }
}

#[tokio::test]
async fn registry_down_period_follows_from_the_other_two_where_it_is_not_set() {
    let (log, _guard) = Log::capture();
    let network = MemoryNetwork::new();
    let _a = DEFAULT.node(&network, "a", &[]).start().await.unwrap();
    let slow = Way::Toml("[registry]\nbroadcast_period = \"1s\"\nmax_silent_periods = 5");
    let _b = slow.node(&network, "b", &["a:1"]).start().await.unwrap();
    let said = log.line(&["WARN", "node=b", "use the same settings"]).await;
    assert!(
        said.contains("broadcast_period 250 ms and down_period 1500 ms"),
        "{said}"
    );
    assert!(said.contains("this node with 1000 and 10000"), "{said}");
}

async fn owners_kept(node: &Node) -> usize {
    node.stats().await.unwrap().cluster.owners.len()
}

#[tokio::test]
async fn registry_permdown_period_is_how_long_the_dead_are_remembered() {
    const LONG: Way = Way::Toml("[registry]\ndown_period = \"600ms\"");
    let toml = "[registry]\ndown_period = \"600ms\"\npermdown_period = \"800ms\"";
    for way in both(toml, |node| {
        node.down_period(Duration::from_millis(600))
            .permdown_period(Duration::from_millis(800))
    }) {
        let (_network, a, b) = way.pair().await;
        let (_other, remembering, dead) = LONG.pair().await;
        assert_eq!(owners_kept(&a).await, 1);
        drop((b, dead));
        members(&remembering, 0).await;
        members(&a, 0).await;
        eventually("the dead are forgotten", async || {
            let (kept, members) = (owners_kept(&a).await, a.members());
            if kept == 0 && members.is_empty() {
                Ok(())
            } else {
                Err(format!("{kept} owners kept, {members:?}"))
            }
        })
        .await;
        assert_eq!(owners_kept(&remembering).await, 1);
        assert_eq!(remembering.members().len(), 1);
    }
}

#[tokio::test]
async fn registry_permdown_on_shutdown_lets_a_dropped_node_say_goodbye() {
    let set = both("[registry]\npermdown_on_shutdown = true", |node| {
        node.permdown_on_shutdown(true)
    });
    for (way, goodbye) in [(DEFAULT, false), (set[0], true), (set[1], true)] {
        let (_network, a, b) = way.pair().await;
        let mut changes = a.subscribe_members();
        b.serve(Worker::default()).await.unwrap();
        a.services::<Workers>().wait_online(1).await.unwrap();
        drop(b);
        match changes.next().await {
            Some(MemberChange::Left { .. }) => assert!(goodbye),
            Some(MemberChange::Down { .. }) => assert!(!goodbye),
            other => panic!("{other:?}"),
        }
        eventually("its services are gone", async || {
            match a.services::<Workers>().find("key") {
                Ok(info) => Err(format!("{info:?}")),
                Err(_) => Ok(()),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn registry_max_delta_sizes_is_how_many_changes_are_kept_for_those_who_missed_some() {
    let small = both("[registry]\nmax_delta_sizes = 3", |node| {
        node.max_delta_sizes(3)
    });
    for (way, whole) in [(DEFAULT, false), (small[0], true), (small[1], true)] {
        let (node, mut peer) = Peer::of(way).await;
        for number in 0..10 {
            let endpoint = NewService::endpoint("uploader", format!("host:{number}"));
            node.registry().add_service(endpoint).await.unwrap();
        }
        // What a peer asks that was away after the second change.
        let request = Request {
            owner: peer.theirs.clone(),
            have: Some(2),
            resume: None,
        };
        send(&mut peer.stream, &ControlMessage::Request(request)).await;
        loop {
            match receive(&mut peer.stream).await {
                ControlMessage::Snapshot(chunk) => {
                    assert!(whole, "the changes were kept");
                    assert_eq!(chunk.records.len(), 10);
                    break;
                }
                ControlMessage::Delta(delta) if delta.from == 2 && delta.to == 10 => {
                    assert!(!whole, "too many changes were kept");
                    assert_eq!(delta.operations.len(), 8);
                    break;
                }
                // What goes to everybody as it happens.
                _ => {}
            }
        }
    }
}

// [node]

#[tokio::test]
async fn node_name_is_the_name_of_the_node() {
    let network = MemoryNetwork::new();
    let by_builder = Node::builder("a").memory(&network).start().await.unwrap();
    assert_eq!(by_builder.name().as_str(), "a");
    let named = Config::parse("[node]\nname = \"b\"").unwrap();
    let by_toml = named.builder("unnamed").unwrap().memory(&network);
    assert_eq!(by_toml.start().await.unwrap().name().as_str(), "b");
    let unnamed = DEFAULT.describe("c").memory(&network);
    assert_eq!(unnamed.start().await.unwrap().name().as_str(), "c");
}

#[tokio::test]
async fn node_bind_is_where_it_listens() {
    for way in both("[node]\nbind = \"a:7\"\n", |node| node.bind("a:7")) {
        let network = MemoryNetwork::new();
        let node = way.describe("a").memory(&network).start().await.unwrap();
        assert_eq!(node.address().as_str(), "a:7");
        let other = way.describe("b").memory(&network).start().await;
        assert!(matches!(other, Err(StartError::Bind(_))), "{other:?}");
    }
}

#[tokio::test]
async fn node_bind_takes_ipv6_and_plaintext_does_without_certificates() {
    for way in both("[node]\nbind = \"[::1]:0\"\nplaintext = true", |node| {
        node.bind("[::1]:0").plaintext()
    }) {
        let a = way.describe("a").start().await.unwrap();
        assert!(a.address().as_str().starts_with("[::1]:"), "{a:?}");
        assert!(!a.address().as_str().ends_with(":0"), "{a:?}");
        let b = way.describe("b").seeds([a.address().as_str()]);
        let b = b.start().await.unwrap();
        members(&b, 1).await;
    }
}

#[tokio::test]
async fn node_advertise_is_where_the_others_reach_it() {
    // Bound to one address, and reached at another: the third node, which is told only of the first, finds it there.
    for way in both("[node]\nadvertise = \"localhost:PORT\"", |node| node) {
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let advertised = format!("localhost:{port}");
        let hub = DEFAULT.describe("hub").plaintext().start().await.unwrap();
        let node = match way {
            Way::Builder(_) => Node::builder("a").advertise(&advertised),
            Way::Toml(text) => Config::parse(&text.replace("PORT", &port.to_string()))
                .unwrap()
                .builder("a")
                .unwrap(),
        };
        let node = node
            .plaintext()
            .bind(format!("127.0.0.1:{port}"))
            .seeds([hub.address().as_str()])
            .start()
            .await
            .unwrap();
        assert_eq!(node.address().as_str(), advertised);
        node.serve(Worker::default()).await.unwrap();
        let third = DEFAULT.describe("third").plaintext();
        let third = third.seeds([hub.address().as_str()]).start().await.unwrap();
        let workers = third.services::<Workers>();
        workers.wait_online(1).await.unwrap();
        assert_eq!(workers.call("key", Ask::Note(1)).await, Ok(vec![1]));
        let members = third.members();
        let member = members.iter().find(|member| member.name().as_str() == "a");
        assert_eq!(member.unwrap().address.as_str(), advertised);
    }
}

#[tokio::test]
async fn node_dial_link_local_lets_a_node_advertise_such_an_address() {
    for way in both("[node]\nplaintext = true\ndial_link_local = true", |node| {
        node.plaintext().dial_link_local(true)
    }) {
        let advertised = "169.254.7.7:7400";
        let refused = DEFAULT.describe("a").plaintext().advertise(advertised);
        let error = refused.start().await.unwrap_err().to_string();
        assert!(error.contains("node.dial_link_local"), "{error}");
        let node = way.describe("a").advertise(advertised).start().await;
        assert_eq!(node.unwrap().address().as_str(), advertised);
    }
}

#[tokio::test]
async fn node_seeds_are_where_it_finds_others() {
    for way in both("[node]\nseeds = [\"nowhere:1\", \"a:1\"]", |node| {
        node.seeds(["nowhere:1", "a:1"])
    }) {
        let network = MemoryNetwork::new();
        let a = DEFAULT.node(&network, "a", &[]).start().await.unwrap();
        let b = way.describe("b").memory(&network).bind("b:1");
        let b = b.start().await.unwrap();
        members(&b, 1).await;
        members(&a, 1).await;
    }
}

#[tokio::test]
async fn node_zone_is_the_zone_of_its_services() {
    for way in both("[node]\nzone = \"west\"", |node| node.zone("west")) {
        let network = MemoryNetwork::new();
        let node = way.node(&network, "a", &[]).start().await.unwrap();
        let served = node.serve(Worker::default()).await.unwrap();
        let zone = served.info().zone().map(ToString::to_string);
        assert_eq!(zone.as_deref(), Some("west"));
    }
}

#[tokio::test]
async fn node_ca_cert_and_key_encrypt_and_all_three_are_needed() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("dispatch").unwrap();
    let path = |file: &str| directory.path().join(file);
    std::fs::write(path("ca.pem"), authority.ca_pem()).unwrap();
    for name in ["a", "b"] {
        let issued = authority.issue(name).unwrap();
        let file = |extension| path(&format!("{name}.{extension}"));
        issued.write(&file("pem"), &file("key")).unwrap();
    }
    let key = |key: &str, file: &str| format!("{key} = {:?}\n", path(file));
    let files = TlsFiles::new(path("ca.pem"), path("a.pem"), path("a.key"));
    let a = Node::builder("a").tls(files).start().await.unwrap();
    let toml = format!(
        "[node]\n{}{}{}",
        key("ca", "ca.pem"),
        key("cert", "b.pem"),
        key("key", "b.key")
    );
    let b = Config::parse(&toml).unwrap().builder("b").unwrap();
    let b = b.seeds([a.address().as_str()]).start().await.unwrap();
    members(&b, 1).await;
    let halves = format!("[node]\n{}{}", key("ca", "ca.pem"), key("cert", "b.pem"));
    let error = Config::parse(&halves).unwrap().builder("b").unwrap_err();
    assert!(error.to_string().contains("node.key is missing"), "{error}");
    let beside = format!("{toml}plaintext = true\n");
    let error = Config::parse(&beside).unwrap().builder("b").unwrap_err();
    assert!(error.to_string().contains("choose one"), "{error}");
}

#[tokio::test]
async fn node_crl_names_who_is_revoked_and_needs_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("dispatch").unwrap();
    let path = |file: &str| directory.path().join(file);
    std::fs::write(path("ca.pem"), authority.ca_pem()).unwrap();
    let issued = authority.issue("a").unwrap();
    issued.write(&path("a.pem"), &path("a.key")).unwrap();
    let list = authority.revocation_list(1, issued.revoked()).unwrap();
    std::fs::write(path("ca.crl"), list).unwrap();
    let key = |key: &str, file: &str| format!("{key} = {:?}\n", path(file));
    let crl = key("crl", "ca.crl");
    let toml = format!(
        "[node]\n{}{}{}{crl}",
        key("ca", "ca.pem"),
        key("cert", "a.pem"),
        key("key", "a.key")
    );
    let error = Config::parse(&toml).unwrap().builder("a").unwrap();
    let error = error.start().await.unwrap_err().to_string();
    assert!(error.contains("a.pem is revoked by"), "{error}");
    let alone = format!("[node]\n{crl}");
    let error = Config::parse(&alone).unwrap().builder("a").unwrap_err();
    assert!(error.to_string().contains("node.ca is missing"), "{error}");
    let plain = format!("{alone}plaintext = true\n");
    let error = Config::parse(&plain).unwrap().builder("a").unwrap_err();
    assert!(error.to_string().contains("choose one"), "{error}");
}

#[tokio::test]
async fn node_max_payload_bytes_is_the_longest_payload() {
    for way in both("[node]\nmax_payload_bytes = 100", |node| {
        node.max_payload_bytes(100)
    }) {
        let (_network, a, b) = way.pair().await;
        a.serve(Worker::default()).await.unwrap();
        let workers = b.services::<Workers>();
        workers.wait_online(1).await.unwrap();
        let large = Ask::Bytes(vec![7; 1_000]);
        let error = workers.call("key", large).await.unwrap_err();
        assert!(
            matches!(error, CallError::TooLarge { limit: 100, .. }),
            "{error:?}"
        );
        assert!(b.pubsub().broadcast("news", vec![7; 101]).is_err());
        assert!(b.pubsub().broadcast("news", vec![7; 100]).is_ok());
    }
}

#[tokio::test]
async fn pubsub_topic_bytes_is_what_may_wait_for_one_subscription() {
    for way in both("[pubsub]\ntopic_bytes = 100", |node| node.topic_bytes(100)) {
        let (_network, a, _b) = way.pair().await;
        let mut slow = a.pubsub().subscribe("news").unwrap();
        for _ in 0..5 {
            a.pubsub().local_broadcast("news", vec![7; 50]).unwrap();
        }
        assert_eq!(slow.next().await, Some(TopicEvent::Lagged { missed: 3 }));
    }
}

#[tokio::test]
async fn node_waiting_bytes_is_what_may_wait_in_all() {
    for way in both("[node]\nwaiting_bytes = 100", |node| {
        node.waiting_bytes(100)
    }) {
        let (_network, a, _b) = way.pair().await;
        assert_eq!(a.stats().await.unwrap().data.max_waiting_bytes, 100);
        let mut slow = a.pubsub().subscribe("news").unwrap();
        let mut other = a.pubsub().subscribe("other news").unwrap();
        for topic in ["news", "news", "other news"] {
            a.pubsub().local_broadcast(topic, vec![7; 60]).unwrap();
        }
        let stats = a.stats().await.unwrap().data;
        assert_eq!(stats.waiting_bytes, 60);
        assert_eq!(stats.refused_for_want_of_room, 2);
        assert_eq!(slow.next().await, Some(TopicEvent::Lagged { missed: 1 }));
        assert_eq!(other.next().await, Some(TopicEvent::Lagged { missed: 1 }));
        let Some(TopicEvent::Message(first)) = slow.next().await else {
            panic!("the first was taken");
        };
        assert_eq!(first.payload.len(), 60);
        assert_eq!(a.stats().await.unwrap().data.waiting_bytes, 0);
    }
}

#[tokio::test]
async fn the_start_timeout_is_how_long_a_node_waits_for_silent_seeds() {
    let network = MemoryNetwork::new();
    let _seed = DEFAULT.node(&network, "seed", &[]).start().await.unwrap();
    network.isolate("seed:1");
    let patient = DEFAULT
        .node(&network, "a", &["seed:1"])
        .start_timeout(PATIENCE);
    let hasty = DEFAULT.node(&network, "b", &["seed:1"]);
    tokio::select! {
        started = hasty.start() => assert!(started.unwrap().members().is_empty()),
        started = patient.start() => panic!("{started:?}"),
    }
}
