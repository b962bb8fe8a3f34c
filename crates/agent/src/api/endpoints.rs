//! Endpoints: registered here; looked at, changed and taken away wherever they are held.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::call::{Call, MAX_BODY, ok};
use crate::app::App;
use crate::config::Period;
use crate::endpoints::{Conditions, Definition, Endpoints, Lease, check_id};
use crate::http::{self, Body, Response};
use crate::hub::frame;
use crate::peer::{self, Ask};
use crate::problem::Problem;

/// A stream that nothing is said on says so, so that whoever reads notices when it is cut.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long an endpoint drains before it is taken away, at most.
const MAX_DRAIN: Duration = Duration::from_secs(600);
/// How long the other nodes are waited for.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

pub(super) async fn list(call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let mut all = Vec::new();
    for id in call.app.endpoints.ids() {
        if let Some((value, _)) = call.app.endpoints.one(&call.app, &id).await {
            all.push(value);
        }
    }
    Ok(ok(
        &json!({ "node": call.app.node.name().as_str(), "endpoints": all }),
    ))
}

fn with_etag(mut response: Response, etag: &str) -> Response {
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

pub(super) async fn put(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let id = call.part(0).to_owned();
    let definition: Definition = call.json(MAX_BODY).await?;
    let conditions = Conditions {
        matches: call.header("if-match").map(str::to_owned),
        none: match call.header("if-none-match") {
            None => false,
            Some("*") => true,
            Some(_) => {
                return Err(Problem::bad(
                    "If-None-Match is *: only where there is none yet",
                ));
            }
        },
    };
    let put = Endpoints::put(&call.app, &id, definition, &call.who, conditions).await?;
    let status = if put.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    if put.lease == Lease::Connection {
        let mut response = Response::new(Body::Stream(hold(
            &call.app,
            &id,
            put.value,
            put.lease_holder,
        )));
        *response.status_mut() = status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        );
        return Ok(with_etag(response, &put.etag));
    }
    Ok(with_etag(http::json(status, &put.value), &put.etag))
}

/// Tells of an endpoint as long as somebody listens, and takes it away after that.
fn hold(app: &Arc<App>, id: &str, first: Value, lease_holder: u64) -> mpsc::Receiver<bytes::Bytes> {
    let (said, listener) = mpsc::channel(4);
    let (app, id) = (Arc::clone(app), id.to_owned());
    let mut news = app.hub.watch();
    let mut stop = app.stop.clone();
    tokio::spawn(async move {
        let mut last = Value::Null;
        let mut next = Some(("registered", first));
        loop {
            if let Some((name, value)) = next.take() {
                let shown = json!([value["state"], value["reason"]]);
                if shown != last {
                    last = shown;
                    if said.send(frame(name, None, &value)).await.is_err() {
                        break;
                    }
                }
            }
            tokio::select! {
                () = said.closed() => break,
                () = http::stopped(&mut stop) => break,
                // An error says that the hub has gone, and the agent with it.
                changed = news.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    match app.endpoints.one(&app, &id).await {
                        Some((value, _)) => next = Some(("state", value)),
                        None => break,
                    }
                }
                () = tokio::time::sleep(HEARTBEAT) => {
                    if said.send(bytes::Bytes::from_static(b": alive\n\n")).await.is_err() {
                        break;
                    }
                }
            }
        }
        Endpoints::connection_closed(&app, &id, lease_holder).await;
    });
    listener
}

/// The node whose agent holds an endpoint, where it is not this one: any agent passes on what is meant for another one.
fn holder(app: &App, id: &str) -> Result<String, Problem> {
    check_id(id)?;
    let own = app.node.name();
    let registry = app.node.registry();
    registry
        .types()
        .iter()
        .filter_map(|service_type| registry.view(service_type.as_str()))
        .find_map(|view| {
            let services = view.services();
            let start = services.partition_point(|info| info.name().as_str() < id);
            services[start..]
                .iter()
                .take_while(|info| info.name().as_str() == id)
                .find(|info| info.is_endpoint() && info.node() != own)
                .map(|info| info.node().to_string())
        })
        .ok_or_else(|| Problem::not_found("no agent that is up holds this endpoint"))
}

