//! Bounded calls to a node of an earlier minor version, which knows nothing of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use keydispatch::{Answer, CallOptions, Key, Node, Routing, ServiceHandle};
use keydispatch_core::message::{
    ControlMessage, FIRST_DATA_KIND, Frame, PROTOCOL_MINOR, kind::HELLO,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

mod support;

use support::{Ask, Worker, Workers, eventually, key_of, members};

/// The last minor version without bounded calls.
const OLD: u16 = 2;

/// The kinds of frames that a node of that version does not know: a bounded call, and the two answers to one.
const UNKNOWN: std::ops::RangeInclusive<u8> = FIRST_DATA_KIND + 14..=FIRST_DATA_KIND + 16;

const AT_ONE: Routing = Routing::Bounded {
    owners: 2,
    depth: 1,
    stay: None,
};

/// What stands between a node and those who dial it: it passes frames on, has both sides take each other for nodes of that
/// minor version, and notes what kinds of frames there were.
struct Between {
    minor: u16,
    kinds: Mutex<BTreeSet<u8>>,
}

impl Between {
    /// Passes on to that address whatever connects.
    fn listen(self: &Arc<Self>, listener: TcpListener, to: String) -> JoinHandle<()> {
        let between = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let (from, _) = listener.accept().await.unwrap();
                let Ok(to) = TcpStream::connect(&to).await else {
                    continue;
                };
                let (from, to) = (from.into_split(), to.into_split());
                tokio::spawn(Arc::clone(&between).pass(from.0, to.1));
                tokio::spawn(Arc::clone(&between).pass(to.0, from.1));
            }
        })
    }

    async fn pass(self: Arc<Self>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        while let Ok(mut frame) = read(&mut from).await {
            self.kinds.lock().unwrap().insert(frame.kind);
            if frame.kind == HELLO {
                let Ok(Some(ControlMessage::Hello(mut hello))) = ControlMessage::decode(&frame)
                else {
                    panic!("a Hello");
                };
                hello.minor = self.minor;
                frame = ControlMessage::Hello(hello).encode();
            }
            if write(&mut to, &frame).await.is_err() {
                return;
            }
        }
    }

    fn unknown(&self) -> Vec<u8> {
        let kinds = self.kinds.lock().unwrap();
        kinds.range(UNKNOWN).copied().collect()
    }
}

async fn read(from: &mut OwnedReadHalf) -> std::io::Result<Frame> {
    let length = from.read_u32_le().await?;
    let kind = from.read_u8().await?;
    let mut body = vec![0; length as usize - 1];
    from.read_exact(&mut body).await?;
    Ok(Frame {
        kind,
        body: body.into(),
    })
}

async fn write(to: &mut OwnedWriteHalf, frame: &Frame) -> std::io::Result<()> {
    let length = u32::try_from(frame.body.len() + 1).unwrap();
    let head = [&length.to_le_bytes()[..], &[frame.kind]].concat();
    to.write_all(&[&head, &frame.body[..]].concat()).await
}

/// Two nodes with a worker each: the one that calls, and another one that seems to be of that minor version.
struct Pair {
    _near: Node,
    far: Node,
    far_works: Worker,
    workers: ServiceHandle<Workers>,
    between: Arc<Between>,
    passes: JoinHandle<()>,
}

impl Pair {
    async fn of(minor: u16) -> Pair {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertised = listener.local_addr().unwrap();
        // The same port of another address of this host: nobody else has it.
        let bound = format!("127.0.0.2:{}", advertised.port());
        let far = Node::builder("far")
            .plaintext()
            .bind(&bound)
            .advertise(advertised.to_string());
        let far = far.start().await.unwrap();
        let between = Arc::new(Between {
            minor,
            kinds: Mutex::default(),
        });
        let passes = between.listen(listener, bound);
        let near = Node::builder("near")
            .plaintext()
            .seeds([advertised.to_string()]);
        let near = near.start().await.unwrap();
        members(&near, 1).await;
        let far_works = Worker::default();
        far.serve(far_works.clone()).await.unwrap();
        near.serve(Worker::default()).await.unwrap();
        let workers = near.services::<Workers>();
        workers.wait_online(2).await.unwrap();
        // What is known of a peer is known once there is a connection to it.
        workers
            .call(key_of(&workers, "far"), Ask::Notes)
            .await
            .unwrap();
        Pair {
            _near: near,
            far,
            far_works,
            workers,
            between,
            passes,
        }
    }

    /// Who answers a bounded call whose owner, the far one, is busy: until the call has come there, or until it is answered.
    async fn answered(&self, key: Key, waits_there: bool) -> Answer<Vec<u64>> {
        let (plain, received) = (self.workers.clone(), self.received().await);
        let busy = tokio::spawn(async move { plain.call(key, Ask::Wait).await });
        let bounded = self.workers.with(CallOptions::new().routing(AT_ONE));
        eventually("the far one is busy", async || {
            self.has_received(received + 1).await
        })
        .await;
        let call = tokio::spawn(async move { bounded.call_answered(key, Ask::Notes).await });
        if waits_there {
            eventually("the call waits", async || {
                self.has_received(received + 2).await
            })
            .await;
        } else {
            eventually("the call is answered", async || match call.is_finished() {
                true => Ok(()),
                false => Err("it waits".to_owned()),
            })
            .await;
        }
        self.far_works.open();
        busy.await.unwrap().unwrap();
        call.await.unwrap().unwrap()
    }

    async fn received(&self) -> u64 {
        self.far.stats().await.unwrap().data.calls_received
    }

    async fn has_received(&self, calls: u64) -> Result<(), String> {
        let received = self.received().await;
        if received >= calls {
            Ok(())
        } else {
            Err(received.to_string())
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.passes.abort();
    }
}

#[tokio::test]
async fn a_node_of_an_earlier_minor_version_has_bounded_calls_as_any_other_and_refuses_none() {
    let pair = Pair::of(OLD).await;
    let key = key_of(&pair.workers, "far");
    for _ in 0..3 {
        let answer = pair.answered(key, true).await;
        assert_eq!(answer.by.node().as_str(), "far");
        let bounded = CallOptions::new().routing(Routing::bounded());
        let hedged = bounded.idempotent().hedge();
        let answer = pair.workers.with(hedged).call(key, Ask::Note(7)).await;
        assert_eq!(answer.unwrap().last(), Some(&7));
    }
    assert_eq!(pair.between.unknown(), [] as [u8; 0]);
}

#[tokio::test]
async fn one_of_this_minor_version_refuses_what_it_has_no_room_for() {
    let pair = Pair::of(PROTOCOL_MINOR).await;
    let key = key_of(&pair.workers, "far");
    let answer = pair.answered(key, false).await;
    assert_eq!(answer.by.node().as_str(), "near");
    let bounded = pair.workers.with(CallOptions::new().routing(AT_ONE));
    let answer = bounded.call_answered(key, Ask::Notes).await.unwrap();
    assert_eq!(answer.by.node().as_str(), "far");
    // All three were there: the other test could have seen them.
    assert_eq!(pair.between.unknown(), Vec::from_iter(UNKNOWN));
}
