//! The page: what is wrong, who is there, who owns what and why, what would be. HTML made here, without a script, and with
//! nothing from anywhere else; it is computed when somebody asks for it and at no other time.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use keydispatch::{PlannedChange, SLOTS, View};
use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use crate::api::Query;
use crate::app::App;
use crate::http::{self, Response};
use crate::peer::{self, Ask};
use crate::problem::Problem;
use crate::shapes;

mod troubles;

/// Rule: the page runs no script, loads nothing from elsewhere, and stands in nobody's frame.
const CSP: &str = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = include_str!("page/style.css");

/// Events that one view shows.
const EVENTS: usize = 100;
/// Nodes that the matrix shows.
const MATRIX: usize = 30;

/// Answers where the path is one of the page; none elsewhere.
pub(crate) async fn answer(
    app: &Arc<App>,
    path: &str,
    query: &Query,
) -> Option<Result<Response, Problem>> {
    if path == "/page/style.css" {
        return Some(Ok(http::typed(
            StatusCode::OK,
            "text/css; charset=utf-8",
            STYLE,
        )));
    }
    let shown = match path {
        "/" => now(app).await,
        "/page/members" => members(app).await,
        "/page/type" => one_type(app, query).await,
        "/page/key" => key(app, query).await,
        "/page/events" => events(app),
        "/page/what-if" => what_if(app, query).await,
        _ => return None,
    };
    Some(shown.map(|(title, body)| {
        let mut response = http::typed(
            StatusCode::OK,
            "text/html; charset=utf-8",
            frame(app, title, body).into_string(),
        );
        let headers = response.headers_mut();
        headers.insert("content-security-policy", HeaderValue::from_static(CSP));
        headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
        response
    }))
}

type Shown = Result<(&'static str, Markup), Problem>;

fn frame(app: &App, title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " \u{b7} " (app.node.cluster()) }
                link rel="stylesheet" href="/page/style.css";
            }
            body {
                header {
                    strong { (app.node.cluster()) } " as seen by " (app.node.name())
                    nav aria-label="Views" {
                        a href="/" { "Now" } a href="/page/members" { "Who sees whom" }
                        a href="/page/events" { "Events" }
                    }
                }
                main { h1 { (title) } (body) }
            }
        }
    }
}

fn link(service_type: &str) -> String {
    let encoded =
        percent_encoding::utf8_percent_encode(service_type, percent_encoding::NON_ALPHANUMERIC);
    format!("/page/type?type={encoded}")
}

async fn now(app: &Arc<App>) -> Shown {
    let (sentence, troubles) = troubles::now(app).await;
    let registry = app.node.registry();
    let types: Vec<_> = registry
        .types()
        .into_iter()
        .filter(|service_type| !service_type.as_str().starts_with('_'))
        .filter_map(|service_type| registry.view(service_type.as_str()))
        .collect();
    Ok((
        "Now",
        html! {
            p.sentence role="status" { (sentence) }
            @if !troubles.is_empty() {
                ul.troubles {
                    @for trouble in &troubles {
                        li { strong { (trouble.what) } " " (trouble.todo) }
                    }
                }
            }
            h2 { "Types" }
            table {
                thead { tr { th scope="col" { "Type" } th scope="col" { "Online" } th scope="col" { "Draining" } th scope="col" { "Offline" } } }
                tbody {
                    @for view in &types {
                        @let (online, draining, offline) = shapes::counts(view);
                        tr {
                            th scope="row" { a href=(link(view.service_type().as_str())) { (view.service_type()) } }
                            td { (online) } td { (draining) } td { (offline) }
                        }
                    }
                }
            }
        },
    ))
}

async fn members(app: &Arc<App>) -> Shown {
    let told = peer::ask_all(app, &Ask::Members).await;
    let names: Vec<String> = peer::members(app)
        .iter()
        .filter_map(|member| member["name"].as_str().map(str::to_owned))
        .take(MATRIX)
        .collect();
    let state = |by: &str, of: &str| -> String {
        match told.get(by) {
            Some(Ok(value)) => value["members"]
                .as_array()
                .and_then(|members| members.iter().find(|member| member["name"] == of))
                .and_then(|member| member["state"].as_str())
                .unwrap_or("unknown")
                .to_owned(),
            _ => "no answer".to_owned(),
        }
    };
    Ok((
        "Who sees whom",
        html! {
            p { "Each row is how that node sees the others." }
            table {
                thead { tr { th scope="col" { "" } @for name in &names { th scope="col" { (name) } } } }
                tbody {
                    @for by in &names {
                        tr {
                            th scope="row" { (by) }
                            @for of in &names {
                                @let seen = if by == of { "itself".to_owned() } else { state(by, of) };
                                td.(seen.replace(' ', "-")) { (seen) }
                            }
                        }
                    }
                }
            }
        },
    ))
}

fn view(app: &App, query: &Query) -> Result<Arc<View>, Problem> {
    let service_type = query
        .get("type")
        .ok_or_else(|| Problem::bad("the parameter type is missing"))?;
    app.node
        .registry()
        .view(service_type)
        .ok_or_else(|| Problem::not_found("nothing is registered under this type"))
}

fn percent(slots: usize) -> String {
    format!("{:.1} %", slots as f64 * 100.0 / SLOTS as f64)
}

