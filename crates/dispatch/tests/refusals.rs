//! A node that says that it is reached where nobody listens: refusals are no evidence against whom somebody reaches.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use keydispatch::{Context, MemberChange, NewService, Node, Protocol, ReplyTo, Service};

mod support;

use support::{Log, eventually};

fn describe(name: &str) -> keydispatch::NodeBuilder {
    Node::builder(name)
        .plaintext()
        .bind("127.0.0.1:0")
        .start_timeout(Duration::from_secs(30))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_address_refuses_everybody_stays_up_while_it_reaches_them() {
    // Nobody listens on port 1, and the kernel says so.
    for name in ["a-first", "z-last"] {
        let seed = describe("m0").start().await.unwrap();
        let seeds = [seed.address().to_string()];
        let mut nodes = vec![seed];
        for other in ["m1", "m2"] {
            let node = describe(other).seeds(seeds.clone()).start().await.unwrap();
            nodes.push(node);
        }
        let mut changes: Vec<_> = nodes.iter().map(Node::subscribe_members).collect();
        let hidden = describe(name)
            .advertise("127.0.0.1:1")
            .seeds(seeds)
            .start()
            .await
            .unwrap();
        let endpoint = NewService::endpoint("thing", "somewhere");
        hidden.registry().add_service(endpoint).await.unwrap();
        for node in &nodes {
            eventually("it is linked and its entry shows", async || {
                let stats = node.stats().await.unwrap();
                let owners = stats.cluster.owners.iter();
                let linked = owners.filter(|owner| owner.linked && owner.visible).count();
                let shown = node.registry().services("thing").len();
                let done = (linked, shown) == (3, 1);
                done.then_some(())
                    .ok_or_else(|| format!("{linked} are linked, {shown} entries show"))
            })
            .await;
        }
        for node in nodes.into_iter().chain([hidden]) {
            node.leave().await.unwrap();
        }
        for changes in &mut changes {
            while let Some(change) = changes.next().await {
                if let MemberChange::Down { node } = change {
                    assert_ne!(node.name.as_str(), name, "it was up all the time");
                }
            }
        }
    }
}

struct Echoes;

impl Protocol for Echoes {
    const NAME: &'static str = "echo";
    type Call = u32;
    type Reply = u32;
    type Cast = ();
}

struct Echo;

impl Service for Echo {
    type Protocol = Echoes;

    async fn handle_call(&mut self, call: u32, reply_to: ReplyTo<u32>, _: &mut Context<Self>) {
        reply_to.reply(call);
    }
}

#[tokio::test]
async fn a_node_that_is_up_and_cannot_be_dialled_is_named_once_with_its_address_and_the_reason() {
    let (log, _guard) = Log::capture();
    let seed = describe("seed").start().await.unwrap();
    let hidden = describe("hidden")
        .advertise("127.0.0.1:1")
        .seeds([seed.address().as_str()])
        .start()
        .await
        .unwrap();
    hidden.serve(Echo).await.unwrap();
    let echoes = seed.services::<Echoes>();
    echoes.wait_online(1).await.unwrap();
    let warned = || log.lines(&["WARN", "cannot be dialled", "hidden", "127.0.0.1:1"]);
    // Nobody waits here: each call takes the time that a dial takes, or a pause between two of them.
    let options = keydispatch::CallOptions::new().timeout(Duration::from_millis(200));
    while warned().is_empty() {
        let error = echoes.with(options).call("key", 1).await.unwrap_err();
        assert!(!error.may_have_run(), "{error}");
    }
    for _ in 0..10 {
        echoes.with(options).call("key", 1).await.unwrap_err();
    }
    assert_eq!(warned().len(), 1, "{:?}", warned());
}
