//! Every duration, count and size that a user can give saturates, or is an error that names it: none panics, wraps, or ends
//! a service.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, SystemTime};

use keydispatch::testkit::{Authority, MemoryNetwork};
use keydispatch::{
    Adapter, CallError, CallOptions, Config, Context, Node, NodeBuilder, Protocol, ReplyTo,
    ServeOptions, Service, Spread, SuperviseOptions,
};

const DURATIONS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_secs(40 * 365 * 24 * 3600),
    Duration::from_secs(u64::MAX / 2),
    Duration::from_secs(u64::MAX),
    Duration::MAX,
];

const COUNTS: [usize; 6] = [
    0,
    1,
    u32::MAX as usize,
    usize::MAX / 8 + 1,
    usize::MAX - 1,
    usize::MAX,
];

struct Echoes;

impl Protocol for Echoes {
    const NAME: &'static str = "echo";
    type Call = u64;
    type Reply = u64;
    type Cast = Duration;
}

/// Panics once at 13; a cast sets a timer.
struct Echo;

impl Service for Echo {
    type Protocol = Echoes;

    async fn handle_call(&mut self, number: u64, reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
        assert_ne!(number, 13, "told to panic");
        reply_to.reply(number);
    }

    async fn handle_cast(&mut self, after: Duration, cx: &mut Context<Self>) {
        let timer = cx.cast_after(after.max(Duration::from_secs(3600)), after);
        cx.cast_after(after.max(Duration::from_secs(3600)), after);
        cx.cancel(timer);
    }
}

fn local() -> NodeBuilder {
    Node::builder("a").adapter(Adapter::Local)
}

/// Two nodes with a service each.
async fn pair() -> (MemoryNetwork, Node, Node) {
    let network = MemoryNetwork::new();
    let a = Node::builder("a").memory(&network).bind("a:1");
    let a = a.start().await.unwrap();
    let b = Node::builder("b")
        .memory(&network)
        .bind("b:1")
        .seeds(["a:1"]);
    let b = b.start().await.unwrap();
    for node in [&a, &b] {
        node.serve(Echo).await.unwrap();
    }
    a.services::<Echoes>().wait_online(2).await.unwrap();
    b.services::<Echoes>().wait_online(2).await.unwrap();
    (network, a, b)
}

