//! Data connections over a network that does as it is told, under virtual time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::admission::Credentials;
use keydispatch_core::message::{
    Address, ControlMessage, Frame, LaneKind, MAGIC, Offers, PROTOCOL_MAJOR,
};
use keydispatch_core::{
    ClusterName, Codec, EntryChange, Generation, InstanceName, Key, NodeId, NodeName, Record,
    ServiceInfo, ServiceState, ServiceType, Weight,
};

use super::aim::{Aim, To};
use super::lane::Outcome::NotSent;
use super::lane::{Lane, Outcome, PendingCall};
use super::tokens::TokenInputs;
use super::wire::{CallHeader, CastHeader, Format, kind};
use super::*;
use crate::call::CallError;
use crate::protocol::Protocol;
use crate::transport::metered::Received;
use crate::transport::{AcceptError, BoxFuture, Connection, ConnectionError, DialError};

const SECOND: Duration = Duration::from_secs(1);

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody answers the dial.
    Hangs,
    /// The dial is refused.
    Refused,
    /// The handshake is answered, and nothing after it.
    Stalls,
    /// Every call is answered.
    Answers,
    /// The handshake is answered; then the connection's task panics.
    Panics,
    /// The handshake is answered; then the connection is closed.
    Closes,
}

/// Dials meet their fates in order; the last one is everybody's after it.
#[derive(Debug)]
struct Fates {
    left: Mutex<VecDeque<Fate>>,
    dials: AtomicU64,
    /// What the peer says of itself.
    hello: Hello,
    /// The kinds of the frames that were sent after a handshake, on any connection.
    sent: Arc<Mutex<Vec<u8>>>,
    /// Ends the connections that are there.
    breaks: Arc<AtomicBool>,
}

impl Transport for Fates {
    fn local_address(&self) -> Address {
        address()
    }

