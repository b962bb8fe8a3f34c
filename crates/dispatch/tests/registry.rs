//! What is listed is what runs, updates that meet, and what is found once a node has stopped.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    Adapter, BoxError, Context, Ended, NewService, Node, Protocol, RegistryError, ReplyTo,
    ServeOptions, Service, ServiceEvent, ServiceId, ServiceState, ServiceUpdate, SuperviseOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

mod support;

use support::{Tell, Worker, Workers, eventually, start_all};

/// Polls a future so many times, with some spinning before each, and then drops it.
async fn given_up<T>(work: impl Future<Output = T>, polls: usize, spins: usize) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            cx.waker().wake_by_ref();
            (0..spins * 100).for_each(|_| std::hint::spin_loop());
            Poll::Pending
        }
    })
    .await
}

async fn alone() -> Node {
    let node = Node::builder("a").adapter(Adapter::Local);
    node.start().await.unwrap()
}

struct Fickles;

impl Protocol for Fickles {
    const NAME: &'static str = "fickle";
    type Call = ();
    type Reply = ();
    type Cast = ();
}

/// What becomes of a service right after, or while, it starts.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lives,
    Fails,
    PanicsInStarted,
    YieldsInStarted,
    StopsAtOnce,
    PanicsAtOnce,
}

const FATES: [Fate; 9] = [
    Fate::Lives,
    Fate::Lives,
    Fate::Lives,
    Fate::YieldsInStarted,
    Fate::Fails,
    Fate::PanicsInStarted,
    Fate::StopsAtOnce,
    Fate::PanicsAtOnce,
    Fate::PanicsAtOnce,
];

struct Fickle(Fate);

impl Service for Fickle {
    type Protocol = Fickles;

    async fn started(&mut self, cx: &mut Context<Self>) -> Result<(), BoxError> {
        match self.0 {
            Fate::Lives => {}
            Fate::Fails => return Err("not today".into()),
            Fate::PanicsInStarted => panic!("fated to"),
            Fate::YieldsInStarted => tokio::task::yield_now().await,
            Fate::StopsAtOnce => cx.stop(),
            Fate::PanicsAtOnce => cx.cast(()),
        }
        Ok(())
    }

    async fn handle_call(&mut self, (): (), reply_to: ReplyTo<()>, _: &mut Context<Self>) {
        reply_to.reply(());
    }

    async fn handle_cast(&mut self, (): (), _: &mut Context<Self>) {
        panic!("fated to");
    }
}

