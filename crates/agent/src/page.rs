//! The page: what is wrong, who is there, who owns what and why, what would be. HTML made here, without a script, and with
//! nothing from anywhere else; it is computed when somebody asks for it and at no other time.

use std::sync::Arc;
use std::time::SystemTime;

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
use crate::troubles;

/// Rule: the page runs no script, loads nothing from elsewhere, and stands in nobody's frame.
const CSP: &str = "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

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
            frame(app, path, title, body).into_string(),
        );
        let headers = response.headers_mut();
        headers.insert("content-security-policy", HeaderValue::from_static(CSP));
        headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
        response
    }))
}

type Shown = Result<(&'static str, Markup), Problem>;

/// The views that need nothing to be said, by path.
const VIEWS: [(&str, &str); 3] = [
    ("/", "Now"),
    ("/page/members", "Who sees whom"),
    ("/page/events", "Events"),
];

fn frame(app: &App, path: &str, title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " \u{b7} " (app.node.cluster()) }
                link rel="stylesheet" href="/page/style.css";
                // Browsers ask for one of their own otherwise.
                link rel="icon" href="data:,";
            }
            body {
                a.skip href="#main" { "To the content" }
                header {
                    p { strong { (app.node.cluster()) } " as seen by " (app.node.name()) " at " (clock_time()) }
                    nav aria-label="Views" {
                        @for (of, name) in VIEWS {
                            a href=(of) aria-current=[(of == path).then_some("page")] { (name) }
                        }
                    }
                }
                main #main tabindex="-1" { h1 { (title) } (body) }
            }
        }
    }
}

/// When the page was made: it does not change by itself.
fn clock_time() -> Markup {
    let now = crate::clock::rfc3339(SystemTime::now());
    html! { time datetime=(now) { (now) } }
}

/// A table that scrolls by itself where it is too wide, by keyboard, too.
fn table(name: &str, headings: &[&str], rows: Markup) -> Markup {
    html! {
        div.wide role="region" aria-label=(name) tabindex="0" {
            table {
                caption { (name) }
                thead { tr { @for heading in headings { th scope="col" { (heading) } } } }
                tbody { (rows) }
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
                h2 #wrong { "What is wrong" }
                ul.troubles aria-labelledby="wrong" {
                    @for trouble in troubles.iter().take(troubles::SHOWN) {
                        li { strong { (trouble.what) } " " (trouble.todo) }
                    }
                    @if troubles.len() > troubles::SHOWN {
                        li { "And " (troubles.len() - troubles::SHOWN) " more." }
                    }
                }
            }
            @if types.is_empty() {
                p { "Nothing is registered. " code { "dispatch register" } " and " code { "PUT /v1/endpoints/ID" } " do it." }
            } @else {
                (table("Types", &["Type", "Online", "Draining", "Offline"], html! {
                    @for view in &types {
                        @let (online, draining, offline) = shapes::counts(view);
                        tr {
                            th scope="row" { a href=(link(view.service_type().as_str())) { (view.service_type()) } }
                            td { (online) } td { (draining) } td { (offline) }
                        }
                    }
                }))
            }
        },
    ))
}

async fn members(app: &Arc<App>) -> Shown {
    let told = peer::ask_all(app, &Ask::Members).await;
    let own = peer::members(app).await;
    let all: Vec<&str> = own
        .iter()
        .filter_map(|member| member["name"].as_str())
        .collect();
    let names = &all[..all.len().min(MATRIX)];
    // Its class, and what is shown.
    let state = |by: &str, of: &str| -> (&'static str, String) {
        if by == of {
            return ("itself", "itself".to_owned());
        }
        let Some(Ok(value)) = told.get(by) else {
            return ("no-answer", "no answer".to_owned());
        };
        let seen = value["members"]
            .as_array()
            .and_then(|members| members.iter().find(|member| member["name"] == of));
        match seen.and_then(|seen| seen["state"].as_str()) {
            Some("up") => match seen.map(|seen| (&seen["linked"], seen["behind"].as_u64())) {
                Some((Value::Bool(false), _)) => ("no-link", "up, no link".to_owned()),
                Some((_, Some(behind @ 1..))) => ("behind", format!("up, {behind} behind")),
                _ => ("up", "up".to_owned()),
            },
            Some("suspected") => ("suspected", "suspected".to_owned()),
            Some("down") => ("down", "down".to_owned()),
            Some("left") => ("left", "left".to_owned()),
            _ => ("unknown", "unknown".to_owned()),
        }
    };
    let headings: Vec<&str> = std::iter::once("Node")
        .chain(names.iter().copied())
        .collect();
    let rows = html! {
        @for by in names {
            tr {
                th scope="row" { (by) }
                @for of in names {
                    @let (class, seen) = state(by, of);
                    td.(class) { (seen) }
                }
            }
        }
    };
    Ok((
        "Who sees whom",
        html! {
            p { "Each row is how that node sees the others: a way that is cut in one direction shows in one row, and not in the other." }
            @if all.len() > names.len() { p { "The first " (names.len()) " of " (all.len()) " nodes." } }
            (table("Nodes by nodes", &headings, rows))
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
            (table("Instances", &["Name", "Node", "State", "Share", "By weight", "Since", "Why", "If it went"], html! {
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
                                button aria-label=(format!("What if {} goes", info.name())) { "What if" }
                            }
                        }
                    }
                }
            }))
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
            (table("The last events, newest first", &["At", "What", "Type", "Node", "Why"], html! {
                @for event in found.iter().rev().take(EVENTS) {
                    tr {
                        td { (crate::clock::rfc3339(event.at)) } td { (event.kind) }
                        td { (event.service_type.as_deref().unwrap_or_default()) }
                        td { (event.node.as_deref().unwrap_or_default()) }
                        td { (event.because.as_deref().unwrap_or_default()) }
                    }
                }
            }))
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
