//! Peers that mean harm, against a real node over plaintext TCP: each costs bounded memory, is logged once, and takes
//! nothing from anybody else.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use keydispatch::{
    Context, Node, NodeBuilder, Protocol, ReplyTo, ServeOptions, Service, ServiceHandle,
};
use keydispatch_core::limits::{MAX_CONTROL_FRAME_BYTES, MAX_KNOWN_NODES};
use keydispatch_core::message::{
    Address, ControlMessage, Delta, Digest, FIRST_DATA_KIND, Frame, Hello, LaneKind, MAGIC, Offers,
    Operation, OwnerVersion, PROTOCOL_MAJOR, PROTOCOL_MINOR, SnapshotChunk, VersionVector,
};
use keydispatch_core::placement::PLACEMENT_VERSION;
use keydispatch_core::{
    ClusterName, Generation, InstanceName, NodeId, NodeName, Record, ServiceState, ServiceType,
    Weight,
};
use keydispatch_fleet::{Counter, CounterCall, Counters, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// What an attack may make the process grow by, the attacker's own memory included.
const ALLOWANCE_KIB: u64 = 96 * 1024;

/// What a call may take while the node is attacked, on a busy machine.
const QUICK: Duration = Duration::from_secs(5);

/// Everything that was logged at `warn` and above.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logs() -> Logs {
    static LOGS: OnceLock<Logs> = OnceLock::new();
    LOGS.get_or_init(|| {
        let logs = Logs::default();
        let writer = logs.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::WARN)
            .with_writer(move || writer.clone())
            .init();
        logs
    })
    .clone()
}

/// The attacked node, and another one that calls it.
struct Setup {
    target: Node,
    _other: Node,
    counters: ServiceHandle<Counters>,
    memory_kib: u64,
    /// Memory is measured, and the log is read: one at a time.
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Setup {
    async fn set() -> Setup {
        Setup::set_with(|node| node).await
    }

    async fn set_with(describe: impl Fn(NodeBuilder) -> NodeBuilder) -> Setup {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let alone = ALONE.lock().await;
        logs().0.lock().unwrap().clear();
        let start = |name: &'static str, seeds: Vec<String>| {
            let node = Node::builder(name)
                .cluster("hostile")
                .bind("127.0.0.1:0")
                .seeds(seeds)
                .plaintext();
            let node = describe(node);
            async move { node.start().await.unwrap() }
        };
        let target = start("target", Vec::new()).await;
        target.serve(Counter::default()).await.unwrap();
        let other = start("other", vec![target.address().to_string()]).await;
        let counters = other.services::<Counters>();
        counters.wait_online(1).await.unwrap();
        counters.call("key", CounterCall::Sum).await.unwrap();
        Setup {
            memory_kib: memory_kib(),
            target,
            _other: other,
            counters,
            _alone: alone,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.target.address().as_str())
            .await
            .unwrap()
    }

    /// A peer whose handshake was accepted.
    async fn greet(&self, name: &str, lane: LaneKind) -> Peer {
        let mut peer = Peer {
            node: node(name),
            stream: self.connect().await,
        };
        let hello = ControlMessage::Hello(hello(&peer.node, lane));
        peer.send(&hello.encode()).await.unwrap();
        let answer = peer.receive().await.unwrap();
        assert!(
            matches!(
                ControlMessage::decode(&answer),
                Ok(Some(ControlMessage::Hello(_)))
            ),
            "{answer:?}"
        );
        peer
    }

    /// The others are served as ever.
    async fn still_answers(&self) {
        for _ in 0..20 {
            let asked = Instant::now();
            self.counters
                .call("key", CounterCall::Add(1))
                .await
                .unwrap();
            let took = asked.elapsed();
            assert!(took < QUICK, "a call took {took:?}");
        }
    }

    fn has_not_grown(&self) {
        let now = memory_kib();
        assert!(
            now < self.memory_kib + ALLOWANCE_KIB,
            "memory grew from {} to {now} KiB",
            self.memory_kib
        );
    }

    /// How many lines of the log hold that.
    fn logged(&self, what: &str) -> usize {
        let logs = logs();
        let bytes = logs.0.lock().unwrap();
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| line.contains(what))
            .count()
    }
}

fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId {
        name: NodeName::try_new(name).unwrap(),
        generation: Generation {
            number: 1,
            random: 1,
        },
    }
}

