//! What blocks, ends or panics around a node, and what becomes of it and of those who wait on it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use keydispatch::testkit::{MemoryNetwork, panic_inside};
use keydispatch::{
    Adapter, CallError, CallOptions, Context, MemberChange, MemberChanges, Node, NodeBuilder,
    Protocol, ReplyTo, Service, ServiceEvent, ServiceHandle, StopCause, Subscription, TopicEvent,
    TopicSubscription,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

mod support;

use support::{Ask, PATIENCE, Worker, Workers, eventually, members};

fn runtime(threads: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .unwrap()
}

fn one_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Blocks the thread that it runs on.
struct Blocking {
    held: mpsc::Sender<()>,
    release: Arc<Barrier>,
}

struct Blockers;

#[derive(Serialize, Deserialize)]
enum Block {
    /// Until the test lets go.
    Held,
    /// For so many milliseconds.
    Millis(u64),
    /// Not at all, though it takes so many milliseconds.
    Awaiting(u64),
}

impl Protocol for Blockers {
    const NAME: &'static str = "blocker";
    type Call = Block;
    type Reply = ();
    type Cast = ();
}

impl Service for Blocking {
    type Protocol = Blockers;

    async fn handle_call(&mut self, block: Block, reply_to: ReplyTo<()>, _: &mut Context<Self>) {
        match block {
            Block::Held => {
                self.held.send(()).unwrap();
                self.release.wait();
            }
            Block::Millis(millis) => std::thread::sleep(Duration::from_millis(millis)),
            Block::Awaiting(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        reply_to.reply(());
    }
}

/// Says a number over the data lane, and waits until it is heard.
async fn say(from: &Node, to: &str, number: u64, heard: &mut TopicSubscription) {
    let bytes = number.to_le_bytes();
    from.pubsub()
        .direct_broadcast(to, "topic", bytes.to_vec())
        .unwrap();
    let event = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap();
    assert!(matches!(event, Some(TopicEvent::Message(message)) if message.payload[..] == bytes));
}

/// All threads of a node's services are held; the node must live on for longer than anybody waits for a silent one.
fn blocked_services_cost_the_node_nothing(
    describe: impl Fn(&str) -> NodeBuilder,
    busy: Runtime,
    threads: usize,
) {
    let (held_sender, held) = mpsc::channel();
    let release = Arc::new(Barrier::new(threads + 1));
    let near = runtime(2);
    let a = near.block_on(describe("a").start()).unwrap();
    let seed = a.address().to_string();
    // The busy runtime runs on a thread of its own, or nobody would drive it where it has none.
    let (started_sender, started) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let b = describe("b").seeds([seed]);
    let services = {
        let release = Arc::clone(&release);
        std::thread::spawn(move || {
            busy.block_on(async move {
                let b = b.start().await.unwrap();
                for _ in 0..threads {
                    let (held, release) = (held_sender.clone(), Arc::clone(&release));
                    b.serve(Blocking { held, release }).await.unwrap();
                }
                started_sender.send(b).unwrap();
                let _ = stopped.await;
            });
        })
    };
    let b = started.recv_timeout(PATIENCE).unwrap();
    near.block_on(async {
        members(&a, 1).await;
        let mut changes = a.subscribe_members();
        let mut by_b = b.pubsub().subscribe("topic").unwrap();
        let mut by_a = a.pubsub().subscribe("topic").unwrap();
        // Connections that were there before, and belong to the runtime that will be held.
        say(&a, "b", u64::MAX, &mut by_b).await;
        say(&b, "a", u64::MAX, &mut by_a).await;
        let blockers = a
            .services::<Blockers>()
            .with(CallOptions::new().timeout(PATIENCE * 2));
        blockers.wait_online(threads).await.unwrap();
        let calls: Vec<_> = blockers
            .view()
            .services()
            .iter()
            .map(|info| {
                let at = blockers.at(info.id().clone());
                tokio::spawn(async move { at.call(Block::Held).await })
            })
            .collect();
        // Blocking, on purpose, until every thread of the services is.
        for _ in 0..threads {
            held.recv_timeout(PATIENCE).unwrap();
        }
        // Longer than it takes until a silent node is taken for dead, and a silent connection for broken.
        let until = Instant::now() + Duration::from_secs(10);
        let mut rounds = 0_u64;
        while Instant::now() < until {
            // What does not need its services, it does as ever: replication both ways, and the data lane.
            let endpoint = keydispatch::NewService::endpoint("endpoint", format!("far:{rounds}"));
            let registration = b.registry().add_service(endpoint).await.unwrap();
            let id = registration.id().clone();
            eventually("a's view has it", async || {
                let listed = a.registry().services("endpoint");
                let known = listed.iter().any(|info| info.id() == &id);
                known.then_some(()).ok_or_else(|| format!("{listed:?}"))
            })
            .await;
            rounds += 1;
            for (from, to, heard) in [(&a, "b", &mut by_b), (&b, "a", &mut by_a)] {
                say(from, to, rounds, heard).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(
            calls.iter().all(|call| !call.is_finished()),
            "its callers wait"
        );
        assert!(a.members()[0].is_up());
        release.wait();
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(()));
        }
        let change = tokio::time::timeout(Duration::ZERO, changes.next()).await;
        assert!(change.is_err(), "{change:?}");
        b.leave().await.unwrap();
        a.leave().await.unwrap();
    });
    drop(stop);
    services.join().unwrap();
}

fn plain(name: &str) -> NodeBuilder {
    Node::builder(name).plaintext()
}

#[test]
fn handlers_that_block_all_threads_cost_the_node_nothing_but_their_answers() {
    blocked_services_cost_the_node_nothing(plain, runtime(2), 2);
}

#[test]
fn a_handler_that_blocks_the_only_thread_costs_the_node_nothing_but_its_answer() {
    blocked_services_cost_the_node_nothing(plain, one_thread(), 1);
}

#[test]
fn in_memory_too_a_handler_that_blocks_costs_the_node_nothing_but_its_answer() {
    let network = MemoryNetwork::new();
    let describe = |name: &str| {
        Node::builder(name)
            .memory(&network)
            .bind(format!("{name}:1"))
    };
    blocked_services_cost_the_node_nothing(describe, one_thread(), 1);
}

#[tokio::test]
async fn a_service_that_holds_a_thread_for_a_second_is_named_and_one_that_awaits_is_not() {
    let (log, _logging) = support::Log::capture();
    let busy = one_thread();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (held, _holds) = mpsc::channel();
    let release = Arc::new(Barrier::new(2));
    let let_go = Arc::clone(&release);
    // Its log goes where that of the thread goes which starts it.
    let subscriber = tracing::dispatcher::get_default(Clone::clone);
    let services = std::thread::spawn(move || {
        let _logging = tracing::dispatcher::set_default(&subscriber);
        busy.block_on(async {
            let node = Node::builder("a")
                .adapter(Adapter::Local)
                .start()
                .await
                .unwrap();
            let served = node.serve(Blocking { held, release }).await.unwrap();
            let _ = sender.send((node, served.id().clone()));
            let _ = stopped.await;
        });
    });
    let (node, id) = receiver.await.unwrap();
    let blockers = node
        .services::<Blockers>()
        .with(CallOptions::new().timeout(PATIENCE * 2));
    let id = id.to_string();
    let parts = ["WARN", "has held a thread", &id, "blocker"];
    blockers.call("key", Block::Awaiting(1_500)).await.unwrap();
    assert_eq!(log.lines(&parts), Vec::<String>::new());
    // Once for each time, and again where it lasts for twice as long.
    let said = |seconds: &str| log.lines(&[&parts[..], &[seconds]].concat()).len();
    for time in 1..=3 {
        let blocking = blockers.clone();
        let call = tokio::spawn(async move { blocking.call("key", Block::Held).await });
        eventually("it is said", async || {
            let found = said("seconds=1") >= time && (time != 2 || said("seconds=2") >= 1);
            found.then_some(()).ok_or_else(|| log.lines(&[]).join("\n"))
        })
        .await;
        let let_go = Arc::clone(&let_go);
        tokio::task::spawn_blocking(move || let_go.wait())
            .await
            .unwrap();
        call.await.unwrap().unwrap();
        // It yields. Otherwise the next message may be there before it looks, and all of it is one time.
        blockers.call("key", Block::Awaiting(1)).await.unwrap();
    }
    assert_eq!((said("seconds=1"), said("seconds=3")), (3, 0));
    drop(stop);
    services.join().unwrap();
}

/// Everything of a node that somebody can wait on.
struct Waiting {
    local: tokio::task::JoinHandle<Result<Vec<u64>, CallError>>,
    remote: tokio::task::JoinHandle<Result<Vec<u64>, CallError>>,
    services: Subscription,
    topic: TopicSubscription,
    members: MemberChanges,
    served: keydispatch::Served<Workers>,
    supervised: keydispatch::Supervised,
    workers: ServiceHandle<Workers>,
    far: Worker,
}

impl Waiting {
    /// On a node that another one knows; called on a runtime that stays.
    async fn on(node: &Node, other: &Node) -> Waiting {
        let (own, far) = (Worker::default(), Worker::default());
        let served = node.serve(own.clone()).await.unwrap();
        let there = other.serve(far.clone()).await.unwrap();
        let options = keydispatch::SuperviseOptions::new();
        let supervised = node.supervise(options, || Quiet).await.unwrap();
        let workers = node.services::<Workers>();
        workers.wait_online(2).await.unwrap();
        let call = |id: &keydispatch::ServiceId| {
            let at = workers
                .with(CallOptions::new().timeout(PATIENCE * 2))
                .at(id.clone());
            tokio::spawn(async move { at.call(Ask::Wait).await })
        };
        let (local, remote) = (call(served.id()), call(there.id()));
        own.has("waiting").await;
        far.has("waiting").await;
        Waiting {
            local,
            remote,
            services: node.registry().subscribe("worker").unwrap(),
            topic: node.pubsub().subscribe("topic").unwrap(),
            members: node.subscribe_members(),
            served,
            supervised,
            workers,
            far,
        }
    }

    async fn ends(mut self) {
        let error = self.local.await.unwrap().unwrap_err();
        assert_eq!(error, CallError::Stopped);
        let error = self.remote.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
        while let Some(event) = self.services.next().await {
            assert!(!matches!(event, ServiceEvent::Lagged { .. }), "{event:?}");
        }
        assert_eq!(self.topic.next().await, None);
        while let Some(change) = self.members.next().await {
            assert!(!matches!(change, MemberChange::Lagged { .. }), "{change:?}");
        }
        self.served.ended().await;
        self.supervised.ended().await;
        // What begins after the end, ends too.
        let error = self
            .workers
            .at(self.served.id().clone())
            .call(Ask::Notes)
            .await;
        error.unwrap_err();
        self.far.open();
    }
}

struct Quiet;

impl Service for Quiet {
    type Protocol = Blockers;

    async fn handle_call(&mut self, _: Block, reply_to: ReplyTo<()>, _: &mut Context<Self>) {
        drop(reply_to);
    }
}

fn everything_ends(
    own_threads: bool,
    theirs: Runtime,
    end: impl AsyncFnOnce(Runtime, &Node),
    cause: &StopCause,
) {
    let network = MemoryNetwork::new();
    let ours = runtime(2);
    let other = ours
        .block_on(support::describe(&network, "b", &[]).start())
        .unwrap();
    let node = support::describe(&network, "a", &["b:1"]).own_threads(own_threads);
    let node = theirs.block_on(node.start()).unwrap();
    // A runtime of one thread is driven by whoever blocks on it.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = std::thread::spawn(move || {
        let _ = theirs.block_on(stopped);
        theirs
    });
    let waiting = ours.block_on(Waiting::on(&node, &other));
    drop(stop);
    let theirs = driver.join().unwrap();
    ours.block_on(async {
        end(theirs, &node).await;
        let all = async {
            assert_eq!(node.stopped().await, *cause);
            waiting.ends().await;
            assert!(node.stats().await.is_none());
            // The others take it for dead, or have heard its goodbye.
            members(&other, 0).await;
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .expect("everything ends");
        other.leave().await.unwrap();
    });
}

async fn shut_down(runtime: Runtime, _: &Node) {
    runtime.shutdown_background();
}

#[test]
fn when_the_runtime_of_its_services_ends_everything_that_waits_on_the_node_ends() {
    everything_ends(true, runtime(2), shut_down, &StopCause::RuntimeEnded);
    everything_ends(true, one_thread(), shut_down, &StopCause::RuntimeEnded);
}

#[test]
fn without_threads_of_its_own_a_node_ends_with_its_runtime_too() {
    everything_ends(false, runtime(2), shut_down, &StopCause::RuntimeEnded);
    everything_ends(false, one_thread(), shut_down, &StopCause::RuntimeEnded);
}

#[test]
fn when_the_driver_panics_everything_that_waits_on_the_node_ends_and_the_log_names_it() {
    let (log, _logging) = support::Log::capture();
    for own_threads in [true, false] {
        let crash = async |runtime: Runtime, node: &Node| {
            panic_inside(node).await;
            assert_eq!(node.stopped().await, StopCause::Panicked);
            runtime.shutdown_background();
        };
        everything_ends(own_threads, runtime(2), crash, &StopCause::Panicked);
    }
    let lines = log.lines(&["ERROR", "driver", "panicked", "node=a"]);
    assert!(!lines.is_empty(), "{:?}", log.lines(&[]));
}
