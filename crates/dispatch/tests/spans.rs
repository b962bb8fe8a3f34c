//! What a subscriber hears of calls as spans, on one node and across two.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keydispatch::testkit::MemoryNetwork;
use keydispatch::trace::{self, Propagator, TraceParent};
use keydispatch::{
    CallOptions, Context, KeyContext, Keyed, Node, Protocol, ReplyTo, Service, ServiceHandle,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context as Layered, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use support::eventually;

/// A span as it was made, and what was recorded of it since.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    id: u64,
    parent: Option<u64>,
    /// The span of another process whose child it is.
    continues: Option<TraceParent>,
    fields: HashMap<&'static str, String>,
}

impl Seen {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

/// All spans, and the propagator that goes by their numbers.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<HashMap<u64, Seen>>>);

impl Spans {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<u64, Seen>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn named(&self, name: &str) -> Vec<Seen> {
        let mut named: Vec<Seen> = self.with(|spans| {
            let named = spans.values().filter(|seen| seen.name == name);
            named.cloned().collect()
        });
        named.sort_by_key(|seen| seen.id);
        named
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Layered<'_, S>) {
        let parent = cx.span(id).and_then(|span| Some(span.parent()?.id()));
        let mut seen = Seen {
            name: attributes.metadata().name(),
            id: id.into_u64(),
            parent: parent.map(|parent| parent.into_u64()),
            ..Seen::default()
        };
        attributes.record(&mut seen);
        self.with(|spans| spans.insert(seen.id, seen));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Layered<'_, S>) {
        self.with(|spans| {
            if let Some(seen) = spans.get_mut(&id.into_u64()) {
                values.record(seen);
            }
        });
    }
}

impl Propagator for Spans {
    fn parent_of(&self, span: &Span) -> Option<TraceParent> {
        let id = span.id()?.into_u64();
        TraceParent::new([7; 16], id.to_be_bytes(), 1).ok()
    }

    fn continue_from(&self, span: &Span, parent: TraceParent) {
        let id = span.id().expect("a span that is listened to").into_u64();
        self.with(|spans| {
            if let Some(seen) = spans.get_mut(&id) {
                seen.continues = Some(parent);
            }
        });
    }
}

struct Echoes;

impl Protocol for Echoes {
    const NAME: &'static str = "echoes";
    type Call = u64;
    type Reply = u64;
    type Cast = u64;
}

struct Echo;

impl Service for Echo {
    type Protocol = Echoes;

    async fn handle_call(&mut self, call: u64, reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
        tokio::task::yield_now().await;
        reply_to.reply(call);
    }

    async fn handle_cast(&mut self, _: u64, _: &mut Context<Self>) {}
}

struct Counts;

impl Protocol for Counts {
    const NAME: &'static str = "counts";
    type Call = u64;
    type Reply = u64;
    type Cast = ();
}

struct Counting;

impl Keyed for Counting {
    type Protocol = Counts;
    type State = u64;

    async fn open(&self, _: &keydispatch::KeyBytes) -> Result<u64, keydispatch::BoxError> {
        Ok(0)
    }

