//! Messages that people change: how they are encoded, which versions are taken, and what stays within a service.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    BoxError, CallError, Codec, Context, HandleInfo, InfoError, InfoSender, Node, Protocol,
    ReplyTo, ServeOptions, Service, ServiceHandle,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

mod support;

use support::{eventually, start_all};

/// What a service is told that answers what it got; `tag` and `flatten` are what postcard cannot hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Said {
    Text { text: String },
    Any { value: serde_json::Value },
    Flat(Flat),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    name: String,
    #[serde(flatten)]
    rest: BTreeMap<String, u32>,
}

fn said() -> [Said; 3] {
    let rest = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let name = "flat".to_owned();
    [
        Said::Text {
            text: "hello".to_owned(),
        },
        Said::Any {
            value: serde_json::json!({"list": [1, "two", null], "deep": {"er": true}}),
        },
        Said::Flat(Flat { name, rest }),
    ]
}

macro_rules! echo {
    ($protocol:ident, $service:ident, $name:literal, $codec:expr) => {
        struct $protocol;

        impl Protocol for $protocol {
            const NAME: &'static str = $name;
            const CODEC: Codec = $codec;
            type Call = Said;
            type Reply = Said;
            type Cast = Said;
        }

        #[derive(Clone, Default)]
        struct $service(Arc<AtomicU64>);

        impl Service for $service {
            type Protocol = $protocol;

            async fn handle_call(
                &mut self,
                said: Said,
                reply_to: ReplyTo<Said>,
                _: &mut Context<Self>,
            ) {
                self.0.fetch_add(1, Ordering::SeqCst);
                reply_to.reply(said);
            }

            async fn handle_cast(&mut self, _: Said, _: &mut Context<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
}

echo!(Packed, PackedEcho, "echo", Codec::MessagePack);
echo!(Text, TextEcho, "text echo", Codec::Json);
echo!(Compact, CompactEcho, "compact echo", Codec::Postcard);
// The type and version of `Packed`, in another codec.
echo!(Mistaken, MistakenEcho, "echo", Codec::Json);

async fn two() -> [Node; 2] {
    start_all(&MemoryNetwork::new(), ["host", "near"], |node| node).await
}

#[tokio::test]
async fn what_describes_itself_is_called_cast_and_answered_in_messagepack_and_json_here_and_there()
{
    let [host, near] = two().await;
    let heard = Arc::new(AtomicU64::new(0));
    host.serve(PackedEcho(Arc::clone(&heard))).await.unwrap();
    host.serve(TextEcho(Arc::clone(&heard))).await.unwrap();
    near.services::<Packed>().wait_online(1).await.unwrap();
    near.services::<Text>().wait_online(1).await.unwrap();
    for node in [&host, &near] {
        for said in said() {
            let packed = node.services::<Packed>();
            assert_eq!(packed.call("key", said.clone()).await.as_ref(), Ok(&said));
            packed.cast("key", said.clone()).unwrap();
            assert_eq!(packed.multi_cast("key", 1, said.clone()), 1);
            let text = node.services::<Text>();
            let idempotent = text.with(keydispatch::CallOptions::new().idempotent());
            assert_eq!(
                idempotent.call("key", said.clone()).await.as_ref(),
                Ok(&said)
            );
        }
    }
    eventually("all were heard", async || {
        match heard.load(Ordering::SeqCst) {
            24 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_that_cannot_cross_fails_in_one_process_too_and_the_error_says_what_to_do() {
    let [host, near] = two().await;
    let heard = Arc::new(AtomicU64::new(0));
    host.serve(CompactEcho(Arc::clone(&heard))).await.unwrap();
    near.services::<Compact>().wait_online(1).await.unwrap();
    for node in [&host, &near] {
        for said in said() {
            let compact = node.services::<Compact>();
            let error = compact.call("key", said.clone()).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    CallError::Decode { reply: false, .. } | CallError::Encode { .. }
                ),
                "{error:?}"
            );
            assert!(error.to_string().contains("CODEC"), "{error}");
            assert!(!error.may_have_run());
        }
    }
    // One that is sent here comes back; one that was on its way is counted where it does not decode.
    let [text, ..] = said();
    let back = host.services::<Compact>().cast("key", text.clone());
    assert_eq!(back.unwrap_err().message, text);
    assert_eq!(heard.load(Ordering::SeqCst), 0);
}

/// What is written by position and read by name, or the other way about, in one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Untellable {
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
    second: String,
}

struct Replies;

impl Protocol for Replies {
    const NAME: &'static str = "replies";
    type Call = u64;
    type Reply = Untellable;
    type Cast = ();
}

struct Replier;

impl Service for Replier {
    type Protocol = Replies;

    async fn handle_call(&mut self, _: u64, reply: ReplyTo<Untellable>, _: &mut Context<Self>) {
        reply.reply(Untellable {
            first: None,
            second: "x".to_owned(),
        });
    }
}

#[tokio::test]
async fn a_reply_that_cannot_cross_fails_its_call_in_one_process_too() {
    let [host, near] = two().await;
    host.serve(Replier).await.unwrap();
    near.services::<Replies>().wait_online(1).await.unwrap();
    for node in [&host, &near] {
        let error = node.services::<Replies>().call("key", 1).await.unwrap_err();
        assert!(
            matches!(error, CallError::Decode { reply: true, .. }),
            "{error:?}"
        );
        assert!(error.may_have_run());
    }
}

#[tokio::test]
async fn without_the_check_local_messages_move_as_they_are() {
    let network = MemoryNetwork::new();
    let [host] = start_all(&network, ["host"], |node| node.check_messages(false)).await;
    host.serve(CompactEcho::default()).await.unwrap();
    for said in said() {
        let reply = host.services::<Compact>().call("key", said.clone()).await;
        assert_eq!(reply, Ok(said));
    }
}

#[tokio::test]
async fn a_caller_with_another_codec_is_incompatible_and_nothing_is_misread() {
    let [host, near] = two().await;
    let heard = Arc::new(AtomicU64::new(0));
    host.serve(PackedEcho(Arc::clone(&heard))).await.unwrap();
    for node in [&host, &near] {
        let mistaken = node.services::<Mistaken>();
        mistaken.wait_online(1).await.unwrap();
        for said in said() {
            let error = mistaken.call("key", said.clone()).await.unwrap_err();
            assert_eq!(error, CallError::Incompatible { ours: 1, theirs: 0 });
            assert!(error.to_string().contains("codec"), "{error}");
            assert_eq!(
                mistaken.cast("key", said.clone()).unwrap_err().message,
                said
            );
        }
    }
    assert_eq!(heard.load(Ordering::SeqCst), 0);
    // Where one has the caller's codec, it is the one that is called, whoever owns the key among all.
    near.serve(MistakenEcho::default()).await.unwrap();
    for node in [&host, &near] {
        let mistaken = node.services::<Mistaken>();
        mistaken.wait_online(2).await.unwrap();
        for key in 0_u64..20 {
            let [text, ..] = said();
            let answer = mistaken.call_answered(key, text).await;
            assert_eq!(answer.unwrap().by.node().as_str(), "near");
        }
    }
}

// Versions.

struct Old;

impl Protocol for Old {
    const NAME: &'static str = "counter";
    type Call = OldAsk;
    type Reply = u64;
    type Cast = u64;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum OldAsk {
    Version,
}

struct New;

impl Protocol for New {
    const NAME: &'static str = "counter";
    const VERSION: u32 = 2;
    const ACCEPTS: RangeInclusive<u32> = 1..=2;
    type Call = NewAsk;
    type Reply = u64;
    type Cast = u64;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum NewAsk {
    Version,
    Added,
}

struct OldCounter;

impl Service for OldCounter {
    type Protocol = Old;

    async fn handle_call(&mut self, _: OldAsk, reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
        reply_to.reply(1);
    }
}

#[derive(Default)]
struct NewCounter(Arc<AtomicU64>);

impl Service for NewCounter {
    type Protocol = New;

    async fn handle_call(&mut self, ask: NewAsk, reply_to: ReplyTo<u64>, cx: &mut Context<Self>) {
        reply_to.reply(match ask {
            // Which version the caller speaks, behind its own.
            NewAsk::Version => 20 + u64::from(cx.version()),
            NewAsk::Added => 2,
        });
    }

    async fn handle_cast(&mut self, more: u64, cx: &mut Context<Self>) {
        self.0
            .fetch_add(more * u64::from(cx.version()), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn calls_go_to_the_instances_that_take_their_version_and_old_callers_reach_new_services() {
    let [host, near] = two().await;
    host.serve(OldCounter).await.unwrap();
    let sum = Arc::new(AtomicU64::new(0));
    near.serve(NewCounter(Arc::clone(&sum))).await.unwrap();
    for node in [&host, &near] {
        let (old, new) = (node.services::<Old>(), node.services::<New>());
        old.wait_online(2).await.unwrap();
        let mut answers = [0_u32; 2];
        for key in 0_u64..200 {
            // Both take the old messages, so their callers see every key where it is placed among all.
            let answer = old.call_answered(key, OldAsk::Version).await.unwrap();
            let all = node.registry().find_service("counter", key).unwrap();
            assert_eq!(answer.by.id(), all.id());
            match answer.reply {
                1 => answers[0] += 1,
                21 => answers[1] += 1,
                other => panic!("{other}"),
            }
            // The new messages are taken by the new one alone.
            assert_eq!(new.call(key, NewAsk::Version).await, Ok(22));
            assert_eq!(new.call(key, NewAsk::Added).await, Ok(2));
            assert_eq!(new.find(key).unwrap().node().as_str(), "near");
            assert_eq!(new.view().owner(key).unwrap().node().as_str(), "near");
            assert_eq!(new.multi_call(key, 5, NewAsk::Added).await.len(), 1);
            assert_eq!(old.multi_call(key, 5, OldAsk::Version).await.len(), 2);
        }
        assert!(answers.iter().all(|count| *count > 0), "{answers:?}");
        new.cast("key", 10).unwrap();
        assert_eq!(new.multi_cast("key", 5, 10), 1);
        assert_eq!(old.multi_cast("key", 5, 1), 2);
    }
    eventually(
        "the casts are there, each as of its caller's version",
        async || match sum.load(Ordering::SeqCst) {
            82 => Ok(()),
            other => Err(other.to_string()),
        },
    )
    .await;
}

#[tokio::test]
async fn where_no_instance_takes_the_version_the_call_is_incompatible() {
    let [host, near] = two().await;
    host.serve(OldCounter).await.unwrap();
    for node in [&host, &near] {
        let new = node.services::<New>();
        new.wait_online(1).await.unwrap();
        let error = new.call("key", NewAsk::Added).await.unwrap_err();
        assert_eq!(error, CallError::Incompatible { ours: 2, theirs: 1 });
        assert!(error.to_string().contains("ACCEPTS"), "{error}");
        let id = new.find("key").unwrap().id().clone();
        let error = new.at(id).call(NewAsk::Added).await.unwrap_err();
        assert_eq!(error, CallError::Incompatible { ours: 2, theirs: 1 });
    }
}

#[tokio::test]
async fn a_change_of_labels_leaves_the_versions_that_are_taken() {
    let [host, near] = two().await;
    let served = host.serve(NewCounter::default()).await.unwrap();
    let update = keydispatch::ServiceUpdate::new().tag("disk", "ssd");
    served.registration().update(update).await.unwrap();
    for node in [&host, &near] {
        let old = node.services::<Old>();
        eventually("the label is there", async || match old.find("key") {
            Ok(info) if info.tag("disk") == Some("ssd") => {
                assert_eq!(info.tags().count(), 1);
                Ok(())
            }
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(old.call("key", OldAsk::Version).await, Ok(21));
    }
}

// What stays within a service.

struct Notes;

impl Protocol for Notes {
    const NAME: &'static str = "notes";
    type Call = Ask;
    type Reply = Vec<String>;
    type Cast = String;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Ask {
    Notes,
    /// Answer once a task of the service's own says so.
    Later,
    /// Tell yourself in each of the three ways.
    Yourself,
    /// Wait for the gate.
    Wait,
    /// Answer which node asks.
    Who,
}

/// Nothing that serde could encode.
enum Private {
    Answer(ReplyTo<Vec<String>>),
    Note(Box<dyn FnOnce() -> String + Send>),
}

struct Notary {
    notes: Vec<String>,
    gate: Arc<Semaphore>,
    handle: tokio::sync::mpsc::UnboundedSender<InfoSender<Notary>>,
}

impl Service for Notary {
    type Protocol = Notes;

    async fn started(&mut self, cx: &mut Context<Self>) -> Result<(), BoxError> {
        assert_eq!(cx.caller(), None);
        self.handle.send(cx.info_sender())?;
        Ok(())
    }

    async fn handle_call(
        &mut self,
        ask: Ask,
        reply_to: ReplyTo<Vec<String>>,
        cx: &mut Context<Self>,
    ) {
        match ask {
            Ask::Notes => reply_to.reply(self.notes.clone()),
            Ask::Later => {
                let me = cx.info_sender();
                tokio::spawn(async move { me.send(Private::Answer(reply_to)).await });
            }
            Ask::Yourself => {
                cx.info_after(Duration::from_millis(20), note("timer"));
                let cancelled = cx.info_after(Duration::from_millis(10), note("cancelled"));
                cx.cancel(cancelled);
                cx.cast("cast".to_owned());
                cx.info(note("info"));
                reply_to.reply(Vec::new());
            }
            Ask::Wait => {
                self.notes.push("waiting".to_owned());
                self.gate.acquire().await.unwrap().forget();
                reply_to.reply(Vec::new());
            }
            Ask::Who => {
                let caller = cx.caller().map(ToString::to_string);
                reply_to.reply(caller.into_iter().collect());
            }
        }
    }

    async fn handle_cast(&mut self, cast: String, cx: &mut Context<Self>) {
        match cx.caller() {
            Some(caller) => self.notes.push(format!("{cast} from {caller}")),
            None => self.notes.push(cast),
        }
    }
}

impl HandleInfo for Notary {
    type Info = Private;

    async fn handle_info(&mut self, info: Private, cx: &mut Context<Self>) {
        assert_eq!(cx.caller(), None);
        match info {
            Private::Answer(reply_to) => reply_to.reply(vec!["later".to_owned()]),
            Private::Note(note) => {
                let note = note();
                // A task that never stops telling is noted once.
                if self.notes.last() != Some(&note) {
                    self.notes.push(note);
                }
            }
        }
    }
}

fn note(what: &'static str) -> Private {
    Private::Note(Box::new(move || what.to_owned()))
}

struct Stage {
    nodes: [Node; 2],
    near: ServiceHandle<Notes>,
    served: keydispatch::Served<Notes>,
    gate: Arc<Semaphore>,
    infos: InfoSender<Notary>,
}

async fn stage(options: ServeOptions) -> Stage {
    let nodes = two().await;
    let gate = Arc::new(Semaphore::new(0));
    let (handle, mut handles) = tokio::sync::mpsc::unbounded_channel();
    let notary = Notary {
        notes: Vec::new(),
        gate: Arc::clone(&gate),
        handle,
    };
    let served = nodes[0].serve_with(options, notary).await.unwrap();
    let near = nodes[1].services::<Notes>();
    near.wait_online(1).await.unwrap();
    Stage {
        infos: handles.recv().await.unwrap(),
        nodes,
        near,
        served,
        gate,
    }
}

impl Stage {
    async fn notes(&self, expected: &[&str]) {
        eventually("the notes are there", async || {
            let notes = self.near.call("key", Ask::Notes).await.unwrap();
            if notes == expected {
                Ok(())
            } else {
                Err(format!("{notes:?}"))
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_service_is_told_by_its_own_tasks_and_timers_what_no_codec_could_hold() {
    let stage = stage(ServeOptions::new()).await;
    let later = stage.near.call("key", Ask::Later).await;
    assert_eq!(later, Ok(vec!["later".to_owned()]));
    stage.near.call("key", Ask::Yourself).await.unwrap();
    stage.notes(&["cast", "info", "timer"]).await;
    stage.infos.send(note("sent")).await.unwrap();
    stage.notes(&["cast", "info", "timer", "sent"]).await;
}

#[tokio::test]
async fn private_messages_are_bounded_given_back_and_end_with_the_service() {
    let stage = stage(ServeOptions::new().mailbox(2)).await;
    let near = stage.near.clone();
    let waiting = tokio::spawn(async move { near.call("key", Ask::Wait).await });
    // It is at work once it does not take any more.
    eventually("the mailbox is full", async || {
        match stage.infos.try_send(note("one")) {
            Err(InfoError::Full(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let infos = stage.infos.clone();
    let waits = tokio::spawn(async move { infos.send(note("last")).await });
    stage.gate.add_permits(1);
    waiting.await.unwrap().unwrap();
    waits.await.unwrap().unwrap();
    eventually("the last is there", async || {
        let notes = stage.near.call("key", Ask::Notes).await.unwrap();
        if notes.last().is_some_and(|last| last == "last") {
            Ok(())
        } else {
            Err(format!("{notes:?}"))
        }
    })
    .await;
    stage.served.stop().await.unwrap();
    stage.infos.ended().await;
    let back = stage.infos.send(note("late")).await.unwrap_err();
    assert!(
        matches!(back, InfoError::Ended(Private::Note(_))),
        "{back:?}"
    );
    assert_eq!(format!("{back:?}"), back.to_string());
}

#[tokio::test]
async fn neither_casts_to_itself_nor_private_messages_nor_calls_starve_the_others() {
    let stage = stage(ServeOptions::new()).await;
    // A task that never stops telling.
    let infos = stage.infos.clone();
    tokio::spawn(async move { while infos.send(note("told")).await.is_ok() {} });
    stage.near.call("key", Ask::Yourself).await.unwrap();
    for what in ["cast", "info", "timer", "told"] {
        eventually(what, async || {
            let notes = stage.near.call("key", Ask::Notes).await.unwrap();
            if notes.iter().any(|note| note == what) {
                Ok(())
            } else {
                Err(format!("{} notes", notes.len()))
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_handler_knows_which_node_calls_or_casts() {
    let stage = stage(ServeOptions::new()).await;
    for node in &stage.nodes {
        let notes = node.services::<Notes>();
        let name = node.name().to_string();
        assert_eq!(notes.call("key", Ask::Who).await, Ok(vec![name.clone()]));
        notes.cast("key", "cast".to_owned()).unwrap();
        assert_eq!(notes.multi_cast("key", 1, "copy".to_owned()), 1);
    }
    eventually("the casts are there", async || {
        let mut notes = stage.near.call("key", Ask::Notes).await.unwrap();
        notes.sort_unstable();
        let expected = [
            "cast from host",
            "cast from near",
            "copy from host",
            "copy from near",
        ];
        if notes == expected {
            Ok(())
        } else {
            Err(format!("{notes:?}"))
        }
    })
    .await;
}
