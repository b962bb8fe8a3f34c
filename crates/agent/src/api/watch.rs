//! Watching a type three ways, by ETag, long poll and a stream of events; and everything that happens, as it happens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::call::{Call, ok};
use super::endpoints::HEARTBEAT;
use crate::app::{App, round};
use crate::config::Period;
use crate::http::{self, Body, Response};
use crate::hub::{AT_ONCE, Event, Index, Position, frame};
use crate::problem::Problem;
use crate::shapes;

/// How long a long poll waits at most.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Frames that wait for a watcher that does not read; what is behind them it gets from the ring, or as a snapshot.
const FRAMES: usize = 4;
/// Events that are listed at once.
const MAX_EVENTS: usize = 4_096;

pub(crate) fn index(app: &App, version: u64) -> Index {
    Index {
        life: app.hub.life.clone(),
        position: Position::of_view(version),
    }
}

/// A type at this moment: what is there, and the version of the view that it is.
fn snapshot(app: &App, service_type: &str) -> (Value, u64) {
    // Before the view is read: where there is none, what led to that is not news.
    let version = app.node.registry().version();
    match app.node.registry().view(service_type) {
        Some(view) => {
            let (online, draining, offline) = shapes::counts(&view);
            let instances: Vec<Value> = view
                .services()
                .iter()
                .map(|info| shapes::instance(info, Some(&view)))
                .collect();
            let value = json!({
                "type": service_type,
                "online": online,
                "draining": draining,
                "offline": offline,
                "instances": instances,
                "index": index(app, view.version()).to_string(),
            });
            (value, view.version())
        }
        None => {
            let value = json!({
                "type": service_type,
                "online": 0,
                "draining": 0,
                "offline": 0,
                "instances": [],
                "index": index(app, 0).to_string(),
            });
            (value, version)
        }
    }
}

/// The version that a type's index names: 0 while nothing of it is there.
fn current(app: &App, service_type: &str) -> u64 {
    app.node
        .registry()
        .view(service_type)
        .map_or(0, |view| view.version())
}

pub(super) async fn one_type(call: Call) -> Result<Response, Problem> {
    call.query.only(&["after", "wait", "shares"])?;
    let service_type = call.part(0).to_owned();
    keydispatch::ServiceType::try_new(&service_type)
        .map_err(|error| Problem::bad(error.to_string()))?;
    if call.wants_events() {
        return Ok(stream(watch_type(&call, service_type)));
    }
    let app = &call.app;
    let wait = match call.query.get("wait") {
        Some(text) => text
            .parse::<Period>()
            .map_err(Problem::bad)?
            .0
            .min(MAX_WAIT),
        None => Duration::ZERO,
    };
    let known = call
        .query
        .get("after")
        .or_else(|| call.header("if-none-match"));
    let known: Option<Index> = known.and_then(|text| text.parse().ok());
    let unchanged = |version: u64| known.as_ref() == Some(&index(app, version));
    if unchanged(current(app, &service_type)) {
        let mut news = app.hub.watch_type(&service_type);
        let until = tokio::time::Instant::now() + wait;
        let mut stop = app.stop.clone();
        while unchanged(current(app, &service_type)) {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(until) => break,
                () = http::stopped(&mut stop) => break,
            }
        }
        let version = current(app, &service_type);
        if unchanged(version) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(tagged(response, app, version));
        }
    }
    let (mut value, _) = snapshot(app, &service_type);
    if known.is_none()
        && current(app, &service_type) == 0
        && value["instances"].as_array().is_some_and(Vec::is_empty)
    {
        return Err(Problem::not_found("nothing is registered under this type"));
    }
    if call.query.flag("shares")? {
        add_shares(app, &service_type, &mut value).await?;
    }
    let version = value["index"]
        .as_str()
        .and_then(|text| text.parse::<Index>().ok());
    let version = version.map_or(0, |index| index.position.version);
    Ok(tagged(ok(&value), app, version))
}

