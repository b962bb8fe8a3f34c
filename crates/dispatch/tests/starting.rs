//! What a node needs to know before it starts, and what it waits for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{Config, Node, NodeBuilder, StartError};

mod support;

use support::{Log, eventually};

/// How long is waited for what will not come.
const SHORT: Duration = Duration::from_millis(300);

fn plain(name: &str) -> NodeBuilder {
    Node::builder(name).plaintext().bind("127.0.0.1:0")
}

#[tokio::test]
async fn an_address_that_nobody_can_dial_is_refused_by_builder_and_by_file() {
    for address in [
        "0.0.0.0:7400",
        "[::]:7400",
        "10.0.0.1:0",
        "10.0.0.1",
        "fe80::1%eth0",
    ] {
        let file = format!("[node]\nplaintext = true\nadvertise = \"{address}\"");
        let file = Config::parse(&file).unwrap().builder("a").unwrap();
        for builder in [plain("a").advertise(address), file] {
            let error = builder.start().await.unwrap_err();
            assert!(matches!(error, StartError::Advertise(_)), "{error}");
            assert!(error.to_string().contains("node.advertise"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_node_that_listens_everywhere_advertises_where_its_seeds_are_reached_from() {
    let (log, _guard) = Log::capture();
    let seed = plain("seed").start().await.unwrap();
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let node = plain(bind).bind(bind).seeds([seed.address().as_str()]);
        let Ok(node) = node.start().await else {
            // A machine without IPv6.
            assert_eq!(bind, "[::]:0");
            continue;
        };
        assert!(
            node.address().as_str().starts_with("127.0.0.1:"),
            "{node:?}"
        );
        let said = log.lines(&["INFO", "advertis", node.address().as_str()]);
        assert!(!said.is_empty());
        node.leave().await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_listens_everywhere_and_knows_no_seed_says_what_to_set() {
    let error = plain("a").bind("0.0.0.0:0").start().await.unwrap_err();
    assert!(error.to_string().contains("node.advertise"), "{error}");
    let named = plain("a").bind("0.0.0.0:0").advertise("127.0.0.1:7400");
    assert_eq!(
        named.start().await.unwrap().address().as_str(),
        "127.0.0.1:7400"
    );
}

#[tokio::test]
async fn a_loopback_address_with_seeds_elsewhere_is_warned_about() {
    let (log, _guard) = Log::capture();
    // A documentation address (RFC 5737): nobody is there.
    let node = plain("a").seeds(["192.0.2.1:7400"]).start_timeout(SHORT);
    let _node = node.start().await.unwrap();
    let said = log.lines(&["WARN", "192.0.2.1:7400", "node.advertise", "node.bind"]);
    assert_eq!(said.len(), 1, "{said:?}");
}

#[tokio::test]
async fn a_loopback_address_is_warned_about_when_the_first_member_from_elsewhere_appears() {
    let (log, _guard) = Log::capture();
    let first = plain("a").start().await.unwrap();
    let warned = || log.lines(&["WARN", "loopback", "node.advertise", "node.bind"]);
    assert_eq!(warned(), Vec::<String>::new());
    let seed = first.address().to_string();
    // Documentation addresses (RFC 5737): nobody can dial these, and they say hello all the same.
    let mut others = Vec::new();
    for (name, advertised) in [("b", "192.0.2.7:7400"), ("c", "192.0.2.8:7400")] {
        let other = plain(name).advertise(advertised).seeds([&seed]);
        others.push(other.start().await.unwrap());
    }
    let said = log
        .line(&["WARN", "loopback", &seed, "192.0.2.7:7400"])
        .await;
    assert_eq!(warned(), [said]);
}

#[tokio::test]
async fn plaintext_is_said_in_stats_and_warned_about_where_others_reach_it() {
    let (log, _guard) = Log::capture();
    let warned = || log.lines(&["WARN", "no encryption", "can join"]).len();
    let near = plain("a").start().await.unwrap();
    assert!(near.stats().await.unwrap().plaintext);
    assert_eq!(warned(), 0);
    let open = plain("b").bind("0.0.0.0:0").advertise("127.0.0.1:7400");
    let open = open.start().await.unwrap();
    assert!(open.stats().await.unwrap().plaintext);
    assert_eq!(warned(), 1);
    let memory = Node::builder("c").memory(&MemoryNetwork::new()).bind("c:1");
    assert!(
        !memory
            .start()
            .await
            .unwrap()
            .stats()
            .await
            .unwrap()
            .plaintext
    );
}

#[tokio::test]
async fn a_seed_whose_name_has_no_address_yet_is_not_no_seed() {
    let node = plain("a")
        .seeds(["nowhere.invalid:7400"])
        .start_timeout(SHORT);
    let node = node.start().await.unwrap();
    // It started alone, after the timeout, and does not take itself for the first of its cluster.
    assert!(!node.is_ready());
    let first = plain("b").start().await.unwrap();
    assert!(first.is_ready());
    // One seed that refuses does not make up for another that is not known yet.
    let refused = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let seeds = ["nowhere.invalid:7400", refused.as_str()];
    let node = plain("c").seeds(seeds).start_timeout(SHORT);
    assert!(!node.start().await.unwrap().is_ready());
}

fn expecting(network: &MemoryNetwork, name: &str, members: usize) -> NodeBuilder {
    let node = Node::builder(name)
        .memory(network)
        .bind(format!("{name}:1"));
    node.seeds(["a:1", "b:1", "c:1"]).expect(members)
}

#[tokio::test]
async fn nodes_that_expect_each_other_start_when_all_are_there() {
    let network = MemoryNetwork::new();
    let start = |name| expecting(&network, name, 3).start();
    let (a, b, c) = tokio::join!(start("a"), start("b"), start("c"));
    for node in [a.unwrap(), b.unwrap(), c.unwrap()] {
        assert!(node.is_ready());
        assert_eq!(
            node.members()
                .iter()
                .filter(|member| member.is_up())
                .count(),
            2
        );
    }
}

#[tokio::test]
async fn a_node_that_expects_more_than_come_says_how_many_were_there() {
    let network = MemoryNetwork::new();
    let a = expecting(&network, "a", 1).start().await.unwrap();
    for members in [3, usize::MAX] {
        let name = format!("b{members}");
        let b = expecting(&network, &name, members).start_timeout(SHORT);
        match b.start().await.unwrap_err() {
            StartError::TooFew {
                expected, present, ..
            } => assert_eq!((expected, present), (members, 2)),
            other => panic!("{other}"),
        }
        // The next one would wait for the entries of one that has given up.
        eventually("it is gone again", async || {
            match a.members().iter().any(|member| member.is_up()) {
                true => Err("still there".to_owned()),
                false => Ok(()),
            }
        })
        .await;
    }
    let file = Config::parse("[node]\nexpect = 2")
        .unwrap()
        .builder("d")
        .unwrap();
    let d = file
        .memory(&network)
        .bind("d:1")
        .seeds(["a:1"])
        .start()
        .await
        .unwrap();
    a.leave().await.unwrap();
    eventually("the other is gone", async || {
        match d.members().iter().any(|member| member.is_up()) {
            true => Err("still there".to_owned()),
            false => Ok(()),
        }
    })
    .await;
    // Once they have been there they are not waited for again.
    assert!(d.is_ready());
}