#[tokio::test]
async fn calls_take_every_timeout_fallback_and_budget() {
    let (_network, a, _b) = pair().await;
    for timeout in DURATIONS {
        for fallback in COUNTS {
            let options = CallOptions::new()
                .timeout(timeout)
                .fallback(fallback)
                .retry_budget(u32::MAX, u32::MAX)
                .spread(Spread::Nodes);
            for options in [options, options.idempotent()] {
                let echoes = a.services::<Echoes>().with(options);
                // Keys of both nodes.
                for key in 0..4_u64 {
                    match echoes.call(key, key).await {
                        Ok(reply) => assert_eq!(reply, key),
                        Err(error) => {
                            let is_short = timeout <= Duration::from_nanos(1);
                            assert!(is_short && !matches!(error, CallError::Encode { .. }));
                        }
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn asking_for_any_number_of_owners_gives_what_there_is() {
    let (_network, a, _b) = pair().await;
    let echoes = a.services::<Echoes>();
    for count in COUNTS {
        let there = count.min(2);
        assert_eq!(
            a.registry().find_multi_service(count, "echo", 1).len(),
            there
        );
        assert_eq!(echoes.view().owners(1, count).len(), there);
        for spread in [Spread::None, Spread::Nodes, Spread::Zones] {
            assert!(echoes.view().owners_spread(1, count, spread).len() <= there);
        }
        let answers = echoes.multi_call(1, count, 7).await;
        assert_eq!(answers.len(), there);
        assert!(answers.iter().all(|(_, answer)| *answer == Ok(7)));
        assert_eq!(echoes.multi_cast(1, count, Duration::MAX), there);
    }
}

#[tokio::test]
async fn a_timer_of_any_length_ends_no_service() {
    let node = local().start().await.unwrap();
    node.serve(Echo).await.unwrap();
    let echoes = node.services::<Echoes>();
    for after in DURATIONS {
        echoes.cast("key", after).unwrap();
        assert_eq!(echoes.call("key", 1).await, Ok(1));
    }
}

#[tokio::test]
async fn a_mailbox_of_any_size_takes_messages() {
    let node = local().start().await.unwrap();
    for messages in COUNTS {
        let options = ServeOptions::new().mailbox(messages);
        let served = node.serve_with(options, Echo).await.unwrap();
        let at = node.services::<Echoes>().at(served.id().clone());
        assert_eq!(at.call(1).await, Ok(1));
    }
}

#[tokio::test]
async fn supervision_takes_every_period_and_count() {
    let node = local().start().await.unwrap();
    let short = Duration::from_millis(1);
    for (restarts, within, first, longest) in [
        (usize::MAX, Duration::MAX, Duration::MAX, short),
        (usize::MAX, Duration::ZERO, Duration::ZERO, Duration::ZERO),
        (1, Duration::MAX, short, Duration::MAX),
    ] {
        let options = SuperviseOptions::new()
            .intensity(restarts, within)
            .back_off(first, longest);
        let supervised = node.supervise(options, || Echo).await.unwrap();
        let echoes = node.services::<Echoes>();
        echoes.call("key", 13).await.unwrap_err();
        echoes.wait_online(1).await.unwrap();
        assert_eq!(
            echoes
                .with(CallOptions::new().idempotent())
                .call("key", 1)
                .await,
            Ok(1)
        );
        supervised.stop().await.unwrap();
    }
    // A pause without end is one that can be ended.
    let options = SuperviseOptions::new().back_off(Duration::MAX, Duration::MAX);
    let supervised = node.supervise(options, || Echo).await.unwrap();
    node.services::<Echoes>().call("key", 13).await.unwrap_err();
    supervised.stop().await.unwrap();
}

#[tokio::test]
async fn a_node_starts_with_every_value_or_says_which_is_wrong() {
    type Set<T> = fn(NodeBuilder, T) -> NodeBuilder;
    let durations: [Set<Duration>; 4] = [
        |node, value| node.start_timeout(value),
        |node, value| node.broadcast_period(value),
        |node, value| node.down_period(value),
        |node, value| node.permdown_period(value),
    ];
    let counts: [Set<usize>; 4] = [
        |node, value| node.max_payload_bytes(value),
        |node, value| node.pool_size(value),
        |node, value| node.max_delta_sizes(value),
        |node, value| node.max_silent_periods(u32::try_from(value).unwrap_or(u32::MAX)),
    ];
    let set = |apply: &dyn Fn(NodeBuilder) -> NodeBuilder| apply(local());
    let mut builders = Vec::new();
    for value in DURATIONS {
        builders.extend(durations.map(|apply| set(&|node| apply(node, value))));
    }
    for value in COUNTS {
        builders.extend(counts.map(|apply| set(&|node| apply(node, value))));
    }
    for builder in builders {
        match builder.start().await {
            Ok(node) => {
                node.serve(Echo).await.unwrap();
                let called = node.services::<Echoes>().call("key", 1).await;
                assert!(matches!(called, Ok(1) | Err(CallError::TooLarge { .. })));
            }
            Err(error) => {
                let names = ["registry.", "pubsub.", "synced"];
                let text = error.to_string();
                assert!(names.iter().any(|name| text.contains(name)), "{text}");
            }
        }
    }
}

#[test]
fn a_file_takes_every_number_or_says_which_is_wrong() {
    let values = [
        "0",
        "-1",
        "9223372036854775807",
        "18446744073709551616",
        "\"0ms\"",
        "\"18446744073709551615ms\"",
        "\"18446744073709551615h\"",
        "\"99999999999999999999s\"",
    ];
    for key in [
        "node.max_payload_bytes",
        "node.expect",
        "pubsub.pool_size",
        "registry.broadcast_period",
        "registry.max_silent_periods",
        "registry.down_period",
        "registry.permdown_period",
        "registry.max_delta_sizes",
    ] {
        let (section, name) = key.split_once('.').unwrap();
        for value in values {
            let text = format!("[{section}]\n{name} = {value}\n");
            if let Err(error) = Config::parse(&text).and_then(|config| config.builder("a")) {
                let text = error.to_string();
                assert!(
                    text.contains(name) || text.contains("registry."),
                    "{key} {value}: {text}"
                );
            }
        }
    }
}

#[test]
fn certificates_take_every_lifetime() {
    for authority in DURATIONS {
        for nodes in DURATIONS {
            let authority = Authority::with_lifetimes("c", authority, nodes).unwrap();
            authority.issue("a").unwrap();
        }
    }
    let authority = Authority::new("c").unwrap();
    let far = SystemTime::now() + Duration::from_secs(1 << 40);
    authority
        .issue_with("a", SystemTime::UNIX_EPOCH, far)
        .unwrap();
}