fn tagged(mut response: Response, app: &App, version: u64) -> Response {
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", index(app, version))) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// The exact share of each instance, which looks at all slots.
async fn add_shares(app: &Arc<App>, service_type: &str, value: &mut Value) -> Result<(), Problem> {
    let Some(view) = app.node.registry().view(service_type) else {
        return Ok(());
    };
    let shares = super::plan::heavy(app, move || view.shares()).await?;
    for instance in value["instances"].as_array_mut().into_iter().flatten() {
        let of = shares
            .iter()
            .find(|(info, _)| instance["id"].as_str() == Some(&info.id().to_string()));
        let share = of.map_or(0.0, |(_, slots)| *slots as f64 / keydispatch::SLOTS as f64);
        instance["share"] = json!(round(share));
    }
    Ok(())
}

fn stream(frames: mpsc::Receiver<Bytes>) -> Response {
    let mut response = Response::new(Body::Stream(frames));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    response
}

/// A snapshot, or what has happened since the event that the watcher had last, and from then on every change once.
fn watch_type(call: &Call, service_type: String) -> mpsc::Receiver<Bytes> {
    let (said, watcher) = mpsc::channel(FRAMES);
    let app = Arc::clone(&call.app);
    let last: Option<Index> = call
        .header("last-event-id")
        .and_then(|text| text.parse().ok());
    let mut position = last
        .filter(|index| index.life == app.hub.life)
        .map(|index| index.position);
    let mut news = app.hub.watch_type(&service_type);
    let mut stop = app.stop.clone();
    let mut was_away = position.is_some();
    tokio::spawn(async move {
        loop {
            // What is said from here on is looked for before anybody waits for more.
            news.mark_unchanged();
            let changes = match position {
                None => None,
                Some(at) => match app.hub.changes_after(&service_type, at, was_away) {
                    Ok(changes) => Some(changes),
                    Err(_) => {
                        app.watch_lagged.fetch_add(1, Ordering::Relaxed);
                        if said.send(frame("lagged", None, &json!({}))).await.is_err() {
                            return;
                        }
                        None
                    }
                },
            };
            was_away = false;
            match changes {
                None => {
                    let (value, version) = snapshot(&app, &service_type);
                    position = Some(Position::of_view(version));
                    let id = index(&app, version);
                    if said
                        .send(frame("snapshot", Some(&id), &value))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Some(changes) if changes.is_empty() => {
                    if !wait(&said, &mut news, &mut stop).await {
                        return;
                    }
                }
                Some(changes) => {
                    for (at, event) in changes {
                        if said.send(event.frame(&app.hub.life)).await.is_err() {
                            return;
                        }
                        position = Some(at);
                    }
                }
            }
        }
    });
    watcher
}

/// Waits for news; false where nobody listens any more, or the agent stops.
async fn wait(
    said: &mpsc::Sender<Bytes>,
    news: &mut tokio::sync::watch::Receiver<u64>,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> bool {
    loop {
        tokio::select! {
            changed = news.changed() => return changed.is_ok(),
            () = said.closed() => return false,
            () = http::stopped(stop) => return false,
            () = tokio::time::sleep(HEARTBEAT) => {
                if said.send(Bytes::from_static(b": alive\n\n")).await.is_err() {
                    return false;
                }
            }
        }
    }
}

/// What of everything is asked for.
#[derive(Clone)]
struct Filter {
    service_type: Option<String>,
    node: Option<String>,
}

impl Filter {
    fn passes(&self, event: &Event) -> bool {
        let is =
            |wanted: &Option<String>, there: &Option<String>| wanted.is_none() || wanted == there;
        is(&self.service_type, &event.service_type) && is(&self.node, &event.node)
    }
}

/// The number of an event in this life; none where it is of another one.
fn number(app: &App, text: &str) -> Option<u64> {
    let (life, seq) = text.split_once('-')?;
    (life == app.hub.life).then(|| seq.parse().ok())?
}

pub(super) async fn events(call: Call) -> Result<Response, Problem> {
    call.query.only(&["type", "node", "since", "limit"])?;
    let filter = Filter {
        service_type: call.query.get("type").map(str::to_owned),
        node: call.query.get("node").map(str::to_owned),
    };
    let app = Arc::clone(&call.app);
    let since = call.query.get("since");
    let since_time = match since {
        Some(text) if !text.contains('-') => {
            let period = text.parse::<Period>().map_err(Problem::bad)?.0;
            std::time::SystemTime::now().checked_sub(period)
        }
        _ => None,
    };
    let after = since
        .filter(|text| text.contains('-'))
        .and_then(|text| number(&app, text));
    if call.wants_events() {
        let last = call
            .header("last-event-id")
            .and_then(|text| number(&app, text));
        let mut news = app.hub.watch();
        let start = last.or(after);
        let mut seq = match (start, since_time) {
            (Some(seq), _) => seq,
            (None, Some(_)) => 0,
            // From now on.
            (None, None) => *news.borrow(),
        };
        let (said, watcher) = mpsc::channel(FRAMES);
        let mut stop = app.stop.clone();
        tokio::spawn(async move {
            loop {
                news.mark_unchanged();
                let pass = |event: &Event| {
                    filter.passes(event) && since_time.is_none_or(|since| event.at >= since)
                };
                let (found, upto, missed) = app.hub.events_after(seq, AT_ONCE, pass);
                if missed
                    && start.is_some()
                    && said.send(frame("lagged", None, &json!({}))).await.is_err()
                {
                    return;
                }
                let more = found.len() == AT_ONCE;
                for event in found {
                    let id = format!("{}-{}", app.hub.life, event.seq);
                    let told = frame(event.kind, Some(&id), &event.to_json(&app.hub.life));
                    if said.send(told).await.is_err() {
                        return;
                    }
                }
                seq = upto;
                if !more && !wait(&said, &mut news, &mut stop).await {
                    return;
                }
            }
        });
        return Ok(stream(watcher));
    }
    let limit = call
        .query
        .number("limit")?
        .unwrap_or(MAX_EVENTS)
        .clamp(1, MAX_EVENTS);
    let pass =
        |event: &Event| filter.passes(event) && since_time.is_none_or(|since| event.at >= since);
    let (found, upto, missed) = app.hub.events_after(after.unwrap_or(0), usize::MAX, pass);
    // The newest of them.
    let found = &found[found.len().saturating_sub(limit)..];
    let events: Vec<Value> = found
        .iter()
        .map(|event| event.to_json(&app.hub.life))
        .collect();
    Ok(ok(&json!({
        "events": events,
        "next": format!("{}-{upto}", app.hub.life),
        "missed": missed && after.is_some(),
    })))
}
