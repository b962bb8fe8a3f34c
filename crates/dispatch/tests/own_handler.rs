//! A service that would wait for itself: a typed error at once, and the service goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, OnceLock};

use keydispatch::testkit::MemoryNetwork;
use keydispatch::{
    CallError, CallOptions, Context, Node, Protocol, ReplyTo, ServeOptions, Served, Service,
    ServiceHandle, StopError, SuperviseOptions, Supervised, SupervisedEnd,
};
use serde::{Deserialize, Serialize};

struct Mirrors;

#[derive(Debug, Serialize, Deserialize)]
enum Look {
    ByKey,
    Answered,
    ById,
    Many,
    Joined,
    FromATask,
    ByCast,
    Stop,
    StopSupervised,
    Casts,
}

impl Protocol for Mirrors {
    const NAME: &'static str = "mirror";
    type Call = Look;
    type Reply = String;
    type Cast = ();
}

/// Calls itself in all ways, and says what came of it.
#[derive(Clone, Default)]
struct Mirror {
    mirrors: Arc<OnceLock<ServiceHandle<Mirrors>>>,
    served: Arc<OnceLock<Served<Mirrors>>>,
    supervised: Arc<OnceLock<Supervised>>,
    casts: usize,
}

impl Service for Mirror {
    type Protocol = Mirrors;

    async fn handle_call(&mut self, look: Look, reply_to: ReplyTo<String>, cx: &mut Context<Self>) {
        let mirrors = self.mirrors.get().unwrap().clone();
        let at = mirrors.at(cx.id().clone());
        let seen = match look {
            Look::ByKey => format!("{:?}", mirrors.call("key", Look::Casts).await),
            Look::Answered => {
                let insisting = mirrors.with(CallOptions::new().idempotent());
                format!("{:?}", insisting.call_answered("key", Look::Casts).await)
            }
            Look::ById => format!("{:?}", at.call(Look::Casts).await),
            Look::Many => {
                let mut results = mirrors.multi_call("key", 2, Look::Casts).await;
                results.sort_by_key(|(by, _)| by.id() != cx.id());
                let results: Vec<_> = results.into_iter().map(|(_, result)| result).collect();
                format!("{results:?}")
            }
            Look::Joined => {
                // Two futures of one task are still that task.
                let (one, other) = tokio::join!(at.call(Look::Casts), at.call(Look::Casts));
                format!("{:?}", one.and(other))
            }
            Look::FromATask => {
                tokio::spawn(async move { reply_to.reply(at.call(Look::Casts).await.unwrap()) });
                return;
            }
            Look::ByCast => format!("{:?}", at.cast(()).is_ok()),
            Look::Stop => format!("{:?}", self.served.get().unwrap().stop().await),
            Look::StopSupervised => format!("{:?}", self.supervised.get().unwrap().stop().await),
            Look::Casts => self.casts.to_string(),
        };
        reply_to.reply(seen);
    }

    async fn handle_cast(&mut self, (): (), _: &mut Context<Self>) {
        self.casts += 1;
    }
}

async fn start() -> Node {
    let network = MemoryNetwork::new();
    let node = Node::builder("a").memory(&network).bind("a:1");
    node.start().await.unwrap()
}

#[tokio::test]
async fn a_service_that_calls_itself_gets_a_typed_error_at_once_in_every_way() {
    let node = start().await;
    let mirrors = node.services::<Mirrors>();
    let mirror = Mirror::default();
    let _ = mirror.mirrors.set(mirrors.clone());
    let served = node.serve(mirror.clone()).await.unwrap();
    let error = CallError::CallsItself {
        id: served.id().clone(),
    };
    assert!(!error.may_have_run());
    let own = format!("{:?}", Err::<String, _>(error.clone()));
    for look in [Look::ByKey, Look::Answered, Look::ById, Look::Joined] {
        let asked = format!("{look:?}");
        assert_eq!(mirrors.call("key", look).await, Ok(own.clone()), "{asked}");
    }
    // Tasks of its own may wait for it, and a cast waits for nobody.
    let seen = mirrors.call("key", Look::FromATask).await;
    assert_eq!(seen, Ok("0".to_owned()));
    let seen = mirrors.call("key", Look::ByCast).await;
    assert_eq!(seen, Ok("true".to_owned()));
    let seen = mirrors.call("key", Look::Casts).await;
    assert_eq!(seen, Ok("1".to_owned()));
    // Of two, the other one answers.
    let other = node
        .serve_with(ServeOptions::new().name("other"), mirror)
        .await
        .unwrap();
    let first = mirrors.at(served.id().clone());
    let seen = first.call(Look::Many).await.unwrap();
    assert_eq!(
        seen,
        format!("{:?}", vec![Err(error), Ok::<_, CallError>("0".to_owned())])
    );
    other.stop().await.unwrap();
    node.leave().await.unwrap();
}

#[tokio::test]
async fn a_service_that_stops_itself_from_its_handler_gets_a_typed_error_at_once() {
    let node = start().await;
    let mirrors = node.services::<Mirrors>();
    let mirror = Mirror::default();
    let _ = mirror.mirrors.set(mirrors.clone());
    let served = node.serve(mirror.clone()).await.unwrap();
    let id = served.id().clone();
    let _ = mirror.served.set(served);
    let own = |id| format!("{:?}", Err::<(), _>(StopError::OwnHandler { id }));
    let seen = mirrors.call("key", Look::Stop).await;
    assert_eq!(seen, Ok(own(id)));
    // From anywhere else it stops.
    let served = mirror.served.get().unwrap();
    assert_eq!(served.stop().await, Ok(()));
    let supervised = node
        .supervise(SuperviseOptions::new(), {
            let mirror = mirror.clone();
            move || mirror.clone()
        })
        .await
        .unwrap();
    let _ = mirror.supervised.set(supervised);
    let id = mirrors.find("key").unwrap().id().clone();
    let seen = mirrors.call("key", Look::StopSupervised).await;
    assert_eq!(seen, Ok(own(id)));
    let supervised = mirror.supervised.get().unwrap();
    assert_eq!(supervised.stop().await, Ok(SupervisedEnd::Stopped));
    node.leave().await.unwrap();
}