/// Serves, supervises and registers endpoints, and gives up at any point of it. Returns the services that were served for
/// good, and the endpoints.
async fn meddle(node: &Node, seed: u64, rounds: usize) -> (Vec<ServiceId>, Vec<ServiceId>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut services, mut endpoints) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (polls, spins) = (rng.random_range(0..6), rng.random_range(0..8));
        let fate = FATES[rng.random_range(0..FATES.len())];
        match rng.random_range(0..5) {
            0..3 => {
                let serving = node.serve(Fickle(fate));
                if let Some(Ok(served)) = given_up(serving, polls, spins).await {
                    match rng.random_range(0..4) {
                        0 => served.stop().await.unwrap(),
                        1 => drop(given_up(served.stop(), polls, spins).await),
                        _ => services.push(served.id().clone()),
                    }
                }
            }
            3 => {
                let options = SuperviseOptions::new()
                    .intensity(2, Duration::from_secs(60))
                    .back_off(Duration::ZERO, Duration::ZERO);
                let supervising = node.supervise(options, move || Fickle(fate));
                if let Some(Ok(supervised)) = given_up(supervising, polls, spins).await
                    && rng.random_bool(0.5)
                {
                    given_up(supervised.stop(), polls, spins).await;
                }
            }
            _ => {
                let many = rng.random_range(1..5);
                let named = |at| format!("host-{seed}-{round}-{at}:1");
                let new = (0..many).map(|at| NewService::endpoint("endpoint", named(at)));
                let adding = node.registry().add_services(new);
                if let Some(Ok(added)) = given_up(adding, polls, spins).await {
                    endpoints.extend(added.iter().map(|added| added.id().clone()));
                }
            }
        }
    }
    (services, endpoints)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_listed_is_what_runs_wherever_a_start_was_given_up() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let node = alone().await;
    let meddling: Vec<_> = (0..3)
        .map(|at| {
            let node = node.clone();
            tokio::spawn(async move { meddle(&node, seed.wrapping_add(at), 400).await })
        })
        .collect();
    let mut endpoints = BTreeSet::new();
    for meddling in meddling {
        let (_, added) = meddling.await.unwrap();
        endpoints.extend(added.into_iter().map(|id| id.to_string()));
    }
    let fickles = node.services::<Fickles>();
    eventually("what is listed is what runs", async || {
        let listed = node.registry().services("fickle");
        let running = node.stats().await.unwrap().data.services;
        let mut dead = 0;
        for info in &listed {
            let at = fickles.at(info.id().clone());
            dead += usize::from(at.call(()).await.is_err());
        }
        if dead == 0 && listed.len() == running {
            Ok(())
        } else {
            let listed = listed.len();
            Err(format!("{listed} listed, {running} running, {dead} dead"))
        }
    })
    .await;
    eventually("the endpoints are those that somebody has", async || {
        let listed = node.registry().services("endpoint");
        let listed: BTreeSet<_> = listed.iter().map(|info| info.id().to_string()).collect();
        let (more, fewer) = (listed.difference(&endpoints), endpoints.difference(&listed));
        match (more.count(), fewer.count()) {
            (0, 0) => Ok(()),
            counts => Err(format!("(too many, too few): {counts:?}")),
        }
    })
    .await;
    // Nothing that was given up keeps the node from leaving.
    node.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_while_services_start_leaves_nothing_behind() {
    let network = MemoryNetwork::new();
    let [stays, leaves] = start_all(&network, ["stays", "leaves"], |node| node).await;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let meddling = {
        let node = leaves.clone();
        tokio::spawn(async move { meddle(&node, seed, 300).await })
    };
    let mut first = stays.registry().subscribe("fickle").unwrap();
    while !matches!(first.next().await.unwrap(), ServiceEvent::Joined(_)) {}
    leaves.clone().leave().await.unwrap();
    meddling.await.unwrap();
    for service_type in ["fickle", "endpoint"] {
        assert!(leaves.registry().services(service_type).is_empty());
        eventually("its entries are gone", async || {
            match stays.registry().services(service_type).len() {
                0 => Ok(()),
                left => Err(format!("{left} of {service_type}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_a_service_that_was_seen_to_end_is_free() {
    let node = alone().await;
    for round in 0..300 {
        let options = ServeOptions::new().name("the one");
        let served = node.serve_with(options, Fickle(Fate::Lives)).await;
        let served = served.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let at = node.services::<Fickles>().at(served.id().clone());
        at.cast(()).unwrap();
        assert_eq!(served.ended().await, Ended::Panicked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_of_different_fields_all_hold_however_many_meet() {
    const UPDATERS: usize = 200;
    let node = alone().await;
    let endpoint = NewService::endpoint("uploader", "host:1").tag("first", "kept");
    let added = node.registry().add_service(endpoint).await.unwrap();
    let updating: Vec<_> = (0..UPDATERS)
        .map(|at| {
            let (registry, id) = (node.registry().clone(), added.id().clone());
            let mut mine = added.clone();
            tokio::spawn(async move {
                let tag = ServiceUpdate::new().tag(format!("tag{at}"), "v");
                match at % 4 {
                    0 => registry.update_service(&id, tag).await.map(drop),
                    1 => mine.update(tag).await.map(drop),
                    2 => {
                        let weight = 1 + u16::try_from(at).unwrap();
                        let update = tag.weight(weight);
                        registry.update_service(&id, update).await.map(drop)
                    }
                    _ => {
                        mine.update(tag).await?;
                        mine.drain().await.map(drop)
                    }
                }
            })
        })
        .collect();
    for updating in updating {
        updating.await.unwrap().unwrap();
    }
    let zone = ServiceUpdate::new().zone("eu-1").remove_tag("tag7");
    let reference = node.registry().update_service(added.id(), zone).await;
    let info = &node.registry().services("uploader")[0];
    assert_eq!(info.reference(), reference.unwrap());
    let tags: Vec<_> = info.tags().collect();
    assert_eq!(tags.len(), UPDATERS, "{tags:?}");
    assert_eq!(info.tag("first"), Some("kept"));
    assert_eq!(info.tag("tag7"), None);
    assert_eq!(info.weight().value() % 4, 3);
    assert_eq!(info.state(), ServiceState::Draining);
    assert_eq!(
        (info.zone(), info.address()),
        (Some("eu-1"), Some("host:1"))
    );
}

#[tokio::test]
async fn a_change_that_does_not_fit_with_what_is_there_is_refused_and_changes_nothing() {
    let node = alone().await;
    let endpoint = NewService::endpoint("uploader", "host:1");
    let mut added = node.registry().add_service(endpoint).await.unwrap();
    let half = "x".repeat(3_000);
    let reference = added
        .update(ServiceUpdate::new().tag("a", &half))
        .await
        .unwrap();
    let more = ServiceUpdate::new().weight(7).tag("b", &half);
    let error = added.update(more).await.unwrap_err();
    assert!(matches!(error, RegistryError::Entry(_)), "{error:?}");
    let info = &node.registry().services("uploader")[0];
    assert_eq!((info.reference(), info.weight().value()), (reference, 100));
    // Instead of what is there, it fits.
    let instead = ServiceUpdate::new().remove_tag("a").tag("b", &half);
    added.update(instead).await.unwrap();
}

#[tokio::test]
async fn nothing_is_found_and_nobody_waits_once_the_node_has_stopped() {
    let network = MemoryNetwork::new();
    let [other, node] = start_all(&network, ["other", "node"], |node| node).await;
    let served = other.serve(Worker::default()).await.unwrap();
    let workers = node.services::<Workers>();
    workers.wait_online(1).await.unwrap();
    let registry = node.registry().clone();
    let pubsub = node.pubsub().clone();
    let waiting = {
        let workers = workers.clone();
        tokio::spawn(async move { workers.wait_online(2).await })
    };
    let monitoring = {
        let at = workers.at(served.id().clone());
        tokio::spawn(async move { at.monitor().await })
    };
    let mut events = workers.subscribe().unwrap();
    events.next().await.unwrap();
    let mut topic = pubsub.subscribe("news").unwrap();
    let mut members = node.subscribe_members();
    node.clone().leave().await.unwrap();

    // Those who waited.
    let waited = waiting.await.unwrap();
    assert_eq!(waited, Err(RegistryError::NodeStopped));
    monitoring.await.unwrap().unwrap();
    while events.next().await.is_some() {}
    while topic.next().await.is_some() {}
    while members.next().await.is_some() {}

    // Those who come later.
    assert!(workers.find("key").is_err());
    assert!(workers.view().services().is_empty());
    assert!(workers.call("key", support::Ask::Notes).await.is_err());
    assert!(workers.cast("key", Tell::Stop).is_err());
    assert!(registry.services("worker").is_empty());
    assert!(registry.online_services("worker").is_empty());
    assert!(registry.find_service("worker", "key").is_err());
    assert!(registry.find_multi_service(2, "worker", "key").is_empty());
    assert!(registry.view("worker").is_none());
    let waited = workers.wait_online(1).await;
    assert_eq!(waited, Err(RegistryError::NodeStopped));
    let at = workers.at(served.id().clone());
    at.monitor().await.unwrap();
    assert!(at.info().is_none());
    let mut events = workers.subscribe().unwrap();
    match events.next().await {
        Some(ServiceEvent::Current(view)) => assert!(view.services().is_empty()),
        other => panic!("{other:?}"),
    }
    assert!(events.next().await.is_none());
    assert!(pubsub.subscribe("news").unwrap().next().await.is_none());
    assert!(node.subscribe_members().next().await.is_none());
    let error = registry
        .add_service(NewService::endpoint("worker", "x"))
        .await;
    assert_eq!(error.unwrap_err(), RegistryError::NodeStopped);
}

#[tokio::test]
async fn who_follows_all_types_hears_each_change_with_the_view_that_it_led_to() {
    let node = alone().await;
    let registry = node.registry();
    let mut all = registry.subscribe_all();
    let mut first = registry
        .add_service(NewService::endpoint("web", "h:1"))
        .await
        .unwrap();
    registry
        .add_service(NewService::endpoint("chat", "h:2"))
        .await
        .unwrap();
    assert_eq!(
        registry
            .types()
            .iter()
            .map(|of| of.as_str())
            .collect::<Vec<_>>(),
        ["chat", "web"]
    );
    // State and reason in one change.
    let update = ServiceUpdate::new()
        .state(ServiceState::Offline)
        .tag("why", "http 503");
    first.update(update).await.unwrap();
    let of_web = registry.view("web").unwrap().version();
    first.remove().await.unwrap();
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(all.next().await.unwrap());
    }
    assert!(all.try_next().is_none());
    assert!(
        told.windows(2)
            .all(|pair| pair[0].version < pair[1].version)
    );
    assert!(
        matches!(&told[0].event, ServiceEvent::Joined(info) if info.service_type().as_str() == "web")
    );
    assert!(
        matches!(&told[1].event, ServiceEvent::Joined(info) if info.service_type().as_str() == "chat")
    );
    assert!(matches!(
        &told[2].event,
        ServiceEvent::Updated { after, .. }
            if after.state() == ServiceState::Offline && after.tag("why") == Some("http 503")
    ));
    assert_eq!(told[2].version, of_web);
    // Where a type has gone its last change has a version, too.
    assert!(matches!(&told[3].event, ServiceEvent::Left(_)));
    assert_eq!(told[3].version, registry.version());
    node.leave().await.unwrap();
    while let Some(change) = all.next().await {
        assert!(matches!(
            change.event,
            ServiceEvent::Left(_) | ServiceEvent::Updated { .. }
        ));
    }
}