    fn dial<'a>(&'a self, _: &'a Address) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let mut left = self.left.lock().unwrap();
        let fate = if left.len() > 1 {
            left.pop_front()
        } else {
            left.front().copied()
        };
        let hello = self.hello.clone();
        let (sent, breaks) = (Arc::clone(&self.sent), Arc::clone(&self.breaks));
        Box::pin(async move {
            match fate {
                Some(Fate::Hangs) | None => std::future::pending().await,
                Some(Fate::Refused) => Err(DialError::Refused { address: address() }),
                Some(fate) => Ok(Box::new(Scripted {
                    sent,
                    breaks,
                    ..Scripted::new(fate, hello)
                }) as Box<dyn Connection>),
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, AcceptError>> {
        Box::pin(std::future::pending())
    }

    fn unbind(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct Scripted {
    fate: Fate,
    hello: Hello,
    incoming: VecDeque<Frame>,
    greeted: bool,
    received: Received,
    waker: Option<Waker>,
    sent: Arc<Mutex<Vec<u8>>>,
    breaks: Arc<AtomicBool>,
}

impl Scripted {
    fn new(fate: Fate, hello: Hello) -> Self {
        Scripted {
            fate,
            hello,
            incoming: VecDeque::new(),
            greeted: false,
            received: Received::default(),
            waker: None,
            sent: Arc::default(),
            breaks: Arc::default(),
        }
    }
}

impl Connection for Scripted {
    fn credentials(&self) -> &Credentials {
        &Credentials::Unchecked
    }

    fn peer(&self) -> &str {
        "scripted"
    }

    fn opened(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }

    fn set_frame_limit(&mut self, _: usize) {}

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ConnectionError>>> {
        match self.incoming.pop_front() {
            Some(frame) => {
                self.received.add(1);
                Poll::Ready(Some(Ok(frame)))
            }
            None if self.greeted && self.fate == Fate::Panics => panic!("as it was told"),
            None if self.breaks.load(Ordering::Relaxed) => Poll::Ready(None),
            None if self.greeted && self.fate == Fate::Closes => Poll::Ready(None),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn meter(&self) -> &Received {
        &self.received
    }

    fn send_with(&mut self, frame: Frame, rest: Bytes) {
        if self.greeted && !matches!(frame.kind, kind::PING | kind::PONG) {
            self.sent.lock().unwrap().push(frame.kind);
        }
        let answer = match frame.kind {
            kind::CALL if self.fate == Fate::Answers => {
                let (header, mut message) = wire::split::<CallHeader>(&frame.body).unwrap();
                if !rest.is_empty() {
                    message = rest;
                }
                let mut body = postcard::to_allocvec(&header.number).unwrap();
                body.extend(&message);
                Some(Frame {
                    kind: kind::REPLY,
                    body: body.into(),
                })
            }
            kind::PING if self.fate == Fate::Answers => Some(wire::empty(kind::PONG)),
            _ if !self.greeted => {
                self.greeted = true;
                Some(ControlMessage::Hello(self.hello.clone()).encode())
            }
            _ => None,
        };
        self.incoming.extend(answer);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn buffered(&self) -> usize {
        0
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        Poll::Ready(Ok(()))
    }
}

fn address() -> Address {
    Address::try_new("far:1").unwrap()
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

fn hello(name: &str) -> Hello {
    Hello {
        magic: MAGIC,
        major: PROTOCOL_MAJOR,
        minor: 1,
        lane: LaneKind::Data,
        cluster: ClusterName::try_new("c").unwrap(),
        node: node(name),
        nonce: name.len() as u64,
        address: address(),
        placement: 1,
        periods_ms: (250, 1_500),
        joined: true,
        highest_of_yours: None,
        offers: Offers::default(),
    }
}

struct Numbers;

impl Protocol for Numbers {
    const NAME: &'static str = "numbers";
    type Call = u8;
    type Reply = u8;
    type Cast = u8;
}

/// What messages of the tests are for.
fn aim() -> Aim {
    Aim::new::<Numbers>(To::Owner(Key::from("key")))
}

/// What lists one service of the peer.
fn listing() -> Arc<Directory> {
    let far = node("far");
    let record = Record {
        sequence: 1,
        version: 1,
        previous: None,
        service_type: ServiceType::try_new(Numbers::NAME).unwrap(),
        name: InstanceName::try_new("one").unwrap(),
        state: ServiceState::Online,
        weight: Weight::default(),
        protocol_version: Some(Numbers::VERSION),
        metadata: None,
    };
    let info = ServiceInfo::from_record(&far.name, far.generation, 3, record);
    let mut registry = keydispatch_core::DirectoryWriter::new();
    registry.apply(vec![EntryChange {
        before: None,
        after: Some(Arc::new(info)),
    }]);
    registry.directory()
}

struct Stage {
    data: DataLane,
    fates: Arc<Fates>,
}

impl Stage {
    fn set(fates: &[Fate]) -> Stage {
        Stage::with(fates, hello("far"))
    }

    /// A node, and a peer that is up and says this.
    fn with(fates: &[Fate], theirs: Hello) -> Stage {
        let fates = Arc::new(Fates {
            left: Mutex::new(fates.iter().copied().collect()),
            dials: AtomicU64::new(0),
            hello: theirs,
            sent: Arc::default(),
            breaks: Arc::default(),
        });
        let data = DataLane::new(DataConfig {
            runtimes: crate::runtime::Runtimes::start(false).unwrap().0,
            transport: Some(Arc::clone(&fates) as Arc<dyn Transport>),
            hello: Arc::new(ArcSwap::from_pointee(hello("n"))),
            directory: listing(),
            pool_size: 1,
            limits: Limits {
                max_payload_bytes: 1_000,
                checks_messages: false,
                waiting_bytes: 1 << 30,
                drain_timeout: SECOND,
            },
            topic_bytes: 1_000,
            tokens: TokenInputs::new().0,
        });
        data.peers.member_up(node("far"), address(), None);
        Stage { data, fates }
    }

    fn lane(&self) -> Arc<Lane> {
        self.data.peers.first_lane(&node("far").name).unwrap()
    }

    /// One that does not wait for a connection.
    fn begin(&self) -> Result<PendingCall, CallError> {
        self.begin_as(None)
    }

    /// One that does, as long as the service is listed.
    fn begin_waiting(&self) -> Result<PendingCall, CallError> {
        self.begin_as(Some(aim()))
    }

    fn cast(&self, message: u8) -> Result<(), CallError> {
        let header = CastHeader {
            sequence: 1,
            format: Format::NONE,
        };
        let cast = wire::encode(kind::CAST, &header, Codec::Postcard, &message, 1_000).unwrap();
        let sent = self
            .lane()
            .send(&self.data.runtime, cast.aimed(Some(aim())));
        sent.map_err(|unsent| unsent.error)
    }

    /// What was sent, without pings.
    fn sent(&self) -> Vec<u8> {
        self.fates.sent.lock().unwrap().clone()
    }

    /// Ends the connection that is there.
    async fn break_it(&self) {
        self.fates.breaks.store(true, Ordering::Relaxed);
        while self.lane().is_open() {
            // It sees that at the next frame.
            let _ = self.begin();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.fates.breaks.store(false, Ordering::Relaxed);
    }

    fn begin_as(&self, aim: Option<Aim>) -> Result<PendingCall, CallError> {
        let call = self
            .lane()
            .call(&self.data.runtime, aim.is_some(), |number| {
                let header = CallHeader {
                    number,
                    sequence: 1,
                    timeout_ms: 60_000,
                    format: Format::NONE,
                };
                let call =
                    wire::encode(kind::CALL, &header, Codec::Postcard, &7_u8, 1_000).unwrap();
                Ok(call.aimed(aim))
            });
        call.map_err(|unsent| unsent.error)
    }

    async fn call(&self) -> Result<Outcome, CallError> {
        Ok(self.begin()?.outcome().await)
    }

    async fn is_answered(&self) -> bool {
        matches!(self.call().await, Ok(Outcome::Reply(_)))
    }

    /// The peer is heard on its control connection.
    fn heard(&self) {
        self.data.peers.heard(&node("far"));
    }

    fn dials(&self) -> u64 {
        self.fates.dials.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_holds_up_no_second_one() {
    let stage = Stage::set(&[Fate::Hangs, Fate::Hangs, Fate::Answers]);
    assert!(stage.is_answered().await);
    assert_eq!(stage.dials(), 3);
    // One that comes through at once has none beside it.
    let stage = Stage::set(&[Fate::Answers]);
    assert!(stage.is_answered().await);
    tokio::time::sleep(5 * SECOND).await;
    assert!(stage.is_answered().await);
    assert_eq!(stage.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_silence_the_first_word_on_the_control_connection_ends_the_pause() {
    let stage = Stage::set(&[
        Fate::Hangs,
        Fate::Hangs,
        Fate::Hangs,
        Fate::Hangs,
        Fate::Answers,
    ]);
    assert!(matches!(stage.call().await, Ok(Outcome::NotSent { .. })));
    let before = stage.dials();
    assert!(matches!(stage.call().await, Err(CallError::NotSent { .. })));
    // The shortest pause is kept all the same, so that a peer that is heard and cannot be dialled is not dialled always.
    tokio::time::sleep(Duration::from_millis(51)).await;
    stage.fates.left.lock().unwrap().drain(..).next_back();
    stage.fates.left.lock().unwrap().push_back(Fate::Answers);
    stage.heard();
    assert!(stage.is_answered().await);
    assert_eq!(stage.dials(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_stuck_is_replaced_once_the_peer_is_heard_elsewhere() {
    let stage = Stage::set(&[Fate::Stalls, Fate::Answers]);
    assert!(matches!(stage.call().await, Ok(Outcome::Lost)));
    // Suspended: TCP may still deliver, and nothing says that another connection would.
    tokio::time::sleep(30 * SECOND).await;
    assert!(matches!(stage.call().await, Err(CallError::NotSent { .. })));
    assert_eq!(stage.dials(), 1);
    stage.heard();
    while !stage.is_answered().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(stage.lane().pending(), 0);
    }
    assert_eq!(stage.dials(), 2);
    assert_eq!(stage.data.stats().suspended, []);
    // And again, as often as it takes.
    let stage = Stage::set(&[Fate::Stalls, Fate::Stalls, Fate::Stalls, Fate::Answers]);
    while !stage.is_answered().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
        stage.heard();
    }
    assert_eq!(stage.dials(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_would_handle_both_connections_keeps_the_one_it_has() {
    let old = Hello {
        minor: 0,
        ..hello("far")
    };
    let stage = Stage::with(&[Fate::Stalls, Fate::Answers], old);
    assert!(matches!(stage.call().await, Ok(Outcome::Lost)));
    for _ in 0..100 {
        stage.heard();
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(matches!(stage.call().await, Err(CallError::NotSent { .. })));
    assert_eq!(stage.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_task_panics_fails_its_calls_and_is_dialled_again() {
    let stage = Stage::set(&[Fate::Panics, Fate::Answers]);
    let (first, second) = (stage.begin().unwrap(), stage.begin().unwrap());
    for mut call in [first, second] {
        let outcome = call.outcome().await;
        assert!(
            matches!(outcome, Outcome::Lost | Outcome::NotSent { .. }),
            "{outcome:?}"
        );
    }
    assert_eq!(stage.lane().pending(), 0);
    assert_eq!(stage.data.stats().task_panics, 1);
    while !stage.is_answered().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_queued_before_the_peer_said_what_it_takes_fails_alone() {
    let mut theirs = hello("far");
    theirs.offers.max_payload_bytes = Some(10);
    let stage = Stage::with(&[Fate::Answers], theirs);
    let lane = stage.lane();
    let long = |number| {
        let header = CallHeader {
            number,
            sequence: 1,
            timeout_ms: 60_000,
            format: Format::NONE,
        };
        Ok(wire::encode(
            kind::CALL,
            &header,
            Codec::Postcard,
            &vec![7_u8; 1_000],
            1_000,
        )
        .unwrap())
    };
    let mut long = lane.call(&stage.data.runtime, false, long).unwrap();
    let mut short = stage.begin().unwrap();
    assert!(matches!(long.outcome().await, Outcome::TooLarge { .. }));
    assert!(matches!(short.outcome().await, Outcome::Reply(_)));
}

/// A connection from a peer that said Hello and nothing since.
fn from_peer(stage: &Stage, name: &str) {
    let connection = Box::new(Scripted::new(Fate::Stalls, hello("n")));
    stage.data.answering().serve(connection, hello(name));
}

async fn open_after(stage: &Stage, time: Duration) -> u64 {
    tokio::time::sleep(time).await;
    stage.data.stats().connections_inbound
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_of_a_peer_ends_with_the_peer_and_one_of_a_living_peer_when_idle() {
    let stage = Stage::set(&[Fate::Answers]);
    from_peer(&stage, "far");
    assert_eq!(open_after(&stage, 120 * SECOND).await, 1);
    stage.data.peers.member_down(&node("far"));
    assert_eq!(open_after(&stage, 10 * SECOND).await, 0);
    // Nobody knows that one yet.
    from_peer(&stage, "stranger");
    assert_eq!(open_after(&stage, SECOND).await, 1);
    assert_eq!(open_after(&stage, 10 * SECOND).await, 0);
    // An earlier life of one who is up.
    let earlier = NodeId {
        generation: Generation {
            number: 2,
            random: 1,
        },
        ..node("far")
    };
    stage.data.peers.member_up(earlier, address(), None);
    from_peer(&stage, "far");
    assert_eq!(open_after(&stage, 10 * SECOND).await, 0);
    stage.data.peers.member_up(node("far"), address(), None);
    from_peer(&stage, "far");
    assert_eq!(open_after(&stage, 120 * SECOND).await, 1);
    assert_eq!(open_after(&stage, 300 * SECOND).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peers_connection_whose_task_panics_is_not_counted_any_more() {
    let stage = Stage::set(&[Fate::Answers]);
    let mut connection = Scripted::new(Fate::Panics, hello("n"));
    connection.greeted = true;
    stage
        .data
        .answering()
        .serve(Box::new(connection), hello("far"));
    assert_eq!(open_after(&stage, Duration::from_millis(1)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_written_in_order_once_a_dial_succeeds() {
    let stage = Stage::set(&[
        Fate::Refused,
        Fate::Refused,
        Fate::Refused,
        Fate::Hangs,
        Fate::Answers,
    ]);
    stage.cast(1).unwrap();
    let mut call = stage.begin_waiting().unwrap();
    stage.cast(2).unwrap();
    let outcome = call.outcome().await;
    assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    assert_eq!(stage.sent(), [kind::CAST, kind::CALL, kind::CAST]);
    assert!(stage.dials() >= 5);
}

#[tokio::test(start_paused = true)]
async fn patience_with_a_peer_ends_after_three_seconds_of_dials_and_begins_anew_with_a_connection()
{
    let stage = Stage::set(&[Fate::Refused]);
    let begun = tokio::time::Instant::now();
    let mut call = stage.begin_waiting().unwrap();
    stage.cast(1).unwrap();
    let outcome = call.outcome().await;
    let is_final = matches!(
        outcome,
        NotSent {
            settling: false,
            ..
        }
    );
    assert!(is_final, "{outcome:?}");
    let took = begun.elapsed();
    assert!(took >= 3 * SECOND && took < 4 * SECOND, "{took:?}");
    assert_eq!(stage.data.stats().casts_unsent, 1);
    // Paced, and not without end.
    assert!(stage.dials() < 20, "{}", stage.dials());
    assert!(stage.begin_waiting().is_err());
    assert!(stage.cast(2).is_err());
    stage.fates.left.lock().unwrap().push_back(Fate::Answers);
    stage.fates.left.lock().unwrap().push_back(Fate::Refused);
    stage.fates.left.lock().unwrap().pop_front();
    while !stage.is_answered().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One that is told to wait for nothing fails with the first dial all the same.
    tokio::time::sleep(SECOND).await;
    stage.break_it().await;
    assert!(stage.begin().is_err());
    tokio::time::sleep(SECOND).await;
    let mut hasty = stage.begin().unwrap();
    let mut patient = stage.begin_waiting().unwrap();
    let outcome = hasty.outcome().await;
    assert!(matches!(outcome, NotSent { .. }), "{outcome:?}");
    let begun = tokio::time::Instant::now();
    let outcome = patient.outcome().await;
    assert!(matches!(outcome, NotSent { .. }), "{outcome:?}");
    assert!(begun.elapsed() > 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_once_the_peer_says_that_it_has_everything() {
    let stage = Stage::set(&[Fate::Answers]);
    assert!(stage.is_answered().await);
    stage.cast(1).unwrap();
    stage.lane().take_nothing_new();
    while stage.lane().is_open() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The last is the question whether all was read.
    assert_eq!(stage.sent(), [kind::CALL, kind::CAST, kind::CALL]);
    // Without an answer it is not waited for without end.
    let stage = Stage::set(&[Fate::Stalls]);
    stage.cast(1).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    stage.lane().take_nothing_new();
    tokio::time::sleep(SECOND / 2).await;
    assert!(stage.lane().is_open());
    tokio::time::sleep(SECOND).await;
    assert!(!stage.lane().is_open());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_closes_is_not_dialled_without_end() {
    let stage = Stage::set(&[Fate::Closes]);
    let mut call = stage.begin_waiting().unwrap();
    let outcome = tokio::time::timeout(4 * SECOND, call.outcome()).await;
    assert!(matches!(outcome, Ok(NotSent { .. })), "{outcome:?}");
    assert!(stage.dials() < 20, "{}", stage.dials());
}