fn hello(node: &NodeId, lane: LaneKind) -> Hello {
    Hello {
        magic: MAGIC,
        major: PROTOCOL_MAJOR,
        minor: PROTOCOL_MINOR,
        lane,
        cluster: ClusterName::try_new("hostile").unwrap(),
        node: node.clone(),
        nonce: 1,
        // Nobody listens there.
        address: Address::try_new("127.0.0.1:1").unwrap(),
        placement: PLACEMENT_VERSION,
        periods_ms: (250, 1_500),
        joined: false,
        highest_of_yours: None,
        offers: Offers::default(),
    }
}

struct Peer {
    node: NodeId,
    stream: TcpStream,
}

impl Peer {
    async fn send(&mut self, frame: &Frame) -> std::io::Result<()> {
        let bytes = encoded(frame);
        self.stream.write_all(&bytes).await
    }

    async fn receive(&mut self) -> std::io::Result<Frame> {
        let length = self.stream.read_u32_le().await?;
        let kind = self.stream.read_u8().await?;
        let mut body = vec![0; length as usize - 1];
        self.stream.read_exact(&mut body).await?;
        Ok(Frame {
            kind,
            body: body.into(),
        })
    }

    /// Waits until the other side closes the connection; what it still says is read.
    async fn is_closed(&mut self) {
        let mut sink = vec![0; 65_536];
        let closed =
            async { while !matches!(self.stream.read(&mut sink).await, Ok(0) | Err(_)) {} };
        tokio::time::timeout(Duration::from_secs(10), closed)
            .await
            .unwrap();
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let length = u32::try_from(frame.body.len() + 1).unwrap();
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.push(frame.kind);
    bytes.extend_from_slice(&frame.body);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_lengths_close_the_connection_before_anything_is_allocated() {
    let setup = Setup::set().await;
    for _ in 0..300 {
        let mut peer = Peer {
            node: node("stranger"),
            stream: setup.connect().await,
        };
        let _ = peer.stream.write_all(&[0xff; 64]).await;
        peer.is_closed().await;
    }
    assert_eq!(setup.logged("4294967295 bytes is over the limit"), 1);
    for (name, lane, limit) in [
        ("control", LaneKind::Control, MAX_CONTROL_FRAME_BYTES as u32),
        ("data", LaneKind::Data, 64 << 20),
    ] {
        let mut peer = setup.greet(name, lane).await;
        peer.stream
            .write_all(&(limit + 1).to_le_bytes())
            .await
            .unwrap();
        peer.is_closed().await;
    }
    setup.still_answers().await;
    setup.has_not_grown();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_never_finish_their_handshake_are_dropped() {
    let setup = Setup::set().await;
    let begun = Instant::now();
    let mut silent = Vec::new();
    for number in 0..3_000 {
        let mut stream = setup.connect().await;
        if number % 2 == 0 {
            // The beginning of a frame, and never its end.
            let _ = stream.write_all(&[40, 0, 0, 0, 1]).await;
        }
        silent.push(stream);
    }
    setup.still_answers().await;
    setup.has_not_grown();
    let mut buffer = [0; 16];
    for stream in &mut silent {
        let end = stream.read(&mut buffer);
        let end = tokio::time::timeout(Duration::from_secs(15), end).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Once they are gone, newcomers are let in as ever.
    setup.greet("newcomer", LaneKind::Control).await;
    setup.still_answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_questions_whose_answers_nobody_reads_is_bounded() {
    let setup = Setup::set().await;
    let mut peer = setup.greet("flood", LaneKind::Control).await;
    let digest = ControlMessage::Digest(Digest { hash: 1, ask: true });
    let batch = encoded(&digest.encode()).repeat(10_000);
    let flood = async {
        for _ in 0..100 {
            if peer.stream.write_all(&batch).await.is_err() {
                return;
            }
        }
    };
    // A peer that reads nothing is closed, or is not read any more.
    let _ = tokio::time::timeout(Duration::from_secs(5), flood).await;
    setup.still_answers().await;
    setup.has_not_grown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_whose_replies_nobody_reads_is_bounded() {
    let setup = Setup::set().await;
    let mut peer = setup.greet("flood", LaneKind::Data).await;
    // A call of a service that is not there: number, service, timeout, version, and no message.
    let call = Frame {
        kind: FIRST_DATA_KIND,
        body: vec![1, 99, 10, 1].into(),
    };
    let batch = encoded(&call).repeat(10_000);
    let flood = async {
        for _ in 0..1_000 {
            if peer.stream.write_all(&batch).await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), flood).await;
    setup.still_answers().await;
    setup.has_not_grown();
}

/// A service that never finishes its first call, and says that it has it. What comes behind it waits.
struct Stuck(Arc<Notify>);

struct Stucks;

impl Protocol for Stucks {
    const NAME: &'static str = "stuck";
    type Call = Vec<u8>;
    type Reply = ();
    type Cast = Vec<u8>;
}

impl Service for Stuck {
    type Protocol = Stucks;

    async fn handle_call(&mut self, _: Vec<u8>, _: ReplyTo<()>, _: &mut Context<Self>) {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_16_mib_as_fast_as_a_connection_takes_them_wait_in_as_much_as_was_set() {
    const WAITING_BYTES: usize = 64 << 20;
    const CALL_BYTES: usize = (16 << 20) - 16;
    let setup = Setup::set_with(|node| node.waiting_bytes(WAITING_BYTES)).await;
    let mut stuck = Vec::new();
    for number in 0..10 {
        let options = ServeOptions::new().name(format!("stuck-{number}"));
        let begun = Arc::new(Notify::new());
        let service = Stuck(Arc::clone(&begun));
        let served = setup.target.serve_with(options, service).await.unwrap();
        let first = setup.target.services::<Stucks>().at(served.id().clone());
        tokio::spawn(async move { first.call(Vec::new()).await });
        begun.notified().await;
        stuck.push(served);
    }
    let mut peer = setup.greet("flood", LaneKind::Data).await;
    let (mut replies, mut calls) = peer.stream.split();
    let message = vec![7; CALL_BYTES];
    let flood = async {
        for number in 1..=100_u64 {
            let at = &stuck[number as usize % stuck.len()];
            // Number, service, timeout in milliseconds, version; and the message, which is bytes.
            let header = (number, at.id().sequence, 60_000_u32, 1_u64);
            let header = postcard::to_allocvec(&(header, CALL_BYTES)).unwrap();
            let length = u32::try_from(1 + header.len() + message.len()).unwrap();
            calls.write_u32_le(length).await.unwrap();
            calls.write_u8(FIRST_DATA_KIND).await.unwrap();
            calls.write_all(&header).await.unwrap();
            calls.write_all(&message).await.unwrap();
            // The attacker's own copy, and what is arriving, are part of the allowance.
            let limit = setup.memory_kib + ALLOWANCE_KIB + WAITING_BYTES as u64 / 1024;
            let now = memory_kib();
            assert!(
                now < limit,
                "{now} KiB after {number} calls, {limit} are allowed"
            );
        }
    };
    let answers = async {
        let mut sink = vec![0; 65_536];
        while !matches!(replies.read(&mut sink).await, Ok(0) | Err(_)) {}
    };
    tokio::select! {
        () = flood => {}
        () = answers => panic!("the connection was closed"),
    }
    eventually("some were told that there is no room", async || {
        let stats = setup.target.stats().await.unwrap().data;
        assert!(stats.waiting_bytes <= WAITING_BYTES, "{stats:?}");
        if stats.refused_for_want_of_room > 0 {
            Ok(())
        } else {
            Err(format!("{stats:?}"))
        }
    })
    .await;
    setup.still_answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_of_a_million_owners_makes_no_million_owners() {
    let setup = Setup::set().await;
    let mut peer = setup.greet("liar", LaneKind::Control).await;
    for chunk in 0..100_u64 {
        let owners = (0..10_000_u64)
            .map(|row| OwnerVersion {
                owner: node(&format!("made-up-{}", chunk * 10_000 + row)),
                version: u64::MAX,
                content: row,
            })
            .collect();
        let vector = ControlMessage::Vector(VersionVector { owners });
        if peer.send(&vector.encode()).await.is_err() {
            break;
        }
    }
    setup.still_answers().await;
    let stats = setup.target.stats().await.unwrap();
    assert!(stats.cluster.owners.len() <= MAX_KNOWN_NODES);
    assert!(stats.members.len() <= MAX_KNOWN_NODES);
    setup.has_not_grown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_from_the_future_is_refused_and_logged_once() {
    let setup = Setup::set().await;
    for _ in 0..50 {
        let mut peer = Peer {
            node: node("future"),
            stream: setup.connect().await,
        };
        let mut hello = hello(&peer.node, LaneKind::Control);
        hello.major = PROTOCOL_MAJOR + 1;
        peer.send(&ControlMessage::Hello(hello).encode())
            .await
            .unwrap();
        let answer = peer.receive().await.unwrap();
        let answer = ControlMessage::decode(&answer).unwrap().unwrap();
        assert!(matches!(answer, ControlMessage::Refuse(_)), "{answer:?}");
        peer.is_closed().await;
    }
    assert_eq!(setup.logged("version"), 1);
    // Kinds of a later minor version are skipped.
    let mut peer = setup.greet("later", LaneKind::Control).await;
    for kind in 50..FIRST_DATA_KIND {
        let frame = Frame {
            kind,
            body: vec![kind; 100].into(),
        };
        peer.send(&frame).await.unwrap();
    }
    // A version of its own entries that nobody can have reached.
    let row = OwnerVersion {
        owner: peer.node.clone(),
        version: u64::MAX,
        content: 7,
    };
    let vector = ControlMessage::Vector(VersionVector { owners: vec![row] });
    peer.send(&vector.encode()).await.unwrap();
    setup.still_answers().await;
    setup.has_not_grown();
}

fn record(sequence: u64, service_type: &str) -> Record {
    Record {
        sequence,
        version: 1,
        previous: None,
        service_type: ServiceType::try_new(service_type).unwrap(),
        name: InstanceName::try_new(format!("forged-{sequence}")).unwrap(),
        state: ServiceState::Online,
        weight: Weight::default(),
        protocol_version: Some(1),
        metadata: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_somebody_else_are_dropped_and_logged_once() {
    let setup = Setup::set().await;
    let stats = setup.target.stats().await.unwrap();
    let other = stats
        .cluster
        .owners
        .iter()
        .map(|owner| owner.node.clone())
        .find(|owner| owner.name.as_str() == "other")
        .unwrap();
    let mut peer = setup.greet("forger", LaneKind::Control).await;
    for owner in [stats.cluster.node, other] {
        for to in 1..=50 {
            let delta = ControlMessage::Delta(Delta {
                owner: owner.clone(),
                nonce: 1,
                from: 0,
                to,
                content: 0,
                operations: vec![Operation::Put(record(to, "counter"))],
            });
            peer.send(&delta.encode()).await.unwrap();
        }
    }
    eventually("they are rejected", async || {
        match setup.logged("of another owner") {
            0 => Err("nothing is logged".to_owned()),
            times => Ok(times),
        }
    })
    .await;
    setup.still_answers().await;
    let listed = setup.target.registry().services("counter");
    assert_eq!(listed.len(), 1, "{listed:?}");
    // Once, and then at 2, 4, 8 and so on.
    let times = setup.logged("of another owner");
    assert!(times <= 7, "{times}");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_never_end_are_not_kept() {
    let setup = Setup::set().await;
    let mut peer = setup.greet("endless", LaneKind::Control).await;
    for version in 1..100_u64 {
        let records = (0..5_000).map(|number| record(number, "bulk")).collect();
        let chunk = ControlMessage::Snapshot(SnapshotChunk {
            of: OwnerVersion {
                owner: peer.node.clone(),
                version,
                content: 1,
            },
            nonce: 1,
            index: 0,
            count: u32::MAX,
            records,
        });
        if peer.send(&chunk.encode()).await.is_err() {
            break;
        }
    }
    setup.still_answers().await;
    assert!(setup.target.registry().services("bulk").is_empty());
    setup.has_not_grown();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_peers_that_never_were_end() {
    let setup = Setup::set().await;
    let mut ghosts = Vec::new();
    for number in 0..20 {
        ghosts.push(setup.greet(&format!("ghost{number}"), LaneKind::Data).await);
    }
    // Nothing is said on them, and nobody closes them: as when their hosts had vanished.
    for ghost in &mut ghosts {
        ghost.is_closed().await;
    }
    eventually("none of them is counted any more", async || {
        match setup.target.stats().await.unwrap().data.connections_inbound {
            1 => Ok(()),
            open => Err(open.to_string()),
        }
    })
    .await;
    setup.still_answers().await;
}