pub(super) async fn get(call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let id = call.part(0);
    if let Some((value, etag)) = call.app.endpoints.one(&call.app, id).await {
        if call.header("if-none-match") == Some(&etag) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(with_etag(response, &etag));
        }
        return Ok(with_etag(ok(&value), &etag));
    }
    let node = holder(&call.app, id)?;
    let question = Ask::Endpoint { id: id.to_owned() };
    Ok(ok(&peer::ask(&call.app, &node, question, None).await?))
}

/// Here where it is held here, else at the agent that holds it.
async fn at_holder(
    call: &Call,
    question: Ask,
    patience: Option<Duration>,
) -> Result<Response, Problem> {
    let id = call.part(0);
    let node = if call.app.endpoints.one(&call.app, id).await.is_some() {
        call.app.node.name().to_string()
    } else {
        holder(&call.app, id)?
    };
    Ok(ok(&peer::ask(&call.app, &node, question, patience).await?))
}

pub(super) async fn delete(call: Call) -> Result<Response, Problem> {
    call.query.only(&["drain"])?;
    let drain = match call.query.get("drain") {
        Some(text) => Some(
            text.parse::<Period>()
                .map_err(Problem::bad)?
                .0
                .min(MAX_DRAIN),
        ),
        None => None,
    };
    let question = Ask::Delete {
        id: call.part(0).to_owned(),
        drain_ms: drain.map(|drain| u64::try_from(drain.as_millis()).unwrap_or(u64::MAX)),
        who: call.who.clone(),
    };
    at_holder(&call, question, drain).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateBody {
    state: String,
    #[serde(default)]
    reason: Option<String>,
}

/// A reason that stands in the registry: short, and of one line.
fn reason(text: Option<String>, default: &str) -> Result<String, Problem> {
    let text = text.unwrap_or_else(|| default.to_owned());
    if text.len() > 200 || text.chars().any(char::is_control) {
        return Err(Problem::bad(
            "a reason has at most 200 bytes, and no control characters",
        ));
    }
    Ok(text)
}

pub(super) async fn state(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let body: StateBody = call.json(MAX_BODY).await?;
    crate::shapes::parse_state(&body.state)?;
    let question = Ask::State {
        id: call.part(0).to_owned(),
        reason: reason(body.reason, &format!("set by {}", call.who.name))?,
        state: body.state,
        who: call.who.clone(),
    };
    at_holder(&call, question, None).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightBody {
    instance: String,
    weight: u16,
}

/// Another weight for an endpoint of a type, by its instance name.
pub(super) async fn weigh(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let body: WeightBody = call.json(MAX_BODY).await?;
    keydispatch::Weight::try_new(body.weight).map_err(|error| Problem::bad(error.to_string()))?;
    let info = call
        .app
        .node
        .registry()
        .services(call.part(0))
        .into_iter()
        .find(|info| info.name().as_str() == body.instance)
        .ok_or_else(|| Problem::not_found("no instance of this type has that name"))?;
    let question = Ask::Weight {
        id: body.instance.clone(),
        weight: body.weight,
        who: call.who.clone(),
    };
    Ok(ok(&peer::ask(
        &call.app,
        info.node().as_str(),
        question,
        None,
    )
    .await?))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DrainBody {
    wait: Option<Period>,
    reason: Option<String>,
}

pub(super) async fn drain_member(mut call: Call) -> Result<Response, Problem> {
    call.query.only(&[])?;
    let body: DrainBody = call.json_or_default().await?;
    let wait = body
        .wait
        .map_or(DRAIN_WAIT, |Period(wait)| wait.min(MAX_DRAIN));
    let name = match call.part(0) {
        "self" => call.app.node.name().to_string(),
        name => name.to_owned(),
    };
    let question = Ask::Drain {
        wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        reason: reason(body.reason, &format!("drained by {}", call.who.name))?,
    };
    let value = peer::ask(&call.app, &name, question, Some(wait)).await?;
    let all = value["not_seen_by"].as_array().is_some_and(Vec::is_empty);
    let status = if all {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    if !all {
        tracing::warn!(node = name, "some nodes have not seen that it drains");
    }
    Ok(http::json(status, &value))
}