async fn one_type(app: &Arc<App>, query: &Query) -> Shown {
    query.only(&["type"])?;
    let view = view(app, query)?;
    let shares = {
        let view = Arc::clone(&view);
        crate::api::heavy(app, move || view.shares()).await?
    };
    let weights: u32 = view
        .online()
        .map(|info| u32::from(info.weight().value()))
        .sum();
    let name = view.service_type().as_str();
    Ok((
        "A type",
        html! {
            p { (name) ": " (view.online_count()) " online of " (view.services().len()) }
            form action="/page/key" {
                input type="hidden" name="type" value=(name);
                label { "Who owns the key " input name="key" required; }
                button { "Look up" }
            }
            table {
                thead { tr { @for heading in ["Name", "Node", "State", "Share", "By weight", "Since", "Why", ""] { th scope="col" { (heading) } } } }
                tbody {
                    @for info in view.services() {
                        @let slots = shares.iter().find(|(of, _)| of.id() == info.id()).map_or(0, |(_, slots)| *slots);
                        tr {
                            th scope="row" { (info.name()) }
                            td { (info.node()) }
                            td.(info.state().to_string()) { @if view.is_standby(info) { "standby" } @else { (info.state()) } }
                            td { (percent(slots)) }
                            td { @if info.is_online() { (format!("{:.1} %", f64::from(info.weight().value()) * 100.0 / f64::from(weights.max(1)))) } }
                            td { (shapes::since(info).unwrap_or_default()) }
                            td { (info.tag(shapes::REASON).unwrap_or_default()) }
                            td {
                                form action="/page/what-if" {
                                    input type="hidden" name="type" value=(name);
                                    input type="hidden" name="remove" value=(info.name());
                                    button { "What if it goes" }
                                }
                            }
                        }
                    }
                }
            }
        },
    ))
}

async fn key(app: &Arc<App>, query: &Query) -> Shown {
    query.only_key_and(&["type"])?;
    let view = view(app, query)?;
    let key = query.key()?;
    let why = view.explain(key.key());
    let question = Ask::Owner {
        service_type: view.service_type().to_string(),
        key: key.canonical_hex(),
    };
    let told = peer::ask_all(app, &question).await;
    let own = view.owner(key.key()).map(|info| info.id().to_string());
    let agree = told
        .values()
        .filter(|told| {
            told.as_ref()
                .is_ok_and(|told| told["owner"]["id"].as_str() == own.as_deref())
        })
        .count();
    let moved = app.hub.last_move(&view, key.key());
    let shown = match key.shown() {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok((
        "A key",
        html! {
            p {
                code { (shown) } " of " a href=(link(view.service_type().as_str())) { (view.service_type()) }
                ", slot " (why.slot.index()) ". " (agree) " of " (told.len()) " agents say the same."
            }
            ol {
                @for preferred in &why.order {
                    li.(preferred.service.state().to_string()) {
                        (preferred.service.name()) " on " (preferred.service.node()) ", weight " (preferred.service.weight().value())
                        @if preferred.rank == Some(1) { strong { " owner" } }
                        @if preferred.rank.is_none() {
                            " " (preferred.service.state()) " " (preferred.service.tag(shapes::REASON).unwrap_or_default())
                            @if preferred.would_rank == 1 { ", would own it" }
                        }
                    }
                }
            }
            @if let Some(moved) = moved {
                p { "Moved at " (text(&moved["at"])) " from " (text(&moved["from"])) " to " (text(&moved["to"])) ", because " (text(&moved["because"])) "." }
            }
        },
    ))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("nobody")
}

fn events(app: &App) -> Shown {
    let (found, ..) = app.hub.events_after(0, usize::MAX, |_| true);
    Ok((
        "Events",
        html! {
            table {
                thead { tr { @for heading in ["At", "What", "Type", "Node", "Why"] { th scope="col" { (heading) } } } }
                tbody {
                    @for event in found.iter().rev().take(EVENTS) {
                        tr {
                            td { (crate::clock::rfc3339(event.at)) } td { (event.kind) }
                            td { (event.service_type.as_deref().unwrap_or_default()) }
                            td { (event.node.as_deref().unwrap_or_default()) }
                            td { (event.because.as_deref().unwrap_or_default()) }
                        }
                    }
                }
            }
        },
    ))
}

async fn what_if(app: &Arc<App>, query: &Query) -> Shown {
    query.only(&["type", "remove"])?;
    let view = view(app, query)?;
    let name = query
        .get("remove")
        .ok_or_else(|| Problem::bad("the parameter remove is missing"))?;
    let name = keydispatch::InstanceName::try_new(name)
        .map_err(|error| Problem::bad(error.to_string()))?;
    let after = view
        .with(&[PlannedChange::Remove(name.clone())])
        .map_err(|error| Problem::not_found(error.to_string()))?;
    let service_type = view.service_type().to_string();
    let moves = crate::api::heavy(app, move || view.moves_to(&after)).await?;
    let all: usize = moves.iter().map(|moved| moved.slots).sum();
    Ok((
        "What if",
        html! {
            p { "If " (name) " of " a href=(link(&service_type)) { (service_type) } " went, " (percent(all)) " of the keys would move. Nothing was changed." }
            ul {
                @for moved in &moves {
                    li { (percent(moved.slots)) " to " (moved.to.as_ref().map_or("nobody", |info| info.name().as_str())) }
                }
            }
        },
    ))
}