    async fn handle_call(
        &self,
        state: &mut u64,
        add: u64,
        reply_to: ReplyTo<u64>,
        _: &mut KeyContext<Self>,
    ) {
        *state += add;
        reply_to.reply(*state);
    }
}

async fn pair() -> (Node, Node) {
    let network = MemoryNetwork::new();
    let [a, b] = support::start_all(&network, ["a", "b"], |node| node).await;
    (a, b)
}

/// The span of the one call, and that of its handler.
fn only(spans: &Spans) -> (Seen, Seen) {
    let (calls, handled) = (spans.named("call"), spans.named("handle"));
    assert_eq!(
        (calls.len(), handled.len()),
        (1, 1),
        "{calls:?} {handled:?}"
    );
    let taken = (calls[0].clone(), handled[0].clone());
    spans.with(|spans| spans.retain(|_, seen| !matches!(seen.name, "call" | "handle")));
    taken
}

#[tokio::test]
async fn a_call_is_one_trace_from_its_caller_to_its_handler_on_whatever_node() {
    let spans = Spans::default();
    trace::set_propagator(spans.clone()).unwrap();
    assert!(trace::set_propagator(spans.clone()).is_err());
    let _listening =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let (a, b) = pair().await;
    let echo = b.serve(Echo).await.unwrap();

    // To another node. The first call makes the connection, on which the peer says what it knows.
    let away = a.services::<Echoes>();
    away.wait_online(1).await.unwrap();
    away.call("key", 1).await.unwrap();
    only(&spans);
    away.call("key", 2).await.unwrap();
    let (call, handled) = only(&spans);
    assert_eq!(call.field("rpc.service"), "echoes");
    assert_eq!(call.field("rpc.method"), "call");
    assert_eq!(call.field("otel.kind"), "client");
    assert_eq!(call.field("keydispatch.node"), "b");
    assert_eq!(call.field("keydispatch.instance"), echo.id().to_string());
    assert_eq!(call.field("keydispatch.attempt"), "1");
    assert_ne!(call.field("keydispatch.slot"), "");
    assert_eq!(call.field("error.type"), "");
    assert_eq!(handled.field("otel.kind"), "server");
    assert_eq!(handled.field("keydispatch.instance"), echo.id().to_string());
    assert_eq!(handled.field("keydispatch.caller"), "a");
    assert_eq!(handled.parent, None);
    let continued = handled.continues.expect("its parent has crossed");
    assert_eq!(continued.span_id(), call.id.to_be_bytes());

    // On the same node the handler's span is a child.
    b.services::<Echoes>().call("key", 3).await.unwrap();
    let (call, handled) = only(&spans);
    assert_eq!(handled.parent, Some(call.id));
    assert_eq!(handled.continues, None);
    assert_eq!(handled.field("keydispatch.caller"), "");

    // Bounded ones go by another frame.
    let bounded = away.with(CallOptions::new().routing(keydispatch::Routing::Bounded {
        owners: 2,
        depth: 4,
        stay: Some(1),
    }));
    bounded.call("key", 4).await.unwrap();
    let (call, handled) = only(&spans);
    assert_eq!(
        handled.continues.map(|parent| parent.span_id()),
        Some(call.id.to_be_bytes())
    );

    // A cast begins a trace.
    away.cast("key", 5).unwrap();
    let cast = eventually("the cast is handled", || async {
        spans
            .named("handle")
            .pop()
            .ok_or_else(|| "no span".to_owned())
    })
    .await;
    assert_eq!(cast.field("rpc.method"), "cast");
    assert_eq!((cast.parent, cast.continues), (None, None));
    spans.with(HashMap::clear);

    // One that fails says how.
    let short = away.with(CallOptions::new().timeout(Duration::ZERO));
    short.call("key", 6).await.unwrap_err();
    let failed = spans.named("call").pop().unwrap();
    assert_ne!(failed.field("error.type"), "");
    assert_eq!(failed.field("otel.status_code"), "ERROR");
    spans.with(HashMap::clear);

    // By the state of a key.
    b.serve_keyed(Counting).await.unwrap();
    let counts = a.keyed::<Counts>();
    counts.wait_online(1).await.unwrap();
    assert_eq!(counts.call("key", 7).await.unwrap(), 7);
    let (call, handled) = only(&spans);
    assert_eq!(call.field("rpc.service"), "counts");
    assert_eq!(
        handled.continues.map(|parent| parent.span_id()),
        Some(call.id.to_be_bytes())
    );
    assert_eq!(b.keyed::<Counts>().call("key", 1).await.unwrap(), 8);
    let (call, handled) = only(&spans);
    assert_eq!(handled.parent, Some(call.id));

    drop((a, b));
}

#[tokio::test]
async fn a_node_and_its_links_have_spans() {
    let spans = Spans::default();
    let _listening =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(spans.clone()));
    let (a, b) = pair().await;
    eventually("both sides know their peer", || async {
        let mut peers: Vec<String> = spans
            .named("link")
            .iter()
            .map(|seen| seen.field("keydispatch.peer").to_owned())
            .collect();
        peers.sort();
        (peers == ["a", "b"])
            .then_some(())
            .ok_or(format!("{peers:?}"))
    })
    .await;
    let mut nodes = spans.named("node");
    nodes.sort_by(|a, b| a.field("keydispatch.node").cmp(b.field("keydispatch.node")));
    let names: Vec<&str> = nodes
        .iter()
        .map(|seen| seen.field("keydispatch.node"))
        .collect();
    assert_eq!(names, ["a", "b"]);
    drop((a, b));
}

#[tokio::test]
async fn nobody_who_listens_to_less_hears_a_span_of_a_call() {
    let spans = Spans::default();
    let _listening = tracing::subscriber::set_default(
        tracing_subscriber::registry()
            .with(tracing_subscriber::filter::LevelFilter::INFO)
            .with(spans.clone()),
    );
    let (a, b) = pair().await;
    b.serve(Echo).await.unwrap();
    let echoes: ServiceHandle<Echoes> = a.services();
    echoes.wait_online(1).await.unwrap();
    echoes.call("key", 1).await.unwrap();
    assert!(spans.named("call").is_empty());
    assert!(spans.named("handle").is_empty());
    drop((a, b));
}
